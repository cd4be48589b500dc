//! Keeps the state cache near the applied world, off the path of writes.
//!
//! What an entry changed is noted by key, so a resource that changes a hundred times a second is written once. The cache holds the whole
//! state of one position or it is thrown away: snapshot and log have everything.

use crate::{
    record::{self, RecordError, WorldBuilder},
    types::{LogId, Membership, log_id},
};
use ikada_model::Key;
use ikada_store::{Mark, StateBatch, StateMark, StateStore, StoreError};
use ikada_world::{
    ChangeSet, Command, CommandId, REMEMBERED_OUTCOMES, World,
    record::{OutcomeRecordV1, ResourceRecordV1},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;

/// How long changes are collected before they are written. There is no timer while nothing changes.
const COLLECT: Duration = Duration::from_millis(250);
/// sled never gives space back by itself: above both, it is written anew.
const BLOAT_FACTOR: u64 = 8;
const BLOAT_BYTES: u64 = 256 << 20;

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
    resources: HashMap<(bool, Key), Option<ResourceRecordV1>>,
    outcomes: HashMap<CommandId, OutcomeRecordV1>,
    at: Option<(Arc<World>, LogId, Membership)>,
}

/// What the cache does not have yet.
#[derive(Default)]
pub(crate) struct Pending {
    dirty: Mutex<Dirty>,
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
    /// Notes one applied entry; `command` when it carried one.
    pub(crate) fn note(&self, world: &Arc<World>, at: LogId, membership: &Membership, command: Option<&Command>, changes: &ChangeSet) {
        let mut dirty = self.dirty.lock();
        for (is_status, list) in [(false, &changes.policy), (true, &changes.status)] {
            for change in list {
                let Some(key) = change.key() else { continue };
                let record = change.after.as_ref().map(|r| ResourceRecordV1::new(is_status, r));
                dirty.resources.insert((is_status, key.clone()), record);
            }
        }
        if let Some(outcome) = command.and_then(|c| world.outcome_record(&c.id)) {
            dirty.outcomes.insert(outcome.id, outcome);
        }
        dirty.at = Some((world.clone(), at, membership.clone()));
        drop(dirty);
        self.changed.notify_one();
    }

    /// The whole world has to be written.
    pub(crate) fn note_all(&self, world: &Arc<World>, at: LogId, membership: &Membership) {
        *self.dirty.lock() = Dirty { all: true, at: Some((world.clone(), at, membership.clone())), ..Dirty::default() };
        self.changed.notify_one();
    }
}

/// Reads the cache. `None` when it is empty.
pub(crate) fn load(store: &dyn StateStore) -> Result<Option<(Position, BTreeSet<Vec<u8>>)>, String> {
    let text = |e: StoreError| e.to_string();
    let Some((mark, map)) = store.load().map_err(text)? else { return Ok(None) };
    let build = || -> Result<Position, RecordError> {
        let (revision, status_revision, membership) = record::decode_meta(&mark.meta)?;
        let mut builder = WorldBuilder::default();
        map.values().try_for_each(|bytes| builder.push(bytes))?;
        let world = Arc::new(builder.build(mark.mark.index, revision, status_revision)?);
        Ok(Position { world, last: Some(log_id(mark.mark)), membership })
    };
    let position = build().map_err(|e| e.to_string())?;
    Ok(Some((position, map.into_keys().filter(|k| k.first() == Some(&b'o')).collect())))
}

/// Writes pending changes to a cache.
pub(crate) struct CacheWriter {
    pub store: Arc<dyn StateStore>,
    pub pending: Arc<Pending>,
    /// Keys of the outcomes in the cache, oldest first.
    pub outcomes: BTreeSet<Vec<u8>>,
}

impl CacheWriter {
    /// Runs until the cache fails. `blocking`: the cache waits for a disk, so call it off the runtime.
    pub(crate) async fn run(mut self, blocking: bool) {
        let pending = self.pending.clone();
        loop {
            pending.changed.notified().await;
            tokio::time::sleep(COLLECT).await;
            let done = if blocking {
                let joined = tokio::task::spawn_blocking(move || {
                    let done = self.flush();
                    (self, done)
                });
                match joined.await {
                    Ok((writer, done)) => {
                        self = writer;
                        done
                    }
                    Err(_) => return,
                }
            } else {
                self.flush()
            };
            if let Err(e) = done {
                tracing::warn!("the state cache is not used any more, the next start reads snapshot and log: {e}");
                return;
            }
        }
    }

    pub(crate) fn flush(&mut self) -> Result<(), String> {
        let dirty = std::mem::take(&mut *self.pending.dirty.lock());
        let Some((world, at, membership)) = dirty.at else { return Ok(()) };
        let (on_disk, live) = self.store.usage().map_err(|e| e.to_string())?;
        let bloated = on_disk > BLOAT_BYTES && on_disk > live.saturating_mul(BLOAT_FACTOR);
        if dirty.all || bloated {
            self.store.clear().map_err(|e| e.to_string())?;
            self.outcomes.clear();
            return self.write(&world, at, &membership, world.resource_records().map(|r| (r.is_status, key_of(&r), Some(r))), world.outcome_records());
        }
        let resources = dirty.resources.into_iter().map(|((is_status, key), r)| (is_status, resource_key(is_status, &key), r));
        self.write(&world, at, &membership, resources, dirty.outcomes.into_values())
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
        let mark = StateMark { mark: Mark { index: meta.mark.index, term: meta.mark.term }, meta: meta.meta };
        let mut batch = StateBatch { mark, puts: Vec::new(), deletes: Vec::new() };
        for (_, key, record) in resources {
            match record {
                Some(record) => batch.puts.push((key, record::encode_resource(&record).map_err(|e| text(&e))?)),
                None => batch.deletes.push(key),
            }
        }
        for outcome in outcomes {
            let key = outcome_key(&outcome);
            self.outcomes.insert(key.clone());
            batch.puts.push((key, record::encode_outcome(&outcome).map_err(|e| text(&e))?));
        }
        while self.outcomes.len() > REMEMBERED_OUTCOMES {
            let Some(oldest) = self.outcomes.pop_first() else { break };
            batch.puts.retain(|(k, _)| *k != oldest);
            batch.deletes.push(oldest);
        }
        self.store.apply(batch).map_err(|e| text(&e))
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
