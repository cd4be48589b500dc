//! openraft with our types, and where they meet those of the store.

use crate::cache::Position;
use bytes::Bytes;
use ikada_model::Timestamp;
use ikada_store::{FORMAT_VERSION, HardState, Mark, SnapshotMeta};
use ikada_world::{Applied, Command, Rejection};
use openraft::{
    alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf},
    impls::leader_id_std::LeaderId,
    vote::leader_id_std::CommittedLeaderId,
};
use parking_lot::Mutex;
use std::{fmt, sync::Arc};

openraft::declare_raft_types!(
    /// One leader per term, so that `(term, index)` names an entry.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = NodeRecord,
        Term = u64,
        LeaderId = LeaderId<u64, u64>,
);

pub(crate) type Entry = EntryOf<TypeConfig>;
pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Vote = VoteOf<TypeConfig>;
pub(crate) type Membership = StoredMembershipOf<TypeConfig>;

/// A node as openraft has it in the membership: [`crate::Member`] without its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub address: String,
    pub name: String,
    pub wants_vote: bool,
    pub format: u16,
}

impl Default for NodeRecord {
    fn default() -> Self {
        NodeRecord { address: String::new(), name: String::new(), wants_vote: true, format: FORMAT_VERSION }
    }
}

/// A command as it is in the log. The node that proposed it also has it decoded.
#[derive(Clone)]
pub(crate) struct Proposal {
    pub bytes: Bytes,
    pub decoded: Option<Arc<(Timestamp, Command)>>,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the contents: secrets are among them.
        write!(f, "command of {} bytes", self.bytes.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry gave; `None` for an entry without a command.
#[derive(Debug)]
pub(crate) struct Reply(pub Option<Result<Applied, Rejection>>);

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A complete snapshot file of this node's [`ikada_store::SnapshotStore`].
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    pub meta: SnapshotMeta,
    /// What is in it, when it came from a peer and was read on the way.
    pub content: Option<Arc<Mutex<Option<Position>>>>,
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot at {}", self.meta.mark)
    }
}

pub(crate) fn log_id(mark: Mark) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(mark.term), index: mark.index }
}

pub(crate) fn mark(id: &LogId) -> Mark {
    Mark { index: id.index, term: id.leader_id.term }
}

pub(crate) fn vote(hard: HardState) -> Vote {
    Vote { leader_id: LeaderId { term: hard.term, voted_for: hard.voted_for }, committed: hard.committed }
}

pub(crate) fn hard_state(vote: &Vote) -> HardState {
    HardState { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}
