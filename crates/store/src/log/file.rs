//! [`LogStore`] in append-only segment files.

use super::{
    LogRecord, LogState, LogStore, MAX_RECORD_BYTES,
    format::{
        HEADER_BYTES, Kind, Sealer, open_payload, parse_record, payload_start, record_bytes, seed, segment_header, stored_len,
        write_record,
    },
};
use crate::{
    disk::{Disk, DiskFile, OpenMode},
    error::{Result, StoreError},
    seal::{Keyring, Nonces, Seal},
    types::{HardState, Identity, Mark},
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const SPARE: &str = "spare.tmp";

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct FileLogOptions {
    /// Size of a segment file in bytes, reserved when it is made. Purging frees whole segments.
    pub segment_bytes: u64,
}

impl Default for FileLogOptions {
    fn default() -> Self {
        FileLogOptions { segment_bytes: 16 << 20 }
    }
}

/// The log of one node in a directory of its own.
pub struct FileLog {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) identity: Identity,
    pub(super) seed: u32,
    pub(super) options: FileLogOptions,
    pub(super) keyring: Option<Arc<Keyring>>,
    pub(super) inner: Mutex<Inner>,
}

pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Key of a sealed one.
    pub(super) seal: Option<Arc<Seal>>,
    /// Sequence number of its first record.
    pub(super) first_seq: u64,
}

/// Where an entry is.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) term: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// As it is stored.
    pub(super) payload_len: u32,
}

#[derive(Default)]
pub(super) struct Inner {
    /// Consecutive numbers; the last one is written.
    pub(super) segments: VecDeque<Segment>,
    /// Index of the first slot.
    pub(super) first: u64,
    pub(super) slots: VecDeque<Slot>,
    pub(super) hard: Option<HardState>,
    pub(super) committed: Option<Mark>,
    pub(super) purged: Option<Mark>,
    /// Where the next record goes in the last segment, and how large that file is.
    pub(super) tail: u64,
    pub(super) capacity: u64,
    /// Sequence number of the next record; all below `synced` are durable.
    pub(super) seq: u64,
    pub(super) synced: u64,
    pub(super) spare: Option<Arc<dyn DiskFile>>,
    /// Segments below this number hold nothing that is needed once the purge is durable.
    pub(super) obsolete_below: u64,
    pub(super) poisoned: Option<String>,
    /// For sealed records; `Some` as soon as one is written.
    pub(super) nonces: Option<Nonces>,
}

impl Inner {
    pub(super) fn last(&self) -> Option<Mark> {
        match self.slots.back() {
            Some(slot) => Some(Mark { index: self.first + self.slots.len() as u64 - 1, term: slot.term }),
            None => self.purged,
        }
    }
    pub(super) fn next_index(&self) -> u64 {
        self.last().map_or(0, |m| m.index + 1)
    }
    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }
    pub(super) fn truncate_from(&mut self, index: u64) {
        self.slots.truncate(usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX));
    }
    pub(super) fn purge_to(&mut self, mark: Mark) {
        if self.purged.is_none_or(|p| p.index < mark.index) {
            self.purged = Some(mark);
        }
        let beyond = self.slot(mark.index).is_none_or(|s| s.term != mark.term) && mark.index >= self.first;
        if beyond {
            self.slots.clear();
        }
        while self.first <= mark.index && self.slots.pop_front().is_some() {
            self.first += 1;
        }
        if self.slots.is_empty() {
            self.first = self.next_index();
        }
    }
    pub(super) fn file_of(&self, number: u64) -> Option<&Segment> {
        let front = self.segments.front()?.number;
        self.segments.get(usize::try_from(number.checked_sub(front)?).ok()?)
    }
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

impl FileLog {
    /// Opens the log in `dir`, which exists; an empty directory is an empty log. A torn tail is cut off; damage to what was durable is an
    /// error, as is a segment whose key `keyring` does not have ([`StoreError::Locked`]), and then no file was changed. With a keyring
    /// everything that is written is sealed; older segments stay as they are until [`FileLog::reseal`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: FileLogOptions,
        keyring: Option<Arc<Keyring>>,
    ) -> Result<FileLog> {
        let log = FileLog::closed(disk, dir, identity, options, keyring);
        let mut inner = log.recover()?;
        if inner.segments.is_empty() {
            log.roll(&mut inner, 0)?;
        }
        *log.inner.lock() = inner;
        Ok(log)
    }

    pub(super) fn closed(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: FileLogOptions,
        keyring: Option<Arc<Keyring>>,
    ) -> FileLog {
        FileLog { disk, dir: dir.to_path_buf(), identity, seed: seed(identity), options, keyring, inner: Mutex::new(Inner::default()) }
    }

    /// Whether a segment is sealed, or not, as what is written now.
    pub(super) fn is_current(&self, segment: &Segment) -> bool {
        segment.seal.as_ref().map(|s| s.id()) == self.keyring.as_ref().map(|k| k.sealing_id())
    }

    /// Seals a segment whose header is `context`, if there is a keyring. Gives what follows the header.
    pub(super) fn new_seal(&self, context: &[u8]) -> Result<(Option<Arc<Seal>>, Vec<u8>)> {
        let Some(keyring) = &self.keyring else { return Ok((None, Vec::new())) };
        let (seal, block) = keyring.seal(context)?;
        Ok((Some(Arc::new(seal)), block.to_vec()))
    }

    /// What seals the records of a segment with this seal.
    pub(super) fn sealer<'a>(&self, seal: Option<&'a Arc<Seal>>, nonces: &'a mut Option<Nonces>) -> Option<Sealer<'a>> {
        let keyring = self.keyring.as_ref()?;
        seal.map(|seal| Sealer { seal, nonces: nonces.get_or_insert_with(|| Nonces::new(keyring)) })
    }

    /// Starts a new segment that has room for `needed` bytes. The current one is made durable before, so that only the last segment can
    /// have a torn tail. The new one begins with the state that earlier segments hold, so that these can be removed.
    pub(super) fn roll(&self, inner: &mut Inner, needed: u64) -> Result<()> {
        self.sync_current(inner)?;
        let number = inner.segments.back().map_or(0, |s| s.number + 1);
        let path = self.dir.join(segment_name(number));
        let mut head = segment_header(self.identity, number, inner.seq, self.keyring.is_some()).to_vec();
        let (seal, block) = self.new_seal(&head)?;
        head.extend(block);
        let (first_seq, mut seq) = (inner.seq, inner.seq);
        let facts = [inner.hard.map(Kind::Hard), inner.purged.map(Kind::Purge), inner.committed.map(Kind::Committed)];
        for kind in facts.into_iter().flatten() {
            write_record(&mut head, self.seed, (seq, first_seq), kind, &[], self.sealer(seal.as_ref(), &mut inner.nonces))?;
            seq += 1;
        }
        let capacity = self.options.segment_bytes.max(head.len() as u64 + needed);
        let spare_path = self.dir.join(SPARE);
        let file = match inner.spare.take() {
            Some(file) if capacity == self.options.segment_bytes => file,
            _ => self.reserve(&spare_path, capacity)?,
        };
        if let Err(e) = file.write_at(&head, 0) {
            self.disk.remove_file(&spare_path).ok();
            return Err(StoreError::io("write to", &spare_path, e));
        }
        let made = file.sync_data().and_then(|()| self.disk.rename(&spare_path, &path)).and_then(|()| self.disk.sync_dir(&self.dir));
        if let Err(e) = made {
            // Whether the new name exists is unknown; going on could write behind it.
            let err = StoreError::io("write to", &path, e);
            inner.poisoned = Some(err.to_string());
            return Err(err);
        }
        inner.segments.push_back(Segment { number, path, file, seal, first_seq });
        (inner.tail, inner.capacity) = (head.len() as u64, capacity);
        (inner.seq, inner.synced) = (seq, seq);
        Ok(())
    }

    /// Makes a file with reserved space. Nothing is left behind when there is none.
    pub(super) fn reserve(&self, path: &Path, capacity: u64) -> Result<Arc<dyn DiskFile>> {
        let made = self.disk.open(path, OpenMode::Create).and_then(|file| {
            file.allocate(capacity)?;
            file.sync_data()?;
            Ok(file)
        });
        made.map_err(|e| {
            self.disk.remove_file(path).ok();
            StoreError::io("write to", path, e)
        })
    }

    fn sync_current(&self, inner: &mut Inner) -> Result<()> {
        let Some(segment) = inner.segments.back() else { return Ok(()) };
        if let Err(e) = segment.file.sync_data() {
            return Err(poison(inner, e));
        }
        inner.synced = inner.seq;
        Ok(())
    }

    /// Writes records at the tail, all or none. Gives the number and offset of the first one.
    fn write<'a>(&self, inner: &mut Inner, records: impl Iterator<Item = (Kind, &'a [u8])> + Clone) -> Result<(u64, u64)> {
        if let Some(reason) = &inner.poisoned {
            return Err(StoreError::Poisoned { reason: reason.clone() });
        }
        let sealed = self.keyring.is_some();
        let needed: u64 = records.clone().map(|(_, payload)| record_bytes(stored_len(payload.len(), sealed)) as u64).sum();
        let current = inner.segments.back().is_some_and(|s| self.is_current(s));
        if !current || inner.tail + needed > inner.capacity.max(HEADER_BYTES as u64) {
            self.roll(inner, needed)?;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(needed).unwrap_or(0));
        let mut seq = inner.seq;
        let Some(segment) = inner.segments.back() else { return Err(StoreError::Invalid("the log has no segment".to_owned())) };
        for (kind, payload) in records {
            let sealer = self.sealer(segment.seal.as_ref(), &mut inner.nonces);
            write_record(&mut bytes, self.seed, (seq, inner.synced), kind, payload, sealer)?;
            seq += 1;
        }
        if let Err(e) = segment.file.write_at(&bytes, inner.tail) {
            let err = StoreError::io("write to", &segment.path, e);
            // What was written in part must not be found behind the next record.
            if let Err(e) = segment.file.truncate(inner.tail) {
                return Err(poison(inner, e));
            }
            inner.capacity = if segment.file.allocate(inner.capacity).is_ok() { inner.capacity } else { inner.tail };
            return Err(err);
        }
        let start = (segment.number, inner.tail);
        inner.tail += needed;
        inner.capacity = inner.capacity.max(inner.tail);
        inner.seq = seq;
        Ok(start)
    }

    fn write_one(&self, kind: Kind) -> Result<parking_lot::MutexGuard<'_, Inner>> {
        let mut inner = self.inner.lock();
        self.write(&mut inner, std::iter::once((kind, [].as_slice())))?;
        Ok(inner)
    }
}

fn poison(inner: &mut Inner, e: std::io::Error) -> StoreError {
    let path = inner.segments.back().map(|s| s.path.display().to_string()).unwrap_or_default();
    let reason = format!("cannot sync {path}: {e}");
    inner.poisoned = Some(reason.clone());
    StoreError::Poisoned { reason }
}

impl LogStore for FileLog {
    fn sync_delay(&self) -> Duration {
        self.disk.sync_delay()
    }

    fn state(&self) -> LogState {
        let inner = self.inner.lock();
        LogState { hard: inner.hard, committed: inner.committed, purged: inner.purged, last: inner.last() }
    }

    fn append(&self, entries: &[LogRecord]) -> Result<()> {
        let mut inner = self.inner.lock();
        let mut last = inner.last();
        for entry in entries {
            let expected = last.map_or(0, |m| m.index + 1);
            if entry.mark.index != expected || last.is_some_and(|l| l.term > entry.mark.term) {
                let after = last.map_or_else(|| "an empty log".to_owned(), |l| l.to_string());
                return Err(StoreError::Invalid(format!("entry {} appended after {after}", entry.mark)));
            }
            if entry.payload.len() > MAX_RECORD_BYTES {
                return Err(StoreError::TooLarge { what: "log entry", size: entry.payload.len(), limit: MAX_RECORD_BYTES });
            }
            last = Some(entry.mark);
        }
        if entries.is_empty() {
            return Ok(());
        }
        let (segment, mut offset) = self.write(&mut inner, entries.iter().map(|e| (Kind::Entry(e.mark), e.payload.as_ref())))?;
        if inner.slots.is_empty() {
            inner.first = entries.first().map_or(0, |e| e.mark.index);
        }
        for entry in entries {
            let stored = stored_len(entry.payload.len(), self.keyring.is_some());
            inner.slots.push_back(Slot { term: entry.mark.term, segment, offset, payload_len: stored as u32 });
            offset += record_bytes(stored) as u64;
        }
        Ok(())
    }

    fn save_hard_state(&self, hard: HardState) -> Result<()> {
        self.write_one(Kind::Hard(hard))?.hard = Some(hard);
        Ok(())
    }

    fn save_committed(&self, mark: Mark) -> Result<()> {
        self.write_one(Kind::Committed(mark))?.committed = Some(mark);
        Ok(())
    }

    fn truncate_from(&self, index: u64) -> Result<()> {
        if self.inner.lock().next_index() <= index {
            return Ok(());
        }
        self.write_one(Kind::Truncate(index))?.truncate_from(index);
        Ok(())
    }

    fn purge_to(&self, mark: Mark) -> Result<()> {
        if self.state().purged.is_some_and(|p| p.index >= mark.index) {
            return Ok(());
        }
        let mut inner = self.write_one(Kind::Purge(mark))?;
        inner.purge_to(mark);
        let current = inner.segments.back().map_or(0, |s| s.number);
        inner.obsolete_below = inner.slots.front().map_or(current, |s| s.segment.min(current));
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<LogRecord>> {
        let mut found = Vec::new();
        {
            let inner = self.inner.lock();
            let mut size = 0usize;
            for index in range {
                let Some(slot) = inner.slot(index) else { break };
                size += slot.payload_len as usize;
                if size > max_bytes && !found.is_empty() {
                    break;
                }
                let Some(segment) = inner.file_of(slot.segment) else { break };
                found.push((index, slot, segment.file.clone(), segment.path.clone(), segment.seal.clone()));
            }
        }
        found
            .into_iter()
            .map(|(index, slot, file, path, seal)| {
                let mut bytes = vec![0; record_bytes(slot.payload_len as usize)];
                let read = file.read_at(&mut bytes, slot.offset).map_err(|e| StoreError::io("read", &path, e))?;
                bytes.truncate(read);
                let mark = Mark { index, term: slot.term };
                let record = parse_record(&bytes, self.seed).filter(|record| record.kind == Kind::Entry(mark));
                let range = record.and_then(|record| {
                    let len = open_payload(&mut bytes, &record, seal.as_deref())?.len();
                    let start = payload_start(record.sealed);
                    Some(start..start + len)
                });
                match range {
                    Some(range) => Ok(LogRecord { mark, payload: Bytes::from(bytes).slice(range) }),
                    None => Err(StoreError::damaged(&path, slot.offset, format!("entry {mark} is unreadable"))),
                }
            })
            .collect()
    }

    fn mark_at(&self, index: u64) -> Option<Mark> {
        self.inner.lock().slot(index).map(|slot| Mark { index, term: slot.term })
    }

    fn sync(&self) -> Result<()> {
        let (file, seq) = {
            let inner = self.inner.lock();
            if let Some(reason) = &inner.poisoned {
                return Err(StoreError::Poisoned { reason: reason.clone() });
            }
            match inner.segments.back() {
                Some(segment) if inner.synced < inner.seq => (segment.file.clone(), inner.seq),
                _ => return Ok(()),
            }
        };
        // Readers go on meanwhile.
        let done = file.sync_data();
        let mut inner = self.inner.lock();
        if let Err(e) = done {
            return Err(poison(&mut inner, e));
        }
        inner.synced = inner.synced.max(seq);
        // Entries that are still open in a reader stay readable: removing a name does not remove an open file.
        let mut removed = false;
        while inner.segments.len() > 1 && inner.segments.front().is_some_and(|s| s.number < inner.obsolete_below) {
            let Some(segment) = inner.segments.pop_front() else { break };
            // A file that stays only takes space, and is removed at the next open.
            if let Err(e) = self.disk.remove_file(&segment.path) {
                tracing::warn!("cannot remove {}: {e}", segment.path.display());
            }
            removed = true;
        }
        if removed && let Err(e) = self.disk.sync_dir(&self.dir) {
            return Err(poison(&mut inner, e));
        }
        Ok(())
    }

    fn prepare(&self) -> Result<()> {
        if self.inner.lock().spare.is_some() {
            return Ok(());
        }
        let file = self.reserve(&self.dir.join(SPARE), self.options.segment_bytes)?;
        self.inner.lock().spare = Some(file);
        Ok(())
    }

    fn room(&self) -> u64 {
        let inner = self.inner.lock();
        let spare = if inner.spare.is_some() { self.options.segment_bytes } else { 0 };
        inner.capacity.saturating_sub(inner.tail) + spare
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
