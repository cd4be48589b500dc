//! Settings of Raft, by profile: what each is, what follows from them, and which fit a measured network and disk.
//!
//! How the times hang together (checked in openraft 0.10.0-alpha.37):
//!
//! - An append must be answered within one heartbeat interval, and the transport gives it three quarters of that
//!   (`RPCOption::soft_ttl`): round trip, transfer of a batch and `fdatasync` of the follower have to fit.
//! - Followers trust a leader for a lease, which is the *longest* election timeout. Only after it, and a random time within the
//!   election range on top, does one of them stand (`raft_core.rs`, `leader_lease`). Two rounds of votes follow (pre-vote, vote).
//! - Raft looks at its clock every 13/64 of a heartbeat interval.

mod propose;

use openraft::{Config, SnapshotPolicy, StepDownPolicy};
use std::{fmt, time::Duration};

/// Times of Raft, by the network between the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// One data centre, round trips below 1 ms: heartbeat 100 ms, election 400–600 ms.
    #[default]
    Lan,
    /// Sites apart, round trips of 30–100 ms: heartbeat 1 s, election 4–8 s.
    Wan,
    /// Own values.
    Custom(Settings),
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Lan => "lan",
            Profile::Wan => "wan",
            Profile::Custom(_) => "custom",
        })
    }
}

/// Values of a profile. Why each is what it is stands beside [`Settings::lan`] and [`Settings::wan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A leader speaks up this often. Also the budget of one append: round trip, sync of the follower, transfer.
    pub heartbeat: Duration,
    /// A follower stands after the lease, which is `election.1`, plus a random time in this range.
    pub election: (Duration, Duration),
    /// A proposal without an answer by then is unknown.
    pub proposal_deadline: Duration,
    /// A snapshot that is sent to another node must have arrived by then.
    pub snapshot_deadline: Duration,
    /// How long a leader collects writes before it appends them; zero: no longer than the sync before takes.
    pub batch_linger: Duration,
    /// Most entries of one append message; its bytes are bounded as well.
    pub append_entries: u64,
    /// A snapshot is taken after so many entries.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a snapshot, for followers that were away.
    pub keep_entries: u64,
    /// Size of a segment file of the log in bytes.
    pub segment_bytes: u64,
}

/// What follows from settings. Printed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Derived {
    /// For so long after a leader's last word nobody else stands, and for so long after the last answer of a majority it leads.
    pub lease: Duration,
    /// From the death of a leader until another one takes writes, with two rounds of votes within their time: the lease, the longest
    /// election timeout, a tick, and a heartbeat per round.
    pub worst_failover: Duration,
    /// Most that an append may take: one heartbeat interval, of which the transport gets three quarters.
    pub append_budget: Duration,
    /// How often Raft looks at its clock.
    pub tick: Duration,
    /// Most that a vote may take.
    pub vote_budget: Duration,
    /// Most that the transfer of a snapshot may take.
    pub snapshot_budget: Duration,
    /// A leader that a majority does not answer falls silent for so long, so that those which can reach each other elect.
    pub silence: Duration,
}

impl fmt::Display for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Derived { lease, worst_failover, append_budget, tick, vote_budget, snapshot_budget, silence } = *self;
        write!(
            f,
            "lease {}, worst failover {}, append budget {}, vote budget {}, snapshot budget {}, tick {}, silence after losing the majority {}",
            Text(lease),
            Text(worst_failover),
            Text(append_budget),
            Text(vote_budget),
            Text(snapshot_budget),
            Text(tick),
            Text(silence)
        )
    }
}

/// A duration for people, with at most three digits: `1.42 s`, `100 ms`, `0.2 ms`.
pub(crate) struct Text(pub Duration);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs_f64();
        let (value, unit) = if s >= 1.0 { (s, "s") } else { (s * 1e3, "ms") };
        let places = match value {
            v if v >= 100.0 => 0,
            v if v >= 10.0 => 1,
            _ => 2,
        };
        let text = format!("{value:.places$}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        write!(f, "{text} {unit}")
    }
}

/// Why settings cannot be used: everything that is wrong, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

// Shorter to read in tables of values.
const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
/// Shorter heartbeats only cost: the scheduler of a busy machine is late by some milliseconds.
const LEAST_HEARTBEAT: Duration = ms(10);
/// Far above any network.
const LONGEST: Duration = Duration::from_secs(600);

impl Settings {
    /// Of a profile.
    pub fn of(profile: &Profile) -> Self {
        match profile {
            Profile::Lan => Settings::lan(),
            Profile::Wan => Settings::wan(),
            Profile::Custom(settings) => settings.clone(),
        }
    }

    /// For one data centre.
    pub fn lan() -> Self {
        Settings {
            // Well above a sync of a good disk, so that a slow one does not look like a dead leader.
            heartbeat: ms(100),
            election: (ms(400), ms(600)),
            // Above the longest failover (two leases and the votes) and one retry.
            proposal_deadline: Duration::from_secs(5),
            // A gigabyte over a gigabit link, threefold.
            snapshot_deadline: Duration::from_secs(30),
            // One sync already serves all that queued up during the one before.
            batch_linger: Duration::ZERO,
            append_entries: 256,
            // The state is small, replaying ten thousand entries takes a fraction of a second.
            snapshot_every: 10_000,
            // A follower that was away for minutes catches up by log.
            keep_entries: 10_000,
            segment_bytes: 16 << 20,
        }
    }

    /// For sites apart.
    pub fn wan() -> Self {
        Settings {
            // At least a round trip, a sync of the follower and the transfer of a batch.
            heartbeat: ms(1000),
            // At least ten round trips: a flapping link is not a dead leader.
            election: (ms(4000), ms(8000)),
            // Above the longest failover, 18 s, else a write during one is unknown.
            proposal_deadline: Duration::from_secs(20),
            // A gigabyte over 30 Mbit/s.
            snapshot_deadline: Duration::from_secs(300),
            // A round trip dominates, so waiting for more writes costs little.
            batch_linger: ms(2),
            append_entries: 512,
            // Links are gone for longer.
            keep_entries: 50_000,
            ..Settings::lan()
        }
    }

    /// What follows from them.
    pub fn derived(&self) -> Derived {
        let lease = self.election.1;
        let tick = self.heartbeat.saturating_mul(13) / 64;
        Derived {
            lease,
            worst_failover: [lease, self.election.1, tick, self.heartbeat.saturating_mul(2)]
                .into_iter()
                .fold(Duration::ZERO, Duration::saturating_add),
            append_budget: self.heartbeat,
            tick,
            vote_budget: self.election.0,
            snapshot_budget: self.snapshot_deadline,
            // Lease and longest election timeout of the others, and one more for the votes.
            silence: self.election.1.saturating_mul(3),
        }
    }

    /// Whether a node can run with them.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        let Settings { heartbeat, election: (min, max), proposal_deadline, .. } = self;
        let d = |d: &Duration| Text(*d).to_string();
        let whole = |d: &Duration| d.subsec_nanos().is_multiple_of(1_000_000);
        let times = [("heartbeat", heartbeat), ("electionMin", min), ("electionMax", max), ("proposalDeadline", proposal_deadline)];
        for (name, time) in times.into_iter().chain([("snapshotDeadline", &self.snapshot_deadline), ("batchLinger", &self.batch_linger)]) {
            must(*time <= LONGEST, format!("{name} {} must be at most {}", d(time), Text(LONGEST)));
            must(whole(time), format!("{name} {time:?} must be whole milliseconds"));
        }
        must(*heartbeat >= LEAST_HEARTBEAT, format!("heartbeat {} must be at least {}", d(heartbeat), Text(LEAST_HEARTBEAT)));
        let twice = heartbeat.saturating_mul(2);
        must(*min >= twice, format!("electionMin {} must be at least two heartbeats, {}", d(min), Text(twice)));
        must(max > min, format!("electionMax {} must be above electionMin {}", d(max), d(min)));
        must(proposal_deadline > max, format!("proposalDeadline {} must be above electionMax {}", d(proposal_deadline), d(max)));
        must(
            self.snapshot_deadline >= Duration::from_secs(1),
            format!("snapshotDeadline {} must be at least 1 s", d(&self.snapshot_deadline)),
        );
        must(self.batch_linger < *heartbeat, format!("batchLinger {} must be below a heartbeat", d(&self.batch_linger)));
        let sizes = [
            ("appendEntries", self.append_entries, 1, 65_536),
            ("snapshotEvery", self.snapshot_every, 1, 10_000_000),
            ("keepEntries", self.keep_entries, 0, 10_000_000),
            ("segmentBytes", self.segment_bytes, 1 << 10, 1 << 30),
        ];
        for (name, value, least, most) in sizes {
            must((least..=most).contains(&value), format!("{name} {value} must be between {least} and {most}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(SettingsError(wrong.join("; "))) }
    }

    pub(crate) fn config(&self) -> Result<Config, SettingsError> {
        self.validate()?;
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let derived = self.derived();
        // A peer that does not answer is tried again soon, then less and less often, at least every two leases.
        let (first, last) = (millis(self.heartbeat), millis(self.election.1.saturating_mul(2)));
        Config {
            cluster_name: "ikada".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            heartbeat_min_interval: Some(0),
            election_timeout_min: millis(self.election.0),
            election_timeout_max: millis(self.election.1),
            install_snapshot_timeout: millis(self.snapshot_deadline),
            max_payload_entries: self.append_entries,
            // One sync for as many entries as queued up.
            max_append_entries: Some(1024),
            // Above the snapshot interval, else a snapshot could not end the lag; and above what stays in the log behind one, else a
            // follower that could still catch up by log is sent a snapshot.
            replication_lag_threshold: self.snapshot_every.saturating_add(self.keep_entries.max(self.snapshot_every)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: 1000.min(self.keep_entries.max(1)),
            api_channel_size: Some(4096),
            api_batch_capacity: 1024,
            api_batch_linger_ms: millis(self.batch_linger),
            state_machine_channel_size: Some(1024),
            // Time for the notice of its removal to reach the others.
            removed_leader_step_down: StepDownPolicy::After(millis(self.heartbeat.saturating_mul(5))),
            // Without it a leader that is heard and hears nobody would keep the others from electing for ever.
            quorum_loss_probe_interval: Some(millis(derived.silence)),
            enable_pre_vote: Some(true),
            // A restarted leader asks for votes like everybody else.
            enable_leader_restore: Some(false),
            // Data loss would hide behind it.
            allow_log_reversion: None,
            backoff: format!("{first}ms {}ms ...{}ms", first.saturating_mul(2), last.max(first.saturating_mul(3))),
            ..Config::default()
        }
        .validate()
        .map_err(|e| SettingsError(e.to_string()))
    }
}

#[cfg(test)]
mod tests;
