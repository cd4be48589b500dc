//! Checks of a CA that a user brings (`provided` backend; reference: legacy policies §3.4).

use crate::{
    Error,
    cert::{certificates_der, parse_certificate},
    key,
};
use rcgen::PublicKeyData;

/// A violation relative to the backend's `conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaViolation {
    /// `cert` or `cert[i]`.
    pub field: String,
    /// Kuma's text.
    pub message: String,
}

fn at(field: impl Into<String>, message: impl Into<String>) -> CaViolation {
    CaViolation { field: field.into(), message: message.into() }
}

/// Kuma's checks of a provided CA, in its order and with its texts; empty = fine.
///
/// The pair must belong together; then every certificate of the chain must be a CA, may sign certificates and must not have
/// `keyAgreement`.
pub fn validate_provided(cert_pem: &str, key_pem: &str) -> Vec<CaViolation> {
    let pair = |reason: &str| vec![at("cert", format!("not a valid TLS key pair: tls: {reason}"))];
    let chain = match certificates_der(cert_pem) {
        Ok(chain) => chain,
        Err(_) => return pair("failed to find any PEM data in certificate input"),
    };
    let key = match key::signing_key(key_pem) {
        Ok(key) => key,
        Err(Error::NoPem(_)) => return pair("failed to find any PEM data in key input"),
        Err(_) => return pair("failed to parse private key"),
    };
    let mut found = Vec::new();
    for (i, der) in chain.iter().enumerate() {
        let info = match parse_certificate(der) {
            Ok(info) => info,
            Err(e) if i == 0 => return vec![at("cert", format!("not a valid TLS key pair: {e}"))],
            Err(e) => {
                found.push(at(format!("cert[{i}]"), format!("not a valid x509 certificate: {e}")));
                return found;
            }
        };
        if i == 0 && key.subject_public_key_info() != info.public_key {
            return pair("private key does not match public key");
        }
        let mut fail = |message: &str| found.push(at(format!("cert[{i}]"), message));
        if !info.is_ca {
            fail("basic constraint 'CA' must be set to 'true' (see X509-SVID: 4.1. Basic Constraints)");
        }
        if !info.signs_certificates {
            fail("key usage extension 'keyCertSign' must be set (see X509-SVID: 4.3. Key Usage)");
        }
        if info.key_agreement {
            fail("key usage extension 'keyAgreement' must NOT be set (see X509-SVID: Appendix A. X.509 Field Reference)");
        }
    }
    found
}
