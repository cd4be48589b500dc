//! What encryption costs on the way to the log, without waiting for the disk.
//!
//! `cargo run --release -p ikada-store --example seal_cost -- [DIR]`: appends entries to a log in DIR (default: a directory under the
//! temporary one) with and without keys, in turns, and prints the median time per entry, then opens both logs.

use ikada_store::{ClusterId, FileLog, FileLogOptions, Identity, Keyring, Keys, LogRecord, LogStore, Mark, disk::RealDisk};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROUNDS: u64 = 15;
const BATCHES: u64 = 200;
const BATCH: u64 = 32;

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() -> Result<()> {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join(format!("seal-cost-{}", std::process::id()));
    let id = Identity { cluster: ClusterId([1; 16]), node: 1 };
    // For measuring only: keys and salts that are no secret.
    let keys = Keys::parse(&Keys::line("bench", std::array::from_fn(|i| (i as u8).wrapping_mul(89)))?)?;
    let ring = Keyring::new(keys, Arc::new(different));
    for size in [256, 4096] {
        let mut found = Vec::new();
        for keyring in [None, Some(ring.clone())] {
            let dir = base.join(format!("{size}-{}", keyring.is_some()));
            std::fs::create_dir_all(&dir)?;
            let open = || FileLog::open(Arc::new(RealDisk), &dir, id, FileLogOptions::default(), keyring.clone());
            let (log, payload) = (open()?, vec![7u8; size]);
            let (mut index, mut times) = (0, Vec::new());
            for _ in 0..ROUNDS {
                let start = Instant::now();
                for _ in 0..BATCHES {
                    let record = |index| LogRecord { mark: Mark { index, term: 1 }, payload: payload.clone().into() };
                    log.append(&(index..index + BATCH).map(record).collect::<Vec<_>>())?;
                    index += BATCH;
                }
                times.push(start.elapsed() / u32::try_from(BATCHES * BATCH)?);
            }
            log.sync()?;
            drop(log);
            let start = Instant::now();
            let entries = open()?.state().last.map_or(0, |last| last.index + 1);
            found.push((median(&mut times), start.elapsed() / u32::try_from(entries)?));
        }
        if let [(plain, read), (sealed, read_sealed)] = found.as_slice() {
            println!("{size} bytes: append {plain:?}, encrypted {sealed:?} per entry; open {read:?}, encrypted {read_sealed:?} per entry");
        }
    }
    std::fs::remove_dir_all(base)?;
    Ok(())
}

/// Sixteen bytes that differ from call to call.
fn different() -> [u8; 16] {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_le_bytes();
    std::array::from_fn(|i| n[i % 8])
}
