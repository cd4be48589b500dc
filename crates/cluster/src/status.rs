//! What people see of a cluster. Serialized with camelCase names; durations in milliseconds.

use serde::{Deserialize, Serialize};

/// What a node is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeRole {
    /// Takes the writes.
    Leader,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
}

impl NodeRole {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeRole::Leader => "leader",
            NodeRole::Follower => "follower",
            NodeRole::Candidate => "candidate",
            NodeRole::Learner => "learner",
        }
    }
}

/// The cluster as one node sees it, with what every member that answered says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Id of the cluster, a UUID.
    pub cluster: String,
    /// The node that made this status.
    pub node: u64,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// Summary.
    pub health: Health,
    /// Members by id.
    pub members: Vec<MemberInfo>,
    /// What an operator should look at, one line each; empty when all is well.
    pub warnings: Vec<String>,
}

/// Summary of a cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// There is a leader, and every member is reachable, without alarm and up to date.
    pub healthy: bool,
    /// Writes are accepted: there is a leader and a majority of voters answers.
    pub writable: bool,
    /// Number of voters.
    pub voters: usize,
    /// Voters that answer.
    pub reachable_voters: usize,
    /// How many more voters may fail until writes stop.
    pub tolerates: usize,
    /// One line for people.
    pub summary: String,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberInfo {
    /// Id, never used twice.
    pub id: u64,
    /// Name of the machine.
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
    /// What it says it is; without an answer what membership and leader say.
    pub role: NodeRole,
    /// Has a vote.
    pub voter: bool,
    /// Gets a vote when it is up to date and the number of voters stays odd.
    pub wants_vote: bool,
    /// It answered within the deadline.
    pub reachable: bool,
    /// Why it did not.
    pub error: Option<String>,
    /// Round trip from the node that made this status, ms.
    pub round_trip_ms: Option<f64>,
    /// Entries it is behind the leader's log.
    pub lag: Option<u64>,
    /// When the leader last heard of it, ms ago; absent for the leader itself.
    pub last_contact_ms: Option<u64>,
    /// Index of the last entry that it applied.
    pub applied: Option<u64>,
    /// Version of the program.
    pub version: Option<String>,
    /// Newest data format that it understands.
    pub format: u16,
    /// What is wrong on it, e.g. a full disk.
    pub alarms: Vec<String>,
    /// End of its certificate, RFC 3339.
    pub certificate_expires: Option<String>,
}

/// A join token as it is kept: without the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Id, 16 hexadecimal digits.
    pub id: String,
    /// Who joins with it gets a vote.
    pub voter: bool,
    /// How many nodes may join with it.
    pub uses: u32,
    /// Ids of the nodes that did.
    pub joined: Vec<u64>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When it ends, RFC 3339.
    pub expires: String,
    /// No node can join with it any more.
    pub spent: bool,
}

/// A new join token; the only time that its secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// The token, one printable line.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub info: TokenInfo,
    /// Peer addresses of members, for `--join`.
    pub addresses: Vec<String>,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("info", &self.info).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// What was measured on the live cluster, and the settings that follow from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TuneReport {
    /// What was measured, by member.
    pub measured: Vec<Measured>,
    /// Settings by name, as in the configuration file under `raft`.
    pub settings: Vec<TunedSetting>,
    /// Why, one line each.
    pub reasons: Vec<String>,
    /// How to apply the proposal.
    pub apply: String,
}

/// Measurements of one member, ms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Member.
    pub id: u64,
    /// Name of the machine.
    pub name: String,
    /// Round trips from every member to this one: the slowest median.
    pub round_trip_p50_ms: Option<f64>,
    /// The slowest 99th percentile.
    pub round_trip_p99_ms: Option<f64>,
    /// `fdatasync` of its log, median.
    pub fsync_p50_ms: Option<f64>,
    /// `fdatasync` of its log, 99th percentile.
    pub fsync_p99_ms: Option<f64>,
    /// Why there are no figures.
    pub error: Option<String>,
}

/// One setting, now and proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunedSetting {
    /// Name in the configuration under `raft`.
    pub name: String,
    /// Now, e.g. `100ms`.
    pub current: String,
    /// Proposed.
    pub proposed: String,
}
