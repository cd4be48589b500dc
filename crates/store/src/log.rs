//! The log: entries, votes and purges in one durable order.

mod file;
mod format;
mod recover;
mod reseal;

pub use file::{FileLog, FileLogOptions};

use crate::{
    error::Result,
    types::{HardState, Mark},
};
use bytes::Bytes;
use std::{ops::Range, time::Duration};

/// Largest payload of one entry in bytes: a [`crate::codec`] record at its limit.
pub const MAX_RECORD_BYTES: usize = crate::codec::MAX_BODY_BYTES + 4;

/// One entry; the payload is opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Position.
    pub mark: Mark,
    /// At most [`MAX_RECORD_BYTES`].
    pub payload: Bytes,
}

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Last vote.
    pub hard: Option<HardState>,
    /// Last entry that was known to be committed; may lag.
    pub committed: Option<Mark>,
    /// Last entry that was purged.
    pub purged: Option<Mark>,
    /// Last entry, or the last purged one when there is none.
    pub last: Option<Mark>,
}

/// A durable log.
///
/// Every change is readable when its call returns, and durable when a later [`LogStore::sync`] returns: a power loss keeps a prefix of
/// the changes that contains everything synced. Changes come from one thread at a time; reads from any. After a failed sync every
/// change fails with [`crate::StoreError::Poisoned`].
pub trait LogStore: Send + Sync + 'static {
    /// What the log holds.
    fn state(&self) -> LogState;
    /// Appends entries which follow the last one, all or none. `Full` leaves the log as it was, and may be tried again.
    fn append(&self, entries: &[LogRecord]) -> Result<()>;
    /// Stores a vote.
    fn save_hard_state(&self, hard: HardState) -> Result<()>;
    /// Stores how far the log is known to be committed.
    fn save_committed(&self, mark: Mark) -> Result<()>;
    /// Removes the entries from `index` on.
    fn truncate_from(&self, index: u64) -> Result<()>;
    /// Forgets the entries up to `mark`, which may be beyond the last one (a snapshot replaced the log).
    fn purge_to(&self, mark: Mark) -> Result<()>;
    /// Entries of a range of indices from its start: as many as exist and fit in `max_bytes`, at least one.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<LogRecord>>;
    /// Position at an index that is in the log.
    fn mark_at(&self, index: u64) -> Option<Mark>;
    /// Makes everything so far durable. One sync serves all changes before it.
    fn sync(&self) -> Result<()>;
    /// How long to wait before a sync, see [`crate::disk::Disk::sync_delay`].
    fn sync_delay(&self) -> Duration {
        Duration::ZERO
    }
    /// Reserves space ahead, so that appends do not meet a full disk. `Full` when there is none.
    fn prepare(&self) -> Result<()>;
    /// Bytes that can be appended without more space from the file system.
    fn room(&self) -> u64;
}
