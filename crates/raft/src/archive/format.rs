//! The archive file: all resources and outcomes at one position, in one stream that needs nothing else to be read.
//!
//! ```text
//! header   magic "IKADAARC", version u16, 2 zero bytes, crc32c u32                         (16 bytes)
//! frames   length u32, kind u8 (1 description, 2 records, 3 end), 3 zero bytes, crc32c u32, bytes
//! records  each: length u32, bytes (records of crate::record); about 1 MiB together
//! end      number of records u64
//! ```
//!
//! All numbers are little endian. A frame's checksum continues that of the frame before, so that frames cannot be left out, repeated or
//! exchanged. Nothing follows the end.

use super::ArchiveError;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"IKADAARC";
/// Layout of the file. A newer one is refused.
pub(super) const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_BYTES: usize = 12;
/// A frame of records is closed when it has this many bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest frame: one record at its limit, and what was collected before it.
const MAX_FRAME: usize = CHUNK_BYTES + ikada_store::MAX_RECORD_BYTES + 8;
/// Most records: far above the memory of any node that could serve them.
const MAX_RECORDS: u64 = 50_000_000;
const DESCRIPTION: u8 = 1;
const RECORDS: u8 = 2;
const END: u8 = 3;

fn header() -> [u8; HEADER_BYTES] {
    let mut h = [0; HEADER_BYTES];
    let (magic, rest) = h.split_at_mut(8);
    magic.copy_from_slice(MAGIC);
    let (version, _) = rest.split_at_mut(2);
    version.copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c::crc32c(h.split_at(12).0);
    h.split_at_mut(12).1.copy_from_slice(&crc.to_le_bytes());
    h
}

/// Writes an archive.
pub(super) struct Writer<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
    chain: u32,
    records: u64,
    chunk: Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut dyn Write, description: &[u8]) -> io::Result<Self> {
        let header = header();
        let mut writer = Writer { out, bytes: 0, chain: crc32c::crc32c(&header), records: 0, chunk: Vec::new() };
        writer.write(&header)?;
        writer.frame(DESCRIPTION, description)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME);
        let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record is larger than an archive can hold"))?;
        let mut head = len.to_le_bytes().to_vec();
        head.extend([kind, 0, 0, 0]);
        self.chain = crc32c::crc32c_append(crc32c::crc32c_append(self.chain, &head), body);
        head.extend(self.chain.to_le_bytes());
        self.write(&head)?;
        self.write(body)
    }

    pub(super) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.chunk.extend(u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.chunk.extend(record);
        self.records += 1;
        if self.chunk.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() { Ok(()) } else { self.frame(RECORDS, &chunk) }
    }

    /// Ends the archive and gives its size in bytes.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        let end = self.records.to_le_bytes();
        self.frame(END, &end)?;
        self.out.flush()?;
        Ok(self.bytes)
    }
}

/// Reads an archive, checking every byte.
pub(super) struct Reader<'a> {
    input: &'a mut dyn Read,
    at: u64,
    chain: u32,
    records: u64,
    chunk: Vec<u8>,
    next: usize,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// A reader behind the description, and the description.
    pub(super) fn new(input: &'a mut dyn Read) -> Result<(Self, Vec<u8>), ArchiveError> {
        let mut reader = Reader { input, at: 0, chain: 0, records: 0, chunk: Vec::new(), next: 0, ended: false };
        let found = reader.take(HEADER_BYTES)?;
        if found.get(..8) != Some(MAGIC) {
            return Err(ArchiveError::NotAnArchive);
        }
        if found.len() < HEADER_BYTES {
            return Err(reader.damaged("it is cut"));
        }
        if let Some([low, high]) = found.get(8..10) {
            let version = u16::from_le_bytes([*low, *high]);
            if version > VERSION {
                return Err(ArchiveError::Newer { found: version, supported: VERSION });
            }
        }
        if found != header() {
            return Err(reader.damaged("its header is damaged"));
        }
        reader.chain = crc32c::crc32c(&found);
        match reader.frame()? {
            (DESCRIPTION, description) => Ok((reader, description)),
            _ => Err(reader.damaged("it does not begin with its description")),
        }
    }

    fn damaged(&self, what: &str) -> ArchiveError {
        ArchiveError::Damaged { at: self.at, what: what.to_owned() }
    }

    /// Up to so many bytes, fewer only at the end. Memory grows with what is there, not with what is announced.
    fn take(&mut self, bytes: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut found = Vec::with_capacity(bytes.min(64 << 10));
        (&mut *self.input).take(bytes as u64).read_to_end(&mut found).map_err(|e| ArchiveError::Read(e.to_string()))?;
        self.at += found.len() as u64;
        Ok(found)
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), ArchiveError> {
        let head = self.take(FRAME_BYTES)?;
        let Ok([a, b, c, d, kind, z1, z2, z3, crc @ ..]) = <[u8; FRAME_BYTES]>::try_from(head.as_slice()) else {
            return Err(self.damaged("it is cut"));
        };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > MAX_FRAME || [z1, z2, z3] != [0; 3] {
            return Err(self.damaged("a frame has an impossible head"));
        }
        let body = self.take(len)?;
        if body.len() < len {
            return Err(self.damaged("it is cut"));
        }
        self.chain = crc32c::crc32c_append(crc32c::crc32c_append(self.chain, head.get(..8).unwrap_or_default()), &body);
        if crc != self.chain.to_le_bytes() {
            return Err(self.damaged("the checksum of a frame does not match"));
        }
        Ok((kind, body))
    }

    /// The next record; `None` after the last one, when their number is right and nothing follows.
    pub(super) fn next_record(&mut self) -> Result<Option<Vec<u8>>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        while self.next >= self.chunk.len() {
            match self.frame()? {
                (RECORDS, chunk) => (self.chunk, self.next) = (chunk, 0),
                (END, end) => {
                    if end != self.records.to_le_bytes() {
                        return Err(self.damaged("records are missing"));
                    }
                    if !self.take(1)?.is_empty() {
                        return Err(self.damaged("something follows its end"));
                    }
                    self.ended = true;
                    return Ok(None);
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
        if self.records > MAX_RECORDS {
            return Err(self.damaged("more records than a node can hold"));
        }
        Ok(Some(record))
    }
}
