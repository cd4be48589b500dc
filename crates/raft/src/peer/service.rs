//! What a node answers its peers.

use super::{
    MAX_MESSAGE,
    convert::{self, Malformed},
    proto::{self, peer_server, snapshot_part::Part},
    snapshot::{self, Incoming},
};
use crate::{
    forward::{MAX_FORWARDED, Written},
    net::PeerIdentity,
    store::RaftStore,
    types::{LogId, SnapshotFile, TypeConfig, mark},
};
use async_trait::async_trait;
use futures::{Stream, StreamExt};
use ikada_store::{Mark, SnapshotMeta};
use openraft::{
    Snapshot,
    async_runtime::watch::WatchReceiver,
    raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest},
};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};
use tonic::{Request, Response, Status, Streaming, service::Routes};

/// A snapshot whose next part does not come within this is given up.
const PART_DEADLINE: Duration = Duration::from_secs(20);
/// Time for Raft to answer a vote, or to install what arrived.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// The peer service of one node. It does not keep the store alive.
#[derive(Clone)]
pub(crate) struct Service {
    store: Weak<RaftStore>,
}

/// The routes of a store.
pub(crate) fn routes(store: &Arc<RaftStore>) -> Routes {
    let service = Service { store: Arc::downgrade(store) };
    Routes::new(peer_server::PeerServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

fn refused(why: Malformed) -> Status {
    Status::invalid_argument(why)
}

fn stopped(e: impl std::fmt::Display) -> Status {
    Status::unavailable(e.to_string())
}

impl Service {
    fn store(&self) -> Result<Arc<RaftStore>, Status> {
        let store = self.store.upgrade().ok_or_else(|| stopped("the store is closed"))?;
        match store.refusal() {
            // Nothing was done: whoever asks may go elsewhere.
            Some(e) => Err(Status::failed_precondition(e.to_string())),
            None => Ok(store),
        }
    }

    /// The store, and who asks: a node that proved its identity and means this one.
    fn open<T>(&self, request: &Request<T>, target: Option<&proto::Target>) -> Result<(Arc<RaftStore>, u64), Status> {
        let (store, peer) = (self.store()?, peer(request)?);
        convert::check_target(target, store.identity).map_err(Status::failed_precondition)?;
        Ok((store, peer))
    }

    /// The same for what only members may ask.
    fn open_for_member<T>(&self, request: &Request<T>, target: Option<&proto::Target>) -> Result<Arc<RaftStore>, Status> {
        let (store, peer) = self.open(request, target)?;
        let metrics = store.raft.server_metrics();
        // Who asks a follower is told so; who may ask the leader, the leader knows.
        let member = metrics.borrow_watched().membership_config.nodes().any(|(id, _)| *id == peer);
        if member || !store.leads() {
            Ok(store)
        } else {
            Err(Status::permission_denied(format!("node {peer} is not a member of the cluster")))
        }
    }
}

fn peer<T>(request: &Request<T>) -> Result<u64, Status> {
    let identity = request.extensions().get::<PeerIdentity>();
    identity.map(|p| p.node).ok_or_else(|| Status::unauthenticated("the connection has not proved which node it belongs to"))
}

/// A node speaks for itself only.
fn speaks_for_itself(peer: u64, claimed: u64) -> Result<(), Status> {
    if peer == claimed { Ok(()) } else { Err(Status::permission_denied(format!("node {peer} speaks as node {claimed}"))) }
}

async fn in_time<T, E: std::fmt::Display>(answer: impl Future<Output = Result<T, E>>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
        Ok(answer) => answer.map_err(stopped),
        Err(_) => Err(Status::deadline_exceeded("no answer from Raft in time")),
    }
}

/// What ended a stream of appends, for its last message.
type Ended = Arc<Mutex<Option<Status>>>;

/// The checked requests of a stream. It ends at the first that is not acceptable.
fn requests(
    store: &Arc<RaftStore>,
    peer: u64,
    input: Streaming<proto::AppendRequest>,
    ended: Ended,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    let me = store.identity;
    let mut known = false;
    let input = input.map(move |message| {
        let request = message?;
        if !known {
            convert::check_target(request.target.as_ref(), me).map_err(Status::failed_precondition)?;
            known = true;
        }
        speaks_for_itself(peer, request.leader)?;
        convert::from_append(request).map_err(refused)
    });
    input.scan((), move |(), checked: Result<_, Status>| {
        futures::future::ready(match checked {
            Ok(request) => Some(request),
            Err(status) => {
                *ended.lock() = Some(status);
                None
            }
        })
    })
}

fn answer(result: Result<Option<LogId>, StreamAppendError<TypeConfig>>) -> proto::AppendResponse {
    use proto::append_response::Result as Said;
    let said = match result {
        Ok(_) => Said::Matched(true),
        Err(StreamAppendError::Conflict(_)) => Said::Conflict(true),
        Err(StreamAppendError::HigherVote(vote)) => Said::Outvoted(convert::to_ballot(&vote)),
    };
    proto::AppendResponse { result: Some(said) }
}

#[async_trait]
impl peer_server::Peer for Service {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<proto::AppendResponse, Status>> + Send>>;

    async fn append(&self, request: Request<Streaming<proto::AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let (store, peer) = (self.store()?, peer(&request)?);
        let ended = Ended::default();
        let requests = requests(&store, peer, request.into_inner(), ended.clone());
        let answers = store.raft.stream_append(requests).map(|result| result.map(answer).map_err(stopped));
        let last = futures::stream::once(async move { ended.lock().take() }).filter_map(|status| futures::future::ready(status.map(Err)));
        Ok(Response::new(Box::pin(answers.chain(last))))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let (store, peer) = self.open(&request, request.get_ref().target.as_ref())?;
        speaks_for_itself(peer, request.get_ref().candidate)?;
        let rpc = convert::from_vote_request(request.into_inner()).map_err(refused)?;
        Ok(Response::new(convert::to_vote_response(&in_time(store.raft.vote(rpc)).await?)))
    }

    async fn pre_vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let (store, peer) = self.open(&request, request.get_ref().target.as_ref())?;
        speaks_for_itself(peer, request.get_ref().candidate)?;
        let rpc = convert::from_vote_request(request.into_inner()).map_err(refused)?;
        Ok(Response::new(convert::to_vote_response(&in_time(store.raft.pre_vote(rpc)).await?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPart>>,
    ) -> Result<Response<proto::SnapshotResponse>, Status> {
        let (store, peer) = (self.store()?, peer(&request)?);
        let vote = install(&store, peer, request.into_inner()).await?;
        Ok(Response::new(proto::SnapshotResponse { ballot: Some(vote) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        let (store, peer) = self.open(&request, request.get_ref().target.as_ref())?;
        let request = request.into_inner();
        speaks_for_itself(peer, request.leader)?;
        let from = convert::leader_vote(request.term, request.leader).map_err(refused)?;
        let last_log = convert::from_log_id(request.last_log).map_err(refused)?;
        let done = in_time(store.raft.handle_transfer_leader(TransferLeaderRequest::new(from, request.to, last_log))).await?;
        Ok(Response::new(proto::TransferLeaderResponse { refused: done.err().map(|e| e.to_string()).unwrap_or_default() }))
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Result<Response<proto::ProposeResponse>, Status> {
        let store = self.open_for_member(&request, request.get_ref().target.as_ref())?;
        let commands = request.into_inner().commands;
        if commands.len() > MAX_FORWARDED {
            return Err(refused(format!("{} commands in one message, the limit is {MAX_FORWARDED}", commands.len())));
        }
        let outcomes = store.write_forwarded(commands).await;
        Ok(Response::new(proto::ProposeResponse { outcomes: outcomes.iter().map(Written::to_message).collect() }))
    }

    async fn read_index(&self, request: Request<proto::ReadIndexRequest>) -> Result<Response<proto::ReadIndexResponse>, Status> {
        use proto::read_index_response::Result as Said;
        let store = self.open_for_member(&request, request.get_ref().target.as_ref())?;
        let said = if store.leads() {
            match store.reads.confirm().await {
                Ok(index) => Said::Index(index),
                Err(why) => Said::Unavailable(why),
            }
        } else {
            Said::NotLeader(store.leader().unwrap_or(0))
        };
        Ok(Response::new(proto::ReadIndexResponse { result: Some(said) }))
    }

    async fn ping(&self, request: Request<proto::PingRequest>) -> Result<Response<proto::PingResponse>, Status> {
        self.open(&request, request.get_ref().target.as_ref())?;
        Ok(Response::new(proto::PingResponse {}))
    }
}

/// Receives a snapshot and installs it. Gives the vote of this node.
async fn install(store: &Arc<RaftStore>, peer: u64, mut input: Streaming<proto::SnapshotPart>) -> Result<proto::Ballot, Status> {
    let Some(Part::Header(header)) = next_part(&mut input).await? else {
        return Err(refused("a snapshot begins with its description".to_owned()));
    };
    convert::check_target(header.target.as_ref(), store.identity).map_err(Status::failed_precondition)?;
    speaks_for_itself(peer, header.leader)?;
    let announced = snapshot::announced(header).map_err(refused)?;
    let vote = convert::leader_vote(announced.term, announced.leader).map_err(refused)?;
    let at = mark(&announced.last_log);
    // One at a time, and not beside one that this node makes: both would write the same file.
    let _turn = store.snapshot_turn.lock().await;
    let (mine, committed) = {
        let metrics = store.raft.metrics();
        let now = metrics.borrow_watched();
        (now.vote, now.local_committed.as_ref().map(mark))
    };
    if mine > vote || committed.is_some_and(|c| c.index >= at.index) {
        return not_needed(mine, at, committed);
    }
    tracing::info!("receiving the snapshot at {at} from node {peer}");
    let meta = SnapshotMeta { mark: at, meta: announced.meta.to_vec() };
    let mut incoming = Incoming::start(store.snapshots.clone(), meta.clone(), store.blocking);
    let position = loop {
        match next_part(&mut input).await? {
            Some(Part::Records(records)) => {
                if incoming.push(records.records).await.is_err() {
                    return Err(unacceptable(incoming.failure().await));
                }
            }
            Some(Part::End(end)) => {
                break incoming.finish(end.records).await.map_err(unacceptable)?;
            }
            Some(Part::Header(_)) => {
                return Err(refused("a second description within a snapshot".to_owned()));
            }
            None => return Err(refused("the snapshot ended early".to_owned())),
        }
    };
    let content = SnapshotFile { meta, content: None };
    let described = openraft::SnapshotMeta { last_log_id: position.last, last_membership: position.membership.clone() };
    let content = SnapshotFile { content: Some(Arc::new(Mutex::new(Some(position)))), ..content };
    // Raft goes on while it arrives; a log that reached as far needs it no more.
    let committed = store.raft.metrics().borrow_watched().local_committed.as_ref().map(mark);
    if committed.is_some_and(|c| c.index >= at.index) {
        return not_needed(store.raft.metrics().borrow_watched().vote, at, committed);
    }
    let installed = in_time(store.raft.install_full_snapshot(vote, Snapshot { meta: described, snapshot: content })).await?;
    Ok(convert::to_ballot(&installed.vote))
}

fn not_needed(mine: crate::types::Vote, at: Mark, committed: Option<Mark>) -> Result<proto::Ballot, Status> {
    // What is committed is the same everywhere: another entry at this position is damage.
    match committed {
        Some(c) if c.index == at.index && c.term != at.term => {
            Err(Status::failed_precondition(format!("the snapshot at {at} contradicts the committed entry {c}")))
        }
        _ => Ok(convert::to_ballot(&mine)),
    }
}

fn unacceptable(e: std::io::Error) -> Status {
    tracing::warn!("a snapshot that arrived is not used: {e}");
    stopped(e)
}

async fn next_part(input: &mut Streaming<proto::SnapshotPart>) -> Result<Option<Part>, Status> {
    match tokio::time::timeout(PART_DEADLINE, input.message()).await {
        Ok(message) => Ok(message?.and_then(|m| m.part)),
        Err(_) => Err(Status::deadline_exceeded("the snapshot does not go on")),
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
