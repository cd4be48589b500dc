//! The data directory: who owns it, in which format it is, and that only one process has it open.
//!
//! ```text
//! IDENTITY     format, cluster, node, version of the program, key of a directory that is all encrypted, checksum (text); written first, so
//!              a directory without it holds no data
//! LOCK         locked while a process has the directory open; holds its pid
//! log/         crate::log
//! snapshots/   crate::snapshot
//! state/       crate::state, a cache
//! peer/        certificate and key of the node towards its peers (ikada-cluster); may be there before the identity, while a node joins
//! ```

mod make;

pub use make::NewDir;

use crate::{
    disk::{Disk, DiskLock, OpenMode, read_all, replace_file},
    error::{Result, StoreError},
    log::FileLog,
    seal::{Keyring, check_key, no_keys},
    snapshot::SnapshotStore,
    types::{FORMAT_VERSION, Identity},
    upgrade,
};
use parking_lot::Mutex;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

const IDENTITY: &str = "IDENTITY";
const IDENTITY_TMP: &str = "IDENTITY.tmp";
const LOCK: &str = "LOCK";
const PEER: &str = "peer";
const TITLE: &str = "ikada data directory";
/// Far above any identity file; a larger one is not ours.
const MAX_IDENTITY_BYTES: usize = 4096;

/// An open data directory. Dropping it releases the lock.
pub struct DataDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    keyring: Option<Arc<Keyring>>,
    identity: Identity,
    created: bool,
    upgraded_from: Option<u16>,
    /// Id of the key that everything is sealed with, as `IDENTITY` has it.
    sealed: Mutex<Option<String>>,
    _lock: Box<dyn DiskLock>,
}

/// What `IDENTITY` says.
struct Found {
    identity: Identity,
    format: u16,
    /// Id of the key with which everything was sealed when it was written.
    sealed: Option<String>,
}

impl DataDir {
    /// Opens a directory, or makes one with the identity that `new` gives when it does not exist or is empty. Everything else is
    /// refused and left as it is: a directory of a later format, one of which a key is not in the keyring ([`StoreError::Locked`]), and one
    /// that is encrypted when there is no keyring. A directory of an older format is upgraded ([`DataDir::upgraded_from`]).
    pub fn open(disk: Arc<dyn Disk>, path: &Path, keyring: Option<Arc<Keyring>>, new: impl FnOnce() -> Identity) -> Result<DataDir> {
        let missing: Vec<&Path> = path
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty())
            .take_while(|p| disk.list(p).is_err_and(|e| e.kind() == io::ErrorKind::NotFound))
            .collect();
        disk.create_dir_all(path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                StoreError::NotADataDir { path: path.to_path_buf(), what: "it is not a directory".to_owned() }
            }
            _ => StoreError::io("create", path, e),
        })?;
        let has_identity = check_names(&*disk, path)?;
        let lock_path = path.join(LOCK);
        let lock = make::take_lock(&*disk, path)?;
        // Another process may have made the identity between the look and the lock.
        let has_identity = has_identity || check_names(&*disk, path)?;
        let found = if has_identity { read_identity(&*disk, path)? } else { Found { identity: new(), format: FORMAT_VERSION, sealed: None } };
        check_keys(&*disk, path, keyring.as_deref(), found.sealed.as_deref())?;
        let write_pid = || -> io::Result<()> {
            let file = disk.open(&lock_path, OpenMode::Write)?;
            file.truncate(0)?;
            file.write_at(format!("{}\n", std::process::id()).as_bytes(), 0)
        };
        // The pid only makes a message better; a full disk must not keep a node from starting.
        if let Err(e) = write_pid() {
            tracing::debug!("cannot write the pid to {}: {e}", lock_path.display());
        }
        if !has_identity {
            write_identity(&*disk, path, &found)?;
        }
        for name in ["log", "snapshots", "state"] {
            let sub = path.join(name);
            disk.create_dir_all(&sub).map_err(|e| StoreError::io("create", &sub, e))?;
        }
        disk.sync_dir(path).map_err(|e| StoreError::io("sync", path, e))?;
        // The names of new directories must survive a power loss too.
        for parent in missing.iter().filter_map(|p| p.parent()) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            disk.sync_dir(parent).map_err(|e| StoreError::io("sync", parent, e))?;
        }
        let Found { identity, format, sealed } = found;
        let mut dir = DataDir {
            disk,
            path: path.to_path_buf(),
            keyring,
            identity,
            created: !has_identity,
            upgraded_from: None,
            sealed: Mutex::new(sealed),
            _lock: lock,
        };
        for from in format..FORMAT_VERSION {
            upgrade::step(&dir, from)?;
            let sealed = dir.sealed.lock().clone();
            write_identity(&*dir.disk, path, &Found { identity, format: from + 1, sealed })?;
            tracing::info!("upgraded {} from format {from} to {}", path.display(), from + 1);
            dir.upgraded_from.get_or_insert(from);
        }
        Ok(dir)
    }

    /// Seals everything in log and snapshots with the first key of the keyring, if it is not, and notes that in `IDENTITY`. Gives how many
    /// files were not. Does nothing without a keyring.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no space for a copy of the largest file: what is left is done by the next call.
    pub fn reseal(&self, log: &FileLog, snapshots: &SnapshotStore) -> Result<usize> {
        let Some(keyring) = &self.keyring else { return Ok(0) };
        let count = log.reseal()? + snapshots.reseal()?;
        let id = keyring.sealing_id().to_owned();
        let mut sealed = self.sealed.lock();
        if sealed.as_ref() != Some(&id) {
            // Before it is said that all is sealed, no older file may be able to come back.
            for sub in [self.log(), self.snapshots()] {
                self.disk.sync_dir(&sub).map_err(|e| StoreError::io("sync", &sub, e))?;
            }
            let found = Found { identity: self.identity, format: FORMAT_VERSION, sealed: Some(id.clone()) };
            write_identity(&*self.disk, &self.path, &found)?;
            *sealed = Some(id);
        }
        Ok(count)
    }

    /// The keys of this node, if it has any.
    pub fn keyring(&self) -> Option<&Arc<Keyring>> {
        self.keyring.as_ref()
    }
    /// Format that the directory had before this open upgraded it.
    pub fn upgraded_from(&self) -> Option<u16> {
        self.upgraded_from
    }

    /// Who owns the data.
    pub fn identity(&self) -> Identity {
        self.identity
    }
    /// The directory was made by this open.
    pub fn created(&self) -> bool {
        self.created
    }
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Directory of [`crate::log`].
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }
    /// Directory of [`crate::snapshot`].
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }
    /// Directory of [`crate::state`].
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }
    /// The file system.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
}

/// Whether there is an identity. A directory with other files and no identity is somebody else's.
fn check_names(disk: &dyn Disk, path: &Path) -> Result<bool> {
    let names = disk.list(path).map_err(|e| StoreError::io("read", path, e))?;
    if names.iter().any(|n| n == IDENTITY) {
        return Ok(true);
    }
    if let Some(what) = NewDir::interrupted(disk, path)? {
        return Err(StoreError::NotADataDir { path: path.to_path_buf(), what: make::interrupted(&what) });
    }
    match names.iter().find(|n| ![IDENTITY_TMP, LOCK, PEER, "lost+found"].contains(&n.as_str())) {
        Some(name) => Err(StoreError::NotADataDir {
            path: path.to_path_buf(),
            what: format!("it holds {name:?} and no {IDENTITY} file; choose an empty directory"),
        }),
        None => Ok(false),
    }
}

/// Refuses a directory that cannot be read with these keys, before anything is changed.
fn check_keys(disk: &dyn Disk, path: &Path, keyring: Option<&Keyring>, sealed: Option<&str>) -> Result<()> {
    if let (Some(id), None) = (sealed, keyring) {
        return Err(StoreError::Locked { path: path.to_path_buf(), id: id.to_owned(), why: no_keys() });
    }
    for (sub, suffix) in [("log", ".log"), ("snapshots", ".snap")] {
        let sub = path.join(sub);
        let names = match disk.list(&sub) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            names => names.map_err(|e| StoreError::io("read", &sub, e))?,
        };
        for name in names.iter().filter(|n| n.ends_with(suffix)) {
            check_key(disk, &sub.join(name), keyring, sealed.is_some())?;
        }
    }
    Ok(())
}

fn write_identity(disk: &dyn Disk, path: &Path, found: &Found) -> Result<()> {
    let Found { identity: Identity { cluster, node }, format, sealed } = found;
    let mut body = format!("{TITLE}\nformat {format}\ncluster {cluster}\nnode {node}\nprogram {}\n", env!("CARGO_PKG_VERSION"));
    if let Some(id) = sealed {
        body += &format!("encryption {id}\n");
    }
    let text = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
    replace_file(disk, path, IDENTITY, text.as_bytes()).map_err(|e| StoreError::io("write to", &path.join(IDENTITY), e))
}

fn read_identity(disk: &dyn Disk, dir: &Path) -> Result<Found> {
    let path = dir.join(IDENTITY);
    let bytes = read_all(disk, &path, MAX_IDENTITY_BYTES).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => StoreError::damaged(&path, 0, "it is too large"),
        _ => StoreError::io("read", &path, e),
    })?;
    let damaged = |what: &str| StoreError::damaged(&path, 0, what);
    let text = String::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    let (body, sum) = text.rsplit_once("crc32c ").ok_or_else(|| damaged("the checksum is missing"))?;
    if u32::from_str_radix(sum.trim_end(), 16).ok() != Some(crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("the checksum does not match"));
    }
    let optional = |name: &str| body.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    let field = |name: &str| optional(name).ok_or_else(|| damaged("a line is missing"));
    if body.lines().next() != Some(TITLE) {
        return Err(damaged("the first line is not ours"));
    }
    let found: u16 = field("format")?.parse().map_err(|_| damaged("the format is not a number"))?;
    if found > FORMAT_VERSION {
        let by = optional("program").map(str::to_owned);
        return Err(StoreError::NewerFormat { path, found, supported: FORMAT_VERSION, by });
    }
    if found == 0 {
        return Err(damaged("there is no format 0"));
    }
    let identity = Identity {
        cluster: field("cluster")?.parse().map_err(|_| damaged("the cluster is not a UUID"))?,
        node: field("node")?.parse().map_err(|_| damaged("the node is not a number"))?,
    };
    Ok(Found { identity, format: found, sealed: optional("encryption").map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disk::{RealDisk, ScriptedDisk},
        log::FileLogOptions,
        seal::testing::keyring,
        types::ClusterId,
    };
    use std::fs;

    fn id() -> Identity {
        Identity { cluster: ClusterId([9; 16]), node: 1 }
    }
    fn open(path: &Path) -> Result<DataDir> {
        DataDir::open(Arc::new(RealDisk), path, None, id)
    }
    fn refused(path: &Path) -> String {
        open(path).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn create_reopen_and_lock() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a/b");
        let dir = open(&path).unwrap();
        assert!(dir.created());
        assert_eq!(fs::read_to_string(path.join("LOCK")).unwrap().trim(), std::process::id().to_string());
        let message = refused(&path);
        assert!(message.contains("in use by another process") && message.contains(&std::process::id().to_string()), "{message}");
        drop(dir);
        let again = DataDir::open(Arc::new(RealDisk), &path, None, || Identity { cluster: ClusterId([1; 16]), node: 9 }).unwrap();
        assert!(!again.created());
        assert_eq!(again.identity(), id());
    }

    #[test]
    fn foreign_directories_are_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("thesis.tex"), "x").unwrap();
        assert!(refused(tmp.path()).contains("thesis.tex"));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
        assert!(refused(&tmp.path().join("thesis.tex")).contains("not a directory"));
    }

    #[test]
    fn damaged_and_newer_identities() {
        let tmp = tempfile::tempdir().unwrap();
        drop(open(tmp.path()).unwrap());
        let file = tmp.path().join("IDENTITY");
        let good = fs::read_to_string(&file).unwrap();
        for bad in [good.replace("node 1", "node 2"), String::new(), good.replace("crc32c", ""), "\u{0}".repeat(9000)] {
            fs::write(&file, &bad).unwrap();
            assert!(refused(tmp.path()).contains("the store is damaged"), "{bad:.80}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
        let body = good.split("crc32c").next().unwrap().replace("format 2", "format 7").replace("program ", "program 9.");
        let newer = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
        fs::write(&file, &newer).unwrap();
        let (this, message) = (env!("CARGO_PKG_VERSION"), refused(tmp.path()));
        let expected = format!("has format 7, written by ikada 9.{this}, this is ikada {this}, which reads up to {FORMAT_VERSION}: install");
        assert!(message.contains(&expected), "{message}");
        assert_eq!(fs::read_to_string(&file).unwrap(), newer);
    }

    /// A directory that is all encrypted says so: it is not opened without keys, and a file that is not encrypted has no place in it.
    #[test]
    fn an_encrypted_directory_is_refused_without_its_keys_and_left_alone() {
        let disk = ScriptedDisk::new(1);
        let path = Path::new("/d");
        let open = |ids: &[&str]| DataDir::open(Arc::new(disk.clone()), path, (!ids.is_empty()).then(|| keyring(ids)), id);
        let start = |ids: &[&str]| {
            let dir = open(ids)?;
            let log = FileLog::open(dir.disk().clone(), &dir.log(), id(), FileLogOptions { segment_bytes: 2048 }, dir.keyring().cloned())?;
            let snapshots = SnapshotStore::open(dir.disk().clone(), &dir.snapshots(), id(), dir.keyring().cloned())?;
            dir.reseal(&log, &snapshots)
        };
        assert_eq!(start(&[]).unwrap(), 0);
        let plain = disk.contents();
        let count = start(&["a"]).unwrap();
        assert!(count > 0, "the log was rewritten");
        assert_eq!(start(&["a"]).unwrap(), 0);
        let sealed = disk.contents();
        assert!(String::from_utf8_lossy(&sealed[&path.join(IDENTITY)]).contains("encryption a\n"));
        for (ids, expected) in [(&[][..], "/d is encrypted with the key \"a\", and no keys are configured"), (&["b"], "not among the configured keys (b)")] {
            let message = open(ids).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains(expected) && message.ends_with("Nothing was changed"), "{message}");
            assert!(disk.contents() == sealed);
        }
        // The segment from before it was encrypted.
        let segment = path.join("log/0000000000000000.log");
        disk.open(&segment, OpenMode::Create).unwrap().write_at(&plain[&segment], 0).unwrap();
        let message = open(&["a"]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("damaged") && message.contains("it is not encrypted"), "{message}");
        disk.open(&segment, OpenMode::Create).unwrap().write_at(&sealed[&segment], 0).unwrap();
        assert!(start(&["b", "a"]).unwrap() > 0);
        assert!(String::from_utf8_lossy(&disk.contents()[&path.join(IDENTITY)]).contains("encryption b\n"));
        assert!(open(&["a"]).is_err());
        assert_eq!(start(&["b"]).unwrap(), 0);
    }
}
