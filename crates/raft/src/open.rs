//! What a data directory holds when a store starts.

use crate::{
    cache::{self, Cached, Position},
    encryption,
    machine::read_snapshot,
    options::{OpenError, Options, Start},
    seam::uuid_v4,
    settings::Settings,
    types::{Membership, mark},
};
use ikada_store::{ClusterId, DataDir, FileLog, FileLogOptions, Identity, Keyring, LogStore, Mark, SledState, SnapshotStore, StoreError};
use ikada_world::World;
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// Id of the node that makes a cluster. Others get theirs when they join; an id is never used twice.
pub(crate) const FIRST_NODE: u64 = 1;

/// What the data directory held.
pub(crate) struct Opened {
    pub dir: DataDir,
    pub log: Arc<FileLog>,
    pub snapshots: Arc<SnapshotStore>,
    pub position: Position,
    pub cache: Cache,
    /// The cache does not have the position.
    pub refill: bool,
}

/// The state cache.
pub(crate) enum Cache {
    Off,
    /// Open already, or to be opened; and the keys of its outcomes.
    On(Option<SledState>, BTreeSet<Vec<u8>>),
}

pub(crate) fn open_dir(options: &Options, settings: &Settings) -> Result<Opened, OpenError> {
    let fresh = || match options.start {
        Start::Create { .. } => Identity { cluster: ClusterId(uuid_v4(&*options.randomness)), node: FIRST_NODE },
        Start::Join { cluster, node } => Identity { cluster, node },
    };
    let dir = DataDir::open(options.disk.clone(), &options.data_dir, options.keyring(), fresh)?;
    refuse_lost_log(options, &dir)?;
    let sizes = FileLogOptions { segment_bytes: settings.segment_bytes };
    let keyring = dir.keyring();
    let log = FileLog::open(options.disk.clone(), &dir.log(), dir.identity(), sizes, keyring.cloned())?;
    let snapshots = SnapshotStore::open(options.disk.clone(), &dir.snapshots(), dir.identity(), keyring.cloned())?;
    let newest = snapshots.newest();
    let mut cached = None;
    // A new directory has nothing to read; the cache is made when it is first written.
    let mut cache = if options.simulated { Cache::Off } else { Cache::On(None, BTreeSet::new()) };
    if !options.simulated && !dir.created() {
        cache = match open_cache(&dir.state(), dir.identity(), keyring) {
            Some((store, found)) => {
                let found = found.filter(|cached| fits(&log, newest, &cached.position));
                let (position, outcomes) = found.map_or((None, BTreeSet::new()), |c| (Some(c.position), c.outcomes));
                cached = position;
                Cache::On(Some(store), outcomes)
            }
            None => Cache::Off,
        };
    }
    let refill = cached.is_none();
    let position = match (cached, newest) {
        (Some(position), _) => position,
        (None, Some(newest)) => read_snapshot(&snapshots, newest).map_err(|e| as_store_error(e, &dir.snapshots()))?,
        (None, None) => Position { world: Arc::new(World::empty()), last: None, membership: Membership::default() },
    };
    if let Some(at) = position.last.as_ref().map(mark)
        && contradicts(&log, at, &dir.log())?
    {
        log.purge_to(at)?;
        log.sync()?;
    }
    let state = log.state();
    if let Some(purged) = state.purged
        && position.last.as_ref().is_none_or(|l| l.index < purged.index)
    {
        let at = position.last.as_ref().map_or_else(|| "nothing".to_owned(), |l| mark(l).to_string());
        let what = format!("the log begins after {purged}, the newest snapshot has {at}");
        return Err(StoreError::damaged(&dir.snapshots(), 0, what).into());
    }
    encryption::reseal(&dir, &log, &snapshots)?;
    Ok(Opened { dir, log: Arc::new(log), snapshots: Arc::new(snapshots), position, cache, refill })
}

/// Whether the log has another entry where a snapshot ends. Such entries were never committed: the node stopped after it had received the
/// snapshot and before they went. What is known to be committed is the same everywhere: there it is damage.
pub(crate) fn contradicts(log: &FileLog, at: Mark, path: &Path) -> Result<bool, StoreError> {
    let Some(entry) = log.mark_at(at.index).filter(|entry| *entry != at) else { return Ok(false) };
    if log.state().committed.is_some_and(|committed| committed.index >= at.index) {
        return Err(StoreError::damaged(path, 0, format!("entry {entry} was committed, the newest snapshot has {at} in its place")));
    }
    tracing::warn!("{}: entries from {entry} on were never committed, the snapshot at {at} takes their place", path.display());
    Ok(true)
}

/// A log that is gone while what was made from it is there was removed by somebody: with a new one every acknowledged write would be
/// forgotten. The log is made before anything else, so a crash does not leave this behind.
fn refuse_lost_log(options: &Options, dir: &DataDir) -> Result<(), StoreError> {
    let names = |path: &Path| options.disk.list(path).map_err(|e| StoreError::io("read", path, e));
    if dir.created() || names(&dir.log())?.iter().any(|name| name.ends_with(".log")) {
        return Ok(());
    }
    for left in [dir.snapshots(), dir.state()] {
        if !names(&left)?.is_empty() {
            let what = format!("the log is gone, while {} still has what was made from it", left.display());
            return Err(StoreError::damaged(&dir.log(), 0, what));
        }
    }
    Ok(())
}

fn as_store_error(e: std::io::Error, path: &Path) -> StoreError {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>()) {
        Some(e) => e.clone(),
        None => StoreError::damaged(path, 0, e.to_string()),
    }
}

/// Opens the cache and reads it. One that cannot be read is emptied; without one a start only takes longer.
fn open_cache(dir: &Path, owner: Identity, keyring: Option<&Arc<Keyring>>) -> Option<(SledState, Option<Cached>)> {
    let open = || SledState::open(dir, keyring.cloned()).map_err(|e| e.to_string());
    let read = open().and_then(|store| Ok((cache::load(&store, owner)?, store)));
    match read {
        Ok((found, store)) => Some((store, found)),
        Err(e) => {
            tracing::warn!("rebuilding the state cache in {} from snapshot and log: {e}", dir.display());
            match SledState::wipe(dir).map_err(|e| e.to_string()).and_then(|()| open()) {
                Ok(store) => Some((store, None)),
                Err(e) => {
                    tracing::warn!("going on without a state cache in {}: {e}", dir.display());
                    None
                }
            }
        }
    }
}

/// Whether the log goes on where the cache ends, and tells the same history.
fn fits(log: &dyn LogStore, newest: Option<Mark>, position: &Position) -> bool {
    let Some(at) = position.last.as_ref().map(mark) else {
        return false;
    };
    let state = log.state();
    let known = match log.mark_at(at.index) {
        Some(entry) => entry == at,
        None => state.purged == Some(at) || newest == Some(at),
    };
    known && newest.is_none_or(|n| n.index <= at.index) && state.last.is_some_and(|l| at.index <= l.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive,
        machine::write_snapshot,
        membership::Configuration,
        record,
        store::RaftStore,
        types::{Entry, NodeRecord, log_id},
    };
    use ikada_model::{Json, Key, Kind, Labels, Timestamp};
    use ikada_store::HardState;
    use ikada_world::{Command, EntryMeta, Op, Put, Replicator};
    use openraft::EntryPayload;
    use std::collections::BTreeMap;

    async fn fill(options: &Options, from: u64, to: u64) {
        let store = RaftStore::open(options.clone()).await.unwrap();
        for n in from..to {
            let put = Put::new(Key::new(Kind::MeshTimeout, "default", &format!("t-{}", n % 7)), Labels::new(), Json::default());
            store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await.unwrap();
        }
        let delete = Op::Delete { key: Key::new(Kind::MeshTimeout, "default", "t-3"), expect: ikada_world::Expect::Any };
        store.propose(Command { id: store.new_id(), ops: vec![delete] }).await.unwrap();
        store.shutdown().await.unwrap();
    }

    /// What a start finds: whether the cache served it, and the world as text.
    fn found(options: &Options) -> (bool, String) {
        let opened = open_dir(options, &Settings::lan()).unwrap();
        let world = &opened.position.world;
        (!opened.refill, format!("{:?} {:?}", world.resource_records().collect::<Vec<_>>(), world.outcome_records().collect::<Vec<_>>()))
    }

    #[tokio::test]
    async fn a_removed_log_is_refused_and_nothing_is_made_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let options = Options::new(tmp.path().join("a"));
        fill(&options, 0, 5).await;
        let log = tmp.path().join("a/log");
        std::fs::rename(&log, tmp.path().join("kept")).unwrap();
        for _ in 0..2 {
            let e = RaftStore::open(options.clone()).await.map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("the log is gone") && !e.contains('\n'), "{e}");
            assert!(std::fs::read_dir(&log).unwrap().next().is_none());
        }
        std::fs::remove_dir(&log).unwrap();
        std::fs::rename(tmp.path().join("kept"), &log).unwrap();
        let store = RaftStore::open(options).await.unwrap();
        assert_eq!(store.world().len(), 4);
        store.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn the_cache_serves_a_start_only_when_it_is_of_this_history() {
        let tmp = tempfile::tempdir().unwrap();
        let options = Options::new(tmp.path().join("a"));
        fill(&options, 0, 20).await;
        let store = RaftStore::open(options.clone()).await.unwrap();
        let world = store.world();
        let truth = format!("{:?} {:?}", world.resource_records().collect::<Vec<_>>(), world.outcome_records().collect::<Vec<_>>());
        store.shutdown().await.unwrap();
        drop(store);
        assert_eq!(found(&options), (true, truth.clone()));

        // The cache of another cluster; and one of this node which is ahead of the log, as if the log were an older backup.
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        fill(&Options::new(&b), 0, 60).await;
        for foreign in [true, false] {
            if !foreign {
                let copied = std::process::Command::new("cp").arg("-r").arg(a.join("log")).arg(tmp.path().join("log.old")).status();
                assert!(copied.unwrap().success());
                fill(&options, 0, 30).await;
                std::fs::remove_dir_all(a.join("log")).unwrap();
                std::fs::rename(tmp.path().join("log.old"), a.join("log")).unwrap();
            } else {
                std::fs::remove_dir_all(a.join("state")).unwrap();
                std::fs::rename(b.join("state"), a.join("state")).unwrap();
            }
            assert!(!found(&options).0);
            let store = RaftStore::open(options.clone()).await.unwrap();
            let world = store.world();
            let now = format!("{:?} {:?}", world.resource_records().collect::<Vec<_>>(), world.outcome_records().collect::<Vec<_>>());
            assert!(now == truth, "foreign {foreign}: {now}");
            store.shutdown().await.unwrap();
            drop(store);
            assert!(found(&options) == (true, truth.clone()), "foreign {foreign}: it was rebuilt");
        }
    }

    /// A node that stopped between the arrival of a snapshot of term 2 at entry 20 and the end of the entries of term 1 it contradicts.
    fn overtaken(options: &Options, committed: Option<u64>) {
        let put = |name: &str| {
            let put = Put::new(Key::new(Kind::MeshTimeout, "default", name), Labels::new(), Json::default());
            let mut id = [0; 16];
            id.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            Command { id, ops: vec![Op::Put(put)] }
        };
        let owner = Identity { cluster: ClusterId([7; 16]), node: FIRST_NODE };
        let dir = DataDir::open(options.disk.clone(), &options.data_dir, None, || owner).unwrap();
        let nodes = BTreeMap::from([(FIRST_NODE, NodeRecord::default())]);
        let members = Configuration::new(vec![BTreeSet::from([FIRST_NODE])], nodes).unwrap();
        let first = log_id(Mark { index: 0, term: 1 });
        let entry = |index: u64, payload| record::log_record(&Entry { log_id: log_id(Mark { index, term: 1 }), payload }).unwrap();
        let mut entries = vec![entry(0, EntryPayload::Membership(members.clone()))];
        for n in 1..=30 {
            let command = put(&format!("lost-{n}"));
            let bytes = record::encode_command(Timestamp(0), &command).unwrap();
            entries.push(entry(n, EntryPayload::Normal(record::proposal(bytes, Timestamp(0), command))));
        }
        let log = FileLog::open(options.disk.clone(), &dir.log(), owner, FileLogOptions::default(), None).unwrap();
        log.save_hard_state(HardState { term: 2, voted_for: FIRST_NODE, committed: true }).unwrap();
        log.append(&entries).unwrap();
        if let Some(index) = committed {
            log.save_committed(Mark { index, term: 1 }).unwrap();
        }
        log.sync().unwrap();
        let snapshots = SnapshotStore::open(options.disk.clone(), &dir.snapshots(), owner, None).unwrap();
        let world = World::empty().apply(EntryMeta { index: 20, time: Timestamp(0) }, &put("kept")).0;
        write_snapshot(&snapshots, &world, &log_id(Mark { index: 20, term: 2 }), &Membership::new(Some(first), members)).unwrap();
    }

    #[tokio::test]
    async fn entries_that_a_snapshot_contradicts_go() {
        let names = |world: &World| world.resource_records().map(|r| r.key.2.to_string()).collect::<Vec<_>>();
        let tmp = tempfile::tempdir().unwrap();
        for (name, committed) in [("a", None), ("b", Some(19))] {
            let options = Options::new(tmp.path().join(name));
            overtaken(&options, committed);
            for _ in 0..2 {
                let store = RaftStore::open(options.clone()).await.unwrap();
                assert!(store.world().index() > 20);
                assert_eq!(names(&store.world()), ["kept"]);
                store.shutdown().await.unwrap();
            }
        }
        // Neither does the way out of a lost majority bring them back.
        let options = Options::new(tmp.path().join("c"));
        overtaken(&options, Some(19));
        let recovered = archive::recover(&options).unwrap();
        assert_eq!((recovered.resources, recovered.uncommitted), (1, 0));
        // Committed entries that a snapshot contradicts are damage.
        let options = Options::new(tmp.path().join("d"));
        overtaken(&options, Some(20));
        let e = RaftStore::open(options.clone()).await.map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("was committed") && !e.contains('\n'), "{e}");
        assert!(archive::recover(&options).unwrap_err().to_string().contains("was committed"));
    }
}
