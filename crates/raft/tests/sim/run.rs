//! One run: everything about it follows from its seed.

use crate::{
    admin::{Admin, leader},
    clients::{Busy, Client, Shared, probe, propose, worlds},
    host::{Host, Power, run as host_software},
    judge::Judge,
    nemesis::{KINDS, Kind, Nemesis},
    seeded::Random,
    trace::Trace,
};
use ikada_raft::Settings;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Mutex,
    time::{Duration, UNIX_EPOCH},
};
use turmoil::Sim;

/// The cluster must be there by then.
const MADE_WITHIN: Duration = Duration::from_secs(60);
/// After the repair of everything, the nodes must agree and take writes within this.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at the log files.
const LOGS_EVERY: u64 = 400;

/// What a run is like.
#[derive(Debug)]
pub struct Plan {
    voters: usize,
    spares: usize,
    tick: Duration,
    latency: Duration,
    sync_ms: u64,
    settings: Settings,
    clients: u64,
    pause_ms: u64,
    large: bool,
    busy_with_members: bool,
    faults: Vec<Kind>,
    pace: u64,
    length: Duration,
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let mut r = Random::new(seed);
        let mut one_of = |list: &[u64]| list[r.below(list.len() as u64) as usize];
        let ms = Duration::from_millis;
        let voters = one_of(&[1, 3, 3, 3, 3, 3, 3, 5]) as usize;
        let heartbeat = one_of(&[50, 100]);
        let settings = Settings {
            heartbeat: ms(heartbeat),
            election: (ms(heartbeat * 4), ms(heartbeat * 6)),
            proposal_deadline: ms(4000),
            snapshot_every: one_of(&[6, 15, 40, 150]),
            keep_entries: one_of(&[1, 5, 20]),
            segment_bytes: one_of(&[4 << 10, 16 << 10, 64 << 10]),
            ..Settings::lan()
        };
        Plan {
            voters,
            spares: [0, 0, 0, 2, 0, 1][voters],
            tick: ms(one_of(&[2, 5])),
            latency: ms(one_of(&[4, 10, 30])),
            sync_ms: one_of(&[0, 1, 4]),
            settings,
            clients: one_of(&[2, 3, 5]),
            pause_ms: one_of(&[20, 80, 250]),
            large: r.chance(50),
            busy_with_members: r.chance(60) && voters > 1,
            // Few kinds of faults at a time find what all of them together hide.
            faults: {
                let most = r.between(10, 90);
                KINDS.into_iter().filter(|_| r.chance(most)).collect()
            },
            pace: r.between(300, 3000),
            length: Duration::from_millis(r.between(8000, 20_000)),
        }
    }
}

/// What came of it.
pub struct Outcome {
    pub failure: Option<String>,
    pub hash: u64,
    pub simulated: Duration,
    pub counts: BTreeMap<&'static str, u64>,
    pub lines: Vec<String>,
}

/// A panic anywhere in the run is a failure of it, also in a task of a node.
pub static PANIC: Mutex<Option<String>> = Mutex::new(None);

struct Run {
    sim: Sim<'static>,
    shared: Rc<Shared>,
    nemesis: Nemesis,
    steps: u64,
    tick: Duration,
}

pub fn run(seed: u64, verbose: bool) -> Outcome {
    let plan = Plan::of(seed);
    let trace = Rc::new(Trace::new(verbose));
    trace.line(format_args!("seed {seed}: {plan:?}"));
    let mut r = Random::new(seed ^ 0x5EED);
    let count = plan.voters + plan.spares;
    let hosts: Vec<Rc<Host>> = (0..count).map(|i| Rc::new(Host::new(i, r.next(), plan.settings.clone()))).collect();
    for host in &hosts {
        host.disk.borrow().set_sync_delay(Duration::from_millis(plan.sync_ms));
    }
    let judge = RefCell::new(Judge::new(trace.clone()));
    let shared = Rc::new(Shared {
        trace: trace.clone(),
        hosts,
        judge,
        stop: Cell::default(),
        busy: Cell::default(),
        made: Cell::default(),
        wishes: RefCell::default(),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(r.next())
        .epoch(UNIX_EPOCH)
        .simulation_duration(Duration::from_secs(100_000))
        .tick_duration(plan.tick)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(plan.latency)
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    for host in &shared.hosts {
        let (host, trace) = (host.clone(), trace.clone());
        sim.host(host.name.clone(), move || host_software(host.clone(), trace.clone()));
    }
    let admin = Admin::new(&shared, r.next(), plan.voters, plan.busy_with_members);
    let clients: Vec<Client> = (0..plan.clients).map(|n| Client::new(&shared, n, r.next(), plan.pause_ms, plan.large)).collect();
    sim.client("people", async move {
        tokio::task::spawn_local(admin.run());
        for client in clients {
            tokio::task::spawn_local(client.run());
        }
        std::future::pending().await
    });
    let nemesis = Nemesis::new(&shared, r.next(), plan.faults.clone(), plan.pace, plan.latency, plan.sync_ms);
    let mut run = Run { sim, shared, nemesis, steps: 0, tick: plan.tick };
    run.all(&plan, r.next());
    Outcome {
        failure: trace.failure(),
        hash: trace.hash(),
        simulated: trace.now.get(),
        counts: trace.counts(),
        lines: trace.last_lines(),
    }
}

impl Run {
    /// One tick of everything, and a look at everything. False when the run has failed.
    fn step(&mut self) -> bool {
        let Run { sim, shared, nemesis, steps, tick } = self;
        let trace = &shared.trace;
        let now = *tick * u32::try_from(*steps).unwrap_or(u32::MAX);
        trace.now.set(now);
        for host in &shared.hosts {
            let wall = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX) + 1_700_000_000_000_000_000;
            host.clock.set(wall + host.clock_offset.get());
        }
        if let Err(e) = sim.step() {
            trace.fail(format!("a node ended: {e}"));
        }
        if let Some(panic) = PANIC.lock().ok().and_then(|mut p| p.take()) {
            trace.fail(panic);
        }
        {
            let mut judge = shared.judge.borrow_mut();
            for host in &shared.hosts {
                let Some(store) = host.open_store() else { continue };
                judge.look(host, &store);
                judge.status(host, &store.status());
                judge.ready(host, &store);
            }
            judge.end_step();
            if *steps % LOGS_EVERY == LOGS_EVERY - 1 {
                shared.hosts.iter().filter(|h| h.is_on()).for_each(|h| judge.read_log(h));
            }
        }
        nemesis.step(sim);
        *steps += 1;
        trace.failure().is_none()
    }

    /// Steps until it is so. False when it takes longer, or the run has failed.
    fn until(&mut self, within: Duration, done: impl Fn(&Shared) -> bool) -> bool {
        let end = self.shared.trace.now.get() + within;
        while self.shared.trace.now.get() < end {
            if !self.step() {
                return false;
            }
            if done(&self.shared) {
                return true;
            }
        }
        false
    }

    fn all(&mut self, plan: &Plan, seed: u64) {
        if !self.until(MADE_WITHIN, |s| s.made.get()) {
            return self.shared.trace.fail("the cluster was not made in time");
        }
        let made_at = self.shared.trace.now.get();
        self.nemesis.active = true;
        self.until(plan.length, |_| false);
        if self.shared.trace.failure().is_some() {
            return;
        }
        self.nemesis.heal(&mut self.sim);
        self.shared.stop.set(true);
        if !self.until(SETTLED_WITHIN, |s| s.busy.get() == 0) {
            return self.shared.trace.fail(format!("{} pieces of work do not end after everything was repaired", self.shared.busy.get()));
        }
        if !self.until(SETTLED_WITHIN, settled) {
            return self.shared.trace.fail(format!("the nodes do not agree after everything was repaired: {}", self.positions()));
        }
        self.probe(seed);
        if !self.until(SETTLED_WITHIN, |s| s.busy.get() == 0 && settled(s)) {
            return self.shared.trace.fail(format!("not every node takes writes after everything was repaired: {}", self.positions()));
        }
        let members = members(&self.shared);
        let mut judge = self.shared.judge.borrow_mut();
        self.shared.hosts.iter().for_each(|h| judge.read_log(h));
        judge.end(&members);
        drop(judge);
        let trace = &self.shared.trace;
        trace.count_more("simulated seconds", (trace.now.get() - made_at).as_secs());
        let (_, status) = leader(&self.shared.hosts).map_or_else(|| (None, None), |(h, s)| (Some(h), Some(s)));
        trace.line(format_args!("end: term {:?}, entry {:?}", status.as_ref().map(|s| s.term), status.as_ref().map(|s| s.applied)));
        trace.count("runs that ended well");
    }

    /// A write through every member.
    fn probe(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        for (number, host) in members(&self.shared).into_iter().enumerate() {
            let (shared, command) = (self.shared.clone(), probe(number as u64, &mut random));
            let busy = Busy::new(&shared);
            host.clone().ask_detached(async move {
                while !propose(&shared, &host, &command).await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                drop(busy);
            });
        }
    }

    fn positions(&self) -> String {
        let at = |h: &Rc<Host>| {
            let status = h.open_store().map(|s| s.status());
            let text = status.map(|s| {
                let voters: Vec<u64> = s.members.iter().filter(|m| m.voter).map(|m| m.member.id).collect();
                format!("node {} {} term {} log {} applied {} voters {voters:?} {:?}", s.node, s.role, s.term, s.last_log, s.applied, s.alarms)
            });
            format!("{} {:?}: {}", h.name, h.power.get(), text.unwrap_or_else(|| "not open".to_owned()))
        };
        self.shared.hosts.iter().map(at).collect::<Vec<_>>().join("; ")
    }
}

/// Hosts of members, as the leader has them.
fn members(shared: &Shared) -> Vec<Rc<Host>> {
    let Some((_, status)) = leader(&shared.hosts) else { return Vec::new() };
    let is_member = |h: &&Rc<Host>| h.node().is_some_and(|id| status.members.iter().any(|m| m.member.id == id));
    shared.hosts.iter().filter(is_member).cloned().collect()
}

/// Everybody runs, follows the same leader, is ready and has applied the same.
fn settled(shared: &Shared) -> bool {
    let Some((_, status)) = leader(&shared.hosts) else { return false };
    let members = members(shared);
    let here = |h: &Rc<Host>| {
        h.open_store().is_some_and(|s| {
            let now = s.status();
            now.leader == Some(status.node) && now.term == status.term && now.applied == status.applied && *s.ready().borrow()
        })
    };
    let voters = status.members.iter().filter(|m| m.voter).count();
    let off = shared.hosts.iter().any(|h| matches!(h.power.get(), Power::Off { .. }));
    !off && members.len() >= voters && members.iter().all(here) && worlds(&members).iter().all(|w| w.index() == status.last_log)
}
