//! Whether this node should be sent requests, and if not, why.

use ikada_raft::{RaftStatus, RaftStore};
use ikada_world::{Contact, Replicator};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often alarms, and the contact with the leader, are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What `/ready` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why it does not serve; one line. `None` = it does.
    pub waits_for: Option<String>,
    /// What a person has to look at, although it serves.
    pub alarms: Vec<String>,
}

impl Readiness {
    /// Not yet, or no longer.
    pub fn waiting(for_what: impl Into<String>) -> Self {
        Readiness { waits_for: Some(for_what.into()), alarms: Vec::new() }
    }
}

/// Why a store is not ready, as far as this node can tell.
pub fn reason(s: &RaftStatus, contact: Contact) -> String {
    let voters = s.members.iter().filter(|m| m.voter).count();
    let silent = contact.since.filter(|_| !contact.is_recent());
    match s.leader {
        // A leader that a majority does not answer, or one that is not heard any more.
        Some(leader) if silent.is_some() => format!(
            "no word from {} for {} s: {} of {voters} voters have to reach each other (`ikadactl cluster status` shows who does not answer)",
            if leader == s.node { "a majority".to_owned() } else { format!("node {leader}, the leader,") },
            silent.unwrap_or_default().as_secs(),
            voters / 2 + 1
        ),
        None if voters == 0 => "waiting to be taken into the cluster: the leader has to reach this node under raft.advertise".to_owned(),
        None => format!(
            "no leader: {} of {voters} voters have to reach each other (`ikadactl cluster status` shows who does not answer)",
            voters / 2 + 1
        ),
        Some(leader) if s.committed > s.applied => format!("catching up with node {leader}: entry {} of {}", s.applied, s.committed),
        Some(leader) => format!("waiting for word from node {leader}, the leader"),
    }
}

/// Keeps `readiness` as the store's state says, from the moment at which the node serves. An election is no reason to be sent no requests:
/// only what lasts longer than `grace` is. New alarms are logged, and their end.
pub async fn watch(store: Arc<RaftStore>, readiness: watch::Sender<Readiness>, grace: Duration, stop: CancellationToken) {
    let mut ready = store.ready();
    let mut alarms: BTreeSet<String> = BTreeSet::new();
    let mut lost: Option<tokio::time::Instant> = None;
    let mut look = tokio::time::interval(LOOK);
    loop {
        let status = store.status();
        let now: BTreeSet<String> = status.alarms.iter().cloned().collect();
        now.difference(&alarms).for_each(|alarm| tracing::error!("alarm: {alarm}"));
        alarms.difference(&now).for_each(|alarm| tracing::info!("no longer: {alarm}"));
        alarms = now;
        let contact = store.contact();
        let serves = *ready.borrow_and_update() && contact.is_recent();
        let since = if serves { None } else { Some(*lost.get_or_insert_with(tokio::time::Instant::now)) };
        lost = since;
        let waits_for = since.filter(|since| since.elapsed() >= grace).map(|_| reason(&status, contact));
        let next = Readiness { waits_for, alarms: status.alarms };
        if !stop.is_cancelled() {
            readiness.send_if_modified(|r| {
                if r.waits_for.is_none() != next.waits_for.is_none() {
                    match &next.waits_for {
                        Some(why) => tracing::warn!("not ready: {why}"),
                        None => tracing::info!("ready again"),
                    }
                }
                let changed = *r != next;
                *r = next;
                changed
            });
        }
        let wake = since.map_or(LOOK, |since| grace.saturating_sub(since.elapsed()).clamp(Duration::from_millis(10), LOOK));
        tokio::select! {
            () = stop.cancelled() => return,
            changed = ready.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
            () = tokio::time::sleep(wake) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_raft::{Member, MemberStatus, Options, Role};
    use std::time::Duration;

    fn status(voters: u64, leader: Option<u64>, applied: u64) -> RaftStatus {
        let member = |id| MemberStatus {
            member: Member { id, address: String::new(), name: String::new(), wants_vote: true, format: 2 },
            voter: true,
            progress: None,
        };
        RaftStatus {
            cluster: "00000000-0000-4000-8000-000000000000".parse().unwrap(),
            node: 2,
            role: Role::Follower,
            term: 1,
            leader,
            last_log: 10,
            committed: 10,
            applied,
            snapshot: None,
            members: (1..=voters).map(member).collect(),
            joint: false,
            last_quorum_ack: None,
            alarms: Vec::new(),
        }
    }

    #[test]
    fn reasons() {
        let now = |s: RaftStatus| reason(&s, Contact::ALONE);
        assert!(now(status(0, None, 0)).contains("raft.advertise"));
        assert!(now(status(3, None, 10)).contains("2 of 3 voters"));
        assert!(now(status(5, None, 10)).contains("3 of 5 voters"));
        assert_eq!(now(status(3, Some(1), 4)), "catching up with node 1: entry 4 of 10");
        assert_eq!(now(status(3, Some(1), 10)), "waiting for word from node 1, the leader");
        let silent = Contact { leader: Some(1), since: Some(Duration::from_secs(7)), lease: Duration::from_secs(1) };
        assert!(reason(&status(3, Some(1), 10), silent).starts_with("no word from node 1, the leader, for 7 s: 2 of 3 voters"));
        assert!(reason(&status(3, Some(2), 10), silent).starts_with("no word from a majority for 7 s"));
    }

    #[tokio::test]
    async fn a_store_that_is_gone_is_not_ready_after_the_grace() {
        let dir = tempfile::tempdir().unwrap();
        let store = RaftStore::open(Options::new(dir.path().join("data"))).await.unwrap();
        let (tx, mut rx) = watch::channel(Readiness::waiting("starting"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(watch(store.clone(), tx, Duration::from_millis(50), stop.clone()));
        rx.wait_for(|r| r.waits_for.is_none()).await.unwrap();
        store.shutdown().await.unwrap();
        rx.wait_for(|r| r.waits_for.is_some()).await.unwrap();
        stop.cancel();
        task.await.unwrap();
    }
}
