//! Rewriting segments that are not sealed with the first key.

use super::{
    FileLog,
    file::{Inner, Segment},
    format::{Kind, check_segment_header, open_payload, parse_record, segment_header, write_record},
    recover::MAX_SEGMENT_BYTES,
};
use crate::{
    disk::OpenMode,
    error::{Result, StoreError},
};
use std::collections::{BTreeMap, BTreeSet};

const RESEALED: &str = "reseal.tmp";

impl FileLog {
    /// Ids of the keys that segments are sealed with; `None` stands for segments that are not sealed.
    pub fn key_ids(&self) -> BTreeSet<Option<String>> {
        self.inner.lock().segments.iter().map(|s| s.seal.as_ref().map(|seal| seal.id().to_owned())).collect()
    }

    /// Seals every segment with the first key of the keyring, and gives how many were not. The contents stay what they are, segments are
    /// replaced one by one, and what an interruption left undone is done by the next call. Without a keyring there is nothing to do.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no space for a copy of a segment: the log is usable, some of it sealed as it was.
    pub fn reseal(&self) -> Result<usize> {
        let mut inner = self.inner.lock();
        let old: Vec<u64> = inner.segments.iter().filter(|s| !self.is_current(s)).map(|s| s.number).collect();
        if self.keyring.is_none() || old.is_empty() {
            return Ok(0);
        }
        // What is being written is completed, so that all that is old is complete and durable.
        if inner.segments.back().is_some_and(|s| !self.is_current(s)) {
            self.roll(&mut inner, 0)?;
        }
        for number in &old {
            let tmp = self.dir.join(RESEALED);
            let done = self.reseal_segment(&mut inner, *number);
            if done.is_err() {
                self.disk.remove_file(&tmp).ok();
            }
            done?;
        }
        Ok(old.len())
    }

    fn reseal_segment(&self, inner: &mut Inner, number: u64) -> Result<()> {
        let after = inner.file_of(number + 1).map(|s| s.first_seq);
        let (Some(Segment { path, file, seal, .. }), Some(after)) = (inner.file_of(number), after) else { return Ok(()) };
        let (path, old_seal) = (path.clone(), seal.clone());
        let len = file.len().map_err(|e| StoreError::io("read", &path, e))?.min(MAX_SEGMENT_BYTES);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = file.read_at(&mut bytes, 0).map_err(|e| StoreError::io("read", &path, e))?;
        bytes.truncate(read);
        let head = check_segment_header(&path, &bytes, self.identity, number)?;
        let mut out = segment_header(self.identity, number, head.first_seq, true).to_vec();
        let (seal, block) = self.new_seal(&out)?;
        out.extend(block);
        let (mut at, mut seq) = (head.bytes(), head.first_seq);
        // Old to new offset and stored length of the entries.
        let mut moved = BTreeMap::new();
        while seq < after {
            let unreadable = || StoreError::damaged(&path, at as u64, format!("record {seq} is unreadable"));
            let rest = bytes.get_mut(at..).ok_or_else(unreadable)?;
            let record = parse_record(rest, self.seed).filter(|r| r.seq == seq).ok_or_else(unreadable)?;
            let payload = open_payload(rest, &record, old_seal.as_deref()).ok_or_else(unreadable)?;
            let start = out.len() as u64;
            let sealer = self.sealer(seal.as_ref(), &mut inner.nonces);
            write_record(&mut out, self.seed, (record.seq, record.synced), record.kind, payload, sealer)?;
            if let (Kind::Entry(_), Some(written)) = (record.kind, out.get(start as usize..).and_then(|r| parse_record(r, self.seed))) {
                moved.insert(at as u64, (start, written.payload_len as u32));
            }
            at += record.total;
            seq += 1;
        }
        let tmp = self.dir.join(RESEALED);
        let file = self.disk.open(&tmp, OpenMode::Create).map_err(|e| StoreError::io("create", &tmp, e))?;
        file.write_at(&out, 0).map_err(|e| StoreError::io("write to", &tmp, e))?;
        file.sync_data().map_err(|e| StoreError::io("sync", &tmp, e))?;
        self.disk.rename(&tmp, &path).map_err(|e| StoreError::io("rename", &tmp, e))?;
        self.disk.sync_dir(&self.dir).map_err(|e| StoreError::io("sync", &self.dir, e))?;
        for slot in inner.slots.iter_mut().filter(|s| s.segment == number) {
            if let Some((offset, payload_len)) = moved.get(&slot.offset) {
                (slot.offset, slot.payload_len) = (*offset, *payload_len);
            }
        }
        if let Some(segment) = inner.segments.iter_mut().find(|s| s.number == number) {
            (segment.file, segment.seal) = (file, seal);
        }
        Ok(())
    }
}
