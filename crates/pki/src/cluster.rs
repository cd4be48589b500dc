//! The CA of a cluster of control planes, and the certificates by which its nodes know each other.

use crate::{
    Error, Result,
    ca::{Ca, PemPair, crypto, empty_params, random_serial, seconds, validity},
    cert::parse_certificate,
    key,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, string::Ia5String,
};
use rustls::pki_types::CertificateSigningRequestDer;
use std::time::{Duration, SystemTime};

/// Life of a cluster's CA: 20 years of 365 days.
pub const CLUSTER_CA_EXPIRY: Duration = Duration::from_secs(7300 * 24 * 3600);
/// How far before `now` these certificates start: nodes whose clocks differ by less believe each other at once.
const SKEW: Duration = Duration::from_secs(3600);
/// Largest certificate request that is read, in bytes.
const MAX_REQUEST: usize = 4096;

/// The CA of a cluster: P-256, random serial number, `O=Ikada, CN=Ikada cluster <id>`, CA:TRUE with path length 0, valid from an hour
/// before `now` for twenty years.
///
/// # Errors
/// The library cannot sign; a clock before 1970.
pub fn cluster_ca(cluster: &str, now: SystemTime) -> Result<PemPair> {
    let mut params = empty_params();
    validity(&mut params, now, SKEW, now.checked_add(CLUSTER_CA_EXPIRY).ok_or(Error::Time)?)?;
    params.serial_number = Some(random_serial());
    params.distinguished_name.push(DnType::OrganizationName, "Ikada");
    params.distinguished_name.push(DnType::CommonName, format!("Ikada cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = key::p256()?;
    let cert = params.self_signed(&key).map_err(crypto)?;
    Ok(PemPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A fresh P-256 key as PKCS#8 PEM.
///
/// # Errors
/// The library has no randomness.
pub fn generate_key() -> Result<String> {
    Ok(key::p256()?.serialize_pem())
}

/// A request (PKCS#10, DER) for a certificate of this key. It asks for no names: the issuer decides about them.
///
/// # Errors
/// The key cannot be read.
pub fn certificate_request(key_pem: &str) -> Result<Vec<u8>> {
    let key = key::signing_key(key_pem)?;
    let request = empty_params().serialize_request(&key).map_err(crypto)?;
    Ok(request.der().to_vec())
}

/// A certificate request whose signature was verified: who made it has the private key.
pub struct CertificateRequest(CertificateSigningRequestParams);

impl CertificateRequest {
    /// Reads a request (PKCS#10, DER, at most 4 KiB) and verifies its signature.
    ///
    /// # Errors
    /// It is damaged, its signature does not fit, or its key is not P-256.
    pub fn parse(der: &[u8]) -> Result<CertificateRequest> {
        let bad = |why: &str| Error::Certificate(format!("certificate request: {why}"));
        if der.len() > MAX_REQUEST {
            return Err(bad("larger than 4 KiB"));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der)).map_err(|e| bad(&e.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(bad("its key is not P-256"));
        }
        Ok(CertificateRequest(request))
    }

    /// SHA-256 of the public key (subject public key info, DER): who asks again with the same key has the same one.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.0.public_key.subject_public_key_info())
    }
}

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data);
    <[u8; 32]>::try_from(digest.as_ref()).unwrap_or_default()
}

impl Ca {
    /// The certificate of a node of a cluster, PEM: the request's key, empty subject, the one URI SAN `uri`, serverAuth and clientAuth, valid
    /// from an hour before `now` until `now` + `life`, or until the CA ends.
    ///
    /// # Errors
    /// A name that is not ASCII; a clock before 1970.
    pub fn node_certificate(&self, request: &CertificateRequest, uri: &str, life: Duration, now: SystemTime) -> Result<String> {
        let mut params: CertificateParams = empty_params();
        let end = now.checked_add(life).filter(|end| seconds(*end).is_ok()).unwrap_or(self.info().not_after).min(self.info().not_after);
        validity(&mut params, now, SKEW, end)?;
        params.serial_number = Some(random_serial());
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).map_err(|_| Error::Name(uri.to_owned()))?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&request.0.public_key, self.issuer()).map_err(crypto)?.pem())
    }
}

/// SHA-256 of the public key of a certificate (DER), comparable with [`CertificateRequest::fingerprint`].
///
/// # Errors
/// It cannot be read.
pub fn certificate_fingerprint(der: &[u8]) -> Result<[u8; 32]> {
    Ok(sha256(&parse_certificate(der)?.public_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{certificates_der, key_matches};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn a_node_certificate_is_what_was_asked_for_and_no_more() {
        let pair = cluster_ca("c", now()).unwrap();
        let ca = Ca::from_pair(&pair).unwrap();
        assert!(ca.info().is_ca && ca.info().subject.contains("Ikada cluster c"));
        let key = generate_key().unwrap();
        let request = CertificateRequest::parse(&certificate_request(&key).unwrap()).unwrap();
        let life = Duration::from_secs(600);
        let pem = ca.node_certificate(&request, "ikada://c/node/7", life, now()).unwrap();
        assert!(key_matches(&pem, &key).unwrap());
        let der = certificates_der(&pem).unwrap();
        let info = parse_certificate(&der[0]).unwrap();
        assert_eq!((info.uris, info.dns_names.len(), info.is_ca), (vec!["ikada://c/node/7".to_owned()], 0, false));
        assert_eq!((info.not_before, info.not_after), (now() - SKEW, now() + life));
        assert_eq!(certificate_fingerprint(&der[0]).unwrap(), request.fingerprint());
        let long = ca.node_certificate(&request, "ikada://c/node/7", CLUSTER_CA_EXPIRY * 2, now()).unwrap();
        assert_eq!(parse_certificate(&certificates_der(&long).unwrap()[0]).unwrap().not_after, ca.info().not_after);
    }

    #[test]
    fn a_request_that_was_changed_is_refused() {
        let der = certificate_request(&generate_key().unwrap()).unwrap();
        CertificateRequest::parse(&der).unwrap();
        for at in 0..der.len() {
            let mut bad = der.clone();
            bad[at] ^= 0x10;
            if let Ok(read) = CertificateRequest::parse(&bad) {
                // Only bits that say the same in another way may be left.
                assert_eq!(read.fingerprint(), CertificateRequest::parse(&der).unwrap().fingerprint(), "byte {at}");
            }
            assert!(CertificateRequest::parse(&der[..at]).is_err());
        }
        assert!(CertificateRequest::parse(&vec![0x30; MAX_REQUEST + 1]).is_err());
    }
}
