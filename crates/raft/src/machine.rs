//! openraft's state machine over [`World`]: applies, publishes, and takes snapshots.

use crate::{
    cache::{Pending, Position},
    record::{self, WorldBuilder},
    types::{Entry, LogId, Membership, Proposal, Reply, SnapshotFile, TypeConfig, log_id, mark},
};
use arc_swap::ArcSwap;
use futures::{Stream, StreamExt};
use ikada_model::{Key, Resource};
use ikada_store::{Mark, SnapshotStore, StoreError};
use ikada_world::{Change, ChangeSet, Command, EntryMeta, World};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    alias::{SnapshotMetaOf, SnapshotOf},
    storage::{EntryResponder, RaftStateMachine},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::sync::{broadcast, oneshot};

/// Change sets that a subscriber may be behind before it has to start over.
const BUS_CAPACITY: usize = 4096;
/// Pause before a snapshot that met a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// Waiters for one entry above which those that gave up are removed first.
const MANY_WAITING: usize = 64;

/// Where readers find the applied world.
pub(crate) struct Published {
    pub world: ArcSwap<World>,
    pub bus: broadcast::Sender<Arc<ChangeSet>>,
    /// Who waits for an entry to be applied, by its index.
    waiting: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
}

impl Published {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Published { world: ArcSwap::new(world), bus: broadcast::channel(BUS_CAPACITY).0, waiting: Mutex::default() }
    }

    /// Waits until the world has the entry at `index`.
    pub(crate) async fn applied(&self, index: u64) {
        let applied = || self.world.load().index() >= index;
        if applied() {
            return;
        }
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if applied() {
                return;
            }
            let same = waiting.entry(index).or_default();
            if same.len() >= MANY_WAITING {
                same.retain(|w| !w.is_closed());
            }
            same.push(tell);
        }
        told.await.ok();
    }

    /// Wakes who waits for entries that the world has now.
    fn wake(&self) {
        let due = {
            let mut waiting = self.waiting.lock();
            if waiting.is_empty() {
                return;
            }
            let rest = waiting.split_off(&(self.world.load().index() + 1));
            std::mem::replace(&mut *waiting, rest)
        };
        for tell in due.into_values().flatten() {
            tell.send(()).ok();
        }
    }

    /// Publishes a world, then tells what changed; whoever is told finds it.
    fn publish(&self, world: Arc<World>, changes: ChangeSet) {
        self.world.store(world);
        if !changes.is_empty() {
            // Nobody listening is no error.
            self.bus.send(Arc::new(changes)).ok();
        }
    }
}

/// The state machine.
pub(crate) struct Machine {
    pub published: Arc<Published>,
    pub position: Position,
    pub snapshots: Arc<SnapshotStore>,
    /// Whose turn it is to write a snapshot.
    pub snapshot_turn: Arc<tokio::sync::Mutex<()>>,
    pub pending: Arc<Pending>,
    /// Files are read and written off the runtime.
    pub blocking: bool,
}

impl Machine {
    fn apply_entry(&mut self, entry: Entry) -> io::Result<Reply> {
        let at = entry.log_id;
        let (world, changes, reply, command) = match entry.payload {
            EntryPayload::Normal(Proposal { bytes, decoded }) => {
                let decoded = match decoded {
                    Some(decoded) => decoded,
                    None => Arc::new(record::decode_command(&bytes)?),
                };
                let (world, changes, outcome) = self.position.world.apply(EntryMeta { index: at.index, time: decoded.0 }, &decoded.1);
                (world, changes, Some(outcome), Some(decoded))
            }
            EntryPayload::Blank => (self.position.world.skip(at.index), ChangeSet::default(), None, None),
            EntryPayload::Membership(members) => {
                self.position.membership = Membership::new(Some(at), members);
                (self.position.world.skip(at.index), ChangeSet::default(), None, None)
            }
        };
        let world = Arc::new(world);
        self.position.world = world.clone();
        self.position.last = Some(at);
        let command: Option<&Command> = command.as_ref().map(|d| &d.1);
        self.pending.note(&world, at, &self.position.membership, command, &changes);
        self.published.publish(world, changes);
        Ok(Reply(reply))
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.position.last, self.position.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let reply = self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        self.published.wake();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let Position { world, last, membership } = &self.position;
        Builder {
            world: world.clone(),
            last: *last,
            membership: membership.clone(),
            snapshots: self.snapshots.clone(),
            snapshot_turn: self.snapshot_turn.clone(),
            blocking: self.blocking,
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, snapshot: SnapshotFile) -> io::Result<()> {
        // What came from a peer was read on the way.
        let read = snapshot.content.and_then(|content| content.lock().take());
        let position = match read {
            Some(position) => position,
            None => read_snapshot(&self.snapshots, snapshot.meta.mark)?,
        };
        if position.last != meta.last_log_id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot file is not the one that was announced"));
        }
        let changes = difference(&self.position.world, &position.world);
        self.position = position;
        if let Some(at) = self.position.last {
            self.pending.note_all(&self.position.world, at, &self.position.membership);
        }
        self.published.publish(self.position.world.clone(), changes);
        self.published.wake();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        let Some(newest) = self.snapshots.newest() else {
            return Ok(None);
        };
        let stored = self.snapshots.read(newest)?.meta().clone();
        let (_, _, membership) = record::decode_meta(&stored.meta)?;
        let meta = SnapshotMeta { last_log_id: Some(log_id(newest)), last_membership: membership };
        Ok(Some(Snapshot { meta, snapshot: SnapshotFile { meta: stored, content: None } }))
    }
}

/// Reads and checks a whole snapshot.
pub(crate) fn read_snapshot(snapshots: &SnapshotStore, mark: Mark) -> io::Result<Position> {
    let mut reader = snapshots.read(mark)?;
    let (revision, status_revision, membership) = record::decode_meta(&reader.meta().meta)?;
    let mut builder = WorldBuilder::default();
    while let Some(bytes) = reader.next_record()? {
        builder.push(&bytes)?;
    }
    let world = Arc::new(builder.build(mark.index, revision, status_revision)?);
    Ok(Position { world, last: Some(log_id(mark)), membership })
}

/// What a subscriber has to hear when one world replaces another.
fn difference(old: &World, new: &World) -> ChangeSet {
    fn index(w: &World) -> BTreeMap<(bool, &Key), &Arc<Resource>> {
        w.iter().map(|(is_status, r)| ((is_status, &r.key), r)).collect()
    }
    let (before, after) = (index(old), index(new));
    let mut changes = ChangeSet { index: new.index(), ..ChangeSet::default() };
    let mut add = |is_status: bool, change: Change| {
        if is_status { changes.status.push(change) } else { changes.policy.push(change) }
    };
    for ((is_status, key), r) in &before {
        if !after.contains_key(&(*is_status, *key)) {
            add(*is_status, Change { before: Some((*r).clone()), after: None });
        }
    }
    for ((is_status, key), r) in &after {
        let old = before.get(&(*is_status, *key)).copied();
        if old.is_none_or(|o| o.version != r.version) {
            add(*is_status, Change { before: old.cloned(), after: Some((*r).clone()) });
        }
    }
    changes
}

/// Writes one snapshot of a world that no longer changes.
pub(crate) struct Builder {
    world: Arc<World>,
    last: Option<LogId>,
    membership: Membership,
    snapshots: Arc<SnapshotStore>,
    snapshot_turn: Arc<tokio::sync::Mutex<()>>,
    blocking: bool,
}

pub(crate) fn write_snapshot(
    snapshots: &SnapshotStore,
    world: &World,
    at: &LogId,
    membership: &Membership,
) -> Result<ikada_store::SnapshotMeta, StoreError> {
    let invalid = |e: &dyn std::fmt::Display| StoreError::Invalid(e.to_string());
    let meta = record::encode_meta(world, at, membership).map_err(|e| invalid(&e))?;
    let mut writer = snapshots.create(&meta)?;
    for r in world.resource_records() {
        writer.push(&record::encode_resource(&r).map_err(|e| invalid(&e))?)?;
    }
    for o in world.outcome_records() {
        writer.push(&record::encode_outcome(&o).map_err(|e| invalid(&e))?)?;
    }
    writer.finish()?;
    Ok(meta)
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let Some(last) = self.last else {
            return Err(io::Error::other("nothing was applied yet"));
        };
        loop {
            let (snapshots, world, membership) = (self.snapshots.clone(), self.world.clone(), self.membership.clone());
            let write = move || write_snapshot(&snapshots, &world, &last, &membership);
            let turn = self.snapshot_turn.clone().lock_owned().await;
            let done = if self.blocking { tokio::task::spawn_blocking(write).await.map_err(io::Error::other)? } else { write() };
            drop(turn);
            match done {
                Ok(stored) => {
                    tracing::info!("snapshot of {} resources at {}", self.world.len(), mark(&last));
                    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: self.membership.clone() };
                    return Ok(Snapshot { meta, snapshot: SnapshotFile { meta: stored, content: None } });
                }
                // The log stays until there is space.
                Err(e @ StoreError::Full { .. }) => tracing::warn!("snapshot postponed: {e}"),
                Err(e) => return Err(e.into()),
            }
            tokio::time::sleep(FULL_RETRY).await;
        }
    }
}
