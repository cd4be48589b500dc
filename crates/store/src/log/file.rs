//! [`LogStore`] in append-only segment files.

use super::{
    LogRecord, LogState, LogStore, MAX_RECORD_BYTES,
    format::{
        HEADER_BYTES, Kind, Parsed, RECORD_HEADER_BYTES, check_segment_header, parse_record, record_bytes, seed, segment_header,
        write_record,
    },
};
use crate::{
    disk::{Disk, DiskFile, OpenMode},
    error::{Result, StoreError},
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

/// A segment is read whole at open; a larger file is not ours.
const MAX_SEGMENT_BYTES: u64 = 1 << 30;
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
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    seed: u32,
    options: FileLogOptions,
    inner: Mutex<Inner>,
}

struct Segment {
    number: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

/// Where an entry is.
#[derive(Clone, Copy)]
struct Slot {
    term: u64,
    segment: u64,
    offset: u64,
    payload_len: u32,
}

#[derive(Default)]
struct Inner {
    /// Consecutive numbers; the last one is written.
    segments: VecDeque<Segment>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    hard: Option<HardState>,
    committed: Option<Mark>,
    purged: Option<Mark>,
    /// Where the next record goes in the last segment, and how large that file is.
    tail: u64,
    capacity: u64,
    /// Sequence number of the next record; all below `synced` are durable.
    seq: u64,
    synced: u64,
    spare: Option<Arc<dyn DiskFile>>,
    /// Segments below this number hold nothing that is needed once the purge is durable.
    obsolete_below: u64,
    poisoned: Option<String>,
}

impl Inner {
    fn last(&self) -> Option<Mark> {
        match self.slots.back() {
            Some(slot) => Some(Mark { index: self.first + self.slots.len() as u64 - 1, term: slot.term }),
            None => self.purged,
        }
    }
    fn next_index(&self) -> u64 {
        self.last().map_or(0, |m| m.index + 1)
    }
    fn slot(&self, index: u64) -> Option<Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }
    fn truncate_from(&mut self, index: u64) {
        self.slots.truncate(usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX));
    }
    fn purge_to(&mut self, mark: Mark) {
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
    fn file_of(&self, number: u64) -> Option<&Segment> {
        let front = self.segments.front()?.number;
        self.segments.get(usize::try_from(number.checked_sub(front)?).ok()?)
    }
}

fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

impl FileLog {
    /// Opens the log in `dir`, which exists; an empty directory is an empty log. A torn tail is cut off; damage to what was durable is an
    /// error, and then no file was changed.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, options: FileLogOptions) -> Result<FileLog> {
        let log = FileLog { disk, dir: dir.to_path_buf(), identity, seed: seed(identity), options, inner: Mutex::new(Inner::default()) };
        let mut inner = log.recover()?;
        if inner.segments.is_empty() {
            log.roll(&mut inner, 0)?;
        }
        *log.inner.lock() = inner;
        Ok(log)
    }

    fn recover(&self) -> Result<Inner> {
        let names = self.disk.list(&self.dir).map_err(|e| StoreError::io("read", &self.dir, e))?;
        let mut numbers = Vec::new();
        let mut leftovers = Vec::new();
        for name in &names {
            match name.strip_suffix(".log").filter(|hex| hex.len() == 16).and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
                Some(number) => numbers.push(number),
                None if name.ends_with(".tmp") => leftovers.push(self.dir.join(name)),
                None => {}
            }
        }
        numbers.sort_unstable();
        // Purged segments may come back after a power loss, in any subset: only the consecutive run that ends with the last one counts.
        let start =
            (1..numbers.len()).rev().find(|i| numbers.get(*i - 1).zip(numbers.get(*i)).is_some_and(|(a, b)| a + 1 != *b)).unwrap_or(0);
        leftovers.extend(numbers.iter().take(start).map(|n| self.dir.join(segment_name(*n))));
        let mut inner = Inner::default();
        let mut cut = None;
        let count = numbers.len();
        for (i, number) in numbers.iter().enumerate().skip(start) {
            cut = self.replay(&mut inner, *number, i == start, i + 1 == count)?;
        }
        if let Some(purged) = inner.purged {
            inner.purge_to(purged);
        }
        if !inner.slots.is_empty()
            && inner.first > inner.purged.map_or(0, |p| p.index + 1)
            && let Some(segment) = inner.segments.front()
        {
            return Err(StoreError::damaged(
                &segment.path,
                0,
                format!("the segment before it is missing: entries below {} are gone", inner.first),
            ));
        }
        // An entry is written before the record that says it is committed, so it can only be absent because a file is.
        if let (Some(committed), Some(segment)) = (inner.committed, inner.segments.front())
            && inner.last().is_none_or(|last| last.index < committed.index)
        {
            let what = format!("entries up to {committed} were committed and are gone: are segments before it missing?");
            return Err(StoreError::damaged(&segment.path, 0, what));
        }
        // Nothing was changed up to here. From here on nothing that was durable is touched.
        if let (Some(at), Some(segment)) = (cut, inner.segments.back()) {
            tracing::warn!("{}: cutting an incomplete record at byte {at}, it was never acknowledged", segment.path.display());
            segment.file.truncate(at).map_err(|e| StoreError::io("truncate", &segment.path, e))?;
        }
        if let Some(segment) = inner.segments.back() {
            // A full disk may refuse to reserve; the log is still readable then.
            let capacity = self.options.segment_bytes.max(inner.tail);
            if inner.capacity < capacity || cut.is_some() {
                inner.capacity = if segment.file.allocate(capacity).is_ok() { capacity } else { inner.tail };
            }
            segment.file.sync_data().map_err(|e| StoreError::io("sync", &segment.path, e))?;
            inner.synced = inner.seq;
        }
        for path in leftovers {
            self.disk.remove_file(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        }
        Ok(inner)
    }

    /// Reads one segment into `inner`. Gives the offset of a torn tail, if there is one.
    fn replay(&self, inner: &mut Inner, number: u64, is_first: bool, is_last: bool) -> Result<Option<u64>> {
        let path = self.dir.join(segment_name(number));
        let file =
            self.disk.open(&path, if is_last { OpenMode::Write } else { OpenMode::Read }).map_err(|e| StoreError::io("open", &path, e))?;
        let len = file.len().map_err(|e| StoreError::io("read", &path, e))?;
        if len > MAX_SEGMENT_BYTES {
            return Err(StoreError::damaged(&path, 0, "it is too large"));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = file.read_at(&mut bytes, 0).map_err(|e| StoreError::io("read", &path, e))?;
        bytes.truncate(read);
        let first_seq = check_segment_header(&path, &bytes, self.identity, number)?;
        if !is_first && first_seq != inner.seq {
            return Err(StoreError::damaged(
                &path,
                48,
                format!("it starts at record {first_seq}, the segment before it ends at {}", inner.seq),
            ));
        }
        inner.seq = first_seq;
        let mut at = HEADER_BYTES;
        while let Some(record) = bytes.get(at..).and_then(|rest| parse_record(rest, self.seed)).filter(|r| r.seq == inner.seq) {
            self.replay_record(inner, &path, number, at as u64, record)?;
            inner.seq += 1;
            at += record.total;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let clean = rest.iter().all(|b| *b == 0);
        if !clean {
            // Torn, unless a later record proves that this one was durable.
            let later = (0..rest.len()).step_by(8).filter_map(|o| parse_record(rest.get(o..)?, self.seed)).find(|r| r.synced > inner.seq);
            if let Some(later) = later {
                let what = format!("record {} is unreadable, record {} shows that it had been written", inner.seq, later.seq);
                return Err(StoreError::damaged(&path, at as u64, what));
            }
        }
        if !clean && !is_last {
            return Err(StoreError::damaged(&path, at as u64, "an unreadable record in a completed segment"));
        }
        inner.segments.push_back(Segment { number, path, file });
        (inner.tail, inner.capacity) = (at as u64, len);
        Ok((!clean).then_some(at as u64))
    }

    fn replay_record(&self, inner: &mut Inner, path: &Path, segment: u64, offset: u64, record: Parsed) -> Result<()> {
        match record.kind {
            Kind::Entry(mark) => {
                if inner.slots.is_empty() {
                    inner.first = mark.index;
                } else if mark.index != inner.next_index() {
                    return Err(StoreError::damaged(
                        path,
                        offset,
                        format!("entry {mark} follows entry {}", inner.next_index().saturating_sub(1)),
                    ));
                }
                inner.slots.push_back(Slot { term: mark.term, segment, offset, payload_len: record.payload_len as u32 });
            }
            Kind::Hard(hard) => inner.hard = Some(hard),
            Kind::Committed(mark) => inner.committed = Some(mark),
            Kind::Truncate(index) => inner.truncate_from(index),
            Kind::Purge(mark) => inner.purge_to(mark),
        }
        Ok(())
    }

    /// Starts a new segment that has room for `needed` bytes. The current one is made durable before, so that only the last segment can
    /// have a torn tail. The new one begins with the state that earlier segments hold, so that these can be removed.
    fn roll(&self, inner: &mut Inner, needed: u64) -> Result<()> {
        self.sync_current(inner)?;
        let number = inner.segments.back().map_or(0, |s| s.number + 1);
        let path = self.dir.join(segment_name(number));
        let mut head = segment_header(self.identity, number, inner.seq).to_vec();
        let mut seq = inner.seq;
        let facts = [inner.hard.map(Kind::Hard), inner.purged.map(Kind::Purge), inner.committed.map(Kind::Committed)];
        for kind in facts.into_iter().flatten() {
            write_record(&mut head, self.seed, seq, inner.seq, kind, &[]);
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
        inner.segments.push_back(Segment { number, path, file });
        (inner.tail, inner.capacity) = (head.len() as u64, capacity);
        (inner.seq, inner.synced) = (seq, seq);
        Ok(())
    }

    /// Makes a file with reserved space. Nothing is left behind when there is none.
    fn reserve(&self, path: &Path, capacity: u64) -> Result<Arc<dyn DiskFile>> {
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
        let needed: u64 = records.clone().map(|(_, payload)| record_bytes(payload.len()) as u64).sum();
        if inner.tail + needed > inner.capacity.max(HEADER_BYTES as u64) {
            self.roll(inner, needed)?;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(needed).unwrap_or(0));
        let mut seq = inner.seq;
        for (kind, payload) in records {
            write_record(&mut bytes, self.seed, seq, inner.synced, kind, payload);
            seq += 1;
        }
        let Some(segment) = inner.segments.back() else { return Err(StoreError::Invalid("the log has no segment".to_owned())) };
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
            inner.slots.push_back(Slot { term: entry.mark.term, segment, offset, payload_len: entry.payload.len() as u32 });
            offset += record_bytes(entry.payload.len()) as u64;
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
                found.push((index, slot, segment.file.clone(), segment.path.clone()));
            }
        }
        found
            .into_iter()
            .map(|(index, slot, file, path)| {
                let mut bytes = vec![0; record_bytes(slot.payload_len as usize)];
                let read = file.read_at(&mut bytes, slot.offset).map_err(|e| StoreError::io("read", &path, e))?;
                bytes.truncate(read);
                let mark = Mark { index, term: slot.term };
                match parse_record(&bytes, self.seed) {
                    Some(record) if record.kind == Kind::Entry(mark) => {
                        let end = RECORD_HEADER_BYTES + record.payload_len;
                        Ok(LogRecord { mark, payload: Bytes::from(bytes).slice(RECORD_HEADER_BYTES..end) })
                    }
                    _ => Err(StoreError::damaged(&path, slot.offset, format!("entry {mark} is unreadable"))),
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
