//! The records of this crate: what the payload of a log entry, of a snapshot and of the state cache is. Layouts are a disk format: a
//! change makes a new version.

use crate::types::{Entry, LogId, Membership, Proposal, log_id, mark};
use bytes::Bytes;
use ikada_model::Timestamp;
use ikada_store::{
    ClusterId, Identity, LogRecord, Mark, SnapshotMeta,
    codec::{self, CodecError, Tag},
};
use ikada_world::{
    Command, World,
    record::{CommandRecordV1, OutcomeRecordV1, ResourceRecordV1},
};
use openraft::{BasicNode, EntryPayload};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const COMMAND: Tag = Tag { kind: 1, version: 1 };
const BLANK: Tag = Tag { kind: 2, version: 1 };
const MEMBERSHIP: Tag = Tag { kind: 3, version: 1 };
const SNAPSHOT: Tag = Tag { kind: 4, version: 1 };
pub(crate) const RESOURCE: Tag = Tag { kind: 5, version: 1 };
pub(crate) const OUTCOME: Tag = Tag { kind: 6, version: 1 };
const CACHE: Tag = Tag { kind: 7, version: 1 };

/// Largest encoded command in bytes. Below half of a record: a stored resource has a spec and a status that came in two commands.
pub(crate) const MAX_COMMAND_BYTES: usize = (2 << 20) - (64 << 10);

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    World(#[from] ikada_world::record::RecordError),
    #[error("record of an unknown kind {0} version {1}: it was written by a newer version")]
    Unknown(u8, u16),
    #[error("membership: {0}")]
    Membership(String),
}

impl From<RecordError> for std::io::Error {
    fn from(e: RecordError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, e)
    }
}

/// Voters of each configuration (two while it changes), and the address of every node.
#[derive(Serialize, Deserialize)]
struct MembershipRecordV1 {
    configs: Vec<Vec<u64>>,
    nodes: Vec<(u64, String)>,
}

#[derive(Serialize, Deserialize)]
struct SnapshotRecordV1 {
    revision: u64,
    status_revision: u64,
    /// Index and term of the entry that has the membership.
    membership_at: Option<(u64, u64)>,
    membership: MembershipRecordV1,
}

/// Whose state cache it is, and its [`SnapshotRecordV1`] as an encoded record.
#[derive(Serialize, Deserialize)]
struct CacheRecordV1 {
    cluster: [u8; 16],
    node: u64,
    meta: Vec<u8>,
}

pub(crate) fn encode_cache(owner: Identity, meta: Vec<u8>) -> Result<Vec<u8>, CodecError> {
    codec::encode(CACHE, &CacheRecordV1 { cluster: owner.cluster.0, node: owner.node, meta })
}

/// Owner of a cache, and what [`decode_meta`] reads.
pub(crate) fn decode_cache(bytes: &[u8]) -> Result<(Identity, Vec<u8>), RecordError> {
    let record: CacheRecordV1 = codec::decode(CACHE, bytes)?;
    Ok((Identity { cluster: ClusterId(record.cluster), node: record.node }, record.meta))
}

type Config = openraft::Membership<u64, BasicNode>;

fn membership_record(m: &Config) -> MembershipRecordV1 {
    MembershipRecordV1 {
        configs: m.get_joint_config().iter().map(|c| c.iter().copied().collect()).collect(),
        nodes: m.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
    }
}

fn membership(r: MembershipRecordV1) -> Result<Config, RecordError> {
    if r.configs.is_empty() {
        return Ok(Config::default());
    }
    let configs: Vec<BTreeSet<u64>> = r.configs.into_iter().map(|c| c.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> = r.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
    Config::new(configs, nodes).map_err(|e| RecordError::Membership(e.to_string()))
}

/// A command with the time of the leader's clock, as it goes into the log.
pub(crate) fn encode_command(time: Timestamp, command: &Command) -> Result<Vec<u8>, CodecError> {
    codec::encode(COMMAND, &CommandRecordV1::new(time, command))
}

pub(crate) fn decode_command(bytes: &[u8]) -> Result<(Timestamp, Command), RecordError> {
    let record: CommandRecordV1 = codec::decode(COMMAND, bytes)?;
    Ok((Timestamp(record.time), record.command()?))
}

pub(crate) fn log_record(entry: &Entry) -> Result<LogRecord, RecordError> {
    let payload = match &entry.payload {
        EntryPayload::Normal(p) => p.bytes.clone(),
        EntryPayload::Blank => codec::encode(BLANK, &())?.into(),
        EntryPayload::Membership(m) => codec::encode(MEMBERSHIP, &membership_record(m))?.into(),
    };
    Ok(LogRecord { mark: mark(&entry.log_id), payload })
}

pub(crate) fn entry(record: LogRecord) -> Result<Entry, RecordError> {
    let payload = match codec::tag(&record.payload)? {
        COMMAND => EntryPayload::Normal(Proposal { bytes: record.payload, decoded: None }),
        BLANK => {
            codec::decode::<()>(BLANK, &record.payload)?;
            EntryPayload::Blank
        }
        MEMBERSHIP => EntryPayload::Membership(membership(codec::decode(MEMBERSHIP, &record.payload)?)?),
        Tag { kind, version } => return Err(RecordError::Unknown(kind, version)),
    };
    Ok(Entry { log_id: log_id(record.mark), payload })
}

/// What a world at a position needs besides its resources and outcomes.
pub(crate) fn encode_meta(world: &World, at: &LogId, members: &Membership) -> Result<SnapshotMeta, CodecError> {
    let record = SnapshotRecordV1 {
        revision: world.revision(),
        status_revision: world.status_revision(),
        membership_at: members.log_id().as_ref().map(|id| (id.index, id.leader_id.term)),
        membership: membership_record(members.membership()),
    };
    Ok(SnapshotMeta { mark: mark(at), meta: codec::encode(SNAPSHOT, &record)? })
}

/// Revision, status revision and membership.
pub(crate) fn decode_meta(meta: &[u8]) -> Result<(u64, u64, Membership), RecordError> {
    let record: SnapshotRecordV1 = codec::decode(SNAPSHOT, meta)?;
    let at = record.membership_at.map(|(index, term)| log_id(Mark { index, term }));
    Ok((record.revision, record.status_revision, Membership::new(at, membership(record.membership)?)))
}

/// Collects the records of a snapshot or of the state cache into a world.
#[derive(Default)]
pub(crate) struct WorldBuilder {
    resources: Vec<ResourceRecordV1>,
    outcomes: Vec<OutcomeRecordV1>,
}

impl WorldBuilder {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        match codec::tag(bytes)? {
            RESOURCE => self.resources.push(codec::decode(RESOURCE, bytes)?),
            OUTCOME => self.outcomes.push(codec::decode(OUTCOME, bytes)?),
            Tag { kind, version } => return Err(RecordError::Unknown(kind, version)),
        }
        Ok(())
    }

    pub(crate) fn build(self, index: u64, revision: u64, status_revision: u64) -> Result<World, RecordError> {
        Ok(World::restore((index, revision, status_revision), self.resources, self.outcomes)?)
    }
}

pub(crate) fn encode_resource(record: &ResourceRecordV1) -> Result<Vec<u8>, CodecError> {
    codec::encode(RESOURCE, record)
}

pub(crate) fn encode_outcome(record: &OutcomeRecordV1) -> Result<Vec<u8>, CodecError> {
    codec::encode(OUTCOME, record)
}

/// A proposal from an encoded command.
pub(crate) fn proposal(bytes: Vec<u8>, time: Timestamp, command: Command) -> Proposal {
    Proposal { bytes: Bytes::from(bytes), decoded: Some(std::sync::Arc::new((time, command))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind, Labels};
    use ikada_world::{Op, Put};
    use proptest::prelude::*;

    fn command() -> Command {
        let put = Put::new(Key::new(Kind::MeshTimeout, "m", "t"), Labels::new(), Json::from_text("{\"a\":1}").unwrap());
        Command { id: [1; 16], ops: vec![Op::Put(put)] }
    }

    #[test]
    fn entries_round_trip() {
        let at = |index| log_id(Mark { index, term: 2 });
        let bytes = encode_command(Timestamp(5), &command()).unwrap();
        assert_eq!(decode_command(&bytes).unwrap(), (Timestamp(5), command()));
        let members =
            Config::new(vec![BTreeSet::from([1, 2])], BTreeMap::from([1, 2, 3].map(|id| (id, BasicNode { addr: format!("h{id}") }))))
                .unwrap();
        let payloads =
            [EntryPayload::Normal(proposal(bytes, Timestamp(5), command())), EntryPayload::Blank, EntryPayload::Membership(members)];
        for (i, payload) in payloads.into_iter().enumerate() {
            let before = Entry { log_id: at(i as u64), payload };
            let after = entry(log_record(&before).unwrap()).unwrap();
            assert_eq!(after.log_id, before.log_id);
            match (&after.payload, &before.payload) {
                (EntryPayload::Normal(a), EntryPayload::Normal(b)) => assert_eq!(a.bytes, b.bytes),
                (EntryPayload::Membership(a), EntryPayload::Membership(b)) => assert_eq!(a, b),
                (a, b) => assert!(matches!((a, b), (EntryPayload::Blank, EntryPayload::Blank))),
            }
        }
    }

    /// The bytes of version 1. A failure means that old data directories cannot be read any more.
    #[test]
    fn the_layout_of_a_command_is_frozen() {
        let bytes = encode_command(Timestamp(5), &command()).unwrap();
        let mut expected = vec![0xA7, 1, 1, 0];
        expected.extend([1; 16]);
        expected.extend([10, 1, 0, 11]);
        expected.extend(b"MeshTimeout");
        expected.extend([1, b'm', 1, b't', 0, 0, 0, 7]);
        expected.extend(b"{\"a\":1}");
        expected.extend([0, 0, 0]);
        assert_eq!(bytes, expected);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..8) {
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[0xA7, kind, 1, 0]);
            }
            let _ = entry(LogRecord { mark: Mark { index: 0, term: 0 }, payload: Bytes::from(bytes.clone()) });
            let _ = decode_command(&bytes);
            let _ = decode_meta(&bytes);
            let _ = decode_cache(&bytes);
            let _ = WorldBuilder::default().push(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 4usize..60, to in any::<u8>()) {
            let mut bytes = encode_command(Timestamp(5), &command()).unwrap();
            if let Some(b) = bytes.get_mut(at) { *b = to; }
            let _ = decode_command(&bytes);
        }
    }
}
