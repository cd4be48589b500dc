//! Randomness of a run: everything follows from its seed.

use ikada_raft::Randomness;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64.
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(mix(seed.wrapping_add(GAMMA)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// Below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// From `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize).cloned() }
    }

    pub fn bytes16(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes
    }
}

/// The store's source of ids, from a seed.
#[derive(Clone)]
pub struct SeededIds(Arc<Mutex<Random>>);

impl SeededIds {
    pub fn new(seed: u64) -> SeededIds {
        SeededIds(Arc::new(Mutex::new(Random::new(seed))))
    }
}

impl Randomness for SeededIds {
    fn bytes16(&self) -> [u8; 16] {
        self.0.lock().bytes16()
    }
}

/// What the operating system answers to those that ask it for random numbers: keys of hash maps, the order in which `select!` looks at its
/// branches, election timeouts. All of them ask `getrandom` of the C library, which this program brings along.
static SYSTEM: AtomicU64 = AtomicU64::new(0);

/// Starts the operating system's random numbers anew. A thread takes the keys of its hash maps at its first map, so this is to be called
/// before the thread of the run begins, and one process makes one run.
pub fn seed_the_system(seed: u64) {
    SYSTEM.store(mix(seed ^ GAMMA), Ordering::SeqCst);
}

/// # Safety
///
/// As of the C function: `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, _flags: u32) -> isize {
    for at in 0..len {
        let word = if at % 8 == 0 { SYSTEM.fetch_add(GAMMA, Ordering::SeqCst) } else { SYSTEM.load(Ordering::SeqCst).wrapping_sub(GAMMA) };
        // SAFETY: `at` is below `len`.
        unsafe { buffer.add(at).write(mix(word).to_le_bytes()[at % 8]) };
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}
