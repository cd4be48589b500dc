//! Latency and throughput of a cluster of three nodes in one process, over TCP without TLS: for profiles of replication.
//!
//! `cargo run --release -p ikada-raft --example cluster_bench -- [DIR] [SECONDS]`: writes of 256 bytes with 1 and 64 clients at the leader
//! and spread over all nodes, and linearizable reads, each for SECONDS. Directories go into DIR (default: one that is removed afterwards,
//! in the current one).

use async_trait::async_trait;
use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{
    Member, Options, RaftStore, Start,
    net::{Io, Net, PeerIdentity, serve_connection},
};
use ikada_world::{Command, Op, Put, Replicator};
use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// TCP; who connects says its id and is believed.
struct Tcp(u64);

#[async_trait]
impl Net for Tcp {
    async fn connect(&self, address: &str, _node: u64) -> io::Result<Io> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_u64(self.0).await?;
        Ok(Box::new(stream))
    }
}

async fn serve(listener: TcpListener, store: Arc<RaftStore>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let routes = store.peer_routes();
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            if let Ok(node) = stream.read_u64().await {
                serve_connection(Box::new(stream), Some(PeerIdentity { node }), routes, CancellationToken::new()).await;
            }
        });
    }
}

async fn node(dir: PathBuf, id: u64, start: impl FnOnce(String) -> Start) -> Result<(Arc<RaftStore>, String)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let store = RaftStore::open(Options { start: start(address.clone()), net: Arc::new(Tcp(id)), ..Options::new(dir) }).await?;
    tokio::spawn(serve(listener, store.clone()));
    Ok((store, address))
}

fn report(what: &str, mut times: Vec<Duration>, spent: Duration) {
    times.sort_unstable();
    let at = |p: f64| times.get(((times.len() as f64 - 1.0) * p).round().max(0.0) as usize).copied().unwrap_or_default();
    println!("{what}: p50 {:?} p99 {:?} {:.0}/s", at(0.5), at(0.99), times.len() as f64 / spent.as_secs_f64());
}

/// Runs `work` on the stores in turn with so many clients.
async fn run<F>(what: &str, stores: &[Arc<RaftStore>], clients: usize, time: Duration, work: impl Fn(Arc<RaftStore>, u64) -> F + Clone + Send + 'static)
where
    F: Future<Output = std::result::Result<(), String>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .filter_map(|i| stores.get(i % stores.len()).cloned())
        .map(|store| {
            let (next, work) = (next.clone(), work.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < time {
                    let began = Instant::now();
                    if let Err(e) = work(store.clone(), next.fetch_add(1, Ordering::Relaxed)).await {
                        eprintln!("{e}");
                    }
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap_or_default());
    }
    report(what, times, start.elapsed());
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let given = args.next().map(PathBuf::from);
    let time = Duration::from_secs_f64(args.next().map_or(Ok(2.0), |s| s.parse())?);
    let dir = given.clone().unwrap_or_else(|| PathBuf::from(format!("cluster-bench-{}", std::process::id())));
    let (leader, _) = node(dir.join("1"), 1, |address| Start::Create { address, name: String::new() }).await?;
    let mut stores = vec![leader.clone()];
    for _ in 0..2 {
        let id = leader.allocate_node_id().await?;
        let (store, address) = node(dir.join(id.to_string()), id, |_| Start::Join { cluster: leader.cluster_id(), node: id }).await?;
        leader.add_learner(Member { id, address, name: String::new(), wants_vote: true, format: 1 }).await?;
        stores.push(store);
    }
    let voters: BTreeSet<u64> = stores.iter().map(|s| s.node_id()).collect();
    while let Err(e) = leader.set_voters(voters.clone(), false).await {
        eprintln!("{e}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let spec = Json::from_text(&format!("{{\"padding\":\"{:0>240}\"}}", 0))?;
    let write = move |store: Arc<RaftStore>, n: u64| {
        let put = Put::new(Key::new(Kind::MeshTimeout, "default", &format!("b-{}", n % 10_000)), Labels::new(), spec.clone());
        let command = Command { id: store.new_id(), ops: vec![Op::Put(put)] };
        async move { store.propose(command).await.map(|_| ()).map_err(|e| e.to_string()) }
    };
    let read = |store: Arc<RaftStore>, _| async move { store.linearizable().await.map(|_| ()).map_err(|e| e.to_string()) };
    let only = std::env::var("ONLY").unwrap_or_default();
    if only.is_empty() || only == "writes" {
        run("1 client, writes at the leader", &stores[..1], 1, time, write.clone()).await;
        run("1 client, writes at a follower", &stores[1..2], 1, time, write.clone()).await;
        run("64 clients, writes at the leader", &stores[..1], 64, time, write.clone()).await;
        run("64 clients, writes at a follower", &stores[1..2], 64, time, write.clone()).await;
        run("64 clients, writes at all", &stores, 64, time, write).await;
    }
    if only.is_empty() || only == "reads" {
        run("1 client, linearizable reads at the leader", &stores[..1], 1, time, read).await;
        run("64 clients, linearizable reads at the leader", &stores[..1], 64, time, read).await;
        run("64 clients, linearizable reads at all", &stores, 64, time, read).await;
    }
    println!("fsync {:?}", leader.timings().fsync);
    for store in &stores {
        store.shutdown().await?;
    }
    if given.is_none() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}
