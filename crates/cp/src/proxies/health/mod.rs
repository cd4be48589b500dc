//! Health discovery: Envoy probes the applications next to it and tells what it found (reference: data-plane contract §7.1).
//!
//! - [`specifier`]: what shall be probed, made from the stored Dataplane.
//! - [`report`]: what was found, and the states of inbounds that follow.
//! - [`stream`]: one stream of one proxy.
//!
//! Streams look at their Dataplane when it changed, never by a timer. States are written in batches, and a proxy's at most once per
//! [`PAUSE`]: only the newest report counts, so an application that flaps does not flood the store.

mod report;
mod specifier;
mod stream;

pub(super) use report::keep_states;

use super::{CONFLICT_PAUSE, CONFLICT_RETRIES, Proxies, ProxyId};
use async_trait::async_trait;
use envoy_types::pb::envoy::service::health::v3::{
    HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier,
    health_discovery_service_server::{HealthDiscoveryService, HealthDiscoveryServiceServer},
};
use ikada_model::{Dataplane, Json, Kind};
use ikada_world::{ChangeSet, Command, Expect, Op, ProposeError, Put, World};
use parking_lot::Mutex;
use report::Report;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{
    Notify,
    broadcast::{Receiver, error::RecvError},
    watch,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Path of the service's methods.
pub const PATH: &str = "/envoy.service.health.v3.HealthDiscoveryService/";
/// Largest request, bytes: the node of the first one carries the Dataplane.
const MAX_REQUEST: usize = 4 << 20;
/// Shortest time between two writes of states.
const PAUSE: Duration = Duration::from_secs(1);
/// Most Dataplanes in one write.
const BATCH: usize = 64;

/// Streams and what they found.
#[derive(Default)]
pub(super) struct State {
    table: Mutex<HashMap<ProxyId, Arc<Entry>>>,
    /// A Dataplane was created.
    created: Notify,
    /// Reports that differ from what is stored.
    found: Mutex<HashMap<ProxyId, Report>>,
    found_wake: Notify,
}

impl State {
    /// Every stream looks at its specifier again.
    pub(super) fn wake_all(&self) {
        self.table.lock().values().for_each(|e| e.changed.notify_one());
    }
    /// Ends all streams because the process ends.
    pub(super) fn end_streams(&self) {
        self.table.lock().values().for_each(|e| e.end(Status::unavailable("the control plane is stopping")));
    }
}

/// One stream, as others see it.
struct Entry {
    id: u64,
    /// What the specifier is made of may have changed.
    changed: Notify,
    /// Ends the stream with a status.
    end: watch::Sender<Option<Status>>,
}

impl Entry {
    fn end(&self, status: Status) {
        self.end.send_replace(Some(status));
    }
}

/// The gRPC service.
pub struct Hds {
    proxies: Arc<Proxies>,
    streams: AtomicU64,
}

/// The service over the proxies of this node. Cheap to clone.
pub fn service(proxies: Arc<Proxies>) -> HealthDiscoveryServiceServer<Hds> {
    HealthDiscoveryServiceServer::new(Hds { proxies, streams: AtomicU64::new(0) }).max_decoding_message_size(MAX_REQUEST)
}

#[async_trait]
impl HealthDiscoveryService for Hds {
    type StreamHealthCheckStream = ReceiverStream<Result<HealthCheckSpecifier, Status>>;

    async fn stream_health_check(
        &self,
        request: Request<Streaming<HealthCheckRequestOrEndpointHealthResponse>>,
    ) -> Result<Response<Self::StreamHealthCheckStream>, Status> {
        let id = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Response::new(stream::start(self.proxies.clone(), id, request)))
    }

    async fn fetch_health_check(&self, _: Request<HealthCheckRequestOrEndpointHealthResponse>) -> Result<Response<HealthCheckSpecifier>, Status> {
        Err(Status::unimplemented("health checks are only given on a stream"))
    }
}

impl Proxies {
    /// Serves health discovery until `stop`: wakes streams whose Dataplane changed, writes what they found.
    pub async fn run_health(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(self.follow_dataplanes(&stop), self.write_states(&stop));
    }

    async fn follow_dataplanes(&self, stop: &CancellationToken) {
        let mut bus: Receiver<Arc<ChangeSet>> = self.store.subscribe();
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = bus.recv() => change,
            };
            match change {
                Ok(changes) => self.wake_concerned(&changes),
                // Behind the bus: everything may have changed.
                Err(RecvError::Lagged(_)) => {
                    self.health.created.notify_waiters();
                    self.health.wake_all();
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn wake_concerned(&self, changes: &ChangeSet) {
        let mut created = false;
        for change in changes.policy.iter().filter(|c| c.is_material()) {
            let Some(key) = change.key() else { continue };
            match key.kind {
                Kind::Dataplane => {
                    created |= change.before.is_none();
                    let id = ProxyId { mesh: key.mesh.clone(), name: key.name.clone() };
                    if let Some(entry) = self.health.table.lock().get(&id) {
                        entry.changed.notify_one();
                    }
                }
                // Its mode decides about names.
                Kind::Mesh => self.health.table.lock().iter().filter(|(id, _)| id.mesh == key.name).for_each(|(_, e)| e.changed.notify_one()),
                _ => {}
            }
        }
        if created {
            self.health.created.notify_waiters();
        }
    }

    /// Takes what a stream reported. A report that says what is stored already also takes back an older one that is not written yet.
    fn found(&self, id: &ProxyId, report: Report) {
        let differs = self.store.world().get(&id.dataplane()).and_then(|r| r.view::<Dataplane>()).is_some_and(|d| report.changes(d));
        let mut found = self.health.found.lock();
        if differs {
            found.insert(id.clone(), report);
            self.health.found_wake.notify_one();
        } else {
            found.remove(id);
        }
    }

    async fn write_states(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.health.found_wake.notified() => {}
            }
            let found: Vec<_> = std::mem::take(&mut *self.health.found.lock()).into_iter().collect();
            for batch in found.chunks(BATCH) {
                if !self.write_batch(batch).await {
                    // One of them is being changed by others: that must not hold up the rest.
                    for one in batch {
                        self.write_batch(std::slice::from_ref(one)).await;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// False when it lost against other writes. Whatever is not written comes again with the proxy's next report.
    async fn write_batch(&self, batch: &[(ProxyId, Report)]) -> bool {
        for attempt in 0..CONFLICT_RETRIES {
            let world = self.store.world();
            let ops: Vec<_> = batch.iter().filter_map(|(id, report)| state_put(&world, id, report)).map(Op::Put).collect();
            if ops.is_empty() {
                return true;
            }
            let dataplanes = ops.len();
            match self.store.propose(Command { id: self.store.new_id(), ops }).await {
                Ok(_) => {
                    tracing::debug!(dataplanes, "states of inbounds written");
                    return true;
                }
                Err(ProposeError::Rejected(_)) if attempt + 1 < CONFLICT_RETRIES => tokio::time::sleep(CONFLICT_PAUSE).await,
                Err(ProposeError::Rejected(_)) => return false,
                Err(error) => {
                    tracing::debug!(%error, dataplanes, "states of inbounds not written");
                    return true;
                }
            }
        }
        false
    }
}

fn state_put(world: &World, id: &ProxyId, report: &Report) -> Option<Put> {
    let stored = world.get(&id.dataplane())?;
    let spec = report.apply(stored.view::<Dataplane>()?, stored.spec.value())?;
    Some(Put { expect: Expect::Version(stored.version), ..Put::new(stored.key.clone(), stored.labels.clone(), Json::from_value(&spec)) })
}
