//! The gRPC service.


use std::{net::SocketAddr, time::Duration};

/// Settings of the service.
#[derive(Debug, Clone)]
pub struct Options {
    /// `control_plane.identifier` of responses: the instance id.
    pub identifier: String,
    /// Largest request, bytes.
    pub max_request_bytes: usize,
    /// Most names (subscribed or claimed) of one type on one stream.
    pub max_names: usize,
    /// How long the first request may take.
    pub first_request_timeout: Duration,
    /// How long a response may wait for the transport to take it; then the stream ends ([`crate::CloseReason::SlowReader`]).
    pub write_timeout: Duration,
    /// When an unanswered response is reported ([`crate::Session::on_unacknowledged`]).
    pub ack_timeout: Duration,
    /// Pause of a type after a rejected response (`xdsServer.nackBackoff`).
    pub nack_backoff: Duration,
    /// How long listeners wait for the client to ask for the endpoints of clusters it just got.
    pub endpoint_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            identifier: String::new(),
            max_request_bytes: 4 << 20,
            max_names: 50_000,
            first_request_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            ack_timeout: Duration::from_secs(60),
            nack_backoff: Duration::from_secs(5),
            endpoint_grace: Duration::from_secs(1),
        }
    }
}

/// Request extension with the peer's address, for connections that tonic's own transport did not accept.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);
