//! Hosts on one machine: a network namespace and a file system of its own for each node.
//!
//! Everything hangs on one process: the runner is the first process of its own PID and mount namespaces. However it ends, the kernel then
//! kills
//! the nodes, and with the mount namespace go the mounts, loop devices and network namespaces. There is nothing to clean up after a crash.

pub mod disk;
pub mod net;
pub mod node;
pub mod sys;

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};
use tokio::signal::unix::{SignalKind, signal};

/// Set in the environment of the process inside.
const INSIDE: &str = "IKADA_CHAOS_INSIDE";

/// (program, Debian package)
const TOOLS: [(&str, &str); 8] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("mkfs.ext4", "e2fsprogs"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("fallocate", "util-linux"),
];

/// Debian's libfaketime; without it clocks are left alone.
pub const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Whether a program is in the path, or where the path of some users does not lead.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().any(|d| d.join(program).is_file())
}

/// Packages of the tools that are not there.
fn missing() -> Vec<&'static str> {
    let mut packages: Vec<_> = TOOLS.into_iter().filter(|(t, _)| !has(t)).map(|(_, p)| p).collect();
    if !Path::new(FAKETIME).is_file() && cfg!(target_arch = "x86_64") {
        packages.push("libfaketime");
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs the tools that are missing where that is possible. Errors say what to install, or what the machine does not allow.
pub fn prepare() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: network namespaces and file systems of its own for each node");
    }
    if !missing().is_empty() && has("apt-get") {
        println!("installing {}", missing().join(" "));
        for args in [vec!["update", "-qq"], [vec!["install", "-y", "-qq", "--no-install-recommends"], missing()].concat()] {
            Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status().ok();
        }
    }
    let mut needed = missing();
    needed.retain(|p| *p != "libfaketime");
    if !needed.is_empty() {
        bail!("tools are missing: apt-get install {}", needed.join(" "));
    }
    let probe = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--net", "true"])
        .output()
        .context("unshare")?;
    if !probe.status.success() {
        bail!("this machine allows no namespaces: {}", String::from_utf8_lossy(&probe.stderr).trim());
    }
    if !Path::new("/dev/loop-control").exists() {
        bail!("this machine has no loop devices (/dev/loop-control)");
    }
    Ok(())
}

/// Puts the runner into namespaces of its own, by starting its program anew in them. Returns when it is there.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        // Names of network namespaces live on a tmpfs that only this mount namespace has.
        std::fs::create_dir_all("/run/netns").context("/run/netns")?;
        return run("mount", ["-t", "tmpfs", "ikada-chaos", "/run/netns"]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    let status = runtime.block_on(outside())?;
    std::process::exit(status.code().unwrap_or(137));
}

/// The process outside waits for the one inside. ^C reaches both, and the one inside ends by it; SIGTERM is passed on; and when this
/// process is
/// killed, so is everything.
async fn outside() -> Result<ExitStatus> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = tokio::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().context("own path")?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .spawn()
        .context("setpriv")?;
    let id = child.id().context("unshare ended at once")?;
    loop {
        tokio::select! {
            status = child.wait() => return status.context("unshare"),
            _ = interrupt.recv() => {}
            _ = term.recv() => {
                let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
                for inside in children.split_whitespace().filter_map(|p| p.parse().ok()) {
                    kill(Pid::from_raw(inside), Signal::SIGTERM).ok();
                }
            }
        }
    }
}

/// Runs a program; errors with what it wrote when it fails.
pub fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
