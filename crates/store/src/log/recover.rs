//! Opening a [`FileLog`]: everything is read and checked before anything is changed.

use super::{
    FileLog, FileLogOptions,
    file::{Inner, Segment, Slot, segment_name},
    format::{HEADER_BYTES, Kind, Parsed, check_segment_header, open_payload, parse_record},
};
use crate::{
    disk::{Disk, OpenMode},
    error::{Result, StoreError},
    seal::{Keyring, unlock},
    types::Identity,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A segment is read whole at open; a larger file is not ours.
pub(super) const MAX_SEGMENT_BYTES: u64 = 1 << 30;

/// What the files of a log hold.
struct Scan {
    inner: Inner,
    /// Where the torn tail of the last segment begins.
    cut: Option<u64>,
    /// Files that nobody needs.
    leftovers: Vec<PathBuf>,
}

impl FileLog {
    /// Reads the whole log and changes nothing: an error is what [`FileLog::open`] would refuse to open it for.
    pub(crate) fn check(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, keyring: Option<Arc<Keyring>>) -> Result<()> {
        FileLog::closed(disk, dir, identity, FileLogOptions::default(), keyring).scan().map(|_| ())
    }

    pub(super) fn recover(&self) -> Result<Inner> {
        let Scan { mut inner, cut, leftovers } = self.scan()?;
        // From here on nothing that was durable is touched.
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

    fn scan(&self) -> Result<Scan> {
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
        Ok(Scan { inner, cut, leftovers })
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
        let head = check_segment_header(&path, &bytes, self.identity, number)?;
        let seal = match &head.block {
            Some(block) => Some(unlock(self.keyring.as_deref(), &path, bytes.get(..HEADER_BYTES).unwrap_or_default(), block)?),
            None => None,
        };
        let first_seq = head.first_seq;
        if !is_first && first_seq != inner.seq {
            return Err(StoreError::damaged(
                &path,
                48,
                format!("it starts at record {first_seq}, the segment before it ends at {}", inner.seq),
            ));
        }
        inner.seq = first_seq;
        let mut at = head.bytes();
        while let Some(record) = bytes.get(at..).and_then(|rest| parse_record(rest, self.seed)).filter(|r| r.seq == inner.seq) {
            if bytes.get_mut(at..).and_then(|rest| open_payload(rest, &record, seal.as_ref())).is_none() {
                let what = format!("the encryption of record {} does not match: it was changed, or is from another place", record.seq);
                return Err(StoreError::damaged(&path, at as u64, what));
            }
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
        inner.segments.push_back(Segment { number, path, file, seal: seal.map(Arc::new), first_seq });
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
}
