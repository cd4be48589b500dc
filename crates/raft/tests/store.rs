//! The store as the control plane uses it, on a real disk.

use ikada_model::{Json, Key, Kind, Labels, Timestamp};
use ikada_raft::{Clock, OpenError, Options, Profile, RaftStore, Settings};
use ikada_world::{Applied, Command, Expect, Op, OpResult, ProposeError, Put, Reason, Replicator, World};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::broadcast::error::RecvError;

fn key(name: &str) -> Key {
    Key::new(Kind::MeshTimeout, "default", name)
}
fn put(name: &str, size: usize) -> Put {
    Put::new(key(name), Labels::new(), Json::from_text(&format!("{{\"x\":\"{}\"}}", "y".repeat(size))).unwrap())
}
fn command(store: &RaftStore, put: Put) -> Command {
    Command { id: store.new_id(), ops: vec![Op::Put(put)] }
}
async fn write(store: &RaftStore, name: &str) -> Result<Applied, ProposeError> {
    store.propose(command(store, put(name, 10))).await
}
fn names(world: &World) -> Vec<String> {
    world.list(Kind::MeshTimeout).map(|r| r.name().to_owned()).collect()
}
/// Everything that must be the same after a restart.
fn facts(world: &World) -> (u64, u64, String, String) {
    let resources: Vec<_> = world.resource_records().collect();
    let outcomes: Vec<_> = world.outcome_records().collect();
    (world.revision(), world.status_revision(), format!("{resources:?}"), format!("{outcomes:?}"))
}
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // The cache is nobody's truth, the lock file holds a pid, temporary files are scratch.
            if path.is_dir() && !path.ends_with("state") {
                todo.push(path);
            } else if path.is_file() && !path.ends_with("LOCK") && path.extension().is_none_or(|e| e != "tmp") {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

#[tokio::test]
async fn reopen_finds_everything() {
    let tmp = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let store = RaftStore::open(Options { clock: Arc::new(TestClock(AtomicI64::new(1000))), ..Options::new(tmp.path()) }).await.unwrap();
    assert!(*store.leadership().borrow());
    let opened = start.elapsed();
    assert!(opened < Duration::from_secs(2), "a node alone does not wait for an election timeout: {opened:?}");
    let cluster = store.cluster_id();
    for i in 0..20 {
        let applied = write(&store, &format!("t-{i:02}")).await.unwrap();
        assert_eq!(applied.results, [OpResult::Created]);
        assert_eq!(store.world().get(&key(&format!("t-{i:02}"))).unwrap().version, applied.index);
    }
    assert_eq!(store.world().get(&key("t-00")).unwrap().creation_time, Timestamp(1000), "the clock of the leader");
    let delete = Command { id: store.new_id(), ops: vec![Op::Delete { key: key("t-05"), expect: Expect::Exists }] };
    store.propose(delete).await.unwrap();
    let before = facts(&store.world());
    store.shutdown().await.unwrap();
    assert!(matches!(write(&store, "late").await, Err(ProposeError::Unavailable(_))));
    assert!(!*store.leadership().borrow());
    drop(store);

    // Twice: by then with the cache, and then without it.
    for wipe in [false, true, false] {
        if wipe {
            fs::remove_dir_all(tmp.path().join("state")).unwrap();
        }
        let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
        assert_eq!(store.cluster_id(), cluster);
        assert_eq!(facts(&store.world()), before);
        assert_eq!(store.linearizable().await.unwrap().len(), 19);
        tokio::time::sleep(Duration::from_millis(600)).await;
        store.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn idempotency_and_rejection_survive_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    let create = command(&store, Put { expect: Expect::Absent, ..put("a", 1) });
    let again = command(&store, Put { expect: Expect::Absent, ..put("a", 1) });
    let first = store.propose(create.clone()).await.unwrap();
    assert_eq!(store.propose(create.clone()).await.unwrap(), first);
    let Err(ProposeError::Rejected(rejection)) = store.propose(again.clone()).await else { panic!("a second create was accepted") };
    assert_eq!(rejection.reason, Reason::AlreadyExists);
    tokio::time::sleep(Duration::from_millis(600)).await;
    store.shutdown().await.unwrap();
    drop(store);
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    assert_eq!(store.propose(create).await.unwrap(), first);
    store.propose(Command { id: store.new_id(), ops: vec![Op::Delete { key: key("a"), expect: Expect::Any }] }).await.unwrap();
    assert!(matches!(store.propose(again).await, Err(ProposeError::Rejected(_))), "the first answer stays the answer");
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_syncs_and_see_what_they_wrote() {
    let tmp = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    let mut bus = store.subscribe();
    let mut tasks = Vec::new();
    for w in 0..32 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for i in 0..20 {
                let name = format!("w{w:02}-{i:02}");
                let applied = write(&store, &name).await.unwrap();
                assert_eq!(store.world().get(&key(&name)).unwrap().version, applied.index, "visible before it is answered");
                assert!(store.linearizable().await.unwrap().get(&key(&name)).is_some());
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.world().len(), 640);
    let mut last = 0;
    for _ in 0..640 {
        let changes = bus.recv().await.unwrap();
        assert!(changes.index > last, "in log order");
        assert_eq!(changes.policy.len(), 1);
        last = changes.index;
    }
    assert_eq!(last, store.world().index());
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_slow_subscriber_is_told_that_it_lagged() {
    let tmp = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    let mut bus = store.subscribe();
    for round in 0..9 {
        let writes = (0..512).map(|i| {
            let store = store.clone();
            async move { write(&store, &format!("r{round}-{i}")).await.map(|_| ()) }
        });
        futures::future::try_join_all(writes).await.unwrap();
    }
    assert!(matches!(bus.recv().await, Err(RecvError::Lagged(_))));
    assert!(bus.recv().await.is_ok());
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn only_one_process_opens_a_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    let err = RaftStore::open(Options::new(tmp.path())).await.err().unwrap().to_string();
    assert!(err.contains("in use by another process") && !err.contains('\n'), "{err}");
    store.shutdown().await.unwrap();
    drop(store);
    RaftStore::open(Options::new(tmp.path())).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test]
async fn too_large_a_command_is_refused_before_the_log() {
    let tmp = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    let index = store.world().index();
    for size in [3 << 20, 10 << 20] {
        let err = store.propose(command(&store, put("big", size))).await.unwrap_err();
        assert!(matches!(err, ProposeError::TooLarge { .. }), "{err}");
    }
    assert_eq!(store.world().index(), index);
    store.propose(command(&store, put("fits", 1_900_000))).await.unwrap();
    store.shutdown().await.unwrap();
    drop(store);
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    assert!(store.world().get(&key("fits")).is_some());
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn snapshots_purge_the_log_and_damage_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let options = || {
        let settings = Settings { snapshot_every: 50, keep_entries: 10, segment_bytes: 16 << 10, ..Settings::lan() };
        Options { profile: Profile::Custom(settings), ..Options::new(tmp.path()) }
    };
    let store = RaftStore::open(options()).await.unwrap();
    for i in 0..400 {
        store.propose(command(&store, put(&format!("t-{:02}", i % 40), 200 + i))).await.unwrap();
    }
    let count = |name: &str| fs::read_dir(tmp.path().join(name)).unwrap().count();
    // Building and purging go on behind the writes.
    for _ in 0..50 {
        if count("snapshots") == 2 && count("log") < 8 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        write(&store, "t-00").await.unwrap();
    }
    assert_eq!(count("snapshots"), 2);
    assert!(count("log") < 12, "{} segments of 16 KiB for 400 writes", count("log"));
    let before = facts(&store.world());
    store.shutdown().await.unwrap();
    drop(store);
    fs::remove_dir_all(tmp.path().join("state")).unwrap();
    let store = RaftStore::open(options()).await.unwrap();
    assert_eq!(facts(&store.world()), before, "from snapshot and log alone");
    store.shutdown().await.unwrap();
    drop(store);

    let mut snapshots: Vec<_> = fs::read_dir(tmp.path().join("snapshots")).unwrap().map(|e| e.unwrap().path()).collect();
    snapshots.sort();
    let mut segments: Vec<_> = fs::read_dir(tmp.path().join("log"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    segments.sort();
    for (path, at) in [(snapshots.last().unwrap(), 300), (segments.first().unwrap(), 300), (&tmp.path().join("IDENTITY"), 30)] {
        fs::remove_dir_all(tmp.path().join("state")).ok();
        let good = fs::read(path).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(path, &bad).unwrap();
        let before = files(tmp.path());
        let err = RaftStore::open(options()).await.err().unwrap_or_else(|| panic!("{} was damaged and opened", path.display()));
        assert!(matches!(err, OpenError::Store(_)), "{err}");
        assert!(err.to_string().contains("the store is damaged") && !err.to_string().contains('\n'), "{err}");
        assert!(files(tmp.path()) == before, "something was overwritten");
        fs::write(path, &good).unwrap();
    }
    fs::create_dir_all(tmp.path().join("state")).unwrap();
    let store = RaftStore::open(options()).await.unwrap();
    assert_eq!(facts(&store.world()), before);
    assert_eq!(names(&store.world()).len(), 40);
    store.shutdown().await.unwrap();
}
