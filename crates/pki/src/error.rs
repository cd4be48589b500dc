//! What can go wrong with certificates and keys.

/// One line for people; never contains key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No PEM block of the wanted kind.
    #[error("no PEM block with a {0} found")]
    NoPem(&'static str),
    /// A certificate that cannot be decoded.
    #[error("certificate cannot be parsed: {0}")]
    Certificate(String),
    /// A key that cannot be decoded or used.
    #[error("private key cannot be used: {0}")]
    Key(String),
    /// Certificate and key do not belong together.
    #[error("private key does not match public key")]
    Mismatch,
    /// A name that cannot stand in a certificate.
    #[error("{0:?} cannot be written into a certificate: only ASCII is allowed")]
    Name(String),
    /// An RSA key size that cannot be made.
    #[error("RSA keys of {0} bits are not supported: choose 2048 to 8192")]
    RsaBits(u32),
    /// A time outside of what a certificate can hold (years 1970–9999).
    #[error("validity is outside of the years 1970 to 9999")]
    Time,
    /// The cryptographic library failed.
    #[error("cannot make a certificate: {0}")]
    Crypto(String),
}
