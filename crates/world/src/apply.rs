//! Application of a command to a world.

use crate::{
    change::{Change, ChangeSet},
    command::{Applied, Command, EntryMeta, Expect, Op, OpResult, Put, Reason, Rejection},
    world::{World, service_keys},
};
use ikada_model::{Key, Kind, Resource};
use std::sync::Arc;

/// How many idempotency keys are remembered. At 5 000 writes a second that is well above any client's retry window.
pub const REMEMBERED_OUTCOMES: usize = 65_536;

impl World {
    /// The world after one entry, what changed, and what the proposer is told. A rejected command changes nothing but the index.
    pub fn apply(&self, entry: EntryMeta, command: &Command) -> (World, ChangeSet, Result<Applied, Rejection>) {
        let mut next = self.clone();
        next.index = entry.index;
        if let Some(known) = self.outcomes.get(&command.id) {
            return (next, ChangeSet { index: entry.index, ..ChangeSet::default() }, known.1.clone());
        }
        let mut changes = ChangeSet { index: entry.index, ..ChangeSet::default() };
        let mut results = Vec::with_capacity(command.ops.len());
        let mut failed = None;
        for op in &command.ops {
            match next.apply_op(entry, op, &mut changes) {
                Ok(r) => results.push(r),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let outcome = match failed {
            Some(e) => {
                next = self.clone();
                next.index = entry.index;
                changes = ChangeSet { index: entry.index, ..ChangeSet::default() };
                Err(e)
            }
            None => Ok(Applied { index: entry.index, results }),
        };
        if !changes.policy.is_empty() {
            next.revision = entry.index;
        }
        if !changes.status.is_empty() {
            next.status_revision = entry.index;
        }
        next.remember(entry.index, command, &outcome);
        (next, changes, outcome)
    }

    /// The world after an entry that carries no command (membership, blank).
    pub fn skip(&self, index: u64) -> World {
        World { index, ..self.clone() }
    }

    pub(crate) fn remember(&mut self, index: u64, command: &Command, outcome: &Result<Applied, Rejection>) {
        self.outcomes.insert(command.id, Arc::new((index, outcome.clone())));
        self.outcome_order.insert((index, command.id));
        self.forget_oldest();
    }

    pub(crate) fn forget_oldest(&mut self) {
        while self.outcome_order.len() > REMEMBERED_OUTCOMES {
            let Some(oldest) = self.outcome_order.remove_min() else { break };
            self.outcomes.remove(&oldest.1);
        }
    }

    fn check(&self, key: &Key, expect: Expect) -> Result<Option<Arc<Resource>>, Rejection> {
        let current = self.get(key).cloned();
        let reason = match (expect, &current) {
            (Expect::Any, _) | (Expect::Absent, None) | (Expect::Exists, Some(_)) => None,
            (Expect::Absent, Some(_)) => Some(Reason::AlreadyExists),
            (Expect::Exists, None) => Some(Reason::NotFound),
            (Expect::Version(v), Some(r)) if r.version == v => None,
            (Expect::Version(_), _) => Some(Reason::Conflict),
        };
        match reason {
            Some(reason) => Err(Rejection { key: key.clone(), reason }),
            None => Ok(current),
        }
    }

    fn apply_op(&mut self, entry: EntryMeta, op: &Op, changes: &mut ChangeSet) -> Result<OpResult, Rejection> {
        match op {
            Op::Require { key, expect } => self.check(key, *expect).map(|_| OpResult::Unchanged),
            Op::Put(put) => self.put(entry, put, changes),
            Op::Delete { key, expect } => {
                let existed = self.check(key, *expect)?.is_some();
                self.delete(key, changes);
                Ok(if existed { OpResult::Deleted } else { OpResult::Unchanged })
            }
            Op::Status { key, status } => {
                if key.kind.descriptor().insight || !self.policy.contains_key(key) {
                    return Ok(OpResult::Unchanged);
                }
                let before = self.status.get(key).cloned();
                if before.as_ref().is_some_and(|b| b.status == *status) {
                    return Ok(OpResult::Unchanged);
                }
                let mut r = Resource::new(key.clone(), Default::default());
                r.status = status.clone();
                r.modification_time = entry.time;
                r.version = entry.index;
                let after = Arc::new(r);
                self.status.insert(key.clone(), after.clone());
                let result = if before.is_some() { OpResult::Updated } else { OpResult::Created };
                changes.status.push(Change { before, after: Some(after) });
                Ok(result)
            }
        }
    }

    fn put(&mut self, entry: EntryMeta, put: &Put, changes: &mut ChangeSet) -> Result<OpResult, Rejection> {
        let before = self.check(&put.key, put.expect)?;
        if let Some(owner) = &put.owner
            && self.get(owner).is_none()
        {
            return Err(Rejection { key: owner.clone(), reason: Reason::OwnerNotFound });
        }
        let mut r = Resource::new(put.key.clone(), put.spec.clone()).with_labels(put.labels.clone());
        r.status = put.status.clone().or_else(|| before.as_ref().map(|b| b.status.clone())).unwrap_or_default();
        r.owner = put.owner.clone().or_else(|| before.as_ref().and_then(|b| b.owner.clone()));
        (r.creation_time, r.modification_time) =
            put.times.unwrap_or_else(|| (before.as_ref().map_or(entry.time, |b| b.creation_time), entry.time));
        r.version = entry.index;
        let after = Arc::new(r);
        self.store(before.as_ref(), after.clone());
        let result = if before.is_some() { OpResult::Updated } else { OpResult::Created };
        let change = Change { before, after: Some(after) };
        if put.key.kind.descriptor().insight { changes.status.push(change) } else { changes.policy.push(change) }
        Ok(result)
    }

    /// Puts a resource into its map and the indices.
    pub(crate) fn store(&mut self, before: Option<&Arc<Resource>>, after: Arc<Resource>) {
        if let Some(b) = before {
            self.unindex(b);
        }
        if let Some(owner) = &after.owner {
            self.owned.insert((owner.clone(), after.key.clone()));
        }
        if after.kind() == Kind::Dataplane {
            self.by_service.extend(service_keys(&after));
        }
        let map = if after.kind().descriptor().insight { &mut self.status } else { &mut self.policy };
        map.insert(after.key.clone(), after);
    }

    fn unindex(&mut self, r: &Arc<Resource>) {
        if let Some(owner) = &r.owner {
            self.owned.remove(&(owner.clone(), r.key.clone()));
        }
        if r.kind() == Kind::Dataplane {
            for k in service_keys(r) {
                self.by_service.remove(&k);
            }
        }
    }

    /// Deletes a resource and, breadth first, what it owns. A work list, not recursion: chains of owners come from input.
    fn delete(&mut self, key: &Key, changes: &mut ChangeSet) {
        let mut todo = std::collections::VecDeque::from([key.clone()]);
        while let Some(key) = todo.pop_front() {
            let insight = key.kind.descriptor().insight;
            let map = if insight { &mut self.status } else { &mut self.policy };
            let Some(before) = map.remove(&key) else { continue };
            self.unindex(&before);
            todo.extend(self.owned_by(&key).cloned().collect::<Vec<_>>());
            let change = Change { before: Some(before), after: None };
            if insight { changes.status.push(change) } else { changes.policy.push(change) }
            if !insight && let Some(overlay) = self.status.remove(&key) {
                changes.status.push(Change { before: Some(overlay), after: None });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Labels, Timestamp};
    use serde_json::json;

    fn entry(index: u64) -> EntryMeta {
        EntryMeta { index, time: Timestamp::from_millis(1000 + index) }
    }
    fn put(kind: Kind, name: &str, spec: serde_json::Value) -> Put {
        Put::new(Key::new(kind, "default", name), Labels::new(), Json::from_value(&spec))
    }
    fn cmd(id: u8, ops: Vec<Op>) -> Command {
        Command { id: [id; 16], ops }
    }

    #[test]
    fn create_update_conflict_and_cascade() {
        let w0 = World::empty();
        let mesh = put(Kind::Mesh, "default", json!({}));
        let mut dp = put(Kind::Dataplane, "a", json!({"networking":{"inbound":[{"port":1,"tags":{"kuma.io/service":"web"}}]}}));
        dp.owner = Some(mesh.key.clone());
        let (w1, c1, r1) = w0.apply(entry(1), &cmd(1, vec![Op::Put(mesh.clone()), Op::Put(dp.clone())]));
        assert_eq!(r1.unwrap().results, [OpResult::Created, OpResult::Created]);
        assert_eq!(c1.policy.len(), 2);
        assert_eq!(w1.revision(), 1);
        assert_eq!(w1.dataplanes_of_service("default", "web").count(), 1);
        assert!(w0.is_empty(), "an older world does not change");

        let stale = Put { expect: Expect::Version(9), ..dp.clone() };
        let (w2, c2, r2) = w1.apply(entry(2), &cmd(2, vec![Op::Delete { key: mesh.key.clone(), expect: Expect::Any }, Op::Put(stale)]));
        assert_eq!(r2.unwrap_err().reason, Reason::Conflict);
        assert!(c2.is_empty());
        assert_eq!((w2.len(), w2.index(), w2.revision()), (2, 2, 1));

        let mut insight = put(Kind::DataplaneInsight, "a", json!({}));
        insight.owner = Some(dp.key.clone());
        let (w3, c3, _) = w2.apply(entry(3), &cmd(3, vec![Op::Put(insight)]));
        assert_eq!((w3.revision(), w3.status_revision()), (1, 3), "an insight does not move the policy revision");
        assert_eq!(c3.status.len(), 1);

        let (w4, c4, _) = w3.apply(entry(4), &cmd(4, vec![Op::Delete { key: mesh.key.clone(), expect: Expect::Exists }]));
        assert!(w4.is_empty(), "mesh, then dataplane, then insight");
        assert_eq!((c4.policy.len(), c4.status.len()), (2, 1));
        assert_eq!(w4.dataplanes_of_service("default", "web").count(), 0);
    }

    #[test]
    fn the_same_key_twice_is_once() {
        let once = cmd(7, vec![Op::Put(Put { expect: Expect::Absent, ..put(Kind::Mesh, "m", json!({})) })]);
        let (w1, _, r1) = World::empty().apply(entry(1), &once);
        let (w2, c2, r2) = w1.apply(entry(2), &once);
        assert_eq!(r1, r2);
        assert!(c2.is_empty());
        assert_eq!(w2.len(), 1);
    }

    #[test]
    fn missing_owner_rejects() {
        let mut p = put(Kind::MeshTimeout, "t", json!({}));
        p.owner = Some(Key::new(Kind::Mesh, "", "gone"));
        let (_, _, r) = World::empty().apply(entry(1), &cmd(1, vec![Op::Put(p)]));
        assert_eq!(r.unwrap_err().reason, Reason::OwnerNotFound);
    }

    #[test]
    fn status_overlay() {
        let ms = put(Kind::MeshService, "web", json!({}));
        let key = ms.key.clone();
        let (w1, _, _) = World::empty().apply(entry(1), &cmd(1, vec![Op::Put(Put { status: Some(Json::from_value(&json!({"tls":{}}))), ..ms })]));
        let status = Json::from_value(&json!({"dataplaneProxies":{"total":1}}));
        let (w2, c, _) = w1.apply(entry(2), &cmd(2, vec![Op::Status { key: key.clone(), status }]));
        assert_eq!((c.policy.len(), c.status.len()), (0, 1));
        assert_eq!(w2.status_of(w2.get(&key).unwrap()), json!({"tls":{},"dataplaneProxies":{"total":1}}));
    }
}
