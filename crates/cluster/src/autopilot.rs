//! On the leader: gives learners their votes.

use crate::{
    admin::{caught_up, voters},
    limit::LogLimit,
    records,
    shared::Shared,
};
use ikada_model::Timestamp;
use ikada_raft::{RaftStatus, Role};
use ikada_world::Replicator;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Consecutive looks at which a learner must have been up to date.
const STABLE: u32 = 4;
/// Shortest and longest time between two looks; two heartbeats in between.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// More voters make every write slower and no cluster safer.
pub(crate) const MAX_VOTERS: usize = 7;

/// Who votes next: as many of the learners that are ready as leave an odd number of voters, the longest members first.
fn next_voters(voters: &BTreeSet<u64>, ready: &[u64]) -> Option<BTreeSet<u64>> {
    let room = MAX_VOTERS.saturating_sub(voters.len());
    let mut take = ready.len().min(room);
    if (voters.len() + take).is_multiple_of(2) {
        take = take.checked_sub(1)?;
    }
    (take > 0).then(|| voters.iter().copied().chain(ready.iter().copied().take(take)).collect())
}

/// For how many looks each learner has been ready.
#[derive(Default)]
struct Stability(BTreeMap<u64, u32>);

impl Stability {
    /// Learners that have been ready for long enough.
    fn look(&mut self, status: &RaftStatus, lease: Duration) -> Vec<u64> {
        let ready = status.members.iter().filter(|m| !m.voter && m.member.wants_vote && caught_up(status, m, lease));
        self.0 = ready.map(|m| (m.member.id, self.0.get(&m.member.id).map_or(1, |n| n.saturating_add(1)))).collect();
        self.0.iter().filter(|(_, n)| **n >= STABLE).map(|(id, _)| *id).collect()
    }
}

impl Shared {
    /// Promotes learners for as long as this node leads.
    pub(crate) async fn run_autopilot(self: Arc<Self>, stop: CancellationToken) {
        let mut leads = self.store.leadership();
        let look = self.settings.heartbeat.saturating_mul(2).clamp(LOOK.0, LOOK.1);
        let failures = LogLimit::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                led = leads.wait_for(|l| *l) => if led.is_err() { return },
            }
            self.clean_up().await;
            let mut stability = Stability::default();
            while *leads.borrow() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(look) => {}
                }
                let status = self.store.status();
                if status.role != Role::Leader || status.joint {
                    continue;
                }
                let ready = stability.look(&status, self.settings.election.1);
                let Some(next) = next_voters(&voters(&status), &ready) else { continue };
                // Somebody changes the members just now: look again later.
                let Ok(_turn) = self.turn.try_lock() else { continue };
                match self.store.set_voters(next.clone(), false).await {
                    Ok(()) => tracing::info!(voters = ?next, "promoted learners that have caught up"),
                    Err(e) => {
                        if let Some(more) = failures.take() {
                            tracing::info!(more, "learners are not promoted yet: {e}");
                        }
                    }
                }
            }
        }
    }

    /// What another cluster left behind from which this one was restored.
    async fn clean_up(&self) {
        let ops = records::garbage(&self.store.world(), self.cluster(), Timestamp(i64::MIN));
        if !ops.is_empty()
            && let Err(e) = self.propose(ops).await
        {
            tracing::debug!("join tokens of another cluster are still stored: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_raft::{ClusterId, Member, MemberStatus, Progress};

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn the_number_of_voters_stays_odd() {
        for (voters, ready, next) in [
            (&[1][..], &[2][..], None),
            (&[1], &[2, 3], Some(&[1, 2, 3][..])),
            (&[1], &[2, 3, 4], Some(&[1, 2, 3])),
            (&[1, 2], &[3], Some(&[1, 2, 3])),
            (&[1, 2], &[3, 4], Some(&[1, 2, 3])),
            (&[1, 2, 3], &[4], None),
            (&[1, 2, 3], &[4, 5], Some(&[1, 2, 3, 4, 5])),
            (&[1, 2, 3, 4, 5, 6, 7], &[8, 9], None),
            (&[1, 2, 3], &[], None),
            (&[1, 2], &[], None),
        ] {
            assert_eq!(next_voters(&set(voters), ready), next.map(set), "{voters:?} {ready:?}");
        }
    }

    #[test]
    fn who_falls_behind_starts_over() {
        let lease = Duration::from_millis(600);
        let status = |lag: u64, ack: Option<u64>, wants_vote: bool| RaftStatus {
            cluster: ClusterId([0; 16]),
            node: 1,
            role: Role::Leader,
            term: 1,
            leader: Some(1),
            last_log: 1000,
            committed: 1000,
            applied: 1000,
            snapshot: None,
            members: vec![MemberStatus {
                member: Member { id: 2, address: "a:1".into(), name: String::new(), wants_vote, format: 1 },
                voter: false,
                progress: Some(Progress { matched: Some(1000 - lag), last_ack: ack.map(Duration::from_millis) }),
            }],
            joint: false,
            last_quorum_ack: None,
            alarms: Vec::new(),
        };
        let mut s = Stability::default();
        for _ in 1..STABLE {
            assert!(s.look(&status(100, Some(10), true), lease).is_empty());
        }
        assert!(s.look(&status(101, Some(10), true), lease).is_empty());
        for _ in 1..STABLE {
            assert!(s.look(&status(0, Some(10), true), lease).is_empty());
        }
        assert_eq!(s.look(&status(0, Some(10), true), lease), [2]);
        for bad in [status(0, Some(601), true), status(0, None, true), status(0, Some(1), false)] {
            assert!(s.look(&bad, lease).is_empty());
        }
    }
}
