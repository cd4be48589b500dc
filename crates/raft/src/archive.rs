//! Copies of everything outside of a data directory, and data directories out of copies.
//!
//! - **save**: a linearizable copy of all resources and remembered outcomes as one file ([`RaftStore::archive`]).
//! - **restore**: a new data directory out of such a file.
//! - **recover**: a new cluster out of what one node of a lost majority has.
//!
//! Restored and recovered directories are clusters of their own: a new cluster id, so that nodes of the old one keep away; this node with
//! id 1 as its only voter; all resources with their versions and revisions, and the outcomes of commands, so that a repeated write is still
//! done once. The log goes on after the last entry of the copy: a revision that somebody remembers never comes back with another meaning.
//!
//! An archive has the secrets of the control plane in the clear. Whoever writes the file restricts who reads it.

mod format;
mod recover;

pub use recover::{Recovered, recover};

use crate::{
    cache::Position,
    machine::write_snapshot,
    membership::Configuration,
    options::{Options, Start},
    record::{self, WorldBuilder},
    seam::uuid_v4,
    settings::Settings,
    store::RaftStore,
    types::{LogId, Membership, NodeRecord, log_id, mark},
};
use format::{Reader, Writer};
use ikada_model::Timestamp;
use ikada_store::{ClusterId, FileLog, FileLogOptions, HardState, Identity, LogStore, Mark, NewDir, SnapshotStore, StoreError};
use ikada_world::{ProposeError, Replicator, World};
use openraft::async_runtime::watch::WatchReceiver;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    sync::Arc,
};

/// Id of the node that a restored or recovered cluster begins with. Ids of others come from the log, which begins above.
const ONLY_NODE: u64 = 1;

/// Why an archive was not written, read, or made into a data directory. One line that says what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file is something else.
    #[error("this is not an archive of the store (`ikadactl cluster snapshot save` makes one)")]
    NotAnArchive,
    /// The file was written by a later version.
    #[error("the archive has version {found}, this program reads up to {supported}: use the version that wrote it, or a later one")]
    Newer {
        /// Version of the file.
        found: u16,
        /// Newest that this program reads.
        supported: u16,
    },
    /// The file is not as it was written.
    #[error("the archive is damaged at byte {at}: {what}; nothing was restored. Use another copy")]
    Damaged {
        /// Where in the file.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// The file cannot be read.
    #[error("cannot read the archive: {0}")]
    Read(String),
    /// The file cannot be written.
    #[error("cannot write the archive: {0}")]
    Write(String),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was asked for is not possible.
    #[error("{0}")]
    Refused(String),
}

/// A consistent copy of everything, to be written.
pub struct Archive {
    world: Arc<World>,
    at: LogId,
    members: Membership,
    identity: Identity,
    time: Timestamp,
    program: String,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Last entry in it.
    pub index: u64,
    /// Number of resources.
    pub resources: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// What an archive says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The cluster it is of.
    pub cluster: ClusterId,
    /// The node that wrote it.
    pub node: u64,
    /// Last entry in it.
    pub index: u64,
    /// When it was written, by that node's clock.
    pub time: Timestamp,
    /// Version of the program that wrote it.
    pub program: String,
    /// Number of resources.
    pub resources: u64,
}

/// A data directory that was made out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Id of the new cluster.
    pub cluster: ClusterId,
    /// Its first entry is above this index.
    pub index: u64,
    /// What the archive was.
    pub from: Contents,
}

impl RaftStore {
    /// A copy that contains every write that was acknowledged before the call. Takes no memory of its own: worlds share what is equal.
    pub async fn archive(&self) -> Result<Archive, ProposeError> {
        let world = self.linearizable().await?;
        let (term, members) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.current_term, (*metrics.membership_config).clone())
        };
        // The term of the last entry, or a later one: it only has to be below those of the restored cluster.
        let at = log_id(Mark { index: world.index(), term });
        Ok(Archive { world, at, members, identity: self.identity, time: self.now(), program: env!("CARGO_PKG_VERSION").to_owned() })
    }

    /// Writes a consistent linearizable copy of everything. `out` is written to on the calling thread: for a slow one use
    /// [`RaftStore::archive`] and [`Archive::write`] off the runtime.
    pub async fn save(&self, out: &mut (dyn Write + Send)) -> Result<Saved, ArchiveError> {
        self.archive().await.map_err(|e| ArchiveError::Refused(e.to_string()))?.write(out)
    }
}

impl Archive {
    /// Last entry in it.
    pub fn index(&self) -> u64 {
        self.at.index
    }

    /// Writes it, blocking.
    pub fn write(&self, out: &mut dyn Write) -> Result<Saved, ArchiveError> {
        let failed = |e: &dyn std::fmt::Display| ArchiveError::Write(e.to_string());
        let resources = self.world.len() as u64;
        let description = record::Description { identity: self.identity, time: self.time, program: self.program.clone(), resources };
        let meta = record::encode_meta(&self.world, &self.at, &self.members).map_err(|e| failed(&e))?;
        let description = record::encode_archive(&description, meta).map_err(|e| failed(&e))?;
        let mut writer = Writer::new(out, &description).map_err(|e| failed(&e))?;
        for resource in self.world.resource_records() {
            let bytes = record::encode_resource(&resource).map_err(|e| failed(&e))?;
            writer.push(&bytes).map_err(|e| failed(&e))?;
        }
        for outcome in self.world.outcome_records() {
            let bytes = record::encode_outcome(&outcome).map_err(|e| failed(&e))?;
            writer.push(&bytes).map_err(|e| failed(&e))?;
        }
        let bytes = writer.finish().map_err(|e| failed(&e))?;
        Ok(Saved { index: self.at.index, resources, bytes })
    }
}

/// Reads and checks a whole archive.
fn read(input: &mut dyn Read) -> Result<(Contents, Mark, World), ArchiveError> {
    let (mut reader, description) = Reader::new(input)?;
    let bad = |e: &dyn std::fmt::Display| ArchiveError::Damaged { at: 0, what: e.to_string() };
    let (described, meta) = record::decode_archive(&description).map_err(|e| bad(&e))?;
    let (revision, status_revision, _) = record::decode_meta(&meta.meta).map_err(|e| bad(&e))?;
    let mut builder = WorldBuilder::default();
    while let Some(bytes) = reader.next_record()? {
        builder.push(&bytes).map_err(|e| bad(&e))?;
    }
    let at = meta.mark;
    let world = builder.build(at.index, revision, status_revision).map_err(|e| bad(&e))?;
    if world.len() as u64 != described.resources {
        return Err(bad(&format!("it has {} resources and announces {}", world.len(), described.resources)));
    }
    let record::Description { identity: Identity { cluster, node }, time, program, resources } = described;
    Ok((Contents { cluster, node, index: at.index, time, program, resources }, at, world))
}

/// Reads a whole archive, checks every byte of it, and says what it is.
pub fn inspect(archive: &mut dyn Read) -> Result<Contents, ArchiveError> {
    Ok(read(archive)?.0)
}

/// Makes a data directory out of an archive: `options.data_dir`, which must not exist or be empty, encrypted with the first of
/// `options.encryption` if there are keys, with address and name of `options.start`, which must be [`Start::Create`]. See the module for
/// what it holds. Blocking.
///
/// The whole archive is checked before anything is written, and a crash leaves a directory that no node opens and that the same call
/// makes anew.
pub fn restore(archive: &mut dyn Read, options: &Options) -> Result<Restored, ArchiveError> {
    let node = first_node(options)?;
    let (from, at, world) = read(archive)?;
    let identity = new_identity(options);
    let dir = NewDir::begin(options.disk.clone(), &options.data_dir, identity, options.keyring(), "restore")?;
    let index = fill(dir, &world, at, node, options)?;
    Ok(Restored { cluster: identity.cluster, index, from })
}

fn new_identity(options: &Options) -> Identity {
    Identity { cluster: ClusterId(uuid_v4(&*options.randomness)), node: ONLY_NODE }
}

fn first_node(options: &Options) -> Result<NodeRecord, ArchiveError> {
    match &options.start {
        Start::Create { address, name } => Ok(NodeRecord { address: address.clone(), name: name.clone(), ..NodeRecord::default() }),
        Start::Join { .. } => Err(ArchiveError::Refused("a copy becomes a new cluster, it cannot join one".to_owned())),
    }
}

/// Writes a world as the beginning of a new cluster. Gives the index that its log goes on after.
///
/// Log before snapshot: a log that begins after an entry nobody has is refused at start, a snapshot without a log as well; but neither is
/// seen before [`NewDir::finish`].
fn fill(dir: NewDir, world: &World, last: Mark, node: NodeRecord, options: &Options) -> Result<u64, ArchiveError> {
    let refused = |e: &dyn std::fmt::Display| ArchiveError::Refused(e.to_string());
    // An entry and a term of their own: in the old cluster this position may have been given to something else.
    let next = |n: u64| n.checked_add(1).filter(|n| *n < u64::MAX / 2).ok_or_else(|| refused(&"its positions are at the end of their range"));
    let at = Mark { index: next(last.index)?, term: next(last.term)? };
    let world = world.skip(at.index);
    let nodes = BTreeMap::from([(dir.identity().node, node)]);
    let configuration = Configuration::new(vec![BTreeSet::from([dir.identity().node])], nodes).map_err(|e| refused(&e))?;
    let membership = Membership::new(Some(log_id(at)), configuration);

    let sizes = FileLogOptions { segment_bytes: Settings::of(&options.profile).segment_bytes };
    let log = FileLog::open(dir.disk().clone(), &dir.log(), dir.identity(), sizes, dir.keyring().cloned())?;
    log.save_hard_state(HardState { term: at.term, voted_for: dir.identity().node, committed: true })?;
    log.purge_to(at)?;
    log.save_committed(at)?;
    log.sync()?;
    drop(log);
    let snapshots = SnapshotStore::open(dir.disk().clone(), &dir.snapshots(), dir.identity(), dir.keyring().cloned())?;
    write_snapshot(&snapshots, &world, &log_id(at), &membership)?;
    dir.finish()?;
    Ok(at.index)
}

/// Applies what the log has after a position, committed or not. Gives how many entries were not known to be committed.
fn replay(log: &dyn LogStore, position: &mut Position) -> Result<u64, ArchiveError> {
    let state = log.state();
    let Some(last) = state.last else { return Ok(0) };
    let mut next = position.last.as_ref().map_or(0, |at| at.index + 1);
    let committed = state.committed.map_or(0, |at| at.index);
    let mut uncommitted = 0;
    let mut world = (*position.world).clone();
    while next <= last.index {
        let records = log.read(next..last.index.saturating_add(1), READ_BYTES)?;
        if records.is_empty() {
            return Err(ArchiveError::Refused(format!("the log lacks entry {next}")));
        }
        for found in records {
            let at = found.mark;
            let entry = record::entry(found).map_err(|e| ArchiveError::Refused(format!("entry {at} of the log cannot be read: {e}")))?;
            world = record::applied(&world, &entry).map_err(|e| ArchiveError::Refused(format!("entry {at} of the log cannot be read: {e}")))?;
            uncommitted += u64::from(at.index > committed);
            position.last = Some(log_id(at));
            next = at.index + 1;
        }
    }
    position.world = Arc::new(world);
    Ok(uncommitted)
}

/// Most bytes of entries in memory at a time.
const READ_BYTES: usize = 4 << 20;

fn position_of(position: &Position) -> Mark {
    position.last.as_ref().map_or(Mark { index: 0, term: 0 }, mark)
}

#[cfg(test)]
mod tests;
