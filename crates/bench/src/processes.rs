//! The processes that are measured, and those that measure.

use crate::{
    client::{Figures, Operation},
    etcd,
    rest::{Connection, RestOperation},
};
use anyhow::{Context, Result, bail};
use hyper::{Method, body::Bytes};
use ikada_tests::process::{Process, free_port, program};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Longest start of anything.
const START: Duration = Duration::from_secs(60);

/// Runs `bench-store client …` in a process of its own.
pub async fn client(address: &str, operation: Operation, clients: usize, seconds: f64, extra: &[&str]) -> Result<Figures> {
    let operation = match operation {
        Operation::Put => "put",
        Operation::Get => "get",
    };
    measure("client", address, operation, clients, seconds, extra).await
}

/// Runs `bench-store rest …` in a process of its own.
pub async fn rest(address: &str, operation: RestOperation, clients: usize, seconds: f64, extra: &[&str]) -> Result<Figures> {
    let operation = match operation {
        RestOperation::Put => "put",
        RestOperation::Get => "get",
    };
    measure("rest", address, operation, clients, seconds, extra).await
}

async fn measure(command: &str, address: &str, operation: &str, clients: usize, seconds: f64, extra: &[&str]) -> Result<Figures> {
    let out = tokio::process::Command::new(std::env::current_exe()?)
        .args([command, "--address", address, "--operation", operation, "--clients", &clients.to_string(), "--seconds", &seconds.to_string()])
        .args(extra)
        .stderr(Stdio::inherit())
        .output()
        .await?;
    if !out.status.success() {
        bail!("the client of {address} failed: {}", out.status);
    }
    serde_json::from_slice(&out.stdout).context("figures of the client")
}

/// Three of our store nodes with etcd's KV interface in front (`bench-store node`).
pub struct Ours {
    _nodes: Vec<Process>,
    /// KV address of each, `host:port`.
    pub addresses: Vec<String>,
    /// Data directory of each.
    pub dirs: Vec<PathBuf>,
}

impl Ours {
    /// Starts `count` nodes below `dir`, and waits until they all vote and one leads.
    pub async fn start(dir: &Path, count: usize) -> Result<Ours> {
        let (mut nodes, mut addresses, mut dirs) = (Vec::new(), Vec::new(), Vec::new());
        let first_peer = free_port()?;
        let token = dir.join("join-token");
        for i in 0..count {
            let (kv, peer) = (free_port()?, if i == 0 { first_peer } else { free_port()? });
            let data = dir.join(format!("n{i}"));
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["node", "--kv", &format!("127.0.0.1:{kv}"), "--peer", &format!("127.0.0.1:{peer}")]);
            command.arg("--token-file").arg(&token).arg("--data-dir").arg(&data);
            if i > 0 {
                command.args(["--join", &format!("127.0.0.1:{first_peer}")]);
            }
            nodes.push(Process::start(&format!("node {i}"), &mut command, &dir.join(format!("n{i}.log")))?);
            if i == 0 {
                let end = Instant::now() + START;
                while !token.exists() {
                    if Instant::now() > end {
                        bail!("the first node does not start: see {}", dir.join("n0.log").display());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            addresses.push(format!("127.0.0.1:{kv}"));
            dirs.push(data);
        }
        // A node answers its KV port when it is ready and as many voters as nodes are there.
        for address in &addresses {
            wait_for_port(address).await.with_context(|| format!("see the logs in {}", dir.display()))?;
        }
        let ours = Ours { _nodes: nodes, addresses, dirs };
        ours.leader().await?;
        Ok(ours)
    }

    /// KV address of the leader.
    pub async fn leader(&self) -> Result<String> {
        etcd::leader(&self.addresses).await
    }
}

async fn wait_for_port(address: &str) -> Result<()> {
    let end = Instant::now() + START;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        if Instant::now() > end {
            bail!("{address} does not answer");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// One real control plane.
pub struct ControlPlane {
    /// The process.
    pub process: Process,
    /// REST address, `host:port`.
    pub api: String,
    /// Address for peers, `host:port`.
    pub peer: String,
    /// Data directory.
    pub data: PathBuf,
    log: PathBuf,
    ports: [u16; 5],
    join: Option<(String, PathBuf)>,
}

impl ControlPlane {
    /// Starts `ikada-cp` with data in `dir/name`; with `join`, as a new member through that peer with the token in that file.
    pub fn start(dir: &Path, name: &str, join: Option<(&str, &Path)>) -> Result<ControlPlane> {
        let ports = [free_port()?, free_port()?, free_port()?, free_port()?, free_port()?];
        let (data, log) = (dir.join(name), dir.join(format!("{name}.log")));
        let join = join.map(|(address, token)| (address.to_owned(), token.to_path_buf()));
        let process = Self::spawn(name, &data, &log, ports, join.as_ref())?;
        let (api, peer) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[4]));
        Ok(ControlPlane { process, api, peer, data, log, ports, join })
    }

    fn spawn(name: &str, data: &Path, log: &Path, ports: [u16; 5], join: Option<&(String, PathBuf)>) -> Result<Process> {
        let [api, api_tls, dp, diagnostics, peer] = ports;
        let mut command = Command::new(program("ikada-cp")?);
        command.arg("run").arg("--data-dir").arg(data);
        if let Some((address, token)) = join {
            command.args(["--join", address]).arg("--join-token-file").arg(token);
        }
        command.envs([
            ("KUMA_API_SERVER_HTTP_PORT", api.to_string()),
            ("KUMA_API_SERVER_HTTPS_PORT", api_tls.to_string()),
            ("KUMA_DP_SERVER_PORT", dp.to_string()),
            ("KUMA_DIAGNOSTICS_SERVER_PORT", diagnostics.to_string()),
            ("IKADA_RAFT_LISTEN", format!("127.0.0.1:{peer}")),
            ("IKADA_RAFT_ADVERTISE", format!("127.0.0.1:{peer}")),
        ]);
        Process::start(name, &mut command, log)
    }

    /// Starts it again after it ended, as a unit file would.
    pub fn restart(&mut self) -> Result<()> {
        self.process = Self::spawn("again", &self.data, &self.log, self.ports, self.join.as_ref())?;
        Ok(())
    }

    /// Waits until it answers a linearizable read of what a new control plane makes.
    pub async fn serves(&self) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            if let Ok(mut c) = Connection::open(&self.api).await
                && let Ok((200, _)) = c.ask(Method::GET, "/meshes/default", &[], Bytes::new()).await
            {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{} does not serve: see {}", self.api, self.log.display());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.context("VmRSS")? * 1024)
    }
}
