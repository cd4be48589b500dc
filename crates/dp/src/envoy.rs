//! The Envoy process (reference: §3.3 step 5 and its command line).

use anyhow::{Context, anyhow, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::process::{Child, Command};

/// After SIGTERM Envoy may take this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Oldest and newest minor version of Envoy 1 that this program is tested with.
const COMPATIBLE: std::ops::RangeInclusive<u32> = 38..=40;

/// Version of the Envoy binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvoyVersion {
    /// E.g. `1.40.0`.
    pub version: String,
    /// `<commit>/<version>/<state>/<type>/<ssl>`.
    pub build: String,
    /// Tested with this program.
    pub kuma_dp_compatible: bool,
}

/// Finds the binary: a path as it is, a bare name in `PATH`, in the working directory, and beside this program.
///
/// # Errors
/// There is none.
pub fn find(binary: &Path) -> anyhow::Result<PathBuf> {
    if binary.components().count() > 1 {
        return if binary.is_file() { Ok(binary.to_owned()) } else { Err(anyhow!("there is no Envoy at {}", binary.display())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_owned));
    std::env::split_paths(&path)
        .chain(std::env::current_dir())
        .chain(beside)
        .map(|dir| dir.join(binary))
        .find(|p| is_executable(p))
        .ok_or_else(|| {
            anyhow!(
                "there is no {} in PATH, in the working directory or beside ikada-dp: install Envoy, or give its place with --binary-path",
                binary.display()
            )
        })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Asks the binary for its version.
///
/// # Errors
/// It cannot be run, or is no Envoy.
pub async fn version(binary: &Path) -> anyhow::Result<EnvoyVersion> {
    let run = Command::new(binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(Duration::from_secs(20), run).await {
        Ok(output) => output.with_context(|| format!("cannot run {}", binary.display()))?,
        Err(_) => bail!("{} --version does not answer", binary.display()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| anyhow!("{} is no Envoy: its --version says {:?}", binary.display(), text.trim()))
}

fn parse_version(text: &str) -> Option<EnvoyVersion> {
    let build = text.split_once("version:")?.1.trim();
    let parts: Vec<&str> = build.split('/').collect();
    let [_, version, _, _, _] = parts.as_slice() else { return None };
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let kuma_dp_compatible = matches!((numbers.next(), numbers.next()), (Some(Ok(1)), Some(Ok(minor))) if COMPATIBLE.contains(&minor));
    Some(EnvoyVersion { version: (*version).to_owned(), build: build.to_owned(), kuma_dp_compatible })
}

/// How to start Envoy.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Binary.
    pub binary: &'a Path,
    /// Bootstrap file.
    pub config: &'a Path,
    /// `--drain-time-s`.
    pub drain_time: Duration,
    /// 0: as many workers as the CPU set allows.
    pub concurrency: u32,
    /// `--log-level`.
    pub log_level: &'a str,
    /// `--component-log-level`.
    pub component_log_level: Option<&'a str>,
}

impl Launch<'_> {
    fn arguments(&self) -> Vec<String> {
        let mut args = vec![
            "--config-path".to_owned(),
            self.config.display().to_string(),
            "--drain-time-s".to_owned(),
            self.drain_time.as_secs().to_string(),
            "--drain-strategy".to_owned(),
            "immediate".to_owned(),
            "--disable-hot-restart".to_owned(),
            "--log-level".to_owned(),
            self.log_level.to_owned(),
        ];
        if let Some(levels) = self.component_log_level.filter(|l| !l.is_empty()) {
            args.extend(["--component-log-level".to_owned(), levels.to_owned()]);
        }
        if self.concurrency > 0 {
            args.extend(["--concurrency".to_owned(), self.concurrency.to_string()]);
        } else if cfg!(target_os = "linux") {
            args.push("--cpuset-threads".to_owned());
        }
        args
    }

    /// Starts Envoy in a process group of its own (a terminal's Ctrl-C does not reach it) and bound to this process's life.
    ///
    /// # Errors
    /// The binary cannot be run.
    pub fn start(&self) -> anyhow::Result<Envoy> {
        let mut command = Command::new(self.binary);
        command.args(self.arguments()).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        #[cfg(target_os = "linux")]
        bind_to_parent(&mut command);
        let child = command.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw).context("Envoy ended at once")?;
        Ok(Envoy { child, group })
    }
}

/// Kills the child when this thread ends, however it does: an Envoy without its launcher would never be drained.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn bind_to_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let hook = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the hook makes only the system calls prctl and getppid, which are async-signal-safe, and does not
    // allocate.
    unsafe {
        command.pre_exec(hook);
    }
}

/// A running Envoy.
pub struct Envoy {
    child: Child,
    group: Pid,
}

impl Envoy {
    /// Sends a signal to Envoy.
    pub fn signal(&self, signal: Signal) {
        if let Err(e) = killpg(self.group, signal) {
            tracing::debug!("cannot signal Envoy: {e}");
        }
    }
    /// Waits for its end.
    ///
    /// # Errors
    /// The system cannot tell.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().await.context("cannot wait for Envoy")
    }
    /// SIGTERM, and SIGKILL five seconds later.
    ///
    /// # Errors
    /// The system cannot tell whether it ended.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("Envoy does not end: killing it");
            self.signal(Signal::SIGKILL);
        }
        self.wait().await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let text = "\n/usr/bin/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        let version = parse_version(text).unwrap();
        assert_eq!((version.version.as_str(), version.kuma_dp_compatible), ("1.40.0", true));
        assert_eq!(version.build, "9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL");
        assert!(!parse_version("version: a/1.22.1/Clean/RELEASE/BoringSSL").unwrap().kuma_dp_compatible);
        assert!(parse_version("version: 1.40.0").is_none());
        assert!(parse_version("bash 5").is_none());
    }

    #[test]
    fn command_lines() {
        let mut launch = Launch {
            binary: Path::new("envoy"),
            config: Path::new("/w/bootstrap.yaml"),
            drain_time: Duration::from_secs(30),
            concurrency: 0,
            log_level: "info",
            component_log_level: None,
        };
        let common = "--config-path /w/bootstrap.yaml --drain-time-s 30 --drain-strategy immediate --disable-hot-restart --log-level info";
        assert_eq!(launch.arguments().join(" "), format!("{common} --cpuset-threads"));
        launch.concurrency = 3;
        launch.component_log_level = Some("rbac:debug");
        assert_eq!(launch.arguments().join(" "), format!("{common} --component-log-level rbac:debug --concurrency 3"));
    }

    #[test]
    fn a_missing_binary_is_named() {
        assert!(find(Path::new("no-such-envoy")).unwrap_err().to_string().contains("--binary-path"));
        assert!(find(Path::new("/no/such/envoy")).unwrap_err().to_string().contains("/no/such/envoy"));
        assert!(find(Path::new("sh")).is_ok());
    }
}
