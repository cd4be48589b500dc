//! A source with a snapshot per node, a server on loopback, and clients of both variants.

use async_trait::async_trait;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster::EdsClusterConfig},
            core::v3::Node,
        },
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use ikada_xds::{
    CloseReason, Encoded, Nack, Options, PeerAddr, Sent, Session, Snapshot, SnapshotBuilder, Source, StreamHandle, StreamOpen, Unacknowledged, content_hash, service,
    type_url::{CLUSTER, ENDPOINTS},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use prost::Message;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, codegen::Service};

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);
/// How long a test waits for what must not come.
pub const A_WHILE: Duration = Duration::from_millis(150);

/// What a session heard, in order.
pub type Journal = Arc<Mutex<Vec<String>>>;

pub struct Fake {
    pub target: watch::Sender<Option<Arc<Snapshot>>>,
    pub journal: Journal,
    active: Mutex<HashMap<String, StreamHandle>>,
}

impl Fake {
    pub fn publish(&self, snapshot: Snapshot) {
        self.target.send_replace(Some(Arc::new(snapshot)));
    }
    pub fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }
    /// Waits until an entry of the journal starts with `start`.
    pub async fn heard(&self, start: &str) -> String {
        tokio::time::timeout(SOON, async {
            loop {
                if let Some(e) = self.journal().into_iter().find(|e| e.starts_with(start)) {
                    return e;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {start:?} in {:?}", self.journal()))
    }
}

pub struct FakeSession {
    target: watch::Receiver<Option<Arc<Snapshot>>>,
    journal: Journal,
}

impl FakeSession {
    fn note(&self, text: String) {
        self.journal.lock().unwrap().push(text);
    }
}

fn short(url: &str) -> &str {
    url.rsplit('.').next().unwrap()
}

#[async_trait]
impl Source for Fake {
    type Session = FakeSession;
    async fn open(&self, open: StreamOpen) -> Result<FakeSession, Status> {
        if open.credential.as_deref() == Some("bad") {
            return Err(Status::unauthenticated("authentication failed: bad token"));
        }
        assert!(open.peer.is_some());
        if let Some(old) = self.active.lock().unwrap().insert(open.node.id.clone(), open.handle) {
            old.end(Status::aborted("a newer stream of this proxy took over"));
        }
        Ok(FakeSession { target: self.target.subscribe(), journal: self.journal.clone() })
    }
}

impl Session for FakeSession {
    fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.target.clone()
    }
    fn on_sent(&self, s: &Sent<'_>) {
        self.note(format!("sent {} +{} -{}", short(s.type_url), s.resources, s.removed));
    }
    fn on_ack(&self, type_url: &str, _: &str) {
        self.note(format!("ack {}", short(type_url)));
    }
    fn on_nack(&self, n: &Nack<'_>) {
        let names: Vec<_> = n.rejected.iter().map(|(n, _)| n.to_string()).collect();
        self.note(format!("nack {} {}: {}", short(n.type_url), names.join(","), n.message));
    }
    fn on_synced(&self, digest: u64) {
        let published = self.target.borrow().as_ref().map(|s| s.digest());
        self.note(format!("synced {}", if Some(digest) == published { "newest" } else { "older" }));
    }
    fn on_unacknowledged(&self, late: &Unacknowledged<'_>) {
        self.note(format!("late {}", short(late.type_url)));
    }
    fn closed(&self, reason: &CloseReason) {
        self.note(format!("closed {reason}"));
    }
}

/// A resource whose content is `content`.
pub fn resource(type_url: &'static str, name: &str, content: &str) -> Arc<Encoded> {
    let body = content.as_bytes().to_vec();
    Arc::new(Encoded::new(name.into(), type_url, content_hash([body.as_slice()]), body.into()))
}

/// A cluster with endpoints from EDS, and its assignment.
pub fn eds_cluster(name: &str, content: &str, endpoints: &str) -> [Arc<Encoded>; 2] {
    let cluster = Cluster {
        name: name.to_owned(),
        alt_stat_name: content.to_owned(),
        eds_cluster_config: Some(EdsClusterConfig::default()),
        ..Default::default()
    };
    let body = cluster.encode_to_vec();
    [
        Arc::new(Encoded::new(name.into(), CLUSTER, content_hash([body.as_slice()]), body.into())),
        resource(ENDPOINTS, name, endpoints),
    ]
}

pub fn snapshot(resources: impl IntoIterator<Item = Arc<Encoded>>) -> Snapshot {
    let mut b = SnapshotBuilder::new();
    for r in resources {
        b.insert(r);
    }
    b.build().unwrap()
}

pub fn options() -> Options {
    Options { identifier: "cp-1".into(), endpoint_grace: Duration::from_millis(100), nack_backoff: Duration::from_millis(50), ..Options::default() }
}

/// A server; it ends with the test's runtime.
pub async fn serve(options: Options) -> (Arc<Fake>, SocketAddr) {
    let fake = Arc::new(Fake { target: watch::channel(None).0, journal: Journal::default(), active: Mutex::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let svc = service(fake.clone(), options);
    // Routed by hand, as on a listener that also serves plain HTTP.
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let svc = svc.clone();
            let routed = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                svc.clone().call(request)
            });
            tokio::spawn(async move {
                let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), routed).await;
            });
        }
    });
    (fake, address)
}

pub async fn connect(address: SocketAddr) -> AggregatedDiscoveryServiceClient<tonic::transport::Channel> {
    AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap()
}

pub fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), ..Default::default() })
}

fn detail(message: &str) -> Option<rpc::Status> {
    Some(rpc::Status { code: 3, message: message.to_owned(), details: Vec::new() })
}

async fn receive<T>(stream: &mut Streaming<T>) -> T {
    tokio::time::timeout(SOON, stream.message()).await.expect("no response").expect("stream failed").expect("stream ended")
}

/// A client of the delta variant.
pub struct DeltaClient {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

/// What a response held: names, and removed names.
pub type Content = (Vec<String>, Vec<String>);

impl DeltaClient {
    pub async fn new(address: SocketAddr, id: &str) -> Self {
        let (requests, rx) = mpsc::channel(64);
        let responses = connect(address).await.delta_aggregated_resources(ReceiverStream::new(rx)).await.unwrap().into_inner();
        DeltaClient { requests, responses, node: node(id) }
    }
    pub async fn send(&mut self, mut r: DeltaDiscoveryRequest) {
        r.node = self.node.take();
        self.requests.send(r).await.unwrap();
    }
    pub async fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        self.resume(type_url, names, &[]).await;
    }
    pub async fn resume(&mut self, type_url: &str, names: &[&str], initial: &[(&str, &str)]) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(|s| s.to_string()).collect(),
            initial_resource_versions: initial.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            ..Default::default()
        })
        .await;
    }
    pub async fn unsubscribe(&mut self, type_url: &str, names: &[&str]) {
        let resource_names_unsubscribe = names.iter().map(|s| s.to_string()).collect();
        self.send(DeltaDiscoveryRequest { type_url: type_url.to_owned(), resource_names_unsubscribe, ..Default::default() }).await;
    }
    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        receive(&mut self.responses).await
    }
    pub async fn ack(&mut self, r: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest { type_url: r.type_url.clone(), response_nonce: r.nonce.clone(), ..Default::default() }).await;
    }
    pub async fn nack(&mut self, r: &DeltaDiscoveryResponse, message: &str) {
        let error_detail = detail(message);
        self.send(DeltaDiscoveryRequest { type_url: r.type_url.clone(), response_nonce: r.nonce.clone(), error_detail, ..Default::default() }).await;
    }
    /// The next response must be of this type; it is acknowledged.
    pub async fn expect(&mut self, type_url: &str) -> Content {
        let r = self.next().await;
        assert_eq!(r.type_url, type_url, "{r:?}");
        self.ack(&r).await;
        content(&r)
    }
    pub async fn silence(&mut self) {
        if let Ok(r) = tokio::time::timeout(A_WHILE, self.responses.message()).await {
            panic!("unexpected {r:?}");
        }
    }
    /// The stream must end with an error.
    pub async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(SOON, self.responses.message()).await.expect("the stream goes on") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

pub fn content(r: &DeltaDiscoveryResponse) -> Content {
    (r.resources.iter().map(|r| r.name.clone()).collect(), r.removed_resources.clone())
}

pub fn versions(r: &DeltaDiscoveryResponse) -> Vec<(String, String)> {
    r.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
}

/// A client of the state-of-the-world variant.
pub struct FullClient {
    requests: mpsc::Sender<DiscoveryRequest>,
    pub responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl FullClient {
    pub async fn new(address: SocketAddr, id: &str) -> Self {
        let (requests, rx) = mpsc::channel(64);
        let request = Request::new(ReceiverStream::new(rx));
        let responses = connect(address).await.stream_aggregated_resources(request).await.unwrap().into_inner();
        FullClient { requests, responses, node: node(id) }
    }
    pub async fn request(&mut self, type_url: &str, names: &[&str], version: &str, nonce: &str, error: Option<&str>) {
        let r = DiscoveryRequest {
            node: self.node.take(),
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(|s| s.to_string()).collect(),
            version_info: version.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: error.and_then(detail),
            ..Default::default()
        };
        self.requests.send(r).await.unwrap();
    }
    pub async fn next(&mut self) -> DiscoveryResponse {
        receive(&mut self.responses).await
    }
    /// The next response must be of this type; it is acknowledged with these names. Gives the contents.
    pub async fn expect(&mut self, type_url: &str, names: &[&str]) -> Vec<String> {
        let r = self.next().await;
        assert_eq!(r.type_url, type_url);
        self.request(type_url, names, &r.version_info, &r.nonce, None).await;
        bodies(&r)
    }
    pub async fn silence(&mut self) {
        if let Ok(r) = tokio::time::timeout(A_WHILE, self.responses.message()).await {
            panic!("unexpected {r:?}");
        }
    }
}

/// The resources' contents as text.
pub fn bodies(r: &DiscoveryResponse) -> Vec<String> {
    r.resources.iter().map(|a| String::from_utf8_lossy(&a.value).into_owned()).collect()
}
