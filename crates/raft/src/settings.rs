//! Settings of Raft, by profile.

use openraft::{Config, ConfigError, SnapshotPolicy, StepDownPolicy};
use std::time::Duration;

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

/// Values of a profile. Why each is what it is stands beside [`Settings::lan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A leader speaks up this often. Also the budget of one append: round trip, sync of the follower, transfer.
    pub heartbeat: Duration,
    /// A follower stands after the lease, which is `election.1`, plus a random time in this range.
    pub election: (Duration, Duration),
    /// A proposal without an answer by then is unknown.
    pub proposal_deadline: Duration,
    /// A snapshot is taken after so many entries.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a snapshot, for followers that were away.
    pub keep_entries: u64,
    /// Size of a segment file of the log in bytes.
    pub segment_bytes: u64,
}

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
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(400), Duration::from_millis(600)),
            // Above the longest failover (two leases and the votes) and one retry.
            proposal_deadline: Duration::from_secs(5),
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
            heartbeat: Duration::from_millis(1000),
            // At least ten round trips: a flapping link is not a dead leader.
            election: (Duration::from_millis(4000), Duration::from_millis(8000)),
            proposal_deadline: Duration::from_secs(15),
            keep_entries: 50_000,
            ..Settings::lan()
        }
    }

    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Config {
            cluster_name: "ikada".to_owned(),
            heartbeat_interval: ms(self.heartbeat),
            heartbeat_min_interval: Some(0),
            election_timeout_min: ms(self.election.0),
            election_timeout_max: ms(self.election.1),
            install_snapshot_timeout: 30_000,
            max_payload_entries: 256,
            // One sync for as many entries as queued up.
            max_append_entries: Some(1024),
            // Above the snapshot interval, else a snapshot could not end the lag.
            replication_lag_threshold: self.snapshot_every.saturating_mul(2),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: 1000.min(self.keep_entries.max(1)),
            api_channel_size: Some(4096),
            api_batch_capacity: 1024,
            api_batch_linger_ms: 0,
            state_machine_channel_size: Some(1024),
            // Time for the notice of its removal to reach the others.
            removed_leader_step_down: StepDownPolicy::After(ms(self.heartbeat.saturating_mul(5))),
            quorum_loss_probe_interval: None,
            enable_pre_vote: Some(true),
            // A restarted leader asks for votes like everybody else.
            enable_leader_restore: Some(false),
            // Data loss would hide behind it.
            allow_log_reversion: None,
            ..Config::default()
        }
        .validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_valid_and_nonsense_is_not() {
        for profile in [Profile::Lan, Profile::Wan] {
            let settings = Settings::of(&profile);
            settings.config().unwrap();
            assert!(settings.proposal_deadline > settings.election.1);
        }
        let backwards = Settings { election: (Duration::from_millis(600), Duration::from_millis(400)), ..Settings::lan() };
        assert!(Settings::of(&Profile::Custom(backwards)).config().is_err());
    }
}
