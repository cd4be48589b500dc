//! Our log files beside sled as the engine of the log: why the log is not kept in sled.
//!
//! `cargo run --release -p ikada-store --example log_engines -- [DIR]`: appends entries of 256 bytes, one and 32 to a sync, in turns, into
//! a directory below DIR (default: the current one), then writes over the same 10 000 indexes of 1 KiB (append and purge). sled is used as
//! it has to be to be durable: one batch, `flush`, then `fdatasync` of its file, which `flush` alone does not do on Linux.

use ikada_store::{ClusterId, FileLog, FileLogOptions, Identity, LogRecord, LogStore, Mark, disk::RealDisk};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROUNDS: u64 = 5;
const SYNCS: u64 = 300;
/// Entries that are kept, and that are written in all, for the size on the disk.
const KEPT: u64 = 10_000;
const WRITTEN: u64 = 100_000;

trait Engine {
    fn append(&mut self, from: u64, count: u64, size: usize) -> Result<()>;
    fn purge(&mut self, below: u64) -> Result<()>;
}

struct Ours(FileLog);

impl Engine for Ours {
    fn append(&mut self, from: u64, count: u64, size: usize) -> Result<()> {
        let record = |index| LogRecord { mark: Mark { index, term: 1 }, payload: vec![index as u8; size].into() };
        self.0.append(&(from..from + count).map(record).collect::<Vec<_>>())?;
        Ok(self.0.sync()?)
    }
    fn purge(&mut self, below: u64) -> Result<()> {
        Ok(self.0.purge_to(Mark { index: below, term: 1 })?)
    }
}

struct Sled {
    db: sled::Db,
    file: File,
    first: u64,
}

impl Engine for Sled {
    fn append(&mut self, from: u64, count: u64, size: usize) -> Result<()> {
        let mut batch = sled::Batch::default();
        for index in from..from + count {
            batch.insert(&index.to_be_bytes(), vec![index as u8; size]);
        }
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        Ok(self.file.sync_data()?)
    }
    fn purge(&mut self, below: u64) -> Result<()> {
        let mut batch = sled::Batch::default();
        for index in self.first..=below {
            batch.remove(&index.to_be_bytes());
        }
        self.first = below + 1;
        Ok(self.db.apply_batch(batch)?)
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += if entry.metadata()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

fn main() -> Result<()> {
    let base = std::env::args().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from).join(format!("log-engines-{}", std::process::id()));
    let (a, b) = (base.join("files"), base.join("sled"));
    fs::create_dir_all(&a)?;
    let id = Identity { cluster: ClusterId([1; 16]), node: 1 };
    let ours = FileLog::open(Arc::new(RealDisk), &a, id, FileLogOptions::default(), None)?;
    let db = sled::Config::new().path(&b).flush_every_ms(None).mode(sled::Mode::LowSpace).open()?;
    let file = File::open(b.join("db"))?;
    let mut engines: [(&str, Box<dyn Engine>, &Path); 2] = [("files", Box::new(Ours(ours)), &a), ("sled", Box::new(Sled { db, file, first: 0 }), &b)];
    let mut next = 0;
    for count in [1, 32] {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for ((_, engine, _), times) in engines.iter_mut().zip(&mut times) {
                for n in 0..SYNCS {
                    let start = Instant::now();
                    engine.append(next + n * count, count, 256)?;
                    times.push(start.elapsed());
                }
            }
            next += SYNCS * count;
        }
        for ((name, ..), times) in engines.iter().zip(&mut times) {
            println!("{name}: {count} entries of 256 bytes and a sync: p50 {:?}", median(times));
        }
    }
    for (name, engine, dir) in &mut engines {
        for part in 0..WRITTEN / 1000 {
            engine.append(next + part * 1000, 1000, 1024)?;
            if part * 1000 > KEPT {
                engine.purge(next + part * 1000 - KEPT)?;
            }
        }
        println!("{name}: {} MB on the disk for {} MB of entries", size(dir)? / 1_000_000, KEPT * 1024 / 1_000_000);
    }
    drop(engines);
    fs::remove_dir_all(base)?;
    Ok(())
}
