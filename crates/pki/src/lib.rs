//! Certificate authorities, certificates, signing keys and JWT tokens (reference: Kuma 2.14.3, data plane contract §1.1, §5.4, §6.1–6.2;
//! REST contract §5.2, §5.4).
//!
//! Everything here works on PEM texts and plain values. The wall clock is passed in as [`std::time::SystemTime`]; randomness (keys, serial
//! numbers, token ids) comes from the operating system through aws-lc-rs. Nothing is read from disk, network or environment.
//!
//! Making an RSA key ([`builtin_ca`], [`envoy_admin_ca`], [`token::generate_signing_key`]) takes 50 ms to several seconds of CPU: call these
//! from `spawn_blocking`. Everything else is far below a millisecond.

mod ca;
mod cert;
mod cluster;
mod error;
mod key;
mod pem;
mod provided;
pub mod tls;
pub mod token;

pub use ca::{
    ADMIN_CA_COMMON_NAME, Ca, DEFAULT_CA_EXPIRY, DEFAULT_RSA_BITS, DEFAULT_WORKLOAD_EXPIRY, PemPair, WorkloadCertificate, builtin_ca,
    envoy_admin_ca, self_signed_server,
};
pub use cert::{CertInfo, certificate_pem, certificates_der, key_matches, parse_certificate, parse_chain, private_key_der};
pub use cluster::{
    CLUSTER_CA_EXPIRY, CertificateRequest, certificate_fingerprint, certificate_request, cluster_ca, generate_key, sha256,
};
pub use error::Error;
pub use provided::{CaViolation, validate_provided};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
