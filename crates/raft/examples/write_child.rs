//! Writes until it is killed, and says what was acknowledged. The crash test starts and kills it.
//!
//! `write_child DIR FIRST WRITERS` creates resources `w-FIRST`, `w-FIRST+1`, … with several writers, in a new cluster or an existing
//! one. Prints `ready` when the store is open and `ack N` after each acknowledged write.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{Options, RaftStore};
use ikada_world::{Command, Expect, Op, Put, Replicator};
use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

fn command(n: u64) -> Command {
    let spec = Json::from_text(&format!("{{\"number\":{n},\"padding\":\"{:0>200}\"}}", n)).unwrap_or_default();
    let put = Put { expect: Expect::Absent, ..Put::new(Key::new(Kind::MeshTimeout, "default", &format!("w-{n}")), Labels::new(), spec) };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    Command { id, ops: vec![Op::Put(put)] }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: write_child DIR FIRST WRITERS")?;
    let first: u64 = args.next().ok_or("FIRST is missing")?.parse()?;
    let writers: u64 = args.next().ok_or("WRITERS is missing")?.parse()?;
    let store = RaftStore::open(Options::new(dir)).await?;
    writeln!(std::io::stdout(), "ready")?;
    let next = Arc::new(AtomicU64::new(first));
    let mut tasks = Vec::new();
    for _ in 0..writers {
        let (store, next) = (store.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                match store.propose(command(n)).await {
                    // One write call per line, so that a kill cannot leave half a line of an acknowledgement.
                    Ok(_) => writeln!(std::io::stdout(), "ack {n}").map_err(|e| e.to_string())?,
                    Err(e) => return Err::<(), String>(e.to_string()),
                }
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}
