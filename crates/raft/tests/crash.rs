//! `kill -9` in the middle of writes, with a real process.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{Options, RaftStore};
use ikada_world::{Command, Expect, Op, Put, Replicator};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// The example `write_child`, which cargo builds together with the tests.
fn child_program() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile_dir = exe.ancestors().nth(2).unwrap();
    profile_dir.join("examples").join("write_child")
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs the child until it acknowledged so many writes, kills it, and gives everything it acknowledged.
fn run(dir: &Path, first: u64, enough: usize) -> BTreeSet<u64> {
    let mut child = Killed(
        Process::new(child_program()).arg(dir).args([first.to_string(), "16".to_owned()]).stdout(Stdio::piped()).spawn().unwrap_or_else(
            |e| panic!("cannot start {} ({e}); `cargo build -p ikada-raft --examples` makes it", child_program().display()),
        ),
    );
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

#[tokio::test]
async fn kill_9_in_the_middle_of_a_thousand_writes_loses_none_that_was_acknowledged() {
    let tmp = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..5u64 {
        let run = run(tmp.path(), round * 100_000, 150 + round as usize * 70);
        acknowledged.extend(run);
    }
    assert!(acknowledged.len() >= 1000, "{}", acknowledged.len());
    let store = RaftStore::open(Options::new(tmp.path())).await.unwrap();
    let world = store.world();
    let found: BTreeSet<u64> = world.list(Kind::MeshTimeout).map(|r| r.name().trim_start_matches("w-").parse().unwrap()).collect();
    let missing: Vec<_> = acknowledged.difference(&found).collect();
    assert!(missing.is_empty(), "{} of {} acknowledged writes are missing: {missing:?}", missing.len(), acknowledged.len());
    // Not acknowledged ones may have happened, at most those that were on their way at each kill.
    assert!(found.len() <= acknowledged.len() + 5 * 16, "{} found, {} acknowledged", found.len(), acknowledged.len());
    for r in world.list(Kind::MeshTimeout) {
        assert!(r.spec.text().len() > 200, "half a write");
    }
    // A retry of any of them, with its key, is done once: "absent" would refuse a second create.
    for n in acknowledged.iter().step_by(97) {
        let name = format!("w-{n}");
        let before = world.get(&Key::new(Kind::MeshTimeout, "default", &name)).unwrap().version;
        let put = Put { expect: Expect::Absent, ..Put::new(Key::new(Kind::MeshTimeout, "default", &name), Labels::new(), Json::default()) };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let again = store.propose(Command { id, ops: vec![Op::Put(put)] }).await.unwrap();
        assert_eq!(again.index, before);
    }
    store.shutdown().await.unwrap();
}
