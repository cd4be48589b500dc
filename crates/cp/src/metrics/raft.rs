//! Metrics of replication, as the store has them when they are asked for.

use ikada_raft::{Percentiles, RaftStatus, Role, Timings};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Peer {
    peer: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Quantile {
    quantile: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerQuantile {
    peer: u64,
    quantile: &'static str,
}

type Number = Gauge<u64, AtomicU64>;
type Seconds = Gauge<f64, AtomicU64>;

/// Gauges that follow the store.
#[derive(Default)]
pub struct RaftMetrics {
    term: Number,
    leader: Number,
    role: Family<RoleLabel, Number>,
    voters: Number,
    learners: Number,
    last_log: Number,
    committed: Number,
    applied: Number,
    snapshot: Number,
    alarms: Number,
    quorum: Seconds,
    lag: Family<Peer, Number>,
    contact: Family<Peer, Seconds>,
    fsync: Family<Quantile, Seconds>,
    fsyncs: Number,
    round_trip: Family<PeerQuantile, Seconds>,
}

/// The figures of a distribution by their names as labels.
fn quantiles(p: &Percentiles) -> [(&'static str, f64); 4] {
    [("0.5", p.p50), ("0.99", p.p99), ("0.999", p.p999), ("1", p.max)].map(|(name, d)| (name, d.as_secs_f64()))
}

impl RaftMetrics {
    /// Makes them known.
    pub fn register(&self, all: &mut Registry) {
        all.register("raft_term", "Term of Raft", self.term.clone());
        all.register("raft_leader", "Id of the leader; 0 = none is known", self.leader.clone());
        all.register("raft_role", "1 for what this node is: leader, follower, candidate or learner", self.role.clone());
        all.register("raft_voters", "Members with a vote", self.voters.clone());
        all.register("raft_learners", "Members without a vote", self.learners.clone());
        all.register("raft_last_log_index", "Last entry in the log of this node", self.last_log.clone());
        all.register("raft_committed_index", "Last entry that this node knows a majority to have", self.committed.clone());
        all.register("raft_applied_index", "Last entry that this node has applied", self.applied.clone());
        all.register("raft_snapshot_index", "Entry of the newest snapshot; 0 = none", self.snapshot.clone());
        all.register("raft_alarms", "Alarms of this node, as /ready and the cluster's status show them", self.alarms.clone());
        all.register("raft_quorum_ack_age_seconds", "On the leader: since a majority answered it; elsewhere 0", self.quorum.clone());
        all.register("raft_peer_lag_entries", "On the leader: entries that a member is behind", self.lag.clone());
        all.register("raft_peer_contact_age_seconds", "On the leader: since a member answered it", self.contact.clone());
        all.register("raft_fsync_seconds", "Syncs of the log in the last minutes, by quantile; 1 = the slowest", self.fsync.clone());
        all.register("raft_fsyncs", "How many syncs those are", self.fsyncs.clone());
        all.register("raft_peer_round_trip_seconds", "Round trips to a member in the last minutes, by quantile", self.round_trip.clone());
    }

    /// Takes over what the store says.
    pub fn observe(&self, s: &RaftStatus, timings: &Timings) {
        self.term.set(s.term);
        self.leader.set(s.leader.unwrap_or(0));
        for (role, name) in [(Role::Leader, "leader"), (Role::Follower, "follower"), (Role::Candidate, "candidate"), (Role::Learner, "learner")] {
            self.role.get_or_create(&RoleLabel { role: name }).set(u64::from(s.role == role));
        }
        let voters = s.members.iter().filter(|m| m.voter).count() as u64;
        self.voters.set(voters);
        self.learners.set(s.members.len() as u64 - voters);
        self.last_log.set(s.last_log);
        self.committed.set(s.committed);
        self.applied.set(s.applied);
        self.snapshot.set(s.snapshot.unwrap_or(0));
        self.alarms.set(s.alarms.len() as u64);
        self.quorum.set(s.last_quorum_ack.map_or(0.0, |d| d.as_secs_f64()));
        // Members leave, and a node stops to lead.
        self.lag.clear();
        self.contact.clear();
        for m in s.members.iter().filter(|m| m.member.id != s.node) {
            let Some(progress) = m.progress else { continue };
            let peer = Peer { peer: m.member.id };
            self.lag.get_or_create(&peer).set(progress.lag(s.last_log));
            if let Some(ago) = progress.last_ack {
                self.contact.get_or_create(&peer).set(ago.as_secs_f64());
            }
        }
        for (quantile, seconds) in quantiles(&timings.fsync) {
            self.fsync.get_or_create(&Quantile { quantile }).set(seconds);
        }
        self.fsyncs.set(timings.fsync.count);
        self.round_trip.clear();
        for (peer, figures) in timings.peers.iter().filter(|(_, f)| f.count > 0) {
            for (quantile, seconds) in quantiles(figures) {
                self.round_trip.get_or_create(&PeerQuantile { peer: *peer, quantile }).set(seconds);
            }
        }
    }
}
