//! Snapshot files: the whole applied state at one position. With the log from there on they are the authoritative state.
//!
//! ```text
//! header   magic "IKADASNP", format u16, sealed u8, cluster, node, index, term, crc32c    (64 bytes)
//! block    of crate::seal, when it is sealed                                              (128 bytes)
//! frames   length u32, kind u8 (1 meta, 2 chunk, 3 end), 3 zero bytes, crc32c u32 seeded with the header's, bytes
//! meta     opaque, first frame
//! chunk    records, each: length u32, bytes; about 1 MiB together
//! end      number of records u64, crc32c over the crc32c of all frames before it u32
//! ```
//!
//! In a sealed snapshot the bytes of a frame are sealed: its number is the nonce, length and kind are the associated data. Checksums are of
//! what is stored.
//!
//! A snapshot is written under a temporary name, synced, renamed, and the directory synced: a file with a final name is complete, so an
//! unreadable one is damage. The newest two are kept.

use crate::{
    disk::{Disk, DiskFile, OpenMode},
    error::{Result, StoreError},
    seal::{BLOCK_BYTES, Keyring, Seal, TAG_BYTES, block_id, numbered, unlock},
    types::{ClusterId, FORMAT_VERSION, Identity, Mark},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"IKADASNP";
const HEADER_BYTES: usize = 64;
const FRAME_BYTES: usize = 12;
/// A chunk is closed when it has this many bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest record in bytes.
const MAX_RECORD: usize = 64 << 20;
const KEEP: usize = 2;
const META: u8 = 1;
const CHUNK: u8 = 2;
const END: u8 = 3;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Last entry in it.
    pub mark: Mark,
    /// Opaque: what the writer needs to read it again.
    pub meta: Vec<u8>,
}

/// An open snapshot file: its path, its header, and how it is sealed.
type Opened = (PathBuf, Arc<dyn DiskFile>, [u8; HEADER_BYTES], Option<[u8; BLOCK_BYTES]>);

/// The snapshots of one node in a directory of their own.
pub struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    keyring: Option<Arc<Keyring>>,
    marks: Mutex<Vec<Mark>>,
}

fn name(mark: Mark) -> String {
    format!("{:016x}-{:016x}.snap", mark.index, mark.term)
}

fn parse_name(name: &str) -> Option<Mark> {
    let (index, term) = name.strip_suffix(".snap")?.split_once('-')?;
    Some(Mark { index: u64::from_str_radix(index, 16).ok()?, term: u64::from_str_radix(term, 16).ok()? })
}

fn header(id: Identity, mark: Mark, sealed: bool) -> [u8; HEADER_BYTES] {
    let mut h = [0; HEADER_BYTES];
    h[..8].copy_from_slice(MAGIC);
    h[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    h[10] = u8::from(sealed);
    h[16..32].copy_from_slice(&id.cluster.0);
    h[32..40].copy_from_slice(&id.node.to_le_bytes());
    h[40..48].copy_from_slice(&mark.index.to_le_bytes());
    h[48..56].copy_from_slice(&mark.term.to_le_bytes());
    let crc = crc32c::crc32c(&h[..60]);
    h[60..].copy_from_slice(&crc.to_le_bytes());
    h
}

impl SnapshotStore {
    /// Opens the directory, which exists. Unfinished snapshots of an earlier process are removed. With a keyring new snapshots are sealed.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, keyring: Option<Arc<Keyring>>) -> Result<SnapshotStore> {
        let store = SnapshotStore::look(disk, dir, identity, keyring)?;
        for tmp in store.names()?.iter().filter(|n| n.ends_with(".tmp")) {
            let path = dir.join(tmp);
            store.disk.remove_file(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        }
        Ok(store)
    }

    /// Opens the directory and changes nothing.
    pub(crate) fn look(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, keyring: Option<Arc<Keyring>>) -> Result<SnapshotStore> {
        let store = SnapshotStore { disk, dir: dir.to_path_buf(), identity, keyring, marks: Mutex::default() };
        let mut marks: Vec<Mark> = store.names()?.iter().filter_map(|n| parse_name(n)).collect();
        marks.sort_unstable();
        *store.marks.lock() = marks;
        Ok(store)
    }

    fn names(&self) -> Result<Vec<String>> {
        self.disk.list(&self.dir).map_err(|e| StoreError::io("read", &self.dir, e))
    }

    /// Position of the newest snapshot.
    pub fn newest(&self) -> Option<Mark> {
        self.marks.lock().last().copied()
    }

    /// Starts a snapshot.
    pub fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter<'_>> {
        let path = self.dir.join(format!("{}.tmp", name(meta.mark)));
        let file = self.disk.open(&path, OpenMode::Create).map_err(|e| StoreError::io("create", &path, e))?;
        let mut head = header(self.identity, meta.mark, self.keyring.is_some()).to_vec();
        let seed = crc32c::crc32c(&head);
        let mut seal = None;
        if let Some(keyring) = &self.keyring {
            let (new, block) = keyring.seal(&head)?;
            seal = Some(new);
            head.extend(block);
        }
        let mut writer = SnapshotWriter {
            store: self,
            mark: meta.mark,
            file,
            path,
            at: 0,
            seed,
            seal,
            frames: 0,
            chain: 0,
            records: 0,
            chunk: Vec::new(),
            finished: false,
        };
        writer.write(&head)?;
        writer.frame(META, &meta.meta)?;
        Ok(writer)
    }

    /// Opens the snapshot at a position.
    pub fn read(&self, mark: Mark) -> Result<SnapshotReader> {
        let (path, file, head, block) = self.head(mark)?;
        let seal = match &block {
            Some(block) => Some(unlock(self.keyring.as_deref(), &path, &head, block)?),
            None => None,
        };
        let mut reader = SnapshotReader {
            file,
            path,
            at: (HEADER_BYTES + block.map_or(0, |b| b.len())) as u64,
            seed: crc32c::crc32c(&head),
            seal,
            frames: 0,
            chain: 0,
            records: 0,
            meta: SnapshotMeta { mark, meta: Vec::new() },
            chunk: Vec::new(),
            next: 0,
        };
        match reader.frame()? {
            (META, meta) => reader.meta.meta = meta,
            _ => return Err(reader.damaged("it does not begin with its description")),
        }
        Ok(reader)
    }

    /// Opens the file at a position, and checks its header.
    fn head(&self, mark: Mark) -> Result<Opened> {
        let path = self.dir.join(name(mark));
        let file = self.disk.open(&path, OpenMode::Read).map_err(|e| StoreError::io("open", &path, e))?;
        let mut head = [0; HEADER_BYTES];
        let read = file.read_at(&mut head, 0).map_err(|e| StoreError::io("read", &path, e))?;
        if read < HEADER_BYTES || head[..8] != *MAGIC {
            return Err(StoreError::damaged(&path, 0, "the header is not one of a snapshot"));
        }
        let found = u16::from_le_bytes([head[8], head[9]]);
        if found > FORMAT_VERSION {
            return Err(StoreError::NewerFormat { path, found, supported: FORMAT_VERSION, by: None });
        }
        if head[60..] != crc32c::crc32c(&head[..60]).to_le_bytes() {
            return Err(StoreError::damaged(&path, 0, "the checksum of the header does not match"));
        }
        let mut owner = Identity { cluster: ClusterId([0; 16]), node: 0 };
        owner.cluster.0.copy_from_slice(&head[16..32]);
        owner.node = u64::from_le_bytes([head[32], head[33], head[34], head[35], head[36], head[37], head[38], head[39]]);
        if owner != self.identity {
            return Err(StoreError::Foreign { path, found: owner.to_string(), expected: self.identity.to_string() });
        }
        if head[40..56] != header(owner, mark, false)[40..56] {
            return Err(StoreError::damaged(&path, 40, "the file was renamed"));
        }
        let block = match head[10] {
            0 => None,
            1 => {
                let mut block = [0; BLOCK_BYTES];
                let read = file.read_at(&mut block, HEADER_BYTES as u64).map_err(|e| StoreError::io("read", &path, e))?;
                if read < BLOCK_BYTES {
                    return Err(StoreError::damaged(&path, 0, "it is cut"));
                }
                Some(block)
            }
            _ => return Err(StoreError::damaged(&path, 10, "the header has an unknown flag")),
        };
        Ok((path, file, head, block))
    }

    /// Which key a snapshot is sealed with; `None` when it is not sealed.
    fn key_id(&self, mark: Mark) -> Result<Option<String>> {
        let (path, _, head, block) = self.head(mark)?;
        block.map(|block| block_id(&path, &head, &block)).transpose()
    }

    /// Ids of the keys that snapshots are sealed with; `None` stands for those that are not sealed.
    ///
    /// # Errors
    /// A header cannot be read.
    pub fn key_ids(&self) -> Result<BTreeSet<Option<String>>> {
        let marks = self.marks.lock().clone();
        let ids = marks.into_iter().filter_map(|mark| match self.key_id(mark) {
            // It was removed in between.
            Err(_) if !self.marks.lock().contains(&mark) => None,
            id => Some(id),
        });
        ids.collect()
    }

    /// Seals the newest snapshot with the first key of the keyring, if it is not, and then removes older ones that are not. Gives how many
    /// were not. Without a keyring there is nothing to do.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no space for a copy: everything is as it was.
    pub fn reseal(&self) -> Result<usize> {
        let Some(keyring) = &self.keyring else { return Ok(0) };
        let current = Some(keyring.sealing_id().to_owned());
        let marks = self.marks.lock().clone();
        let mut old = 0;
        for (i, mark) in marks.iter().enumerate().rev() {
            // Writing the newest one again removes those beyond the ones that are kept: more were there after a power loss.
            if !self.marks.lock().contains(mark) || self.key_id(*mark)? == current {
                continue;
            }
            old += 1;
            if i + 1 == marks.len() {
                let mut reader = self.read(*mark)?;
                let mut writer = self.create(reader.meta())?;
                while let Some(record) = reader.next_record()? {
                    writer.push(&record)?;
                }
                writer.finish()?;
            } else {
                let path = self.path(*mark);
                self.disk.remove_file(&path).map_err(|e| StoreError::io("remove", &path, e))?;
                self.disk.sync_dir(&self.dir).map_err(|e| StoreError::io("sync", &self.dir, e))?;
                self.marks.lock().retain(|m| m != mark);
            }
        }
        Ok(old)
    }

    fn path(&self, mark: Mark) -> PathBuf {
        self.dir.join(name(mark))
    }
}

/// Writes one snapshot. Dropped before [`SnapshotWriter::finish`], it leaves nothing behind.
pub struct SnapshotWriter<'a> {
    store: &'a SnapshotStore,
    mark: Mark,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    at: u64,
    seed: u32,
    seal: Option<Seal>,
    /// Frames so far: their numbers are the nonces.
    frames: u64,
    chain: u32,
    records: u64,
    chunk: Vec<u8>,
    finished: bool,
}

/// The first eight bytes of a frame: length and kind.
fn frame_aad((len, kind): (u32, u8)) -> [u8; 8] {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4] = kind;
    head
}

fn frame_crc(seed: u32, head: (u32, u8), bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &frame_aad(head)), bytes)
}

impl SnapshotWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_at(bytes, self.at).map_err(|e| StoreError::io("write to", &self.path, e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        let stored = bytes.len() + if self.seal.is_some() { TAG_BYTES } else { 0 };
        let mut frame = Vec::with_capacity(FRAME_BYTES + stored);
        let head = (stored as u32, kind);
        frame.extend(frame_aad(head));
        frame.extend([0; 4]);
        frame.extend(bytes);
        if let Some(seal) = &self.seal {
            seal.seal(numbered(self.frames.into()), &frame_aad(head), &mut frame, FRAME_BYTES)?;
        }
        self.frames += 1;
        let crc = frame_crc(self.seed, head, frame.get(FRAME_BYTES..).unwrap_or_default());
        if let Some(field) = frame.get_mut(8..FRAME_BYTES) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        self.chain = crc32c::crc32c_append(self.chain, &crc.to_le_bytes());
        self.write(&frame)
    }

    /// Adds a record.
    pub fn push(&mut self, record: &[u8]) -> Result<()> {
        if record.len() > MAX_RECORD {
            return Err(StoreError::TooLarge { what: "snapshot record", size: record.len(), limit: MAX_RECORD });
        }
        self.chunk.extend((record.len() as u32).to_le_bytes());
        self.chunk.extend(record);
        self.records += 1;
        if self.chunk.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() { Ok(()) } else { self.frame(CHUNK, &chunk) }
    }

    /// Makes the snapshot durable and the newest one, and removes all but the newest two.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        let mut end = self.records.to_le_bytes().to_vec();
        end.extend(self.chain.to_le_bytes());
        self.frame(END, &end)?;
        self.file.sync_data().map_err(|e| StoreError::io("sync", &self.path, e))?;
        let path = self.store.path(self.mark);
        self.store.disk.rename(&self.path, &path).map_err(|e| StoreError::io("rename", &self.path, e))?;
        self.finished = true;
        self.store.disk.sync_dir(&self.store.dir).map_err(|e| StoreError::io("sync", &self.store.dir, e))?;
        let mut marks = self.store.marks.lock();
        if !marks.contains(&self.mark) {
            marks.push(self.mark);
            marks.sort_unstable();
        }
        while marks.len() > KEEP {
            let oldest = marks.remove(0);
            let path = self.store.path(oldest);
            if let Err(e) = self.store.disk.remove_file(&path) {
                tracing::warn!("cannot remove {}: {e}", path.display());
            }
        }
        Ok(())
    }
}

impl Drop for SnapshotWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.store.disk.remove_file(&self.path).ok();
        }
    }
}

/// Reads one snapshot, checking every byte.
pub struct SnapshotReader {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    at: u64,
    seed: u32,
    seal: Option<Seal>,
    /// Frames so far: their numbers are the nonces.
    frames: u64,
    chain: u32,
    records: u64,
    meta: SnapshotMeta,
    chunk: Vec<u8>,
    next: usize,
}

impl SnapshotReader {
    /// What the snapshot is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::damaged(&self.path, self.at, what)
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; FRAME_BYTES];
        let read = self.file.read_at(&mut head, self.at).map_err(|e| StoreError::io("read", &self.path, e))?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if read < FRAME_BYTES || len > MAX_RECORD + CHUNK_BYTES + 4 + TAG_BYTES {
            return Err(self.damaged("a frame is cut or has an impossible length"));
        }
        let mut bytes = vec![0; len];
        let read = self.file.read_at(&mut bytes, self.at + FRAME_BYTES as u64).map_err(|e| StoreError::io("read", &self.path, e))?;
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.seed, &head[..8]), &bytes);
        if read < len || head[8..] != crc.to_le_bytes() {
            return Err(self.damaged("the checksum of a frame does not match"));
        }
        if head[4] != END {
            self.chain = crc32c::crc32c_append(self.chain, &crc.to_le_bytes());
        }
        if let Some(seal) = &self.seal {
            match seal.open(numbered(self.frames.into()), &head[..8], &mut bytes).map(|text| text.len()) {
                Some(len) => bytes.truncate(len),
                None => return Err(self.damaged("the encryption of a frame does not match: it was changed, or is from another place")),
            }
        }
        self.frames += 1;
        self.at += (FRAME_BYTES + len) as u64;
        Ok((head[4], bytes))
    }

    /// The next record; `None` after the last one, when count and checksum are as they were written.
    pub fn next_record(&mut self) -> Result<Option<Vec<u8>>> {
        if self.next >= self.chunk.len() {
            match self.frame()? {
                (CHUNK, chunk) => (self.chunk, self.next) = (chunk, 0),
                (END, end) => {
                    let mut expected = self.records.to_le_bytes().to_vec();
                    expected.extend(self.chain.to_le_bytes());
                    return if end == expected { Ok(None) } else { Err(self.damaged("records are missing")) };
                }
                _ => return Err(self.damaged("an unknown frame")),
            }
        }
        let rest = self.chunk.get(self.next..).unwrap_or_default();
        let Some((len, rest)) = rest.split_first_chunk::<4>() else { return Err(self.damaged("a record is cut")) };
        let len = u32::from_le_bytes(*len) as usize;
        let Some(record) = rest.get(..len) else { return Err(self.damaged("a record is cut")) };
        let record = record.to_vec();
        self.next += 4 + len;
        self.records += 1;
        Ok(Some(record))
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
