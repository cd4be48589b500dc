//! The records of this crate: what the payload of a log entry, of a snapshot and of the state cache is. Layouts are a disk format: a
//! change makes a new version.

use crate::{
    membership::{Configuration, MAX_MEMBER_TEXT},
    types::{Entry, LogId, Membership, NodeRecord, Proposal, log_id, mark},
};
use bytes::Bytes;
use ikada_model::Timestamp;
use ikada_store::{
    ClusterId, Identity, LogRecord, Mark, SnapshotMeta,
    codec::{self, CodecError, Tag},
};
use ikada_world::{
    Command, EntryMeta, World,
    record::{CommandRecordV1, OutcomeRecordV1, ResourceRecordV1},
};
use openraft::EntryPayload;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const COMMAND: Tag = Tag { kind: 1, version: 1 };
const BLANK: Tag = Tag { kind: 2, version: 1 };
const MEMBERSHIP_V1: Tag = Tag { kind: 3, version: 1 };
const MEMBERSHIP: Tag = Tag { kind: 3, version: 2 };
const SNAPSHOT_V1: Tag = Tag { kind: 4, version: 1 };
const SNAPSHOT: Tag = Tag { kind: 4, version: 2 };
pub(crate) const RESOURCE: Tag = Tag { kind: 5, version: 1 };
pub(crate) const OUTCOME: Tag = Tag { kind: 6, version: 1 };
const CACHE: Tag = Tag { kind: 7, version: 1 };
const ARCHIVE: Tag = Tag { kind: 8, version: 1 };

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

/// Most nodes of a membership record; far above any cluster.
const MAX_NODES: usize = 1024;

/// Voters of each configuration (two while it changes), and the address of every node. Written until nodes had names; only read now.
#[derive(Serialize, Deserialize)]
struct MembershipRecordV1 {
    configs: Vec<Vec<u64>>,
    nodes: Vec<(u64, String)>,
}

/// Voters of each configuration (two while it changes), and every node: id, address, name, whether it wants a vote, newest format.
#[derive(Serialize, Deserialize)]
struct MembershipRecordV2 {
    configs: Vec<Vec<u64>>,
    nodes: Vec<(u64, String, String, bool, u16)>,
}

impl From<MembershipRecordV1> for MembershipRecordV2 {
    fn from(old: MembershipRecordV1) -> Self {
        // Nothing ever listened at what version 1 has as addresses: there was no transport.
        let nodes = old.nodes.into_iter().map(|(id, _)| (id, String::new(), String::new(), true, 1)).collect();
        MembershipRecordV2 { configs: old.configs, nodes }
    }
}

/// [`SnapshotRecordV2`] with the older membership; only read.
#[derive(Serialize, Deserialize)]
struct SnapshotRecordV1 {
    revision: u64,
    status_revision: u64,
    membership_at: Option<(u64, u64)>,
    membership: MembershipRecordV1,
}

#[derive(Serialize, Deserialize)]
struct SnapshotRecordV2 {
    revision: u64,
    status_revision: u64,
    /// Index and term of the entry that has the membership.
    membership_at: Option<(u64, u64)>,
    membership: MembershipRecordV2,
}

impl From<SnapshotRecordV1> for SnapshotRecordV2 {
    fn from(old: SnapshotRecordV1) -> Self {
        let SnapshotRecordV1 { revision, status_revision, membership_at, membership } = old;
        SnapshotRecordV2 { revision, status_revision, membership_at, membership: membership.into() }
    }
}

/// Whose state cache it is, and its [`SnapshotRecordV2`] as an encoded record.
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

fn membership_record(m: &Configuration) -> MembershipRecordV2 {
    MembershipRecordV2 {
        configs: m.get_joint_config().iter().map(|c| c.iter().copied().collect()).collect(),
        nodes: m.nodes().map(|(id, n)| (*id, n.address.clone(), n.name.clone(), n.wants_vote, n.format)).collect(),
    }
}

fn membership(r: MembershipRecordV2) -> Result<Configuration, RecordError> {
    let invalid = |what: &str| Err(RecordError::Membership(what.to_owned()));
    if r.configs.is_empty() {
        return Ok(Configuration::default());
    }
    if r.configs.len() > 2 || r.nodes.len() > MAX_NODES || r.configs.iter().any(|c| c.len() > r.nodes.len()) {
        return invalid("more nodes than a cluster can have");
    }
    if r.nodes.iter().any(|(_, address, name, ..)| address.len() > MAX_MEMBER_TEXT || name.len() > MAX_MEMBER_TEXT) {
        return invalid("the address or name of a node is too long");
    }
    let configs: Vec<BTreeSet<u64>> = r.configs.into_iter().map(|c| c.into_iter().collect()).collect();
    let node = |(id, address, name, wants_vote, format)| (id, NodeRecord { address, name, wants_vote, format });
    let nodes: BTreeMap<u64, NodeRecord> = r.nodes.into_iter().map(node).collect();
    Configuration::new(configs, nodes).map_err(|e| RecordError::Membership(e.to_string()))
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
        MEMBERSHIP_V1 => {
            let old: MembershipRecordV1 = codec::decode(MEMBERSHIP_V1, &record.payload)?;
            EntryPayload::Membership(membership(old.into())?)
        }
        Tag { kind, version } => return Err(RecordError::Unknown(kind, version)),
    };
    Ok(Entry { log_id: log_id(record.mark), payload })
}

/// What a world at a position needs besides its resources and outcomes.
pub(crate) fn encode_meta(world: &World, at: &LogId, members: &Membership) -> Result<SnapshotMeta, CodecError> {
    let record = SnapshotRecordV2 {
        revision: world.revision(),
        status_revision: world.status_revision(),
        membership_at: members.log_id().as_ref().map(|id| (id.index, id.leader_id.term)),
        membership: membership_record(members.membership()),
    };
    Ok(SnapshotMeta { mark: mark(at), meta: codec::encode(SNAPSHOT, &record)? })
}

/// Revision, status revision and membership.
pub(crate) fn decode_meta(meta: &[u8]) -> Result<(u64, u64, Membership), RecordError> {
    let record: SnapshotRecordV2 = match codec::tag(meta)? {
        SNAPSHOT_V1 => codec::decode::<SnapshotRecordV1>(SNAPSHOT_V1, meta)?.into(),
        _ => codec::decode(SNAPSHOT, meta)?,
    };
    let at = record.membership_at.map(|(index, term)| log_id(Mark { index, term }));
    Ok((record.revision, record.status_revision, Membership::new(at, membership(record.membership)?)))
}

/// What an archive says of itself: who wrote it, when and with which program, of which position (index and term); and its
/// [`SnapshotRecordV2`] as an encoded record.
#[derive(Serialize, Deserialize)]
struct ArchiveRecordV1 {
    cluster: [u8; 16],
    node: u64,
    /// Nanoseconds since the epoch.
    time: i64,
    program: String,
    at: (u64, u64),
    resources: u64,
    meta: Vec<u8>,
}

/// What an archive is.
pub(crate) struct Description {
    pub identity: Identity,
    pub time: Timestamp,
    pub program: String,
    pub resources: u64,
}

pub(crate) fn encode_archive(d: &Description, meta: SnapshotMeta) -> Result<Vec<u8>, CodecError> {
    let Identity { cluster, node } = d.identity;
    let (at, meta) = ((meta.mark.index, meta.mark.term), meta.meta);
    let program = d.program.clone();
    codec::encode(ARCHIVE, &ArchiveRecordV1 { cluster: cluster.0, node, time: d.time.0, program, at, resources: d.resources, meta })
}

/// What an archive is, and what [`decode_meta`] reads.
pub(crate) fn decode_archive(bytes: &[u8]) -> Result<(Description, SnapshotMeta), RecordError> {
    let r: ArchiveRecordV1 = codec::decode(ARCHIVE, bytes)?;
    let identity = Identity { cluster: ClusterId(r.cluster), node: r.node };
    let meta = SnapshotMeta { mark: Mark { index: r.at.0, term: r.at.1 }, meta: r.meta };
    Ok((Description { identity, time: Timestamp(r.time), program: r.program, resources: r.resources }, meta))
}

/// The world after an entry of the log.
pub(crate) fn applied(world: &World, entry: &Entry) -> Result<World, RecordError> {
    let index = entry.log_id.index;
    match &entry.payload {
        EntryPayload::Normal(proposal) => {
            let (time, command) = decode_command(&proposal.bytes)?;
            Ok(world.apply(EntryMeta { index, time }, &command).0)
        }
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(world.skip(index)),
    }
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

    fn configuration() -> Configuration {
        let node = |id: u64| NodeRecord { address: format!("h{id}:5690"), name: format!("h{id}"), wants_vote: id != 3, format: 1 };
        Configuration::new(vec![BTreeSet::from([1, 2])], BTreeMap::from([1, 2, 3].map(|id| (id, node(id))))).unwrap()
    }

    #[test]
    fn entries_round_trip() {
        let at = |index| log_id(Mark { index, term: 2 });
        let bytes = encode_command(Timestamp(5), &command()).unwrap();
        assert_eq!(decode_command(&bytes).unwrap(), (Timestamp(5), command()));
        let members = configuration();
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

    /// The bytes of a membership: version 2 as it is written, version 1 as it was.
    #[test]
    fn the_layout_of_a_membership_is_frozen() {
        let at = log_id(Mark { index: 7, term: 2 });
        let read = |payload: &[u8]| {
            let entry = entry(LogRecord { mark: mark(&at), payload: Bytes::copy_from_slice(payload) }).unwrap();
            let EntryPayload::Membership(m) = entry.payload else { panic!("not a membership") };
            m
        };
        let mut expected = vec![0xA7, 3, 2, 0, 1, 2, 1, 2, 3];
        for id in [1u8, 2, 3] {
            expected.extend([id, 7, b'h', b'0' + id]);
            expected.extend(b":5690");
            expected.extend([2, b'h', b'0' + id, u8::from(id != 3), 1]);
        }
        let written = log_record(&Entry { log_id: at, payload: EntryPayload::Membership(configuration()) }).unwrap();
        assert_eq!(written.payload, expected);
        assert_eq!(read(&expected), configuration());

        let mut first = vec![0xA7, 3, 1, 0, 1, 1, 1, 1, 1, 9];
        first.extend(b"localhost");
        let node = NodeRecord { address: String::new(), name: String::new(), wants_vote: true, format: 1 };
        assert_eq!(read(&first), Configuration::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, node)])).unwrap());
    }

    #[test]
    fn the_layout_of_a_snapshot_description_is_frozen() {
        let at = log_id(Mark { index: 300, term: 2 });
        let world = World::restore((300, 9, 8), [], []).unwrap();
        let members = Membership::new(Some(log_id(Mark { index: 4, term: 1 })), configuration());
        let mut expected = vec![0xA7, 4, 2, 0, 9, 8, 1, 4, 1, 1, 2, 1, 2, 3];
        for id in [1u8, 2, 3] {
            expected.extend([id, 7, b'h', b'0' + id]);
            expected.extend(b":5690");
            expected.extend([2, b'h', b'0' + id, u8::from(id != 3), 1]);
        }
        let written = encode_meta(&world, &at, &members).unwrap();
        assert_eq!((written.mark, &written.meta), (mark(&at), &expected));
        assert_eq!(decode_meta(&expected).unwrap(), (9, 8, members));

        let mut first = vec![0xA7, 4, 1, 0, 9, 8, 1, 0, 1, 1, 1, 1, 1, 1, 9];
        first.extend(b"localhost");
        let (revision, status_revision, members) = decode_meta(&first).unwrap();
        assert_eq!((revision, status_revision), (9, 8));
        assert_eq!(*members.log_id(), Some(log_id(Mark { index: 0, term: 1 })));
        assert!(members.voter_ids().eq([1]));
    }

    #[test]
    fn the_layout_of_an_archive_description_is_frozen() {
        let identity = Identity { cluster: ClusterId([7; 16]), node: 2 };
        let description = Description { identity, time: Timestamp(5), program: "1.2".to_owned(), resources: 3 };
        let mut expected = vec![0xA7, 8, 1, 0];
        expected.extend([7; 16]);
        expected.extend([2, 10, 3, b'1', b'.', b'2', 251, 44, 1, 4, 3, 2, 8, 9]);
        let meta = SnapshotMeta { mark: Mark { index: 300, term: 4 }, meta: vec![8, 9] };
        assert_eq!(encode_archive(&description, meta.clone()).unwrap(), expected);
        let (found, found_meta) = decode_archive(&expected).unwrap();
        assert_eq!((found.identity, found.time, found.program, found.resources), (identity, Timestamp(5), "1.2".to_owned(), 3));
        assert_eq!(found_meta, meta);
    }

    #[test]
    fn impossible_memberships_are_refused() {
        let record = |configs: Vec<Vec<u64>>, address: usize| {
            let nodes = vec![(1, "a".repeat(address), String::new(), true, 1)];
            membership(MembershipRecordV2 { configs, nodes }).map_err(|e| e.to_string())
        };
        assert!(record(vec![vec![1]], MAX_MEMBER_TEXT).is_ok());
        assert!(record(vec![vec![1]], MAX_MEMBER_TEXT + 1).unwrap_err().contains("too long"));
        assert!(record(vec![vec![1]; 3], 1).unwrap_err().contains("more nodes"));
        assert!(record(vec![vec![1, 1]], 1).unwrap_err().contains("more nodes"));
        assert!(record(vec![vec![2]], 1).is_err());
        assert!(record(vec![vec![]], 1).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..9, version in 1u8..3) {
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[0xA7, kind, version, 0]);
            }
            let _ = entry(LogRecord { mark: Mark { index: 0, term: 0 }, payload: Bytes::from(bytes.clone()) });
            let _ = decode_command(&bytes);
            let _ = decode_meta(&bytes);
            let _ = decode_cache(&bytes);
            let _ = decode_archive(&bytes);
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
