//! Linearizable reads on any node. A round asks the leader, which asks a majority, how far a reader must have applied; everybody who
//! waits when a round begins shares it, so a thousand concurrent reads cost one.

use crate::{
    forward::changed,
    machine::Published,
    peer::{
        client::{Lane, Peers},
        proto,
    },
    store::{RaftNode, RaftStore},
};
use futures::future::BoxFuture;
use ikada_world::{ProposeError, World};
use openraft::{
    ReadPolicy,
    error::{LinearizableReadError, RaftError},
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};

/// Pause before a round that failed is tried again, unless a new leader is heard of.
const RETRY: Duration = Duration::from_millis(25);

/// Index to wait for, or why it is not known.
type Round = Result<u64, String>;

/// Shares rounds among those who wait.
#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    answers: Vec<oneshot::Sender<Round>>,
    running: bool,
}

impl Shared {
    /// The result of a round that begins after this call.
    async fn join(self: &Arc<Self>, round: impl Fn() -> BoxFuture<'static, Round> + Send + 'static) -> Round {
        let (answer, result) = oneshot::channel();
        let start = {
            let mut waiting = self.waiting.lock();
            waiting.answers.push(answer);
            !std::mem::replace(&mut waiting.running, true)
        };
        if start {
            let shared = self.clone();
            tokio::spawn(async move {
                while let Some(answers) = shared.take() {
                    let result = round().await;
                    for answer in answers {
                        answer.send(result.clone()).ok();
                    }
                }
            });
        }
        result.await.unwrap_or_else(|_| Err("the round ended".to_owned()))
    }

    fn take(&self) -> Option<Vec<oneshot::Sender<Round>>> {
        let mut waiting = self.waiting.lock();
        waiting.running = !waiting.answers.is_empty();
        waiting.running.then(|| std::mem::take(&mut waiting.answers))
    }
}

/// The rounds of one node.
pub(crate) struct Reads {
    raft: RaftNode,
    peers: Arc<Peers>,
    leader: watch::Sender<Option<u64>>,
    /// Time for the leader to answer.
    limit: Duration,
    /// Rounds of this node as the leader; peers share them.
    here: Arc<Shared>,
    /// Rounds that ask another leader.
    there: Arc<Shared>,
}

impl Reads {
    pub(crate) fn new(raft: RaftNode, peers: Arc<Peers>, leader: watch::Sender<Option<u64>>, limit: Duration) -> Reads {
        Reads { raft, peers, leader, limit, here: Arc::default(), there: Arc::default() }
    }

    /// Asks a majority whether this node leads, and how far a reader must have applied.
    pub(crate) async fn confirm(&self) -> Round {
        let raft = self.raft.clone();
        self.here
            .join(move || {
                let raft = raft.clone();
                Box::pin(async move {
                    let read = raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|e| match e {
                        RaftError::APIError(LinearizableReadError::ForwardToLeader(_)) => "this node does not lead".to_owned(),
                        RaftError::APIError(e) => e.to_string(),
                        RaftError::Fatal(e) => e.to_string(),
                    })?;
                    Ok(read.read_log_id().index())
                })
            })
            .await
    }

    /// Asks the leader.
    async fn ask(&self) -> Round {
        let (peers, leader, limit) = (self.peers.clone(), self.leader.clone(), self.limit);
        self.there
            .join(move || {
                let (peers, leader) = (peers.clone(), *leader.borrow());
                Box::pin(async move {
                    let Some(leader) = leader else {
                        return Err("there is no leader at the moment".to_owned());
                    };
                    let request = proto::ReadIndexRequest { target: peers.target(leader) };
                    let call = |mut client: proto::peer_client::PeerClient<_>| async move { client.read_index(request).await };
                    let said = peers.call(leader, Lane::Forward, limit, call).await.map_err(|e| e.to_string())?;
                    use proto::read_index_response::Result as Said;
                    match said.result {
                        Some(Said::Index(index)) => Ok(index),
                        Some(Said::NotLeader(_)) => Err(format!("node {leader} does not lead any more")),
                        Some(Said::Unavailable(why)) => Err(why),
                        None => Err(format!("node {leader} sent an answer that makes no sense")),
                    }
                })
            })
            .await
    }

    /// Where a reader must be to see every write that was acknowledged before this call.
    async fn index(&self, me: u64) -> Round {
        if *self.leader.borrow() == Some(me) { self.confirm().await } else { self.ask().await }
    }

    /// A world that contains every write that was acknowledged before this call.
    pub(crate) async fn linearizable(&self, store: &RaftStore, published: &Published) -> Result<Arc<World>, ProposeError> {
        let deadline = tokio::time::Instant::now() + store.deadline;
        let mut leader = self.leader.subscribe();
        let mut why = "no majority answered in time".to_owned();
        loop {
            leader.borrow_and_update();
            let round = tokio::select! {
                biased;
                round = self.index(store.identity.node) => round,
                () = changed(&mut leader) => Err("the leader changed".to_owned()),
                () = tokio::time::sleep_until(deadline) => return Err(ProposeError::Unavailable(why)),
            };
            match round {
                Ok(index) => {
                    return match tokio::time::timeout_at(deadline, published.applied(index)).await {
                        Ok(()) => Ok(published.world.load_full()),
                        Err(_) => Err(ProposeError::Unavailable(format!("this node is still applying entry {index}"))),
                    };
                }
                Err(e) => why = e,
            }
            if let Some(refusal) = store.refusal() {
                return Err(refusal);
            }
            let pause = tokio::time::timeout(RETRY, changed(&mut leader));
            if tokio::time::timeout_at(deadline, pause).await.is_err() {
                return Err(ProposeError::Unavailable(why));
            }
        }
    }
}
