//! Why a bootstrap request is refused.

use std::fmt::Display;

/// Why a bootstrap request is refused. The text is printed by kuma-dp where the contract says so ([`BootstrapError::body`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// The body is not a request.
    #[error("the bootstrap request is not valid: {0}")]
    NotJson(String),
    /// No token, but the proxy kind needs one.
    #[error(
        "Dataplane Token is required. Generate token using 'kumactl generate dataplane-token > /path/file' and provide it via \
         --dataplane-token-file=/path/file argument to Kuma DP"
    )]
    DpTokenRequired,
    /// Envoy would not accept the server's certificate for the address that the proxy uses.
    #[error(
        "A data plane proxy is trying to connect to the control plane using {host:?} address, but the certificate in the control plane has the \
         following SANs [{}]. Either change the --cp-address in kuma-dp to one of those or execute the following steps:\n\
         1) Generate a new certificate with the address you are trying to use. It is recommended to use trusted Certificate Authority, but you can \
         also generate self-signed certificates using 'kumactl generate tls-certificate --type=server --hostname={host}'\n\
         2) Set KUMA_GENERAL_TLS_CERT_FILE and KUMA_GENERAL_TLS_KEY_FILE or the equivalent in the control plane's configuration to the new \
         certificate.\n\
         3) Restart the control plane to read the new certificate and start kuma-dp.",
        sans.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" ")
    )]
    SanMismatch {
        /// Address used by the proxy.
        host: String,
        /// Names and addresses in the certificate.
        sans: Vec<String>,
    },
    /// Envoy would not accept the certificate as an anchor.
    #[error(
        "A data plane proxy is trying to verify the control plane using the certificate which is not a certificate authority (basic constraint 'CA' \
         is set to 'false').\n\
         Provide CA that was used to sign a certificate used in the control plane by using 'kuma-dp run --ca-cert-file=file' or via \
         KUMA_CONTROL_PLANE_CA_CERT_FILE"
    )]
    NotCa,
    /// The resource or the request breaks a rule: `field: message`, several separated by `; `.
    #[error("{0}")]
    Invalid(String),
    /// No such resource, or no such mesh, in the store.
    #[error("the proxy's resource is not in the store")]
    NotFound,
    /// The control plane's own fault.
    #[error("cannot build the bootstrap: {0}")]
    Internal(String),
}

impl BootstrapError {
    /// From violations, as (field, message).
    pub fn invalid<F: Display, M: Display>(violations: impl IntoIterator<Item = (F, M)>) -> Self {
        BootstrapError::Invalid(violations.into_iter().map(|(f, m)| format!("{f}: {m}")).collect::<Vec<_>>().join("; "))
    }
    /// HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            BootstrapError::NotJson(_) | BootstrapError::SanMismatch { .. } | BootstrapError::NotCa => 400,
            BootstrapError::DpTokenRequired | BootstrapError::Invalid(_) => 422,
            BootstrapError::NotFound => 404,
            BootstrapError::Internal(_) => 500,
        }
    }
    /// Body of the answer (`text/plain; charset=utf-8`): the text, or empty where the contract has none.
    pub fn body(&self) -> String {
        match self {
            BootstrapError::NotJson(_) | BootstrapError::NotFound | BootstrapError::Internal(_) => String::new(),
            other => other.to_string(),
        }
    }
}
