//! Settings that fit what was measured, and why.

use super::{Settings, Text, ms};
use std::time::Duration;

/// Above this round trip the nodes are sites apart: batches wait for each other, more of the log is kept, snapshots get longer.
const SITES_APART: Duration = ms(5);
/// The slowest of a thousand syncs, by the slowest of a hundred. Flushes of a drive's cache make the tail long.
const SYNC_TAIL: u32 = 3;
/// Least time for the transfer of a batch, and for a scheduler that is late.
const SLACK: Duration = ms(5);
/// Shortest heartbeat that is proposed, that of profile `lan`: a shorter one gains a fraction of a second of a failover, and takes a
/// machine that stalls for a moment for dead.
const LEAST_HEARTBEAT: Duration = ms(100);

fn round_up(d: Duration, to: Duration) -> Duration {
    let to = to.as_millis().max(1);
    let steps = d.as_nanos().div_ceil(to * 1_000_000);
    ms(u64::try_from(steps * to).unwrap_or(u64::MAX))
}

/// How long an append takes that is slower than nearly all: round trip, sync of the follower, transfer of a batch (which a link needs
/// about another round trip for while its window grows).
fn slow_append(rtt_p99: Duration, fsync_p99: Duration) -> Duration {
    [rtt_p99, fsync_p99.saturating_mul(SYNC_TAIL), rtt_p99.max(SLACK)].into_iter().fold(Duration::ZERO, Duration::saturating_add)
}

/// The least heartbeat and election timeout.
fn least(rtt_p99: Duration, fsync_p99: Duration) -> (Duration, Duration) {
    let append = slow_append(rtt_p99, fsync_p99);
    // The transport gets three quarters of a heartbeat.
    let heartbeat = append.saturating_mul(4) / 3;
    (heartbeat, heartbeat.saturating_mul(4).max(rtt_p99.saturating_mul(10)).max(append.saturating_mul(10)))
}

impl Settings {
    /// Settings for a cluster whose slowest link has a 99th percentile of round trips of `rtt_p99`, and whose slowest disk one of
    /// `fdatasync` of `fsync_p99`, both under load.
    ///
    /// The heartbeat, which is the budget of an append as well, is at least 4/3 of a slow append (round trip, three times the sync, the
    /// transfer), and 100 ms. The shortest election timeout is at least four heartbeats, ten round trips and ten slow appends; the
    /// longest half as much again, so that two nodes rarely stand at once. [`Settings::reasons`] says it with the numbers.
    pub fn propose(rtt_p99: Duration, fsync_p99: Duration) -> Settings {
        let longest = ms(60_000);
        let (rtt_p99, fsync_p99) = (rtt_p99.min(longest), fsync_p99.min(longest));
        let base = if rtt_p99 >= SITES_APART { Settings::wan() } else { Settings::lan() };
        let (heartbeat, _) = least(rtt_p99, fsync_p99);
        let heartbeat = round_up(heartbeat.max(LEAST_HEARTBEAT), ms(50));
        let (_, election) = least(rtt_p99, fsync_p99);
        let min = round_up(election.max(heartbeat.saturating_mul(4)), ms(100));
        let max = round_up(min.saturating_mul(3) / 2, ms(100));
        let mut settings = Settings { heartbeat, election: (min, max), ..base };
        // A failover and a retry.
        let failover = settings.derived().worst_failover.saturating_add(max);
        settings.proposal_deadline = round_up(failover.max(Settings::lan().proposal_deadline), ms(1000)).min(super::LONGEST);
        settings
    }

    /// Why [`Settings::propose`] gives what it gives, one line each.
    pub fn reasons(rtt_p99: Duration, fsync_p99: Duration) -> Vec<String> {
        let proposed = Settings::propose(rtt_p99, fsync_p99);
        let (rtt, append) = (Text(rtt_p99), slow_append(rtt_p99, fsync_p99));
        let mut reasons = vec![
            format!(
                "heartbeat {}: a slow append takes {} (round trip {rtt}, sync up to {}, transfer {}), the transport gets 3/4 of a heartbeat, \
                 and below {} a busy machine looks dead",
                Text(proposed.heartbeat),
                Text(append),
                Text(fsync_p99.saturating_mul(SYNC_TAIL)),
                Text(rtt_p99.max(SLACK)),
                Text(LEAST_HEARTBEAT),
            ),
            format!(
                "election {}–{}: at least 4 heartbeats ({}), 10 round trips ({}) and 10 slow appends ({})",
                Text(proposed.election.0),
                Text(proposed.election.1),
                Text(proposed.heartbeat.saturating_mul(4)),
                Text(rtt_p99.saturating_mul(10)),
                Text(append.saturating_mul(10)),
            ),
            format!(
                "proposal deadline {}: above the worst failover ({}) and one retry",
                Text(proposed.proposal_deadline),
                Text(proposed.derived().worst_failover)
            ),
        ];
        if rtt_p99 >= SITES_APART {
            reasons.push(format!(
                "round trips of {rtt} and more are between sites: writes are collected for {}, {} entries stay in the log for those who were \
                 away, a snapshot gets {}",
                Text(proposed.batch_linger),
                proposed.keep_entries,
                Text(proposed.snapshot_deadline)
            ));
        }
        reasons
    }

    /// What is too tight in these settings for a cluster as measured (see [`Settings::propose`]), one line each: what one sees then, and
    /// what to set.
    pub fn warnings(&self, rtt_p99: Duration, fsync_p99: Duration) -> Vec<String> {
        let mut warnings = self.doubts();
        let (heartbeat, election) = least(rtt_p99, fsync_p99);
        if self.heartbeat < heartbeat {
            warnings.push(format!(
                "heartbeat {} is too short for round trips of {} and syncs of {}: appends that are on their way are given up and sent again; \
                 set at least {}",
                Text(self.heartbeat),
                Text(rtt_p99),
                Text(fsync_p99),
                Text(round_up(heartbeat, ms(50)))
            ));
        }
        if self.election.0 < election {
            warnings.push(format!(
                "electionMin {} is too short for round trips of {} and syncs of {}: a leader that is only slow is replaced; set at least {}",
                Text(self.election.0),
                Text(rtt_p99),
                Text(fsync_p99),
                Text(round_up(election, ms(100)))
            ));
        }
        warnings
    }

    /// What is allowed and probably not meant, one line each. Printed at start.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let derived = self.derived();
        let four = self.heartbeat.saturating_mul(4);
        if self.election.0 < four {
            doubts.push(format!(
                "electionMin {} is below four heartbeats ({}): two lost heartbeats make an election",
                Text(self.election.0),
                Text(four)
            ));
        }
        if self.election.1.saturating_sub(self.election.0) < self.election.0 / 4 {
            doubts.push(format!(
                "electionMin {} and electionMax {} are close: nodes stand at the same time and split the votes",
                Text(self.election.0),
                Text(self.election.1)
            ));
        }
        if self.proposal_deadline < derived.worst_failover {
            doubts.push(format!(
                "proposalDeadline {} is below the worst failover ({}): a write during one is reported as unknown",
                Text(self.proposal_deadline),
                Text(derived.worst_failover)
            ));
        }
        doubts
    }
}
