//! A node's own place in the cluster: it says where it is, and notices when it was removed.

use crate::{
    StartError,
    limit::LogLimit,
    proto::{AdminRequest, Announce, StandingResponse, admin_request::Call, standing_response::Standing},
    shared::Shared,
};
use ikada_raft::{Member, RaftStatus};
use ikada_store::FORMAT_VERSION;
use ikada_world::Replicator;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Out of contact with a leader for so long, a node asks the others whether it is a member still.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long another node may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

impl Shared {
    fn own_member<'a>(&self, status: &'a RaftStatus) -> Option<&'a Member> {
        status.members.iter().map(|m| &m.member).find(|m| m.id == self.node())
    }

    /// What a start has to do once the store is open. `joined`: the cluster took this node in just now.
    pub(crate) async fn settle_in(&self, joined: bool) -> Result<(), StartError> {
        if let Some(why) = self.dir.removed(self.identity())? {
            return Err(StartError::Removed(why));
        }
        if joined {
            self.dir.joined()?;
        }
        self.ensure_certificate().await
    }

    /// A node that leads when it starts says at once where it is: tokens name its address.
    pub(crate) async fn announce_as_leader(self: &Arc<Self>) {
        let status = self.store.status();
        if status.leader == Some(self.node())
            && self.own_member(&status).is_some_and(|me| self.differs(me))
            && let Err(e) = self.announce().await
        {
            tracing::warn!("the cluster does not know yet that this node is at {}: {e}", self.advertise);
        }
    }

    /// Runs until this node ends; `closing` is cancelled when it was removed.
    pub(crate) async fn run_standing(self: Arc<Self>, stop: CancellationToken, closing: CancellationToken) {
        let mut changed = self.store.watch_status();
        let mut leaderless = None::<Instant>;
        let mut asked = None::<Instant>;
        let (silence, failures) = (LogLimit::default(), LogLimit::default());
        loop {
            let status = self.store.status();
            let now = Instant::now();
            leaderless = if self.store.contact().is_recent() { None } else { leaderless.or(Some(now)) };
            let lost = leaderless.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
            match self.own_member(&status) {
                _ if status.members.is_empty() => {
                    if lost && let Some(_more) = silence.take() {
                        tracing::warn!(
                            "no leader has reached this node yet: check that the other members can connect to {}, or set another address to advertise",
                            self.advertise
                        );
                    }
                }
                Some(me) if !lost => {
                    if self.differs(me)
                        && let Err(e) = self.announce().await
                        && let Some(_more) = failures.take()
                    {
                        tracing::warn!("the cluster does not know yet that this node is at {}: {e}", self.advertise);
                    }
                }
                me => {
                    // No leader is heard, or this node is not in its own list: perhaps the others have gone on without it, or cannot find it.
                    if asked.is_none_or(|at| now.saturating_duration_since(at) >= PATIENCE) {
                        asked = Some(now);
                        if let Some(why) = self.ask_standing(&status).await {
                            return self.end(&why, &closing).await;
                        }
                        if me.is_some_and(|me| self.differs(me)) {
                            self.announce_to_all(&status).await;
                        }
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn differs(&self, me: &Member) -> bool {
        me.address != self.advertise || me.name != self.name || me.format != FORMAT_VERSION
    }

    fn announcement(&self) -> AdminRequest {
        let announce = Announce { node: self.node(), address: self.advertise.clone(), name: self.name.clone(), format: FORMAT_VERSION.into() };
        AdminRequest { call: Some(Call::Announce(announce)) }
    }

    async fn announce(self: &Arc<Self>) -> Result<(), crate::ClusterError> {
        self.administer(self.announcement()).await.map(|_| ())
    }

    /// A follower at a new address hears of no leader, since none can reach it: it calls all members, and the leader is one of them.
    async fn announce_to_all(&self, status: &RaftStatus) {
        for m in status.members.iter().map(|m| &m.member).filter(|m| m.id != self.node()) {
            if let Ok(mut peer) = self.call(&m.address, m.id).await
                && peer.administer(self.announcement(), ANSWER).await.is_ok()
            {
                tracing::info!("told the leader, node {}, that this node is at {}", m.id, self.advertise);
                return;
            }
        }
    }

    /// Why this node is not a member any more, if another one knows.
    async fn ask_standing(&self, status: &RaftStatus) -> Option<String> {
        for m in status.members.iter().map(|m| &m.member).filter(|m| m.id != self.node()) {
            let Ok(mut peer) = self.call(&m.address, m.id).await else { continue };
            match peer.standing(ANSWER).await {
                Ok(StandingResponse { standing: Some(Standing::Removed(why)) }) => return Some(why),
                Ok(StandingResponse { standing: Some(Standing::Member(_)) }) => return None,
                _ => {}
            }
        }
        None
    }

    async fn end(&self, why: &str, closing: &CancellationToken) {
        if let Err(e) = self.dir.set_removed(self.identity(), why) {
            tracing::warn!("{e}");
        }
        tracing::error!("{why}");
        self.ended.send_replace(Some(why.to_owned()));
        closing.cancel();
        if let Err(e) = self.store.shutdown().await {
            tracing::debug!("{e}");
        }
    }
}
