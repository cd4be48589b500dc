//! Who is in the cluster: members, what is known of them, and the changes that an operator or the autopilot makes.
//!
//! Everything that changes the membership is a request to the leader; elsewhere it answers [`MembershipError::NotLeader`] with the node
//! to ask.

mod change;

pub use change::{MAX_MEMBER_TEXT, MAX_PROMOTION_LAG};

use crate::{
    options::Fatal,
    store::{RaftNode, RaftStore},
    timings::Timings,
    types::{NodeRecord, TypeConfig},
};
use ikada_store::ClusterId;
use openraft::{Instant, ServerState, async_runtime::watch::WatchReceiver};
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::watch;

/// A node of the cluster, as the replicated membership has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Id in the cluster; never used twice, also not after a removal.
    pub id: u64,
    /// `host:port` of the peer port. Empty while a node that makes a cluster has none.
    pub address: String,
    /// Name of the host, for people.
    pub name: String,
    /// Becomes a voter when it has caught up; false: stays a learner for good.
    pub wants_vote: bool,
    /// Newest data format that its program understands.
    pub format: u16,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.id)?;
        match (self.name.as_str(), self.address.as_str()) {
            ("", "") => Ok(()),
            ("", text) | (text, "") => write!(f, " ({text})"),
            (name, address) => write!(f, " ({name}, {address})"),
        }
    }
}

impl Member {
    pub(crate) fn of(id: u64, node: &NodeRecord) -> Member {
        let NodeRecord { address, name, wants_vote, format } = node.clone();
        Member { id, address, name, wants_vote, format }
    }

    pub(crate) fn node(&self) -> NodeRecord {
        let Member { id: _, address, name, wants_vote, format } = self.clone();
        NodeRecord { address, name, wants_vote, format }
    }
}

/// What a node does in the cluster at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes the writes of all.
    Leader,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
        })
    }
}

impl Role {
    /// `None` for a node whose Raft has stopped.
    pub(crate) fn of(state: ServerState) -> Option<Role> {
        match state {
            ServerState::Leader => Some(Role::Leader),
            ServerState::Follower => Some(Role::Follower),
            ServerState::Candidate => Some(Role::Candidate),
            ServerState::Learner => Some(Role::Learner),
            ServerState::Shutdown => None,
        }
    }
}

/// What the leader knows of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Index of the last entry that the member is known to have; `None` before the first answer.
    pub matched: Option<u64>,
    /// How long ago the request was sent which it answered last; `None` before the first answer. The leader itself: always zero.
    pub last_ack: Option<Duration>,
}

impl Progress {
    /// Entries that the member is behind a log which ends at `last_log`.
    pub fn lag(&self, last_log: u64) -> u64 {
        match self.matched {
            Some(matched) => last_log.saturating_sub(matched),
            None => last_log.saturating_add(1),
        }
    }
}

/// A member and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who.
    pub member: Member,
    /// It votes (in one of the two configurations while the membership changes).
    pub voter: bool,
    /// On the leader only.
    pub progress: Option<Progress>,
}

/// How a node sees the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: u64,
    /// What this node does.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// Leader, as far as this node knows.
    pub leader: Option<u64>,
    /// Index of the last entry in the log of this node; 0 also when it is empty.
    pub last_log: u64,
    /// Index of the last entry that this node knows to be committed.
    pub committed: u64,
    /// Index of the last entry that this node has applied.
    pub applied: u64,
    /// Index of the newest snapshot.
    pub snapshot: Option<u64>,
    /// Everybody, by id.
    pub members: Vec<MemberStatus>,
    /// The membership is between two configurations; writes need a majority of both.
    pub joint: bool,
    /// On the leader: how long ago the requests were sent which a majority has answered. Above the lease it no longer leads.
    pub last_quorum_ack: Option<Duration>,
    /// What an operator must look at, one line each: a full disk, a node that left service.
    pub alarms: Vec<String>,
}

/// Why a change of the membership was not made. One line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes the membership.
    #[error("{}", match .0 { Some(id) => format!("this node does not lead, node {id} does"), None => "there is no leader at the moment, try again".to_owned() })]
    NotLeader(Option<u64>),
    /// No such member.
    #[error("node {0} is not a member of the cluster")]
    UnknownMember(u64),
    /// An even number of voters costs a node more for a majority and tolerates no failure more.
    #[error("{count} voters tolerate no more failures than {}; add or remove one more, or force it", .count.saturating_sub(1))]
    EvenVoters {
        /// How many voters there would be.
        count: usize,
    },
    /// A cluster without voters cannot decide anything.
    #[error("no voter would be left")]
    NoVoters,
    /// A voter that lacks entries would stop writes until it has them.
    #[error("node {node} is {lag} entries behind; wait until it has caught up")]
    NotCaughtUp {
        /// The node.
        node: u64,
        /// Entries it lacks.
        lag: u64,
    },
    /// A voter that does not answer would not count for a majority.
    #[error("node {node} has not answered {}; look whether it runs and is reachable", match .since { Some(ago) => format!("for {:.1} s", ago.as_secs_f64()), None => "yet".to_owned() })]
    Silent {
        /// The node.
        node: u64,
        /// How long ago the request was sent that it answered last.
        since: Option<Duration>,
    },
    /// Another change has not finished.
    #[error("another change of the membership is under way, try again")]
    Busy,
    /// A member that is not acceptable: its id, address or name.
    #[error("{0}")]
    Invalid(String),
    /// It may or may not have been made; look at the members.
    #[error("no answer within the deadline; the change may still take effect")]
    Unknown,
    /// Certainly not made.
    #[error("the store does not change the membership: {0}")]
    Unavailable(String),
}

pub(crate) type Configuration = openraft::Membership<u64, NodeRecord>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// What a store keeps for its membership.
pub(crate) struct Members {
    /// One change at a time; others wait.
    turn: Arc<tokio::sync::Mutex<()>>,
    changed: watch::Sender<()>,
}

impl Members {
    /// Starts what follows Raft for the membership; it ends with it.
    pub(crate) fn start(raft: &RaftNode, closing: &watch::Sender<bool>) -> Members {
        let changed = watch::channel(()).0;
        tokio::spawn(change::finish_changes(raft.clone(), closing.subscribe()));
        let (mut server, tell) = (raft.server_metrics(), changed.clone());
        tokio::spawn(async move {
            while server.changed().await.is_ok() {
                tell.send_replace(());
            }
        });
        Members { turn: Arc::default(), changed }
    }
}

impl RaftStore {
    /// How this node sees the cluster now. Never waits.
    pub fn status(&self) -> RaftStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = &metrics.membership_config;
        let voters: Vec<u64> = membership.voter_ids().collect();
        let member = |(id, node): (&u64, &NodeRecord)| MemberStatus {
            member: Member::of(*id, node),
            voter: voters.contains(id),
            progress: change::progress(&metrics, *id),
        };
        let mut alarms = Vec::new();
        alarms.extend(self.fatal.borrow().as_ref().map(Fatal::to_string));
        alarms.extend(self.log.lock().as_ref().and_then(crate::log::RaftLog::alarm));
        alarms.extend(self.encryption_alarm());
        RaftStatus {
            cluster: self.identity.cluster,
            node: self.identity.node,
            role: Role::of(metrics.state).unwrap_or(Role::Learner),
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log: metrics.last_log_index.unwrap_or_default(),
            committed: metrics.local_committed.map_or(0, |at| at.index),
            applied: metrics.last_applied.map_or(0, |at| at.index),
            snapshot: metrics.snapshot.map(|at| at.index),
            members: membership.nodes().map(member).collect(),
            joint: membership.get_joint_config().len() > 1,
            last_quorum_ack: metrics.last_quorum_acked.filter(|_| metrics.state.is_leader()).map(|at| at.elapsed()),
            alarms,
        }
    }

    /// How long syncs and round trips took in the last minutes.
    pub fn timings(&self) -> Timings {
        let members: Vec<u64> = self.raft.metrics().borrow_watched().membership_config.nodes().map(|(id, _)| *id).collect();
        self.timings.timings(&members)
    }

    /// Is told when the leader, the role of this node or the membership changed.
    pub fn watch_status(&self) -> watch::Receiver<()> {
        self.members.changed.subscribe()
    }
}

#[cfg(test)]
mod tests;
