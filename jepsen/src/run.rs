//! One run from the empty machine to the verdict.

use crate::{
    bed::{self, net::Net},
    check::{Verdict, linear::Bounds},
    cluster::Cluster,
    edn::Edn,
    history::Type,
    judge::judge_all,
    nemesis::{self, Step},
    record::{Actor, Recorder},
    rng::Rng,
    workload::{Connections, Shared, number_of, register, set, watch},
};
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// Old runs that are kept.
const KEPT: usize = 10;
/// Clients of each group of registers, groups, and clients that add to the set, per node.
const GROUPS: usize = 2;
const PER_GROUP: usize = 5;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long things are broken.
    pub time: Duration,
    /// Seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Directory for runs.
    pub out: PathBuf,
    /// `ikada-cp`.
    pub program: PathBuf,
    /// Library that is loaded into the nodes before all others.
    pub preload: Option<PathBuf>,
    /// Clients take stale reads for linearizable ones.
    pub stale_reads: bool,
}

/// Outcome of a run.
pub struct Report {
    /// (what was checked, verdict, what it looked at)
    pub rows: Vec<(String, Verdict, String)>,
    /// Directory of the run.
    pub dir: PathBuf,
    /// It was stopped before its end.
    pub interrupted: bool,
}

impl Report {
    /// Whether everything is as it should be.
    pub fn is_valid(&self) -> bool {
        self.rows.iter().all(|(_, v, _)| *v == Verdict::Valid)
    }
    /// The table.
    pub fn table(&self) -> String {
        let mut text = format!("{:<12} {:<8} {}\n", "check", "verdict", "looked at");
        for (name, verdict, looked_at) in &self.rows {
            let word = match verdict {
                Verdict::Valid => "valid",
                Verdict::Invalid(_) => "INVALID",
                Verdict::Unknown(_) => "unknown",
            };
            text.push_str(&format!("{name:<12} {word:<8} {looked_at}\n"));
            match verdict {
                Verdict::Invalid(findings) => findings.iter().for_each(|f| text.push_str(&format!("    {f}\n"))),
                Verdict::Unknown(why) => text.push_str(&format!("    {why}\n")),
                Verdict::Valid => {}
            }
        }
        text
    }
}

/// Makes the directory of a run, and puts away what runs left behind that were killed.
fn directory(out: &Path, seed: u64) -> Result<(PathBuf, File)> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut runs: Vec<PathBuf> = fs::read_dir(out)?.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    runs.sort_by_key(|p| fs::metadata(p).and_then(|m| m.modified()).ok());
    let old = runs.len().saturating_sub(KEPT);
    for (i, run) in runs.iter().enumerate() {
        // A run that is not over holds its lock.
        let over = File::open(run.join("lock")).is_ok_and(|l| l.try_lock().is_ok());
        if over && i < old {
            fs::remove_dir_all(run).ok();
        } else if over {
            let images = fs::read_dir(run)?.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension() == Some("img".as_ref()));
            images.for_each(|image| drop(fs::remove_file(image)));
        }
    }
    let n = (0..).map(|n| out.join(format!("seed-{seed}-{n}"))).find(|p| !p.exists()).context("no name for the run")?;
    fs::create_dir(&n)?;
    let lock = File::create(n.join("lock"))?;
    lock.lock().context("lock")?;
    Ok((n, lock))
}

/// Set by ^C and SIGTERM.
fn watch_signals(runtime: &Runtime) -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    runtime.spawn(async move {
        let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else { return };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        eprintln!("stopping; once more to stop at once");
        flag.store(true, Ordering::Relaxed);
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        // The kernel cleans up: see `bed`.
        std::process::exit(130);
    });
    interrupted
}

/// Runs.
pub fn run(options: &Options) -> Result<Report> {
    let (dir, _lock) = directory(&options.out, options.seed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("runtime")?;
    let interrupted = watch_signals(&runtime);
    let net = Net::build(options.nodes)?;
    let hosts = (0..options.nodes).map(|h| Ok(Arc::new(bed::sys::NetNs::open(&bed::net::namespace(h))?))).collect::<Result<Vec<_>>>()?;
    let rng = Rng::new(options.seed);
    let shared = Arc::new(Shared {
        recorder: Recorder::create(&dir.join("history.edn"))?,
        hosts,
        boots: (0..options.nodes).map(|_| AtomicI64::new(0)).collect(),
        stop: AtomicBool::new(false),
        watched: AtomicBool::new(false),
        rng: rng.fork(1),
        stale_reads: options.stale_reads,
        odd: Mutex::new(Vec::new()),
    });
    let mut cluster = Cluster::new(net, &dir, options, shared.clone(), runtime.handle().clone())?;
    let plan = nemesis::plan(rng.fork(2), options.nodes, options.time, cluster.has_fake_clocks());
    println!("{} node(s), seed {}, {} in {} steps:", options.nodes, options.seed, dir.display(), plan.len());
    let plan_text: String = plan.iter().enumerate().map(|(i, s)| format!("  {:>2}. {s}\n", i + 1)).collect();
    print!("{plan_text}");
    let begun = Instant::now();
    let formed = cluster.form();
    let mut rows = Vec::new();
    if let Err(e) = formed {
        rows.push(("formation".to_owned(), Verdict::Invalid(vec![format!("{e:#}")]), "the cluster never came up".to_owned()));
    } else {
        println!("{:6.1} s  {} node(s) serve", begun.elapsed().as_secs_f64(), options.nodes);
        if let Err(e) = broken(&mut cluster, &shared, &runtime, &plan, &interrupted, &mut rows) {
            rows.push(("runner".to_owned(), Verdict::Invalid(vec![format!("{e:#}")]), "the plan could not be carried out".to_owned()));
        }
        shared.stop.store(true, Ordering::Relaxed);
        shared.watched.store(true, Ordering::Relaxed);
    }
    cluster.look_after();
    let mut findings = std::mem::take(&mut cluster.deaths);
    findings.extend(cluster.panics());
    let starts: i64 = shared.boots.iter().map(|b| b.load(Ordering::Relaxed)).sum();
    rows.push(("nodes".to_owned(), Verdict::of(findings), format!("{starts} processes, their exits and panics")));
    let odd = std::mem::take(&mut *shared.odd.lock().unwrap_or_else(PoisonError::into_inner));
    let [begun_ops, ok, fail, info] = shared.recorder.counts();
    rows.push(("answers".to_owned(), Verdict::of(odd), format!("{begun_ops} operations: {ok} ok, {fail} failed, {info} indeterminate")));
    cluster.remove();
    let interrupted = interrupted.load(Ordering::Relaxed);
    if begun_ops > 0 {
        let events = shared.recorder.events()?;
        println!("{:6.1} s  checking {} events", shared.recorder.seconds(), events.len());
        let judged = judge_all(&events, &[], Bounds { time: Duration::from_secs(60), ..Bounds::default() })?;
        rows.splice(0..0, judged.into_iter().map(|f| (f.checker.name().to_owned(), f.verdict, f.looked_at)));
    }
    let report = Report { rows, dir: dir.clone(), interrupted };
    fs::write(dir.join("summary.txt"), format!("seed {}\n{plan_text}\n{}", options.seed, report.table()))?;
    Ok(report)
}

/// Clients work while the plan is carried out; then everything is healed, and the last reads are made.
fn broken(
    cluster: &mut Cluster,
    shared: &Arc<Shared>,
    runtime: &Runtime,
    plan: &[Step],
    interrupted: &AtomicBool,
    rows: &mut Vec<(String, Verdict, String)>,
) -> Result<()> {
    let clients = start_clients(shared, runtime, cluster.len());
    let (watchers, views) = start_watchers(shared, runtime, cluster.len());
    let mut progress = Progress { last: Instant::now(), shared: shared.clone() };
    let wait = |cluster: &mut Cluster, time: Duration, progress: &mut Progress| {
        let end = Instant::now() + time;
        while Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            cluster.look_after();
            progress.show();
        }
    };
    wait(cluster, Duration::from_secs(2), &mut progress);
    for step in plan {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        for fault in &step.faults {
            let what = cluster.apply(*fault)?;
            progress.say(&what);
        }
        wait(cluster, step.hold, &mut progress);
        cluster.heal()?;
        progress.say("healed");
        wait(cluster, step.quiet, &mut progress);
    }
    cluster.heal()?;
    let recovered = cluster.recover();
    shared.stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for client in clients {
            client.await.ok();
        }
    });
    let whole = recovered.is_ok();
    match recovered {
        Ok(time) => rows.push((
            "recovery".to_owned(),
            Verdict::Valid,
            format!("a write on each node {:.2} s after the last fault", time.as_secs_f64()),
        )),
        Err(e) => rows.push(("recovery".to_owned(), Verdict::Invalid(vec![format!("{e:#}")]), "a write on each node".to_owned())),
    }
    let read = runtime.block_on(async {
        let mut read = 0;
        for host in 0..cluster.len() {
            read += usize::from(set::final_read(shared, host).await);
        }
        read
    });
    progress.say(&format!("last reads answered by {read} node(s)"));
    let lists = if whole { runtime.block_on(last_lists(shared, cluster.len(), &views)) } else { Vec::new() };
    shared.watched.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for watcher in watchers {
            watcher.await.ok();
        }
    });
    for (watcher, list) in (0..).zip(lists) {
        let mut actor = Actor::new(&shared.recorder, "watch");
        actor.invoke("watch-last", Edn::Nil);
        actor.end(Type::Ok, "watch-last", list, vec![("watcher".to_owned(), Edn::Int(watcher))]);
    }
    if whole {
        rows.push(runtime.block_on(agreement(shared, cluster.len())));
    }
    Ok(())
}

fn start_clients(shared: &Arc<Shared>, runtime: &Runtime, nodes: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let (keys, values) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicI64::new(1)));
    let elements = Arc::new(AtomicI64::new(1));
    let mut clients = Vec::new();
    let mut part = 0;
    let mut rng = || {
        part += 1;
        shared.rng.fork(part)
    };
    for _ in 0..GROUPS {
        let group = Arc::new(register::Group::new(keys.clone(), values.clone()));
        for i in 0..PER_GROUP {
            let (shared, group, rng) = (shared.clone(), group.clone(), rng());
            clients.push(runtime.spawn(async move { register::client(&shared, &group, i % nodes, rng).await }));
        }
    }
    for host in 0..nodes {
        let (s, elements, r) = (shared.clone(), elements.clone(), rng());
        clients.push(runtime.spawn(async move { set::adder(&s, &elements, host, r).await }));
        let (s, r) = (shared.clone(), rng());
        clients.push(runtime.spawn(async move { set::reader(&s, host, r).await }));
    }
    clients
}

fn start_watchers(shared: &Arc<Shared>, runtime: &Runtime, nodes: usize) -> (Vec<tokio::task::JoinHandle<()>>, Vec<watch::View>) {
    let mut watchers = Vec::new();
    let mut views = Vec::new();
    for host in 0..nodes.max(2) {
        let view = watch::View::default();
        views.push(view.clone());
        let (shared, rng) = (shared.clone(), shared.rng.fork(1000 + host as u64));
        let number = i64::try_from(host).unwrap_or(0);
        watchers.push(runtime.spawn(async move { watch::watcher(&shared, number, host % nodes, view, rng).await }));
    }
    (watchers, views)
}

/// Lists the set until every watcher has the same, or time is over. One list for each watcher.
async fn last_lists(shared: &Shared, nodes: usize, views: &[watch::View]) -> Vec<Edn> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut turn = 0;
    loop {
        turn += 1;
        let mut connections = Connections::new(shared, turn % nodes);
        if let Ok((items, revision)) = set::list_at(&mut connections, None, set::MESH).await {
            let named = |i: &serde_json::Value| Some((i["name"].as_str()?.to_owned(), number_of(i)?));
            let state: watch::State = items.iter().filter(|i| set::is_element(i)).filter_map(named).collect();
            let alike = views.iter().all(|v| *v.lock().unwrap_or_else(PoisonError::into_inner) == state);
            if alike || Instant::now() > end {
                return views.iter().map(|_| watch::list_value(revision, &state)).collect();
            }
        } else if Instant::now() > end {
            return Vec::new();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Nobody writes any more: after a while every node by itself shows the same.
async fn agreement(shared: &Shared, nodes: usize) -> (String, Verdict, String) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let mut states = Vec::new();
        let mut error = None;
        for host in 0..nodes {
            let mut connections = Connections::new(shared, host);
            let mut state: BTreeMap<String, String> = BTreeMap::new();
            for mesh in [register::MESH, set::MESH] {
                match set::list(&mut connections, Some("stale"), mesh).await {
                    Ok(items) => state.extend(items.iter().map(|i| (format!("{mesh}/{}", i["name"]), i.to_string()))),
                    Err(e) => error = Some(format!("{}: {e}", bed::net::name(host))),
                }
            }
            states.push(state);
        }
        let first = states.first().cloned().unwrap_or_default();
        let different = states.iter().position(|s| *s != first);
        let looked_at = format!("{} resources on {nodes} node(s)", first.len());
        if different.is_none() && error.is_none() {
            return ("agreement".to_owned(), Verdict::Valid, looked_at);
        }
        if Instant::now() > end {
            let finding = error.unwrap_or_else(|| {
                let host = different.unwrap_or(0);
                let other = states.get(host).cloned().unwrap_or_default();
                let name = first.keys().chain(other.keys()).find(|k| first.get(*k) != other.get(*k)).cloned().unwrap_or_default();
                format!("{name}: {:?} on n1, {:?} on {}", first.get(&name), other.get(&name), bed::net::name(host))
            });
            return ("agreement".to_owned(), Verdict::Invalid(vec![finding]), looked_at);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Lines on the terminal.
struct Progress {
    last: Instant,
    shared: Arc<Shared>,
}

impl Progress {
    fn say(&mut self, what: &str) {
        let [_, ok, fail, info] = self.shared.recorder.counts();
        println!("{:6.1} s  {ok:>6} ok {fail:>5} failed {info:>4} unknown  {what}", self.shared.recorder.seconds());
        self.last = Instant::now();
    }
    fn show(&mut self) {
        if self.last.elapsed() > Duration::from_secs(10) {
            self.say("");
        }
    }
}
