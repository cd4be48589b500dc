//! What the parts of a node share.

use crate::{
    ClusterError,
    client::{CallError, Peer, from_status},
    identity::{NodeName, PeerDir},
    limit::LogLimit,
    proto::{AdminRequest, AdminResponse},
    tls::{Tls, system_time},
};
use ikada_model::Timestamp;
use ikada_raft::{Clock, ClusterId, MembershipError, RaftStatus, RaftStore, Randomness, Role, Settings, net::Net};
use ikada_world::{Applied, Command, Op, ProposeError, Replicator};
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    time::Instant,
};

/// How long an administrative call may take, elections included.
pub(crate) const ADMIN_DEADLINE: Duration = Duration::from_secs(20);
/// How long a node may take to answer a forwarded call.
pub(crate) const FORWARD_DEADLINE: Duration = Duration::from_secs(15);
/// Joins at a time: who has no token cannot keep the leader busy.
pub(crate) const MAX_JOINS: usize = 8;
/// Calls to another node at a time, each on a connection of its own: together with the three of Raft fewer than a node takes from one
/// member, which ends the oldest beyond that.
const MAX_CALLS: usize = 8;
/// How long to wait for another leader before the next try.
const LEADER_WAIT: Duration = Duration::from_millis(200);

/// What the parts of a node share.
pub(crate) struct Shared {
    pub store: Arc<RaftStore>,
    pub clock: Arc<dyn Clock>,
    pub randomness: Arc<dyn Randomness>,
    pub tls: Arc<Tls>,
    pub net: Arc<dyn Net>,
    pub dir: PeerDir,
    pub advertise: String,
    pub name: String,
    pub version: String,
    pub certificate_life: Duration,
    pub settings: Settings,
    /// One change of the cluster at a time on this node.
    pub turn: Mutex<()>,
    /// Joins that this node looks at or passes on at a time.
    pub joins: Semaphore,
    /// Calls to each other node.
    pub calls: parking_lot::Mutex<BTreeMap<u64, Arc<Semaphore>>>,
    /// Lines about refused joins.
    pub join_log: LogLimit,
    /// Why this node is not a member any more.
    pub ended: watch::Sender<Option<String>>,
}

impl Shared {
    pub(crate) fn cluster(&self) -> ClusterId {
        self.store.cluster_id()
    }
    pub(crate) fn node(&self) -> u64 {
        self.store.node_id()
    }
    /// As certificates name this node.
    pub(crate) fn identity(&self) -> NodeName {
        NodeName { cluster: self.cluster(), node: self.node() }
    }
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
    pub(crate) fn system_now(&self) -> SystemTime {
        system_time(&*self.clock)
    }

    /// The status, on the leader.
    pub(crate) fn leading(&self) -> Result<RaftStatus, CallError> {
        let status = self.store.status();
        if status.role == Role::Leader { Ok(status) } else { Err(CallError::NotLeader) }
    }

    pub(crate) async fn propose(&self, ops: Vec<Op>) -> Result<Applied, ProposeError> {
        self.store.propose(Command { id: self.store.new_id(), ops }).await
    }

    /// A connection to another node for calls. Waits while many are open.
    pub(crate) async fn call(&self, address: &str, node: u64) -> io::Result<Peer> {
        let places = self.calls.lock().entry(node).or_insert_with(|| Arc::new(Semaphore::new(MAX_CALLS))).clone();
        let place = places.acquire_owned().await.map_err(io::Error::other)?;
        Ok(Peer::connect(&self.net, address, node).await?.in_place(place))
    }

    /// Carries a call out on the leader, wherever that is; waits through an election.
    pub(crate) async fn administer(self: &Arc<Self>, request: AdminRequest) -> Result<AdminResponse, ClusterError> {
        let until = Instant::now() + ADMIN_DEADLINE;
        let mut changed = self.store.watch_status();
        loop {
            changed.mark_unchanged();
            let status = self.store.status();
            let result = match status.leader {
                Some(leader) if leader == self.node() => self.lead(request.clone()).await,
                Some(leader) => match status.members.iter().find(|m| m.member.id == leader) {
                    Some(m) => self.forward(leader, &m.member.address, request.clone()).await,
                    None => Err(CallError::NotLeader),
                },
                None => Err(CallError::NotLeader),
            };
            match result {
                Ok(done) => return Ok(done),
                Err(CallError::Failed(e)) => return Err(e),
                Err(CallError::NotLeader) => {}
            }
            if Instant::now() >= until {
                return Err(ClusterError::Unavailable(no_leader(&self.store.status())));
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(LEADER_WAIT) => {}
            }
        }
    }

    async fn forward(&self, leader: u64, address: &str, request: AdminRequest) -> Result<AdminResponse, CallError> {
        // Who does not answer may have lost the lead: ask again who has it.
        let Ok(mut peer) = self.call(address, leader).await else { return Err(CallError::NotLeader) };
        match peer.administer(request, FORWARD_DEADLINE).await {
            Ok(done) => Ok(done),
            Err(status) => Err(from_status(&status, leader)),
        }
    }
}

/// Why there is nobody to carry a change out.
pub(crate) fn no_leader(status: &RaftStatus) -> String {
    match status.leader {
        Some(leader) => format!("the leader, node {leader}, does not answer; try again"),
        None => no_majority(status),
    }
}

/// What it means that nobody leads.
pub(crate) fn no_majority(status: &RaftStatus) -> String {
    let voters = status.members.iter().filter(|m| m.voter).count();
    format!(
        "there is no leader: fewer than {} of the {voters} voters reach each other. Start the others, or see `ikadactl cluster recover --help`",
        voters / 2 + 1
    )
}

impl From<ProposeError> for CallError {
    fn from(e: ProposeError) -> Self {
        CallError::Failed(match e {
            ProposeError::Unavailable(text) => ClusterError::Unavailable(text),
            ProposeError::Unknown => ClusterError::Unknown(e.to_string()),
            ProposeError::Rejected(_) => ClusterError::refused("somebody else changed the same at the same time; try again"),
            ProposeError::TooLarge { .. } => ClusterError::Invalid(e.to_string()),
        })
    }
}

impl From<MembershipError> for CallError {
    fn from(e: MembershipError) -> Self {
        let text = e.to_string();
        CallError::Failed(match e {
            MembershipError::NotLeader(_) => return CallError::NotLeader,
            MembershipError::UnknownMember(_) => ClusterError::NotFound(text),
            MembershipError::EvenVoters { .. } => ClusterError::forcible(text),
            MembershipError::Invalid(_) => ClusterError::Invalid(text),
            MembershipError::Unknown => ClusterError::Unknown(text),
            MembershipError::Busy | MembershipError::Unavailable(_) => ClusterError::Unavailable(text),
            _ => ClusterError::refused(text),
        })
    }
}
