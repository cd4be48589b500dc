//! The client of the benchmark: a process of its own that speaks etcd's KV interface, to etcd and to our nodes alike.
//!
//! Each of `clients` has a connection of its own and one request in flight (a closed loop). Prints one JSON line of [`Figures`].

use crate::kv::{PutRequest, RangeRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Barrier;
use tonic::transport::{Channel, Endpoint};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Operation {
    /// Put a value of 256 bytes under one of 10 000 keys.
    Put,
    /// Read one of these keys, linearizable.
    Get,
}

/// Arguments of the client process.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// Address of the node, `host:port`.
    #[arg(long)]
    pub address: String,
    /// What to ask.
    #[arg(long, value_enum)]
    pub operation: Operation,
    /// Connections, each with one request in flight.
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Seconds to measure, after half a second to warm up.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    pub size: usize,
    /// Keys that are used in turn.
    #[arg(long, default_value_t = 10_000)]
    pub keys: u64,
    /// End after so many requests instead of after a time (all are counted, nothing is warm-up).
    #[arg(long)]
    pub count: Option<u64>,
}

/// What a run gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that were answered in the measured time.
    pub requests: u64,
    /// Per second.
    pub per_second: f64,
    /// Median of a request's time in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
}

impl Figures {
    /// Of the times of all requests in milliseconds, and the time of the longest client.
    pub fn of(mut times: Vec<f64>, longest: Duration) -> Figures {
        times.sort_unstable_by(f64::total_cmp);
        Figures {
            requests: times.len() as u64,
            per_second: times.len() as f64 / longest.as_secs_f64().max(1e-9),
            p50_ms: percentile(&times, 0.5),
            p99_ms: percentile(&times, 0.99),
        }
    }
}

/// Percentile of sorted values; 0 of none.
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * p).round().max(0.0) as usize;
    sorted.get(at).copied().unwrap_or_default()
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect_timeout(Duration::from_secs(5));
    endpoint.connect().await.with_context(|| format!("cannot connect to {address}"))
}

/// Whether the node at `address` leads.
pub async fn leads(address: &str) -> Result<bool> {
    let mut client = MaintenanceClient::new(connect(address).await?);
    let mut request = tonic::Request::new(StatusRequest {});
    request.set_timeout(Duration::from_secs(2));
    let status = client.status(request).await?.into_inner();
    Ok(status.leader != 0 && status.header.is_some_and(|h| h.member_id == status.leader))
}

async fn one(kv: &mut KvClient<Channel>, operation: Operation, key: u64, value: &[u8]) -> Result<()> {
    let key = format!("k-{key}").into_bytes();
    match operation {
        Operation::Put => {
            kv.put(PutRequest { key, value: value.to_vec() }).await?;
        }
        Operation::Get => {
            let answer = kv.range(RangeRequest { key, serializable: false }).await?.into_inner();
            if answer.kvs.is_empty() {
                bail!("a key that was written is not there");
            }
        }
    }
    Ok(())
}

/// Runs the client and returns its figures.
pub async fn run(args: ClientArgs) -> Result<Figures> {
    let barrier = Arc::new(Barrier::new(args.clients));
    let value: Arc<[u8]> = (0..args.size).map(|i| b'a' + (i % 26) as u8).collect();
    let mut tasks = Vec::new();
    let share = args.count.map(|c| c / args.clients as u64);
    for n in 0..args.clients as u64 {
        let mut kv = KvClient::new(connect(&args.address).await?);
        let (barrier, value, args) = (barrier.clone(), value.clone(), args.clone());
        tasks.push(tokio::spawn(async move {
            barrier.wait().await;
            let begin = Instant::now();
            let warm = if share.is_some() { Duration::ZERO } else { Duration::from_millis(500) };
            let until = warm + Duration::from_secs_f64(args.seconds);
            let mut times = Vec::new();
            let mut i = 0;
            loop {
                let start = begin.elapsed();
                if share.map_or(start >= until, |s| i >= s) {
                    return Ok::<_, anyhow::Error>((times, begin.elapsed() - warm));
                }
                one(&mut kv, args.operation, (n + i * args.clients as u64) % args.keys, &value).await?;
                let end = begin.elapsed();
                i += 1;
                if start >= warm {
                    times.push((end - start).as_secs_f64() * 1000.0);
                }
            }
        }));
    }
    let (mut times, mut longest) = (Vec::new(), Duration::ZERO);
    for task in tasks {
        let (t, took) = task.await??;
        times.extend(t);
        longest = longest.max(took);
    }
    Ok(Figures::of(times, longest))
}
