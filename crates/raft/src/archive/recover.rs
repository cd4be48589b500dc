//! The way out of a lost majority.

use super::{ArchiveError, READ_BYTES, fill, first_node, new_identity, position_of, replay};
use crate::{
    cache::Position,
    machine::read_snapshot,
    open::contradicts,
    options::Options,
    settings::Settings,
    types::{Membership, NodeRecord, mark},
};
use ikada_store::{
    ClusterId, DataDir, FileLog, FileLogOptions, Identity, LogStore, NewDir, SnapshotStore, StoreError,
    disk::{Disk, OpenMode},
};
use ikada_world::World;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

const IDENTITY: &str = "IDENTITY";
/// Begin of the text that says what is being done.
const WHAT: &str = "recovery out of ";
const ASIDE: &str = "before-recovery-";

/// A new cluster out of the data of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Id of the new cluster.
    pub cluster: ClusterId,
    /// Its first entry is above this index.
    pub index: u64,
    /// Number of resources.
    pub resources: u64,
    /// Entries of the old log that this node did not know to be committed: they are in.
    pub uncommitted: u64,
    /// Whose data it was.
    pub former: Identity,
    /// Where the old data is kept.
    pub kept: PathBuf,
}

/// Makes what `options.data_dir` has, the newest snapshot and the whole log, a new cluster of this node alone. For when a majority of the
/// voters is lost for good: stop the others first, they must not come back. Blocking.
///
/// Entries that this node did not know to be committed are taken as well: among them may be some that were acknowledged (the leader knows
/// first), and some that were not, whose writers were told that the outcome is unknown. Acknowledged entries that never reached this node
/// are lost: choose the node with the longest log.
///
/// The old data is copied to `before-recovery-<time>` in the data directory first. Refused when a process has the directory open. A crash
/// leaves the old directory, or one that no node opens and that the same call goes on with.
pub fn recover(options: &Options) -> Result<Recovered, ArchiveError> {
    let node = first_node(options)?;
    let (disk, path) = (&options.disk, &options.data_dir);
    let refused = |what: &str| ArchiveError::Store(StoreError::NotADataDir { path: path.clone(), what: what.to_owned() });
    let names = disk.list(path).map_err(|e| StoreError::io("read", path, e))?;
    let identity = new_identity(options);
    if names.iter().any(|n| n == IDENTITY) {
        // An identity that is there is never made.
        let dir = DataDir::open(disk.clone(), path, options.keyring(), || identity)?;
        let former = dir.identity();
        let aside = aside(options, &names);
        let kept = path.join(&aside);
        let copied = copy(options, &kept)?;
        tracing::info!("{copied} files of {former} are kept in {}", kept.display());
        let (position, uncommitted) = read_all(options, path, former)?;
        let new = NewDir::replace(dir, identity, &format!("{WHAT}{aside}"))?;
        return finish(new, &position, uncommitted, former, kept, node, options);
    }
    let what = NewDir::interrupted(&**disk, path)?.ok_or_else(|| refused("it has no IDENTITY file"))?;
    let aside = what.strip_prefix(WHAT).filter(|name| names.iter().any(|n| n == name)).ok_or_else(|| refused(&what))?;
    let kept = path.join(aside);
    let new = NewDir::begin(disk.clone(), path, identity, options.keyring(), &what)?;
    let former = {
        let dir = DataDir::open(disk.clone(), &kept, options.keyring(), || identity)?;
        dir.identity()
    };
    let (position, uncommitted) = read_all(options, &kept, former)?;
    finish(new, &position, uncommitted, former, kept, node, options)
}

fn finish(
    new: NewDir,
    position: &Position,
    uncommitted: u64,
    former: Identity,
    kept: PathBuf,
    node: NodeRecord,
    options: &Options,
) -> Result<Recovered, ArchiveError> {
    let cluster = new.identity().cluster;
    let index = fill(new, &position.world, position_of(position), node, options)?;
    Ok(Recovered { cluster, index, resources: position.world.len() as u64, uncommitted, former, kept })
}

/// Name of the directory with the old data; never one that exists.
fn aside(options: &Options, names: &[String]) -> String {
    let time: String = options.clock.now().to_string().chars().take_while(|c| *c != '.').filter(|c| c.is_ascii_alphanumeric()).collect();
    let base = format!("{ASIDE}{}Z", time.trim_end_matches('Z'));
    let taken = |name: &String| names.contains(name);
    let mut name = base.clone();
    let mut n = 1;
    while taken(&name) {
        n += 1;
        name = format!("{base}-{n}");
    }
    name
}

/// Copies identity, log and snapshots, the identity last: a copy that has one is whole. Gives the number of files.
fn copy(options: &Options, to: &Path) -> Result<u64, ArchiveError> {
    let (disk, from) = (&options.disk, &options.data_dir);
    let mut copied = 0;
    let sync = |dir: &Path| disk.sync_dir(dir).map_err(|e| StoreError::io("sync", dir, e));
    for sub in ["log", "snapshots"] {
        let (from, to) = (from.join(sub), to.join(sub));
        disk.create_dir_all(&to).map_err(|e| StoreError::io("create", &to, e))?;
        let names = disk.list(&from).map_err(|e| StoreError::io("read", &from, e))?;
        for name in names.iter().filter(|n| !n.ends_with(".tmp")) {
            copy_file(&**disk, &from.join(name), &to.join(name))?;
            copied += 1;
        }
        sync(&to)?;
    }
    copy_file(&**disk, &from.join(IDENTITY), &to.join(IDENTITY))?;
    sync(to)?;
    sync(from)?;
    Ok(copied + 1)
}

fn copy_file(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), StoreError> {
    let source = disk.open(from, OpenMode::Read).map_err(|e| StoreError::io("open", from, e))?;
    let target = disk.open(to, OpenMode::Create).map_err(|e| StoreError::io("create", to, e))?;
    let len = source.len().map_err(|e| StoreError::io("read", from, e))?;
    let mut buffer = vec![0; READ_BYTES.min(usize::try_from(len).unwrap_or(READ_BYTES))];
    let mut at = 0;
    while at < len {
        let read = source.read_at(&mut buffer, at).map_err(|e| StoreError::io("read", from, e))?;
        let Some(bytes) = buffer.get(..read).filter(|b| !b.is_empty()) else {
            return Err(StoreError::io("read", from, io::ErrorKind::UnexpectedEof.into()));
        };
        target.write_at(bytes, at).map_err(|e| StoreError::io("write to", to, e))?;
        at += read as u64;
    }
    target.sync_data().map_err(|e| StoreError::io("sync", to, e))
}

/// The newest snapshot of a directory and its whole log.
fn read_all(options: &Options, path: &Path, owner: Identity) -> Result<(Position, u64), ArchiveError> {
    let (disk, keyring) = (&options.disk, options.keyring());
    let (log, snapshots) = (path.join("log"), path.join("snapshots"));
    let names = disk.list(&log).map_err(|e| StoreError::io("read", &log, e))?;
    if !names.iter().any(|n| n.ends_with(".log")) {
        return Err(StoreError::damaged(&log, 0, "the log is gone").into());
    }
    let snapshots = SnapshotStore::open(disk.clone(), &snapshots, owner, keyring.clone())?;
    let mut position = match snapshots.newest() {
        Some(newest) => read_snapshot(&snapshots, newest).map_err(|e| ArchiveError::Refused(e.to_string()))?,
        None => Position { world: Arc::new(World::empty()), last: None, membership: Membership::default() },
    };
    let sizes = FileLogOptions { segment_bytes: Settings::of(&options.profile).segment_bytes };
    let log = FileLog::open(disk.clone(), &log, owner, sizes, keyring)?;
    if contradicts(&log, position_of(&position), path)? {
        return Ok((position, 0));
    }
    if let Some(purged) = log.state().purged
        && position.last.as_ref().is_none_or(|l| l.index < purged.index)
    {
        let at = position.last.as_ref().map_or_else(|| "nothing".to_owned(), |l| mark(l).to_string());
        return Err(StoreError::damaged(path, 0, format!("the log begins after {purged}, the newest snapshot has {at}")).into());
    }
    let uncommitted = replay(&log, &mut position)?;
    Ok((position, uncommitted))
}
