//! Latency and throughput of durable writes, beside what the disk does.
//!
//! `cargo run --release -p ikada-raft --example write_bench -- [DIR] [SECONDS] [encrypted]`: creates resources of 256 bytes with 1 and 32 writers in
//! a new store in DIR (default: a directory that is removed afterwards, in the current one), in turns with `fdatasync` of
//! a small write to a preallocated file in the same directory. With `encrypted`, what goes to the disk is encrypted with a key that is made
//! up for the run.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{Keys, Options, RaftStore};
use ikada_world::{Command, Op, Put, Replicator};
use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Turns in which everything is measured.
const ROUNDS: u32 = 10;

fn percentile(sorted: &[Duration], p: f64) -> Duration {
    let at = ((sorted.len() as f64 - 1.0) * p).round().max(0.0) as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// Times of a 304-byte write (an entry of this benchmark) and its `fdatasync`.
fn raw_sync(dir: &Path, rounds: usize) -> Result<Vec<Duration>> {
    let path = dir.join("raw-sync");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(rounds);
    for i in 0..rounds {
        let start = Instant::now();
        file.write_all_at(&[i as u8; 304], (i * 304) as u64)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort_unstable();
    Ok(times)
}

async fn writes(store: &Arc<RaftStore>, writers: usize, time: Duration) -> Result<Vec<Duration>> {
    let next = Arc::new(AtomicU64::new(0));
    let spec = Json::from_text(&format!("{{\"padding\":\"{:0>240}\"}}", 0))?;
    let until = Instant::now() + time;
    let mut tasks = Vec::new();
    for _ in 0..writers {
        let (store, next, spec) = (store.clone(), next.clone(), spec.clone());
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let n = next.fetch_add(1, Ordering::Relaxed) % 10_000;
                let put = Put::new(Key::new(Kind::MeshTimeout, "default", &format!("b-{n}")), Labels::new(), spec.clone());
                let start = Instant::now();
                store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await.map_err(|e| e.to_string())?;
                times.push(start.elapsed());
            }
            Ok::<_, String>(times)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    all.sort_unstable();
    Ok(all)
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let given = args.next().map(PathBuf::from);
    let time = Duration::from_secs_f64(args.next().map_or(Ok(3.0), |s| s.parse())?);
    let random: [[u8; 16]; 2] = std::array::from_fn(|_| ikada_raft::Randomness::bytes16(&ikada_raft::OsRandomness));
    let encryption = match args.next().as_deref() {
        Some("encrypted") => Some(Keys::parse(&Keys::line("bench", std::array::from_fn(|i| random[i / 16][i % 16]))?)?),
        Some(other) => return Err(format!("{other:?} is not an argument").into()),
        None => None,
    };
    let dir = given.clone().unwrap_or_else(|| PathBuf::from(format!("write-bench-{}", std::process::id())));
    std::fs::create_dir_all(&dir)?;
    let start = Instant::now();
    let store = RaftStore::open(Options { encryption: encryption.clone(), ..Options::new(dir.join("store")) }).await?;
    println!("open: {:?}", start.elapsed());
    let mut raw = Vec::new();
    let mut measured = [(1, Vec::new(), Duration::ZERO), (32, Vec::new(), Duration::ZERO)];
    // In turns, since a shared disk changes from second to second.
    for _ in 0..ROUNDS {
        raw.extend(raw_sync(&dir, 100)?);
        for (writers, times, spent) in &mut measured {
            let start = Instant::now();
            times.extend(writes(&store, *writers, time / ROUNDS).await?);
            *spent += start.elapsed();
        }
    }
    raw.sort_unstable();
    println!("raw fdatasync: p50 {:?} p99 {:?}", percentile(&raw, 0.5), percentile(&raw, 0.99));
    for (writers, mut times, spent) in measured {
        times.sort_unstable();
        let rate = times.len() as f64 / spent.as_secs_f64();
        let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
        let multiple = p50.as_secs_f64() / percentile(&raw, 0.5).as_secs_f64();
        println!("{writers} writers: p50 {p50:?} ({multiple:.2} x fdatasync) p99 {p99:?} {rate:.0} writes/s");
    }
    let mut times = Vec::new();
    for _ in 0..2000 {
        let start = Instant::now();
        store.linearizable().await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("linearizable read: p50 {:?} p99 {:?}", percentile(&times, 0.5), percentile(&times, 0.99));
    store.shutdown().await?;
    let start = Instant::now();
    let store = RaftStore::open(Options { encryption: encryption.clone(), ..Options::new(dir.join("store")) }).await?;
    println!("reopen: {:?} with {} resources at index {}", start.elapsed(), store.world().len(), store.world().index());
    store.shutdown().await?;
    if given.is_none() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}
