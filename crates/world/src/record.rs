//! Flat records of commands and resources for logs and snapshots. Their layout is a disk format: a change makes a new struct.

use crate::{
    command::{Applied, Command, CommandId, Expect, Op, OpResult, Put, Reason, Rejection},
    world::World,
};
use ikada_model::{Json, Key, Kind, Resource, Timestamp, resource::Shown};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("unreadable record: {0}")]
pub struct RecordError(String);

/// (kind, mesh, name).
pub type KeyRecord = (String, String, String);

fn key_record(k: &Key) -> KeyRecord {
    (k.kind.name().to_owned(), k.mesh.to_string(), k.name.to_string())
}
fn key(r: &KeyRecord) -> Result<Key, RecordError> {
    let kind = Kind::by_name(&r.0).ok_or_else(|| RecordError(format!("unknown kind {:?}; was it written by a newer version?", r.0)))?;
    Ok(Key::new(kind, &r.1, &r.2))
}
fn json(text: &str) -> Result<Json, RecordError> {
    Json::from_text(text).map_err(|e| RecordError(format!("spec or status is not JSON: {e}")))
}

/// One operation.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct OpRecordV1 {
    /// 0 put, 1 delete, 2 require, 3 status.
    pub op: u8,
    /// Key.
    pub key: KeyRecord,
    /// 0 any, 1 absent, 2 exists, 3 version.
    pub expect: u8,
    /// With expect 3.
    pub version: u64,
    /// Put: labels.
    pub labels: Vec<(String, String)>,
    /// Put: spec.
    pub spec: String,
    /// Put, status: status.
    pub status: Option<String>,
    /// Put: owner.
    pub owner: Option<KeyRecord>,
    /// Put: verbatim creation and modification time, nanoseconds since the epoch.
    pub times: Option<(i64, i64)>,
}

impl fmt::Debug for OpRecordV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = Kind::by_name(&self.key.0);
        f.debug_struct("OpRecordV1")
            .field("op", &self.op)
            .field("key", &self.key)
            .field("expect", &(self.expect, self.version))
            .field("labels", &self.labels)
            .field("spec", &Shown(kind, &self.spec))
            .field("status", &self.status.as_ref().map(|s| Shown(kind, s)))
            .field("owner", &self.owner)
            .field("times", &self.times)
            .finish()
    }
}

/// A command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandRecordV1 {
    /// Idempotency key.
    pub id: CommandId,
    /// Leader's clock, nanoseconds since the epoch.
    pub time: i64,
    /// Operations.
    pub ops: Vec<OpRecordV1>,
}

impl CommandRecordV1 {
    /// For the log. `time` is the leader's clock.
    pub fn new(time: Timestamp, c: &Command) -> Self {
        let ops = c
            .ops
            .iter()
            .map(|op| {
                let mut r = OpRecordV1 { op: 0, key: Default::default(), expect: 0, version: 0, labels: vec![], spec: String::new(), status: None, owner: None, times: None };
                let set_expect = |r: &mut OpRecordV1, e: Expect| {
                    (r.expect, r.version) = match e {
                        Expect::Any => (0, 0),
                        Expect::Absent => (1, 0),
                        Expect::Exists => (2, 0),
                        Expect::Version(v) => (3, v),
                    }
                };
                match op {
                    Op::Put(p) => {
                        r.key = key_record(&p.key);
                        set_expect(&mut r, p.expect);
                        r.labels = p.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                        r.spec = p.spec.text().to_owned();
                        r.status = p.status.as_ref().map(|s| s.text().to_owned());
                        r.owner = p.owner.as_ref().map(key_record);
                        r.times = p.times.map(|(a, b)| (a.0, b.0));
                    }
                    Op::Delete { key: k, expect } => {
                        r.op = 1;
                        r.key = key_record(k);
                        set_expect(&mut r, *expect);
                    }
                    Op::Require { key: k, expect } => {
                        r.op = 2;
                        r.key = key_record(k);
                        set_expect(&mut r, *expect);
                    }
                    Op::Status { key: k, status } => {
                        r.op = 3;
                        r.key = key_record(k);
                        r.status = Some(status.text().to_owned());
                    }
                }
                r
            })
            .collect();
        CommandRecordV1 { id: c.id, time: time.0, ops }
    }

    /// Back to a command. Errors on anything this version does not know.
    pub fn command(&self) -> Result<Command, RecordError> {
        let ops = self
            .ops
            .iter()
            .map(|r| {
                let key_ = key(&r.key)?;
                let expect = match r.expect {
                    0 => Expect::Any,
                    1 => Expect::Absent,
                    2 => Expect::Exists,
                    3 => Expect::Version(r.version),
                    other => return Err(RecordError(format!("unknown precondition {other}"))),
                };
                Ok(match r.op {
                    0 => Op::Put(Put {
                        key: key_,
                        labels: r.labels.iter().cloned().collect(),
                        spec: json(&r.spec)?,
                        status: r.status.as_deref().map(json).transpose()?,
                        owner: r.owner.as_ref().map(key).transpose()?,
                        expect,
                        times: r.times.map(|(a, b)| (Timestamp(a), Timestamp(b))),
                    }),
                    1 => Op::Delete { key: key_, expect },
                    2 => Op::Require { key: key_, expect },
                    3 => Op::Status { key: key_, status: json(r.status.as_deref().unwrap_or("{}"))? },
                    other => return Err(RecordError(format!("unknown operation {other}"))),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Command { id: self.id, ops })
    }
}

/// A resource in a snapshot or in the state store.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ResourceRecordV1 {
    /// In the status map (insight, or overlay of another kind's status).
    pub is_status: bool,
    /// Key.
    pub key: KeyRecord,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Nanoseconds since the epoch.
    pub creation_time: i64,
    /// Nanoseconds since the epoch.
    pub modification_time: i64,
    /// Version.
    pub version: u64,
    /// Owner.
    pub owner: Option<KeyRecord>,
    /// Spec.
    pub spec: String,
    /// Status.
    pub status: String,
}

impl fmt::Debug for ResourceRecordV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = Kind::by_name(&self.key.0);
        f.debug_struct("ResourceRecordV1")
            .field("is_status", &self.is_status)
            .field("key", &self.key)
            .field("labels", &self.labels)
            .field("times", &(self.creation_time, self.modification_time))
            .field("version", &self.version)
            .field("owner", &self.owner)
            .field("spec", &Shown(kind, &self.spec))
            .field("status", &Shown(kind, &self.status))
            .finish()
    }
}

impl ResourceRecordV1 {
    /// Of a stored resource.
    pub fn new(is_status: bool, r: &Resource) -> Self {
        ResourceRecordV1 {
            is_status,
            key: key_record(&r.key),
            labels: r.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            creation_time: r.creation_time.0,
            modification_time: r.modification_time.0,
            version: r.version,
            owner: r.owner.as_ref().map(key_record),
            spec: r.spec.text().to_owned(),
            status: r.status.text().to_owned(),
        }
    }
    /// Back to a resource.
    pub fn resource(&self) -> Result<Resource, RecordError> {
        let mut r = Resource::new(key(&self.key)?, json(&self.spec)?).with_labels(self.labels.iter().cloned().collect());
        r.creation_time = Timestamp(self.creation_time);
        r.modification_time = Timestamp(self.modification_time);
        r.version = self.version;
        r.owner = self.owner.as_ref().map(key).transpose()?;
        r.status = json(&self.status)?;
        Ok(r)
    }
}

/// A remembered outcome of an idempotency key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutcomeRecordV1 {
    /// Idempotency key.
    pub id: CommandId,
    /// Index at which it was applied.
    pub index: u64,
    /// Per operation: 0 created, 1 updated, 2 deleted, 3 unchanged.
    pub results: Vec<u8>,
    /// When rejected: key and reason (0 conflict, 1 already exists, 2 not found, 3 owner not found).
    pub rejected: Option<(KeyRecord, u8)>,
}

impl OutcomeRecordV1 {
    fn new(id: CommandId, remembered: &(u64, Result<Applied, Rejection>)) -> Self {
        let (index, outcome) = remembered;
        OutcomeRecordV1 {
            id,
            index: *index,
            results: outcome.as_ref().map(|a| a.results.iter().map(|r| *r as u8).collect()).unwrap_or_default(),
            rejected: outcome.as_ref().err().map(|e| (key_record(&e.key), e.reason as u8)),
        }
    }
}

impl World {
    /// All resources as records, for a snapshot.
    pub fn resource_records(&self) -> impl Iterator<Item = ResourceRecordV1> {
        self.iter().map(|(s, r)| ResourceRecordV1::new(s, r))
    }
    /// All remembered outcomes, for a snapshot.
    pub fn outcome_records(&self) -> impl Iterator<Item = OutcomeRecordV1> {
        self.outcomes.iter().map(|(id, o)| OutcomeRecordV1::new(*id, o))
    }
    /// The remembered outcome of one idempotency key.
    pub fn outcome_record(&self, id: &CommandId) -> Option<OutcomeRecordV1> {
        self.outcomes.get(id).map(|o| OutcomeRecordV1::new(*id, o))
    }
    /// A world from the records of a snapshot. `index`, `revision` and `status_revision` as they were.
    pub fn restore(
        (index, revision, status_revision): (u64, u64, u64),
        resources: impl IntoIterator<Item = ResourceRecordV1>,
        outcomes: impl IntoIterator<Item = OutcomeRecordV1>,
    ) -> Result<World, RecordError> {
        let mut w = World { index, revision, status_revision, ..World::empty() };
        for record in resources {
            let r = Arc::new(record.resource()?);
            if record.is_status && !r.kind().descriptor().insight {
                w.status.insert(r.key.clone(), r);
            } else {
                w.store(None, r);
            }
        }
        for o in outcomes {
            let outcome = match &o.rejected {
                Some((k, reason)) => Err(Rejection {
                    key: key(k)?,
                    reason: match reason {
                        0 => Reason::Conflict,
                        1 => Reason::AlreadyExists,
                        2 => Reason::NotFound,
                        3 => Reason::OwnerNotFound,
                        other => return Err(RecordError(format!("unknown reason {other}"))),
                    },
                }),
                None => {
                    let results = o.results.iter().map(|r| match r {
                        0 => Ok(OpResult::Created),
                        1 => Ok(OpResult::Updated),
                        2 => Ok(OpResult::Deleted),
                        3 => Ok(OpResult::Unchanged),
                        other => Err(RecordError(format!("unknown result {other}"))),
                    });
                    Ok(Applied { index: o.index, results: results.collect::<Result<_, _>>()? })
                }
            };
            w.outcomes.insert(o.id, Arc::new((o.index, outcome)));
            w.outcome_order.insert((o.index, o.id));
        }
        // Every node must forget the same keys, whatever its records held.
        w.forget_oldest();
        Ok(w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryMeta;
    use ikada_model::Labels;

    #[test]
    fn round_trips() {
        let k = Key::new(Kind::MeshService, "m", "web");
        let put = Put {
            status: Some(Json::from_text("{\"tls\":{}}").unwrap()),
            owner: None,
            expect: Expect::Absent,
            times: Some((Timestamp(5), Timestamp(6))),
            ..Put::new(k.clone(), Labels::from([("a".into(), "b".into())]), Json::from_text("{\"ports\":[]}").unwrap())
        };
        let c = Command {
            id: [3; 16],
            ops: vec![
                Op::Put(put),
                Op::Status { key: k.clone(), status: Json::from_text("{\"x\":1}").unwrap() },
                Op::Require { key: k.clone(), expect: Expect::Exists },
                Op::Delete { key: Key::new(Kind::Mesh, "", "zz"), expect: Expect::Any },
            ],
        };
        let record = CommandRecordV1::new(Timestamp(9), &c);
        assert_eq!(record.command().unwrap(), c);
        let (w, _, out) = World::empty().apply(EntryMeta { index: 4, time: Timestamp(9) }, &c);
        out.unwrap();
        let back = World::restore((w.index(), w.revision(), w.status_revision()), w.resource_records(), w.outcome_records()).unwrap();
        assert_eq!(back.resource_records().collect::<Vec<_>>(), w.resource_records().collect::<Vec<_>>());
        assert_eq!(back.outcome_records().collect::<Vec<_>>(), w.outcome_records().collect::<Vec<_>>());
        assert_eq!(back.status_of(back.get(&k).unwrap()), w.status_of(w.get(&k).unwrap()));
    }

    #[test]
    fn no_key_is_shown() {
        let put = Put::new(Key::new(Kind::Secret, "m", "s"), Labels::new(), Json::from_text("{\"data\":\"a2V5\"}").unwrap());
        let c = Command { id: [1; 16], ops: vec![Op::Put(put)] };
        let record = CommandRecordV1::new(Timestamp(1), &c);
        let (w, changes, _) = World::empty().apply(EntryMeta { index: 1, time: Timestamp(1) }, &c);
        let resources: Vec<_> = w.resource_records().collect();
        let all = format!("{c:?} {record:?} {changes:?} {resources:?}");
        assert!(all.contains("redacted") && !all.contains("a2V5"), "{all}");
    }
}
