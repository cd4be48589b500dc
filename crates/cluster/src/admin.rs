//! What the leader does for people: tokens, votes, removals, hand-over.

use crate::{
    ClusterError,
    client::CallError,
    proto::{AdminRequest, AdminResponse, Announce, CreateToken, Promote, Remove, RevokeToken, Token, TransferLeader, admin_request::Call},
    records::{self, TokenRecord},
    shared::Shared,
    token::{JoinToken, TokenId},
};
use ikada_pki::{certificates_der, sha256};
use ikada_raft::{MAX_PROMOTION_LAG, Member, MemberStatus, RaftStatus};
use ikada_world::Replicator;
use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};
use tokio::time::Instant;

/// Validity of a token in seconds.
const VALID_SECONDS: RangeInclusive<u64> = 60..=30 * 24 * 3600;
/// Nodes that may join with one token.
const USES: RangeInclusive<u32> = 1..=100;
/// Tokens at a time.
const MAX_TOKENS: usize = 256;
/// Ended tokens are kept this long: a node whose join was interrupted may finish it.
const KEEP_ENDED: Duration = Duration::from_secs(24 * 3600);
/// A member that answered within this is counted as alive.
pub(crate) const ALIVE: Duration = Duration::from_secs(5);

pub(crate) fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)
}

/// Whether a member is within reach of the leader and up to date.
pub(crate) fn caught_up(status: &RaftStatus, m: &MemberStatus, within: Duration) -> bool {
    m.progress.is_some_and(|p| p.lag(status.last_log) <= MAX_PROMOTION_LAG && p.last_ack.is_some_and(|ago| ago <= within))
}

pub(crate) fn voters(status: &RaftStatus) -> BTreeSet<u64> {
    status.members.iter().filter(|m| m.voter).map(|m| m.member.id).collect()
}

fn member(status: &RaftStatus, id: u64) -> Result<&MemberStatus, CallError> {
    let found = status.members.iter().find(|m| m.member.id == id);
    found.ok_or_else(|| ClusterError::NotFound(format!("node {id} is not a member; `ikadactl cluster members` lists them")).into())
}

/// The learner that waits longest for a vote and is up to date.
fn candidate(status: &RaftStatus, except: u64) -> Option<u64> {
    let waits = |m: &&MemberStatus| !m.voter && m.member.wants_vote && m.member.id != except && caught_up(status, m, ALIVE);
    status.members.iter().find(waits).map(|m| m.member.id)
}

impl Shared {
    /// Carries out a call; [`CallError::NotLeader`] when this node does not lead (any more).
    pub(crate) async fn lead(&self, request: AdminRequest) -> Result<AdminResponse, CallError> {
        let call = request.call.ok_or_else(|| ClusterError::Invalid("an unknown call; all nodes should run the same version".to_owned()))?;
        let _turn = self.turn.lock().await;
        let status = self.settled().await?;
        let done = AdminResponse::default();
        match call {
            Call::CreateToken(c) => self.create_token(&status, &c).await,
            Call::ListTokens(_) => self.list_tokens().await,
            Call::RevokeToken(c) => self.revoke_token(&c).await.map(|()| done),
            Call::Promote(c) => self.promote(&status, &c).await.map(|()| done),
            Call::Remove(c) => self.remove(&status, &c).await.map(|()| done),
            Call::TransferLeader(c) => self.transfer(&c).await,
            Call::Announce(c) => self.announced(&status, c).await.map(|()| done),
        }
    }

    /// The status on the leader, once it has heard of every member; a new leader has not at first. Who is dead is not waited for long.
    async fn settled(&self) -> Result<RaftStatus, CallError> {
        let until = Instant::now() + self.settings.election.1.saturating_mul(2);
        loop {
            let status = self.leading()?;
            let unheard = status.members.iter().any(|m| m.progress.is_none_or(|p| p.last_ack.is_none()));
            if !unheard || Instant::now() >= until {
                return Ok(status);
            }
            tokio::time::sleep(self.settings.heartbeat).await;
        }
    }

    async fn create_token(&self, status: &RaftStatus, c: &CreateToken) -> Result<AdminResponse, CallError> {
        if !VALID_SECONDS.contains(&c.valid_seconds) {
            return Err(ClusterError::Invalid("a join token is valid for one minute to 30 days".to_owned()).into());
        }
        if !USES.contains(&c.uses) {
            return Err(ClusterError::Invalid("a join token is for 1 to 100 nodes".to_owned()).into());
        }
        let world = self.store.linearizable().await?;
        let now = self.now();
        let ca = records::ca(&world).and_then(|pair| certificates_der(&pair.cert_pem).ok()?.into_iter().next());
        let ca = ca.ok_or_else(|| ClusterError::Unavailable("the cluster has no CA yet; try again".to_owned()))?;
        let mut ops = records::garbage(&world, self.cluster(), ikada_model::Timestamp(now.0.saturating_sub(nanos(KEEP_ENDED))));
        if records::tokens(&world, self.cluster()).iter().filter(|(_, t)| !t.expired(now)).count() >= MAX_TOKENS {
            return Err(ClusterError::refused(format!("there are {MAX_TOKENS} join tokens already; revoke some")).into());
        }
        let (a, b) = (self.randomness.bytes16(), self.randomness.bytes16());
        let mut secret = [0; 32];
        secret.iter_mut().zip(a.into_iter().chain(b)).for_each(|(slot, byte)| *slot = byte);
        let mut id = [0; 8];
        id.iter_mut().zip(self.randomness.bytes16()).for_each(|(slot, byte)| *slot = byte);
        let id = TokenId(id);
        let record = TokenRecord {
            cluster: self.cluster().to_string(),
            secret_hash: sha256(&secret).iter().map(|b| format!("{b:02x}")).collect(),
            voter: c.voter,
            uses: c.uses,
            created: now.0,
            expires: now.0.saturating_add(nanos(Duration::from_secs(c.valid_seconds))),
            joined: Vec::new(),
        };
        ops.push(records::create_token(id, &record));
        self.propose(ops).await?;
        let token = JoinToken { cluster: self.cluster(), ca_hash: sha256(&ca), id, secret };
        let addresses = status.members.iter().map(|m| m.member.address.clone()).filter(|a| !a.is_empty()).collect();
        tracing::info!(token = %id, uses = c.uses, voter = c.voter, "a join token was made");
        Ok(AdminResponse { token: token.text(), tokens: vec![shown(id, &record, now)], addresses, node: 0 })
    }

    async fn list_tokens(&self) -> Result<AdminResponse, CallError> {
        let world = self.store.linearizable().await?;
        let now = self.now();
        let mut all = records::tokens(&world, self.cluster());
        all.sort_by_key(|(id, t)| (std::cmp::Reverse(t.created), *id));
        Ok(AdminResponse { tokens: all.iter().map(|(id, t)| shown(*id, t, now)).collect(), ..AdminResponse::default() })
    }

    async fn revoke_token(&self, c: &RevokeToken) -> Result<(), CallError> {
        let unknown = || ClusterError::NotFound(format!("there is no join token {:?}; `ikadactl cluster join-token list` shows them", c.id));
        let id: TokenId = c.id.parse().map_err(|()| unknown())?;
        let world = self.store.linearizable().await?;
        records::token(&world, self.cluster(), id).ok_or_else(unknown)?;
        self.propose(vec![records::delete_token(id)]).await?;
        tracing::info!(token = %id, "a join token was revoked");
        Ok(())
    }

    async fn promote(&self, status: &RaftStatus, c: &Promote) -> Result<(), CallError> {
        let m = member(status, c.node)?;
        if m.voter {
            return Ok(());
        }
        let mut next = voters(status);
        next.insert(c.node);
        if next.len().is_multiple_of(2) && !c.force {
            let text = format!(
                "{} voters tolerate no more failures than {}: node {} gets its vote by itself as soon as another node has joined, or now if you force it",
                next.len(),
                next.len().saturating_sub(1),
                c.node
            );
            return Err(ClusterError::forcible(text).into());
        }
        if !m.member.wants_vote {
            self.store.update_member(Member { wants_vote: true, ..m.member.clone() }).await?;
        }
        self.store.set_voters(next, c.force).await?;
        tracing::info!(node = c.node, "promoted to a voter");
        Ok(())
    }

    async fn remove(&self, status: &RaftStatus, c: &Remove) -> Result<(), CallError> {
        let id = c.node;
        let m = member(status, id)?;
        let voting = voters(status);
        if m.voter {
            let mut next: BTreeSet<u64> = voting.iter().copied().filter(|v| *v != id).collect();
            let substitute = if next.len().is_multiple_of(2) { candidate(status, id) } else { None };
            next.extend(substitute);
            self.check_removal(status, id, &next, c.force)?;
            if let Some(substitute) = substitute {
                tracing::info!(node = substitute, "takes over the vote of node {id}");
                if id == self.node() {
                    // It hands over to a voter; the next leader finds an odd number after the removal.
                    let both = voting.iter().copied().chain([substitute]).collect();
                    self.store.set_voters(both, true).await?;
                } else {
                    self.store.set_voters(next.clone(), true).await?;
                }
            }
        }
        if id == self.node() {
            let leader = self.store.transfer_leader(None).await?;
            tracing::info!(node = id, "is going to be removed, node {leader} leads");
            return Err(CallError::NotLeader);
        }
        self.propose(vec![records::put_removed(self.cluster(), id)]).await?;
        self.store.remove_member(id).await?;
        tracing::info!(node = id, "removed from the cluster");
        Ok(())
    }

    /// `next`: who votes afterwards.
    fn check_removal(&self, status: &RaftStatus, id: u64, next: &BTreeSet<u64>, force: bool) -> Result<(), CallError> {
        if next.is_empty() {
            let text = format!("node {id} is the only voter, nobody would be left; to give the cluster up, stop the node and delete its data directory");
            return Err(ClusterError::refused(text).into());
        }
        if force {
            return Ok(());
        }
        if next.len().is_multiple_of(2) {
            let text = format!(
                "without node {id} there are {} voters, which tolerate no more failures than {}; let another node join first, it takes the place at once, or force it",
                next.len(),
                next.len().saturating_sub(1)
            );
            return Err(ClusterError::forcible(text).into());
        }
        let me = self.node();
        let alive = |id: &u64| {
            *id == me || status.members.iter().any(|m| m.member.id == *id && m.progress.and_then(|p| p.last_ack).is_some_and(|ago| ago <= ALIVE))
        };
        let living = next.iter().filter(|id| alive(id)).count();
        if living <= next.len() / 2 {
            let text = format!(
                "without node {id} only {living} of {} voters answer, which is no majority: the cluster would stop. Bring the others back first, or remove one of them",
                next.len()
            );
            return Err(ClusterError::forcible(text).into());
        }
        Ok(())
    }

    async fn transfer(&self, c: &TransferLeader) -> Result<AdminResponse, CallError> {
        let node = self.store.transfer_leader((c.to != 0).then_some(c.to)).await?;
        Ok(AdminResponse { node, ..AdminResponse::default() })
    }

    async fn announced(&self, status: &RaftStatus, c: Announce) -> Result<(), CallError> {
        let known = &member(status, c.node)?.member;
        let format = u16::try_from(c.format).map_err(|_| ClusterError::Invalid("the data format is out of range".to_owned()))?;
        let now = Member { address: c.address, name: c.name, format, ..known.clone() };
        if now != *known {
            tracing::info!("{known} is {now} now");
            self.store.update_member(now).await?;
        }
        Ok(())
    }
}

fn shown(id: TokenId, t: &TokenRecord, now: ikada_model::Timestamp) -> Token {
    let seconds = |nanos: i64| nanos.div_euclid(1_000_000_000);
    Token {
        id: id.to_string(),
        voter: t.voter,
        uses: t.uses,
        joined: t.joined.iter().map(|j| j.node).collect(),
        created: seconds(t.created),
        expires: seconds(t.expires),
        spent: t.used_up() || t.expired(now),
    }
}
