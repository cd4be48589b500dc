use super::*;
use crate::{
    disk::{RealDisk, ScriptedDisk},
    seal::testing::keyring,
    types::ClusterId,
};
use proptest::prelude::*;

const SMALL: FileLogOptions = FileLogOptions { segment_bytes: 2048 };

fn id() -> Identity {
    Identity { cluster: ClusterId([5; 16]), node: 1 }
}
fn record(index: u64, term: u64, size: usize) -> LogRecord {
    LogRecord { mark: Mark { index, term }, payload: Bytes::from(vec![index as u8; size]) }
}
fn scripted(seed: u64) -> ScriptedDisk {
    let disk = ScriptedDisk::new(seed);
    disk.create_dir_all(Path::new("/log")).unwrap();
    disk
}
fn open(disk: &ScriptedDisk) -> Result<FileLog> {
    open_with(disk, None)
}
fn open_with(disk: &ScriptedDisk, keyring: Option<Arc<Keyring>>) -> Result<FileLog> {
    FileLog::open(Arc::new(disk.clone()), Path::new("/log"), id(), SMALL, keyring)
}
fn indices(log: &FileLog) -> Vec<(u64, u64)> {
    log.read(0..10_000, usize::MAX).unwrap().iter().map(|r| (r.mark.index, r.mark.term)).collect()
}
fn first_index(log: &FileLog) -> u64 {
    log.state().purged.map_or(0, |p| p.index + 1)
}
fn all(log: &FileLog) -> Vec<LogRecord> {
    let first = first_index(log);
    log.read(first..u64::MAX, usize::MAX).unwrap()
}

#[test]
fn everything_is_found_again() {
    let tmp = tempfile::tempdir().unwrap();
    let open = || FileLog::open(Arc::new(RealDisk), tmp.path(), id(), SMALL, None).unwrap();
    let log = open();
    assert_eq!(log.state(), LogState::default());
    let hard = HardState { term: 3, voted_for: 1, committed: true };
    log.save_hard_state(hard).unwrap();
    for i in 0..100 {
        log.append(&[record(i, 3, 100)]).unwrap();
    }
    log.append(&[record(100, 4, 5000)]).unwrap();
    log.save_committed(Mark { index: 60, term: 3 }).unwrap();
    log.truncate_from(99).unwrap();
    log.append(&[record(99, 5, 0), record(100, 5, 1)]).unwrap();
    log.sync().unwrap();
    let files = || std::fs::read_dir(tmp.path()).unwrap().count();
    let before = files();
    log.purge_to(Mark { index: 50, term: 3 }).unwrap();
    log.sync().unwrap();
    assert!(files() < before, "{} of {before} segments left", files());
    let state = log.state();
    assert_eq!(state.last, Some(Mark { index: 100, term: 5 }));
    let entries = all(&log);
    assert_eq!(entries.len(), 50);
    drop(log);
    let log = open();
    assert_eq!(log.state(), state);
    assert_eq!(log.state().hard, Some(hard));
    assert_eq!(all(&log), entries);
    assert_eq!(log.mark_at(50), None);
    assert_eq!(log.mark_at(99), Some(Mark { index: 99, term: 5 }));
    assert_eq!(log.read(60..90, 250).unwrap().len(), 2);
    assert_eq!(log.read(60..90, 1).unwrap().len(), 1, "at least one");
}

#[test]
fn purge_beyond_the_end_restarts_the_log() {
    let disk = scripted(1);
    let log = open(&disk).unwrap();
    log.append(&[record(0, 1, 10), record(1, 1, 10)]).unwrap();
    log.purge_to(Mark { index: 70, term: 4 }).unwrap();
    assert_eq!(log.state().last, Some(Mark { index: 70, term: 4 }));
    log.append(&[record(71, 4, 10)]).unwrap();
    log.sync().unwrap();
    disk.power_cycle();
    let log = open(&disk).unwrap();
    assert_eq!(log.state().last, Some(Mark { index: 71, term: 4 }));
    assert_eq!(log.read(71..80, 1000).unwrap().len(), 1);
}

#[test]
fn order_and_size_are_checked() {
    let log = open(&scripted(1)).unwrap();
    assert!(matches!(log.append(&[record(1, 1, 1)]), Err(StoreError::Invalid(_))));
    log.append(&[record(0, 2, 1)]).unwrap();
    assert!(matches!(log.append(&[record(1, 1, 1)]), Err(StoreError::Invalid(_))));
    assert!(matches!(log.append(&[record(1, 2, 1), record(3, 2, 1)]), Err(StoreError::Invalid(_))));
    assert!(matches!(log.append(&[record(1, 2, MAX_RECORD_BYTES + 1)]), Err(StoreError::TooLarge { .. })));
    log.append(&[record(1, 2, MAX_RECORD_BYTES)]).unwrap();
    assert_eq!(indices(&log), [(0, 2), (1, 2)]);
}

/// What a run of operations leaves in memory.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: Vec<(u64, u64)>,
    hard: Option<HardState>,
    purged: Option<Mark>,
}

impl Model {
    fn of(log: &FileLog) -> Model {
        let entries = all(log).iter().map(|r| (r.mark.index, r.mark.term)).collect();
        Model { entries, hard: log.state().hard, purged: log.state().purged }
    }
}

#[test]
fn damage_before_the_durable_index_is_refused_and_left_alone() {
    for ring in [None, Some(keyring(&["a"]))] {
        let disk = scripted(1);
        let open = || open_with(&disk, ring.clone());
        let log = open().unwrap();
        let mut ends = Vec::new();
        for i in 0..5 {
            log.append(&[record(i, 1, 64)]).unwrap();
            log.sync().unwrap();
            ends.push(log.inner.lock().tail as usize);
        }
        drop(log);
        let file = Path::new("/log/0000000000000000.log");
        for at in HEADER_BYTES..ends[3] {
            disk.corrupt(file, at, 0x40).unwrap();
            let damaged = disk.contents();
            let err = open().err();
            assert!(matches!(err, Some(StoreError::Damaged { .. })), "byte {at}: {err:?}");
            assert_eq!(disk.contents(), damaged, "byte {at}");
            disk.corrupt(file, at, 0x40).unwrap();
        }
        for at in 0..HEADER_BYTES {
            disk.corrupt(file, at, 0x40).unwrap();
            let err = open().err().map(|e| e.to_string()).unwrap_or_default();
            assert!(err.contains("damaged") || err.contains("has format"), "byte {at}: {err}");
            disk.corrupt(file, at, 0x40).unwrap();
        }
        assert_eq!(indices(&open().unwrap()).len(), 5);
    }
}

/// What went bad while the log is open is never handed out.
#[test]
fn an_entry_that_cannot_be_read_any_more_is_damage() {
    for ring in [None, Some(keyring(&["a"]))] {
        let disk = scripted(1);
        let log = open_with(&disk, ring).unwrap();
        for i in 0..5 {
            log.append(&[record(i, 1, 64)]).unwrap();
        }
        log.sync().unwrap();
        let at = log.inner.lock().slots[2].offset as usize;
        for byte in [8, 16, 24, 32, 40, 48, 60, 100] {
            disk.corrupt(Path::new("/log/0000000000000000.log"), at + byte, 2).unwrap();
            assert_eq!(log.read(0..2, usize::MAX).unwrap().len(), 2);
            let err = log.read(2..3, usize::MAX).unwrap_err();
            assert!(matches!(&err, StoreError::Damaged { offset, .. } if *offset == at as u64), "byte {byte}: {err}");
            disk.corrupt(Path::new("/log/0000000000000000.log"), at + byte, 2).unwrap();
        }
        assert_eq!(log.read(2..3, usize::MAX).unwrap()[0], record(2, 1, 64));
    }
}

#[test]
fn damage_in_a_completed_segment_and_a_missing_segment() {
    let disk = scripted(1);
    let log = open(&disk).unwrap();
    for i in 0..40 {
        log.append(&[record(i, 1, 200)]).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    let first = Path::new("/log/0000000000000000.log");
    disk.corrupt(first, 700, 1).unwrap();
    assert!(matches!(open(&disk).err(), Some(StoreError::Damaged { .. })));
    disk.corrupt(first, 700, 1).unwrap();
    disk.remove_file(first).unwrap();
    let err = open(&disk).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(err.contains("the segment before it is missing"), "{err}");
}

/// What is left has no entry that could show the gap.
#[test]
fn a_missing_segment_before_one_without_entries_is_refused() {
    let disk = scripted(1);
    let log = open(&disk).unwrap();
    log.append(&[record(0, 1, 200), record(1, 1, 200)]).unwrap();
    log.save_committed(Mark { index: 1, term: 1 }).unwrap();
    for term in 1..150 {
        log.save_hard_state(HardState { term, voted_for: 1, committed: true }).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    let names = || disk.list(Path::new("/log")).unwrap().into_iter().filter(|n| n.ends_with(".log")).collect::<Vec<_>>();
    let mut before = names();
    before.sort();
    assert!(before.len() > 2, "{before:?}");
    assert_eq!(indices(&open(&disk).unwrap()), [(0, 1), (1, 1)]);
    disk.remove_file(&Path::new("/log").join(&before[before.len() - 2])).unwrap();
    let err = open(&disk).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(err.contains("were committed and are gone"), "{err}");
    assert_eq!(names().len(), before.len() - 1, "what is left stays");
}

#[test]
fn another_identity_is_refused() {
    let disk = scripted(1);
    drop(open(&disk).unwrap());
    let other = Identity { node: 2, ..id() };
    let err = FileLog::open(Arc::new(disk), Path::new("/log"), other, SMALL, None).err();
    assert!(matches!(err, Some(StoreError::Foreign { .. })), "{err:?}");
}

#[test]
fn full_disk_is_not_fatal_and_a_failed_sync_is() {
    let disk = scripted(1);
    let log = open(&disk).unwrap();
    log.append(&[record(0, 1, 100)]).unwrap();
    disk.set_capacity(Some(disk.used()));
    assert!(matches!(log.prepare(), Err(StoreError::Full { .. })));
    let mut next = 1;
    let err = loop {
        match log.append(&[record(next, 1, 100)]) {
            Ok(()) => next += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(err, StoreError::Full { .. }), "{err}");
    assert!(next > 5, "the reserved space is used up first");
    log.sync().unwrap();
    disk.set_capacity(None);
    log.prepare().unwrap();
    log.append(&[record(next, 1, 100)]).unwrap();
    log.sync().unwrap();
    disk.process_exit();
    let log = open(&disk).unwrap();
    assert_eq!(indices(&log).len() as u64, next + 1);

    disk.fail_syncs(true);
    log.append(&[record(next + 1, 1, 1)]).unwrap();
    assert!(matches!(log.sync(), Err(StoreError::Poisoned { .. })));
    disk.fail_syncs(false);
    assert!(matches!(log.sync(), Err(StoreError::Poisoned { .. })));
    assert!(matches!(log.append(&[record(next + 2, 1, 1)]), Err(StoreError::Poisoned { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any bytes in the place of a segment: an error or a log, never a panic.
    #[test]
    fn garbage_segments_never_panic(garbage in proptest::collection::vec(any::<u8>(), 0..600), keep in 0usize..500, sealed in any::<bool>()) {
        let disk = scripted(1);
        let ring = sealed.then(|| keyring(&["a"]));
        let log = open_with(&disk, ring.clone()).unwrap();
        log.append(&[record(0, 1, 20), record(1, 1, 20)]).unwrap();
        log.sync().unwrap();
        drop(log);
        let path = Path::new("/log/0000000000000000.log");
        let mut bytes = disk.contents().get(path).cloned().unwrap_or_default();
        bytes.truncate(keep);
        bytes.extend(garbage);
        disk.open(path, OpenMode::Create).unwrap().write_at(&bytes, 0).unwrap();
        if let Ok(log) = open_with(&disk, ring) {
            let _ = log.read(0..10, 1000);
        }
    }
}

/// One step of a random run.
#[derive(Clone, Debug)]
enum Step {
    Append(u8, u16),
    Truncate(u8),
    Purge(u8),
    Vote,
    Sync,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..6, prop_oneof![Just(10u16), Just(200), Just(600)]).prop_map(|(n, size)| Step::Append(n, size)),
        1 => (0u8..4).prop_map(Step::Truncate),
        1 => (0u8..12).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        2 => Just(Step::Sync),
        1 => Just(Step::Restart),
    ]
}

impl Model {
    fn last(&self) -> Option<Mark> {
        self.entries.last().map(|(index, term)| Mark { index: *index, term: *term }).or(self.purged)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// After a power loss at any point of any run the log is exactly what it was after some change that was not before the last sync.
    #[test]
    fn a_power_loss_keeps_a_prefix_of_the_changes(
        steps in proptest::collection::vec(step(), 1..40), stop in 0u64..90, seed in any::<u64>(),
        more in prop_oneof![Just(10usize), Just(200)], sealed in any::<bool>()
    ) {
        let disk = scripted(seed);
        let ring = sealed.then(|| keyring(&["a"]));
        let open = || open_with(&disk, ring.clone());
        let mut log = open().unwrap();
        disk.lose_power_after(stop);
        let mut model = Model::default();
        // Every state since the last sync, in order.
        let mut possible = vec![model.clone()];
        let mut term = 1;
        for step in steps {
            let done = match step {
                Step::Append(n, size) => {
                    let next = model.last().map_or(0, |m| m.index + 1);
                    let batch: Vec<_> = (next..next + u64::from(n)).map(|i| record(i, term, size.into())).collect();
                    for r in &batch {
                        model.entries.push((r.mark.index, r.mark.term));
                        possible.push(model.clone());
                    }
                    log.append(&batch)
                }
                Step::Truncate(n) => {
                    let keep = model.entries.len().saturating_sub(n.into());
                    let from = model.entries.get(keep).map(|e| e.0);
                    model.entries.truncate(keep);
                    possible.push(model.clone());
                    from.map_or(Ok(()), |from| log.truncate_from(from))
                }
                Step::Purge(n) => {
                    let upto = model.entries.get(usize::from(n)).map(|(index, term)| Mark { index: *index, term: *term });
                    if let Some(mark) = upto {
                        model.entries.retain(|e| e.0 > mark.index);
                        model.purged = Some(mark);
                        possible.push(model.clone());
                    }
                    upto.map_or(Ok(()), |mark| log.purge_to(mark))
                }
                Step::Vote => {
                    term += 1;
                    model.hard = Some(HardState { term, voted_for: 1, committed: false });
                    possible.push(model.clone());
                    model.hard.map_or(Ok(()), |hard| log.save_hard_state(hard))
                }
                Step::Sync => log.sync().map(|()| possible = vec![model.clone()]),
                // Opening syncs what it found.
                Step::Restart => open().map(|again| {
                    log = again;
                    possible = vec![model.clone()];
                }),
            };
            if done.is_err() {
                break;
            }
            prop_assert_eq!(&Model::of(&log), &model);
        }
        drop(log);
        disk.power_cycle();
        let log = open().unwrap();
        let found = Model::of(&log);
        prop_assert!(possible.contains(&found), "{:?} is none of {:?}", found, possible);
        let next = found.last().map_or(0, |m| m.index + 1);
        // And it goes on from there: nothing of what was cut comes back behind new records.
        log.append(&[record(next, term, more)]).unwrap();
        log.sync().unwrap();
        let mut model = found;
        model.entries.push((next, term));
        disk.power_cycle();
        prop_assert_eq!(Model::of(&open().unwrap()), model);
    }
}

#[path = "seal_tests.rs"]
mod sealed;
