//! How a key and a value of any size become small keys and values: `length of key u16 | key | part u16` (big endian) to
//! `version u8 | parts u16 | crc32c u32 | bytes` (little endian).

use super::super::codec::CodecError;

const VERSION: u8 = 1;
/// sled writes a node of its tree that has 128 KiB or more to a file that it never syncs. It splits a node above 16 pairs, and merges one of up
/// to 4 into its neighbour: 21 parts with their keys (below 600 bytes) stay below. Hundreds of names of hundreds of bytes may still make an inner
/// node as large.
pub(super) const MAX_PART_BYTES: usize = 4 << 10;
const HEADER: usize = 7;

pub(super) fn part_key(key: &[u8], part: u16) -> Vec<u8> {
    let mut k = Vec::with_capacity(key.len() + 4);
    k.extend((key.len() as u16).to_be_bytes());
    k.extend(key);
    k.extend(part.to_be_bytes());
    k
}

pub(super) fn split_key(stored: &[u8]) -> Result<(&[u8], u16), CodecError> {
    let bad = || CodecError::Malformed("key of a part".to_owned());
    let (len, rest) = stored.split_first_chunk::<2>().ok_or_else(bad)?;
    let (key, part) = rest.split_last_chunk::<2>().ok_or_else(bad)?;
    if key.len() != usize::from(u16::from_be_bytes(*len)) {
        return Err(bad());
    }
    Ok((key, u16::from_be_bytes(*part)))
}

/// A key and a value as sled gets them.
type Part = (Vec<u8>, Vec<u8>);

/// Splits a value; at least one part.
pub(super) fn split(key: &[u8], value: &[u8]) -> Result<Vec<Part>, CodecError> {
    let count = value.len().div_ceil(MAX_PART_BYTES).max(1);
    let parts = u16::try_from(count).map_err(|_| CodecError::TooLarge(value.len()))?;
    let mut chunks = value.chunks(MAX_PART_BYTES);
    (0..parts)
        .map(|part| {
            let chunk = chunks.next().unwrap_or_default();
            let stored = part_key(key, part);
            let mut out = Vec::with_capacity(HEADER + chunk.len());
            out.push(VERSION);
            out.extend(parts.to_le_bytes());
            out.extend(crc(&stored, parts, chunk).to_le_bytes());
            out.extend(chunk);
            Ok((stored, out))
        })
        .collect()
}

fn crc(stored_key: &[u8], parts: u16, chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(stored_key), &parts.to_le_bytes()), chunk)
}

/// Number of parts of the value, and the bytes of this one.
pub(super) fn read_part<'a>(stored_key: &[u8], stored: &'a [u8]) -> Result<(u16, &'a [u8]), CodecError> {
    let bad = |what: &str| CodecError::Malformed(format!("value of a part: {what}"));
    let (head, chunk) = stored.split_first_chunk::<HEADER>().ok_or_else(|| bad("cut"))?;
    let [version, p0, p1, c0, c1, c2, c3] = *head;
    if version != VERSION {
        return Err(bad("another version"));
    }
    let parts = u16::from_le_bytes([p0, p1]);
    if u32::from_le_bytes([c0, c1, c2, c3]) != crc(stored_key, parts, chunk) {
        return Err(bad("checksum"));
    }
    Ok((parts, chunk))
}

/// Digest of one stored pair. The digest of a cache is the xor of all, so that a change costs what it changes.
pub(super) fn digest(stored_key: &[u8], stored: &[u8]) -> u64 {
    let one = crc32c::crc32c_append(crc32c::crc32c(stored_key), stored);
    // Mixed (splitmix64), since the xor of plain checksums would cancel out.
    let mut x = (u64::from(one) << 32 | stored.len() as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
