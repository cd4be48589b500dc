//! One health discovery stream of one proxy.

use super::{
    Entry,
    report::Report,
    specifier::{self, Subject},
};
use crate::{
    proxies::{
        Proxies, ProxyId,
        open::{read_resource, refused},
    },
    structs::struct_to_json,
};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::health::v3::{
        HealthCheckRequest, HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier,
        health_check_request_or_endpoint_health_response::RequestType,
    },
};
use ikada_envoy::ProxyMetadata;
use ikada_model::{Dataplane, Mesh, mesh::MeshServicesMode};
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

/// How long the first request may take.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// How long a Dataplane may take to be registered: this stream may be there before that of its configuration.
const REGISTRATION: Duration = Duration::from_secs(30);
/// How long a specifier may wait for the transport to take it.
const WRITE: Duration = Duration::from_secs(30);

type Requests = Streaming<HealthCheckRequestOrEndpointHealthResponse>;
type Answers = mpsc::Sender<Result<HealthCheckSpecifier, Status>>;

/// Starts the task of a stream.
pub(super) fn start(proxies: Arc<Proxies>, id: u64, request: Request<Requests>) -> ReceiverStream<Result<HealthCheckSpecifier, Status>> {
    let (answers, rx) = mpsc::channel(1);
    let credential = credential(&request);
    let requests = request.into_inner();
    tokio::spawn(async move {
        let result = tokio::select! {
            () = answers.closed() => Ok(()),
            result = run(proxies, id, credential, requests, &answers) => result,
        };
        if let Err(status) = result {
            tracing::debug!(code = ?status.code(), message = status.message(), "health discovery stream ended");
            timeout(WRITE, answers.send(Err(status))).await.ok();
        }
    });
    ReceiverStream::new(rx)
}

fn credential<T>(request: &Request<T>) -> Result<Option<String>, Status> {
    let values: Vec<_> = request.metadata().get_all("authorization").iter().collect();
    match values.as_slice() {
        [] => Ok(None),
        [one] => one.to_str().map(|t| Some(t.to_owned())).map_err(|_| refused("the \"authorization\" header is not text")),
        more => Err(refused(format!("request must have exactly 1 \"authorization\" header, got {}", more.len()))),
    }
}

/// Ends with `Ok` when the client is gone.
async fn run(proxies: Arc<Proxies>, id: u64, credential: Result<Option<String>, Status>, mut requests: Requests, answers: &Answers) -> Result<(), Status> {
    let credential = credential?;
    let first = timeout(FIRST_REQUEST, requests.message()).await.map_err(|_| Status::deadline_exceeded("no first request in time"))??;
    let Some(first) = first else { return Ok(()) };
    let Some(RequestType::HealthCheckRequest(HealthCheckRequest { node: Some(node), .. })) = first.request_type else {
        return Err(Status::invalid_argument("the first request must be a health check request with a node"));
    };
    let mut session = Session::open(proxies, id, &node, credential.as_deref()).await?;
    session.serve(&node.id, &mut requests, answers).await
}

/// A stream whose proxy is known.
struct Session {
    proxies: Arc<Proxies>,
    id: ProxyId,
    metadata: ProxyMetadata,
    entry: Arc<Entry>,
    sent: Option<HealthCheckSpecifier>,
}

impl Session {
    async fn open(proxies: Arc<Proxies>, stream: u64, node: &Node, credential: Option<&str>) -> Result<Session, Status> {
        let node_metadata = node.metadata.as_ref().map(struct_to_json).unwrap_or(Value::Null);
        let metadata = ProxyMetadata::from_json(&node_metadata);
        let id = ProxyId::from_node_id(&node.id)
            .ok_or_else(|| Status::invalid_argument(format!("node id {:?} must have the form <mesh>.<name>", node.id)))?;
        if metadata.proxy_type != "dataplane" {
            return Err(Status::unimplemented(format!("health discovery is for dataplanes, not for proxies of type {:?}", metadata.proxy_type)));
        }
        let brought = metadata.dataplane_resource.as_deref().map(|text| read_resource(&id, text)).transpose()?;
        if brought.is_some() {
            // A credential that is wrong need not wait.
            proxies.authenticate(&id, brought.as_ref(), credential)?;
        }
        timeout(REGISTRATION, registered(&proxies, &id)).await.ok();
        // What the stream speaks for from here on is what is stored.
        proxies.authenticate(&id, brought.as_ref(), credential)?;
        let entry = Arc::new(Entry { id: stream, changed: Notify::new(), end: watch::channel(None).0 });
        let old = proxies.health.table.lock().insert(id.clone(), entry.clone());
        if let Some(old) = old {
            old.end(Status::aborted("another health discovery stream of this proxy took over"));
        }
        if proxies.stopping.load(Ordering::Relaxed) {
            proxies.health.end_streams();
        }
        Ok(Session { proxies, id, metadata, entry, sent: None })
    }

    async fn serve(&mut self, node_id: &str, requests: &mut Requests, answers: &Answers) -> Result<(), Status> {
        let mut end = self.entry.end.subscribe();
        self.send(answers).await?;
        loop {
            tokio::select! {
                biased;
                status = ended(&mut end) => return Err(status),
                () = self.entry.changed.notified() => self.send(answers).await?,
                // An error is a connection that broke.
                request = requests.message() => match request.ok().flatten().map(|r| r.request_type) {
                    None => return Ok(()),
                    Some(Some(RequestType::EndpointHealthResponse(response))) => self.proxies.found(&self.id, Report::read(&response)),
                    Some(Some(RequestType::HealthCheckRequest(HealthCheckRequest { node: Some(node), .. }))) if node.id != node_id => {
                        return Err(Status::invalid_argument(format!(
                            "stream was authenticated for ID {node_id}. Received request is for node with ID {}. Node ID cannot be changed after stream is initialized",
                            node.id
                        )));
                    }
                    Some(_) => {}
                },
            }
        }
    }

    /// Sends the specifier when it is not the one that was sent last. Nothing changes for a proxy whose Dataplane is gone.
    async fn send(&mut self, answers: &Answers) -> Result<(), Status> {
        let Some(specifier) = self.specifier() else { return Ok(()) };
        if self.sent.as_ref() == Some(&specifier) {
            return Ok(());
        }
        match timeout(WRITE, answers.send(Ok(specifier.clone()))).await {
            Ok(Ok(())) => {
                self.sent = Some(specifier);
                Ok(())
            }
            // The client is gone: its requests end too.
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(Status::deadline_exceeded("a specifier was not taken in time")),
        }
    }

    fn specifier(&self) -> Option<HealthCheckSpecifier> {
        let world = self.proxies.store.world();
        let dataplane = world.get(&self.id.dataplane())?.view::<Dataplane>()?;
        let mesh = world.mesh(&self.id.mesh).and_then(|m| m.view::<Mesh>());
        let settings = self.proxies.settings.load();
        let subject = Subject {
            dataplane,
            metadata: &self.metadata,
            exclusive: mesh.is_some_and(|m| m.mesh_services.mode == MeshServicesMode::Exclusive),
            hosts: &settings.hosts,
        };
        Some(specifier::specifier(&subject, &self.proxies.options.health))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut table = self.proxies.health.table.lock();
        if table.get(&self.id).is_some_and(|e| e.id == self.entry.id) {
            table.remove(&self.id);
        }
    }
}

async fn ended(end: &mut watch::Receiver<Option<Status>>) -> Status {
    // The entry keeps the sender, so this does not fail.
    let status = end.wait_for(Option::is_some).await.ok().and_then(|s| s.clone());
    status.unwrap_or_else(|| Status::aborted("the stream was ended"))
}

/// Waits until the Dataplane is stored.
async fn registered(proxies: &Proxies, id: &ProxyId) {
    loop {
        let created = proxies.health.created.notified();
        if proxies.store.world().get(&id.dataplane()).is_some() {
            return;
        }
        created.await;
    }
}
