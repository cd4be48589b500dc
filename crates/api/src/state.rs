//! What the API needs from its process.

use crate::{auth::StaticAccess, cluster::ClusterAdmin, feed::Feed, gui::Gui, managers};
use async_trait::async_trait;
use ikada_model::{Key, Mode, Timestamp};
use ikada_world::Replicator;
use serde_json::Value;
use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Settings (`apiServer.*`, `multizone.zone.*`, `access.static.*` and what follows from them).
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Mode of the control plane.
    pub mode: Mode,
    /// Zone name; empty on a global.
    pub zone: String,
    /// `apiServer.readOnly`.
    pub read_only: bool,
    /// `apiServer.basePath`, starts with `/`.
    pub base_path: String,
    /// `apiServer.authn.localhostIsAdmin`.
    pub localhost_is_admin: bool,
    /// `apiServer.authn.type` is `tokens`: user tokens are checked and issued.
    pub user_tokens: bool,
    /// `apiServer.authn.tokens.enableIssuer`.
    pub user_token_issuer: bool,
    /// `dpServer.authn.dpProxy.dpToken.enableIssuer`.
    pub dataplane_token_issuer: bool,
    /// `dpServer.authn.zoneProxy.zoneToken.enableIssuer`.
    pub zone_token_issuer: bool,
    /// Keys of `apiServer.authn.tokens.validator.publicKeys`: (kid, PEM).
    pub user_token_public_keys: Vec<(String, String)>,
    /// `apiServer.authn.tokens.validator.useSecrets`.
    pub user_token_secrets: bool,
    /// `access.static`.
    pub access: StaticAccess,
    /// `multizone.zone.disableOriginLabelValidation`; honoured on global too.
    pub disable_origin_label_validation: bool,
    /// `store.unsafeDelete`.
    pub unsafe_delete: bool,
    /// `defaults.createMeshRoutingResources`.
    pub create_mesh_routing_resources: bool,
    /// Complete dataplanes that are written: the zone tag, `NotReady` of probed inbounds. Without, they are stored as written.
    pub complete_dataplanes: bool,
    /// Largest accepted request body in bytes.
    pub max_body: usize,
    /// `apiServer.readTimeout`: how long a request's body may take.
    pub read_timeout: Duration,
    /// How many requests may wait for changes at a time, watches included.
    pub waiters: usize,
    /// A watch says at least this often that it lives, and how far it is.
    pub watch_heartbeat: Duration,
    /// Shown by `GET /`.
    pub index: Index,
    /// The GUI.
    pub gui: Gui,
    /// Shown by `GET /config`: the whole effective configuration in Kuma's structure, without secrets.
    pub config: Arc<Value>,
}

/// Facts shown by `GET /` beside the cluster id, which is read from the world.
#[derive(Clone, Debug)]
pub struct Index {
    /// Host name.
    pub hostname: String,
    /// `Kuma`, so that stock kumactl accepts the server.
    pub product: String,
    /// Version of the contract, so that stock kumactl accepts the server.
    pub version: String,
    /// `<host>-<4 characters>`.
    pub instance_id: String,
    /// Omitted when empty.
    pub based_on_kuma: String,
}

impl Default for ApiOptions {
    /// A standalone zone named `default` with Kuma's defaults.
    fn default() -> Self {
        ApiOptions {
            mode: Mode::Zone { federated: false },
            zone: "default".into(),
            read_only: false,
            base_path: "/".into(),
            localhost_is_admin: true,
            user_tokens: true,
            user_token_issuer: true,
            dataplane_token_issuer: true,
            zone_token_issuer: true,
            user_token_public_keys: Vec::new(),
            user_token_secrets: true,
            access: StaticAccess::default(),
            disable_origin_label_validation: false,
            unsafe_delete: false,
            create_mesh_routing_resources: false,
            complete_dataplanes: true,
            max_body: 8 * 1024 * 1024,
            read_timeout: Duration::from_secs(10),
            waiters: 1024,
            watch_heartbeat: Duration::from_secs(15),
            index: Index {
                hostname: String::new(),
                product: "Kuma".into(),
                version: "2.14.3".into(),
                instance_id: String::new(),
                based_on_kuma: String::new(),
            },
            gui: Gui::default(),
            config: Arc::new(Value::Object(serde_json::Map::new())),
        }
    }
}

impl ApiOptions {
    /// The part that resource managers need.
    pub fn managers(&self) -> managers::Settings {
        managers::Settings {
            mode: self.mode,
            zone: self.zone.clone(),
            unsafe_delete: self.unsafe_delete,
            create_mesh_routing_resources: self.create_mesh_routing_resources,
        }
    }
}

/// Why a configuration cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// The dataplane does not exist or never connected.
    #[error("not found")]
    NotFound,
    /// It cannot be generated; the text is for people.
    #[error("{0}")]
    Failed(String),
}

/// Produces what `GET …/_config` shows. `cp` implements it.
#[async_trait]
pub trait ConfigInspector: Send + Sync + 'static {
    /// `{"xds": {<type URL>: {<resource name>: {…}}}, "diff": [JSON Patch]}` of a dataplane, secrets replaced by dummies; `diff` only when
    /// asked for, from the running configuration to the returned one. `shadow` also applies policies labelled `kuma.io/effect: shadow`.
    async fn config(&self, mesh: &str, name: &str, shadow: bool, include_diff: bool) -> Result<Value, InspectError>;
}

/// Lets the writes of one resource that reach this node through one after another. Each is built from what the one before it left; side by
/// side all but one would be refused, and each refusal is an entry of the log.
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Turns {
    /// Resources that share a slot wait for each other too, which is rare with so many.
    const SLOTS: usize = 4096;
    /// Longest wait; then the write takes its chance. A store that hangs must not make a queue.
    const PATIENCE: Duration = Duration::from_secs(5);

    fn new() -> Self {
        Turns((0..Self::SLOTS).map(|_| Mutex::new(())).collect())
    }
    /// Waits for the turn, which lasts until the guard is dropped.
    pub(crate) async fn of(&self, key: &Key) -> Option<MutexGuard<'_, ()>> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let slot = self.0.get(usize::try_from(hash % Self::SLOTS as u64).ok()?)?;
        tokio::time::timeout(Self::PATIENCE, slot.lock()).await.ok()
    }
}

/// Everything a request needs. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// The store.
    pub replicator: Arc<dyn Replicator>,
    /// `_config`.
    pub inspector: Arc<dyn ConfigInspector>,
    /// Settings.
    pub options: Arc<ApiOptions>,
    /// `/cluster…`; without it those paths answer 501.
    pub cluster: Option<Arc<dyn ClusterAdmin>>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) stop: CancellationToken,
}

impl ApiState {
    /// A state. Follows the store from now on, so it needs a tokio runtime.
    pub fn new(replicator: Arc<dyn Replicator>, inspector: Arc<dyn ConfigInspector>, options: ApiOptions) -> Self {
        let feed = Feed::start(replicator.clone(), options.waiters);
        let (turns, stop) = (Arc::new(Turns::new()), CancellationToken::new());
        ApiState { replicator, inspector, options: Arc::new(options), cluster: None, turns, feed, stop }
    }
    /// Requests that wait for changes end, with what they would answer then, when this is cancelled.
    #[must_use]
    pub fn until(self, stop: CancellationToken) -> Self {
        ApiState { stop, ..self }
    }
    /// How many requests wait for changes right now.
    pub fn waiting(&self) -> usize {
        self.feed.waiting()
    }
    /// With the endpoints of the cluster.
    #[must_use]
    pub fn with_cluster(self, cluster: Arc<dyn ClusterAdmin>) -> Self {
        ApiState { cluster: Some(cluster), ..self }
    }
}

/// The wall clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
