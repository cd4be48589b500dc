//! Getting into a cluster, from both sides.
//!
//! | step | if the joiner dies after it |
//! |---|---|
//! | The joiner makes its key and keeps it (`peer/joining.key`) | it starts over with the same key |
//! | It calls a member, whose CA it knows by the hash in the token | the same |
//! | The leader checks the token, reserves an id and notes it with the joiner's key in the token: one use is gone | asked again with this key, the leader goes on here |
//! | The leader adds the node as a learner and answers with a certificate | the same; until then the member is shown as never seen, and can be removed |
//! | The joiner stores the certificate, makes its data directory, forgets `joining.key` | it is a member, and starts as one |

use crate::{
    ClusterError, Join, StartError,
    client::{CallError, Peer, from_status},
    identity::{Credentials, NodeName, PeerDir},
    options::{address_fault, name_fault},
    proto::{self, JoinRequest, JoinResponse},
    records::{self, Joined, TokenRecord},
    shared::{ADMIN_DEADLINE, FORWARD_DEADLINE, Shared, no_leader},
    tls::connect_pinned,
    token::{JoinToken, TokenId, secret_matches},
    wire::Wire,
};
use ikada_pki::{Ca, CertificateRequest, certificate_pem, certificate_request};
use ikada_raft::{Clock, ClusterId, Member};
use ikada_store::FORMAT_VERSION;
use ikada_world::{Replicator, World};
use std::{io, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a joiner keeps trying to find a member that takes it in.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
/// Longest single try; the member may have to wait for a leader.
const TRY_DEADLINE: Duration = Duration::from_secs(25);
/// Pause between rounds over all addresses.
const PAUSE: Duration = Duration::from_secs(1);
/// Most addresses that are tried.
const MAX_ADDRESSES: usize = 64;

/// What the cluster gave to a joiner.
pub(crate) struct Welcome {
    pub cluster: ClusterId,
    pub node: u64,
    pub credentials: Credentials,
}

/// Joins. Tries all addresses in turn until one takes the node in, one says why it cannot, or the time is over.
pub(crate) async fn join(
    wire: &dyn Wire,
    clock: &Arc<dyn Clock>,
    dir: &PeerDir,
    join: &Join,
    address: &str,
    name: &str,
) -> Result<Welcome, StartError> {
    let token = JoinToken::parse(&join.token).map_err(StartError::Join)?;
    if join.addresses.is_empty() {
        return Err(StartError::Join("no address of a member is given: name the peer port of one, e.g. --join 10.0.0.1:5690".to_owned()));
    }
    let key = dir.joining_key()?;
    let request = JoinRequest {
        cluster: token.cluster.0.to_vec(),
        token_id: token.id.0.to_vec(),
        secret: token.secret.to_vec(),
        certificate_request: certificate_request(&key).map_err(|e| StartError::Identity(e.to_string()))?,
        address: address.to_owned(),
        name: name.to_owned(),
        learner: join.learner,
        format: FORMAT_VERSION.into(),
    };
    let until = Instant::now() + JOIN_DEADLINE;
    loop {
        let mut last = String::new();
        let mut hope = false;
        for to in join.addresses.iter().take(MAX_ADDRESSES) {
            match ask(wire, clock, &token, &key, request.clone(), to).await {
                Ok(welcome) => return Ok(welcome),
                Err(Refusal::Final(text)) => return Err(StartError::Join(text)),
                Err(Refusal::Elsewhere(text)) => last = format!("{to}: {text}"),
                Err(Refusal::Again(text)) => {
                    tracing::info!("{to}: {text}; trying on");
                    last = format!("{to}: {text}");
                    hope = true;
                }
            }
        }
        if !hope {
            return Err(StartError::Join(format!("{last}; check the addresses and the token")));
        }
        if Instant::now() >= until {
            let all = join.addresses.join(", ");
            return Err(StartError::Join(format!("no member took this node in within {} s ({last}); check that {all} are peer ports of members", JOIN_DEADLINE.as_secs())));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Refusal {
    /// The cluster has decided.
    Final(String),
    /// Somebody else answers at this address, and will tomorrow.
    Elsewhere(String),
    /// It may work later.
    Again(String),
}

async fn ask(
    wire: &dyn Wire,
    clock: &Arc<dyn Clock>,
    token: &JoinToken,
    key: &str,
    request: JoinRequest,
    to: &str,
) -> Result<Welcome, Refusal> {
    let shown = connect_pinned(wire, clock.clone(), token.cluster, token.ca_hash, to).await.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => Refusal::Elsewhere(e.to_string()),
        _ => Refusal::Again(e.to_string()),
    })?;
    let mut peer = Peer::over(shown.io).await.map_err(|e| Refusal::Again(e.to_string()))?;
    let asked = tokio::time::timeout(TRY_DEADLINE, peer.join(request, TRY_DEADLINE)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) => {
            return Err(match from_status(&status, shown.name.node) {
                CallError::NotLeader | CallError::Failed(ClusterError::Unavailable(_) | ClusterError::Unknown(_)) => {
                    Refusal::Again(status.message().to_owned())
                }
                CallError::Failed(e) => Refusal::Final(e.to_string()),
            });
        }
        Err(_) => return Err(Refusal::Again(format!("no answer within {} s", TRY_DEADLINE.as_secs()))),
    };
    let ca = certificate_pem(&shown.ca);
    let credentials = Credentials::new(&answer.certificate, &ca, key).map_err(|e| Refusal::Final(format!("the certificate from {to} cannot be used: {e}")))?;
    let name = NodeName { cluster: token.cluster, node: answer.node };
    if credentials.name != name {
        return Err(Refusal::Final(format!("the certificate from {to} is for another node")));
    }
    let members: Vec<String> = answer.members.iter().map(|m| format!("{} ({})", m.id, m.address)).collect();
    tracing::info!(cluster = %token.cluster, node = answer.node, members = members.join(", "), "taken into the cluster");
    Ok(Welcome { cluster: token.cluster, node: answer.node, credentials })
}

fn refused<T>(text: impl Into<String>) -> Result<T, CallError> {
    Err(ClusterError::refused(text).into())
}

impl Shared {
    /// Takes a node in, wherever the leader is. `forwarded`: another member asks on behalf of the joiner.
    pub(crate) async fn take_in(self: &Arc<Self>, request: JoinRequest, forwarded: bool) -> Result<JoinResponse, CallError> {
        let Ok(_place) = self.joins.try_acquire() else {
            return Err(ClusterError::Unavailable("many nodes join at the same time; try again".to_owned()).into());
        };
        let until = Instant::now() + ADMIN_DEADLINE;
        let mut changed = self.store.watch_status();
        loop {
            changed.mark_unchanged();
            let status = self.store.status();
            let result = match status.leader.and_then(|l| status.members.iter().find(|m| m.member.id == l)) {
                Some(m) if m.member.id == self.node() => self.admit(&request).await,
                Some(m) if !forwarded => self.forward_join(m.member.id, &m.member.address, request.clone()).await,
                _ => Err(CallError::NotLeader),
            };
            match result {
                Err(CallError::NotLeader) if !forwarded => {}
                other => return other,
            }
            if Instant::now() >= until {
                return Err(ClusterError::Unavailable(no_leader(&self.store.status())).into());
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    async fn forward_join(&self, leader: u64, address: &str, request: JoinRequest) -> Result<JoinResponse, CallError> {
        let Ok(mut peer) = self.call(address, leader).await else { return Err(CallError::NotLeader) };
        peer.join(request, FORWARD_DEADLINE).await.map_err(|status| from_status(&status, leader))
    }

    /// On the leader.
    async fn admit(&self, request: &JoinRequest) -> Result<JoinResponse, CallError> {
        self.leading()?;
        // Before anything waits: a stranger does not get into the way of others.
        self.token_of(request, &*self.store.linearizable().await?)?;
        let _turn = self.turn.lock().await;
        let status = self.leading()?;
        let world = self.store.linearizable().await?;
        let (id, read) = self.token_of(request, &world)?;
        let csr = CertificateRequest::parse(&request.certificate_request).map_err(|e| ClusterError::Invalid(e.to_string()))?;
        let key: String = csr.fingerprint().iter().map(|b| format!("{b:02x}")).collect();
        // Before the token is used up.
        if let Some(fault) = address_fault(&request.address) {
            return Err(ClusterError::Invalid(format!("raft.advertise {fault}")).into());
        }
        if let Some(fault) = name_fault(&request.name) {
            return Err(ClusterError::Invalid(format!("raft.name {fault}")).into());
        }
        let format = u16::try_from(request.format).unwrap_or(0);
        // All data must be readable by all members: none of them writes above what the oldest one reads.
        let needed = status.members.iter().map(|m| m.member.format).min().unwrap_or(FORMAT_VERSION);
        if format < needed {
            return refused(format!("this program reads data up to format {format}, the cluster writes format {needed}: install the version that the other nodes run"));
        }
        let wants_vote = read.record.voter && !request.learner;
        let node = match read.record.joined.iter().find(|j| j.key == key) {
            Some(known) => known.node,
            None => self.reserve(id, &read, key).await?,
        };
        if records::removed(&world, self.cluster(), node) {
            return refused(format!("this node joined as node {node} and was removed: empty its data directory and join with a new token"));
        }
        let member = Member { id: node, address: request.address.clone(), name: request.name.clone(), wants_vote, format };
        if !status.members.iter().any(|m| m.member.id == node) {
            if let Some(old) = status.members.iter().find(|m| m.member.address == member.address) {
                tracing::warn!("{member} joins at the address of node {}: if that one lost its disk, remove it", old.member.id);
            }
            self.store.add_learner(member.clone()).await?;
            tracing::info!("{member} joined as a learner");
        }
        let pair = records::ca(&world).ok_or_else(|| ClusterError::Unavailable("the cluster has no CA yet; try again".to_owned()))?;
        let failed = |e: ikada_pki::Error| ClusterError::Unavailable(format!("no certificate can be made: {e}"));
        let ca = Ca::from_pair(&pair).map_err(failed)?;
        let name = NodeName { cluster: self.cluster(), node }.to_string();
        let certificate = ca.node_certificate(&csr, &name, self.certificate_life, self.system_now()).map_err(failed)?;
        let members = self.store.status().members.into_iter().map(|m| m.member);
        let members = members.map(|m| proto::Member { id: m.id, address: m.address, name: m.name }).collect();
        Ok(JoinResponse { node, certificate, members })
    }

    /// The token of a request, if the request has its secret.
    fn token_of(&self, request: &JoinRequest, world: &World) -> Result<(TokenId, records::Read<TokenRecord>), CallError> {
        if request.cluster != self.cluster().0 {
            return refused("the join token is for another cluster: make one here with `ikadactl cluster join-token create`");
        }
        let id = <[u8; 8]>::try_from(request.token_id.as_slice()).map(TokenId).ok();
        let read = id.and_then(|id| Some((id, records::token(world, self.cluster(), id)?)));
        match read {
            Some((id, read)) if read.record.secret_hash().is_some_and(|hash| secret_matches(&request.secret, &hash)) => Ok((id, read)),
            // One text for both: who guesses learns nothing.
            _ => refused("the join token is not known (any more): make a new one with `ikadactl cluster join-token create`"),
        }
    }

    /// Uses the token up, once, for the joiner with this key.
    async fn reserve(&self, id: TokenId, read: &records::Read<TokenRecord>, key: String) -> Result<u64, CallError> {
        let again = "make a new one with `ikadactl cluster join-token create`";
        if read.record.expired(self.now()) {
            return refused(format!("the join token has expired: {again}"));
        }
        if read.record.used_up() {
            return refused(format!("the join token has been used already: {again}"));
        }
        let node = self.store.allocate_node_id().await?;
        let mut record = read.record.clone();
        record.joined.push(Joined { key, node });
        self.propose(vec![records::update_token(id, read, &record)]).await?;
        Ok(node)
    }
}
