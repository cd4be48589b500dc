//! The rows of `make bench-store`.

use crate::{
    client::{Figures, Operation, percentile},
    etcd::{self, Etcd},
    processes::{self, ControlPlane, Ours},
    report::{Row, median, spread},
    rest::{self, Connection, RestOperation},
};
use anyhow::{Context, Result, bail};
use hyper::{Method, body::Bytes};
use ikada_model::{Key, Kind};
use ikada_raft::{Options, RaftStore};
use ikada_world::{Command, Op, Put, Replicator};
use std::{
    fs::{self, OpenOptions},
    hint::black_box,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

/// What is measured how often.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreArgs {
    /// Alternating runs of each comparison.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Only the groups whose name contains this: compare, rest, memory-read, failover, large, disk.
    #[arg(long)]
    pub only: Option<String>,
    /// Where data goes; must be on the disk that is to be measured. Default: a directory beside the report that is removed afterwards.
    #[arg(long)]
    pub dir: Option<std::path::PathBuf>,
}

/// Recorded on stock Kuma 2.14.3 with Postgres, on the same kind of machine.
const KUMA_PUT_P50_MS: f64 = 2.3;
const KUMA_PUT_PER_SECOND: f64 = 1125.0;

fn at_most(ours: f64, limit: f64) -> bool {
    ours > 0.0 && ours <= limit
}

/// Median of write plus `fdatasync` of 304 bytes into a file that has its space, in milliseconds.
fn fdatasync_p50(dir: &Path) -> Result<f64> {
    let path = dir.join("raw-sync");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    for i in 0..1000_u64 {
        let start = Instant::now();
        file.write_all_at(&[i as u8; 304], i * 304)?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    fs::remove_file(path)?;
    times.sort_unstable_by(f64::total_cmp);
    Ok(percentile(&times, 0.5))
}

/// One comparison: figures of ours and of etcd, in turns.
async fn alternate(args: &StoreArgs, ours: &Ours, peer: Option<&Etcd>, what: Operation, clients: usize) -> Result<(Vec<Figures>, Vec<Figures>)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for run in 0..args.runs {
        a.push(processes::client(&ours.leader().await?, what, clients, args.seconds, &[]).await?);
        if let Some(etcd) = peer {
            b.push(processes::client(&etcd.leader().await?, what, clients, args.seconds, &[]).await?);
        }
        let show = |f: &[Figures]| f.last().map_or_else(String::new, |f| format!("{:.0}/s, p50 {:.3} ms, p99 {:.2} ms", f.per_second, f.p50_ms, f.p99_ms));
        eprintln!("  {what:?} × {clients}, run {}: ours {}; etcd {}", run + 1, show(&a), show(&b));
    }
    Ok((a, b))
}

/// Three nodes beside three etcd members.
pub async fn compare(args: &StoreArgs, dir: &Path) -> Result<Vec<Row>> {
    let ours = Ours::start(dir, 3).await?;
    let binary = etcd::binary();
    let peer = match &binary {
        Some(binary) => Some(Etcd::start(binary, dir).await?),
        None => {
            eprintln!("  {}", etcd::INSTALL);
            None
        }
    };
    let mut rows = Vec::new();
    let mut syncs = vec![fdatasync_p50(dir)?];
    let p50 = |f: &[Figures]| f.iter().map(|f| f.p50_ms).collect::<Vec<_>>();
    let rate = |f: &[Figures]| f.iter().map(|f| f.per_second).collect::<Vec<_>>();

    let (a, b) = alternate(args, &ours, peer.as_ref(), Operation::Put, 1).await?;
    syncs.push(fdatasync_p50(dir)?);
    let (x, y, sync) = (p50(&a), p50(&b), median(&syncs));
    let what = "3 nodes, 256-byte writes, 1 client: p50";
    let figure = format!("{} ms = {:.1} × fdatasync ({sync:.3} ms)", spread(&x, 3), median(&x) / sync);
    rows.push(compared(what, figure, median(&x), &y, 3, "ms", "≤ 0.5 × etcd", |ratio| ratio <= 0.5));

    let (a, b) = alternate(args, &ours, peer.as_ref(), Operation::Put, 64).await?;
    let (x, y) = (rate(&a), rate(&b));
    let what = "3 nodes, 256-byte writes, 64 clients: throughput";
    rows.push(compared(what, format!("{}/s", spread(&x, 0)), median(&x), &y, 0, "/s", "≥ 3 × etcd", |ratio| ratio >= 3.0));

    // Every key is read by its turn; all of them are there.
    for address in [Some(ours.leader().await?), match &peer { Some(e) => Some(e.leader().await?), None => None }].into_iter().flatten() {
        processes::client(&address, Operation::Put, 64, args.seconds, &["--count", "19968"]).await?;
    }
    let (a, b) = alternate(args, &ours, peer.as_ref(), Operation::Get, 64).await?;
    let (x, y) = (rate(&a), rate(&b));
    let what = "3 nodes, linearizable reads, 64 clients: throughput";
    rows.push(compared(what, format!("{}/s", spread(&x, 0)), median(&x), &y, 0, "/s", "≥ 3 × etcd", |ratio| ratio >= 3.0));
    Ok(rows)
}

#[expect(clippy::too_many_arguments, reason = "the columns of a row")]
fn compared(what: &str, figure: String, ours: f64, peer: &[f64], digits: usize, unit: &str, target: &str, met: fn(f64) -> bool) -> Row {
    let mut row = Row { what: what.to_owned(), ours: figure, peer: etcd::INSTALL.to_owned(), ratio: String::new(), target: target.to_owned(), met: false };
    if !peer.is_empty() {
        let ratio = ours / median(peer);
        row.peer = format!("etcd {}{unit}", spread(peer, digits));
        row.ratio = format!("{ratio:.2}");
        row.met = met(ratio);
    }
    row
}

/// PUT and GET of a policy on one real control plane.
pub async fn rest_rows(args: &StoreArgs, dir: &Path) -> Result<Vec<Row>> {
    let cp = ControlPlane::start(dir, "rest", None)?;
    cp.serves().await?;
    processes::rest(&cp.api, RestOperation::Put, 8, args.seconds, &["--count", "1000"]).await?;
    let (mut one, mut many, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..args.runs {
        one.push(processes::rest(&cp.api, RestOperation::Put, 1, args.seconds, &[]).await?.p50_ms);
        many.push(processes::rest(&cp.api, RestOperation::Put, 32, args.seconds, &[]).await?.per_second);
        reads.push(processes::rest(&cp.api, RestOperation::Get, 32, args.seconds, &[]).await?.per_second);
        eprintln!("  REST, run {}: PUT p50 {:.2} ms, {:.0}/s; GET {:.0}/s", run + 1, one[run], many[run], reads[run]);
    }
    let row = |what: &str, values: &[f64], digits, unit: &str, kuma: f64, target: &str, met: bool| Row {
        what: what.to_owned(),
        ours: format!("{}{unit}", spread(values, digits)),
        peer: format!("stock Kuma on Postgres, recorded: {kuma}{unit}"),
        ratio: format!("{:.2}", median(values) / kuma),
        target: target.to_owned(),
        met,
    };
    Ok(vec![
        row("policy PUT over REST, one node, 1 client: p50", &one, 2, " ms", KUMA_PUT_P50_MS, "≤ 1.5 ms", at_most(median(&one), 1.5)),
        row("policy PUT over REST, one node, 32 clients", &many, 0, "/s", KUMA_PUT_PER_SECOND, "≥ 5000/s", median(&many) >= 5000.0),
        row("policy GET over REST (linearizable), one node, 32 clients", &reads, 0, "/s", 2474.0, "none (Kuma's figure beside it)", true),
    ])
}

/// Snapshot and single get inside the process.
pub async fn memory_read(args: &StoreArgs, dir: &Path) -> Result<Vec<Row>> {
    let store = RaftStore::open(Options::new(dir.join("in-process"))).await?;
    let key = |n: u64| Key::new(Kind::MeshTimeout, "default", &format!("k-{n}"));
    for batch in 0..20 {
        let ops = (0..500).map(|i| Op::Put(Put::new(key(batch * 500 + i), Default::default(), Default::default()))).collect();
        store.propose(Command { id: store.new_id(), ops }).await?;
    }
    let keys: Vec<Key> = (0..10_000).map(key).collect();
    let mut nanos = Vec::new();
    for _ in 0..args.runs {
        let start = Instant::now();
        let mut found = 0_u64;
        for _ in 0..20 {
            for key in &keys {
                found += u64::from(black_box(store.world()).get(key).is_some());
            }
        }
        nanos.push(start.elapsed().as_nanos() as f64 / 200_000.0);
        if found != 200_000 {
            bail!("not everything was found");
        }
    }
    store.shutdown().await?;
    Ok(vec![Row {
        what: "local snapshot and single get inside the process (10 000 resources)".to_owned(),
        ours: format!("{} ns, no lock", spread(&nanos, 0)),
        peer: String::new(),
        ratio: String::new(),
        target: "< 1 µs".to_owned(),
        met: at_most(median(&nanos), 999.9),
    }])
}

/// Three real control planes that are one cluster.
async fn three(dir: &Path) -> Result<Vec<ControlPlane>> {
    let mut nodes = vec![ControlPlane::start(dir, "c0", None)?];
    nodes[0].serves().await?;
    let token = dir.join("join-token");
    fs::write(&token, join_token(&nodes[0]).await?)?;
    let first = nodes[0].peer.clone();
    for name in ["c1", "c2"] {
        nodes.push(ControlPlane::start(dir, name, Some((&first, &token)))?);
    }
    for node in &nodes {
        node.serves().await?;
    }
    let end = Instant::now() + Duration::from_secs(60);
    while voters(&nodes[0]).await? != 3 {
        if Instant::now() > end {
            bail!("the nodes do not become three voters");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(nodes)
}

async fn ask(node: &ControlPlane, method: Method, path: &str, body: &str) -> Result<serde_json::Value> {
    let mut c = Connection::open(&node.api).await?;
    let (status, answer) = c.ask(method, path, &[], Bytes::copy_from_slice(body.as_bytes())).await?;
    if !(200..300).contains(&status) {
        bail!("{path} answered {status}: {}", String::from_utf8_lossy(&answer));
    }
    serde_json::from_slice(&answer).with_context(|| format!("{path} answered no JSON"))
}

async fn join_token(node: &ControlPlane) -> Result<String> {
    let answer = ask(node, Method::POST, "/cluster/join-tokens", r#"{"validFor":"1h","uses":10}"#).await?;
    Ok(answer.get("token").and_then(|t| t.as_str()).context("no token in the answer")?.to_owned())
}

async fn voters(node: &ControlPlane) -> Result<usize> {
    let status = ask(node, Method::GET, "/cluster", "").await?;
    let members = status.get("members").and_then(|m| m.as_array()).context("no members in the status")?;
    Ok(members.iter().filter(|m| m.get("voter").and_then(serde_json::Value::as_bool) == Some(true)).count())
}

async fn leader_of(nodes: &[ControlPlane]) -> Result<usize> {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        for (i, node) in nodes.iter().enumerate() {
            if let Ok(status) = ask(node, Method::GET, "/cluster", "").await {
                let id = |name: &str| status.get(name).and_then(serde_json::Value::as_u64);
                if id("node").is_some() && id("node") == id("leader") {
                    return Ok(i);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("no leader within 20 s")
}

/// The leader is killed; a client writes to another node until it is answered, and reads locally from the third all the time.
pub async fn failover(args: &StoreArgs, dir: &Path) -> Result<Vec<Row>> {
    let mut nodes = three(dir).await?;
    let (mut gaps, mut silence) = (Vec::new(), Vec::new());
    for round in 0..args.runs.max(9) {
        let leader = leader_of(&nodes).await?;
        let (writer, reader) = ((leader + 1) % 3, (leader + 2) % 3);
        let mut write = Connection::open(&nodes[writer].api).await?;
        let read_from = nodes[reader].api.clone();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let reads = tokio::spawn(async move {
            let mut read = Connection::open(&read_from).await?;
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while stopped.try_recv().is_err() {
                let (status, _) = read.ask(Method::GET, "/meshes/default", &[("ikada-read", "stale")], Bytes::new()).await?;
                if status != 200 {
                    bail!("a local read answered {status}");
                }
                longest = longest.max(last.elapsed());
                last = Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(longest)
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        nodes[leader].process.kill();
        let killed = Instant::now();
        loop {
            let (status, answer) = write.ask(Method::PUT, &rest::path(0), &[], rest::body(0, round as u64 * 7 + 1, 256)).await?;
            match status {
                200 | 201 => break,
                503 | 504 if killed.elapsed() < Duration::from_secs(30) => tokio::time::sleep(Duration::from_millis(5)).await,
                _ => bail!("the write after the failure of the leader answered {status}: {}", String::from_utf8_lossy(&answer)),
            }
        }
        gaps.push(killed.elapsed().as_secs_f64());
        stop.send(()).ok();
        silence.push(reads.await??.as_secs_f64() * 1000.0);
        eprintln!("  failover {}: {:.2} s, longest pause of local reads {:.1} ms", round + 1, gaps[round], silence[round]);
        nodes[leader].restart()?;
        nodes[leader].serves().await?;
    }
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    let pause = silence.iter().copied().fold(0.0, f64::max);
    Ok(vec![Row {
        what: format!("leader killed with -9, profile lan: a write is accepted again ({} times)", gaps.len()),
        ours: format!("p50 {:.2} s, worst {worst:.2} s; local reads of another node never pause longer than {pause:.0} ms", median(&gaps)),
        peer: String::new(),
        ratio: String::new(),
        target: "p50 ≤ 1.5 s, worst ≤ 3 s, local reads uninterrupted".to_owned(),
        met: at_most(median(&gaps), 1.5) && worst <= 3.0 && pause < 500.0,
    }])
}

/// 100 000 resources of 1 KiB.
pub async fn large(_: &StoreArgs, dir: &Path) -> Result<Vec<Row>> {
    let mut nodes = three(dir).await?;
    let leader = leader_of(&nodes).await?;
    let extra = ["--count", "100000", "--keys", "100000", "--size", "1024"];
    let figures = processes::rest(&nodes[leader].api, RestOperation::Put, 50, 3.0, &extra).await?;
    eprintln!("  {} resources written, {:.0}/s", figures.requests, figures.per_second);
    let mut resident = Vec::new();
    for node in &nodes {
        node.serves().await?;
        resident.push(node.resident()? as f64 / 1e6);
    }
    eprintln!("  resident: {resident:?} MB");
    let mut restarts = Vec::new();
    for _ in 0..3 {
        let other = (leader_of(&nodes).await? + 1) % 3;
        nodes[other].process.kill();
        let start = Instant::now();
        nodes[other].restart()?;
        nodes[other].serves().await?;
        restarts.push(start.elapsed().as_secs_f64());
        resident.push(nodes[other].resident()? as f64 / 1e6);
    }
    let most = resident.iter().copied().fold(0.0, f64::max);
    let token = dir.join("join-token");
    let start = Instant::now();
    let first = nodes[leader].peer.clone();
    let fresh = ControlPlane::start(dir, "c3", Some((&first, &token)))?;
    fresh.serves().await?;
    let mut c = Connection::open(&fresh.api).await?;
    let (status, _) = c.ask(Method::GET, &rest::path(99_999), &[], Bytes::new()).await?;
    if status != 200 {
        bail!("the new member does not have what the others have: {status}");
    }
    let joined = start.elapsed().as_secs_f64();
    Ok(vec![
        simple("100 000 resources of 1 KiB: resident memory per node (worst, after restarts too)", format!("{most:.0} MB"), "≤ 500 MB", at_most(most, 500.0)),
        simple("… restart after kill -9 to a linearizable read", format!("{} s", spread(&restarts, 2)), "≤ 3 s", at_most(median(&restarts), 3.0)),
        simple("… new member: start, join, snapshot, linearizable read", format!("{joined:.2} s"), "≤ 10 s", at_most(joined, 10.0)),
    ])
}

fn simple(what: &str, ours: String, target: &str, met: bool) -> Row {
    Row { what: what.to_owned(), ours, peer: String::new(), ratio: String::new(), target: target.to_owned(), met }
}

/// Bytes that a directory takes on the disk.
fn disk_usage(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { disk_usage(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// A million overwrites of 10 000 keys of 1 KiB.
pub async fn disk(_: &StoreArgs, dir: &Path) -> Result<Vec<Row>> {
    let ours = Ours::start(dir, 3).await?;
    let data = ours.dirs.first().context("no node")?;
    let mut sizes = Vec::new();
    for part in 0..10 {
        let extra = ["--count", "100000", "--size", "1024"];
        let figures = processes::client(&ours.leader().await?, Operation::Put, 100, 3.0, &extra).await?;
        sizes.push(disk_usage(data)? as f64 / 1e6);
        eprintln!("  {} overwrites, {:.0}/s, {:.0} MB on the disk of a node", (part + 1) * 100_000, figures.per_second, sizes[part]);
    }
    let live = 10_000.0 * 1024.0 / 1e6;
    // By configuration: entries that are kept behind a snapshot, and those that gather until the next one.
    let settings = ikada_raft::Settings::lan();
    let kept = (settings.keep_entries + settings.snapshot_every) as f64 * 1250.0 / 1e6 + 2.0 * settings.segment_bytes as f64 / 1e6;
    let most = sizes.iter().copied().fold(0.0, f64::max);
    let beyond = (most - kept).max(0.0);
    Ok(vec![Row {
        what: "disk after a million overwrites of 10 000 keys of 1 KiB".to_owned(),
        ours: format!("at most {most:.0} MB, of which the log kept by configuration {kept:.0} MB; beyond it {:.1} × live data ({live:.0} MB)", beyond / live),
        peer: format!("after the first tenth {:.0} MB", sizes.first().copied().unwrap_or_default()),
        ratio: format!("{:.1}", beyond / live),
        target: "bounded; ≤ 6 × live data beyond the log kept by configuration".to_owned(),
        met: beyond <= 6.0 * live,
    }])
}
