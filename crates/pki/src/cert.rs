//! Reading certificates.

use crate::{Error, Result, key, pem};
use rcgen::PublicKeyData;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Largest chain that is read, in certificates.
const MAX_CHAIN: usize = 64;
/// Largest bundle of trusted CAs that is read, in certificates.
const MAX_BUNDLE: usize = 4096;

/// What this project asks of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertInfo {
    /// Basic constraints with CA:TRUE.
    pub is_ca: bool,
    /// The basic constraints extension is there at all (Kuma's `NotCA` check looks only then).
    pub has_basic_constraints: bool,
    /// Key usage `keyCertSign`.
    pub signs_certificates: bool,
    /// Key usage `keyAgreement`.
    pub key_agreement: bool,
    /// DNS subject alternative names, in order.
    pub dns_names: Vec<String>,
    /// IP subject alternative names, in order.
    pub ip_addresses: Vec<IpAddr>,
    /// URI subject alternative names, in order (SPIFFE ids).
    pub uris: Vec<String>,
    /// Subject as text, e.g. `O=Kuma, OU=Mesh, CN=default`.
    pub subject: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Subject public key info, DER.
    pub public_key: Vec<u8>,
}

impl CertInfo {
    /// Whether a client that connects to `host` (IP or DNS name, no port) would accept this server certificate's names. A leading
    /// wildcard label stands for one label.
    pub fn covers_host(&self, host: &str) -> bool {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return self.ip_addresses.contains(&ip);
        }
        let host = host.trim_end_matches('.');
        self.dns_names.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
            None => name.eq_ignore_ascii_case(host),
        })
    }
    /// DNS names, then IP addresses, as text.
    pub fn sans(&self) -> Vec<String> {
        self.dns_names.iter().cloned().chain(self.ip_addresses.iter().map(IpAddr::to_string)).collect()
    }
}

fn instant(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 { SystemTime::UNIX_EPOCH.checked_sub(distance) } else { SystemTime::UNIX_EPOCH.checked_add(distance) };
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Reads one DER certificate.
///
/// # Errors
/// [`Error::Certificate`] with the parser's reason.
pub fn parse_certificate(der: &[u8]) -> Result<CertInfo> {
    let bad = |e: &dyn std::fmt::Display| Error::Certificate(e.to_string());
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| bad(&e))?;
    let constraints = cert.basic_constraints().map_err(|e| bad(&e))?;
    let usage = cert.key_usage().map_err(|e| bad(&e))?;
    let mut info = CertInfo {
        is_ca: constraints.as_ref().is_some_and(|c| c.value.ca),
        has_basic_constraints: constraints.is_some(),
        signs_certificates: usage.as_ref().is_some_and(|u| u.value.key_cert_sign()),
        key_agreement: usage.as_ref().is_some_and(|u| u.value.key_agreement()),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        uris: Vec::new(),
        subject: cert.subject().to_string(),
        not_before: instant(cert.validity().not_before.timestamp()),
        not_after: instant(cert.validity().not_after.timestamp()),
        serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
        public_key: cert.public_key().raw.to_vec(),
    };
    if let Some(names) = cert.subject_alternative_name().map_err(|e| bad(&e))? {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(n) => info.dns_names.push((*n).to_owned()),
                GeneralName::URI(u) => info.uris.push((*u).to_owned()),
                GeneralName::IPAddress(b) => info.ip_addresses.extend(ip(b)),
                _ => {}
            }
        }
    }
    Ok(info)
}

/// The certificates of a PEM text in order, as rustls wants them. Other blocks are skipped.
///
/// # Errors
/// No certificate, a damaged block, or more than 64 certificates.
pub fn certificates_der(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    at_most(MAX_CHAIN, pem)
}

/// The certificates of a bundle of trusted CAs; an operating system's has some hundreds.
pub(crate) fn bundle_der(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    at_most(MAX_BUNDLE, pem)
}

fn at_most(max: usize, pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let mut chain = Vec::new();
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        chain.push(cert.map_err(|e| Error::Certificate(e.to_string()))?);
        if chain.len() > max {
            return Err(Error::Certificate(format!("more than {max} certificates in one text")));
        }
    }
    if chain.is_empty() { Err(Error::NoPem("certificate")) } else { Ok(chain) }
}

/// PEM text of one certificate (DER).
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode("CERTIFICATE", der)
}

/// The first private key of a PEM text (PKCS#8, PKCS#1 or SEC 1), as rustls wants it.
///
/// # Errors
/// [`Error::NoPem`] when there is none.
pub fn private_key_der(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::NoPem("private key"))
}

/// Reads every certificate of a PEM text.
///
/// # Errors
/// As [`certificates_der`] and [`parse_certificate`].
pub fn parse_chain(pem: &str) -> Result<Vec<CertInfo>> {
    certificates_der(pem)?.iter().map(|der| parse_certificate(der)).collect()
}

/// Whether the private key belongs to the first certificate.
///
/// # Errors
/// Either text cannot be read.
pub fn key_matches(cert_pem: &str, key_pem: &str) -> Result<bool> {
    let chain = parse_chain(cert_pem)?;
    let leaf = chain.first().ok_or(Error::NoPem("certificate"))?;
    Ok(key::signing_key(key_pem)?.subject_public_key_info() == leaf.public_key)
}
