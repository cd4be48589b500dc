//! Errors of the store: one line each, naming the file and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Result of a store operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What can go wrong with a data directory.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An operation of the file system failed.
    #[error("cannot {op} {}: {message}", path.display())]
    Io {
        /// What was tried, as a verb: "open", "write to".
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Kind of the underlying error.
        kind: io::ErrorKind,
        /// Its text.
        message: String,
    },
    /// The file system has no room left. The operation had no effect.
    #[error("no space left on the disk that holds {}: free some space, writes resume by themselves", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Data that had been acknowledged as durable is missing or changed.
    #[error("the store is damaged: {} at byte {offset}: {what}; nothing was changed. Restore a backup, or move the data directory \
             away and start empty (in a cluster: `ikadactl cluster remove` this node on another one, then join it again with a new join \
             token: it gets a new id and everything back)", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// An earlier sync failed; what the disk holds is unknown until the store is opened again.
    #[error("the store refuses further work after a failed sync: {reason}; check the disk, then restart")]
    Poisoned {
        /// The failure.
        reason: String,
    },
    /// Another process has the directory open.
    #[error("data directory {} is in use by another process (pid {pid}): stop it or choose another directory", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Process that holds the lock, or "unknown".
        pid: String,
    },
    /// The data was written by a later version.
    #[error("{} has format {found}{}, this is ikada {}, which reads up to {supported}: install the version that wrote it, or restore a \
             backup from before its installation into another directory", path.display(), written_by(by), env!("CARGO_PKG_VERSION"))]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Format found.
        found: u16,
        /// Highest format understood.
        supported: u16,
        /// Version of the program that wrote it, where it is known.
        by: Option<String>,
    },
    /// The data is encrypted, and its key is not there.
    #[error("{} is encrypted with the key {id:?}, {why}. Nothing was changed", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Id of the key.
        id: String,
        /// Why it cannot be read and what to do.
        why: String,
    },
    /// The data belongs to another cluster or node.
    #[error("{} belongs to {found}, expected {expected}: the files of two data directories were mixed", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Owner named in the file.
        found: String,
        /// Owner of the data directory.
        expected: String,
    },
    /// The directory holds something else.
    #[error("{} is not a data directory of this program: {what}", path.display())]
    NotADataDir {
        /// The directory.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A record is larger than the format allows.
    #[error("{what} of {size} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A caller broke the order of the log; nothing was written.
    #[error("invalid log operation: {0}")]
    Invalid(String),
    /// The state cache failed (sled error or panic); it can be deleted and rebuilt.
    #[error("state cache: {0}")]
    Cache(String),
}

fn written_by(by: &Option<String>) -> String {
    by.as_ref().map(|version| format!(", written by ikada {version}")).unwrap_or_default()
}

impl StoreError {
    /// Wraps an error of the file system; "no space" becomes [`StoreError::Full`].
    pub fn io(op: &'static str, path: &Path, err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.to_path_buf() },
            kind => Self::Io { op, path: path.to_path_buf(), kind, message: err.to_string() },
        }
    }

    /// Damage at `offset` of `path`.
    pub fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), offset, what: what.into() }
    }
}

impl From<StoreError> for io::Error {
    fn from(err: StoreError) -> Self {
        let kind = match &err {
            StoreError::Io { kind, .. } => *kind,
            StoreError::Full { .. } => io::ErrorKind::StorageFull,
            StoreError::Damaged { .. } => io::ErrorKind::InvalidData,
            StoreError::TooLarge { .. } | StoreError::Invalid(_) => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, err)
    }
}
