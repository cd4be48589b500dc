//! Keeps the state cache near the applied world, off the path of writes.
//!
//! What an entry changed is noted by key, so a resource that changes a hundred times a second is written once. The cache holds the whole
//! state of one position or it is thrown away: snapshot and log have everything.

use crate::{
    record::{self, RecordError, WorldBuilder},
    types::{LogId, Membership, log_id},
};
use ikada_model::{Key, Resource};
use ikada_store::{Identity, Keyring, SledState, StateBatch, StateImage, StateMark, StateStore, StoreError};
use ikada_world::{
    ChangeSet, Command, CommandId, REMEMBERED_OUTCOMES, World,
    record::{OutcomeRecordV1, ResourceRecordV1},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// How long changes are collected before they are written. There is no timer while nothing changes.
const COLLECT: Duration = Duration::from_millis(250);
/// Writing takes at most one part in so many of the time: under load it is the replication that needs the processor, and what changed
/// twice meanwhile is written once.
const SHARE: u32 = 20;
/// sled never gives space back by itself: above both, it is written anew.
const BLOAT_FACTOR: u64 = 8;
const BLOAT_BYTES: u64 = 256 << 20;
/// The cache is given about so much at a time.
const PART_BYTES: usize = 1 << 20;

/// A world and where it is.
pub(crate) struct Position {
    pub world: Arc<World>,
    pub last: Option<LogId>,
    pub membership: Membership,
}

#[derive(Default)]
struct Dirty {
    /// Everything must be written: the cache is empty or too large.
    all: bool,
    /// (status state, key) to the record, `None` when it is gone.
    resources: HashMap<(bool, Key), Option<Arc<Resource>>>,
    outcomes: HashSet<CommandId>,
    at: Option<(Arc<World>, LogId, Membership)>,
}

/// What the cache does not have yet.
#[derive(Default)]
pub(crate) struct Pending {
    /// `None` when there is no cache, so that nothing piles up.
    dirty: Mutex<Option<Dirty>>,
    changed: Notify,
}

fn resource_key(is_status: bool, key: &Key) -> Vec<u8> {
    let mut k = vec![b'r', u8::from(is_status)];
    for part in [key.kind.name(), &key.mesh, &key.name] {
        k.extend(part.as_bytes());
        k.push(0);
    }
    k
}

fn outcome_key(o: &OutcomeRecordV1) -> Vec<u8> {
    let mut k = vec![b'o'];
    k.extend(o.index.to_be_bytes());
    k.extend(o.id);
    k
}

impl Pending {
    /// For a cache that will be written: from scratch unless it holds the position from which on changes are noted.
    pub(crate) fn for_cache(from_scratch: bool) -> Self {
        Pending { dirty: Mutex::new(Some(Dirty { all: from_scratch, ..Dirty::default() })), changed: Notify::new() }
    }

    /// Notes one applied entry; `command` when it carried one.
    pub(crate) fn note(&self, world: &Arc<World>, at: LogId, membership: &Membership, command: Option<&Command>, changes: &ChangeSet) {
        let mut dirty = self.dirty.lock();
        let Some(dirty) = dirty.as_mut() else { return };
        for (is_status, list) in [(false, &changes.policy), (true, &changes.status)] {
            for change in list {
                let Some(key) = change.key() else { continue };
                dirty.resources.insert((is_status, key.clone()), change.after.clone());
            }
        }
        if let Some(command) = command {
            dirty.outcomes.insert(command.id);
        }
        if dirty.outcomes.len() > REMEMBERED_OUTCOMES {
            // Most of what the cache has is gone by now.
            *dirty = Dirty { all: true, ..Dirty::default() };
        }
        match &mut dirty.at {
            Some((of, index, members)) => {
                (*of, *index) = (world.clone(), at);
                // It seldom changes, and is not small.
                if members.log_id() != membership.log_id() {
                    *members = membership.clone();
                }
            }
            None => dirty.at = Some((world.clone(), at, membership.clone())),
        }
        self.changed.notify_one();
    }

    /// The whole world has to be written.
    pub(crate) fn note_all(&self, world: &Arc<World>, at: LogId, membership: &Membership) {
        if let Some(dirty) = self.dirty.lock().as_mut() {
            *dirty = Dirty { all: true, at: Some((world.clone(), at, membership.clone())), ..Dirty::default() };
            self.changed.notify_one();
        }
    }
}

/// A world that a cache held, and the keys of its outcomes, oldest first.
pub(crate) struct Cached {
    pub position: Position,
    pub outcomes: BTreeSet<Vec<u8>>,
}

/// Reads the cache of this node. `None` when it is empty.
pub(crate) fn load(store: &dyn StateStore, owner: Identity) -> Result<Option<Cached>, String> {
    let text = |e: StoreError| e.to_string();
    let Some(StateImage { mark, values }) = store.load().map_err(text)? else { return Ok(None) };
    let (found, meta) = record::decode_cache(&mark.meta).map_err(|e| e.to_string())?;
    if found != owner {
        return Err(format!("it belongs to {found}"));
    }
    let build = || -> Result<Position, RecordError> {
        let (revision, status_revision, membership) = record::decode_meta(&meta)?;
        let mut builder = WorldBuilder::default();
        values.values().try_for_each(|bytes| builder.push(bytes))?;
        let world = Arc::new(builder.build(mark.mark.index, revision, status_revision)?);
        Ok(Position { world, last: Some(log_id(mark.mark)), membership })
    };
    let position = build().map_err(|e| e.to_string())?;
    Ok(Some(Cached { position, outcomes: values.into_keys().filter(|k| k.first() == Some(&b'o')).collect() }))
}

/// Writes pending changes to a cache.
pub(crate) struct CacheWriter {
    /// The cache, opened at the first write if it was not needed before.
    pub store: Option<SledState>,
    pub dir: PathBuf,
    pub keyring: Option<Arc<Keyring>>,
    pub owner: Identity,
    pub pending: Arc<Pending>,
    /// Keys of the outcomes in the cache, oldest first.
    pub outcomes: BTreeSet<Vec<u8>>,
}

impl CacheWriter {
    /// Runs until the cache fails or `closing` turns true or is gone, then writes what is left. Lets go of `guard` after the cache.
    pub(crate) async fn run(mut self, mut closing: watch::Receiver<bool>, guard: impl Send) {
        let pending = self.pending.clone();
        let mut last = false;
        let mut collect = COLLECT;
        while !last {
            tokio::select! {
                () = pending.changed.notified() => {}
                _ = closing.wait_for(|c| *c) => last = true,
            }
            if !last {
                tokio::select! {
                    () = tokio::time::sleep(collect) => {}
                    _ = closing.wait_for(|c| *c) => last = true,
                }
            }
            let begun = tokio::time::Instant::now();
            let flush = tokio::task::spawn_blocking(move || {
                let done = self.flush();
                if last {
                    // Closing waits for the disk.
                    self.store = None;
                }
                (self, done)
            });
            let Ok((writer, done)) = flush.await else { break };
            self = writer;
            collect = begun.elapsed().saturating_mul(SHARE).max(COLLECT);
            if let Err(e) = done {
                tracing::warn!("the state cache is not used any more, the next start reads snapshot and log: {e}");
                break;
            }
        }
        *pending.dirty.lock() = None;
        drop(guard);
    }

    fn flush(&mut self) -> Result<(), String> {
        let Some(dirty) = self.pending.dirty.lock().as_mut().map(std::mem::take) else { return Ok(()) };
        let Some((world, at, membership)) = dirty.at else { return Ok(()) };
        let store = match self.store.take() {
            Some(store) => store,
            None => SledState::open(&self.dir, self.keyring.clone()).map_err(|e| e.to_string())?,
        };
        let store = self.store.insert(store);
        let (on_disk, live) = store.usage().map_err(|e| e.to_string())?;
        let bloated = on_disk > BLOAT_BYTES && on_disk > live.saturating_mul(BLOAT_FACTOR);
        if dirty.all || bloated {
            store.clear().map_err(|e| e.to_string())?;
            self.outcomes.clear();
            return self.write(
                &world,
                at,
                &membership,
                world.resource_records().map(|r| (r.is_status, key_of(&r), Some(r))),
                world.outcome_records(),
            );
        }
        let resources = dirty.resources.into_iter().map(|((is_status, key), r)| {
            (is_status, resource_key(is_status, &key), r.map(|r| ResourceRecordV1::new(is_status, &r)))
        });
        let outcomes = dirty.outcomes.iter().filter_map(|id| world.outcome_record(id));
        self.write(&world, at, &membership, resources, outcomes)
    }

    fn write(
        &mut self,
        world: &World,
        at: LogId,
        membership: &Membership,
        resources: impl Iterator<Item = (bool, Vec<u8>, Option<ResourceRecordV1>)>,
        outcomes: impl Iterator<Item = OutcomeRecordV1>,
    ) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let meta = record::encode_meta(world, &at, membership).map_err(|e| text(&e))?;
        let mark = StateMark { mark: meta.mark, meta: record::encode_cache(self.owner, meta.meta).map_err(|e| text(&e))? };
        let store = self.store.as_ref().ok_or("it is not open")?;
        // In parts: sled needs several times the memory of what it is given at once.
        let mut part = Part::default();
        for (_, key, record) in resources {
            match record {
                Some(record) => part.put(key, record::encode_resource(&record).map_err(|e| text(&e))?),
                None => part.batch.deletes.push(key),
            }
            part.send_if_large(store)?;
        }
        let outcomes: Vec<_> = outcomes.map(|o| (outcome_key(&o), o)).collect();
        self.outcomes.extend(outcomes.iter().map(|(key, _)| key.clone()));
        let mut forgotten = BTreeSet::new();
        while self.outcomes.len() > REMEMBERED_OUTCOMES {
            forgotten.extend(self.outcomes.pop_first());
        }
        for (key, outcome) in outcomes.into_iter().filter(|(key, _)| !forgotten.contains(key)) {
            part.put(key, record::encode_outcome(&outcome).map_err(|e| text(&e))?);
            part.send_if_large(store)?;
        }
        part.batch.deletes.extend(forgotten);
        part.batch.mark = Some(mark);
        store.apply(part.batch).map_err(|e| text(&e))
    }
}

/// A part of what is written.
struct Part {
    batch: StateBatch,
    bytes: usize,
}

impl Default for Part {
    fn default() -> Self {
        Part { batch: StateBatch { mark: None, puts: Vec::new(), deletes: Vec::new() }, bytes: 0 }
    }
}

impl Part {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.batch.puts.push((key, value));
    }

    fn send_if_large(&mut self, store: &SledState) -> Result<(), String> {
        if self.bytes < PART_BYTES {
            return Ok(());
        }
        store.apply(std::mem::take(self).batch).map_err(|e| e.to_string())
    }
}

fn key_of(r: &ResourceRecordV1) -> Vec<u8> {
    let mut k = vec![b'r', u8::from(r.is_status)];
    for part in [&r.key.0, &r.key.1, &r.key.2] {
        k.extend(part.as_bytes());
        k.push(0);
    }
    k
}
