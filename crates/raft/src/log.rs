//! openraft's log over [`LogStore`].
//!
//! One writer does all changes in the order in which openraft asks for them, votes and entries alike. It takes whatever has queued up
//! while it synced, writes it, syncs once, and only then tells openraft (group commit). `append` does not wait for it: entries are
//! readable from memory until the writer has written them.

use crate::{
    options::Fatal,
    record,
    timings::Recorder,
    types::{Entry, LogId, TypeConfig, Vote, hard_state, log_id, mark, vote},
};
use ikada_store::{HardState, LogRecord, LogStore, Mark, StoreError};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Jobs that may queue up before openraft has to wait.
const QUEUE: usize = 1024;
/// Bytes of entries that stay in memory after they were written.
const RECENT_BYTES: usize = 8 << 20;
/// Most bytes of one answer of the reader.
const READ_BYTES: usize = 1 << 20;
/// With less room than this ahead, in bytes, and a full disk, writes are refused. What is left is for votes, purges and what is on its way.
const LOW_ROOM: u64 = 1 << 20;
/// Pause before a write that met a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Append(Vec<LogRecord>, IOFlushed<TypeConfig>),
    Vote(HardState, Answer<()>),
    Committed(Mark),
    Truncate(u64, Answer<()>),
    Purge(Mark),
    /// Try to get room.
    Probe(Answer<()>),
    Sync(Answer<()>),
}

/// A full disk.
#[derive(Clone, Debug)]
pub(crate) struct FullDisk {
    pub message: String,
    /// A write that was accepted is waiting for space.
    pub stalled: bool,
}

/// Entries in memory: those that the writer has not written yet, and some older ones.
#[derive(Default)]
struct Recent {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
    /// Entries below this index are in the log.
    written: u64,
}

impl Recent {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(e, _)| e.log_id.index)
    }
    fn get(&self, index: u64) -> Option<&(Entry, usize)> {
        self.entries.get(usize::try_from(index.checked_sub(self.first()?)?).ok()?)
    }
    fn push(&mut self, entry: Entry, size: usize) {
        // After a snapshot took the place of the log, entries begin behind it.
        if self.entries.back().is_some_and(|(last, _)| last.log_id.index + 1 != entry.log_id.index) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += size;
        self.entries.push_back((entry, size));
    }
    fn shrink(&mut self) {
        while self.bytes > RECENT_BYTES && self.first().is_some_and(|f| f < self.written) {
            let Some((_, size)) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= size;
        }
    }
    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|(e, _)| e.log_id.index >= index) {
            let Some((_, size)) = self.entries.pop_back() else {
                break;
            };
            self.bytes -= size;
        }
        self.written = self.written.min(index);
    }
    fn purge_to(&mut self, index: u64) {
        while self.first().is_some_and(|f| f <= index) {
            let Some((_, size)) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= size;
        }
    }
}

struct Shared {
    log: Arc<dyn LogStore>,
    recent: Mutex<Recent>,
    vote: Mutex<Option<HardState>>,
    full: Mutex<Option<FullDisk>>,
    fatal: watch::Sender<Option<Fatal>>,
}

impl Shared {
    fn fail(&self, e: &StoreError) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                tracing::error!("leaving service: {e}");
                *fatal = Some(Fatal(e.to_string()));
            }
            first
        });
    }
}

/// openraft's door to the log, and its reader.
#[derive(Clone)]
pub(crate) struct RaftLog {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

impl RaftLog {
    /// Starts the writer: on a thread of its own, or as a task when everything must run on one thread. It ends, and lets go of `guard`,
    /// when the last clone of the log is dropped.
    pub(crate) fn start(
        log: Arc<dyn LogStore>,
        fatal: watch::Sender<Option<Fatal>>,
        timings: Arc<Recorder>,
        own_thread: bool,
        guard: impl Send + 'static,
    ) -> io::Result<RaftLog> {
        let state = log.state();
        let written = state.last.map_or(0, |m| m.index + 1);
        let recent = Mutex::new(Recent { written, ..Recent::default() });
        let shared = Arc::new(Shared { log, recent, vote: Mutex::new(state.hard), full: Mutex::new(None), fatal });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer { shared: shared.clone(), queue, timings, own_thread };
        if own_thread {
            let runtime = tokio::runtime::Handle::current();
            let work = move || {
                runtime.block_on(writer.run());
                drop(guard);
            };
            std::thread::Builder::new().name("ikada-log".to_owned()).spawn(work)?;
        } else {
            tokio::spawn(async move {
                writer.run().await;
                drop(guard);
            });
        }
        Ok(RaftLog { shared, jobs })
    }

    async fn ask(&self, job: impl FnOnce(Answer<()>) -> Job) -> Result<(), StoreError> {
        let gone = || StoreError::Poisoned { reason: "the log has stopped".to_owned() };
        let (answer, result) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    async fn tell(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).await.map_err(|_| io::Error::other("the log has stopped"))
    }

    /// Whether new writes are refused for want of space. Tries to get some first, so writes resume by themselves.
    pub(crate) async fn full(&self) -> Option<String> {
        let full = self.shared.full.lock().clone()?;
        if full.stalled {
            return Some(full.message);
        }
        self.ask(Job::Probe).await.err().map(|e| e.to_string())
    }

    /// Why the log takes no writes at the moment, without trying to change that.
    pub(crate) fn alarm(&self) -> Option<String> {
        self.shared.full.lock().as_ref().map(|full| full.message.clone())
    }

    /// Makes everything durable.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        self.ask(Job::Sync).await
    }

    fn last(&self) -> Option<LogId> {
        let recent = self.shared.recent.lock().entries.back().map(|(e, _)| e.log_id);
        recent.or_else(|| self.shared.log.state().last.map(log_id))
    }

    /// Entries from `start`, up to `end` or `max_bytes`, at least one if there is any.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut size = 0;
        let mut next = start;
        while next < end && (size < max_bytes || entries.is_empty()) {
            let in_memory_from = {
                let recent = self.shared.recent.lock();
                if let Some((entry, bytes)) = recent.get(next) {
                    size += bytes;
                    if size > max_bytes && !entries.is_empty() {
                        break;
                    }
                    entries.push(entry.clone());
                    next += 1;
                    continue;
                }
                recent.first().filter(|first| *first > next).unwrap_or(u64::MAX)
            };
            let found = self.shared.log.read(next..end.min(in_memory_from), max_bytes.saturating_sub(size))?;
            if found.first().is_none_or(|record| record.mark.index != next) {
                break;
            }
            for record in found {
                size += record.payload.len();
                next = record.mark.index + 1;
                entries.push(record::entry(record)?);
            }
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(&mut self, range: RB) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(i) => i.saturating_add(1),
            Bound::Excluded(i) => *i,
            Bound::Unbounded => self.last().map_or(0, |l| l.index + 1),
        };
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.vote.lock().map(vote))
    }
}

impl RaftLogStorage<TypeConfig> for RaftLog {
    type LogReader = RaftLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.shared.log.state().purged.map(log_id);
        Ok(LogState { last_purged_log_id: purged, last_log_id: self.last() })
    }

    async fn get_log_reader(&mut self) -> RaftLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let hard = hard_state(vote);
        self.ask(|answer| Job::Vote(hard, answer)).await?;
        *self.shared.vote.lock() = Some(hard);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.tell(Job::Committed(mark(&id))).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.log.state().committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut recent = self.shared.recent.lock();
            for entry in entries {
                let record = record::log_record(&entry)?;
                recent.push(entry, record.payload.len());
                records.push(record);
            }
        }
        self.tell(Job::Append(records, callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.ask(|answer| Job::Truncate(from, answer)).await?;
        self.shared.recent.lock().truncate_from(from);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        // At once: the next entry may be appended before the writer comes to it.
        self.shared.recent.lock().purge_to(log_id.index);
        self.tell(Job::Purge(mark(&log_id))).await
    }
}

struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Job>,
    timings: Arc<Recorder>,
    own_thread: bool,
}

impl Writer {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(QUEUE);
        while self.queue.recv_many(&mut batch, QUEUE).await > 0 {
            self.process(&mut batch).await;
        }
    }

    async fn process(&self, batch: &mut Vec<Job>) {
        let log = &self.shared.log;
        let mut flushed = Vec::new();
        let mut answers = Vec::new();
        let mut committed = None;
        let mut failed = None;
        for job in batch.drain(..) {
            let done = match &failed {
                Some(e) => Err(StoreError::clone(e)),
                None => self.write(&job, &mut committed).await,
            };
            match (job, done) {
                (Job::Append(_, callback), done) => {
                    failed = done.err().or(failed);
                    flushed.push(callback);
                }
                (Job::Vote(_, answer) | Job::Truncate(_, answer) | Job::Sync(answer), done) => {
                    failed = done.err().or(failed);
                    answers.push(answer);
                }
                // Not having got room is no failure of the log.
                (Job::Probe(answer), done) => {
                    answer.send(done).ok();
                }
                (Job::Committed(_) | Job::Purge(_), done) => failed = done.err().or(failed),
            }
        }
        if failed.is_none()
            && let Some(mark) = committed
        {
            failed = self.retried(|| log.save_committed(mark)).await.err();
        }
        // What only says how far the log is committed or purged may wait for the next sync.
        if failed.is_none() && !(flushed.is_empty() && answers.is_empty()) {
            let began = Instant::now();
            let delay = log.sync_delay();
            if !self.own_thread && !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            failed = log.sync().err();
            self.timings.fsync(began.elapsed());
        }
        if let Some(e) = &failed {
            self.shared.fail(e);
        }
        let result = || failed.clone().map_or(Ok(()), Err);
        for callback in flushed {
            callback.io_completed(result().map_err(io::Error::from));
        }
        for answer in answers {
            answer.send(result()).ok();
        }
        if failed.is_none() {
            self.look_ahead().ok();
        }
    }

    async fn write(&self, job: &Job, committed: &mut Option<Mark>) -> Result<(), StoreError> {
        let log = &self.shared.log;
        match job {
            Job::Append(records, _) => {
                self.retried(|| log.append(records)).await?;
                if let Some(last) = records.last() {
                    let mut recent = self.shared.recent.lock();
                    recent.written = last.mark.index + 1;
                    recent.shrink();
                }
                Ok(())
            }
            Job::Vote(hard, _) => self.retried(|| log.save_hard_state(*hard)).await,
            Job::Truncate(from, _) => self.retried(|| log.truncate_from(*from)).await,
            Job::Purge(mark) => self.retried(|| log.purge_to(*mark)).await,
            Job::Committed(mark) => {
                *committed = Some(*mark);
                Ok(())
            }
            Job::Probe(_) => self.look_ahead(),
            Job::Sync(_) => Ok(()),
        }
    }

    /// Tries until the disk has space. Meanwhile the node takes no writes, and nothing that was accepted is lost.
    async fn retried(&self, mut change: impl FnMut() -> Result<(), StoreError>) -> Result<(), StoreError> {
        loop {
            match change() {
                Err(e @ StoreError::Full { .. }) => self.set_full(Some(FullDisk { message: e.to_string(), stalled: true })),
                other => {
                    if self.shared.full.lock().as_ref().is_some_and(|f| f.stalled) {
                        self.set_full(None);
                    }
                    return other;
                }
            }
            if self.own_thread {
                std::thread::sleep(FULL_RETRY);
            } else {
                tokio::time::sleep(FULL_RETRY).await;
            }
        }
    }

    fn set_full(&self, full: Option<FullDisk>) {
        let mut now = self.shared.full.lock();
        match (&*now, &full) {
            (None, Some(f)) => tracing::error!("read-only: {}", f.message),
            (Some(_), None) => tracing::info!("there is space on the disk again, writes resume"),
            _ => {}
        }
        *now = full;
    }

    /// Reserves the next part of the log, so that a full disk is noticed while there is still room.
    fn look_ahead(&self) -> Result<(), StoreError> {
        match self.shared.log.prepare() {
            Err(e @ StoreError::Full { .. }) if self.shared.log.room() < LOW_ROOM => {
                self.set_full(Some(FullDisk { message: e.to_string(), stalled: false }));
                Err(e)
            }
            Err(e @ StoreError::Full { .. }) => {
                tracing::debug!("{e}");
                Ok(())
            }
            Err(e) => {
                tracing::warn!("{e}");
                Ok(())
            }
            Ok(()) => {
                if self.shared.full.lock().is_some() {
                    self.set_full(None);
                }
                Ok(())
            }
        }
    }
}
