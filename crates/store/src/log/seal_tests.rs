//! A sealed log: what it shows, what it refuses, and how its keys change.

use super::*;
use crate::log::format::parse_record;
use std::collections::BTreeSet;

const SEGMENT: &str = "/log/0000000000000000.log";

fn ring(ids: &[&str]) -> Option<Arc<Keyring>> {
    (!ids.is_empty()).then(|| keyring(ids))
}

fn set(ids: &[Option<&str>]) -> BTreeSet<Option<String>> {
    ids.iter().map(|id| id.map(str::to_owned)).collect()
}

fn text(index: u64) -> LogRecord {
    LogRecord { mark: Mark { index, term: 1 }, payload: Bytes::from(format!("a clear text {index:>60}")) }
}

fn fill(log: &FileLog, range: Range<u64>) {
    for i in range {
        log.append(&[text(i)]).unwrap();
        log.save_hard_state(HardState { term: 1, voted_for: 1, committed: i % 2 == 0 }).unwrap();
    }
    log.sync().unwrap();
}

/// Offsets and lengths of the records of a segment.
fn records(bytes: &[u8]) -> Vec<Range<usize>> {
    let (mut at, mut found) = (HEADER_BYTES + 128, Vec::new());
    while let Some(record) = parse_record(&bytes[at..], seed(id())) {
        found.push(at..at + record.total);
        at += record.total;
    }
    found
}

/// Makes the checksum of the record at `at` right again, as somebody who changes a file on purpose would.
fn fix(bytes: &mut [u8], at: usize) {
    let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed(id()), &bytes[at..at + 40]), &bytes[at + 48..at + 48 + len]);
    bytes[at + 40..at + 44].copy_from_slice(&crc.to_le_bytes());
}

fn overwrite(disk: &ScriptedDisk, path: &str, bytes: &[u8]) {
    disk.open(Path::new(path), OpenMode::Create).unwrap().write_at(bytes, 0).unwrap();
}

fn bytes_of(disk: &ScriptedDisk, path: &str) -> Vec<u8> {
    disk.contents()[Path::new(path)].clone()
}

#[test]
fn nothing_can_be_read_in_the_files_and_everything_is_found_again() {
    let disk = scripted(1);
    let ring = ring(&["a"]);
    let log = open_with(&disk, ring.clone()).unwrap();
    fill(&log, 0..60);
    let before = all(&log);
    assert!(disk.contents().len() > 3, "several segments");
    for (path, bytes) in disk.contents() {
        assert!(!bytes.windows(10).any(|w| w == b"clear text"), "{}", path.display());
    }
    assert_eq!(log.key_ids(), set(&[Some("a")]));
    let state = log.state();
    drop(log);
    disk.power_cycle();
    let log = open_with(&disk, ring).unwrap();
    assert_eq!(all(&log), before);
    assert_eq!(log.state(), state);
    assert_eq!(before.len(), 60);
    assert_eq!(before[7], text(7));
}

/// With checksums made right again, so that only the encryption can notice.
#[test]
fn changed_swapped_and_replayed_records_are_noticed() {
    let disk = scripted(1);
    let ring = ring(&["a"]);
    let log = open_with(&disk, ring.clone()).unwrap();
    fill(&log, 0..4);
    drop(log);
    let good = bytes_of(&disk, SEGMENT);
    let at = records(&good);
    assert_eq!(at.len(), 8);
    let refused = |bytes: &[u8], what: &str| {
        overwrite(&disk, SEGMENT, bytes);
        let before = disk.contents();
        let err = open_with(&disk, ring.clone()).err();
        assert!(matches!(&err, Some(StoreError::Damaged { what, .. }) if what.contains("encryption")), "{what}: {err:?}");
        assert_eq!(disk.contents(), before);
    };
    for byte in (at[2].start..at[2].end).filter(|b| ![0, 2, 3, 4, 5, 6, 7].contains(&(b - at[2].start))) {
        // Magic, version and length decide where a record is; sequence and checksum whether it is one; the rest is padding.
        let within = byte - at[2].start;
        if (8..16).contains(&within) || (40..48).contains(&within) || within >= 48 + 28 + 73 || within == 1 {
            continue;
        }
        let mut bad = good.clone();
        bad[byte] ^= 0x04;
        fix(&mut bad, at[2].start);
        refused(&bad, &format!("byte {within} of a record"));
    }
    // The vote that was not committed as one that was.
    let mut bad = good.clone();
    bad[at[1].start + 1] ^= 1;
    fix(&mut bad, at[1].start);
    refused(&bad, "kind of a record");
    // The payload of one entry in the place of another's.
    let mut bad = good.clone();
    bad.copy_within(at[0].start + 48..at[0].end, at[2].start + 48);
    fix(&mut bad, at[2].start);
    refused(&bad, "payload of another record");
    // A whole record in another place, with the sequence number that is expected there.
    let mut bad = good.clone();
    bad.copy_within(at[0].clone(), at[2].start);
    bad[at[2].start + 8..at[2].start + 16].copy_from_slice(&good[at[2].start + 8..at[2].start + 16]);
    fix(&mut bad, at[2].start);
    refused(&bad, "another record");
    // A record of an unsealed log in a sealed segment.
    let mut plain = Vec::new();
    let parsed = parse_record(&good[at[2].clone()], seed(id())).unwrap();
    write_record(&mut plain, seed(id()), (parsed.seq, parsed.synced), parsed.kind, &[7; 101], None).unwrap();
    assert_eq!(plain.len(), at[2].len());
    let mut bad = good.clone();
    bad[at[2].clone()].copy_from_slice(&plain);
    refused(&bad, "record that is not sealed");
    overwrite(&disk, SEGMENT, &good);
    assert_eq!(all(&open_with(&disk, ring).unwrap()).len(), 4);
}

#[test]
fn a_segment_of_another_place_is_refused() {
    let disk = scripted(1);
    let ring = ring(&["a"]);
    let log = open_with(&disk, ring.clone()).unwrap();
    fill(&log, 0..60);
    drop(log);
    let second = "/log/0000000000000001.log";
    let (first, good) = (bytes_of(&disk, SEGMENT), bytes_of(&disk, second));
    // Records of one segment behind the header of another, as an attacker would join them.
    let mut bad = good.clone();
    bad[..HEADER_BYTES].copy_from_slice(&first[..HEADER_BYTES]);
    bad[40..48].copy_from_slice(&1u64.to_le_bytes());
    let crc = crc32c::crc32c(&bad[..60]);
    bad[60..64].copy_from_slice(&crc.to_le_bytes());
    let block = crc32c::crc32c_append(crc32c::crc32c(&bad[..64]), &bad[64..188]);
    bad[188..192].copy_from_slice(&block.to_le_bytes());
    overwrite(&disk, second, &bad);
    let err = open_with(&disk, ring.clone()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(err.contains("the configured key of that id is another one"), "{err}");
    overwrite(&disk, second, &good);
    let other = Identity { node: 2, ..id() };
    let err = FileLog::open(Arc::new(disk.clone()), Path::new("/log"), other, SMALL, ring.clone()).err();
    assert!(matches!(err, Some(StoreError::Foreign { .. })), "{err:?}");
    open_with(&disk, ring).unwrap();
}

#[test]
fn a_missing_or_wrong_key_is_neither_damage_nor_a_torn_tail_and_changes_nothing() {
    let disk = scripted(1);
    let log = open_with(&disk, ring(&["a"])).unwrap();
    fill(&log, 0..30);
    // A tail that would be cut.
    log.append(&[text(30)]).unwrap();
    drop(log);
    disk.power_cycle();
    let before = disk.contents();
    for (ids, expected) in [(&[][..], "no keys are configured"), (&["b", "c"], "not among the configured keys (b, c)")] {
        let err = open_with(&disk, ring(ids)).err();
        assert!(matches!(&err, Some(StoreError::Locked { id, .. }) if id == "a"), "{err:?}");
        let message = err.map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(expected) && message.contains(SEGMENT) && !message.contains("damaged"), "{message}");
        assert_eq!(disk.contents(), before);
    }
    assert!(all(&open_with(&disk, ring(&["b", "a"])).unwrap()).len() >= 30);
}

/// Keys of the starts after the first one, which has none: encryption is turned on, then the key is changed, then the old key goes.
const LIVES: [&[&str]; 4] = [&["a"], &["b", "a"], &["b"], &["c", "b"]];

#[test]
fn encryption_is_turned_on_and_keys_rotate() {
    let disk = scripted(1);
    let log = open(&disk).unwrap();
    fill(&log, 0..20);
    assert_eq!(log.reseal().unwrap(), 0);
    drop(log);
    let mut next = 20;
    for ids in LIVES {
        let log = open_with(&disk, ring(ids)).unwrap();
        // Mixed: what is new is under the first key already, what is old can be read.
        let old = log.key_ids();
        fill(&log, next..next + 20);
        next += 20;
        let mut mixed = old.clone();
        mixed.insert(Some(ids[0].to_owned()));
        assert_eq!(log.key_ids(), mixed);
        let (entries, state) = (all(&log), log.state());
        assert_eq!(entries.len() as u64, next);
        assert_eq!(log.reseal().unwrap() > 0, old != set(&[Some(ids[0])]), "{ids:?}");
        assert_eq!(log.key_ids(), set(&[Some(ids[0])]));
        assert_eq!((all(&log), log.state()), (entries.clone(), state), "from the new files");
        assert_eq!(log.reseal().unwrap(), 0);
        for (path, bytes) in disk.contents() {
            assert!(!bytes.windows(10).any(|w| w == b"clear text"), "{}", path.display());
        }
        drop(log);
        disk.power_cycle();
        assert_eq!(all(&open_with(&disk, ring(&ids[..1])).unwrap()), entries, "{ids:?}: the first key is enough");
    }
}

#[test]
fn a_rotation_that_loses_power_at_any_operation_loses_nothing_and_is_done_by_the_next() {
    for from in [&[][..], &["a"]] {
        for stop in 0.. {
            let disk = scripted(stop);
            let log = open_with(&disk, ring(from)).unwrap();
            fill(&log, 0..30);
            log.purge_to(Mark { index: 3, term: 1 }).unwrap();
            log.sync().unwrap();
            let (entries, state) = (all(&log), log.state());
            drop(log);
            disk.lose_power_after(stop);
            let keys: Vec<&str> = [&["b"], from].concat();
            let done = open_with(&disk, ring(&keys)).and_then(|log| log.reseal());
            disk.power_cycle();
            let log = open_with(&disk, ring(&keys)).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
            assert_eq!((all(&log), log.state()), (entries.clone(), state), "stop {stop}");
            log.reseal().unwrap();
            assert_eq!((all(&log), log.key_ids()), (entries.clone(), set(&[Some("b")])), "stop {stop}");
            log.append(&[text(30)]).unwrap();
            log.sync().unwrap();
            drop(log);
            disk.power_cycle();
            let log = open_with(&disk, ring(&["b"])).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
            assert_eq!(all(&log).len(), entries.len() + 1);
            assert!(disk.contents().keys().all(|p| !p.ends_with("reseal.tmp")));
            if done.is_ok() {
                assert!(stop > 15, "{stop} operations");
                break;
            }
        }
    }
}

#[test]
fn a_rotation_without_space_leaves_a_log_that_works() {
    let disk = scripted(1);
    let log = open(&disk).unwrap();
    fill(&log, 0..30);
    drop(log);
    let log = open_with(&disk, ring(&["a"])).unwrap();
    log.prepare().unwrap();
    disk.set_capacity(Some(disk.used() + 100));
    assert!(matches!(log.reseal(), Err(StoreError::Full { .. })));
    fill(&log, 30..32);
    assert_eq!(all(&log).len(), 32);
    assert_eq!(log.key_ids(), set(&[None, Some("a")]));
    disk.set_capacity(None);
    assert!(log.reseal().unwrap() > 0);
    assert_eq!(log.key_ids(), set(&[Some("a")]));
    assert_eq!(all(&log).len(), 32);
}

/// A record is written again in the place of one that was cut: with another nonce.
#[test]
fn a_place_that_is_written_twice_gets_two_nonces() {
    let disk = scripted(1);
    let ring = ring(&["a"]);
    let log = open_with(&disk, ring.clone()).unwrap();
    fill(&log, 0..1);
    let empty = disk.copy();
    log.append(&[text(1)]).unwrap();
    log.sync().unwrap();
    drop(log);
    let other = open_with(&empty, ring).unwrap();
    other.append(&[text(1)]).unwrap();
    other.sync().unwrap();
    let (one, two) = (bytes_of(&disk, SEGMENT), bytes_of(&empty, SEGMENT));
    let at = records(&one)[2].clone();
    assert_eq!(records(&two)[2], at);
    assert_eq!(one[at.start..at.start + 40], two[at.start..at.start + 40], "the same header");
    assert_ne!(one[at.start + 48..at.start + 60], two[at.start + 48..at.start + 60]);
    assert_ne!(one[at.start + 60..at.end], two[at.start + 60..at.end]);
}
