//! Stock Envoy, started from the bootstrap that the DP server gives, without our launcher.

use crate::process::{ControlPlane, Process, free_port, init};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Which ADS the proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// Incremental.
    Delta,
    /// State of the world.
    Sotw,
}

/// `POST /bootstrap`: status and body.
pub async fn bootstrap(cp: &ControlPlane, request: &Value) -> Result<(u16, String)> {
    init();
    let client = reqwest::Client::builder().danger_accept_invalid_certs(true).timeout(Duration::from_secs(30)).build()?;
    let response = client.post(format!("https://127.0.0.1:{}/bootstrap", cp.dp_port)).json(request).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// A running Envoy.
pub struct StockEnvoy {
    /// The process.
    pub process: Process,
    admin: PathBuf,
}

impl StockEnvoy {
    /// Starts Envoy for a dataplane in its own directory.
    pub async fn start(cp: &ControlPlane, envoy: &Path, dir: &Path, dataplane: &Value, token: &str, features: Features) -> Result<StockEnvoy> {
        Self::start_with_readiness(cp, envoy, dir, dataplane, token, features, free_port()?).await
    }
    /// The same with a given readiness port (nothing has to listen there).
    pub async fn start_with_readiness(
        cp: &ControlPlane,
        envoy: &Path,
        dir: &Path,
        dataplane: &Value,
        token: &str,
        features: Features,
        readiness_port: u16,
    ) -> Result<StockEnvoy> {
        fs::create_dir_all(dir)?;
        let mut flags = vec!["feature-tcp-accesslog-via-named-pipe", "feature-strict-inbound-ports", "feature-reuse-port"];
        if features == Features::Delta {
            flags.push("feature-delta-grpc");
        }
        let request = json!({
            "mesh": dataplane["mesh"], "name": dataplane["name"], "proxyType": "dataplane", "dataplaneToken": token,
            "dataplaneResource": dataplane.to_string(), "workdir": dir, "readinessPort": readiness_port, "ipv6Enabled": true, "features": flags,
            "version": {"kumaDp": {"version": "2.14.3", "gitTag": "unknown", "gitCommit": "unknown", "buildDate": "unknown"},
                "envoy": {"version": "1.40.0", "build": "hash/1.40.0/Clean/RELEASE/BoringSSL"}},
        });
        let (status, text) = bootstrap(cp, &request).await?;
        if status != 200 {
            bail!("bootstrap: {status} {text}");
        }
        let file = dir.join("bootstrap.yaml");
        fs::write(&file, text)?;
        let mut command = Command::new(envoy);
        command.arg("--config-path").arg(&file).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        let process = Process::start("envoy", &mut command, &dir.join("envoy.log"))?;
        Ok(StockEnvoy { process, admin: dir.join("kuma-envoy-admin.sock") })
    }

    /// GET of a path of Envoy's admin interface.
    pub async fn admin(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.admin).await.context("Envoy's admin socket")?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.context("Envoy's admin does not answer")??;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok(if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() })
    }

    /// `/config_dump` with endpoints.
    pub async fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.admin("/config_dump?include_eds").await?).context("config dump")
    }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        let Some(chunk) = rest.get(..size) else { break };
        out.push_str(chunk);
        body = rest.get(size..).unwrap_or("").trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    out
}
