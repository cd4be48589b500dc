//! TLS clients of the control plane: which servers they believe.
//!
//! The control plane's own certificate is self-signed with CA:TRUE, and users give exactly this certificate as the CA bundle
//! (`--ca-cert-file`). Go and BoringSSL accept that; webpki refuses every CA certificate as an end entity. [`client_config`] therefore
//! accepts a server certificate that is itself in the bundle when its names and its validity fit, and leaves all others to webpki.

use crate::{Error, Result, cert::bundle_der, parse_certificate};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Where operating systems keep their trusted CAs, in the order in which kuma-dp looks (Debian, Fedora, openSUSE, RHEL 7, Alpine).
pub const SYSTEM_CA_PATHS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Which servers a client believes.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Those whose chain ends in, or whose certificate is, one of these (PEM).
    Bundle(&'a str),
    /// Any (`--skip-verify`).
    Anything,
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: everything is believed.
    bundle: Option<(Vec<CertificateDer<'static>>, Arc<WebPkiServerVerifier>)>,
}

/// Client configuration (TLS 1.2 and 1.3, no client certificate) for the given trust.
///
/// # Errors
/// The bundle has no certificate that can be read.
pub fn client_config(trust: Trust<'_>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let bundle = match trust {
        Trust::Anything => None,
        Trust::Bundle(pem) => {
            let own = bundle_der(pem)?;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(own.iter().cloned());
            if roots.is_empty() {
                return Err(Error::Certificate("none of the bundle's certificates can be used".to_owned()));
            }
            let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| Error::Certificate(e.to_string()))?;
            Some((own, webpki))
        }
    };
    let verifier = Arc::new(Verifier { provider: provider.clone(), bundle });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Crypto(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn check_validity(der: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let info = parse_certificate(der).map_err(|_| CertificateError::BadEncoding)?;
    let now = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(now.as_secs())).ok_or(CertificateError::Expired)?;
    if now < info.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > info.not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some((own, webpki)) = &self.bundle else { return Ok(ServerCertVerified::assertion()) };
        if !own.contains(end_entity) {
            let verdict = webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
            return verdict.map_err(|e| match e {
                // What webpki says of somebody else's self-signed CA certificate; people understand "unknown issuer".
                rustls::Error::InvalidCertificate(CertificateError::Other(_)) if parse_certificate(end_entity).is_ok_and(|c| c.is_ca) => {
                    CertificateError::UnknownIssuer.into()
                }
                e => e,
            });
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        check_validity(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
