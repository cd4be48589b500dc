use super::*;
use crate::{
    disk::{RealDisk, ScriptedDisk},
    seal::testing::keyring,
};

fn id() -> Identity {
    Identity { cluster: ClusterId([3; 16]), node: 1 }
}
fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta { mark: Mark { index, term: 1 }, meta: vec![1, 2, index as u8] }
}
fn fill(store: &SnapshotStore, index: u64, records: usize) -> Result<()> {
    let mut w = store.create(&meta(index))?;
    for i in 0..records {
        w.push(&vec![i as u8; i * 1000])?;
    }
    w.finish()
}
fn count(store: &SnapshotStore, mark: Mark) -> Result<usize> {
    let mut r = store.read(mark)?;
    let mut n = 0;
    while let Some(record) = r.next_record()? {
        assert_eq!(record, vec![n as u8; n * 1000]);
        n += 1;
    }
    Ok(n)
}

#[test]
fn round_trip_and_the_newest_two_stay() {
    let tmp = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), tmp.path(), id(), None).unwrap();
    assert_eq!(store.newest(), None);
    for index in [5, 9, 12] {
        fill(&store, index, 80).unwrap();
    }
    drop(store.create(&meta(20)).unwrap());
    let store = SnapshotStore::open(Arc::new(RealDisk), tmp.path(), id(), None).unwrap();
    assert_eq!(store.newest(), Some(meta(12).mark));
    assert_eq!(*store.read(meta(12).mark).unwrap().meta(), meta(12));
    assert_eq!(count(&store, meta(12).mark).unwrap(), 80);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 2);
}

fn ring(ids: &[&str]) -> Option<Arc<Keyring>> {
    (!ids.is_empty()).then(|| keyring(ids))
}

#[test]
fn every_flipped_byte_is_noticed() {
    for ids in [&[][..], &["a"]] {
        let tmp = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(Arc::new(RealDisk), tmp.path(), id(), ring(ids)).unwrap();
        fill(&store, 5, 3).unwrap();
        let path = tmp.path().join(name(meta(5).mark));
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).filter(|at| *at < 300 || at % 7 == 0) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let err = count(&store, meta(5).mark).unwrap_err();
            assert!(matches!(err, StoreError::Damaged { .. } | StoreError::NewerFormat { .. }), "byte {at}: {err}");
        }
        std::fs::write(&path, &good[..good.len() - 30]).unwrap();
        assert!(count(&store, meta(5).mark).unwrap_err().to_string().contains("the store is damaged"));
        let other = SnapshotStore::open(Arc::new(RealDisk), tmp.path(), Identity { node: 2, ..id() }, ring(ids)).unwrap();
        std::fs::write(&path, &good).unwrap();
        assert!(matches!(count(&other, meta(5).mark), Err(StoreError::Foreign { .. })));
    }
}

/// With checksums made right again, so that only the encryption can notice.
#[test]
fn changed_and_swapped_frames_of_a_sealed_snapshot_are_noticed() {
    let tmp = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), tmp.path(), id(), ring(&["a"])).unwrap();
    let fill = |index| {
        let mut w = store.create(&meta(index)).unwrap();
        // Three chunks of the same size.
        (0..3u8).for_each(|i| w.push(&vec![i; CHUNK_BYTES]).unwrap());
        w.finish().unwrap();
        std::fs::read(tmp.path().join(name(meta(index).mark))).unwrap()
    };
    let (good, other) = (fill(5), fill(6));
    assert!(!good.windows(64).any(|w| w == [1; 64]), "a record can be read in the file");
    let seed = crc32c::crc32c(&good[..HEADER_BYTES]);
    let first = HEADER_BYTES + BLOCK_BYTES;
    let len = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let chunk = first + FRAME_BYTES + len(&good, first);
    let next = chunk + FRAME_BYTES + len(&good, chunk);
    let fix = |bytes: &mut [u8], at: usize| {
        let end = at + FRAME_BYTES + len(bytes, at);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[at..at + 8]), &bytes[at + FRAME_BYTES..end]);
        bytes[at + 8..at + FRAME_BYTES].copy_from_slice(&crc.to_le_bytes());
    };
    let noticed = |bytes: &[u8], what: &str| {
        std::fs::write(tmp.path().join(name(meta(5).mark)), bytes).unwrap();
        let read = store.read(meta(5).mark).and_then(|mut r| {
            while r.next_record()?.is_some() {}
            Ok(())
        });
        let err = read.unwrap_err().to_string();
        assert!(err.contains("the encryption of a frame does not match"), "{what}: {err}");
    };
    let mut bad = good.clone();
    bad[chunk + 100] ^= 1;
    fix(&mut bad, chunk);
    noticed(&bad, "a flipped bit");
    let mut bad = good.clone();
    bad[chunk + 4] = END;
    fix(&mut bad, chunk);
    noticed(&bad, "another kind");
    let mut bad = good.clone();
    let (one, two) = (good[chunk..next].to_vec(), good[next..2 * next - chunk].to_vec());
    bad[chunk..next].copy_from_slice(&two);
    bad[next..2 * next - chunk].copy_from_slice(&one);
    noticed(&bad, "two chunks in another order");
    let mut bad = good.clone();
    bad[chunk..next].copy_from_slice(&other[chunk..next]);
    fix(&mut bad, chunk);
    noticed(&bad, "a chunk of another snapshot");
}

#[test]
fn keys_of_snapshots_rotate_and_a_missing_one_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let open = |ids: &[&str]| SnapshotStore::open(Arc::new(RealDisk), tmp.path(), id(), ring(ids)).unwrap();
    let set = |ids: &[Option<&str>]| ids.iter().map(|id| id.map(str::to_owned)).collect::<BTreeSet<_>>();
    let files = || std::fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().path()).map(|p| (p.clone(), std::fs::read(p).unwrap())).collect::<BTreeSet<_>>();
    let store = open(&[]);
    fill(&store, 5, 10).unwrap();
    fill(&store, 9, 10).unwrap();
    assert_eq!((store.key_ids().unwrap(), store.reseal().unwrap()), (set(&[None]), 0));
    let store = open(&["a"]);
    assert_eq!(count(&store, meta(9).mark).unwrap(), 10, "what is not sealed can be read");
    assert_eq!(store.reseal().unwrap(), 2);
    assert_eq!((store.key_ids().unwrap(), store.newest()), (set(&[Some("a")]), Some(meta(9).mark)));
    assert_eq!(files().len(), 1, "the older one is gone, nothing reads it");
    assert_eq!(count(&store, meta(9).mark).unwrap(), 10);
    let before = files();
    for (ids, expected) in [(&[][..], "no keys are configured"), (&["b"], "not among the configured keys (b)")] {
        let store = open(ids);
        for err in [store.read(meta(9).mark).err(), store.reseal().err().or(store.read(meta(9).mark).err())] {
            let message = err.unwrap().to_string();
            assert!(message.contains("is encrypted with the key \"a\"") && message.contains(expected), "{message}");
        }
        assert_eq!(files(), before);
    }
    let store = open(&["b", "a"]);
    fill(&store, 12, 10).unwrap();
    assert_eq!(store.key_ids().unwrap(), set(&[Some("a"), Some("b")]));
    assert_eq!(store.reseal().unwrap(), 1);
    assert_eq!((store.key_ids().unwrap(), store.reseal().unwrap()), (set(&[Some("b")]), 0));
    assert_eq!(count(&open(&["b"]), meta(12).mark).unwrap(), 10);
}

#[test]
fn a_rotation_of_snapshots_that_loses_power_at_any_operation_keeps_the_newest() {
    for stop in 0.. {
        let disk = ScriptedDisk::new(stop);
        let dir = Path::new("/s");
        disk.create_dir_all(dir).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let open = |ids: &[&str]| SnapshotStore::open(Arc::new(disk.clone()), dir, id(), ring(ids));
        let store = open(&["a"]).unwrap();
        fill(&store, 5, 10).unwrap();
        fill(&store, 9, 10).unwrap();
        disk.lose_power_after(stop);
        let done = open(&["b", "a"]).and_then(|store| store.reseal());
        disk.power_cycle();
        let store = open(&["b", "a"]).unwrap();
        assert_eq!(store.newest(), Some(meta(9).mark), "stop {stop}");
        assert_eq!(count(&store, meta(9).mark).unwrap(), 10, "stop {stop}");
        store.reseal().unwrap();
        disk.power_cycle();
        assert_eq!(count(&open(&["b"]).unwrap(), meta(9).mark).unwrap(), 10, "stop {stop}");
        if done.is_ok() {
            return;
        }
    }
}

#[test]
fn power_loss_at_every_operation_keeps_a_good_snapshot() {
    for stop in 0.. {
        let disk = ScriptedDisk::new(stop);
        let dir = Path::new("/s");
        disk.create_dir_all(dir).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let store = SnapshotStore::open(Arc::new(disk.clone()), dir, id(), None).unwrap();
        fill(&store, 5, 10).unwrap();
        disk.lose_power_after(stop);
        let done = fill(&store, 9, 10).is_ok();
        disk.power_cycle();
        let store = SnapshotStore::open(Arc::new(disk), dir, id(), None).unwrap();
        let newest = store.newest().unwrap();
        assert_eq!(count(&store, newest).unwrap(), 10);
        if done {
            assert_eq!(newest.index, 9);
            return;
        }
    }
}
