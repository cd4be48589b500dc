//! openraft's network over the peer protocol: one [`Peer`] per node that openraft talks to.

use crate::{
    peer::{
        client::{Conn, Lane, PeerError, Peers},
        convert, proto,
        proto::peer_client::PeerClient,
        snapshot,
    },
    types::{LogId, NodeRecord, SnapshotFile, TypeConfig, Vote},
};
use futures::{Stream, StreamExt};
use ikada_store::SnapshotStore;
use openraft::{
    RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    alias::SnapshotOf,
    base::{BoxFuture, BoxStream},
    error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use parking_lot::Mutex;
use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type Answer = Rpc<StreamAppendResult<TypeConfig>>;

/// A follower that has owed an answer for so many heartbeats gets a new connection. One late sync is no reason to send everything again.
const PATIENCE: u32 = 4;
/// Requests of a heartbeat stream that wait to be sent; openraft has one under way at a time.
const HEARTBEATS: usize = 4;

/// Makes the clients of openraft.
pub(crate) struct PeerNetwork {
    pub peers: Arc<Peers>,
    pub snapshots: Arc<SnapshotStore>,
    /// Files are read off the runtime.
    pub blocking: bool,
}

impl PeerNetwork {
    fn client(&self, target: u64, node: &NodeRecord, heartbeats: bool) -> Peer {
        self.peers.set_address(target, &node.address);
        Peer {
            peers: self.peers.clone(),
            snapshots: self.snapshots.clone(),
            blocking: self.blocking,
            node: target,
            heartbeats,
            stream: None,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &NodeRecord) -> Peer {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &NodeRecord) -> Peer {
        self.client(target, node, true)
    }
}

/// One node that openraft talks to.
pub(crate) struct Peer {
    peers: Arc<Peers>,
    snapshots: Arc<SnapshotStore>,
    blocking: bool,
    node: u64,
    /// Requests come one by one, each in a stream of openraft's of its own.
    heartbeats: bool,
    /// For heartbeats: the stream that stays open between them.
    stream: Option<HeartbeatStream>,
}

struct HeartbeatStream {
    requests: mpsc::Sender<proto::AppendRequest>,
    answers: Streaming<proto::AppendResponse>,
}

impl Peer {
    fn error(&self, e: PeerError, action: RPCTypes) -> RPCError<TypeConfig> {
        match e {
            // With a pause before the next attempt.
            PeerError::Unreachable(why) | PeerError::Refused(why) => Unreachable::from_string(why).into(),
            PeerError::Timeout(timeout) => Timeout { action, id: self.peers.me().node, target: self.node, timeout }.into(),
            PeerError::Broken(why) => NetworkError::from_string(why).into(),
        }
    }

    fn malformed(e: convert::Malformed) -> RPCError<TypeConfig> {
        NetworkError::from_string(e).into()
    }

    /// Opens a stream of appends. Everything that is sent on it ends with the answers.
    async fn open(
        &self,
        requests: impl Stream<Item = proto::AppendRequest> + Send + 'static,
        limit: Duration,
    ) -> Result<(Streaming<proto::AppendResponse>, Conn), PeerError> {
        let deadline = Instant::now() + limit;
        let opened = async {
            let (mut client, conn): (PeerClient<Conn>, Conn) = self.peers.client(self.node, Lane::Raft).await?;
            match tokio::time::timeout_at(deadline, client.append(requests)).await {
                Ok(answer) => Ok((answer?.into_inner(), conn)),
                Err(_) => {
                    conn.end();
                    Err(PeerError::Timeout(limit))
                }
            }
        };
        opened.await
    }

    /// One request on the stream that stays open.
    async fn heartbeat(&mut self, rpc: AppendEntriesRequest<TypeConfig>, limit: Duration) -> Answer {
        let (prev, last) = (rpc.prev_log_id, last_of(&rpc));
        let request = convert::to_append(rpc, self.peers.target(self.node)).map_err(Self::malformed)?;
        // A stream that is not put back is closed.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let (requests, queue) = mpsc::channel(HEARTBEATS);
                let queue = futures::stream::unfold(queue, |mut queue| async move { queue.recv().await.map(|next| (next, queue)) });
                let (answers, _) = self.open(queue, limit).await.map_err(|e| self.error(e, RPCTypes::AppendEntries))?;
                HeartbeatStream { requests, answers }
            }
        };
        if stream.requests.send(request).await.is_err() {
            return Err(NetworkError::from_string("the stream of heartbeats ended").into());
        }
        match tokio::time::timeout(limit, stream.answers.message()).await {
            Ok(Ok(Some(answer))) => {
                let answer = appended(answer, prev, last)?;
                if answer.is_ok() {
                    self.stream = Some(stream);
                }
                Ok(answer)
            }
            Ok(Ok(None)) => Err(NetworkError::from_string("the stream of heartbeats ended").into()),
            Ok(Err(status)) => Err(self.error(status.into(), RPCTypes::AppendEntries)),
            Err(_) => Err(self.error(PeerError::Timeout(limit), RPCTypes::AppendEntries)),
        }
    }

    async fn vote_on(&self, rpc: VoteRequest<TypeConfig>, limit: Duration, pre: bool) -> Rpc<VoteResponse<TypeConfig>> {
        let request = convert::to_vote_request(&rpc, self.peers.target(self.node));
        let call =
            |mut client: PeerClient<Conn>| async move { if pre { client.pre_vote(request).await } else { client.vote(request).await } };
        let answer = self.peers.call(self.node, Lane::Raft, limit, call).await.map_err(|e| self.error(e, RPCTypes::Vote))?;
        convert::from_vote_response(answer).map_err(Self::malformed)
    }
}

fn last_of(rpc: &AppendEntriesRequest<TypeConfig>) -> Option<LogId> {
    rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id)
}

/// An answer to a request for the entries after `prev` up to `last`. What matched is what was sent, whatever the peer says.
fn appended(answer: proto::AppendResponse, prev: Option<LogId>, last: Option<LogId>) -> Answer {
    use proto::append_response::Result as Said;
    match (answer.result, prev) {
        (Some(Said::Matched(_)), _) => Ok(Ok(last)),
        (Some(Said::Conflict(_)), Some(prev)) => Ok(Err(StreamAppendError::Conflict(prev))),
        (Some(Said::Outvoted(ballot)), _) => {
            Ok(Err(StreamAppendError::HigherVote(convert::from_ballot(Some(ballot)).map_err(Peer::malformed)?)))
        }
        _ => Err(NetworkError::from_string("the peer sent an answer that makes no sense").into()),
    }
}

/// A request on its way.
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    at: Instant,
}

/// The answers of a pipelined stream.
struct Answers {
    stream: Streaming<proto::AppendResponse>,
    sent: Arc<Mutex<VecDeque<Sent>>>,
    conn: Conn,
    limit: Duration,
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
    /// The requests end with the answers: openraft waits for them before it starts another stream.
    _requests: DropGuard,
    over: bool,
}

impl Answers {
    async fn next(&mut self) -> Result<Option<StreamAppendResult<TypeConfig>>, PeerError> {
        loop {
            tokio::select! {
                biased;
                answer = self.stream.message() => {
                    let Some(answer) = answer? else { return Ok(None) };
                    let Some(sent) = self.sent.lock().pop_front() else {
                        return Err(PeerError::Broken("the peer answered what it was not asked".to_owned()));
                    };
                    return match appended(answer, sent.prev, sent.last) {
                        Ok(answer) => Ok(Some(answer)),
                        Err(e) => Err(PeerError::Broken(e.to_string())),
                    };
                }
                () = self.timer.as_mut() => {
                    let oldest = self.sent.lock().front().map(|s| s.at);
                    let now = Instant::now();
                    let due = oldest.unwrap_or(now) + self.limit;
                    if due <= now {
                        self.conn.end();
                        return Err(PeerError::Timeout(self.limit));
                    }
                    self.timer.as_mut().reset(due);
                }
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(&mut self, rpc: AppendEntriesRequest<TypeConfig>, option: RPCOption) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        Ok(self.heartbeat(rpc, option.soft_ttl()).await?.into())
    }

    fn stream_append<'s, S>(&'s mut self, mut input: S, option: RPCOption) -> BoxFuture<'s, Rpc<BoxStream<'s, Answer>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let limit = option.soft_ttl();
        if self.heartbeats {
            let answers = futures::stream::unfold((Some(self), input), move |(peer, mut input)| async move {
                let peer = peer?;
                let rpc = input.next().await?;
                let answer = peer.heartbeat(rpc, limit).await;
                let going_on = matches!(answer, Ok(Ok(_)));
                Some((answer, (going_on.then_some(peer), input)))
            });
            return Box::pin(async move { Ok(Box::pin(answers) as BoxStream<'s, Answer>) });
        }
        Box::pin(async move {
            // openraft pauses within its stream of requests when a peer does not answer; who fails before asking for one does so at once
            // again, for ever.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(futures::stream::empty()) as BoxStream<'s, Answer>);
            };
            let input = futures::stream::iter([first]).chain(input);
            let sent = Arc::new(Mutex::new(VecDeque::new()));
            let stop = CancellationToken::new();
            let guard = stop.clone().drop_guard();
            let mut target = self.peers.target(self.node);
            let queue = sent.clone();
            let unsendable = stop.clone();
            let requests = input.take_until(stop.cancelled_owned()).filter_map(move |rpc| {
                queue.lock().push_back(Sent { prev: rpc.prev_log_id, last: last_of(&rpc), at: Instant::now() });
                let request = convert::to_append(rpc, target.take());
                if let Err(e) = &request {
                    tracing::error!("an entry of this node's log cannot be sent: {e}");
                    unsendable.cancel();
                }
                futures::future::ready(request.ok())
            });
            let (stream, conn) = self.open(requests, limit * PATIENCE).await.map_err(|e| self.error(e, RPCTypes::AppendEntries))?;
            let limit = limit * PATIENCE;
            let timer = Box::pin(tokio::time::sleep(limit));
            let peer = &*self;
            let answers = Answers { stream, sent, conn, limit, timer, _requests: guard, over: false };
            let answers = futures::stream::unfold(answers, move |mut answers| async move {
                if answers.over {
                    return None;
                }
                match answers.next().await {
                    Ok(None) => None,
                    Ok(Some(answer)) => {
                        answers.over = answer.is_err();
                        Some((Ok(answer), answers))
                    }
                    Err(e) => {
                        answers.over = true;
                        Some((Err(peer.error(e, RPCTypes::AppendEntries)), answers))
                    }
                }
            });
            Ok(Box::pin(answers) as BoxStream<'s, Answer>)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.vote_on(rpc, option.soft_ttl(), false).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.vote_on(rpc, option.soft_ttl(), true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let network = |e: &dyn std::fmt::Display| NetworkError::<TypeConfig>::from_string(e);
        let stored = snapshot.snapshot.meta;
        let header = proto::SnapshotHeader {
            target: self.peers.target(self.node),
            term: vote.leader_id.term,
            leader: vote.leader_id.voted_for,
            last_log: snapshot.meta.last_log_id.as_ref().map(convert::to_log_id),
            meta: stored.meta.into(),
        };
        // openraft comes again and again for a node that is away: no file is opened for it, and no line logged.
        self.peers.client(self.node, Lane::Snapshot).await.map_err(|e| self.error(e, RPCTypes::InstallSnapshot))?;
        // It may have been replaced by a newer one; openraft comes again with that.
        let reader = self.snapshots.read(stored.mark).map_err(|e| network(&e))?;
        let failed = Arc::new(Mutex::new(None));
        let parts = snapshot::parts(header, reader, self.blocking, failed.clone());
        tracing::info!("sending the snapshot at {} to node {}", stored.mark, self.node);
        let stop = CancellationToken::new();
        let _guard = stop.clone().drop_guard();
        let parts = parts.take_until(stop.cancelled_owned());
        let call = |mut client: PeerClient<Conn>| async move { client.install_snapshot(parts).await };
        let answer = tokio::select! {
            answer = self.peers.call(self.node, Lane::Snapshot, option.soft_ttl(), call) => answer,
            closed = cancel => return Err(closed.into()),
        };
        if let Some(e) = failed.lock().take() {
            tracing::error!("cannot send a snapshot: {e}");
            return Err(network(&e).into());
        }
        let answer = answer.map_err(|e| {
            tracing::warn!("node {} does not take the snapshot at {}: {e}", self.node, stored.mark);
            self.error(e, RPCTypes::InstallSnapshot)
        })?;
        let vote = convert::from_ballot(answer.ballot).map_err(Self::malformed)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let request = proto::TransferLeaderRequest {
            target: self.peers.target(self.node),
            term: req.from_leader().leader_id.term,
            leader: req.from_leader().leader_id.voted_for,
            to: *req.to_node_id(),
            last_log: req.last_log_id().map(convert::to_log_id),
        };
        let call = |mut client: PeerClient<Conn>| async move { client.transfer_leader(request).await };
        let answer =
            self.peers.call(self.node, Lane::Raft, option.soft_ttl(), call).await.map_err(|e| self.error(e, RPCTypes::TransferLeader))?;
        if answer.refused.is_empty() {
            return Ok(Ok(()));
        }
        tracing::warn!("node {} does not take over: {}", self.node, answer.refused);
        Ok(Err(TransferLeaderError::LogNotFlushed { expected: req.last_log_id().copied(), actual: None }))
    }

    fn backoff(&self) -> Option<Backoff> {
        // A peer that is away is tried this often; its connection has pauses of its own.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}
