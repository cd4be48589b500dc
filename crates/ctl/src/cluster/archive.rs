//! Copies of everything: saved from a running cluster, and made into a data directory without one.

use super::args::Node;
use crate::client::Client;
use anyhow::{Context, anyhow, bail};
use ikada_raft::{Keys, Options, Start};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufReader, IsTerminal, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Shortest time between two lines of progress on a terminal.
const PROGRESS: Duration = Duration::from_millis(200);

/// Bytes done so far, on standard error when that is a terminal.
struct Progress {
    what: &'static str,
    bytes: u64,
    of: Option<u64>,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    fn new(what: &'static str, of: Option<u64>) -> Self {
        Progress { what, bytes: 0, of, shown: None, terminal: std::io::stderr().is_terminal() }
    }
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.terminal && self.shown.is_none_or(|at| at.elapsed() >= PROGRESS) {
            self.shown = Some(Instant::now());
            eprint!("\r{}: {}", self.what, self.text());
        }
    }
    fn text(&self) -> String {
        let mib = |n: u64| format!("{:.1}", n as f64 / f64::from(1 << 20));
        match self.of.filter(|of| *of > 0) {
            Some(of) => format!("{} of {} MiB ({} %)   ", mib(self.bytes), mib(of), self.bytes.saturating_mul(100) / of),
            None => format!("{} MiB   ", mib(self.bytes)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprintln!("\r{}: {}", self.what, self.text());
        }
    }
}

/// Reads on, and tells.
struct Told<R>(R, Progress);

impl<R: Read> Read for Told<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.add(n as u64);
        Ok(n)
    }
}

/// The file beside a file, in which it is written until it is whole. Gone with this value unless it was kept.
struct Beside {
    path: PathBuf,
    kept: bool,
}

impl Beside {
    /// Readable by its owner alone.
    fn create(file: &Path) -> anyhow::Result<(Beside, File)> {
        let name = file.file_name().ok_or_else(|| anyhow!("{} names no file", file.display()))?;
        let path = file.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
        let out = File::options().write(true).create_new(true).mode(0o600).open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok((Beside { path, kept: false }, out))
    }
    /// Gives it its name, durably. Without `overwrite` a file that has it by now is left alone.
    fn keep(mut self, file: &Path, overwrite: bool) -> anyhow::Result<()> {
        let to = |e: std::io::Error| anyhow!("cannot write {}: {e}", file.display());
        if overwrite {
            fs::rename(&self.path, file).map_err(to)?;
            self.kept = true;
        } else {
            fs::hard_link(&self.path, file).map_err(to)?;
        }
        let dir = file.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(to)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.kept {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// What an archive says of itself, after every byte of it was checked.
fn check(file: &Path, shown: &Path) -> anyhow::Result<ikada_raft::Contents> {
    let input = File::open(file).with_context(|| format!("cannot read {}", shown.display()))?;
    let size = input.metadata().ok().map(|m| m.len());
    ikada_raft::inspect(&mut Told(BufReader::new(input), Progress::new("checked", size))).map_err(|e| anyhow!("{}: {e}", shown.display()))
}

/// `snapshot save`. `patience`: longest pause of the transfer.
///
/// # Errors
/// The cluster cannot make it, it does not arrive whole, or the file cannot be written; then nothing is left behind.
pub async fn save(client: &Client, patience: Duration, file: &Path, overwrite: bool) -> anyhow::Result<Value> {
    if !overwrite && file.exists() {
        bail!("{} exists: choose another name, or --overwrite", file.display());
    }
    // First the file: a directory that cannot be written to is no reason to copy everything.
    let (beside, mut out) = Beside::create(file)?;
    let mut response = client.stream("/cluster/snapshot").await?;
    let mut progress = Progress::new("received", response.content_length());
    loop {
        let part = tokio::time::timeout(patience, response.chunk()).await;
        let part = part.map_err(|_| anyhow!("the control plane sent nothing for {} s (--api-timeout)", patience.as_secs()))?;
        let Some(part) = part.map_err(|e| anyhow!("the copy did not arrive whole: {}", client.reason(e)))? else { break };
        out.write_all(&part).with_context(|| format!("cannot write {}", beside.path.display()))?;
        progress.add(part.len() as u64);
    }
    let bytes = progress.bytes;
    drop(progress);
    out.sync_all().with_context(|| format!("cannot write {}", beside.path.display()))?;
    drop(out);
    let contents = check(&beside.path, file).context("what arrived is not kept")?;
    beside.keep(file, overwrite)?;
    Ok(json!({"file": file, "bytes": bytes, "index": contents.index, "resources": contents.resources, "cluster": contents.cluster.to_string(),
        "node": contents.node, "time": contents.time.to_string(), "program": contents.program}))
}

/// How a directory is opened that no process has open.
fn options(data_dir: &Path, node: &Node) -> anyhow::Result<Options> {
    let mut options = Options::new(data_dir);
    options.start = Start::Create { address: node.advertise.clone(), name: node.name.clone() };
    let credential = Keys::credential(std::env::var_os("CREDENTIALS_DIRECTORY").as_deref());
    if let Some(file) = node.encryption_key_file.clone().or(credential) {
        let (keys, warning) = Keys::read(&file)?;
        if let Some(warning) = warning {
            eprintln!("Warning: {warning}");
        }
        options.encryption = Some(keys);
    }
    Ok(options)
}

/// `snapshot restore`.
///
/// # Errors
/// The file is damaged or something else, the directory is not empty; nothing is made then.
pub async fn restore(file: &Path, data_dir: &Path, node: &Node) -> anyhow::Result<Value> {
    let input = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let size = input.metadata().ok().map(|m| m.len());
    let options = options(data_dir, node)?;
    let mut input = Told(BufReader::new(input), Progress::new("read", size));
    let made = ikada_raft::restore(&mut input, &options).map_err(|e| anyhow!("{} is not restored: {e}", file.display()))?;
    drop(input);
    let of = made.from;
    Ok(json!({"dataDir": data_dir, "cluster": made.cluster.to_string(), "index": made.index, "resources": of.resources,
        "from": {"cluster": of.cluster.to_string(), "node": of.node, "time": of.time.to_string(), "program": of.program}}))
}

/// `recover`.
///
/// # Errors
/// The directory is in use, damaged or no data directory; nothing is changed then.
pub async fn recover(data_dir: &Path, node: &Node) -> anyhow::Result<Value> {
    let options = options(data_dir, node)?;
    let made = ikada_raft::recover(&options).map_err(|e| anyhow!("{} is not recovered: {e}", data_dir.display()))?;
    Ok(json!({"dataDir": data_dir, "cluster": made.cluster.to_string(), "index": made.index, "resources": made.resources,
        "uncommitted": made.uncommitted, "kept": made.kept, "from": {"cluster": made.former.cluster.to_string(), "node": made.former.node}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_gets_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("copy");
        let names = || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
        let (beside, mut out) = Beside::create(&file).unwrap();
        out.write_all(b"half").unwrap();
        drop((beside, out));
        assert!(names().is_empty());
        let (beside, mut out) = Beside::create(&file).unwrap();
        out.write_all(b"whole").unwrap();
        beside.keep(&file, false).unwrap();
        assert_eq!((names(), fs::metadata(&file).unwrap().permissions().mode() & 0o777), (vec!["copy".to_owned()], 0o600));
        let (beside, _) = Beside::create(&file).unwrap();
        assert!(beside.keep(&file, false).is_err());
        assert_eq!((names(), fs::read(&file).unwrap()), (vec!["copy".to_owned()], b"whole".to_vec()));
        let (beside, mut out) = Beside::create(&file).unwrap();
        out.write_all(b"newer").unwrap();
        beside.keep(&file, true).unwrap();
        assert_eq!((names(), fs::read(&file).unwrap()), (vec!["copy".to_owned()], b"newer".to_vec()));
    }

    #[test]
    fn progress_for_people() {
        let p = Progress { bytes: 3 << 20, ..Progress::new("read", Some(4 << 20)) };
        assert_eq!(p.text().trim(), "3.0 of 4.0 MiB (75 %)");
        assert_eq!(Progress { bytes: 1 << 19, ..Progress::new("read", None) }.text().trim(), "0.5 MiB");
    }
}
