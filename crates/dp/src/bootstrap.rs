//! The bootstrap call (reference: §1.2, §1.3, §3.3 step 6).

use crate::{
    cli::{ProxyType, Run},
    envoy::EnvoyVersion,
    host,
    resource::Identity,
};
use anyhow::{Context, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_cli::{ServerTrust, http_client, parse_yaml};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Version of Kuma whose contract this program speaks; control planes check compatibility by it.
pub const KUMA_VERSION: &str = "2.14.3";
/// One call may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Body of the call.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    mesh: String,
    name: String,
    proxy_type: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    dataplane_token: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    dataplane_token_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    dataplane_resource: String,
    version: Version,
    ca_cert: String,
    dynamic_metadata: BTreeMap<&'static str, String>,
    readiness_port: u16,
    app_probe_proxy_disabled: bool,
    operating_system: &'static str,
    features: Vec<&'static str>,
    resources: Resources,
    workdir: String,
    system_ca_path: String,
    ipv6_enabled: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    kuma_dp: KumaDpVersion,
    envoy: EnvoyVersion,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct KumaDpVersion {
    version: &'static str,
    git_tag: &'static str,
    git_commit: &'static str,
    build_date: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Resources {
    max_heap_size_bytes: u64,
}

impl Request {
    /// From the arguments. `ca_pem` is the CA that the user gave.
    pub fn new(
        args: &Run,
        identity: &Identity,
        token: Option<(String, String)>,
        envoy: EnvoyVersion,
        ca_pem: Option<&str>,
        workdir: &Path,
    ) -> Request {
        let (dataplane_token, dataplane_token_path) = token.unwrap_or_default();
        let memory = if args.max_memory_bytes > 0 { args.max_memory_bytes } else { host::memory_limit().unwrap_or(0) };
        Request {
            mesh: identity.mesh.clone(),
            name: identity.name.clone(),
            proxy_type: args.proxy_type.as_str(),
            dataplane_token,
            dataplane_token_path,
            dataplane_resource: identity.resource.as_ref().map(Value::to_string).unwrap_or_default(),
            version: Version {
                kuma_dp: KumaDpVersion {
                    version: KUMA_VERSION,
                    git_tag: concat!("ikada-dp-", env!("CARGO_PKG_VERSION")),
                    git_commit: "unknown",
                    build_date: "unknown",
                },
                envoy,
            },
            ca_cert: ca_pem.unwrap_or_default().to_owned(),
            dynamic_metadata: args.host_ip.iter().map(|ip| ("HOST_IP", ip.clone())).collect(),
            readiness_port: args.readiness_port,
            // Historic name: true would say that the probe proxy is there.
            app_probe_proxy_disabled: false,
            operating_system: std::env::consts::OS,
            features: features(args),
            resources: Resources { max_heap_size_bytes: memory },
            workdir: workdir.display().to_string(),
            system_ca_path: args.system_ca_path.as_ref().map_or_else(host::system_ca_path, |p| p.display().to_string()),
            ipv6_enabled: args.ipv6_enabled && host::has_ipv6(),
        }
    }
}

/// Feature flags of what this program serves. Delta xDS is always asked for.
fn features(args: &Run) -> Vec<&'static str> {
    let mut all = vec!["feature-delta-grpc"];
    if args.proxy_type == ProxyType::Dataplane {
        all.push("feature-tcp-accesslog-via-named-pipe");
    }
    for (on, name) in [
        (args.strict_inbound_ports, "feature-strict-inbound-ports"),
        (args.reuse_port, "feature-reuse-port"),
        (args.unified_resource_naming, "feature-unified-resource-naming"),
    ] {
        if on {
            all.push(name);
        }
    }
    all
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    bootstrap: String,
    #[serde(default)]
    kuma_sidecar_configuration: SidecarConfiguration,
}

#[derive(Deserialize, Default)]
struct SidecarConfiguration {
    #[serde(default)]
    networking: Networking,
}

#[derive(Deserialize, Default)]
struct Networking {
    #[serde(default)]
    address: String,
}

/// Where Envoy's admin listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// Unix socket.
    Pipe(PathBuf),
    /// TCP.
    Tcp(IpAddr, u16),
}

/// What the control plane answered.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Envoy's configuration.
    pub yaml: String,
    /// `admin` of it; `None` when switched off.
    pub admin: Option<AdminAddress>,
    /// `networking.address` of the proxy.
    pub address: Option<IpAddr>,
}

/// Why a call did not help.
#[derive(Debug)]
enum Failure {
    /// Worth another try.
    Again(String),
    /// Not.
    Final(anyhow::Error),
}

/// Calls until the control plane answers, with pauses that grow from 250 ms to `--retry-backoff`; gives up after `--retry-max-duration`.
///
/// # Errors
/// The control plane refuses, or the time is over.
pub async fn fetch(args: &Run, trust: &ServerTrust, request: &Request) -> anyhow::Result<Bootstrap> {
    let client = http_client(&args.cp_address, trust, TIMEOUT).context("cannot talk to the control plane")?;
    let url = format!("{}/bootstrap", args.cp_address.trim_end_matches('/'));
    let start = Instant::now();
    let mut pause = Duration::from_millis(250);
    let mut told: Option<(String, Instant)> = None;
    loop {
        let reason = match call(&client, &url, request).await {
            Ok(bootstrap) => return Ok(bootstrap),
            Err(Failure::Final(e)) => return Err(e),
            Err(Failure::Again(reason)) => reason,
        };
        if start.elapsed() + pause > args.retry_max_duration {
            bail!("gave up after {:?}: {reason}", args.retry_max_duration);
        }
        // Once per reason, then twice a minute.
        if told.as_ref().is_none_or(|(last, at)| *last != reason || at.elapsed() > Duration::from_secs(30)) {
            tracing::warn!(address = %args.cp_address, "waiting for the control plane: {reason}");
            told = Some((reason, Instant::now()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(args.retry_backoff.max(Duration::from_millis(50)));
    }
}

/// Whether a TLS handshake failed for the server's certificate. I/O errors hide what they wrap from `source`.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    if matches!(error.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidCertificate(_))) {
        return true;
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
    wrapped.is_some_and(|inner| is_certificate_error(inner)) || error.source().is_some_and(is_certificate_error)
}

/// The innermost cause says what happened; certificates do not heal by waiting.
fn unreachable(error: reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if is_certificate_error(&error) {
        return Failure::Final(anyhow!(
            "the control plane's certificate is not trusted ({cause}): give its CA with --ca-cert-file, and an address that the certificate names"
        ));
    }
    if error.is_timeout() {
        return Failure::Again("no answer in time".to_owned());
    }
    Failure::Again(cause.to_string())
}

async fn call(client: &reqwest::Client, url: &str, request: &Request) -> Result<Bootstrap, Failure> {
    let mut response = client.post(url).header("accept", "application/json").json(request).send().await.map_err(unreachable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Failure::Final(anyhow!("the control plane's answer is longer than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    let text = String::from_utf8_lossy(&body);
    match status.as_u16() {
        200 => read(&body).map_err(Failure::Final),
        404 if text.trim().is_empty() => Err(Failure::Again("the Dataplane or its mesh is not there yet".to_owned())),
        404 => Err(Failure::Final(anyhow!(
            "{url} is not the control plane's data plane server ({}): its port is 5678 by default, 5681 and 5682 are the API's",
            text.trim()
        ))),
        code @ 400..=499 if text.trim().is_empty() => Err(Failure::Final(anyhow!("the control plane refused the request (status {code})"))),
        400..=499 => Err(Failure::Final(anyhow!("Invalid request: {}", text.trim()))),
        code => Err(Failure::Again(format!("it answered with status {code} {}", text.trim()).trim_end().to_owned())),
    }
}

fn read(body: &[u8]) -> anyhow::Result<Bootstrap> {
    let response: Response = serde_json::from_slice(body).context("the control plane's answer cannot be read")?;
    let yaml = STANDARD.decode(&response.bootstrap).context("the bootstrap configuration is not base64")?;
    let yaml = String::from_utf8(yaml).context("the bootstrap configuration is not text")?;
    let config = parse_yaml(&yaml).map_err(|e| anyhow!("the bootstrap configuration is not YAML: {e}"))?;
    Ok(Bootstrap { admin: admin(&config)?, address: response.kuma_sidecar_configuration.networking.address.parse().ok(), yaml })
}

/// `admin.address` of a bootstrap configuration.
fn admin(config: &Value) -> anyhow::Result<Option<AdminAddress>> {
    let Some(address) = config.pointer("/admin/address") else { return Ok(None) };
    if let Some(path) = address.pointer("/pipe/path").and_then(Value::as_str) {
        return Ok(Some(AdminAddress::Pipe(path.into())));
    }
    let ip = address.pointer("/socketAddress/address").and_then(Value::as_str).and_then(|a| a.parse().ok());
    let port = address.pointer("/socketAddress/portValue").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
    match (ip, port) {
        (Some(ip), Some(port)) => Ok(Some(AdminAddress::Tcp(ip, port))),
        _ => bail!("the bootstrap configuration's admin address cannot be read: {address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn admin_addresses() {
        let of = |v: Value| admin(&json!({"admin": {"address": v}})).unwrap().unwrap();
        assert_eq!(of(json!({"pipe": {"path": "/a/b.sock", "mode": 384}})), AdminAddress::Pipe("/a/b.sock".into()));
        assert_eq!(
            of(json!({"socketAddress": {"address": "127.0.0.1", "portValue": 9901}})),
            AdminAddress::Tcp("127.0.0.1".parse().unwrap(), 9901)
        );
        assert!(admin(&json!({})).unwrap().is_none());
        assert!(admin(&json!({"admin": {"address": {"socketAddress": {"address": "x"}}}})).is_err());
    }
}
