//! Data directories of older formats, and what a newer version and an interrupted upgrade do with them.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{OpenError, Options, Profile, RaftStore, Settings};
use ikada_store::{
    FORMAT_VERSION,
    disk::{Disk, OpenMode, ScriptedDisk},
};
use ikada_world::{Command, Op, Put, Replicator, World};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

const GOLDEN: [&str; 2] = ["format-1", "format-1-log-only"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Path within the directory to contents.
fn golden(name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let (root, mut todo, mut found) = (data(name), vec![data(name)], BTreeMap::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.insert(path.strip_prefix(&root).unwrap().to_path_buf(), fs::read(path).unwrap());
            }
        }
    }
    assert!(found.len() >= 6);
    found
}

fn on_disk(files: &BTreeMap<PathBuf, Vec<u8>>, seed: u64) -> ScriptedDisk {
    let disk = ScriptedDisk::new(seed);
    for (name, bytes) in files {
        let path = Path::new("/data").join(name);
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = disk.open(&path, OpenMode::Create).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(path.parent().unwrap()).unwrap();
    }
    disk
}

async fn open(disk: &ScriptedDisk) -> Result<Arc<RaftStore>, OpenError> {
    let profile = Profile::Custom(Settings { segment_bytes: 8 << 10, ..Settings::lan() });
    RaftStore::open(Options { disk: Arc::new(disk.clone()), profile, simulated: true, ..Options::new("/data") }).await
}

/// All resources and outcomes, in the form of the files beside the directories.
fn facts(w: &World) -> String {
    let mut text = format!("revision {} status revision {}\n", w.revision(), w.status_revision());
    for r in w.resource_records() {
        text += &format!(
            "{} {:?} {:?} {} {} {} {:?} {} {}\n",
            r.is_status, r.key, r.labels, r.creation_time, r.modification_time, r.version, r.owner, r.spec, r.status
        );
    }
    for o in w.outcome_records() {
        text += &format!("{o:?}\n");
    }
    text
}

fn identity(disk: &ScriptedDisk) -> String {
    String::from_utf8(disk.contents()[Path::new("/data/IDENTITY")].clone()).unwrap()
}

#[tokio::test]
async fn directories_of_format_1_open_with_everything_in_them() {
    let expected = fs::read_to_string(data("format-1.txt")).unwrap();
    for name in GOLDEN {
        let disk = on_disk(&golden(name), 1);
        assert!(identity(&disk).contains("format 1\n"));
        let store = open(&disk).await.unwrap();
        assert_eq!(facts(&store.world()), expected, "{name}");
        assert_eq!(store.cluster_id().to_string(), "25303b46-515c-4772-bd88-939ea9b4bfca");
        assert!(identity(&disk).contains(&format!("format {FORMAT_VERSION}\n")));
        // It goes on from there, in the same segment.
        let put = Put::new(Key::new(Kind::MeshTimeout, "default", "new"), Labels::new(), Json::default());
        store.propose(Command { id: [200; 16], ops: vec![Op::Put(put)] }).await.unwrap();
        let after = facts(&store.world());
        store.shutdown().await.unwrap();
        drop(store);
        disk.power_cycle();
        let store = open(&disk).await.unwrap();
        assert_eq!(facts(&store.world()), after, "{name}");
        store.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn an_upgrade_that_is_interrupted_anywhere_is_done_by_the_next_start() {
    let expected = fs::read_to_string(data("format-1.txt")).unwrap();
    for name in GOLDEN {
        let files = golden(name);
        let mut between = 0;
        for stop in 0.. {
            let disk = on_disk(&files, stop);
            disk.lose_power_after(stop);
            let first = open(&disk).await;
            let done = first.is_ok();
            if let Ok(store) = first {
                store.shutdown().await.ok();
                drop(store);
                tokio::task::yield_now().await;
            }
            disk.power_cycle();
            let format = identity(&disk);
            between += u64::from(format.contains("format 1\n"));
            assert!(!done || format.contains("format 2\n"), "{name} stop {stop}");
            let store = open(&disk).await.unwrap_or_else(|e| panic!("{name} stop {stop}: {e}"));
            assert_eq!(facts(&store.world()), expected, "{name} stop {stop}");
            assert!(identity(&disk).contains("format 2\n"));
            store.shutdown().await.unwrap();
            if done {
                break;
            }
        }
        assert!(between >= 3, "{name}: it was interrupted before the end of the upgrade {between} times");
    }
}

#[tokio::test]
async fn what_is_damaged_is_not_upgraded() {
    for name in GOLDEN {
        let files = golden(name);
        for (path, bytes) in files.iter().filter(|(path, _)| !path.starts_with("snapshots") || path.to_string_lossy().contains("31-")) {
            // In the middle of what was durable.
            let at = bytes.len().min(2000) / 2;
            let mut bad = files.clone();
            bad.get_mut(path).unwrap()[at] ^= 0x20;
            let disk = on_disk(&bad, 1);
            let before = disk.contents();
            let e = open(&disk).await.map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("the store is damaged") && e.contains("ikadactl cluster remove") && !e.contains('\n'), "{e}");
            let mut after = disk.contents();
            after.retain(|path, _| !path.ends_with("LOCK"));
            assert!(after == before, "{name} {}: something was changed", path.display());
        }
    }
}

#[tokio::test]
async fn data_of_a_newer_version_is_refused_and_both_versions_are_named() {
    let disk = on_disk(&golden("format-1"), 1);
    let store = open(&disk).await.unwrap();
    store.shutdown().await.unwrap();
    drop(store);
    disk.process_exit();
    let newer = identity(&disk).replace(&format!("format {FORMAT_VERSION}\n"), &format!("format {}\n", FORMAT_VERSION + 1));
    let newer = newer.replace("program ", "program 7.");
    let body = newer.split("crc32c").next().unwrap();
    let text = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
    disk.open(Path::new("/data/IDENTITY"), OpenMode::Create).unwrap().write_at(text.as_bytes(), 0).unwrap();
    let before = disk.contents();
    let e = open(&disk).await.map(|_| ()).unwrap_err().to_string();
    let (next, this) = (FORMAT_VERSION + 1, env!("CARGO_PKG_VERSION"));
    assert!(e.contains(&format!("has format {next}, written by ikada 7.{this}, this is ikada {this}, which reads up to {FORMAT_VERSION}")), "{e}");
    assert!(disk.contents() == before);
}
