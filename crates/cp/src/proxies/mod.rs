//! The proxies that are connected to this node: who they are, what they should have, what they did with it.
//!
//! - [`open`]: first request of a stream: authentication and registration ([`ikada_xds::Source`]).
//! - [`session`]: what a stream reports ([`ikada_xds::Session`]).
//! - [`reconcile`]: change sets → dirty proxies → generation → snapshots.
//! - [`identity`]: certificates of workloads and of their admin listeners.
//! - [`hosts`]: DNS names in dataplanes' addresses.
//! - [`insight`]: DataplaneInsights, written in batches.
//! - [`departure`]: what happens after a proxy is gone.
//! - [`health`]: health discovery: what Envoy finds of the applications next to it.
//! - [`inspect`], what `_config` shows.

mod auth;
mod departure;
pub mod health;
mod hosts;
mod identity;
mod insight;
mod inspect;
mod open;
mod reconcile;
mod session;
mod sync;
#[cfg(test)]
mod tests;

pub use inspect::Inspector;
pub use open::ProxySource;

use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use ikada_envoy::{ProxyMetadata, Settings};
use ikada_model::{Key, Kind, Mode, Timestamp};
use ikada_world::Replicator;
use ikada_xds::{Snapshot, StreamHandle};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};
use tokio::sync::{Notify, Semaphore, watch};
use tonic::Status;

/// Mesh and name of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyId {
    /// Mesh.
    pub mesh: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ProxyId {
    /// From an Envoy node id, `<mesh>.<name>`; split at the first dot (reference: data-plane contract §2.1).
    pub fn from_node_id(id: &str) -> Option<ProxyId> {
        let (mesh, name) = id.split_once('.')?;
        (!name.is_empty()).then(|| ProxyId { mesh: mesh.into(), name: name.into() })
    }
    /// Key of its Dataplane.
    pub fn dataplane(&self) -> Key {
        Key { kind: Kind::Dataplane, mesh: self.mesh.clone(), name: self.name.clone() }
    }
    /// Key of its DataplaneInsight.
    pub fn insight(&self) -> Key {
        Key { kind: Kind::DataplaneInsight, mesh: self.mesh.clone(), name: self.name.clone() }
    }
}

impl std::fmt::Display for ProxyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.mesh, self.name)
    }
}

/// Settings of this module.
#[derive(Clone, Debug)]
pub struct ProxiesOptions {
    /// Mode of the control plane.
    pub mode: Mode,
    /// Own zone.
    pub zone: String,
    /// Id of this process, shown in insights.
    pub instance_id: String,
    /// Dataplanes must bring a token.
    pub require_token: bool,
    /// Generation.
    pub settings: Settings,
    /// Insights.
    pub insights: crate::config::Insights,
    /// Health discovery.
    pub health: crate::config::Health,
}

/// All connected proxies of this node.
pub struct Proxies {
    store: Arc<dyn Replicator>,
    options: ProxiesOptions,
    /// Settings of generation; replaced when a resolved address changes.
    settings: ArcSwap<Settings>,
    metrics: Arc<Metrics>,
    /// Locked before `departed` and before the state of a proxy.
    table: Mutex<HashMap<ProxyId, Arc<Proxy>>>,
    /// Streams that ended and whose last insight is not written yet.
    departed: Mutex<HashMap<ProxyId, Arc<Proxy>>>,
    dirty: Mutex<BTreeSet<ProxyId>>,
    wake: Notify,
    insight_wake: Notify,
    keys: auth::KeyCache,
    cas: identity::CaCache,
    commits: sync::Commits,
    health: health::State,
    /// Generations for `_config` at a time: anybody may ask, and proxies and the store share the threads.
    inspections: Arc<Semaphore>,
    /// Streams end because the process does: proxies are not deregistered then.
    stopping: AtomicBool,
}

/// One connected proxy.
pub struct Proxy {
    id: ProxyId,
    stream_id: u64,
    handle: StreamHandle,
    metadata: ProxyMetadata,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    /// The dataplane came with the stream, so it leaves with it.
    registered: bool,
    state: Mutex<State>,
    sync: Mutex<sync::State>,
}

/// Changing facts about a proxy. Never locked across an await.
struct State {
    identity: Option<identity::Issued>,
    admin: Option<identity::Admin>,
    subscription: insight::Subscription,
    mtls: Option<insight::MtlsInsight>,
    /// Before this no renewal of the certificate is tried again.
    renewal_retry: Option<SystemTime>,
    /// Node metadata as shown in the insight.
    node_metadata: Value,
    /// The insight has to be written.
    insight_dirty: bool,
    /// Why the last generation failed.
    error: Option<String>,
}

impl Proxies {
    /// None connected yet.
    pub fn new(store: Arc<dyn Replicator>, options: ProxiesOptions, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Proxies {
            store,
            settings: ArcSwap::from_pointee(options.settings.clone()),
            options,
            metrics,
            table: Mutex::default(),
            departed: Mutex::default(),
            dirty: Mutex::default(),
            wake: Notify::new(),
            insight_wake: Notify::new(),
            keys: auth::KeyCache::default(),
            cas: identity::CaCache::default(),
            commits: sync::Commits::default(),
            health: health::State::default(),
            inspections: Arc::new(Semaphore::new(2)),
            stopping: AtomicBool::new(false),
        })
    }
    /// Ends all streams: the process stops. Proxies keep what they have and are not deregistered.
    pub fn begin_stop(&self) {
        self.stopping.store(true, std::sync::atomic::Ordering::Relaxed);
        for proxy in self.all() {
            proxy.handle.end(stopping());
        }
        self.health.end_streams();
    }
    fn connected(&self, id: &ProxyId) -> Option<Arc<Proxy>> {
        self.table.lock().get(id).cloned()
    }
    fn all(&self) -> Vec<Arc<Proxy>> {
        self.table.lock().values().cloned().collect()
    }
    /// Ids of connected proxies of one mesh.
    fn ids_in(&self, mesh: &str) -> Vec<ProxyId> {
        self.table.lock().keys().filter(|id| &*id.mesh == mesh).cloned().collect()
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping")
}

/// The wall clock.
pub fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

fn timestamp(at: SystemTime) -> Timestamp {
    let nanos = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    Timestamp(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// Retries of a write that lost a race against another one.
const CONFLICT_RETRIES: usize = 5;
/// Wait before such a retry.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
