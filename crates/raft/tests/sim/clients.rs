//! What clients do: they write through any node, retry with the same idempotency key, and read.

use crate::{
    host::Host,
    judge::{Answer, Judge},
    seeded::Random,
    trace::Trace,
};
use ikada_model::{Json, Key, Kind, Labels};
use ikada_world::{Command, Expect, Op, ProposeError, Put, Replicator, World};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// Everything that the parts of a run share.
pub struct Shared {
    pub trace: Rc<Trace>,
    pub hosts: Vec<Rc<Host>>,
    pub judge: RefCell<Judge>,
    /// Clients and administrators finish what they do and end.
    pub stop: Cell<bool>,
    /// How many still run.
    pub busy: Cell<u64>,
    /// The cluster is there, clients may begin.
    pub made: Cell<bool>,
    /// What the administrator wants of the machines.
    pub wishes: RefCell<Vec<Wish>>,
}

/// What is done to a machine from outside.
#[derive(Clone, Copy, Debug)]
pub enum Wish {
    /// Start a node on it.
    Boot(usize),
    /// End the process for good and put in a new disk.
    Wipe(usize),
}

/// A client does not wait longer for an answer. Above the store's own deadline.
const PATIENCE: Duration = Duration::from_secs(8);

/// A piece of work that is counted while it runs.
pub struct Busy(Rc<Shared>);

impl Busy {
    pub fn new(shared: &Rc<Shared>) -> Busy {
        shared.busy.set(shared.busy.get() + 1);
        Busy(shared.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

fn key(name: &str) -> Key {
    Key::new(Kind::MeshTimeout, "default", name)
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

fn put(name: &str, spec: &str, expect: Expect) -> Put {
    Put { expect, ..Put::new(key(name), Labels::new(), Json::from_text(spec).unwrap_or_default()) }
}

pub struct Client {
    shared: Rc<Shared>,
    number: u64,
    random: Random,
    /// Some of its own commands that were answered, to be sent again.
    old: Vec<Command>,
    writes: u64,
    pause_ms: u64,
    large: bool,
}

impl Client {
    pub fn new(shared: &Rc<Shared>, number: u64, seed: u64, pause_ms: u64, large: bool) -> Client {
        Client { shared: shared.clone(), number, random: Random::new(seed), old: Vec::new(), writes: 0, pause_ms, large }
    }

    pub async fn run(mut self) {
        let _busy = Busy::new(&self.shared);
        while !self.shared.made.get() && !self.shared.stop.get() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while !self.shared.stop.get() {
            match self.random.below(100) {
                0..60 => self.write().await,
                60..66 => self.repeat().await,
                66..83 => self.read().await,
                _ => self.read_local().await,
            }
            let pause = self.random.below(self.pause_ms + 1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    fn some_host(&mut self) -> Option<Rc<Host>> {
        let open: Vec<_> = self.shared.hosts.iter().filter(|h| h.store.borrow().is_some()).cloned().collect();
        self.random.pick(&open)
    }

    fn command(&mut self, world: &World) -> Command {
        let id = self.random.bytes16();
        self.writes += 1;
        let (n, random) = (self.number, &mut self.random);
        let mut ops = Vec::new();
        match random.below(10) {
            // Counters: each adds one to what it read, if nobody was faster.
            0..4 => {
                let many = if random.chance(25) { 2 } else { 1 };
                for _ in 0..many {
                    let name = format!("c-{}", random.below(3));
                    let (value, expect) = match world.get(&key(&name)) {
                        Some(r) => (r.spec.value()["n"].as_u64().unwrap_or(0), Expect::Version(r.version)),
                        None => (0, Expect::Absent),
                    };
                    ops.push(Op::Put(put(&name, &format!("{{\"n\":{}}}", value + 1), expect)));
                }
            }
            4..6 => {
                let size = if self.large && random.chance(20) { random.below(9000) } else { random.below(120) };
                let spec = format!("{{\"x\":\"{}\"}}", "y".repeat(size as usize));
                ops.push(Op::Put(put(&format!("s-{n}-{}", self.writes % 24), &spec, Expect::Any)));
            }
            // Owners and what they own.
            6 => {
                let owner = format!("o-{}", random.below(3));
                let expect = if random.chance(50) { Expect::Any } else { Expect::Absent };
                ops.push(Op::Put(put(&owner, "{}", expect)));
                if random.chance(50) {
                    let key = key(&format!("o-{}", random.below(3)));
                    ops.push(Op::Require { key, expect: Expect::Exists });
                }
            }
            7 => {
                let (owner, child) = (random.below(3), random.below(4));
                let mut p = put(&format!("k-{owner}-{child}"), "{}", Expect::Any);
                p.owner = Some(key(&format!("o-{owner}")));
                let mut grandchild = put(&format!("k-{owner}-{child}-g"), "{}", Expect::Any);
                grandchild.owner = Some(p.key.clone());
                ops.push(Op::Put(p));
                ops.push(Op::Put(grandchild));
            }
            8 => {
                let expect = if random.chance(50) { Expect::Any } else { Expect::Exists };
                ops.push(Op::Delete { key: key(&format!("o-{}", random.below(3))), expect });
            }
            _ => {
                let status = Json::from_text(&format!("{{\"s\":{}}}", random.below(3))).unwrap_or_default();
                ops.push(Op::Status { key: key(&format!("c-{}", random.below(3))), status });
                let insight = Key::new(Kind::DataplaneInsight, "default", &format!("i-{}", random.below(4)));
                ops.push(Op::Put(Put::new(insight, Labels::new(), Json::default())));
            }
        }
        ops.push(Op::Put(put(&format!("m-{n}"), &format!("{{\"id\":\"{}\"}}", hex(&id)), Expect::Any)));
        Command { id, ops }
    }

    async fn write(&mut self) {
        let Some(host) = self.some_host() else { return };
        let Some(world) = host.open_store().map(|s| s.world()) else { return };
        let command = self.command(&world);
        if self.propose_until_known(&command).await {
            if self.old.len() < 30 {
                self.old.push(command);
            } else {
                let at = self.random.below(30) as usize;
                self.old[at] = command;
            }
        }
    }

    /// Sends a command again that was answered before.
    async fn repeat(&mut self) {
        if let Some(command) = self.random.pick(&self.old) {
            self.propose_until_known(&command).await;
        }
    }

    /// Proposes until there is an answer, or gives up. Whether there was one.
    async fn propose_until_known(&mut self, command: &Command) -> bool {
        loop {
            let Some(host) = self.some_host() else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if self.shared.stop.get() {
                    return false;
                }
                continue;
            };
            let twice = if self.random.chance(8) { self.some_host() } else { None };
            let known = match twice {
                // The same command by two nodes at a time.
                Some(other) => {
                    let (a, b) = tokio::join!(propose(&self.shared, &host, command), propose(&self.shared, &other, command));
                    a || b
                }
                None => propose(&self.shared, &host, command).await,
            };
            if known {
                return true;
            }
            if self.shared.stop.get() || self.random.chance(12) {
                return false;
            }
            let pause = self.random.between(20, 300);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn read(&mut self) {
        let Some(host) = self.some_host() else { return };
        let floor = self.shared.judge.borrow().floor();
        let (h, s) = (host.clone(), self.shared.clone());
        let asked = host.ask(move |store| {
            Box::pin(async move {
                match store.linearizable().await {
                    Ok(world) => s.judge.borrow_mut().read(&h, floor, world),
                    Err(_) => s.trace.count("linearizable reads without an answer"),
                }
            })
        });
        tokio::time::timeout(PATIENCE, asked).await.ok();
    }

    async fn read_local(&mut self) {
        let Some(host) = self.some_host() else { return };
        if let Some(store) = host.open_store() {
            self.shared.judge.borrow_mut().read_local(&host, store.world());
        }
    }
}

/// One proposal by one node. Whether it was answered for good.
pub async fn propose(shared: &Rc<Shared>, host: &Rc<Host>, command: &Command) -> bool {
    shared.judge.borrow_mut().proposing(command);
    let (s, c, id) = (shared.clone(), command.clone(), command.id);
    let name = host.name.clone();
    let asked = host.ask(move |store| {
        Box::pin(async move {
            let done = store.propose(c).await;
            let shown = store.world().index();
            let mut judge = s.judge.borrow_mut();
            match done {
                Ok(applied) => {
                    s.trace.line(format_args!("{name} applied {} at {}", short(&id), applied.index));
                    judge.answered(id, Answer::Applied(applied), shown);
                    true
                }
                Err(ProposeError::Rejected(rejection)) => {
                    s.trace.line(format_args!("{name} rejected {}", short(&id)));
                    judge.answered(id, Answer::Rejected(rejection), shown);
                    true
                }
                Err(ProposeError::Unavailable(_)) => {
                    s.trace.count("writes refused");
                    judge.refused(id);
                    false
                }
                Err(ProposeError::Unknown) => {
                    s.trace.count("writes unknown");
                    judge.unknown(id);
                    false
                }
                Err(e @ ProposeError::TooLarge { .. }) => {
                    s.trace.fail(e);
                    false
                }
            }
        })
    });
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(known)) => known,
        // The node died, or does not answer.
        Ok(Err(_)) | Err(_) => {
            shared.judge.borrow_mut().unknown(command.id);
            shared.trace.count("writes whose node died");
            false
        }
    }
}

fn short(id: &[u8; 16]) -> String {
    hex(id).chars().take(8).collect()
}

/// A write that shows that a node takes writes.
pub fn probe(number: u64, random: &mut Random) -> Command {
    let id = random.bytes16();
    let marker = put(&format!("m-probe-{number}"), &format!("{{\"id\":\"{}\"}}", hex(&id)), Expect::Any);
    Command { id, ops: vec![Op::Put(marker)] }
}

/// The worlds of the hosts that have one.
pub fn worlds(hosts: &[Rc<Host>]) -> Vec<Arc<World>> {
    hosts.iter().filter_map(|h| h.open_store()).map(|s| s.world()).collect()
}
