//! The directory of configuration and sockets (reference: §3.3 step 1).

use anyhow::{Context, bail};
use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// A work directory in use by this process alone.
pub struct WorkDir {
    path: PathBuf,
    /// Removes a temporary directory when dropped.
    _temporary: Option<tempfile::TempDir>,
    /// Locked as long as it is open.
    _lock: fs::File,
}

impl WorkDir {
    /// Takes the given directory, or makes a temporary one (mode 0711: Envoy may run as another user and must reach its sockets).
    /// Sockets that an earlier process left are removed.
    ///
    /// # Errors
    /// It cannot be made or written, or another process uses it.
    pub fn open(given: Option<&Path>) -> anyhow::Result<WorkDir> {
        let (path, temporary) = match given {
            Some(path) => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o711)
                    .create(path)
                    .with_context(|| format!("cannot make the work directory {}", path.display()))?;
                (path.canonicalize().with_context(|| format!("cannot use the work directory {}", path.display()))?, None)
            }
            None => {
                let dir = tempfile::Builder::new()
                    .prefix("ikada-dp-")
                    .permissions(fs::Permissions::from_mode(0o711))
                    .tempdir()
                    .context("cannot make a temporary work directory: give one with --work-dir")?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        let lock_path = path.join("ikada-dp.lock");
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot write to the work directory {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                bail!("the work directory {} is in use by another ikada-dp: give each proxy its own with --work-dir", path.display())
            }
            Err(fs::TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {}", lock_path.display())),
        }
        let dir = WorkDir { path, _temporary: temporary, _lock: lock };
        dir.remove_stale_sockets()?;
        Ok(dir)
    }

    fn remove_stale_sockets(&self) -> anyhow::Result<()> {
        let failed = || format!("cannot read the work directory {}", self.path.display());
        for entry in fs::read_dir(&self.path).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let kind = entry.file_type().with_context(failed)?;
            let ours = entry.file_name().to_str().is_some_and(|n| n.starts_with("kuma-") && n.ends_with(".sock"));
            if ours && (kind.is_socket() || kind.is_fifo()) {
                fs::remove_file(entry.path()).with_context(|| format!("cannot remove the old socket {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file that only this user may read.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_secret(&self, name: &str, content: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        let failed = || format!("cannot write {}", path.display());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(failed),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(failed)?;
        file.write_all(content).with_context(failed)?;
        Ok(path)
    }

    /// Path of one of the proxy's sockets: cut to 98 bytes, then `.sock` (reference: §2.3).
    pub fn socket(&self, name: &str) -> PathBuf {
        let mut path = self.path.join(name).display().to_string();
        let mut end = path.len().min(98);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        path.truncate(end);
        PathBuf::from(path + ".sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn temporary_directories_go_away() {
        let dir = WorkDir::open(None).unwrap();
        let path = dir.path().to_owned();
        assert_eq!(mode(&path), 0o711);
        let file = dir.write_secret("bootstrap.yaml", b"a").unwrap();
        dir.write_secret("bootstrap.yaml", b"b").unwrap();
        assert_eq!((fs::read(&file).unwrap().as_slice(), mode(&file)), (b"b".as_slice(), 0o600));
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn given_directories_are_used_by_one_and_stay() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("a/b");
        let dir = WorkDir::open(Some(&path)).unwrap();
        assert!(WorkDir::open(Some(&path)).err().unwrap().to_string().contains("in use by another"));
        let stale = dir.path().join("kuma-envoy-admin.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&stale).unwrap();
        fs::write(dir.path().join("kuma-notes.sock"), "a plain file").unwrap();
        drop(dir);
        let dir = WorkDir::open(Some(&path)).unwrap();
        assert!(!stale.exists() && dir.path().join("kuma-notes.sock").exists());
        let long = dir.socket(&"x".repeat(200));
        assert_eq!(long.display().to_string().len(), 103);
        drop(dir);
        assert!(path.exists());
    }
}
