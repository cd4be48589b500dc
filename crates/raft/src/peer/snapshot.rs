//! Snapshots between nodes, as records: the receiver writes them into its own snapshot store under its own identity, and has read every
//! one before it counts. Both sides hold one batch of records at a time.

use super::{
    convert::{self, Malformed},
    proto::{self, snapshot_part::Part},
};
use crate::{
    cache::Position,
    record::{self, WorldBuilder},
    types::{LogId, log_id, mark},
};
use bytes::Bytes;
use futures::Stream;
use ikada_store::{Mark, SnapshotMeta, SnapshotReader, SnapshotStore, StoreError};
use std::{io, sync::Arc};
use tokio::sync::mpsc;

/// A batch is sent when it has this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that wait for the disk.
const QUEUE: usize = 2;

/// Reads one batch, and says whether it is the last.
fn read_batch(reader: &mut SnapshotReader) -> Result<(Vec<Bytes>, bool), StoreError> {
    let mut records = Vec::new();
    let mut size = 0;
    while size < BATCH_BYTES {
        let Some(record) = reader.next_record()? else {
            return Ok((records, true));
        };
        size += record.len();
        records.push(Bytes::from(record));
    }
    Ok((records, false))
}

/// The messages of a snapshot. It ends early when the file cannot be read; the reason is left in `failed`.
pub(crate) fn parts(
    header: proto::SnapshotHeader,
    reader: SnapshotReader,
    blocking: bool,
    failed: Arc<parking_lot::Mutex<Option<StoreError>>>,
) -> impl Stream<Item = proto::SnapshotPart> + Send + 'static {
    enum Next {
        Header(proto::SnapshotHeader, SnapshotReader),
        Records(SnapshotReader, u64),
        End(u64),
        Done,
    }
    futures::stream::unfold(Next::Header(header, reader), move |next| {
        let failed = failed.clone();
        async move {
            let (part, next) = match next {
                Next::Header(header, reader) => (Part::Header(header), Next::Records(reader, 0)),
                Next::Records(mut reader, sent) => {
                    let read = move || {
                        let batch = read_batch(&mut reader);
                        (reader, batch)
                    };
                    let (reader, batch) = if blocking {
                        // It only fails when the runtime ends.
                        tokio::task::spawn_blocking(read).await.ok()?
                    } else {
                        read()
                    };
                    match batch {
                        Ok((records, last)) => {
                            let sent = sent + records.len() as u64;
                            let next = if last { Next::End(sent) } else { Next::Records(reader, sent) };
                            (Part::Records(proto::SnapshotRecords { records }), next)
                        }
                        Err(e) => {
                            *failed.lock() = Some(e);
                            return None;
                        }
                    }
                }
                Next::End(records) => (Part::End(proto::SnapshotEnd { records }), Next::Done),
                Next::Done => return None,
            };
            Some((proto::SnapshotPart { part: Some(part) }, next))
        }
    })
}

/// What a snapshot on its way says of itself.
pub(crate) struct Announced {
    pub term: u64,
    pub leader: u64,
    pub last_log: LogId,
    pub meta: Bytes,
}

pub(crate) fn announced(header: proto::SnapshotHeader) -> Result<Announced, Malformed> {
    let last_log = convert::from_log_id(header.last_log)?.ok_or("the snapshot has no position")?;
    if mark(&last_log).term > header.term {
        return Err(format!("the snapshot at {} is of a later term than its leader's, {}", mark(&last_log), header.term));
    }
    Ok(Announced { term: header.term, leader: header.leader, last_log, meta: header.meta })
}

/// What the receiver of a snapshot is told.
enum Arrived {
    Records(Vec<Bytes>),
    /// That was all: so many records.
    End(u64),
}

/// A snapshot that arrives. Dropped before it ends, it leaves nothing behind.
pub(crate) struct Incoming {
    parts: mpsc::Sender<Arrived>,
    done: tokio::task::JoinHandle<io::Result<Position>>,
}

impl Incoming {
    pub(crate) fn start(snapshots: Arc<SnapshotStore>, meta: SnapshotMeta, blocking: bool) -> Incoming {
        let (parts, queue) = mpsc::channel(QUEUE);
        let work = receive(snapshots, meta, queue);
        let done = if blocking {
            let runtime = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || runtime.block_on(work))
        } else {
            tokio::spawn(work)
        };
        Incoming { parts, done }
    }

    pub(crate) async fn push(&mut self, records: Vec<Bytes>) -> io::Result<()> {
        // When the writer is gone, `finish` says why.
        self.parts.send(Arrived::Records(records)).await.map_err(|_| io::Error::other("the snapshot cannot be written"))
    }

    /// Makes it the newest snapshot, if it is whole.
    pub(crate) async fn finish(self, records: u64) -> io::Result<Position> {
        self.parts.send(Arrived::End(records)).await.ok();
        drop(self.parts);
        self.done.await.map_err(io::Error::other)?
    }

    /// Why the writer ended early.
    pub(crate) async fn failure(self) -> io::Error {
        drop(self.parts);
        match self.done.await {
            Ok(Err(e)) => e,
            _ => io::Error::other("the snapshot ended early"),
        }
    }
}

async fn receive(snapshots: Arc<SnapshotStore>, meta: SnapshotMeta, mut queue: mpsc::Receiver<Arrived>) -> io::Result<Position> {
    let (revision, status_revision, membership) = record::decode_meta(&meta.meta)?;
    let Mark { index, .. } = meta.mark;
    let mut builder = WorldBuilder::default();
    let mut writer = snapshots.create(&meta)?;
    let mut received = 0u64;
    let cut = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    while let Some(arrived) = queue.recv().await {
        match arrived {
            Arrived::Records(records) => {
                for record in &records {
                    builder.push(record)?;
                    writer.push(record)?;
                }
                received += records.len() as u64;
            }
            Arrived::End(expected) if expected != received => {
                return Err(cut(format!("{received} records arrived, {expected} were sent")));
            }
            Arrived::End(_) => {
                let world = Arc::new(builder.build(index, revision, status_revision)?);
                writer.finish()?;
                return Ok(Position { world, last: Some(log_id(meta.mark)), membership });
            }
        }
    }
    Err(cut("the snapshot ended early".to_owned()))
}
