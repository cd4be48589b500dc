//! The gRPC service.


use crate::{
    source::Source,
    stream::{Delta, Full, Incoming, Protocol, start},
};
use async_trait::async_trait;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

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

/// The service over a source.
#[derive(Debug)]
pub struct Ads<S> {
    source: Arc<S>,
    options: Arc<Options>,
    streams: AtomicU64,
}

/// The gRPC service: a tower service of `http::Request`s, for tonic's router or for routing by hand (path
/// `/envoy.service.discovery.v3.AggregatedDiscoveryService/…`). Cheap to clone. Needs a tokio runtime: one task per stream.
pub fn service<S: Source>(source: Arc<S>, options: Options) -> AggregatedDiscoveryServiceServer<Ads<S>> {
    let max = options.max_request_bytes;
    let ads = Ads { source, options: Arc::new(options), streams: AtomicU64::new(0) };
    // Responses have no limit of their own: they are as large as the proxy's configuration, and Envoy has none either.
    AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(max).max_encoding_message_size(usize::MAX)
}

impl<S: Source> Ads<S> {
    fn start<P: Protocol>(&self, request: Request<Streaming<P::Request>>) -> Response<ReceiverStream<Result<P::Response, Status>>> {
        let id = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let peer = request.extensions().get::<PeerAddr>().map(|p| p.0).or_else(|| request.remote_addr());
        let credential = credential(&request);
        let incoming = Incoming { id, requests: request.into_inner(), credential, peer };
        Response::new(start::<P, S>(self.source.clone(), self.options.clone(), incoming))
    }
}

fn credential<T>(request: &Request<T>) -> Result<Option<String>, Status> {
    let values: Vec<_> = request.metadata().get_all("authorization").iter().collect();
    match values.as_slice() {
        [] => Ok(None),
        [one] => match one.to_str() {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(Status::unauthenticated("authentication failed: the \"authorization\" header is not text")),
        },
        more => Err(Status::unauthenticated(format!(
            "authentication failed: request must have exactly 1 \"authorization\" header, got {}",
            more.len()
        ))),
    }
}

#[async_trait]
impl<S: Source> AggregatedDiscoveryService for Ads<S> {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.start::<Full>(request))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.start::<Delta>(request))
    }
}
