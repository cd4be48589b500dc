//! Connections to peers: made when they are needed, kept, and made anew when they break.

use super::{MAX_MESSAGE, convert, proto, proto::peer_client::PeerClient};
use crate::net::{CONNECTION_WINDOW, KEEPALIVE, KEEPALIVE_ANSWER, MAX_FRAME, Net, SEND_BUFFER, STREAM_WINDOW};
use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ikada_store::Identity;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};

/// Pauses between attempts to connect: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Time for a node to hear that it was removed.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a connection is for. A large transfer on one does not hold up the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Votes, entries, heartbeats.
    Raft,
    Snapshot,
    /// Commands and reads for the leader.
    Forward,
}

/// Why a peer gave no answer.
#[derive(Clone, Debug)]
pub(crate) enum PeerError {
    /// No connection; nothing was sent.
    Unreachable(String),
    /// The peer looked at the request and did nothing.
    Refused(String),
    /// No answer in time.
    Timeout(Duration),
    /// The connection broke, or the answer makes no sense.
    Broken(String),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerError::Unreachable(why) | PeerError::Refused(why) | PeerError::Broken(why) => f.write_str(why),
            PeerError::Timeout(after) => write!(f, "no answer within {} ms", after.as_millis()),
        }
    }
}

impl PeerError {
    /// Whether the request certainly had no effect.
    pub(crate) fn had_no_effect(&self) -> bool {
        matches!(self, PeerError::Unreachable(_) | PeerError::Refused(_))
    }
}

impl From<Status> for PeerError {
    fn from(status: Status) -> Self {
        match status.code() {
            // Only our own checks answer with these.
            Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
                PeerError::Refused(status.message().to_owned())
            }
            _ => PeerError::Broken(status.to_string()),
        }
    }
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Conn {
    requests: SendRequest<Body>,
    /// Ends the connection and everything on it.
    end: CancellationToken,
}

impl tower::Service<Request<Body>> for Conn {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

#[derive(Default)]
struct Slot {
    conn: Option<Conn>,
    failures: u32,
    not_before: Option<Instant>,
    last_error: String,
}

type Slots = BTreeMap<(u64, Lane), Arc<tokio::sync::Mutex<Slot>>>;

/// The peers of one node.
pub(crate) struct Peers {
    net: Arc<dyn Net>,
    me: Identity,
    origin: Uri,
    /// Time for making a connection.
    connect: Duration,
    addresses: Mutex<BTreeMap<u64, String>>,
    slots: Mutex<Slots>,
    stop: CancellationToken,
}

impl Peers {
    pub(crate) fn new(net: Arc<dyn Net>, me: Identity, connect: Duration) -> Arc<Peers> {
        Arc::new(Peers {
            net,
            me,
            origin: Uri::from_static("https://peer.ikada"),
            connect,
            addresses: Mutex::default(),
            slots: Mutex::default(),
            stop: CancellationToken::new(),
        })
    }

    pub(crate) fn me(&self) -> Identity {
        self.me
    }

    pub(crate) fn target(&self, node: u64) -> Option<proto::Target> {
        convert::target(self.me.cluster, node)
    }

    /// Where a node is. A changed address ends its connections.
    pub(crate) fn set_address(&self, node: u64, address: &str) {
        let old = self.addresses.lock().insert(node, address.to_owned());
        if old.is_some_and(|old| old != address) {
            self.forget(node);
        }
    }

    /// Addresses of all members. Connections to nodes that are none any more end a little later: they still have to hear of it.
    pub(crate) fn set_members(self: &Arc<Self>, members: &BTreeMap<u64, String>) {
        for (node, address) in members {
            self.set_address(*node, address);
        }
        let gone: Vec<u64> = self.addresses.lock().keys().copied().filter(|node| !members.contains_key(node)).collect();
        for node in gone {
            self.addresses.lock().remove(&node);
            let peers = self.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(FAREWELL) => if !peers.addresses.lock().contains_key(&node) {
                        peers.forget(node);
                    },
                    () = peers.stop.cancelled() => {}
                }
            });
        }
    }

    fn forget(&self, node: u64) {
        let gone: Slots = {
            let mut slots = self.slots.lock();
            let mut rest = slots.split_off(&(node, Lane::Raft));
            let mut after = rest.split_off(&(node + 1, Lane::Raft));
            slots.append(&mut after);
            rest
        };
        for slot in gone.into_values() {
            // A slot that is in use is connecting; its connection ends when it finds that nobody has the slot.
            if let Ok(mut slot) = slot.try_lock()
                && let Some(conn) = slot.conn.take()
            {
                conn.end.cancel();
            }
        }
    }

    /// Ends all connections for good.
    pub(crate) fn close(&self) {
        self.stop.cancel();
        self.slots.lock().clear();
    }

    /// A client on a connection that works as far as is known; makes one if there is none.
    pub(crate) async fn client(&self, node: u64, lane: Lane) -> Result<(PeerClient<Conn>, Conn), PeerError> {
        if self.stop.is_cancelled() {
            return Err(PeerError::Unreachable("this node is stopping".to_owned()));
        }
        let slot = self.slots.lock().entry((node, lane)).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(conn) = &slot.conn {
            if !conn.requests.is_closed() && !conn.end.is_cancelled() {
                return Ok((self.on(conn.clone()), conn.clone()));
            }
            slot.conn = None;
        }
        if slot.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(PeerError::Unreachable(slot.last_error.clone()));
        }
        match self.connect(node, lane).await {
            Ok(conn) => {
                *slot = Slot { conn: Some(conn.clone()), ..Slot::default() };
                Ok((self.on(conn.clone()), conn))
            }
            Err(e) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << slot.failures.min(8)).min(LAST_PAUSE);
                slot.failures = slot.failures.saturating_add(1);
                slot.not_before = Some(Instant::now() + pause);
                slot.last_error.clone_from(&e);
                Err(PeerError::Unreachable(e))
            }
        }
    }

    fn on(&self, conn: Conn) -> PeerClient<Conn> {
        PeerClient::with_origin(conn, self.origin.clone()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    async fn connect(&self, node: u64, lane: Lane) -> Result<Conn, String> {
        let address = self.addresses.lock().get(&node).cloned().unwrap_or_default();
        if address.is_empty() {
            return Err(format!("the address of node {node} is not known"));
        }
        let failed = |e: &dyn fmt::Display| format!("cannot reach node {node} at {address}: {e}");
        let made = async {
            let io = self.net.connect(&address, node).await.map_err(|e| failed(&e))?;
            Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(MAX_FRAME)
                .max_send_buf_size(SEND_BUFFER)
                .keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE_ANSWER)
                .handshake::<_, Body>(TokioIo::new(io))
                .await
                .map_err(|e| failed(&e))
        };
        let (requests, connection) = match tokio::time::timeout(self.connect, made).await {
            Ok(made) => made?,
            Err(_) => {
                return Err(failed(&format_args!("no answer within {} ms", self.connect.as_millis())));
            }
        };
        tracing::debug!("connected to node {node} at {address} for {lane:?}");
        let end = self.stop.child_token();
        let ended = end.clone();
        tokio::spawn(async move {
            tokio::select! {
                done = connection => if let Err(e) = done {
                    tracing::debug!("connection to node {node} for {lane:?} ended: {e}");
                },
                () = ended.cancelled() => {}
            }
            ended.cancel();
        });
        Ok(Conn { requests, end })
    }

    /// Makes one unary call. A peer that does not answer in time gets a new connection the next time.
    pub(crate) async fn call<T, F>(
        &self,
        node: u64,
        lane: Lane,
        limit: Duration,
        call: impl FnOnce(PeerClient<Conn>) -> F,
    ) -> Result<T, PeerError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let deadline = Instant::now() + limit;
        let (client, conn) = match tokio::time::timeout_at(deadline, self.client(node, lane)).await {
            Ok(client) => client?,
            Err(_) => {
                return Err(PeerError::Unreachable(format!("no connection to node {node} within {} ms", limit.as_millis())));
            }
        };
        match tokio::time::timeout_at(deadline, call(client)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => {
                conn.end();
                Err(PeerError::Timeout(limit))
            }
        }
    }

    /// Time of one round trip on the connection for commands.
    pub(crate) async fn ping(&self, node: u64, limit: Duration) -> Result<Duration, PeerError> {
        // The first call may have to connect.
        self.client(node, Lane::Forward).await?;
        let start = Instant::now();
        let request = proto::PingRequest { target: self.target(node) };
        self.call(node, Lane::Forward, limit, |mut client| async move { client.ping(request).await }).await?;
        Ok(start.elapsed())
    }
}

impl Conn {
    /// Ends it: whatever is under way on it fails, and the next user makes a new one.
    pub(crate) fn end(&self) {
        self.end.cancel();
    }
}
