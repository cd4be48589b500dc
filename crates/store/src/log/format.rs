//! Bytes of a segment file.
//!
//! A segment starts with a header that names format, cluster, node and its number. Records follow, each with its own header and
//! aligned to eight bytes; the space after the last one reads as zero. All numbers are little endian.
//!
//! | header offset | field |
//! |---|---|
//! | 0 | magic `IKADALOG` |
//! | 8 | format `u16` |
//! | 10 | 1 when the segment is sealed: then the block of [`crate::seal`] follows the header |
//! | 16 | cluster, 16 bytes |
//! | 32 | node `u64` |
//! | 40 | number of the segment `u64` |
//! | 48 | sequence number of the first record `u64` |
//! | 60 | crc32c of bytes 0..60 |
//!
//! | record offset | field |
//! |---|---|
//! | 0 | magic `0xA5` |
//! | 1 | kind |
//! | 2 | version `u16`: 1, or 2 in a sealed segment |
//! | 4 | payload length `u32` |
//! | 8 | sequence number `u64`: counts records since the log was made |
//! | 16 | synced `u64`: every record with a smaller sequence number was durable when this one was written |
//! | 24 | index `u64` |
//! | 32 | term `u64` |
//! | 40 | crc32c, seeded with cluster and node, of bytes 0..40 and the payload; then zeroes |
//! | 48 | payload, padded to eight bytes |
//!
//! In a sealed segment the payload of every record, also of one that has none, is a nonce, the sealed payload and its tag; bytes 0..40
//! are the associated data. Checksums are of what is stored, so that a torn tail is told from damage without any key.
//!
//! `synced` is what tells a torn tail from damage: a record that cannot be read was acknowledged if and only if a later record says so.

use crate::{
    error::StoreError,
    seal::{BLOCK_BYTES, NONCE_BYTES, Nonces, Seal, TAG_BYTES},
    types::{ClusterId, FORMAT_VERSION, HardState, Identity, Mark},
};
use std::path::Path;

pub(super) const HEADER_BYTES: usize = 64;
const RECORD_HEADER_BYTES: usize = 48;
const SEGMENT_MAGIC: &[u8; 8] = b"IKADALOG";
const RECORD_MAGIC: u8 = 0xA5;
const RECORD_VERSION: u16 = 1;
const SEALED_VERSION: u16 = 2;
/// What sealing adds to a payload.
const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Entry(Mark),
    Hard(HardState),
    Committed(Mark),
    Truncate(u64),
    Purge(Mark),
}

/// Header of a record that was read, and where its payload is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed {
    pub kind: Kind,
    pub seq: u64,
    pub synced: u64,
    /// Of a sealed segment.
    pub sealed: bool,
    /// As it is stored.
    pub payload_len: usize,
    /// Bytes to the next record.
    pub total: usize,
}

pub(super) fn seed(id: Identity) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.cluster.0), &id.node.to_le_bytes())
}

pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

pub(super) fn record_bytes(stored_payload: usize) -> usize {
    RECORD_HEADER_BYTES + padded(stored_payload)
}

/// Length of a payload as it is stored.
pub(super) fn stored_len(payload: usize, sealed: bool) -> usize {
    if sealed { payload + SEAL_BYTES } else { payload }
}

/// Where the text of an opened payload is in its record.
pub(super) fn payload_start(sealed: bool) -> usize {
    RECORD_HEADER_BYTES + if sealed { NONCE_BYTES } else { 0 }
}

/// What a segment begins with.
pub(super) struct Head {
    pub first_seq: u64,
    /// How a sealed one is sealed.
    pub block: Option<[u8; BLOCK_BYTES]>,
}

impl Head {
    /// Where the first record is.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.block.map_or(0, |b| b.len())
    }
}

/// What seals the records of a segment that is written.
pub(super) struct Sealer<'a> {
    pub seal: &'a Seal,
    pub nonces: &'a mut Nonces,
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The header, without the block of a sealed segment.
pub(super) fn segment_header(id: Identity, number: u64, first_seq: u64, sealed: bool) -> [u8; HEADER_BYTES] {
    let mut h = [0; HEADER_BYTES];
    h[..8].copy_from_slice(SEGMENT_MAGIC);
    h[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    h[10] = u8::from(sealed);
    h[16..32].copy_from_slice(&id.cluster.0);
    h[32..40].copy_from_slice(&id.node.to_le_bytes());
    h[40..48].copy_from_slice(&number.to_le_bytes());
    h[48..56].copy_from_slice(&first_seq.to_le_bytes());
    let crc = crc32c::crc32c(&h[..60]);
    h[60..].copy_from_slice(&crc.to_le_bytes());
    h
}

/// Checks a segment header; its key is not looked at.
pub(super) fn check_segment_header(path: &Path, bytes: &[u8], id: Identity, number: u64) -> Result<Head, StoreError> {
    let damaged = |what: &str| StoreError::damaged(path, 0, what);
    if bytes.get(..8) != Some(SEGMENT_MAGIC) {
        return Err(damaged("the header is not one of a log"));
    }
    let found = u16_at(bytes, 8).unwrap_or(0);
    if found > FORMAT_VERSION {
        return Err(StoreError::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT_VERSION, by: None });
    }
    if u32_at(bytes, 60) != bytes.get(..60).map(crc32c::crc32c) {
        return Err(damaged("the checksum of the header does not match"));
    }
    let cluster: [u8; 16] = bytes.get(16..32).and_then(|b| b.try_into().ok()).unwrap_or_default();
    let owner = Identity { cluster: ClusterId(cluster), node: u64_at(bytes, 32).unwrap_or(0) };
    if owner != id {
        return Err(StoreError::Foreign { path: path.to_path_buf(), found: owner.to_string(), expected: id.to_string() });
    }
    if u64_at(bytes, 40) != Some(number) {
        return Err(damaged("the file was renamed"));
    }
    let first_seq = u64_at(bytes, 48).ok_or_else(|| damaged("the header is cut"))?;
    let block = match bytes.get(10) {
        Some(0) => None,
        Some(1) => {
            let block = bytes.get(HEADER_BYTES..).and_then(|rest| rest.first_chunk::<BLOCK_BYTES>());
            Some(*block.ok_or_else(|| damaged("the header is cut"))?)
        }
        _ => return Err(damaged("the header has an unknown flag")),
    };
    Ok(Head { first_seq, block })
}

/// Appends a record; sealed when there is a sealer.
pub(super) fn write_record(
    out: &mut Vec<u8>,
    seed: u32,
    (seq, synced): (u64, u64),
    kind: Kind,
    payload: &[u8],
    sealer: Option<Sealer<'_>>,
) -> Result<(), StoreError> {
    let (code, index, term) = match kind {
        Kind::Entry(m) => (1, m.index, m.term),
        Kind::Hard(h) => (if h.committed { 3 } else { 2 }, h.voted_for, h.term),
        Kind::Committed(m) => (4, m.index, m.term),
        Kind::Truncate(index) => (5, index, 0),
        Kind::Purge(m) => (6, m.index, m.term),
    };
    let mut head = [0; RECORD_HEADER_BYTES];
    let stored = stored_len(payload.len(), sealer.is_some());
    let version = if sealer.is_some() { SEALED_VERSION } else { RECORD_VERSION };
    head[..2].copy_from_slice(&[RECORD_MAGIC, code]);
    head[2..4].copy_from_slice(&version.to_le_bytes());
    head[4..8].copy_from_slice(&(stored as u32).to_le_bytes());
    head[8..16].copy_from_slice(&seq.to_le_bytes());
    head[16..24].copy_from_slice(&synced.to_le_bytes());
    head[24..32].copy_from_slice(&index.to_le_bytes());
    head[32..40].copy_from_slice(&term.to_le_bytes());
    let start = out.len();
    out.extend(head);
    let payload_at = out.len();
    if let Some(Sealer { seal, nonces }) = sealer {
        let nonce = nonces.next();
        out.extend(nonce);
        out.extend(payload);
        seal.seal(nonce, &head[..40], out, payload_at + NONCE_BYTES)?;
    } else {
        out.extend(payload);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &head[..40]), out.get(payload_at..).unwrap_or_default());
    if let Some(field) = out.get_mut(start + 40..start + 44) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    out.resize(start + record_bytes(stored), 0);
    Ok(())
}

/// The payload of a record whose first bytes these are, opened in place when it is sealed. `None` when its seal does not match.
pub(super) fn open_payload<'a>(record: &'a mut [u8], parsed: &Parsed, seal: Option<&Seal>) -> Option<&'a [u8]> {
    let (head, rest) = record.split_at_mut_checked(RECORD_HEADER_BYTES)?;
    let stored = rest.get_mut(..parsed.payload_len)?;
    match (parsed.sealed, seal) {
        (false, None) => Some(stored),
        (true, Some(seal)) => {
            let (nonce, sealed) = stored.split_first_chunk_mut::<NONCE_BYTES>()?;
            seal.open(*nonce, head.get(..40)?, sealed).map(|text| &*text)
        }
        // A record of another segment.
        _ => None,
    }
}

/// The record at the start of `bytes`, `None` when there is no intact one.
pub(super) fn parse_record(bytes: &[u8], seed: u32) -> Option<Parsed> {
    let sealed = match (bytes.first(), u16_at(bytes, 2)?) {
        (Some(&RECORD_MAGIC), RECORD_VERSION) => false,
        (Some(&RECORD_MAGIC), SEALED_VERSION) => true,
        _ => return None,
    };
    let payload_len = u32_at(bytes, 4)? as usize;
    if payload_len > stored_len(super::MAX_RECORD_BYTES, sealed) {
        return None;
    }
    let total = record_bytes(payload_len);
    let payload = bytes.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_len)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, bytes.get(..40)?), payload);
    let padding = bytes.get(44..RECORD_HEADER_BYTES).into_iter().chain(bytes.get(RECORD_HEADER_BYTES + payload_len..total)).flatten();
    if u32_at(bytes, 40)? != crc || bytes.len() < total || padding.into_iter().any(|b| *b != 0) {
        return None;
    }
    let (index, term) = (u64_at(bytes, 24)?, u64_at(bytes, 32)?);
    let mark = Mark { index, term };
    let kind = match bytes.get(1)? {
        1 => Kind::Entry(mark),
        code @ (2 | 3) => Kind::Hard(HardState { term, voted_for: index, committed: *code == 3 }),
        4 => Kind::Committed(mark),
        5 => Kind::Truncate(index),
        6 => Kind::Purge(mark),
        _ => return None,
    };
    Some(Parsed { kind, seq: u64_at(bytes, 8)?, synced: u64_at(bytes, 16)?, sealed, payload_len, total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let id = Identity { cluster: ClusterId([1; 16]), node: 1 };
            let _ = parse_record(&bytes, 0);
            let _ = check_segment_header(Path::new("x"), &bytes, id, 0);
        }

        #[test]
        fn a_changed_bit_is_noticed(bit in 0usize..(RECORD_HEADER_BYTES + 8) * 8, payload in any::<[u8; 5]>()) {
            let mut out = Vec::new();
            write_record(&mut out, 7, (1, 0), Kind::Entry(Mark { index: 3, term: 2 }), &payload, None).unwrap();
            prop_assert!(parse_record(&out, 7).is_some());
            prop_assert!(parse_record(&out, 8).is_none(), "another identity");
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse_record(&out, 7).is_none());
        }
    }
}
