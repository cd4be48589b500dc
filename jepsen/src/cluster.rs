//! The nodes of a run, and what is done to them.

use crate::{
    bed::{
        net::{self, Net},
        node::{Join, Node},
    },
    edn::Edn,
    history::{Process, Type},
    http::{Answer, Ask, Client, Reply},
    nemesis::{Fault, Target},
    run::Options,
    workload::{Shared, put, put_mesh, register, set},
};
use anyhow::{Context, Result, bail};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// How long a node may take until it serves, and a cluster until it is whole.
pub const READY: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(4);

/// Nodes, network, and what is broken at the moment.
pub struct Cluster {
    nodes: Vec<Node>,
    net: Net,
    shared: Arc<Shared>,
    runtime: Handle,
    /// Nodes without power.
    dark: BTreeSet<usize>,
    cuts: BTreeSet<(usize, usize)>,
    /// Nodes that ended without having been told to.
    pub deaths: Vec<String>,
}

impl Cluster {
    /// Nodes that do not run yet.
    pub fn new(net: Net, run: &Path, options: &Options, shared: Arc<Shared>, runtime: Handle) -> Result<Cluster> {
        let node = |host| Node::new(host, run, &options.program, options.preload.as_deref());
        let nodes = (0..options.nodes).map(node).collect::<Result<_>>()?;
        Ok(Cluster { nodes, net, shared, runtime, dark: BTreeSet::new(), cuts: BTreeSet::new(), deaths: Vec::new() })
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    /// Whether clocks can be moved.
    pub fn has_fake_clocks(&self) -> bool {
        self.nodes.iter().all(Node::has_fake_clock)
    }
    fn start(&mut self, host: usize) -> Result<()> {
        if let (Some(node), Some(boot)) = (self.nodes.get_mut(host), self.shared.boots.get(host)) {
            boot.fetch_add(1, Ordering::Relaxed);
            node.start()?;
        }
        Ok(())
    }
    fn ask(&self, host: usize, ask: &Ask) -> Result<Answer> {
        let net = self.shared.hosts.get(host).context("no such host")?.clone();
        match self.runtime.block_on(async move { Client::new(net).ask(ask, ANSWER).await }) {
            Reply::Answer(a) => Ok(a),
            Reply::NotSent(e) | Reply::Lost(e) => bail!("{}: {e}", net::name(host)),
        }
    }
    /// Asks until the answer is good. Errors with the last answer when that takes too long, at once when the node ended.
    fn until(&mut self, host: usize, limit: Duration, ask: &Ask, good: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let end = Instant::now() + limit;
        loop {
            let last = match self.ask(host, ask) {
                Ok(a) if good(&a) => return Ok(a),
                Ok(a) => a.error(),
                Err(e) => format!("{e:#}"),
            };
            self.look_after();
            let node = self.nodes.get(host).context("no such host")?;
            if !node.wanted {
                bail!("{} ended: {}", node.name(), node.last_lines(1));
            }
            if Instant::now() > end {
                bail!("{}: {} {}: {last} after {limit:?}", node.name(), ask.method, ask.path);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    /// Starts all nodes: the first creates the cluster, the others join it with a token. Returns when all vote.
    pub fn form(&mut self) -> Result<()> {
        self.start(0)?;
        let ok = |a: &Answer| a.status.is_success();
        for mesh in [register::MESH, set::MESH] {
            self.until(0, READY, &put_mesh(mesh), ok).context("the first node does not serve")?;
        }
        if self.nodes.len() == 1 {
            return Ok(());
        }
        let body = json!({"validFor": "1h", "uses": self.nodes.len() - 1});
        let answer = self.until(0, READY, &Ask::send(Method::POST, "/cluster/join-tokens", &body), ok)?;
        let answer: Value = serde_json::from_slice(&answer.body).context("the answer to a join token")?;
        let token = answer.get("token").and_then(Value::as_str).context("no token in the answer")?.to_owned();
        for host in 1..self.nodes.len() {
            if let Some(node) = self.nodes.get_mut(host) {
                node.join = Some(Join { address: format!("{}:5690", net::address(0)), token: token.clone() });
            }
            self.start(host)?;
        }
        self.whole()
    }
    /// Id of the member on a host, as another one says.
    fn member(&self, host: usize, asked: usize) -> Result<Option<u64>> {
        let answer = self.ask(asked, &Ask::get("/cluster"))?;
        let status: Value = serde_json::from_slice(&answer.body).context("GET /cluster")?;
        let members = status.get("members").and_then(Value::as_array).with_context(|| format!("GET /cluster: {}", answer.error()))?;
        let found = members.iter().find(|m| m.get("name").and_then(Value::as_str) == Some(&net::name(host)));
        Ok(found.and_then(|m| m.get("id")).and_then(Value::as_u64))
    }
    /// Removes a node, empties its disk, and lets it join anew. Says what came of it; where it could not be removed it stays as it is.
    fn replace(&mut self, host: usize) -> Result<String> {
        let other = (host + 1) % self.nodes.len();
        let id = match self.member(host, other) {
            Ok(Some(id)) => id,
            Ok(None) => return Ok("it is no member".into()),
            Err(e) => return Ok(format!("not removed: {e:#}")),
        };
        // Two voters are left, an even number: that takes force.
        let remove = Ask::send(Method::POST, format!("/cluster/members/{id}:remove"), &json!({"force": true}));
        let answer = self.ask(other, &remove);
        // Whatever was answered, what counts is whether it is a member: one that is must not lose its disk.
        if self.member(host, other).ok() != Some(None) {
            let why = answer.map_or_else(|e| format!("{e:#}"), |a| a.error());
            return Ok(format!("not removed: {why}"));
        }
        self.nodes[host].kill();
        self.nodes[host].disk.wipe()?;
        let token = Ask::send(Method::POST, "/cluster/join-tokens", &json!({"validFor": "1h"}));
        let answer = self.until(other, READY, &token, |a| a.status.is_success())?;
        let answer: Value = serde_json::from_slice(&answer.body).context("the answer to a join token")?;
        let token = answer.get("token").and_then(Value::as_str).context("no token in the answer")?.to_owned();
        self.nodes[host].join = Some(Join { address: format!("{}:5690", net::address(other)), token });
        self.start(host)?;
        Ok(format!("member {id} is gone"))
    }
    /// Waits until every node says that all nodes vote.
    fn whole(&mut self) -> Result<()> {
        let voters = self.nodes.len();
        let all_vote = move |a: &Answer| {
            let status: Value = serde_json::from_slice(&a.body).unwrap_or_default();
            let members = status.get("members").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            members.len() == voters && members.iter().all(|m| m.get("voter") == Some(&Value::Bool(true)))
        };
        for host in 0..voters {
            self.until(host, READY, &Ask::get("/cluster"), all_vote).context("the nodes do not all become voters")?;
        }
        Ok(())
    }
    /// Host of the leader, as the first node says that knows one.
    pub fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find_map(|host| {
            let status: Value = serde_json::from_slice(&self.ask(host, &Ask::get("/cluster")).ok()?.body).ok()?;
            let leader = status.get("leader")?.as_u64()?;
            let member = status.get("members")?.as_array()?.iter().find(|m| m.get("id").and_then(Value::as_u64) == Some(leader))?;
            let name = member.get("name")?.as_str()?;
            self.nodes.iter().find(|n| n.name() == name).map(|n| n.host)
        })
    }
    fn hosts(&self, target: Target) -> Vec<usize> {
        let n = self.nodes.len();
        match target {
            Target::One(h) => vec![h % n],
            Target::Leader => vec![if n == 1 { 0 } else { self.leader().unwrap_or(0) }],
            Target::Majority(h) => (0..n / 2 + 1).map(|i| (h + i) % n).collect(),
            Target::All => (0..n).collect(),
        }
    }
    fn note(&self, f: &str, value: Edn) {
        self.shared.recorder.add(Process::Nemesis, Type::Info, f, value, Vec::new());
    }
    fn cut(&mut self, cut: impl Fn(usize, usize) -> bool) -> Result<()> {
        let n = self.nodes.len();
        self.cuts.extend((0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|&(a, b)| a != b && cut(a, b)));
        self.net.cut(&self.cuts)
    }
    /// Breaks something. Says what, with the names of the nodes that it hit.
    pub fn apply(&mut self, fault: Fault) -> Result<String> {
        let n = self.nodes.len();
        let hosts = match fault {
            Fault::Kill(t) | Fault::Pause(t) | Fault::Isolate(t) | Fault::Deaf(t) | Fault::Mute(t) | Fault::PowerLoss(t) => self.hosts(t),
            Fault::FullDisk(t) | Fault::Clock(t, _) | Fault::Replace(t) => self.hosts(t),
            Fault::Halves(h) | Fault::Bridge(h) => vec![h],
        };
        let names: Vec<String> = hosts.iter().map(|&h| net::name(h)).collect();
        self.note(fault.name(), Edn::Vector(names.iter().map(Edn::text).collect()));
        let hit = |h: usize| hosts.contains(&h);
        match fault {
            Fault::Isolate(_) => self.cut(|a, b| hit(a) != hit(b))?,
            Fault::Halves(h) => self.cut(|a, b| ((a + n - h) % n < n / 2) != ((b + n - h) % n < n / 2))?,
            Fault::Bridge(h) => self.cut(|a, b| a != h && b != h)?,
            Fault::Deaf(_) => self.cut(|a, b| !hit(a) && hit(b))?,
            Fault::Mute(_) => self.cut(|a, b| hit(a) && !hit(b))?,
            Fault::PowerLoss(_) => {
                // All at the same moment: first nobody writes any more, then the disks go.
                for &h in &hosts {
                    self.nodes[h].signal(Signal::SIGSTOP)?;
                }
                for &h in &hosts {
                    if self.dark.insert(h) {
                        self.nodes[h].cut_power()?;
                    }
                }
            }
            Fault::Kill(_) => hosts.iter().for_each(|&h| self.nodes[h].kill()),
            Fault::Pause(_) => hosts.iter().try_for_each(|&h| self.nodes[h].signal(Signal::SIGSTOP))?,
            Fault::FullDisk(_) => {
                for &h in hosts.iter().filter(|h| !self.dark.contains(h)) {
                    self.nodes[h].disk.fill()?;
                }
            }
            Fault::Replace(_) => {
                let what = self.replace(hosts.first().copied().unwrap_or(0))?;
                return Ok(format!("{fault} ({}): {what}", names.join(", ")));
            }
            Fault::Clock(_, s) => hosts.iter().try_for_each(|&h| self.nodes[h].set_clock(s))?,
        }
        Ok(format!("{fault} ({})", names.join(", ")))
    }
    /// Makes everything whole.
    pub fn heal(&mut self) -> Result<()> {
        self.cuts.clear();
        self.net.cut(&self.cuts)?;
        for h in 0..self.nodes.len() {
            let node = &mut self.nodes[h];
            node.set_clock(0)?;
            if self.dark.remove(&h) {
                node.disk.power_on()?;
            }
            node.disk.unfill()?;
            node.signal(Signal::SIGCONT)?;
            if !node.wanted {
                self.start(h)?;
            }
        }
        self.note("heal", Edn::Nil);
        Ok(())
    }
    /// Notes nodes that ended by themselves.
    pub fn look_after(&mut self) {
        for node in &mut self.nodes {
            if let Some(status) = node.ended() {
                node.wanted = false;
                let at = self.shared.recorder.seconds();
                self.deaths.push(format!("{} ended by itself after {at:.1} s ({status}): {}", node.name(), node.last_lines(1)));
            }
        }
    }
    /// Waits until a write is accepted on every node, and all are voters. Gives the time that the writes took.
    pub fn recover(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let mut starts = 0;
        for host in 0..self.nodes.len() {
            let probe = put(register::MESH, &format!("probe-{}", net::name(host)), 1);
            let end = Instant::now() + READY;
            // A node that ended is started again: its death is a finding of its own.
            while let Err(e) = self.until(host, READY.saturating_sub(begun.elapsed()), &probe, |a| a.status.is_success()) {
                starts += 1;
                if Instant::now() > end || self.nodes[host].wanted || starts > 5 {
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(500));
                self.start(host)?;
            }
        }
        let took = begun.elapsed();
        if self.nodes.len() > 1 {
            self.whole()?;
        }
        Ok(took)
    }
    /// Lines of the logs that tell of a panic.
    pub fn panics(&self) -> Vec<String> {
        let of = |n: &Node| {
            let text = std::fs::read(n.log()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().filter(|l| l.contains("panicked at")).map(|l| format!("{}: {l}", n.name())).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }
    /// Ends all nodes and deletes their disks.
    pub fn remove(&mut self) {
        for node in &mut self.nodes {
            node.kill();
            node.disk.remove();
        }
    }
}
