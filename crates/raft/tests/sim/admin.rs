//! An administrator: makes the cluster, moves the lead, and adds, promotes, demotes, replaces and removes members while all goes on.

use crate::{
    clients::{Busy, Shared, Wish},
    host::{Host, Power},
    seeded::Random,
};
use futures::future::LocalBoxFuture;
use ikada_raft::{Member, MembershipError, RaftStatus, RaftStore, Role, Start};
use std::{collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

/// Between two tries.
const RETRY: Duration = Duration::from_millis(150);
/// An operation that does not succeed within so many tries is given up while the faults last. Removing a lost node is not.
const TRIES: u32 = 60;

pub struct Admin {
    shared: Rc<Shared>,
    random: Random,
    voters: usize,
    busy_with_members: bool,
}

/// The host that leads, as far as it knows itself.
pub fn leader(hosts: &[Rc<Host>]) -> Option<(Rc<Host>, RaftStatus)> {
    let statuses = hosts.iter().filter_map(|h| Some((h.clone(), h.open_store()?.status())));
    statuses.filter(|(_, s)| s.role == Role::Leader).max_by_key(|(_, s)| s.term)
}

impl Admin {
    pub fn new(shared: &Rc<Shared>, seed: u64, voters: usize, busy_with_members: bool) -> Admin {
        Admin { shared: shared.clone(), random: Random::new(seed), voters, busy_with_members }
    }

    pub async fn run(mut self) {
        let _busy = Busy::new(&self.shared);
        self.make().await;
        self.shared.made.set(true);
        while !self.shared.stop.get() {
            let pause = self.random.between(200, 2500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if self.busy_with_members && !self.shared.stop.get() {
                match self.random.below(10) {
                    0..3 => self.transfer().await,
                    3 => self.update().await,
                    4 => self.snapshot().await,
                    5 => self.demote_and_promote().await,
                    6 => self.grow_or_shrink().await,
                    _ => self.replace().await,
                }
            }
        }
    }

    /// Has something done by the leader, until it is done or it makes no sense any more. `None` when it was given up.
    async fn on_leader<T: 'static>(
        &self,
        what: &str,
        stubborn: bool,
        work: impl Fn(Arc<RaftStore>) -> LocalBoxFuture<'static, Result<T, MembershipError>> + Clone + 'static,
    ) -> Option<Result<T, MembershipError>> {
        let mut tries = 0;
        while stubborn || (tries < TRIES && !self.shared.stop.get()) {
            tries += 1;
            if let Some((host, _)) = leader(&self.shared.hosts) {
                let work = work.clone();
                let asked = host.ask(move |store| work(store));
                match tokio::time::timeout(Duration::from_secs(8), asked).await {
                    Ok(Ok(Ok(done))) => {
                        self.shared.trace.line(format_args!("admin: {what}: done"));
                        return Some(Ok(done));
                    }
                    Ok(Ok(Err(e))) => match e {
                        MembershipError::UnknownMember(_) | MembershipError::NoVoters | MembershipError::EvenVoters { .. } | MembershipError::Invalid(_) => {
                            self.shared.trace.line(format_args!("admin: {what}: {e}"));
                            return Some(Err(e));
                        }
                        e => self.shared.trace.line(format_args!("admin: {what}: {e}")),
                    },
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            tokio::time::sleep(RETRY).await;
        }
        self.shared.trace.line(format_args!("admin: {what}: given up"));
        None
    }

    /// The first node creates the cluster, the others join it.
    async fn make(&mut self) {
        let first = &self.shared.hosts[0];
        first.start.replace(Some(Start::Create { address: first.address(), name: first.name.clone() }));
        self.shared.wishes.borrow_mut().push(Wish::Boot(0));
        let mut ids = BTreeSet::from([1]);
        for index in 1..self.voters {
            ids.extend(self.join(index, true).await);
        }
        self.set_voters(ids, true).await;
    }

    /// A machine with an empty disk joins as a learner, under a new id.
    async fn join(&mut self, index: usize, stubborn: bool) -> Option<u64> {
        let host = self.shared.hosts[index].clone();
        let id = self.on_leader("allocate an id", stubborn, |s| Box::pin(async move { s.allocate_node_id().await })).await?.ok()?;
        let cluster = self.shared.hosts.iter().find_map(|h| Some(h.identity.get()?.0))?;
        host.start.replace(Some(Start::Join { cluster, node: id }));
        self.shared.wishes.borrow_mut().push(Wish::Boot(index));
        let member = Member { id, address: host.address(), name: host.name.clone(), wants_vote: true, format: 1 };
        let what = format!("add {member}");
        let added = self.on_leader(&what, stubborn, move |s| {
            let member = member.clone();
            Box::pin(async move { s.add_learner(member).await })
        });
        added.await?.ok()?;
        self.shared.trace.count("members joined");
        Some(id)
    }

    async fn set_voters(&mut self, voters: BTreeSet<u64>, stubborn: bool) -> bool {
        let what = format!("voters {voters:?}");
        let set = self.on_leader(&what, stubborn, move |s| {
            let voters = voters.clone();
            Box::pin(async move { s.set_voters(voters, true).await })
        });
        let done = matches!(set.await, Some(Ok(())));
        if done {
            self.shared.trace.count("changes of voters");
        }
        done
    }

    fn members(&self) -> Option<(BTreeSet<u64>, BTreeSet<u64>)> {
        let (_, status) = leader(&self.shared.hosts)?;
        let ids = |voters: bool| status.members.iter().filter(|m| m.voter || !voters).map(|m| m.member.id).collect();
        (!status.joint).then(|| (ids(true), ids(false)))
    }

    fn index_of(&self, id: u64) -> Option<usize> {
        let started = |h: &Rc<Host>| match &*h.start.borrow() {
            Some(Start::Create { .. }) => Some(1),
            Some(Start::Join { node, .. }) => Some(*node),
            None => None,
        };
        self.shared.hosts.iter().position(|h| started(h) == Some(id))
    }

    async fn transfer(&mut self) {
        let Some((voters, _)) = self.members() else { return };
        let to = if self.random.chance(60) { self.random.pick(&voters.into_iter().collect::<Vec<_>>()) } else { None };
        let what = format!("transfer to {to:?}");
        let moved = self.on_leader(&what, false, move |s| Box::pin(async move { s.transfer_leader(to).await })).await;
        if let Some(Ok(_)) = moved {
            self.shared.trace.count("transfers of the lead");
        }
    }

    async fn update(&mut self) {
        let Some((_, status)) = leader(&self.shared.hosts) else { return };
        let members: Vec<Member> = status.members.into_iter().map(|m| m.member).collect();
        let Some(mut member) = self.random.pick(&members) else { return };
        member.name = format!("{}-{}", member.name.split('-').next().unwrap_or("n"), self.random.below(100));
        let update = self.on_leader("update a member", false, move |s| {
            let member = member.clone();
            Box::pin(async move { s.update_member(member).await })
        });
        update.await;
    }

    async fn snapshot(&mut self) {
        let hosts: Vec<_> = self.shared.hosts.iter().filter(|h| h.open_store().is_some()).cloned().collect();
        if let Some(host) = self.random.pick(&hosts) {
            let asked = host.ask(|s| Box::pin(async move { s.trigger_snapshot().await.is_ok() }));
            if let Ok(Ok(true)) = tokio::time::timeout(Duration::from_secs(2), asked).await {
                self.shared.trace.count("snapshots asked for");
            }
        }
    }

    async fn demote_and_promote(&mut self) {
        let Some((voters, _)) = self.members() else { return };
        let list: Vec<u64> = voters.iter().copied().collect();
        let Some(one) = self.random.pick(&list).filter(|_| list.len() > 2) else { return };
        let fewer = voters.iter().copied().filter(|v| *v != one).collect();
        if self.set_voters(fewer, false).await {
            let pause = self.random.below(1000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.set_voters(voters, false).await;
        }
    }

    async fn grow_or_shrink(&mut self) {
        let Some((voters, members)) = self.members() else { return };
        let spare = self.shared.hosts.iter().position(|h| h.power.get() == Power::Spare);
        match spare {
            Some(index) if self.random.chance(60) => {
                if let Some(id) = self.join(index, false).await {
                    let mut more = voters;
                    more.insert(id);
                    self.set_voters(more, false).await;
                }
            }
            _ => {
                let list: Vec<u64> = members.into_iter().collect();
                // Three stay, so that one failure is tolerated.
                if let Some(id) = self.random.pick(&list).filter(|id| voters.iter().filter(|v| *v != id).count() >= self.voters.min(3)) {
                    self.remove(id).await;
                }
            }
        }
    }

    /// A member is removed, and only then its disk is gone.
    async fn remove(&mut self, id: u64) {
        let removed = self.on_leader(&format!("remove {id}"), false, move |s| Box::pin(async move { s.remove_member(id).await })).await;
        if let (Some(Ok(())), Some(index)) = (removed, self.index_of(id)) {
            self.shared.trace.count("members removed");
            self.shared.wishes.borrow_mut().push(Wish::Wipe(index));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A disk is lost. The node comes back under a new id, and the old one is removed, sooner or later.
    async fn replace(&mut self) {
        let Some((voters, members)) = self.members().filter(|(v, _)| v.len() >= 3) else { return };
        let list: Vec<u64> = members.into_iter().collect();
        let Some((old, index)) = self.random.pick(&list).and_then(|id| Some((id, self.index_of(id)?))) else { return };
        self.shared.trace.line(format_args!("admin: {} loses its disk, it was node {old}", self.shared.hosts[index].name));
        self.shared.trace.count("disks lost");
        self.shared.wishes.borrow_mut().push(Wish::Wipe(index));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let new = if self.random.chance(50) { self.join(index, false).await } else { None };
        // No other disk may be lost before this is through, so it is tried to the end.
        let what = format!("remove the lost {old}");
        self.on_leader(&what, true, move |s| Box::pin(async move { s.remove_member(old).await })).await;
        let new = match new {
            None if self.shared.hosts[index].power.get() == Power::Spare => self.join(index, false).await,
            new => new,
        };
        if let Some(new) = new.filter(|_| voters.contains(&old)) {
            let mut again = self.members().map_or(voters, |(v, _)| v);
            again.remove(&old);
            again.insert(new);
            self.set_voters(again, false).await;
        }
    }
}
