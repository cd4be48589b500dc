//! The recent past: what changed after a revision, for those who were away for a moment.

use crate::change::{Change, ChangeSet};
use ikada_model::{Key, Resource};
use std::{collections::VecDeque, sync::Arc};

/// One change of the past.
#[derive(Clone, Debug)]
pub struct Happened {
    /// Log index of the entry that made it.
    pub index: u64,
    /// Of status state; for kinds that are no insights, the fast-changing part of the status.
    pub status: bool,
    /// Key.
    pub key: Key,
    /// What became of it; `None` when it was deleted.
    pub after: Option<Arc<Resource>>,
}

/// How much a [`History`] keeps of each of policy and status state. What is older is forgotten, by whole entries.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Changes.
    pub changes: usize,
    /// Size of the resources that it keeps alive, in bytes (approximate).
    pub bytes: usize,
}

/// One state's past. Each set holds the changes of one entry.
#[derive(Debug, Default)]
struct Ring {
    sets: VecDeque<(u64, Vec<Happened>)>,
    /// Everything after this index is here.
    floor: u64,
    changes: usize,
    bytes: usize,
}

/// The latest changes, of policy and of status state apart, so that a storm of insights does not push out what people wrote.
#[derive(Debug)]
pub struct History {
    policy: Ring,
    status: Ring,
    limits: HistoryLimits,
    head: u64,
}

/// Size of a resource in memory, roughly.
fn weight(h: &Happened) -> usize {
    const FIXED: usize = 256;
    let text = |r: &Resource| r.spec.text().len() + r.status.text().len() + r.labels.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    FIXED + h.after.as_deref().map_or(0, text)
}

impl Ring {
    fn push(&mut self, index: u64, status: bool, changes: &[Change], limits: HistoryLimits) {
        let set: Vec<Happened> =
            changes.iter().filter_map(|c| Some(Happened { index, status, key: c.key()?.clone(), after: c.after.clone() })).collect();
        if set.is_empty() {
            return;
        }
        self.changes += set.len();
        self.bytes += set.iter().map(weight).sum::<usize>();
        self.sets.push_back((index, set));
        while self.changes > limits.changes || self.bytes > limits.bytes {
            let Some((index, set)) = self.sets.pop_front() else { break };
            self.floor = index;
            self.changes -= set.len();
            self.bytes -= set.iter().map(weight).sum::<usize>();
        }
    }
    fn after(&self, from: u64) -> impl Iterator<Item = &(u64, Vec<Happened>)> {
        self.sets.range(self.sets.partition_point(|(index, _)| *index <= from)..)
    }
}

impl History {
    /// An empty one that begins after `index`.
    pub fn new(limits: HistoryLimits, index: u64) -> Self {
        let ring = || Ring { floor: index, ..Ring::default() };
        History { policy: ring(), status: ring(), limits, head: index }
    }
    /// Forgets everything: what happened up to `index` is not known.
    pub fn restart(&mut self, index: u64) {
        *self = History::new(self.limits, index.max(self.head));
    }
    /// Adds what an entry changed. Entries come in order of the log; one that came already is left out.
    pub fn push(&mut self, set: &ChangeSet) {
        if set.index <= self.head {
            return;
        }
        self.head = set.index;
        self.policy.push(set.index, false, &set.policy, self.limits);
        self.status.push(set.index, true, &set.status, self.limits);
    }
    /// Index of the last entry that was added.
    pub fn head(&self) -> u64 {
        self.head
    }
    /// What happened after entry `from`, in order of the log, of policy state before status state within an entry; of the states that are
    /// asked for. `None` when it is no longer all known.
    pub fn after(&self, from: u64, policy: bool, status: bool) -> Option<impl Iterator<Item = &Happened>> {
        if (policy && from < self.policy.floor) || (status && from < self.status.floor) {
            return None;
        }
        // An iterator of the right type also for what is not asked for.
        let at = |wanted: bool| if wanted { from } else { u64::MAX };
        let mut of_policy = self.policy.after(at(policy)).peekable();
        let mut of_status = self.status.after(at(status)).peekable();
        let sets = std::iter::from_fn(move || match (of_policy.peek(), of_status.peek()) {
            (Some((p, _)), Some((s, _))) if s < p => of_status.next(),
            (Some(_), _) => of_policy.next(),
            (None, _) => of_status.next(),
        });
        Some(sets.flat_map(|(_, set)| set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, EntryMeta, Expect, Op, Put, World};
    use ikada_model::{Json, Kind, Labels, Timestamp};
    use serde_json::json;

    const LIMITS: HistoryLimits = HistoryLimits { changes: 4, bytes: 1 << 20 };

    struct Log {
        world: World,
        history: History,
    }

    impl Log {
        fn apply(&mut self, ops: Vec<Op>) {
            let index = self.world.index() + 1;
            let id = u128::from(index).to_le_bytes();
            let (world, changes, outcome) = self.world.apply(EntryMeta { index, time: Timestamp(0) }, &Command { id, ops });
            outcome.unwrap();
            self.world = world;
            self.history.push(&changes);
        }
        fn put(&mut self, kind: Kind, names: &[&str]) {
            let put = |n: &&str| Op::Put(Put::new(Key::new(kind, "m", n), Labels::new(), Json::from_value(&json!({"n": n}))));
            self.apply(names.iter().map(put).collect());
        }
        fn seen(&self, from: u64, policy: bool, status: bool) -> Option<Vec<(u64, String)>> {
            Some(self.history.after(from, policy, status)?.map(|h| (h.index, h.key.name.to_string())).collect())
        }
    }

    #[test]
    fn in_order_by_state_and_bounded() {
        let mut log = Log { world: World::empty(), history: History::new(LIMITS, 0) };
        log.put(Kind::Dataplane, &["a"]);
        log.put(Kind::DataplaneInsight, &["a"]);
        log.put(Kind::Dataplane, &["b", "c"]);
        let all = |v: &[(u64, &str)]| Some(v.iter().map(|(i, n)| (*i, (*n).to_owned())).collect::<Vec<_>>());
        assert_eq!(log.seen(0, true, true), all(&[(1, "a"), (2, "a"), (3, "b"), (3, "c")]));
        assert_eq!(log.seen(1, true, false), all(&[(3, "b"), (3, "c")]));
        assert_eq!(log.seen(0, false, true), all(&[(2, "a")]));
        assert_eq!(log.seen(9, true, true), all(&[]));
        // A storm of insights forgets insights alone, and whole entries at a time.
        for _ in 0..3 {
            log.put(Kind::DataplaneInsight, &["a", "b", "c"]);
        }
        assert_eq!(log.seen(4, false, true), None);
        assert_eq!(log.seen(5, false, true), all(&[(6, "a"), (6, "b"), (6, "c")]));
        assert_eq!(log.seen(0, true, false).map(|v| v.len()), Some(3));
        // An entry that alone is too large is not kept in part.
        log.put(Kind::Dataplane, &["1", "2", "3", "4", "5"]);
        assert_eq!((log.seen(6, true, false), log.seen(7, true, false)), (None, all(&[])));
        log.apply(vec![Op::Delete { key: Key::new(Kind::Dataplane, "m", "1"), expect: Expect::Exists }]);
        let after: Vec<_> = log.history.after(7, true, true).unwrap().map(|h| h.after.is_none()).collect();
        assert_eq!(after, [true]);
        log.history.restart(20);
        assert_eq!((log.seen(19, true, false), log.seen(20, true, true), log.history.head()), (None, all(&[]), 20));
    }

    #[test]
    fn bounded_by_size() {
        let mut log = Log { world: World::empty(), history: History::new(HistoryLimits { changes: 1000, bytes: 1000 }, 0) };
        for name in ["a", "b", "c", "d"] {
            log.put(Kind::Dataplane, &[name]);
        }
        assert_eq!(log.seen(0, true, false), None);
        assert_eq!(log.seen(1, true, false).map(|v| v.len()), Some(3));
    }
}
