//! The history while it is made.

use crate::{
    edn::Edn,
    history::{Event, Process, Type},
};
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Further keys of an event.
pub type Extra = Vec<(String, Edn)>;

struct Inner {
    events: Vec<Event>,
    file: BufWriter<File>,
}

/// Takes events from all clients; the order in which it takes them is the order of the history.
pub struct Recorder {
    begun: Instant,
    inner: Mutex<Inner>,
    next_process: AtomicU64,
    counts: [AtomicU64; 4],
}

fn slot(kind: Type) -> usize {
    match kind {
        Type::Invoke => 0,
        Type::Ok => 1,
        Type::Fail => 2,
        Type::Info => 3,
    }
}

impl Recorder {
    /// Also writes each event to `file`.
    pub fn create(file: &Path) -> Result<Recorder> {
        let file = File::create(file).with_context(|| file.display().to_string())?;
        Ok(Recorder {
            begun: Instant::now(),
            inner: Mutex::new(Inner { events: Vec::new(), file: BufWriter::new(file) }),
            next_process: AtomicU64::new(0),
            counts: Default::default(),
        })
    }
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A process number that was not used before.
    pub fn process(&self) -> u64 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }
    /// Seconds since the begin.
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
    /// Adds an event now.
    pub fn add(&self, process: Process, kind: Type, f: &str, value: Edn, extra: Extra) {
        if let (Process::Client(_), Some(n)) = (process, self.counts.get(slot(kind))) {
            n.fetch_add(1, Ordering::Relaxed);
        }
        let mut inner = self.inner();
        let time = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let event = Event { process, kind, f: f.to_owned(), value, index: inner.events.len() as u64, time, extra };
        // A history that cannot be written is noticed at the end.
        writeln!(inner.file, "{}", event.to_edn()).ok();
        inner.events.push(event);
    }
    /// How many operations began, succeeded, failed, and are indeterminate.
    pub fn counts(&self) -> [u64; 4] {
        self.counts.each_ref().map(|c| c.load(Ordering::Relaxed))
    }
    /// All events so far, and everything in the file.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut inner = self.inner();
        inner.file.flush().context("history")?;
        Ok(inner.events.clone())
    }
}

/// A client of the history: it does one thing at a time, and goes on under another number after what nobody knows the outcome of.
pub struct Actor<'a> {
    recorder: &'a Recorder,
    process: u64,
    workload: &'static str,
}

impl<'a> Actor<'a> {
    /// A new process.
    pub fn new(recorder: &'a Recorder, workload: &'static str) -> Actor<'a> {
        Actor { recorder, process: recorder.process(), workload }
    }
    /// The begin of an operation.
    pub fn invoke(&self, f: &str, value: Edn) {
        let extra = vec![("workload".to_owned(), Edn::keyword(self.workload))];
        self.recorder.add(Process::Client(self.process), Type::Invoke, f, value, extra);
    }
    /// Its end.
    pub fn end(&mut self, kind: Type, f: &str, value: Edn, extra: Extra) {
        self.recorder.add(Process::Client(self.process), kind, f, value, extra);
        if kind == Type::Info {
            self.process = self.recorder.process();
        }
    }
}
