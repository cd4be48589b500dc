//! Three etcd members on loopback with default settings, started by the benchmark.

use crate::client;
use anyhow::{Context, Result, bail};
use ikada_tests::process::{Process, free_port};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How to get it, for the report.
pub const INSTALL: &str = "etcd is not installed: apt-get install etcd-server";

/// A running cluster; dropping it ends it.
pub struct Etcd {
    _members: Vec<Process>,
    /// Client address of each member, `host:port`.
    pub addresses: Vec<String>,
}

/// The binary, if it is there.
pub fn binary() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("etcd")).find(|p| p.is_file())
}

impl Etcd {
    /// Starts three members with data below `dir` and waits for a leader.
    pub async fn start(binary: &Path, dir: &Path) -> Result<Etcd> {
        let mut names = Vec::new();
        for i in 0..3 {
            names.push((format!("e{i}"), free_port()?, free_port()?));
        }
        let cluster: Vec<String> = names.iter().map(|(name, _, peer)| format!("{name}=http://127.0.0.1:{peer}")).collect();
        let mut members = Vec::new();
        for (name, port, peer) in &names {
            let (client_url, peer_url) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
            let mut command = Command::new(binary);
            command.args(["--name", name, "--data-dir"]).arg(dir.join(name));
            command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
            command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
            command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
            members.push(Process::start(name, &mut command, &dir.join(format!("{name}.log")))?);
        }
        let etcd = Etcd { _members: members, addresses: names.iter().map(|(_, port, _)| format!("127.0.0.1:{port}")).collect() };
        etcd.leader().await.context("etcd does not start")?;
        Ok(etcd)
    }

    /// Address of the leader.
    pub async fn leader(&self) -> Result<String> {
        leader(&self.addresses).await
    }
}

/// Address of the node that leads, among those that answer. Waits for one for 20 seconds.
pub async fn leader(addresses: &[String]) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut last = String::new();
    while Instant::now() < end {
        for address in addresses {
            match client::leads(address).await {
                Ok(true) => return Ok(address.clone()),
                Ok(false) => {}
                Err(e) => last = format!("{e:#}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no leader within 20 s {last}")
}
