use super::*;
use crate::{Clock, OpenError};
use ikada_model::{Json, Key, Kind, Labels};
use ikada_store::{
    DataDir, LogRecord,
    disk::{Disk, ScriptedDisk},
};
use ikada_world::{Applied, Command, Expect, Op, Put, Reason};
use openraft::EntryPayload;
use std::{
    path::Path,
    sync::atomic::{AtomicI64, Ordering},
};

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1_000_000_000, Ordering::Relaxed))
    }
}

fn options(disk: &ScriptedDisk, dir: &str) -> Options {
    let start = Start::Create { address: "h1:5690".to_owned(), name: "h1".to_owned() };
    let clock = Arc::new(TestClock(AtomicI64::new(1_700_000_000_000_000_000)));
    let profile = crate::Profile::Custom(Settings { segment_bytes: 4 << 10, snapshot_every: 40, keep_entries: 10, ..Settings::lan() });
    Options { disk: Arc::new(disk.clone()), start, clock, profile, simulated: true, ..Options::new(dir) }
}

fn put(n: usize) -> Put {
    let spec = Json::from_text(&format!("{{\"x\":\"{}\"}}", "y".repeat(n % 50))).unwrap();
    Put::new(Key::new(Kind::MeshTimeout, "default", &format!("t-{n:03}")), Labels::new(), spec)
}

/// A command that can only succeed once by itself: its second success is that of the idempotency key.
fn create(n: usize) -> Command {
    Command { id: [n as u8; 16], ops: vec![Op::Put(Put { expect: Expect::Absent, ..put(n) })] }
}

async fn fill_store(store: &RaftStore, count: usize) -> Vec<Applied> {
    let mut done = Vec::new();
    for n in 0..count {
        done.push(store.propose(create(n)).await.unwrap());
    }
    let delete = Command { id: store.new_id(), ops: vec![Op::Delete { key: put(1).key, expect: Expect::Exists }] };
    store.propose(delete).await.unwrap();
    done
}

/// Everything of a world that a copy must have.
fn facts(world: &World) -> (u64, u64, String, String) {
    let resources: Vec<_> = world.resource_records().collect();
    let outcomes: Vec<_> = world.outcome_records().collect();
    (world.revision(), world.status_revision(), format!("{resources:?}"), format!("{outcomes:?}"))
}

/// A directory with resources, closed, and what it held.
async fn filled(disk: &ScriptedDisk, dir: &str, count: usize) -> (Vec<u8>, Vec<Applied>, Arc<World>) {
    let store = RaftStore::open(options(disk, dir)).await.unwrap();
    let done = fill_store(&store, count).await;
    let mut archive = Vec::new();
    let saved = store.save(&mut archive).await.unwrap();
    let world = store.world();
    assert_eq!(saved, Saved { index: world.index(), resources: world.len() as u64, bytes: archive.len() as u64 });
    store.shutdown().await.unwrap();
    drop(store);
    disk.process_exit();
    (archive, done, world)
}

/// Opens a copy and checks that it is the world, as a cluster of its own that goes on.
async fn check(disk: &ScriptedDisk, dir: &str, world: &World, done: &[Applied]) {
    let store = RaftStore::open(options(disk, dir)).await.unwrap();
    assert_eq!(facts(&store.world()), facts(world));
    let status = store.status();
    assert_eq!((status.node, status.members.len()), (1, 1));
    assert_eq!((status.members[0].member.address.as_str(), status.members[0].member.name.as_str()), ("h1:5690", "h1"));
    assert!(store.world().index() > world.index());
    for (n, applied) in done.iter().enumerate() {
        assert_eq!(store.propose(create(n)).await.unwrap(), *applied, "a repeated write is done once");
    }
    let again = Command { id: store.new_id(), ops: create(0).ops };
    let Err(ProposeError::Rejected(rejection)) = store.propose(again).await else { panic!("resource 0 is gone") };
    assert_eq!(rejection.reason, Reason::AlreadyExists);
    let applied = store.propose(create(200)).await.unwrap();
    assert!(applied.index > world.index() + 1);
    assert!(store.allocate_node_id().await.unwrap() > world.index());
    store.shutdown().await.unwrap();
    drop(store);
    disk.process_exit();
    // From its own log and snapshot once more.
    let store = RaftStore::open(options(disk, dir)).await.unwrap();
    assert!(store.world().get(&put(200).key).is_some());
    store.shutdown().await.unwrap();
    drop(store);
    disk.process_exit();
}

/// The quick part of [`check`]: it opens, by itself and as the world.
async fn check_content(disk: &ScriptedDisk, dir: &str, world: &World) {
    let store = RaftStore::open(options(disk, dir)).await.unwrap();
    assert_eq!(facts(&store.world()), facts(world));
    assert!(store.world().index() > world.index());
    store.shutdown().await.unwrap();
    drop(store);
    disk.process_exit();
}

#[tokio::test(start_paused = true)]
async fn a_copy_has_everything_and_is_a_cluster_of_its_own() {
    let disk = ScriptedDisk::new(1);
    let (archive, done, world) = filled(&disk, "/a", 60).await;
    let contents = inspect(&mut archive.as_slice()).unwrap();
    assert_eq!((contents.index, contents.resources, contents.node), (world.index(), 59, 1));
    assert_eq!(contents.program, env!("CARGO_PKG_VERSION"));
    let restored = restore(&mut archive.as_slice(), &options(&disk, "/b")).unwrap();
    assert_eq!((restored.index, &restored.from), (world.index() + 1, &contents));
    assert_ne!(restored.cluster, contents.cluster);
    check(&disk, "/b", &world, &done).await;
    for dir in ["/a", "/b"] {
        let before = disk.contents();
        let e = restore(&mut archive.as_slice(), &options(&disk, dir)).unwrap_err().to_string();
        assert!(e.contains("it has data already") && !e.contains('\n'), "{e}");
        assert!(disk.contents() == before);
    }
    let join = Options { start: Start::Join { cluster: restored.cluster, node: 5 }, ..options(&disk, "/c") };
    assert!(restore(&mut archive.as_slice(), &join).unwrap_err().to_string().contains("cannot join"));
    assert!(names(&disk, "/c").is_empty());
}

fn names(disk: &ScriptedDisk, dir: &str) -> Vec<String> {
    disk.list(Path::new(dir)).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_is_not_as_it_was_written_is_refused() {
    let disk = ScriptedDisk::new(1);
    let (good, ..) = filled(&disk, "/a", 5).await;
    let refused = |bytes: &[u8], what: &str| {
        let e = restore(&mut &bytes[..], &options(&disk, "/b")).map(|_| ()).unwrap_err().to_string();
        assert!(!e.is_empty() && !e.contains('\n'), "{what}: {e}");
        assert!(names(&disk, "/b").is_empty(), "{what}: something was written");
        e
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(&bad, &format!("byte {at}"));
        refused(&good[..at], &format!("cut at {at}"));
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(refused(&longer, "longer").contains("something follows its end"));
    assert!(refused(b"PK\x03\x04 and so on, and so on", "a zip").contains("not an archive"));
    let mut newer = good.clone();
    newer[8] = 9;
    assert!(refused(&newer, "newer").contains("has version 9, this program reads up to 1"));
    let mut huge = good[..16].to_vec();
    huge.extend([0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(refused(&huge, "huge").contains("impossible head"));
}

/// The bytes of version 1. A failure means that archives of earlier versions cannot be read any more.
#[test]
fn the_layout_is_frozen() {
    let mut world = World::empty();
    for n in 0..2u64 {
        let entry = ikada_world::EntryMeta { index: n + 1, time: Timestamp(9) };
        world = world.apply(entry, &create(n as usize)).0;
    }
    let identity = Identity { cluster: ClusterId([7; 16]), node: 2 };
    let at = log_id(Mark { index: 2, term: 1 });
    let archive = Archive { world: Arc::new(world), at, members: Membership::default(), identity, time: Timestamp(5), program: "1.2".to_owned() };
    let mut bytes = Vec::new();
    archive.write(&mut bytes).unwrap();
    let golden = include_bytes!("../../tests/data/archive-1.bin");
    if bytes != golden {
        let at = bytes.iter().zip(golden).position(|(a, b)| a != b);
        panic!("differs at {at:?}: {} bytes, {} in the file", bytes.len(), golden.len());
    }
    let (contents, mark, world) = read(&mut golden.as_slice()).unwrap();
    assert_eq!((contents.cluster, contents.node, contents.index, contents.time, contents.resources), (identity.cluster, 2, 2, Timestamp(5), 2));
    assert_eq!((mark, contents.program.as_str()), (Mark { index: 2, term: 1 }, "1.2"));
    assert!(world.get(&put(0).key).is_some() && world.get(&put(1).key).is_some());
}

#[tokio::test(start_paused = true)]
async fn power_loss_while_restoring_leaves_nothing_that_a_node_opens() {
    let (archive, done, world) = filled(&ScriptedDisk::new(1), "/a", 10).await;
    for stop in 0.. {
        let disk = ScriptedDisk::new(stop);
        disk.lose_power_after(stop);
        let finished = restore(&mut archive.as_slice(), &options(&disk, "/b")).is_ok();
        disk.power_cycle();
        if !names(&disk, "/b").iter().any(|n| n == "IDENTITY") {
            assert!(!finished, "operation {stop}");
            if names(&disk, "/b").iter().any(|n| n == "MAKING") {
                let Err(OpenError::Store(e)) = RaftStore::open(options(&disk, "/b")).await.map(|_| ()) else { panic!("it opened") };
                assert!(e.to_string().contains("run the same command again"), "{e}");
                disk.process_exit();
            }
            restore(&mut archive.as_slice(), &options(&disk, "/b")).unwrap_or_else(|e| panic!("operation {stop}: {e}"));
        }
        check_content(&disk, "/b", &world).await;
        if finished {
            assert!(stop > 20);
            check(&disk, "/b", &world, &done).await;
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn recovery_takes_the_whole_log_and_keeps_the_old_data() {
    let disk = ScriptedDisk::new(1);
    let (_, mut done, _) = filled(&disk, "/a", 60).await;
    let opts = options(&disk, "/a");
    // Two entries that this node never knew to be committed.
    let old = DataDir::open(opts.disk.clone(), Path::new("/a"), None, || panic!("it exists")).unwrap();
    let former = old.identity();
    let log = FileLog::open(opts.disk.clone(), &old.log(), former, FileLogOptions { segment_bytes: 4 << 10 }, None).unwrap();
    let last = log.state().last.unwrap();
    let tail = |n: u64| {
        let index = last.index + n;
        let command = create(100 + n as usize);
        let bytes = record::encode_command(Timestamp(7), &command).unwrap();
        let entry = crate::types::Entry {
            log_id: log_id(Mark { index, term: last.term }),
            payload: EntryPayload::Normal(record::proposal(bytes, Timestamp(7), command)),
        };
        record::log_record(&entry).unwrap()
    };
    let records: Vec<LogRecord> = vec![tail(1), tail(2)];
    log.append(&records).unwrap();
    log.sync().unwrap();
    drop(log);

    let e = recover(&opts).unwrap_err().to_string();
    assert!(e.contains("in use by another process") && !e.contains('\n'), "{e}");
    drop(old);
    let recovered = recover(&opts).unwrap();
    assert_eq!((recovered.former, recovered.resources), (former, 61));
    assert!(recovered.uncommitted >= 2, "{recovered:?}");
    assert_eq!(recovered.index, last.index + 3);
    assert_ne!(recovered.cluster, former.cluster);
    assert_eq!(recovered.kept, Path::new("/a/before-recovery-20231114T221320Z"));
    disk.process_exit();
    let kept = DataDir::open(opts.disk.clone(), &recovered.kept, None, || panic!("it exists")).unwrap();
    assert_eq!(kept.identity(), former);
    let log = FileLog::open(opts.disk.clone(), &kept.log(), former, FileLogOptions { segment_bytes: 4 << 10 }, None).unwrap();
    assert_eq!(log.state().last.unwrap().index, last.index + 2);
    drop((log, kept));
    disk.process_exit();

    let store = RaftStore::open(opts.clone()).await.unwrap();
    done.truncate(60);
    for n in [101, 102] {
        assert_eq!(store.world().get(&put(n).key).unwrap().version, last.index + n as u64 - 100);
    }
    for (n, applied) in done.iter().enumerate() {
        assert_eq!(store.propose(create(n)).await.unwrap(), *applied);
    }
    assert_eq!(store.cluster_id(), recovered.cluster);
    store.shutdown().await.unwrap();

    let nowhere = recover(&options(&disk, "/nowhere")).unwrap_err().to_string();
    assert!(nowhere.contains("/nowhere") && !nowhere.contains('\n'), "{nowhere}");
    assert!(names(&disk, "/").iter().all(|n| n != "nowhere"));
}

#[tokio::test(start_paused = true)]
async fn power_loss_while_recovering_keeps_the_old_directory_or_can_go_on() {
    let disk = ScriptedDisk::new(7);
    let (_, done, world) = filled(&disk, "/a", 8).await;
    let mut resumed = 0;
    for stop in 0.. {
        let disk = disk.copy();
        disk.lose_power_after(stop);
        let finished = recover(&options(&disk, "/a")).is_ok();
        disk.power_cycle();
        if !names(&disk, "/a").iter().any(|n| n == "IDENTITY") {
            assert!(!finished, "operation {stop}");
            let e = RaftStore::open(options(&disk, "/a")).await.map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("run the same command again"), "operation {stop}: {e}");
            let e = restore(&mut [].as_slice(), &options(&disk, "/a")).map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("not an archive"), "{e}");
            disk.process_exit();
            recover(&options(&disk, "/a")).unwrap_or_else(|e| panic!("operation {stop}: {e}"));
            resumed += 1;
        } else if !finished {
            // The old directory, or the new one: both have everything.
            recover(&options(&disk, "/a")).unwrap_or_else(|e| panic!("operation {stop}: {e}"));
        }
        disk.process_exit();
        check_content(&disk, "/a", &world).await;
        if finished {
            check(&disk, "/a", &world, &done).await;
            break;
        }
    }
    assert!(resumed > 5, "{resumed} times between the directories");
}

#[tokio::test(start_paused = true)]
async fn copies_of_and_into_encrypted_directories() {
    let disk = ScriptedDisk::new(1);
    let random = std::array::from_fn(|i| (i as u8).wrapping_mul(151).rotate_left(i as u32 % 8) ^ 0x5a);
    let keys = ikada_store::Keys::parse(&ikada_store::Keys::line("k1", random).unwrap()).unwrap();
    let sealed = |dir: &str| Options { encryption: Some(keys.clone()), ..options(&disk, dir) };
    let (archive, done, world) = filled(&disk, "/plain", 8).await;
    restore(&mut archive.as_slice(), &sealed("/b")).unwrap();
    recover(&sealed("/b")).unwrap();
    disk.process_exit();
    let shows = |dir: &str| {
        let secret = |bytes: &[u8]| bytes.windows(11).any(|w| w == b"MeshTimeout");
        disk.contents().iter().filter(|(path, bytes)| path.starts_with(dir) && secret(bytes)).count()
    };
    assert!(shows("/plain") > 0);
    assert_eq!(shows("/b"), 0);
    let e = recover(&options(&disk, "/b")).unwrap_err().to_string();
    assert!(e.contains("is encrypted with the key \"k1\"") && !e.contains('\n'), "{e}");
    disk.process_exit();
    let store = RaftStore::open(sealed("/b")).await.unwrap();
    assert_eq!(facts(&store.world()), facts(&world));
    assert_eq!(store.propose(create(0)).await.unwrap(), done[0]);
    store.shutdown().await.unwrap();
}

#[test]
fn nothing_that_is_read_panics() {
    use proptest::{collection::vec, prelude::*};
    let golden = include_bytes!("../../tests/data/archive-1.bin");
    proptest!(|(cut in 0usize..400, tail in vec(any::<u8>(), 0..300))| {
        let mut bytes = golden[..cut.min(golden.len())].to_vec();
        bytes.extend(tail);
        if bytes != golden {
            prop_assert!(inspect(&mut bytes.as_slice()).is_err());
        }
    });
}
