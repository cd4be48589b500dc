//! Faults: of the network, the machines, the disks and the clocks.

use crate::{
    admin::leader,
    clients::{Shared, Wish},
    host::{Host, Power},
    seeded::Random,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use turmoil::Sim;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Partition,
    Isolate,
    OneWay,
    Hold,
    SlowLink,
    Kill,
    Restart,
    PowerLoss,
    PowerLossInWrite,
    Blackout,
    SlowDisk,
    FullDisk,
    FailedSync,
    ClockJump,
}

pub const KINDS: [Kind; 14] = [
    Kind::Partition,
    Kind::Isolate,
    Kind::OneWay,
    Kind::Hold,
    Kind::SlowLink,
    Kind::Kill,
    Kind::Restart,
    Kind::PowerLoss,
    Kind::PowerLossInWrite,
    Kind::Blackout,
    Kind::SlowDisk,
    Kind::FullDisk,
    Kind::FailedSync,
    Kind::ClockJump,
];

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Kind::Partition => "partitions",
            Kind::Isolate => "leaders cut off",
            Kind::OneWay => "one-way partitions",
            Kind::Hold => "links held",
            Kind::SlowLink => "slow links",
            Kind::Kill => "processes killed",
            Kind::Restart => "restarts",
            Kind::PowerLoss => "power losses",
            Kind::PowerLossInWrite => "power losses in a write",
            Kind::Blackout => "power losses of all",
            Kind::SlowDisk => "slow disks",
            Kind::FullDisk => "full disks",
            Kind::FailedSync => "failed syncs",
            Kind::ClockJump => "clock jumps",
        }
    }
}

/// How a fault ends.
enum End {
    Network,
    Held(usize, usize),
    Link(usize, usize),
    Delay(usize),
    Capacity(usize),
    Syncs(usize),
}

pub struct Nemesis {
    shared: Rc<Shared>,
    random: Random,
    kinds: Vec<Kind>,
    /// Most pause between two faults, in ms.
    pace: u64,
    next: Duration,
    ends: Vec<(Duration, End)>,
    /// Ordered pairs of hosts of which the first does not reach the second.
    blocked: BTreeSet<(usize, usize)>,
    /// Hosts without power do not say goodbye.
    dark: BTreeSet<usize>,
    /// What the simulated network was told.
    told: BTreeMap<(usize, usize), bool>,
    held: Option<(usize, usize)>,
    latency: Duration,
    /// Ordinary time of a sync.
    sync_ms: u64,
    pub active: bool,
}

impl Nemesis {
    pub fn new(shared: &Rc<Shared>, seed: u64, kinds: Vec<Kind>, pace: u64, latency: Duration, sync_ms: u64) -> Nemesis {
        Nemesis {
            shared: shared.clone(),
            random: Random::new(seed),
            kinds,
            pace,
            next: Duration::ZERO,
            ends: Vec::new(),
            blocked: BTreeSet::new(),
            dark: BTreeSet::new(),
            told: BTreeMap::new(),
            held: None,
            latency,
            sync_ms,
            active: false,
        }
    }

    fn host(&self, index: usize) -> Rc<Host> {
        self.shared.hosts[index].clone()
    }

    fn name(&self, index: usize) -> String {
        self.shared.hosts[index].name.clone()
    }

    fn now(&self) -> Duration {
        self.shared.trace.now.get()
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.between(from, to))
    }

    /// After each step of the simulation.
    pub fn step(&mut self, sim: &mut Sim<'_>) {
        for wish in self.shared.wishes.take() {
            match wish {
                Wish::Boot(index) => self.host(index).power.set(Power::Off { until: self.now() }),
                Wish::Wipe(index) => {
                    let host = self.host(index);
                    self.stop(sim, index, None);
                    host.wipe(self.random.next());
                    host.disk.borrow().set_sync_delay(Duration::from_millis(self.sync_ms));
                    self.ends.retain(|(_, end)| !matches!(end, End::Delay(i) | End::Capacity(i) | End::Syncs(i) if *i == index));
                }
            }
        }
        for index in 0..self.shared.hosts.len() {
            self.watch(sim, index);
        }
        let now = self.now();
        let (over, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.ends).into_iter().partition(|(until, _)| *until <= now);
        self.ends = going;
        for (_, end) in over {
            self.end(sim, end);
        }
        if self.active && now >= self.next {
            self.next = now + self.ms(self.pace / 10, self.pace);
            if let Some(kind) = self.random.pick(&self.kinds.clone()) {
                self.strike(sim, kind);
            }
        }
    }

    /// Restarts what is due, and ends what the node itself asks to be ended.
    fn watch(&mut self, sim: &mut Sim<'_>, index: usize) {
        let host = self.host(index);
        match host.power.get() {
            Power::Spare => {}
            Power::Off { until } if until <= self.now() => {
                host.power.set(Power::On);
                self.dark.remove(&index);
                self.wire(sim);
                sim.bounce(host.name.as_str());
                self.shared.trace.count("starts");
            }
            Power::Off { .. } => {}
            Power::On => {
                if host.disk.borrow().is_off() {
                    let down = self.ms(50, 2000);
                    return self.lose_power(sim, index, down);
                }
                if let Some(until) = host.leaving.take() {
                    return self.stop(sim, index, Some(until.saturating_sub(self.now())));
                }
                let refused = host.refused.take();
                if let Some(e) = refused {
                    self.shared.trace.check(host.may_refuse(&e), || format!("{} does not start: {e}", host.name));
                    self.shared.trace.line(format_args!("{} does not start: {e}", host.name));
                    self.shared.trace.count("starts refused");
                    let down = self.ms(200, 1000);
                    return self.stop(sim, index, Some(down));
                }
                let fatal = host.open_store().and_then(|s| s.fatal().borrow().clone());
                if let Some(fatal) = fatal {
                    let disk = host.disk.borrow().fails_syncs();
                    self.shared.trace.check(disk, || format!("{} left service: {fatal}", host.name));
                    self.shared.trace.line(format_args!("{} left service: {fatal}", host.name));
                    self.shared.trace.count("nodes that left service");
                    // A sync that failed once: the pages may be gone, so the machine is restarted.
                    let down = self.ms(50, 1000);
                    self.lose_power(sim, index, down);
                }
            }
        }
    }

    /// The process ends; `down` later it is started again, or never.
    fn stop(&mut self, sim: &mut Sim<'_>, index: usize, down: Option<Duration>) {
        let host = self.host(index);
        host.disk.borrow().process_exit();
        host.forget_process();
        sim.crash(host.name.as_str());
        host.power.set(down.map_or(Power::Spare, |d| Power::Off { until: self.now() + d }));
    }

    fn lose_power(&mut self, sim: &mut Sim<'_>, index: usize, down: Duration) {
        let host = self.host(index);
        self.dark.insert(index);
        self.wire(sim);
        host.disk.borrow().power_cycle();
        host.forget_process();
        sim.crash(host.name.as_str());
        host.power.set(Power::Off { until: self.now() + down });
        self.shared.judge.borrow_mut().read_log_after(&host, true);
    }

    /// Tells the network what does not reach what.
    fn wire(&mut self, sim: &Sim<'_>) {
        let count = self.shared.hosts.len();
        for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            if self.held.is_some_and(|(x, y)| (x, y) == (a, b) || (y, x) == (a, b)) {
                continue;
            }
            let block = self.blocked.contains(&(a, b)) || self.dark.contains(&a) || self.dark.contains(&b);
            if self.told.insert((a, b), block).unwrap_or(false) != block {
                let (from, to) = (self.name(a), self.name(b));
                if block { sim.partition_oneway(from, to) } else { sim.repair_oneway(from, to) }
            }
        }
    }

    fn end(&mut self, sim: &mut Sim<'_>, end: End) {
        match end {
            End::Network => {
                self.blocked.clear();
                self.wire(sim);
                self.shared.trace.line("network whole");
            }
            End::Held(a, b) => {
                self.held = None;
                sim.release(self.name(a), self.name(b));
                self.told.insert((a, b), false);
                self.told.insert((b, a), false);
                self.wire(sim);
            }
            End::Link(a, b) => sim.set_link_max_message_latency(self.name(a), self.name(b), self.latency),
            End::Delay(i) => self.host(i).disk.borrow().set_sync_delay(Duration::from_millis(self.sync_ms)),
            End::Capacity(i) => self.host(i).disk.borrow().set_capacity(None),
            End::Syncs(i) => self.host(i).disk.borrow().fail_syncs(false),
        }
    }

    /// A host that runs, often the leader.
    fn victim(&mut self) -> Option<usize> {
        if self.random.chance(40)
            && let Some((host, _)) = leader(&self.shared.hosts)
        {
            return self.shared.hosts.iter().position(|h| Rc::ptr_eq(h, &host));
        }
        let on: Vec<usize> = (0..self.shared.hosts.len()).filter(|i| self.shared.hosts[*i].is_on()).collect();
        self.random.pick(&on)
    }

    fn pair(&mut self) -> Option<(usize, usize)> {
        let a = self.victim()?;
        let others: Vec<usize> = (0..self.shared.hosts.len()).filter(|i| *i != a && self.shared.hosts[*i].is_on()).collect();
        Some((a, self.random.pick(&others)?))
    }

    fn strike(&mut self, sim: &mut Sim<'_>, kind: Kind) {
        if self.try_strike(sim, kind).is_some() {
            self.shared.trace.count(kind.text());
        }
    }

    fn try_strike(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Option<()> {
        let now = self.now();
        let trace = self.shared.trace.clone();
        match kind {
            Kind::Partition | Kind::Isolate | Kind::OneWay => {
                if !self.blocked.is_empty() || self.held.is_some() {
                    return None;
                }
                let count = self.shared.hosts.len();
                match kind {
                    Kind::OneWay => {
                        let (a, b) = self.pair()?;
                        let all = self.random.chance(40);
                        self.blocked.extend((0..count).filter(|o| *o != a && (all || *o == b)).map(|o| (a, o)));
                    }
                    _ => {
                        let side: Vec<usize> = match kind {
                            Kind::Isolate => vec![self.victim()?],
                            _ => (0..count).filter(|_| self.random.chance(50)).collect(),
                        };
                        let apart = |a: &usize, b: &usize| side.contains(a) != side.contains(b);
                        self.blocked.extend((0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| apart(a, b)));
                    }
                }
                trace.line(format_args!("{kind:?}: {:?} blocked", self.blocked));
                self.wire(sim);
                let until = now + self.ms(200, 5000);
                self.ends.push((until, End::Network));
            }
            Kind::Hold => {
                let (a, b) = self.pair()?;
                if !self.blocked.is_empty() || self.held.is_some() || self.dark.contains(&a) || self.dark.contains(&b) {
                    return None;
                }
                trace.line(format_args!("hold {} {}", self.name(a), self.name(b)));
                self.held = Some((a, b));
                sim.hold(self.name(a), self.name(b));
                let until = now + self.ms(100, 3000);
                self.ends.push((until, End::Held(a, b)));
            }
            Kind::SlowLink => {
                let (a, b) = self.pair()?;
                let most = self.ms(20, 400).max(self.latency);
                trace.line(format_args!("slow link {} {}: {most:?}", self.name(a), self.name(b)));
                sim.set_link_max_message_latency(self.name(a), self.name(b), most);
                let until = now + self.ms(500, 5000);
                self.ends.push((until, End::Link(a, b)));
            }
            Kind::Kill => {
                let i = self.victim()?;
                trace.line(format_args!("kill {}", self.name(i)));
                let down = self.ms(0, 2500);
                self.stop(sim, i, Some(down));
            }
            Kind::Restart => {
                let i = self.victim()?;
                let host = self.host(i);
                host.open_store()?;
                trace.line(format_args!("stop {}", host.name));
                let (down, wishes) = (self.ms(0, 500), self.shared.clone());
                let (h, now) = (host.clone(), now);
                drop(host.ask(move |store| {
                    Box::pin(async move {
                        // Whatever it answers, the process then ends.
                        let life = h.life.get();
                        let stopped = store.shutdown().await;
                        wishes.trace.line(format_args!("{} stopped: {stopped:?}", h.name));
                        if h.life.get() == life {
                            h.leaving.set(Some(now + down));
                        }
                    })
                }));
            }
            Kind::PowerLoss => {
                let i = self.victim()?;
                trace.line(format_args!("power loss {}", self.name(i)));
                let down = self.ms(0, 2500);
                self.lose_power(sim, i, down);
            }
            Kind::PowerLossInWrite => {
                let i = self.victim()?;
                let operations = self.random.below(12);
                trace.line(format_args!("power loss {} in {operations} operations", self.name(i)));
                self.host(i).disk.borrow().lose_power_after(operations);
            }
            Kind::Blackout => {
                trace.line("power loss of all");
                for i in 0..self.shared.hosts.len() {
                    if self.shared.hosts[i].is_on() {
                        let down = self.ms(0, 1500);
                        self.lose_power(sim, i, down);
                    }
                }
            }
            Kind::SlowDisk => {
                let i = self.victim()?;
                let delay = self.ms(10, 400);
                trace.line(format_args!("slow disk {}: {delay:?}", self.name(i)));
                self.host(i).disk.borrow().set_sync_delay(delay);
                let until = now + self.ms(300, 4000);
                self.ends.push((until, End::Delay(i)));
            }
            Kind::FullDisk => {
                let i = self.victim()?;
                let host = self.host(i);
                let room = self.random.below(3) * host.settings.segment_bytes;
                trace.line(format_args!("full disk {}: {room} bytes left", host.name));
                let disk = host.disk.borrow();
                disk.set_capacity(Some(disk.used() + room));
                let until = now + self.ms(300, 5000);
                self.ends.push((until, End::Capacity(i)));
            }
            Kind::FailedSync => {
                let i = self.victim()?;
                trace.line(format_args!("syncs fail {}", self.name(i)));
                self.host(i).disk.borrow().fail_syncs(true);
                let until = now + self.ms(100, 2000);
                self.ends.push((until, End::Syncs(i)));
            }
            Kind::ClockJump => {
                let i = self.victim()?;
                let seconds = self.random.below(20_000_000) as i64 - 10_000_000;
                trace.line(format_args!("clock {} jumps by {seconds} s", self.name(i)));
                let host = self.host(i);
                host.clock_offset.set(host.clock_offset.get() + seconds * 1_000_000_000);
            }
        }
        Some(())
    }

    /// Everything is repaired, and everybody comes back.
    pub fn heal(&mut self, sim: &mut Sim<'_>) {
        self.active = false;
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(sim, end);
        }
        for index in 0..self.shared.hosts.len() {
            let host = self.host(index);
            if !host.disk.borrow().is_off() {
                host.disk.borrow().lose_power_after(1 << 60);
            }
            if let Power::Off { until } = host.power.get() {
                host.power.set(Power::Off { until: until.min(self.now()) });
            }
        }
        self.shared.trace.line("all is repaired");
    }
}
