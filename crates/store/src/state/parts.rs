//! How a key and a value of any size become small keys and values: `length of key u16 | key | part u16` (big endian) to
//! `version u8 | parts u16 | crc32c u32 | bytes` (little endian). Version 2 is sealed: the bytes are a nonce, what it sealed, and its tag, with
//! the stored key and the number of parts as associated data.

use crate::{
    codec::CodecError,
    seal::{NONCE_BYTES, Nonces, Seal, TAG_BYTES},
};

const VERSION: u8 = 1;
const SEALED_VERSION: u8 = 2;
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

/// Seals `text` for a place. What [`open_bytes`] opens.
pub(super) fn seal_bytes(seal: &Seal, nonces: &mut Nonces, place: &[u8], text: &[u8]) -> Result<Vec<u8>, CodecError> {
    let nonce = nonces.next();
    let mut out = Vec::with_capacity(NONCE_BYTES + text.len() + TAG_BYTES);
    out.extend(nonce);
    out.extend(text);
    seal.seal(nonce, place, &mut out, NONCE_BYTES).map_err(|e| CodecError::Malformed(e.to_string()))?;
    Ok(out)
}

pub(super) fn open_bytes(seal: &Seal, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(|| CodecError::Malformed("sealed bytes: cut".to_owned()))?;
    let mut sealed = sealed.to_vec();
    match seal.open(*nonce, place, &mut sealed) {
        Some(text) => Ok(text.to_vec()),
        None => Err(CodecError::Malformed("sealed bytes: changed, or of another place".to_owned())),
    }
}

/// What a sealed part belongs to.
pub(super) fn place(stored_key: &[u8], parts: u16) -> Vec<u8> {
    let mut place = stored_key.to_vec();
    place.extend(parts.to_le_bytes());
    place
}

/// Splits a value; at least one part. Sealed when there is a seal.
pub(super) fn split(key: &[u8], value: &[u8], mut sealer: Option<(&Seal, &mut Nonces)>) -> Result<Vec<Part>, CodecError> {
    let count = value.len().div_ceil(MAX_PART_BYTES).max(1);
    let parts = u16::try_from(count).map_err(|_| CodecError::TooLarge(value.len()))?;
    let mut chunks = value.chunks(MAX_PART_BYTES);
    (0..parts)
        .map(|part| {
            let chunk = chunks.next().unwrap_or_default();
            let stored = part_key(key, part);
            let sealed;
            let (version, chunk) = match &mut sealer {
                Some((key, nonces)) => {
                    sealed = seal_bytes(key, nonces, &place(&stored, parts), chunk)?;
                    (SEALED_VERSION, sealed.as_slice())
                }
                None => (VERSION, chunk),
            };
            let mut out = Vec::with_capacity(HEADER + chunk.len());
            out.push(version);
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

/// A part as it is stored.
pub(super) struct StoredPart<'a> {
    /// Number of parts of the value.
    pub parts: u16,
    pub sealed: bool,
    /// As they are stored.
    pub bytes: &'a [u8],
}

impl StoredPart<'_> {
    /// Length of the text.
    pub(super) fn len(&self) -> usize {
        if self.sealed { self.bytes.len().saturating_sub(NONCE_BYTES + TAG_BYTES) } else { self.bytes.len() }
    }
}

pub(super) fn read_part<'a>(stored_key: &[u8], stored: &'a [u8]) -> Result<StoredPart<'a>, CodecError> {
    let bad = |what: &str| CodecError::Malformed(format!("value of a part: {what}"));
    let (head, bytes) = stored.split_first_chunk::<HEADER>().ok_or_else(|| bad("cut"))?;
    let [version, p0, p1, c0, c1, c2, c3] = *head;
    let sealed = match version {
        VERSION => false,
        SEALED_VERSION => true,
        _ => return Err(bad("another version")),
    };
    let parts = u16::from_le_bytes([p0, p1]);
    if u32::from_le_bytes([c0, c1, c2, c3]) != crc(stored_key, parts, bytes) {
        return Err(bad("checksum"));
    }
    Ok(StoredPart { parts, sealed, bytes })
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
