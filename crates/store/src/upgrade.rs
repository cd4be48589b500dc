//! Upgrades of a data directory, one step from each format to the next.
//!
//! A step brings everything but `IDENTITY` into the next format and can be repeated: `IDENTITY` names the next format only when it is done,
//! so a step that was interrupted anywhere is done again by the next open. A step refuses what it cannot read before it changes anything.
//! Rules for a new format: a step here, a directory of the format before among the test data, and readers of older files stay for ever.

use crate::{
    dir::DataDir,
    error::{Result, StoreError},
    log::FileLog,
    snapshot::SnapshotStore,
};

/// Does the step from a format to the next one.
pub(crate) fn step(dir: &DataDir, from: u16) -> Result<()> {
    match from {
        1 => all_is_readable(dir),
        _ => Err(StoreError::NotADataDir { path: dir.path().to_path_buf(), what: format!("there is no upgrade from format {from}") }),
    }
}

/// From 1 to 2: files of format 1 are valid in format 2, and stay until they are purged or sealed. What is damaged is refused while the
/// version that wrote it can still be used.
fn all_is_readable(dir: &DataDir) -> Result<()> {
    FileLog::check(dir.disk().clone(), &dir.log(), dir.identity(), dir.keyring().cloned())?;
    let snapshots = SnapshotStore::look(dir.disk().clone(), &dir.snapshots(), dir.identity(), dir.keyring().cloned())?;
    if let Some(newest) = snapshots.newest() {
        let mut reader = snapshots.read(newest)?;
        while reader.next_record()?.is_some() {}
    }
    Ok(())
}
