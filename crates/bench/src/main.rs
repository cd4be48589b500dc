//! `bench-store`: what the replicated store does, beside etcd and beside what the disk does (`make bench-store`).
//!
//! The program starts copies of itself as nodes and as clients, so that what is measured and what measures are processes of their own.

mod client;
mod etcd;
mod node;
mod processes;
mod report;
mod rest;
mod store;

/// Generated from `proto/etcd/kv.proto`.
mod kv {
    tonic::include_proto!("etcdserverpb");
}

/// As in the control plane.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use anyhow::Result;
use clap::{Parser, Subcommand};
use report::Row;
use std::{future::Future, path::Path};
use store::StoreArgs;

/// Measures the replicated store.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measure everything, print the table and write target/bench/store.json.
    Run(StoreArgs),
    /// One of our nodes with etcd's KV interface in front; started by `run`.
    Node(node::NodeArgs),
    /// A client of that interface; started by `run`.
    Client(client::ClientArgs),
    /// A client of the REST API; started by `run`.
    Rest(rest::RestArgs),
}

/// Runs one group of rows in a directory of its own. A group that fails is a row that says why.
async fn group<F: Future<Output = Result<Vec<Row>>>>(rows: &mut Vec<Row>, only: Option<&str>, name: &str, target: &str, dir: &Path, work: impl FnOnce(std::path::PathBuf) -> F) {
    if only.is_some_and(|o| !name.contains(o)) {
        return;
    }
    eprintln!("{name}");
    let dir = dir.join(name);
    let done = match std::fs::create_dir_all(&dir) {
        Ok(()) => work(dir.clone()).await,
        Err(e) => Err(e.into()),
    };
    match done {
        Ok(more) => {
            rows.extend(more);
            std::fs::remove_dir_all(&dir).ok();
        }
        Err(e) => {
            eprintln!("  failed: {e:#}; logs in {}", dir.display());
            rows.push(Row::missing(name, target, &format!("{e:#}")));
        }
    }
}

async fn run(args: &StoreArgs) -> Result<()> {
    let target = ikada_tests::process::workspace().join("target/bench");
    let dir = args.dir.clone().unwrap_or_else(|| target.join("store-data"));
    std::fs::remove_dir_all(&dir).ok();
    let mut rows = Vec::new();
    let only = args.only.as_deref();
    group(&mut rows, only, "compare", "p50 ≤ 0.5 × etcd, throughput of writes and reads ≥ 3 × etcd", &dir, |d| async move { store::compare(args, &d).await }).await;
    group(&mut rows, only, "rest", "PUT p50 ≤ 1.5 ms, ≥ 5000/s", &dir, |d| async move { store::rest_rows(args, &d).await }).await;
    group(&mut rows, only, "memory-read", "< 1 µs", &dir, |d| async move { store::memory_read(args, &d).await }).await;
    group(&mut rows, only, "failover", "p50 ≤ 1.5 s, worst ≤ 3 s", &dir, |d| async move { store::failover(args, &d).await }).await;
    group(&mut rows, only, "large", "≤ 500 MB, ≤ 3 s, ≤ 10 s", &dir, |d| async move { store::large(args, &d).await }).await;
    group(&mut rows, only, "disk", "≤ 6 × live data", &dir, |d| async move { store::disk(args, &d).await }).await;
    report::publish(&rows, &target.join("store.json"))
}

#[tokio::main]
async fn main() -> Result<()> {
    ikada_tests::process::init();
    match Cli::parse().command {
        Action::Run(args) => run(&args).await,
        Action::Node(args) => node::run(args).await,
        Action::Client(args) => Ok(println!("{}", serde_json::to_string(&client::run(args).await?)?)),
        Action::Rest(args) => Ok(println!("{}", serde_json::to_string(&rest::run(args).await?)?)),
    }
}
