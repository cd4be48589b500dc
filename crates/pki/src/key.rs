//! RSA and EC private keys and their encodings.

use crate::{Error, Result, pem};
use aws_lc_rs::{encoding::AsDer, rsa};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::asn1_rs::{Any, FromDer};

/// A fresh P-256 key.
pub(crate) fn p256() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| Error::Crypto(e.to_string()))
}

/// A fresh RSA key in PKCS#8. Sizes between those of the library are rounded up, smaller ones become 2048 bits.
fn rsa_pkcs8(bits: u32) -> Result<Vec<u8>> {
    let size = match bits {
        0..=2048 => rsa::KeySize::Rsa2048,
        2049..=3072 => rsa::KeySize::Rsa3072,
        3073..=4096 => rsa::KeySize::Rsa4096,
        4097..=8192 => rsa::KeySize::Rsa8192,
        _ => return Err(Error::RsaBits(bits)),
    };
    let key = rsa::KeyPair::generate(size).map_err(|_| Error::Crypto("no RSA key could be generated".to_owned()))?;
    let der = key.as_der().map_err(|_| Error::Crypto("RSA key cannot be encoded".to_owned()))?;
    Ok(der.as_ref().to_vec())
}

/// A fresh RSA key and its PKCS#1 PEM (`RSA PRIVATE KEY`, as Kuma stores it).
pub(crate) fn rsa(bits: u32) -> Result<(KeyPair, String)> {
    let pkcs8 = rsa_pkcs8(bits)?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &PKCS_RSA_SHA256)
        .map_err(|e| Error::Crypto(e.to_string()))?;
    Ok((key, pem::encode("RSA PRIVATE KEY", pkcs8_inner(&pkcs8)?)))
}

/// The algorithm's own private key inside a PKCS#8 document: for RSA the PKCS#1 `RSAPrivateKey`.
fn pkcs8_inner(pkcs8: &[u8]) -> Result<&[u8]> {
    let bad = || Error::Key("not a PKCS#8 document".to_owned());
    let (_, document) = Any::from_der(pkcs8).map_err(|_| bad())?;
    let (rest, _version) = Any::from_der(document.data).map_err(|_| bad())?;
    let (rest, _algorithm) = Any::from_der(rest).map_err(|_| bad())?;
    let (_, key) = Any::from_der(rest).map_err(|_| bad())?;
    Ok(key.data)
}

/// The PKCS#1 form of an RSA private key given as PEM (PKCS#1 or PKCS#8) or as raw PKCS#1 DER.
pub(crate) fn rsa_private_der(data: &[u8]) -> Result<Vec<u8>> {
    let der = match PrivateKeyDer::from_pem_slice(data) {
        Ok(PrivateKeyDer::Pkcs1(k)) => k.secret_pkcs1_der().to_vec(),
        Ok(PrivateKeyDer::Pkcs8(k)) => pkcs8_inner(k.secret_pkcs8_der())?.to_vec(),
        Ok(_) => return Err(Error::Key("not an RSA key".to_owned())),
        Err(_) => data.to_vec(),
    };
    rsa::KeyPair::from_der(&der).map_err(|e| Error::Key(format!("not an RSA private key ({e})")))?;
    Ok(der)
}

/// The PKCS#1 `RSAPublicKey` of an RSA private key in PKCS#1 DER.
pub(crate) fn rsa_public_of(private: &[u8]) -> Result<Vec<u8>> {
    use aws_lc_rs::signature::KeyPair as _;
    let key = rsa::KeyPair::from_der(private).map_err(|e| Error::Key(format!("not an RSA private key ({e})")))?;
    Ok(key.public_key().as_ref().to_vec())
}

/// Any private key in PEM (PKCS#8, PKCS#1, SEC 1) ready to sign certificates.
pub(crate) fn signing_key(pem: &str) -> Result<KeyPair> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::NoPem("private key"))?;
    KeyPair::try_from(&der).map_err(|e| Error::Key(e.to_string()))
}

/// PEM of a private key under the label that fits its encoding.
pub(crate) fn private_pem(der: &PrivateKeyDer<'_>) -> Result<String> {
    let label = match der {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        PrivateKeyDer::Pkcs8(_) => "PRIVATE KEY",
        _ => return Err(Error::Key("unknown encoding".to_owned())),
    };
    Ok(pem::encode(label, der.secret_der()))
}
