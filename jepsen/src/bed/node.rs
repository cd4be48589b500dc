//! A node: `ikada-cp run` on a host of its own.

use super::{FAKETIME, disk::Disk, net};
use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// Small, so that runs of a minute have snapshots, followers that need one, and disks that end. The runner's own environment wins.
const SMALL: [(&str, &str); 3] =
    [("IKADA_RAFT_SNAPSHOT_EVERY", "1000"), ("IKADA_RAFT_KEEP_ENTRIES", "200"), ("IKADA_RAFT_SEGMENT_BYTES", "131072")];

/// How a node joins the cluster at its first start.
#[derive(Clone, Debug)]
pub struct Join {
    /// Peer address of a member.
    pub address: String,
    /// Token.
    pub token: String,
}

/// A host with its disk and, when it runs, its process.
pub struct Node {
    /// Place among the hosts, from 0.
    pub host: usize,
    /// Its disk.
    pub disk: Disk,
    /// How often it was started.
    pub boot: i64,
    /// Whether the runner means it to run.
    pub wanted: bool,
    /// How to join when the disk is empty; `None` creates the cluster.
    pub join: Option<Join>,
    child: Option<Child>,
    program: PathBuf,
    log: PathBuf,
    clock: PathBuf,
    fake_clock: bool,
    preload: Option<PathBuf>,
}

impl Node {
    /// A node that was not started yet. `run` is the directory of the run, `preload` a library that breaks the node on purpose.
    pub fn new(host: usize, run: &Path, program: &Path, preload: Option<&Path>) -> Result<Node> {
        let name = net::name(host);
        let clock = run.join(format!("{name}.clock"));
        fs::write(&clock, "+0\n")?;
        Ok(Node {
            host,
            disk: Disk::create(run, &name)?,
            boot: 0,
            wanted: false,
            join: None,
            child: None,
            program: program.to_owned(),
            log: run.join(format!("{name}.log")),
            clock,
            fake_clock: Path::new(FAKETIME).is_file(),
            preload: preload.map(Path::to_owned),
        })
    }
    /// Name of its host.
    pub fn name(&self) -> String {
        net::name(self.host)
    }
    /// File that its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }
    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        let out = File::options().create(true).append(true).open(&self.log)?;
        let name = self.name();
        let mut c = Command::new("nsenter");
        c.arg(format!("--net={}", net::namespace(self.host).display())).arg("--").arg(&self.program);
        c.args(["run", "--data-dir"]).arg(self.disk.path().join("data"));
        if let Some(join) = &self.join {
            c.args(["--join", &join.address, "--join-token", &join.token]);
        }
        c.env("KUMA_API_SERVER_HTTPS_ENABLED", "false")
            .env("IKADA_RAFT_NAME", &name)
            .env("IKADA_RAFT_ADVERTISE", format!("{}:5690", net::address(self.host)));
        for (setting, value) in SMALL.iter().filter(|(setting, _)| std::env::var_os(setting).is_none()) {
            c.env(setting, value);
        }
        if self.fake_clock {
            c.env("FAKETIME_TIMESTAMP_FILE", &self.clock).env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        let clock = self.fake_clock.then(|| PathBuf::from(FAKETIME));
        let libraries: Vec<PathBuf> = self.preload.clone().into_iter().chain(clock).collect();
        if !libraries.is_empty() {
            c.env("LD_PRELOAD", std::env::join_paths(libraries).context("LD_PRELOAD")?);
        }
        let child = c.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn().context("nsenter")?;
        self.child = Some(child);
        self.boot += 1;
        self.wanted = true;
        Ok(())
    }
    /// Sends a signal, when it runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(child.id())?), signal).with_context(|| format!("{}: {signal}", self.name()))
    }
    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.wanted = false;
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
    /// How it ended, when it did so without having been told.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }
    /// Stopped, disk dead, killed: what a power loss is to a process.
    pub fn cut_power(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        self.disk.cut_power()?;
        self.kill();
        Ok(())
    }
    /// Whether its clock can be moved.
    pub fn has_fake_clock(&self) -> bool {
        self.fake_clock
    }
    /// Moves its wall clock by so many seconds from the true time.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        // Written whole: the library reads it at any time.
        let aside = self.clock.with_extension("new");
        fs::write(&aside, format!("{seconds:+}\n"))?;
        fs::rename(&aside, &self.clock).context("clock")
    }
    /// The last lines of its output.
    pub fn last_lines(&self, count: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
    }
}
