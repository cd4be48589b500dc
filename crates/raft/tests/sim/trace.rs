//! What happened in a run: its last lines, its hash, its counts, and the first thing that must not be.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    fmt::Display,
    time::Duration,
};

/// Lines that are shown of a run that failed.
const SHOWN: usize = 160;

#[derive(Default)]
pub struct Trace {
    pub now: Cell<Duration>,
    pub verbose: bool,
    hash: Cell<u64>,
    lines: RefCell<VecDeque<String>>,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    failure: RefCell<Option<String>>,
}

impl Trace {
    pub fn new(verbose: bool) -> Trace {
        Trace { verbose, hash: Cell::new(0xCBF2_9CE4_8422_2325), ..Trace::default() }
    }

    /// Mixes something into the hash of the run without a line.
    pub fn mix(&self, bytes: &[u8]) {
        let hash = bytes.iter().fold(self.hash.get(), |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3));
        self.hash.set(hash);
    }

    pub fn line(&self, text: impl Display) {
        let line = format!("{:9.3} {text}", self.now.get().as_secs_f64());
        self.mix(line.as_bytes());
        if self.verbose {
            println!("{line}");
        }
        let mut lines = self.lines.borrow_mut();
        if lines.len() == SHOWN {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub fn count(&self, what: &'static str) {
        self.count_more(what, 1);
    }

    pub fn count_more(&self, what: &'static str, more: u64) {
        *self.counts.borrow_mut().entry(what).or_default() += more;
    }

    /// An invariant does not hold. The first one counts.
    pub fn fail(&self, what: impl Display) {
        self.line(format_args!("VIOLATION {what}"));
        self.failure.borrow_mut().get_or_insert_with(|| format!("at {:.3} s: {what}", self.now.get().as_secs_f64()));
    }

    /// Fails unless `holds`.
    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what());
        }
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.borrow().clone()
    }

    pub fn last_lines(&self) -> Vec<String> {
        self.lines.borrow().iter().cloned().collect()
    }
}
