//! HTTP clients for the control plane.

use anyhow::{Context, bail};
use ikada_pki::tls::{SYSTEM_CA_PATHS, Trust, client_config};
use std::{path::Path, time::Duration};

/// Which servers the user wants to believe.
#[derive(Debug, Clone, Default)]
pub struct ServerTrust {
    /// PEM text given by the user; wins over everything but `skip_verify`.
    pub ca_pem: Option<String>,
    /// Believe any server.
    pub skip_verify: bool,
}

/// The PEM bundle that is used: the user's, else the operating system's; `None` with `skip_verify`.
///
/// # Errors
/// There is no bundle.
pub fn trust_pem(trust: &ServerTrust) -> anyhow::Result<Option<String>> {
    if trust.skip_verify {
        return Ok(None);
    }
    if let Some(pem) = &trust.ca_pem {
        return Ok(Some(pem.clone()));
    }
    for path in SYSTEM_CA_PATHS.iter().map(Path::new).filter(|p| p.exists()) {
        if let Ok(pem) = std::fs::read_to_string(path) {
            return Ok(Some(pem));
        }
    }
    bail!("this system has no CA bundle to check the control plane's certificate with: give --ca-cert-file (or --skip-verify to check nothing)")
}

/// A client for `url`: plain for `http`, for `https` with the given trust. `timeout` covers a whole request, body included.
///
/// # Errors
/// The URL is neither, or the CA bundle cannot be used.
pub fn http_client(url: &str, trust: &ServerTrust, timeout: Duration) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().timeout(timeout).no_proxy();
    let builder = match url.split_once("://") {
        // Never used, but reqwest would otherwise look for a process-wide provider.
        Some(("http", _)) => builder.use_preconfigured_tls(client_config(Trust::Anything)?).https_only(false),
        Some(("https", _)) => {
            let pem = trust_pem(trust)?;
            let config = client_config(pem.as_deref().map_or(Trust::Anything, Trust::Bundle)).context("the CA certificate cannot be used")?;
            builder.use_preconfigured_tls(config)
        }
        _ => bail!("{url} is not an http:// or https:// address"),
    };
    builder.build().context("cannot make an HTTP client")
}
