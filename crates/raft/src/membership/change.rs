//! Changes of the membership, on the leader.

use super::{Member, MembershipError, Metrics, Progress};
use crate::{
    options::Fatal,
    store::{RaftNode, RaftStore},
    types::{NodeRecord, TypeConfig},
};
use openraft::{
    ChangeMembers, Instant,
    async_runtime::watch::WatchReceiver,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    time::Duration,
};
use tokio::sync::watch;

/// Entries that a node may lack when it becomes a voter or takes over the lead.
pub const MAX_PROMOTION_LAG: u64 = 100;
/// The first node of a cluster has id 1, so ids from the log begin above.
const FIRST_ALLOCATED_ID: u64 = 2;

/// Most characters of a member's address or name.
pub const MAX_MEMBER_TEXT: usize = 255;

fn refused(e: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MembershipError {
    // Raft stopped while the change was under way: it may have reached the others.
    let RaftError::APIError(e) = e else { return MembershipError::Unknown };
    match e {
        ClientWriteError::ForwardToLeader(to) => MembershipError::NotLeader(to.leader_id),
        ClientWriteError::LogEntryDiscarded(_) => MembershipError::Unknown,
        ClientWriteError::PreconditionFailed(_) => MembershipError::Busy,
        ClientWriteError::ChangeMembershipError(e) => match e {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => MembershipError::Busy,
            ChangeMembershipError::EmptyMembership(_) => MembershipError::NoVoters,
            ChangeMembershipError::LearnerNotFound(e) => MembershipError::UnknownMember(e.node_id),
            other => MembershipError::Unavailable(other.to_string()),
        },
    }
}

fn check(member: &Member) -> Result<(), MembershipError> {
    let Member { id, address, name, .. } = member;
    let invalid = |what: String| Err(MembershipError::Invalid(what));
    for (what, text) in [("address", address), ("name", name)] {
        if text.len() > MAX_MEMBER_TEXT || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return invalid(format!("the {what} of node {id} must have at most {MAX_MEMBER_TEXT} characters, no spaces among them"));
        }
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => Ok(()),
        _ => invalid(format!("the address of node {id} must be \"host:port\", it is {address:?}")),
    }
}

/// What the leader knows of a member.
pub(super) fn progress(metrics: &Metrics, id: u64) -> Option<Progress> {
    if id == metrics.id {
        metrics.replication.as_ref()?;
        return Some(Progress { matched: metrics.last_log_index, last_ack: Some(Duration::ZERO) });
    }
    let matched = metrics.replication.as_ref()?.get(&id)?.map(|at| at.index);
    let acked = metrics.heartbeat.as_ref().and_then(|all| all.get(&id).copied().flatten());
    Some(Progress { matched, last_ack: acked.map(|at| at.elapsed()) })
}

impl RaftStore {
    fn metrics_now(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Current metrics, on the leader.
    fn leading(&self) -> Result<Metrics, MembershipError> {
        if let Some(fatal) = &*self.fatal.borrow() {
            return Err(MembershipError::Unavailable(fatal.to_string()));
        }
        let metrics = self.metrics_now();
        if metrics.state.is_leader() { Ok(metrics) } else { Err(MembershipError::NotLeader(metrics.current_leader)) }
    }

    /// Makes a change to its end even if the caller gives up: half of a change between two sets of voters helps nobody.
    async fn change(&self, change: ChangeMembers<u64, NodeRecord>) -> Result<(), MembershipError> {
        let (raft, turn) = (self.raft.clone(), self.members.turn.clone());
        let task = tokio::spawn(async move {
            let _turn = turn.lock().await;
            raft.change_membership(change, true).await
        });
        match tokio::time::timeout(self.deadline, task).await {
            Ok(Ok(done)) => done.map(|_| ()).map_err(refused),
            Ok(Err(_)) | Err(_) => Err(MembershipError::Unknown),
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, MembershipError>>) -> Result<T, MembershipError> {
        tokio::time::timeout(self.deadline, work).await.unwrap_or(Err(MembershipError::Unknown))
    }

    /// An id that no node of this cluster ever had: the index of an entry that is written for it.
    pub async fn allocate_node_id(&self) -> Result<u64, MembershipError> {
        self.leading()?;
        self.in_time(async {
            loop {
                let index = self.raft.write_blank().await.map_err(refused)?.log_id.index;
                if index >= FIRST_ALLOCATED_ID {
                    return Ok(index);
                }
            }
        })
        .await
    }

    /// Adds a node without a vote. Returns when that is committed, not when the node has caught up. Adding it again does nothing.
    ///
    /// The id must be fresh, from [`RaftStore::allocate_node_id`]: a node that lost its disk joins under a new one.
    pub async fn add_learner(&self, member: Member) -> Result<(), MembershipError> {
        check(&member)?;
        let metrics = self.leading()?;
        if member.id < FIRST_ALLOCATED_ID || metrics.last_log_index.is_none_or(|last| member.id > last) {
            return Err(MembershipError::Invalid(format!("id {} was not allocated by this cluster", member.id)));
        }
        match metrics.membership_config.get_node(&member.id) {
            Some(known) if *known == member.node() => {
                // Known to the leader is not yet committed.
                self.in_time(async { self.raft.write_blank().await.map(|_| ()).map_err(refused) }).await
            }
            Some(known) => {
                let known = Member::of(member.id, known);
                Err(MembershipError::Invalid(format!("{known} is a member already; update it instead of adding it")))
            }
            None => self.change(ChangeMembers::AddNodes(BTreeMap::from([(member.id, member.node())]))).await,
        }
    }

    /// Replaces what the membership has about a node: its address, name, wish to vote, format.
    pub async fn update_member(&self, member: Member) -> Result<(), MembershipError> {
        check(&member)?;
        let metrics = self.leading()?;
        match metrics.membership_config.get_node(&member.id) {
            Some(known) if *known == member.node() => Ok(()),
            Some(_) => self.change(ChangeMembers::SetNodes(BTreeMap::from([(member.id, member.node())]))).await,
            None => Err(MembershipError::UnknownMember(member.id)),
        }
    }

    /// Makes exactly these members the voters; the others stay as learners. Returns when it is committed.
    ///
    /// Refused: no voters; an even number unless `force`; a new voter that lacks more than [`MAX_PROMOTION_LAG`] entries or has not
    /// answered within the lease (the lease is the longest election timeout). A leader that is not among them hands over first and
    /// answers [`MembershipError::NotLeader`] with the new leader, which then does the rest.
    pub async fn set_voters(&self, voters: BTreeSet<u64>, force: bool) -> Result<(), MembershipError> {
        let metrics = self.leading()?;
        let membership = &metrics.membership_config;
        if voters.is_empty() {
            return Err(MembershipError::NoVoters);
        }
        if let Some(unknown) = voters.iter().find(|id| membership.get_node(id).is_none()) {
            return Err(MembershipError::UnknownMember(*unknown));
        }
        if membership.get_joint_config().len() == 1 && membership.voter_ids().eq(voters.iter().copied()) {
            return Ok(());
        }
        if voters.len().is_multiple_of(2) && !force {
            return Err(MembershipError::EvenVoters { count: voters.len() });
        }
        let voting: BTreeSet<u64> = membership.voter_ids().collect();
        for id in voters.difference(&voting) {
            self.check_caught_up(&metrics, *id)?;
        }
        let among: BTreeSet<u64> = voters.intersection(&voting).copied().collect();
        let leaves = !voters.contains(&metrics.id);
        if leaves && !among.is_empty() {
            return Err(MembershipError::NotLeader(Some(self.hand_over(&metrics, &among).await?)));
        }
        self.change(ChangeMembers::ReplaceAllVoters(voters.clone())).await?;
        // Where all are new, nobody could take over before the change.
        if leaves && let Err(e) = self.hand_over(&self.metrics_now(), &voters).await {
            tracing::warn!("the voters have changed, and node {} still leads without a vote: {e}", metrics.id);
        }
        Ok(())
    }

    /// Removes a member: it loses its vote, then its place. The last voter cannot be removed. The leader itself hands over first and
    /// answers [`MembershipError::NotLeader`] with the new leader, which then does the rest.
    ///
    /// The number of voters may become even by it: a broken node has to go before another takes its place.
    pub async fn remove_member(&self, id: u64) -> Result<(), MembershipError> {
        let metrics = self.leading()?;
        let membership = &metrics.membership_config;
        if membership.get_node(&id).is_none() {
            return Err(MembershipError::UnknownMember(id));
        }
        let voting: BTreeSet<u64> = membership.voter_ids().collect();
        if voting.contains(&id) {
            let others: BTreeSet<u64> = voting.iter().copied().filter(|v| *v != id).collect();
            if others.is_empty() {
                return Err(MembershipError::NoVoters);
            }
            if id == metrics.id {
                return Err(MembershipError::NotLeader(Some(self.hand_over(&metrics, &others).await?)));
            }
            // As a learner it hears that it has no vote, and stays quiet.
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await?;
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await
    }

    /// Hands the lead to a voter, or to the one that is furthest. Returns the new leader, which may be another one if that node did
    /// not make it. Writes pause for about a round trip.
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, MembershipError> {
        let metrics = self.leading()?;
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        match to {
            Some(to) if to == metrics.id => Ok(to),
            Some(to) if metrics.membership_config.get_node(&to).is_none() => Err(MembershipError::UnknownMember(to)),
            Some(to) if !voters.contains(&to) => Err(MembershipError::Invalid(format!("node {to} has no vote, it cannot lead"))),
            Some(to) => self.hand_over(&metrics, &BTreeSet::from([to])).await,
            None => self.hand_over(&metrics, &voters).await,
        }
    }

    /// Writes a snapshot soon, unless nothing was applied yet.
    pub async fn trigger_snapshot(&self) -> Result<(), Fatal> {
        // openraft would stop for want of something to write.
        if self.metrics_now().last_applied.is_none() {
            return Ok(());
        }
        self.raft.trigger().snapshot().await.map_err(|e| Fatal(e.to_string()))
    }

    fn check_caught_up(&self, metrics: &Metrics, id: u64) -> Result<(), MembershipError> {
        let progress = progress(metrics, id).unwrap_or_default();
        let lease = Duration::from_millis(self.raft.config().election_timeout_max);
        if progress.last_ack.is_none_or(|ago| ago > lease) {
            return Err(MembershipError::Silent { node: id, since: progress.last_ack });
        }
        match progress.lag(metrics.last_log_index.unwrap_or_default()) {
            lag if lag > MAX_PROMOTION_LAG => Err(MembershipError::NotCaughtUp { node: id, lag }),
            _ => Ok(()),
        }
    }

    /// Hands over to the one of `among` that is furthest, and waits until somebody else leads.
    async fn hand_over(&self, metrics: &Metrics, among: &BTreeSet<u64>) -> Result<u64, MembershipError> {
        let me = metrics.id;
        let others = || among.iter().copied().filter(|id| *id != me);
        let ready = others().filter(|id| self.check_caught_up(metrics, *id).is_ok());
        let Some(to) = ready.max_by_key(|id| (progress(metrics, *id).and_then(|p| p.matched), std::cmp::Reverse(*id))) else {
            return Err(match others().next() {
                Some(id) => self.check_caught_up(metrics, id).err().unwrap_or(MembershipError::Busy),
                None => MembershipError::Invalid("there is no other voter to hand over to".to_owned()),
            });
        };
        tracing::info!("handing over to node {to}");
        self.raft.trigger().transfer_leader(to).await.map_err(|e| MembershipError::Unavailable(e.to_string()))?;
        let another = |m: &Metrics| m.current_leader.is_some_and(|leader| leader != me) && !m.state.is_leader();
        match self.raft.wait(Some(self.deadline)).metrics(another, "another leader").await {
            Ok(metrics) => metrics.current_leader.ok_or(MembershipError::Unknown),
            Err(e) => {
                tracing::warn!("node {to} did not take over: {e}");
                Err(MembershipError::Unknown)
            }
        }
    }
}

/// Finishes changes that a former leader began: a membership between two configurations needs a majority of both. Runs until Raft ends.
pub(crate) async fn finish_changes(raft: RaftNode, mut closing: watch::Receiver<bool>) {
    let patience = Duration::from_millis(raft.config().election_timeout_max.saturating_mul(2));
    let mut server = raft.server_metrics();
    loop {
        let pending = {
            let m = server.borrow_watched();
            let joint = m.membership_config.get_joint_config().len() > 1;
            (m.state.is_leader() && joint).then(|| *m.membership_config.log_id())
        };
        let wait = async {
            match pending {
                // Whoever makes the change now gets the time to finish it.
                Some(_) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let due = tokio::select! {
            changed = server.changed() => {
                if changed.is_err() {
                    return;
                }
                false
            }
            _ = closing.wait_for(|c| *c) => return,
            () = wait => true,
        };
        if due {
            tracing::info!("finishing a change of the voters that was begun before");
            if let Err(e) = raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await {
                tracing::debug!("not finished yet: {e}");
            }
        }
    }
}
