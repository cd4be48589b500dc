//! Durable storage of one node: an append-only checksummed log, snapshot files, and a rebuildable
//! state cache, all in one data directory.
//!
//! Nothing here knows what is replicated or how: entries and values are opaque bytes, positions are
//! `(index, term)`. The layers:
//!
//! - [`disk`]: the seam to the file system ([`disk::RealDisk`]) which a simulation replaces
//!   ([`disk::ScriptedDisk`] loses, tears and refuses writes on demand).
//! - [`dir`]: the data directory: identity, format version, lock.
//! - [`log`]: [`LogStore`], implemented by [`FileLog`]; the only thing that is synced before an
//!   acknowledgement.
//! - [`snapshot`]: snapshot files, which together with the log are the authoritative state.
//! - [`state`]: [`StateStore`], a cache of the applied state that may be deleted at any time,
//!   implemented with sled ([`SledState`]).
//! - [`seal`]: encryption at rest of all of them, with keys of the node.
//! - [`codec`]: the fixed set of flat records that are encoded with bincode.
//!
//! Everything is synchronous: callers decide on which thread a disk is waited for.

pub mod codec;
pub mod dir;
pub mod disk;
mod error;
pub mod log;
pub mod seal;
pub mod snapshot;
pub mod state;
mod types;
mod upgrade;

pub use dir::{DataDir, NewDir};
pub use error::{Result, StoreError};
pub use log::{FileLog, FileLogOptions, LogRecord, LogState, LogStore, MAX_RECORD_BYTES};
pub use seal::{Keyring, Keys, KeysError};
pub use snapshot::{SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotWriter};
pub use state::{MemoryState, SledState, StateBatch, StateImage, StateMark, StateStore};
pub use types::{ClusterId, FORMAT_VERSION, HardState, Identity, Mark};
