//! What the store takes from outside besides the disk: time and randomness. A simulation replaces both.

use ikada_model::Timestamp;
use rand::RngCore;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock that a leader stamps into entries. Nothing else of the store reads it.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Timestamp(i64::try_from(nanos).unwrap_or(i64::MAX))
    }
}

/// Source of cluster ids and idempotency keys.
pub trait Randomness: Send + Sync + 'static {
    /// Sixteen random bytes, never the same twice.
    fn bytes16(&self) -> [u8; 16];
}

/// Random numbers of the operating system, through a generator that it seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRandomness;

impl Randomness for OsRandomness {
    fn bytes16(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        bytes
    }
}

/// Sixteen random bytes as a version 4 UUID.
pub(crate) fn uuid_v4(randomness: &dyn Randomness) -> [u8; 16] {
    let mut bytes = randomness.bytes16();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}
