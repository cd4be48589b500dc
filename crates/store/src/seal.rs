//! Encryption at rest: what leaves memory for the disk is sealed with AES-256-GCM under a key of the node.
//!
//! Each file has a key of its own, derived (HKDF-SHA256) from a key of the [`Keyring`], a random salt and the file's header, which names
//! cluster, node, purpose and position. So a file opens in its place only, and nonces need to be unique within a file. Headers of records
//! are the associated data of their contents.
//!
//! A sealed file begins with its ordinary 64-byte header, in which a flag is set, and this block:
//!
//! | offset | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | length of the id |
//! | 2 | id of the key, 32 bytes padded with zeroes |
//! | 40 | salt, 32 bytes |
//! | 72 | check, 16 bytes derived like the file's key: tells a wrong key of the same id from damage |
//! | 124 | crc32c of the file's header and bytes 0..124 |
//!
//! Lengths, positions, times of change and checksums are not hidden; neither are the names of resources in the state cache. Whoever can
//! write to the disk can bring back an older state of it as a whole.

mod keys;

pub use keys::{CREDENTIAL, KEY_BYTES, Keys, KeysError, MAX_ID_BYTES};

use crate::{
    disk::{Disk, OpenMode},
    error::{Result, StoreError},
    types::{ClusterId, FORMAT_VERSION, Identity},
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use std::{fmt, path::Path, sync::Arc};

/// Bytes of the block behind a header.
pub(crate) const BLOCK_BYTES: usize = 128;
/// Bytes that sealing adds to a text when the nonce is not stored.
pub(crate) const TAG_BYTES: usize = 16;
pub(crate) const NONCE_BYTES: usize = 12;
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 16;
const FILE_MAGIC: &[u8; 8] = b"IKADASEA";
const FILE_HEADER_BYTES: usize = 64;

/// Source of salts and nonces: sixteen random bytes, never the same twice.
pub type Random = Arc<dyn Fn() -> [u8; 16] + Send + Sync>;

/// The keys of this node and where salts come from.
pub struct Keyring {
    keys: Keys,
    random: Random,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt(f)
    }
}

/// A key of one file.
pub(crate) struct Seal {
    id: String,
    key: LessSafeKey,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sealed with {:?}", self.id)
    }
}

/// Nonces of one writer. They begin at random and count up, so that writers of the same file after one another do not meet.
pub(crate) struct Nonces(u128);

impl Nonces {
    pub(crate) fn new(keyring: &Keyring) -> Self {
        Nonces(u128::from_le_bytes((keyring.random)()))
    }

    pub(crate) fn next(&mut self) -> [u8; NONCE_BYTES] {
        self.0 = self.0.wrapping_add(1);
        numbered(self.0)
    }
}

/// The nonce of a number, of which the low 96 bits count.
pub(crate) fn numbered(n: u128) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    for (to, from) in nonce.iter_mut().zip(n.to_le_bytes()) {
        *to = from;
    }
    nonce
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn failed(_: aws_lc_rs::error::Unspecified) -> StoreError {
    StoreError::Invalid("the cryptographic library refuses to work".to_owned())
}

/// Derives the key of a file, and its check.
fn derive(master: &[u8], id: &str, salt: &[u8], context: &[u8]) -> Result<(LessSafeKey, [u8; CHECK_BYTES])> {
    let secret = Salt::new(HKDF_SHA256, salt).extract(master);
    let info: [&[u8]; 3] = [b"ikada store key 1", id.as_bytes(), context];
    let key = LessSafeKey::new(UnboundKey::from(secret.expand(&info, &AES_256_GCM).map_err(failed)?));
    let mut check = [0; CHECK_BYTES];
    let info: [&[u8]; 3] = [b"ikada store check 1", id.as_bytes(), context];
    secret.expand(&info, Length(CHECK_BYTES)).and_then(|okm| okm.fill(&mut check)).map_err(failed)?;
    Ok((key, check))
}

impl Keyring {
    /// A keyring; `random` gives salts and nonces.
    pub fn new(keys: Keys, random: Random) -> Arc<Keyring> {
        Arc::new(Keyring { keys, random })
    }

    /// Ids of the keys, that of the one that seals first.
    pub fn ids(&self) -> Vec<String> {
        self.keys.ids()
    }

    /// Id of the key that seals.
    pub fn sealing_id(&self) -> &str {
        self.keys.first().map_or("", |(id, _)| id)
    }

    /// A new key for a file whose header is `context`, and the block that follows the header.
    pub(crate) fn seal(&self, context: &[u8]) -> Result<(Seal, [u8; BLOCK_BYTES])> {
        let Some((id, master)) = self.keys.first() else { return Err(StoreError::Invalid("there is no encryption key".to_owned())) };
        let mut block = [0; BLOCK_BYTES];
        block[0] = VERSION;
        block[1] = id.len() as u8;
        for (to, from) in block.iter_mut().skip(2).zip(id.bytes()) {
            *to = from;
        }
        block[40..56].copy_from_slice(&(self.random)());
        block[56..72].copy_from_slice(&(self.random)());
        let (key, check) = derive(master, id, &block[40..72], context)?;
        block[72..88].copy_from_slice(&check);
        let crc = block_crc(context, &block);
        block[124..].copy_from_slice(&crc.to_le_bytes());
        Ok((Seal { id: id.to_owned(), key }, block))
    }
}

fn block_crc(context: &[u8], block: &[u8; BLOCK_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(context), &block[..124])
}

/// Which key the file at `path` is sealed with. An error when the block is damaged.
pub(crate) fn block_id(path: &Path, context: &[u8], block: &[u8; BLOCK_BYTES]) -> Result<String> {
    let damaged = |what: &str| StoreError::damaged(path, context.len() as u64, what);
    if block[124..] != block_crc(context, block).to_le_bytes() {
        return Err(damaged("the checksum of the description of its encryption does not match"));
    }
    if block[0] != VERSION {
        return Err(damaged("it is encrypted in a way that this version does not know"));
    }
    let id = block.get(2..2 + usize::from(block[1]).min(MAX_ID_BYTES)).unwrap_or_default();
    String::from_utf8(id.to_vec()).map_err(|_| damaged("the id of its key is not text"))
}

/// The key of the file at `path`, whose header is `context`. [`StoreError::Locked`] when the keyring does not have it.
pub(crate) fn unlock(keyring: Option<&Keyring>, path: &Path, context: &[u8], block: &[u8; BLOCK_BYTES]) -> Result<Seal> {
    let id = block_id(path, context, block)?;
    let locked = |why: String| StoreError::Locked { path: path.to_path_buf(), id: id.clone(), why };
    let Some(keyring) = keyring else { return Err(locked(no_keys())) };
    let Some(master) = keyring.keys.get(&id) else {
        return Err(locked(format!("which is not among the configured keys ({}): add its line to the key file", keyring.ids().join(", "))));
    };
    let (key, check) = derive(master, &id, &block[40..72], context)?;
    if block[72..88] != check {
        return Err(locked("and the configured key of that id is another one: put the right line into the key file".to_owned()));
    }
    Ok(Seal { id, key })
}

/// Whether the key of a log segment or snapshot is there. What else is wrong with the file is not looked at. `all`: files that are not sealed
/// are refused.
pub(crate) fn check_key(disk: &dyn Disk, path: &Path, keyring: Option<&Keyring>, all: bool) -> Result<()> {
    let file = disk.open(path, OpenMode::Read).map_err(|e| StoreError::io("open", path, e))?;
    let mut bytes = [0; FILE_HEADER_BYTES + BLOCK_BYTES];
    let read = file.read_at(&mut bytes, 0).map_err(|e| StoreError::io("read", path, e))?;
    let (header, block) = bytes.split_at(FILE_HEADER_BYTES);
    if read < FILE_HEADER_BYTES || header[60..] != crc32c::crc32c(&header[..60]).to_le_bytes() {
        return Ok(());
    }
    match (header[10], block.first_chunk::<BLOCK_BYTES>()) {
        (1, Some(block)) if read == bytes.len() && block_id(path, header, block).is_ok() => unlock(keyring, path, header, block).map(|_| ()),
        (0, _) if all => Err(StoreError::damaged(path, 10, "it is not encrypted, while everything in this directory was")),
        _ => Ok(()),
    }
}

/// What to do when there are no keys.
pub(crate) fn no_keys() -> String {
    format!(
        "and no keys are configured: name the file that has it in store.encryption.keyFile (IKADA_STORE_ENCRYPTION_KEY_FILE), or give it as \
         the systemd credential {CREDENTIAL}"
    )
}

impl Seal {
    /// Id of the key that it was derived from.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Seals the bytes of `out` from `start` on, and appends the tag.
    pub(crate) fn seal(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], out: &mut Vec<u8>, start: usize) -> Result<()> {
        let Some(text) = out.get_mut(start..) else { return Err(failed(aws_lc_rs::error::Unspecified)) };
        let tag =
            self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), text).map_err(failed)?;
        out.extend(tag.as_ref());
        Ok(())
    }

    /// Opens what [`Seal::seal`] made, in place; `None` when anything was changed.
    pub(crate) fn open<'a>(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), sealed).ok()
    }
}

fn file_header(id: Identity) -> [u8; FILE_HEADER_BYTES] {
    let mut h = [0; FILE_HEADER_BYTES];
    h[..8].copy_from_slice(FILE_MAGIC);
    h[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    h[10] = 1;
    h[16..32].copy_from_slice(&id.cluster.0);
    h[32..40].copy_from_slice(&id.node.to_le_bytes());
    let crc = crc32c::crc32c(&h[..60]);
    h[60..].copy_from_slice(&crc.to_le_bytes());
    h
}

/// Seals a small file: header, block, text and tag. It opens only for the same owner and `purpose` (its name, for one). Every call makes
/// other bytes.
///
/// # Errors
/// None that a caller can cause.
pub fn seal_file(keyring: &Keyring, owner: Identity, purpose: &str, text: &[u8]) -> Result<Vec<u8>> {
    let header = file_header(owner);
    let (seal, block) = keyring.seal(&header)?;
    let mut out = Vec::with_capacity(FILE_HEADER_BYTES + BLOCK_BYTES + text.len() + TAG_BYTES);
    out.extend(header);
    out.extend(block);
    let start = out.len();
    out.extend(text);
    // The file has a key of its own.
    seal.seal(numbered(0), purpose.as_bytes(), &mut out, start)?;
    Ok(out)
}

/// Whether bytes are what [`seal_file`] made.
pub fn is_sealed_file(bytes: &[u8]) -> bool {
    bytes.starts_with(FILE_MAGIC)
}

/// Opens what [`seal_file`] made; gives the id of its key and the text. `path` is for messages.
///
/// # Errors
/// [`StoreError::Locked`] when its key is not there, [`StoreError::Foreign`] when it is another node's, [`StoreError::Damaged`] otherwise.
pub fn open_file(keyring: Option<&Keyring>, owner: Identity, purpose: &str, path: &Path, bytes: &[u8]) -> Result<(String, Vec<u8>)> {
    let damaged = |what: &str| StoreError::damaged(path, 0, what);
    let cut = || damaged("it is cut");
    let (header, rest) = bytes.split_first_chunk::<FILE_HEADER_BYTES>().ok_or_else(cut)?;
    let (block, sealed) = rest.split_first_chunk::<BLOCK_BYTES>().ok_or_else(cut)?;
    if !is_sealed_file(header) || header[60..] != crc32c::crc32c(&header[..60]).to_le_bytes() {
        return Err(damaged("the header is not one of an encrypted file"));
    }
    let found = u16::from_le_bytes([header[8], header[9]]);
    if found > FORMAT_VERSION {
        return Err(StoreError::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT_VERSION, by: None });
    }
    let mut cluster = ClusterId([0; 16]);
    cluster.0.copy_from_slice(&header[16..32]);
    let node = u64::from_le_bytes([header[32], header[33], header[34], header[35], header[36], header[37], header[38], header[39]]);
    if (Identity { cluster, node }) != owner {
        let found = Identity { cluster, node }.to_string();
        return Err(StoreError::Foreign { path: path.to_path_buf(), found, expected: owner.to_string() });
    }
    let seal = unlock(keyring, path, header, block)?;
    let mut sealed = sealed.to_vec();
    match seal.open(numbered(0), purpose.as_bytes(), &mut sealed) {
        Some(text) => Ok((seal.id.clone(), text.to_vec())),
        None => Err(damaged("its encryption does not match: it was changed, or is another file")),
    }
}

/// Keys and keyrings of tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    pub(crate) fn keys(ids: &[&str]) -> Keys {
        let line = |id: &&str| {
            let seed = crc32c::crc32c(id.as_bytes()).to_le_bytes();
            let bytes = std::array::from_fn(|i| seed[i % 4].wrapping_add((i as u8).wrapping_mul(101)));
            Keys::line(id, bytes).unwrap() + "\n"
        };
        Keys::parse(&ids.iter().map(line).collect::<String>()).unwrap()
    }

    /// A keyring with keys that follow from their ids, and random numbers that are no secret.
    pub(crate) fn keyring(ids: &[&str]) -> Arc<Keyring> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let random = || std::array::from_fn(|_| NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(167));
        Keyring::new(keys(ids), Arc::new(random))
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::keyring, *};

    fn id() -> Identity {
        Identity { cluster: ClusterId([7; 16]), node: 3 }
    }

    #[test]
    fn a_file_opens_for_its_owner_and_purpose_alone() {
        let path = Path::new("/d/peer/key");
        let ring = keyring(&["b", "a"]);
        let sealed = seal_file(&ring, id(), "peer key", b"text").unwrap();
        let open = |ring: Option<&Keyring>, owner, purpose, bytes: &[u8]| open_file(ring, owner, purpose, path, bytes);
        assert!(is_sealed_file(&sealed));
        assert!(!sealed.windows(4).any(|w| w == b"text"));
        assert_ne!(sealed, seal_file(&ring, id(), "peer key", b"text").unwrap());
        assert_eq!(open(Some(&ring), id(), "peer key", &sealed).unwrap(), ("b".to_owned(), b"text".to_vec()));
        assert_eq!(open(Some(&keyring(&["c", "b"])), id(), "peer key", &sealed).unwrap().1, b"text");
        assert!(matches!(open(Some(&ring), id(), "other", &sealed), Err(StoreError::Damaged { .. })));
        assert!(matches!(open(Some(&ring), Identity { node: 4, ..id() }, "peer key", &sealed), Err(StoreError::Foreign { .. })));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 4;
            assert!(matches!(open(Some(&ring), id(), "peer key", &bad), Err(StoreError::Damaged { .. })), "byte {at}");
            assert!(open(Some(&ring), id(), "peer key", &sealed[..at]).is_err());
        }
    }

    #[test]
    fn a_missing_key_is_named_with_what_to_do() {
        let path = Path::new("/d/peer/key");
        let sealed = seal_file(&keyring(&["b"]), id(), "x", b"text").unwrap();
        let message = |ring: Option<&Keyring>| open_file(ring, id(), "x", path, &sealed).unwrap_err().to_string();
        let none = message(None);
        assert!(none.contains("/d/peer/key is encrypted with the key \"b\", and no keys are configured"), "{none}");
        assert!(none.contains("store.encryption.keyFile") && none.contains(CREDENTIAL), "{none}");
        assert!(message(Some(&keyring(&["a", "c"]))).contains("not among the configured keys (a, c): add its line"));
        // Another key under the same id.
        let other = Keyring::new(Keys::parse(&Keys::line("b", std::array::from_fn(|i| i as u8 * 7)).unwrap()).unwrap(), Arc::new(|| [1; 16]));
        assert!(message(Some(&other)).contains("the configured key of that id is another one"));
    }

    #[test]
    fn nonces_do_not_repeat() {
        let mut nonces = Nonces(u128::MAX - 1);
        let three: Vec<_> = (0..3).map(|_| nonces.next()).collect();
        assert_eq!(three, [[255; 12], [0; 12], numbered(1)]);
    }
}
