//! `kill -9` in the middle of writes, with a real process.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{Options, Profile, RaftStore, Settings};
use ikada_world::{Command, Expect, Op, Put, Replicator};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command as Process, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Set in the child: directory, first number, writers, size of a log segment, entries between snapshots.
const CHILD: &str = "IKADA_CRASH_CHILD";

fn command(n: u64) -> Command {
    let spec = Json::from_text(&format!("{{\"number\":{n},\"padding\":\"{n:0>200}\"}}")).unwrap();
    let put = Put { expect: Expect::Absent, ..Put::new(key(n), Labels::new(), spec) };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    Command { id, ops: vec![Op::Put(put)] }
}

fn key(n: u64) -> Key {
    Key::new(Kind::MeshTimeout, "default", &format!("w-{n}"))
}

fn options(dir: &Path, segment_bytes: u64, snapshot_every: u64) -> Options {
    let settings = Settings { segment_bytes, snapshot_every, keep_entries: snapshot_every / 2, ..Settings::lan() };
    Options { profile: Profile::Custom(settings), ..Options::new(dir) }
}

/// The child: this test's own program, started again. Creates resources until it is killed, and prints `ack N` after each
/// acknowledged write.
#[test]
fn child() {
    let Ok(args) = std::env::var(CHILD) else { return };
    let args: Vec<&str> = args.split(' ').collect();
    let numbers: Vec<u64> = args[1..].iter().map(|a| a.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let store = RaftStore::open(options(Path::new(args[0]), numbers[2], numbers[3])).await.unwrap();
        let next = Arc::new(AtomicU64::new(numbers[0]));
        let mut tasks = Vec::new();
        for _ in 0..numbers[1] {
            let (store, next) = (store.clone(), next.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    store.propose(command(n)).await.unwrap();
                    // One write call per line, so that a kill cannot leave half a line of an acknowledgement.
                    std::io::stdout().write_all(format!("ack {n}\n").as_bytes()).unwrap();
                }
            }));
        }
        futures::future::join_all(tasks).await;
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs the child until it acknowledged so many writes, kills it, and gives everything it acknowledged.
fn run(dir: &Path, first: u64, enough: usize, sizes: (u64, u64)) -> BTreeSet<u64> {
    let args = format!("{} {first} 16 {} {}", dir.display(), sizes.0, sizes.1);
    let program = std::env::current_exe().unwrap();
    let spawned = Process::new(program).args(["--exact", "child", "--nocapture"]).env(CHILD, args).stdout(Stdio::piped()).spawn();
    let mut child = Killed(spawned.unwrap());
    let out = child.0.stdout.take().unwrap();
    let (lines, read) = mpsc::channel();
    let reader = std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| lines.send(l)));
    let mut acknowledged = BTreeSet::new();
    let mut take = |line: String| line.strip_prefix("ack ").map(|n| acknowledged.insert(n.parse().unwrap())).is_some();
    let until = Instant::now() + Duration::from_secs(60);
    let mut seen = 0;
    while seen < enough {
        let line = read.recv_timeout(until.saturating_duration_since(Instant::now())).expect("the child writes");
        seen += usize::from(take(line));
    }
    // SIGKILL, with sixteen writes on their way.
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    // What it printed before it died was acknowledged too.
    read.iter().for_each(|line| {
        take(line);
    });
    reader.join().unwrap().ok();
    acknowledged
}

async fn kill_five_times(sizes: (u64, u64)) {
    let tmp = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..5u64 {
        acknowledged.extend(run(tmp.path(), round * 100_000, 150 + round as usize * 70, sizes));
    }
    assert!(acknowledged.len() >= 1000, "{}", acknowledged.len());
    let store = RaftStore::open(options(tmp.path(), sizes.0, sizes.1)).await.unwrap();
    let world = store.world();
    let found: BTreeSet<u64> = world.list(Kind::MeshTimeout).map(|r| r.name().trim_start_matches("w-").parse().unwrap()).collect();
    let missing: Vec<_> = acknowledged.difference(&found).collect();
    assert!(missing.is_empty(), "{} of {} acknowledged writes are missing: {missing:?}", missing.len(), acknowledged.len());
    // Not acknowledged ones may have happened, at most those that were on their way at each kill.
    assert!(found.len() <= acknowledged.len() + 5 * 16, "{} found, {} acknowledged", found.len(), acknowledged.len());
    for n in &found {
        let Op::Put(put) = &command(*n).ops[0] else { unreachable!() };
        assert_eq!(world.get(&key(*n)).unwrap().spec, put.spec, "whole, or not at all");
    }
    // A retry of any of them, with its idempotency key, is done once: "absent" would refuse a second create.
    for n in acknowledged.iter().step_by(97) {
        let again = store.propose(command(*n)).await.unwrap();
        assert_eq!(again.index, world.get(&key(*n)).unwrap().version);
    }
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn kill_9_in_the_middle_of_a_thousand_writes_loses_none_that_was_acknowledged() {
    kill_five_times((16 << 20, 10_000)).await;
}

/// Small segments and frequent snapshots: the kills meet rolls, snapshots and purges.
#[tokio::test]
async fn kill_9_among_snapshots_and_purges() {
    kill_five_times((32 << 10, 60)).await;
}
