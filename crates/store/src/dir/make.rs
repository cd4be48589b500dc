//! Makes a data directory that has data from the start, so that a crash never leaves one that a node would take for a whole one.

use super::{DataDir, Found, IDENTITY, IDENTITY_TMP, LOCK, check_keys, write_identity};
use crate::{
    disk::{Disk, DiskLock, read_all, replace_file},
    error::{Result, StoreError},
    seal::Keyring,
    types::{FORMAT_VERSION, Identity},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Says that the directory is being made, and by what.
pub(super) const MAKING: &str = "MAKING";
const MAKING_TMP: &str = "MAKING.tmp";
/// Far above what any maker writes.
const MAX_MAKING_BYTES: usize = 4096;

/// A directory that is being made. It becomes a data directory by [`NewDir::finish`], all at once; before that nobody opens it as one, and
/// whoever makes it may start over.
pub struct NewDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Identity,
    keyring: Option<Arc<Keyring>>,
    _lock: Box<dyn DiskLock>,
}

impl NewDir {
    /// Begins in a directory that does not exist or is empty, or where the same work, `what` (one line), was interrupted: what that left of
    /// log and snapshots is removed. Everything else is refused and left as it is.
    pub fn begin(disk: Arc<dyn Disk>, path: &Path, identity: Identity, keyring: Option<Arc<Keyring>>, what: &str) -> Result<NewDir> {
        let missing: Vec<&Path> = path
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty())
            .take_while(|p| disk.list(p).is_err_and(|e| e.kind() == io::ErrorKind::NotFound))
            .collect();
        disk.create_dir_all(path).map_err(|e| StoreError::io("create", path, e))?;
        refuse_used(&*disk, path, what)?;
        let lock = take_lock(&*disk, path)?;
        refuse_used(&*disk, path, what)?;
        for parent in missing.iter().filter_map(|p| p.parent()) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            disk.sync_dir(parent).map_err(|e| StoreError::io("sync", parent, e))?;
        }
        NewDir { disk, path: path.to_path_buf(), identity, keyring, _lock: lock }.clear(what)
    }

    /// Turns a data directory into one that is being made: from here on it is no data directory until [`NewDir::finish`], and its log and
    /// snapshots are gone. The caller has a copy of what it needs, and `what` says how to go on after a crash.
    pub fn replace(dir: DataDir, identity: Identity, what: &str) -> Result<NewDir> {
        let DataDir { disk, path, keyring, _lock, .. } = dir;
        let new = NewDir { disk, path, identity, keyring, _lock };
        new.mark(what)?;
        let identity_path = new.path.join(IDENTITY);
        new.disk.remove_file(&identity_path).map_err(|e| StoreError::io("remove", &identity_path, e))?;
        new.sync(&new.path)?;
        new.clear(what)
    }

    /// What is being made in a directory; `None` when nothing is.
    pub fn interrupted(disk: &dyn Disk, path: &Path) -> Result<Option<String>> {
        let names = match disk.list(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            names => names.map_err(|e| StoreError::io("read", path, e))?,
        };
        if names.iter().any(|n| n == IDENTITY) || !names.iter().any(|n| n == MAKING) {
            return Ok(None);
        }
        let bytes = read_all(disk, &path.join(MAKING), MAX_MAKING_BYTES).map_err(|e| StoreError::io("read", &path.join(MAKING), e))?;
        Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned()))
    }

    fn sync(&self, dir: &Path) -> Result<()> {
        self.disk.sync_dir(dir).map_err(|e| StoreError::io("sync", dir, e))
    }

    fn mark(&self, what: &str) -> Result<()> {
        let write = replace_file(&*self.disk, &self.path, MAKING, format!("{what}\n").as_bytes());
        write.map_err(|e| StoreError::io("write to", &self.path.join(MAKING), e))
    }

    fn clear(self, what: &str) -> Result<NewDir> {
        self.mark(what)?;
        for sub in [self.log(), self.snapshots()] {
            self.disk.create_dir_all(&sub).map_err(|e| StoreError::io("create", &sub, e))?;
            for name in self.disk.list(&sub).map_err(|e| StoreError::io("read", &sub, e))? {
                let file = sub.join(name);
                self.disk.remove_file(&file).map_err(|e| StoreError::io("remove", &file, e))?;
            }
            self.sync(&sub)?;
        }
        self.sync(&self.path)?;
        Ok(self)
    }

    /// Directory of [`crate::log`]; empty at first.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }
    /// Directory of [`crate::snapshot`]; empty at first.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }
    /// Whom it will belong to.
    pub fn identity(&self) -> Identity {
        self.identity
    }
    /// The file system.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
    /// The keys that seal it, if any.
    pub fn keyring(&self) -> Option<&Arc<Keyring>> {
        self.keyring.as_ref()
    }

    /// Makes it a data directory. What was written to log and snapshots is synced already, as log and snapshots do.
    pub fn finish(self) -> Result<()> {
        for sub in [self.log(), self.snapshots()] {
            self.sync(&sub)?;
        }
        check_keys(&*self.disk, &self.path, self.keyring.as_deref(), None)?;
        write_identity(&*self.disk, &self.path, &Found { identity: self.identity, format: FORMAT_VERSION, sealed: None })?;
        // A mark beside an identity has no meaning.
        if let Err(e) = self.disk.remove_file(&self.path.join(MAKING)) {
            tracing::debug!("cannot remove {MAKING} from {}: {e}", self.path.display());
        }
        self.sync(&self.path)
    }
}

/// Takes the lock of a directory.
pub(super) fn take_lock(disk: &dyn Disk, path: &Path) -> Result<Box<dyn DiskLock>> {
    let lock_path = path.join(LOCK);
    match disk.lock(&lock_path).map_err(|e| StoreError::io("lock", &lock_path, e))? {
        Some(lock) => Ok(lock),
        None => {
            let pid = read_all(disk, &lock_path, 64).map(|b| String::from_utf8_lossy(&b).trim().to_owned()).unwrap_or_default();
            let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
            Err(StoreError::InUse { path: path.to_path_buf(), pid })
        }
    }
}

fn refuse_used(disk: &dyn Disk, path: &Path, what: &str) -> Result<()> {
    let refuse = |what: String| Err(StoreError::NotADataDir { path: path.to_path_buf(), what });
    match NewDir::interrupted(disk, path)? {
        Some(found) if found == what => return Ok(()),
        Some(found) => return refuse(interrupted(&found)),
        None => {}
    }
    let names = disk.list(path).map_err(|e| StoreError::io("read", path, e))?;
    let scratch = [IDENTITY_TMP, MAKING_TMP, LOCK, "lost+found"];
    match names.iter().find(|n| !scratch.contains(&n.as_str())) {
        Some(_) if names.iter().any(|n| n == IDENTITY) => refuse("it has data already; choose an empty directory".to_owned()),
        Some(name) => refuse(format!("it holds {name:?}; choose an empty directory")),
        None => Ok(()),
    }
}

/// Text for a directory whose making was interrupted.
pub(super) fn interrupted(what: &str) -> String {
    format!("making it was interrupted ({what}); run the same command again")
}
