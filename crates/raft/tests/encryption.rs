//! Encryption at rest under the whole node.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{Encryption, Keys, OpenError, Options, Profile, RaftStore, Settings};
use ikada_store::{StoreError, disk::ScriptedDisk};
use ikada_world::{Command, Expect, Op, ProposeError, Put, Replicator};
use std::{path::Path, sync::Arc};

const SECRET: &str = "the text of a secret";

fn keys(ids: &[&str]) -> Option<Keys> {
    let line = |id: &&str| {
        let first = id.bytes().fold(7u8, |sum, b| sum.wrapping_mul(31).wrapping_add(b));
        Keys::line(id, std::array::from_fn(|i| first.wrapping_add((i as u8).wrapping_mul(37)))).unwrap() + "\n"
    };
    (!ids.is_empty()).then(|| Keys::parse(&ids.iter().map(line).collect::<String>()).unwrap())
}

fn key(n: u64) -> Key {
    Key::new(Kind::MeshTimeout, "default", &format!("t-{n:04}"))
}

async fn write(store: &RaftStore, n: u64) -> Result<(), ProposeError> {
    let spec = Json::from_text(&format!("{{\"x\":\"{SECRET} {}\"}}", "y".repeat((n as usize * 53) % 600))).unwrap();
    let put = Put { expect: Expect::Absent, ..Put::new(key(n), Labels::new(), spec) };
    let mut id = [1; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    store.propose(Command { id, ops: vec![Op::Put(put)] }).await.map(|_| ())
}

fn settings() -> Profile {
    Profile::Custom(Settings { snapshot_every: 6, keep_entries: 2, segment_bytes: 3 << 10, ..Settings::lan() })
}

async fn open(disk: &ScriptedDisk, ids: &[&str]) -> Result<Arc<RaftStore>, OpenError> {
    let options = Options { disk: Arc::new(disk.clone()), profile: settings(), encryption: keys(ids), simulated: true, ..Options::new("/data") };
    RaftStore::open(options).await
}

async fn drop_store(store: Arc<RaftStore>) {
    store.shutdown().await.ok();
    drop(store);
    tokio::task::yield_now().await;
}

fn strings(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// What each start is given; the first one has no keys.
const LIVES: [&[&str]; 5] = [&[], &["a"], &["b", "a"], &["b"], &["c", "b"]];

#[tokio::test]
async fn a_node_is_encrypted_and_its_keys_rotate() {
    let disk = ScriptedDisk::new(1);
    let mut n = 0;
    for ids in LIVES {
        let store = open(&disk, ids).await.unwrap_or_else(|e| panic!("{ids:?}: {e}"));
        assert_eq!(store.world().len() as u64, n);
        let now = store.encryption().unwrap();
        let expected = Encryption {
            sealing: ids.first().map(|id| (*id).to_owned()),
            configured: strings(ids),
            in_use: strings(&ids[..ids.len().min(1)]),
            plain: ids.is_empty(),
        };
        assert_eq!(now, expected, "as soon as it serves");
        for _ in 0..20 {
            write(&store, n).await.unwrap();
            n += 1;
        }
        drop_store(store).await;
        let readable = disk.contents().values().any(|bytes| bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()));
        assert_eq!(readable, ids.is_empty(), "{ids:?}");
        disk.power_cycle();
    }
    assert!(n >= 100);
}

#[tokio::test]
async fn a_missing_key_is_told_and_nothing_is_changed() {
    let disk = ScriptedDisk::new(1);
    let store = open(&disk, &["a"]).await.unwrap();
    for n in 0..20 {
        write(&store, n).await.unwrap();
    }
    drop_store(store).await;
    disk.process_exit();
    let before = disk.contents();
    for (ids, expected) in [(&[][..], "store.encryption.keyFile"), (&["b"], "which is not among the configured keys (b): add its line to the key file")] {
        let e = open(&disk, ids).await.map(|_| ()).unwrap_err();
        assert!(matches!(&e, OpenError::Store(StoreError::Locked { id, .. }) if id == "a"), "{e}");
        assert!(e.to_string().contains(expected) && !e.to_string().contains('\n'), "{e}");
        let mut after = disk.contents();
        after.retain(|path, _| !path.ends_with("LOCK"));
        let mut before = before.clone();
        before.retain(|path, _| !path.ends_with("LOCK"));
        assert!(after == before, "{ids:?}");
    }
    assert_eq!(open(&disk, &["a"]).await.unwrap().world().len(), 20);
}

#[tokio::test]
async fn a_rotation_without_space_is_an_alarm_until_it_is_done() {
    let disk = ScriptedDisk::new(1);
    let store = open(&disk, &["a"]).await.unwrap();
    for n in 0..20 {
        write(&store, n).await.unwrap();
    }
    assert_eq!(store.status().alarms, [""; 0]);
    drop_store(store).await;
    disk.process_exit();
    // Room for the next segment, not for the copies.
    disk.set_capacity(Some(disk.used() + (1 << 10)));
    let store = open(&disk, &["b", "a"]).await.unwrap();
    assert_eq!(store.world().len(), 20);
    assert!(store.encryption().unwrap().in_use.contains(&"a".to_owned()));
    let alarms = store.status().alarms;
    assert!(alarms.iter().any(|a| a.contains("some data is encrypted with the key \"a\"") && a.contains("restart")), "{alarms:?}");
    drop_store(store).await;
    disk.process_exit();
    disk.set_capacity(None);
    let store = open(&disk, &["b", "a"]).await.unwrap();
    assert_eq!((store.status().alarms, store.encryption().unwrap().in_use), (vec![], strings(&["b"])));
    assert_eq!(store.world().len(), 20);
}

/// Encryption is turned on, and power is lost at any operation of that start and the writes after it.
#[tokio::test]
async fn power_loss_at_every_operation_with_sealing_loses_no_acknowledged_write() {
    let mut longest = 0;
    for stop in 0.. {
        let disk = ScriptedDisk::new(stop);
        let store = open(&disk, &[]).await.unwrap();
        for n in 0..8 {
            write(&store, n).await.unwrap();
        }
        drop_store(store).await;
        disk.process_exit();
        disk.lose_power_after(stop);
        let mut acknowledged: Vec<u64> = (0..8).collect();
        if let Ok(store) = open(&disk, &["a"]).await {
            for n in 8..20 {
                match write(&store, n).await {
                    Ok(()) => acknowledged.push(n),
                    Err(ProposeError::Rejected(r)) => panic!("{r}"),
                    Err(_) => break,
                }
            }
            drop_store(store).await;
        }
        let done = acknowledged.len() == 20;
        disk.power_cycle();
        // A rotation right after it.
        let store = open(&disk, &["b", "a"]).await.unwrap_or_else(|e| panic!("stop {stop}: {e}"));
        for n in &acknowledged {
            assert!(store.world().get(&key(*n)).is_some(), "stop {stop}: write {n} of {acknowledged:?} is missing");
        }
        assert_eq!(store.encryption().unwrap().in_use, ["b"], "stop {stop}");
        write(&store, 100).await.unwrap();
        drop_store(store).await;
        disk.power_cycle();
        let store = open(&disk, &["b"]).await.unwrap_or_else(|e| panic!("stop {stop}: {e}"));
        assert!(store.world().get(&key(100)).is_some());
        drop_store(store).await;
        if done {
            break;
        }
        longest = longest.max(stop);
    }
    assert!(longest > 60, "the power went off at {longest} different operations");
}

/// On a real disk, with the state cache: it is made anew under the key, and serves the next start.
#[tokio::test]
async fn no_file_of_a_node_shows_a_secret() {
    let tmp = tempfile::tempdir().unwrap();
    let start = |ids: &[&str]| RaftStore::open(Options { profile: settings(), encryption: keys(ids), ..Options::new(tmp.path()) });
    let files = || {
        let (mut todo, mut found) = (vec![tmp.path().to_path_buf()], Vec::new());
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { todo.push(path) } else { found.push((std::fs::read(&path).unwrap(), path)) }
            }
        }
        found
    };
    let shown = |below: &str| {
        let shows = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
        files().iter().any(|(bytes, path)| path.starts_with(tmp.path().join(below)) && shows(bytes))
    };
    for (ids, n) in [(&[][..], 0), (&["a"], 10), (&["a"], 20), (&["b", "a"], 30)] {
        let store = start(ids).await.unwrap();
        assert_eq!(store.world().len(), n);
        for n in n..n + 10 {
            write(&store, n as u64).await.unwrap();
        }
        store.shutdown().await.unwrap();
        drop(store);
        for below in ["log", "state"] {
            assert_eq!(shown(below), ids.is_empty(), "{ids:?} {below}");
        }
        assert_eq!(shown(""), ids.is_empty(), "{ids:?}");
    }
    assert!(Path::new(&tmp.path().join("state/db")).exists());
}
