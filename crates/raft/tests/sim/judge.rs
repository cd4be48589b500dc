//! What must hold, whatever happens.
//!
//! The nodes' own change sets make one history: whoever reaches an index first defines what happened at it, everybody else must agree.
//! Every effect in it is compared with [`crate::model`], every answer to a client with it. Log files are read from a copy of the disk.

use crate::{
    host::{DATA, Host},
    model::{Item, Model, Slot},
    trace::Trace,
};
use ikada_model::{Key, Resource};
use ikada_raft::{RaftStatus, RaftStore, Role};
use ikada_store::{FileLog, FileLogOptions, Identity, LogStore};
use ikada_world::{Applied, Change, ChangeSet, Command, CommandId, OpResult, Rejection, Replicator, World};
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    path::Path,
    rc::Rc,
    sync::Arc,
};
use tokio::sync::broadcast::{self, error::TryRecvError};

/// The resource that every command of the workload writes last, so that its effect is known by its key.
pub fn is_marker(key: &Key) -> bool {
    key.name.starts_with("m-")
}

fn item_hash((overlay, key): &Slot, i: &Item) -> u64 {
    let mut h = DefaultHasher::new();
    (overlay, key.kind.name(), &*key.mesh, &*key.name, i.version, &i.spec, &i.status).hash(&mut h);
    i.owner.as_ref().map(|o| (o.kind.name(), &*o.mesh, &*o.name)).hash(&mut h);
    h.finish()
}

fn item(r: &Resource) -> Item {
    Item { version: r.version, spec: r.spec.text().to_owned(), status: r.status.text().to_owned(), owner: r.owner.clone() }
}

fn slot(is_status: bool, key: &Key) -> Slot {
    (is_status && !key.kind.descriptor().insight, key.clone())
}

fn resource_hash(is_status: bool, r: &Resource) -> u64 {
    item_hash(&slot(is_status, &r.key), &item(r))
}

/// Independent of order, so that a change set moves it by what went and what came.
pub fn digest(world: &World) -> u64 {
    world.iter().fold(0, |sum, (is_status, r)| sum.wrapping_add(resource_hash(is_status, r)))
}

fn moved(digest: u64, changes: &ChangeSet) -> u64 {
    let lists = [(false, &changes.policy), (true, &changes.status)];
    lists.iter().flat_map(|(is_status, list)| list.iter().map(move |c| (*is_status, c))).fold(digest, |sum, (is_status, change)| {
        let Change { before, after } = change;
        let gone = before.as_ref().map_or(0, |r| resource_hash(is_status, r));
        sum.wrapping_sub(gone).wrapping_add(after.as_ref().map_or(0, |r| resource_hash(is_status, r)))
    })
}

/// A subscriber of one life of a node, who knows the world by change sets alone.
pub struct Watcher {
    bus: broadcast::Receiver<Arc<ChangeSet>>,
    seen: Arc<World>,
    digest: u64,
    last_change: u64,
    looked: bool,
}

impl Watcher {
    pub fn new(store: &RaftStore) -> Watcher {
        let bus = store.subscribe();
        let seen = store.world();
        Watcher { bus, digest: digest(&seen), last_change: seen.index(), seen, looked: false }
    }

    /// Index of the last world it looked at.
    pub fn index(&self) -> u64 {
        self.seen.index()
    }
}

/// A command and when it was first proposed.
struct Proposed {
    command: Command,
    /// What was known to be committed then, and what was acknowledged.
    frontier: u64,
    floor: u64,
}

/// What a proposer was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Applied(Applied),
    Rejected(Rejection),
}

struct Effected {
    index: u64,
    results: Vec<OpResult>,
}

pub struct Judge {
    trace: Rc<Trace>,
    proposed: BTreeMap<CommandId, Proposed>,
    answers: BTreeMap<CommandId, Answer>,
    /// Commands of which every proposal was certainly not accepted.
    refused: BTreeSet<CommandId>,
    /// Commands that were proposed and not certainly refused, at least once.
    open: BTreeSet<CommandId>,
    effects: BTreeMap<CommandId, Effected>,
    /// Everything up to here is known.
    frontier: u64,
    /// State and digest after the index, where it changed.
    states: BTreeMap<u64, (Model, u64)>,
    /// Highest index that anybody was told, by an acknowledgement or a linearizable read.
    floor: u64,
    /// Looked at when the history of the step is known.
    later: Vec<Later>,
    /// Term to leader.
    leaders: BTreeMap<u64, u64>,
    /// (node, term) to the vote.
    votes: BTreeMap<(u64, u64), u64>,
    /// (0, term) to the one that won.
    won: BTreeMap<(u64, u64), u64>,
    /// (index, term) to the hash of the entry and the term of the one before.
    entries: BTreeMap<(u64, u64), (u64, Option<u64>)>,
    /// Index to the term of the committed entry.
    committed: BTreeMap<u64, u64>,
}

enum Later {
    Answer(CommandId, Answer, u64),
    Read(Arc<World>, String),
}

impl Judge {
    pub fn new(trace: Rc<Trace>) -> Judge {
        Judge {
            trace,
            proposed: BTreeMap::new(),
            answers: BTreeMap::new(),
            refused: BTreeSet::new(),
            open: BTreeSet::new(),
            effects: BTreeMap::new(),
            frontier: 0,
            states: BTreeMap::from([(0, (Model::default(), 0))]),
            floor: 0,
            later: Vec::new(),
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            won: BTreeMap::new(),
            entries: BTreeMap::new(),
            committed: BTreeMap::new(),
        }
    }

    pub fn floor(&self) -> u64 {
        self.floor
    }

    fn at(&self, index: u64) -> &(Model, u64) {
        self.states.range(..=index).next_back().map(|(_, s)| s).expect("the empty state is at 0")
    }

    // What clients do.

    /// A proposal begins.
    pub fn proposing(&mut self, command: &Command) {
        let (frontier, floor) = (self.frontier, self.floor);
        self.proposed.entry(command.id).or_insert_with(|| Proposed { command: command.clone(), frontier, floor });
    }

    /// It was certainly not accepted.
    pub fn refused(&mut self, id: CommandId) {
        self.refused.insert(id);
    }

    /// It may have been accepted.
    pub fn unknown(&mut self, id: CommandId) {
        self.open.insert(id);
    }

    /// It was answered. `shown` is the world of the node that answered, at that moment.
    pub fn answered(&mut self, id: CommandId, answer: Answer, shown: u64) {
        self.open.insert(id);
        match self.answers.get(&id) {
            Some(first) if *first != answer => self.trace.fail(format!("one idempotency key, two answers: {first:?}, then {answer:?}")),
            Some(_) => self.trace.count("repeated answers"),
            None => {
                self.answers.insert(id, answer.clone());
            }
        }
        if let Answer::Applied(applied) = &answer {
            self.trace.check(applied.index <= shown, || format!("acknowledged at {}, the node shows {shown}", applied.index));
            self.floor = self.floor.max(applied.index);
        }
        self.later.push(Later::Answer(id, answer, shown));
    }

    /// A linearizable read that began when `floor` was the highest index that anybody had been told.
    pub fn read(&mut self, host: &Host, floor: u64, world: Arc<World>) {
        let index = world.index();
        self.trace.check(index >= floor, || format!("{}: a linearizable read has {index}, {floor} was known before it began", host.name));
        self.floor = self.floor.max(index);
        self.trace.count("linearizable reads");
        self.later.push(Later::Read(world, host.name.clone()));
    }

    /// A local read.
    pub fn read_local(&mut self, host: &Host, world: Arc<World>) {
        let (index, before) = (world.index(), host.local_floor.get());
        self.trace.check(index >= before, || format!("{}: local reads went from {before} back to {index}", host.name));
        host.local_floor.set(index);
        self.trace.count("local reads");
        self.later.push(Later::Read(world, host.name.clone()));
    }

    // What nodes show.

    /// Looks at a node after a step.
    pub fn look(&mut self, host: &Host, store: &RaftStore) {
        let Some(mut w) = host.watcher.take() else { return };
        loop {
            match w.bus.try_recv() {
                Ok(changes) => self.observe(host, &mut w, &changes),
                Err(TryRecvError::Lagged(_)) => {
                    self.trace.count("lagged watchers");
                    w = Watcher::new(store);
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let world = store.world();
        if !w.looked || !Arc::ptr_eq(&world, &w.seen) {
            w.looked = true;
            let (from, to) = (w.seen.index(), world.index());
            self.trace.check(to >= from, || format!("{}: the world went from {from} back to {to}", host.name));
            let found = digest(&world);
            self.trace.check(found == w.digest, || format!("{}: a watcher missed a change before {to}", host.name));
            self.adopt(host, &world);
            self.trace.check(found == self.at(to).1, || format!("{}: the world at {to} is another one than elsewhere", host.name));
            w.seen = world;
            host.shown.set(host.shown.get().max(to));
        }
        host.watcher.replace(Some(w));
    }

    fn observe(&mut self, host: &Host, w: &mut Watcher, changes: &ChangeSet) {
        let index = changes.index;
        self.trace.check(index > w.last_change, || format!("{}: change {index} came after {}", host.name, w.last_change));
        // A change set that covers several effects comes from a snapshot.
        let skipped = self.states.range(w.last_change + 1..index).next().is_some();
        if skipped {
            self.trace.count("snapshots installed");
        }
        w.last_change = index;
        w.digest = moved(w.digest, changes);
        if index <= self.frontier {
            let same = self.at(index).1 == w.digest;
            self.trace.check(same, || format!("{}: the changes up to {index} are not those of other nodes", host.name));
            return;
        }
        let marker = changes.policy.iter().rev().filter_map(|c| c.after.as_ref()).find(|r| is_marker(&r.key));
        let Some(id) = marker.and_then(|r| command_of(r.spec.text())) else {
            return self.trace.fail(format!("{}: entry {index} has no marker of the workload: {changes:?}", host.name));
        };
        match self.take_effect(index, id) {
            Ok(touched) => {
                let mut found: BTreeMap<Slot, Option<Item>> = BTreeMap::new();
                for (is_status, list) in [(false, &changes.policy), (true, &changes.status)] {
                    for change in list {
                        if let Some(key) = change.key() {
                            found.insert(slot(is_status, key), change.after.as_ref().map(|r| item(r)));
                        }
                    }
                }
                let after = &self.at(index).0;
                let expected: BTreeMap<Slot, Option<Item>> = touched.into_iter().map(|s| (s.clone(), after.get(&s).cloned())).collect();
                self.trace.check(found == expected, || format!("{}: entry {index} did {found:?} instead of {expected:?}", host.name));
            }
            Err(what) => self.trace.fail(format!("{}: entry {index}: {what}", host.name)),
        }
    }

    /// A world that is further than everything that was observed: a node applied it while it started. The outcomes tell what happened.
    fn adopt(&mut self, host: &Host, world: &World) {
        if world.index() <= self.frontier {
            return;
        }
        let known = |id: &CommandId| world.outcome_record(id).filter(|o| o.index > self.frontier && o.rejected.is_none()).map(|o| (o.index, *id));
        let mut unseen: Vec<_> = self.proposed.keys().filter(|id| !self.effects.contains_key(*id)).filter_map(known).collect();
        unseen.sort_unstable();
        for (index, id) in unseen {
            if let Err(what) = self.take_effect(index, id) {
                self.trace.fail(format!("{}: entry {index}: {what}", host.name));
            }
        }
        self.frontier = world.index();
    }

    /// A new entry of the history. Gives what it touched.
    fn take_effect(&mut self, index: u64, id: CommandId) -> Result<BTreeSet<Slot>, String> {
        let proposed = self.proposed.get(&id).ok_or("nobody proposed it")?;
        if let Some(first) = self.effects.get(&id) {
            return Err(format!("the command took effect before, at {}", first.index));
        }
        let (before, digest) = self.at(index).clone();
        let effect = before.apply(index, &proposed.command).map_err(|r| format!("it took effect where {r}"))?;
        if index <= proposed.floor {
            return Err(format!("it took effect before index {}, which was known before it was proposed", proposed.floor));
        }
        let digest = effect.touched.iter().fold(digest, |sum, slot| {
            let hash = |m: &Model| m.get(slot).map_or(0, |i| item_hash(slot, i));
            sum.wrapping_sub(hash(&before)).wrapping_add(hash(&effect.after))
        });
        self.trace.count("commands that took effect");
        self.trace.mix(&digest.to_le_bytes());
        self.effects.insert(id, Effected { index, results: effect.results });
        self.states.insert(index, (effect.after, digest));
        self.frontier = index;
        Ok(effect.touched)
    }

    /// After all nodes of a step were looked at.
    pub fn end_step(&mut self) {
        for later in std::mem::take(&mut self.later) {
            match later {
                Later::Read(world, host) => {
                    let (index, known) = (world.index(), self.frontier);
                    if index <= known {
                        let same = digest(&world) == self.at(index).1;
                        self.trace.check(same, || format!("{host}: a read at {index} saw another world"));
                    } else {
                        // The node died in the step in which it showed this, and nobody else is there yet.
                        self.later.push(Later::Read(world, host));
                    }
                }
                Later::Answer(id, Answer::Applied(applied), _) => match self.effects.get(&id) {
                    Some(e) => self.trace.check(e.index == applied.index && e.results == applied.results, || {
                        format!("acknowledged as {applied:?}, took effect at {} as {:?}", e.index, e.results)
                    }),
                    None if applied.index <= self.frontier => self.trace.fail(format!("acknowledged at {} without an effect", applied.index)),
                    None => self.later.push(Later::Answer(id, Answer::Applied(applied.clone()), 0)),
                },
                Later::Answer(id, Answer::Rejected(rejection), shown) => self.judge_rejection(id, &rejection, shown),
            }
        }
    }

    /// Somewhere between its proposal and its answer the command must have had no effect, for this reason.
    fn judge_rejection(&mut self, id: CommandId, rejection: &Rejection, shown: u64) {
        let Some(proposed) = self.proposed.get(&id) else { return };
        if let Some(e) = self.effects.get(&id) {
            self.trace.fail(format!("rejected ({rejection}), and yet it took effect at {}", e.index));
            return;
        }
        let from = *self.states.range(..=proposed.frontier).next_back().map(|(i, _)| i).expect("0 is there");
        let to = self.frontier.max(shown);
        let plausible = self.states.range(from..=to).any(|(_, (m, _))| m.apply(u64::MAX, &proposed.command).err().as_ref() == Some(rejection));
        self.trace.check(plausible, || format!("rejected ({rejection}), which was never so between {from} and {to}"));
        self.trace.count("rejections");
    }

    /// How a node sees the cluster.
    pub fn status(&mut self, host: &Host, status: &RaftStatus) {
        if status.role == Role::Leader {
            match self.leaders.get(&status.term) {
                Some(leader) if *leader != status.node => {
                    self.trace.fail(format!("term {} has two leaders: node {leader} and node {}", status.term, status.node));
                }
                Some(_) => {}
                None => {
                    self.trace.line(format_args!("{} node {} leads term {}", host.name, status.node, status.term));
                    self.trace.count("leaders");
                    self.leaders.insert(status.term, status.node);
                }
            }
        }
    }

    /// A node that says it is ready has everything that it ever showed.
    pub fn ready(&mut self, host: &Host, store: &RaftStore) {
        let ready = *store.ready().borrow();
        if ready && !host.was_ready.get() {
            let (at, shown) = (store.world().index(), host.shown.get());
            self.trace.check(at >= shown, || format!("{}: ready at {at}, before it was stopped it showed {shown}", host.name));
            self.trace.count("nodes that became ready");
        }
        host.was_ready.set(ready);
    }

    /// Reads the log files of a host as they would be found now, without changing them.
    pub fn read_log(&mut self, host: &Host) {
        self.read_log_after(host, false);
    }

    /// The same; after a power loss a vote that was written and not synced yet is gone. Nobody was told of it, so the node may give another.
    pub fn read_log_after(&mut self, host: &Host, power_loss: bool) {
        let (Some((cluster, node)), disk) = (host.identity.get(), host.disk.borrow().copy()) else { return };
        let sizes = FileLogOptions { segment_bytes: host.settings.segment_bytes };
        let dir = Path::new(DATA).join("log");
        let log = match FileLog::open(Arc::new(disk), &dir, Identity { cluster, node }, sizes, None) {
            Ok(log) => log,
            Err(e) => return self.trace.fail(format!("{}: its log cannot be read: {e}", host.name)),
        };
        self.trace.count("logs read");
        let state = log.state();
        if power_loss {
            let on_disk = state.hard.map(|hard| (hard.term, hard.voted_for));
            self.votes.retain(|(n, term), voted| *n != node || on_disk.is_some_and(|(t, v)| *term < t || (*term, *voted) == (t, v)));
        }
        if let Some(hard) = state.hard {
            let (term, voted) = (hard.term, hard.voted_for);
            // A vote that a majority has given is the leader's, whoever else this node had voted for.
            let votes = if hard.committed { &mut self.won } else { &mut self.votes };
            let first = *votes.entry((if hard.committed { 0 } else { node }, term)).or_insert(voted);
            self.trace.check(first == voted, || format!("node {node}, term {term}: a vote for {voted}, where there was one for {first}"));
        }
        let Some(last) = state.last else { return };
        let mut before = state.purged.map(|p| p.term);
        let mut next = state.purged.map_or(0, |p| p.index + 1);
        let committed = state.committed.map(|c| c.index);
        while next <= last.index {
            let records = match log.read(next..last.index + 1, 1 << 20) {
                Ok(records) if !records.is_empty() => records,
                Ok(_) => return self.trace.fail(format!("{}: entry {next} is missing in its log, which ends at {last}", host.name)),
                Err(e) => return self.trace.fail(format!("{}: {e}", host.name)),
            };
            for record in records {
                let (index, term) = (record.mark.index, record.mark.term);
                let mut h = DefaultHasher::new();
                record.payload.hash(&mut h);
                let found = (h.finish(), before.filter(|_| index > 0));
                let known = self.entries.entry((index, term)).or_insert(found);
                // A log that begins here does not know what was before.
                let same = known.0 == found.0 && (known.1 == found.1 || known.1.is_none() || found.1.is_none());
                if known.1.is_none() {
                    known.1 = found.1;
                }
                self.trace.check(same, || format!("{}: entry {index} of term {term} is not the one of other logs", host.name));
                if committed.is_some_and(|c| index <= c) {
                    let first = *self.committed.entry(index).or_insert(term);
                    self.trace.check(first == term, || format!("{}: entry {index} was committed in term {first}, here it is of {term}", host.name));
                }
                before = Some(term);
                next = index + 1;
            }
        }
    }

    /// When everything has settled: what was promised is there.
    pub fn end(&mut self, hosts: &[Rc<Host>]) {
        self.trace.check(self.later.is_empty(), || format!("{} answers are about entries that nobody has", self.later.len()));
        for (id, answer) in &self.answers {
            match (answer, self.effects.get(id)) {
                (Answer::Applied(a), Some(e)) if a.index == e.index => {}
                (Answer::Rejected(_), None) => {}
                (answer, e) => self.trace.fail(format!("answered {answer:?}, in the history at {:?}", e.map(|e| e.index))),
            }
        }
        for id in self.refused.difference(&self.open) {
            if let Some(e) = self.effects.get(id) {
                self.trace.fail(format!("a proposal was certainly not accepted, and took effect at {}", e.index));
            }
        }
        let mut all = BTreeMap::new();
        for host in hosts {
            let Some(store) = host.open_store() else { continue };
            let world = store.world();
            let outcomes: Vec<_> = world.outcome_records().collect();
            let resources: Vec<_> = world.resource_records().collect();
            let at = world.index();
            self.trace.check(at >= self.frontier, || format!("{}: ends at {at}, others were at {}", host.name, self.frontier));
            let mut h = DefaultHasher::new();
            format!("{:?}", (world.revision(), world.status_revision(), resources, outcomes)).hash(&mut h);
            all.entry((at, h.finish())).or_insert_with(Vec::new).push(host.name.clone());
        }
        self.trace.check(all.len() == 1, || format!("the nodes do not agree in the end: {all:?}"));
    }
}

/// The id in a marker's spec.
fn command_of(spec: &str) -> Option<CommandId> {
    let hex = spec.split('"').find(|part| part.len() == 32)?;
    let mut id = [0; 16];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(id)
}
