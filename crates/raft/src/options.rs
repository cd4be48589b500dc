//! How a store is opened, and why that fails.

use crate::{
    net::{Net, NoNet},
    seam::{Clock, OsRandomness, Randomness, SystemClock},
    settings::Profile,
};
use ikada_store::{
    ClusterId, Keyring, Keys, StoreError,
    disk::{Disk, RealDisk},
};
use std::{fmt, path::PathBuf, sync::Arc};

/// What a new data directory becomes. One that exists is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first node of a new cluster.
    Create {
        /// Where peers will reach it ("host:port"); may be empty while it is alone.
        address: String,
        /// Name for people, as a rule the host's.
        name: String,
    },
    /// A node of an existing cluster. It is empty until the cluster adds it, which must not have given the id to anybody before.
    Join {
        /// The cluster.
        cluster: ClusterId,
        /// Id of this node in it.
        node: u64,
    },
}

/// What a store is opened with.
#[derive(Clone)]
pub struct Options {
    /// Directory of the store; created when missing.
    pub data_dir: PathBuf,
    /// File system of everything but the state cache.
    pub disk: Arc<dyn Disk>,
    /// Clock of entries.
    pub clock: Arc<dyn Clock>,
    /// Source of ids.
    pub randomness: Arc<dyn Randomness>,
    /// Times and sizes of Raft.
    pub profile: Profile,
    /// What a new data directory becomes.
    pub start: Start,
    /// How peers are reached.
    pub net: Arc<dyn Net>,
    /// Keys with which everything on the disk is encrypted, the first one for what is written; `None` = nothing is.
    pub encryption: Option<Keys>,
    /// Everything runs on the runtime's threads, and the state cache is left out: for simulations on a scripted disk.
    pub simulated: bool,
}

impl Options {
    /// The operating system's disk, clock and randomness; profile `lan`; a new directory becomes a cluster of its own, without peers.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Options {
            data_dir: data_dir.into(),
            disk: Arc::new(RealDisk),
            clock: Arc::new(SystemClock),
            randomness: Arc::new(OsRandomness),
            profile: Profile::Lan,
            start: Start::Create { address: String::new(), name: String::new() },
            net: Arc::new(NoNet),
            encryption: None,
            simulated: false,
        }
    }

    /// The keys, with the source of their salts.
    pub fn keyring(&self) -> Option<Arc<Keyring>> {
        let (keys, randomness) = (self.encryption.clone()?, self.randomness.clone());
        Some(Keyring::new(keys, Arc::new(move || randomness.bytes16())))
    }
}

/// Why a store cannot be opened. One line that says what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting.
    #[error("invalid replication settings: {0}")]
    Settings(String),
    /// Raft does not start.
    #[error("cannot start replication: {0}")]
    Raft(String),
}

/// Why a node had to leave service: its disk cannot be trusted, or Raft stopped. The process should say so and exit with a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal(pub String);

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}
