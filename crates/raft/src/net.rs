//! The seam between a node and its peers: how a connection is made, and how an accepted one is served.
//!
//! Who is at the other end is proved by the connection: the implementation of [`Net`] checks it when it connects, whoever accepts one
//! hands its [`PeerIdentity`] to [`serve_connection`]. What is said is in `proto/ikada/peer/v1/peer.proto`.

use async_trait::async_trait;
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::ServiceExt;

/// A connected byte stream.
pub trait IoStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> IoStream for T {}

/// Any connection.
pub type Io = Box<dyn IoStream>;

/// How peers are reached.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects to `address` ("host:port") and proves that node `node` of this cluster answers. The caller sets the deadline by dropping
    /// the future.
    async fn connect(&self, address: &str, node: u64) -> io::Result<Io>;
}

/// The node that an authenticated connection belongs to; in the extensions of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Id of the node.
    pub node: u64,
}

/// Reaches nobody: for a node that has no peers.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNet;

#[async_trait]
impl Net for NoNet {
    async fn connect(&self, address: &str, node: u64) -> io::Result<Io> {
        let what = format!("node {node} at {address:?} cannot be reached: this node has no network to peers");
        Err(io::Error::new(io::ErrorKind::NotConnected, what))
    }
}

/// Calls that one peer may have open on one connection.
const MAX_STREAMS: u32 = 256;
/// Bytes of one stream, and of one connection, that a sender may be ahead of the receiver.
pub(crate) const STREAM_WINDOW: u32 = 2 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 4 << 20;
/// Largest frame in bytes: few frames per message.
pub(crate) const MAX_FRAME: u32 = 256 << 10;
/// Most bytes of one connection that wait to be written.
pub(crate) const SEND_BUFFER: usize = 4 << 20;
/// A silent connection is asked this often whether it lives, and given this long to answer.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// What runs on a connection may finish within this once it is told to stop.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Serves one accepted connection until it ends or `stop` is cancelled. It is authenticated already: `peer` is the node that proved its
/// identity, if it did.
pub async fn serve_connection(io: Io, peer: Option<PeerIdentity>, routes: Routes, stop: CancellationToken) {
    let service = routes.prepare().map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        request.map(Body::new)
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(STOP_GRACE, connection).await {
                Ok(done) => done,
                // Streams between nodes last for ever; their other end notices.
                Err(_) => Ok(()),
            }
        }
    };
    if let Err(e) = done {
        let from = peer.map_or_else(|| "an unknown peer".to_owned(), |p| format!("node {}", p.node));
        tracing::debug!("connection of {from} ended: {e}");
    }
}
