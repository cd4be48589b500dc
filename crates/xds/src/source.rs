//! Where resources come from: what the owner of the service implements.

use crate::snapshot::Snapshot;
use async_trait::async_trait;
use envoy_types::pb::envoy::config::core::v3::Node;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::watch;
use tonic::Status;

/// What is known of a stream when its first request arrived.
#[derive(Debug)]
pub struct StreamOpen {
    /// Number of the stream in this process, from 1.
    pub stream_id: u64,
    /// The node of the first request; its id is non-empty.
    pub node: Node,
    /// Value of the metadata `authorization`, raw. The service refuses streams with more than one.
    pub credential: Option<String>,
    /// Incremental variant.
    pub delta: bool,
    /// Address of the peer, when the transport tells it (see [`crate::PeerAddr`]).
    pub peer: Option<SocketAddr>,
    /// Ends the stream from outside, e.g. when a newer stream of the same proxy took over. Keep a clone.
    pub handle: StreamHandle,
}

/// Ends a stream from outside. Clones end the same stream; the first status given is the one the client sees.
#[derive(Debug, Clone)]
pub struct StreamHandle {
    end: watch::Sender<Option<Status>>,
}

impl Default for StreamHandle {
    fn default() -> Self {
        StreamHandle { end: watch::channel(None).0 }
    }
}

impl StreamHandle {
    /// Ends the stream with `status`. Does not wait for it.
    pub fn end(&self, status: Status) {
        self.end.send_if_modified(|s| {
            let first = s.is_none();
            if first {
                *s = Some(status);
            }
            first
        });
    }
    /// Whether [`end`](Self::end) was called.
    pub fn is_ended(&self) -> bool {
        self.end.borrow().is_some()
    }
    /// Waits for [`end`](Self::end).
    pub(crate) async fn ended(&self) -> Status {
        let mut rx = self.end.subscribe();
        loop {
            if let Some(status) = rx.borrow_and_update().clone() {
                return status;
            }
            // `self` keeps the sender, so this does not fail.
            if rx.changed().await.is_err() {
                return Status::cancelled("the stream was ended");
            }
        }
    }
}

/// Where the streams' resources come from.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Per-stream part.
    type Session: Session;

    /// First request of a stream: authenticate the proxy, register it. `Err` ends the stream with this status.
    /// Cancelled (dropped) when the client goes away meanwhile.
    async fn open(&self, open: StreamOpen) -> Result<Self::Session, Status>;
}

/// One stream of one proxy. All methods are called from the stream's task, in order, and must not block.
pub trait Session: Send + Sync + 'static {
    /// What the proxy should have; `None` until it is known. Called once. Only the newest value matters; intermediate ones may be skipped.
    /// The stream ends when the sender is dropped.
    fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>>;
    /// A response was handed to the transport.
    fn on_sent(&self, sent: &Sent<'_>) {
        let _ = sent;
    }
    /// The client accepted the response with this nonce.
    fn on_ack(&self, type_url: &str, nonce: &str) {
        let _ = (type_url, nonce);
    }
    /// The client rejected a response; it keeps what it had.
    fn on_nack(&self, nack: &Nack<'_>) {
        let _ = nack;
    }
    /// Everything of the snapshot with this [`Snapshot::digest`] that the client asked for is acknowledged. Called once per snapshot, also when
    /// nothing of it had to be sent; not for a snapshot that a newer one overtook or that was rejected in part.
    fn on_synced(&self, digest: u64) {
        let _ = digest;
    }
    /// A response has not been answered for [`crate::Options::ack_timeout`]. Called once per response. The stream goes on, and waits.
    fn on_unacknowledged(&self, late: &Unacknowledged<'_>) {
        let _ = late;
    }
    /// The stream is over. Called exactly once, last.
    fn closed(&self, reason: &CloseReason) {
        let _ = reason;
    }
}

/// A response that was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// Type.
    pub type_url: &'a str,
    /// Nonce.
    pub nonce: &'a str,
    /// Number of resources in it.
    pub resources: usize,
    /// Number of removed names in it (delta only).
    pub removed: usize,
    /// Bytes of the resources' bodies.
    pub bytes: usize,
}

/// A response that was rejected.
#[derive(Debug, Clone, Copy)]
pub struct Nack<'a> {
    /// Type.
    pub type_url: &'a str,
    /// Nonce of the rejected response.
    pub nonce: &'a str,
    /// The client's `error_detail.message`.
    pub message: &'a str,
    /// Names and wire versions that will not be sent again until they change.
    pub rejected: &'a [(Arc<str>, u64)],
}

/// A response without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Unacknowledged<'a> {
    /// Type.
    pub type_url: &'a str,
    /// Nonce.
    pub nonce: &'a str,
    /// Since when.
    pub age: Duration,
}

/// Why a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseReason {
    /// The client closed it or the connection broke.
    #[error("closed by the client{0}")]
    Client(String),
    /// Ended by [`StreamHandle::end`] or shutdown.
    #[error("ended by the server: {0}")]
    Ended(String),
    /// The client broke the protocol or a limit.
    #[error("refused: {0}")]
    Refused(String),
    /// A response was not taken off the connection within [`crate::Options::write_timeout`].
    #[error("slow reader: a response was not taken for {0:?}")]
    SlowReader(Duration),
    /// The session's snapshots ended.
    #[error("the source of resources is gone")]
    SourceGone,
}
