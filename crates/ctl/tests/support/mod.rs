//! The API over a store that lives in memory, and the corpus.

use async_trait::async_trait;
use axum::Router;
use ikada_api::{
    ApiOptions, ApiState, ConfigInspector, InspectError,
    managers::{DefaultsOptions, ensure_defaults},
    router,
};
use ikada_model::{Resource, rest};
use ikada_world::{Applied, ChangeSet, Command, EntryMeta, Op, ProposeError, Put, Replicator, World};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{broadcast, watch};

/// Applies commands to a world under a lock; no disk, no network.
pub struct Store {
    world: Mutex<Arc<World>>,
    ids: AtomicU64,
    changes: broadcast::Sender<Arc<ChangeSet>>,
    leader: watch::Sender<bool>,
}

impl Store {
    /// Stores resources as they are.
    pub async fn preload(&self, resources: Vec<Resource>) {
        let ops = resources.into_iter().map(|r| {
            let times = Some((r.creation_time, r.modification_time));
            Op::Put(Put { status: Some(r.status), times, ..Put::new(r.key, r.labels, r.spec) })
        });
        self.propose(Command { id: self.new_id(), ops: ops.collect() }).await.expect("a preload has no preconditions");
    }
}

#[async_trait]
impl Replicator for Store {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let mut world = self.world.lock().unwrap();
        let index = world.index() + 1;
        let (next, changes, outcome) = world.apply(EntryMeta { index, time: ikada_api::now() }, &command);
        *world = Arc::new(next);
        let _ = self.changes.send(Arc::new(changes));
        outcome.map_err(ProposeError::Rejected)
    }
    fn world(&self) -> Arc<World> {
        self.world.lock().unwrap().clone()
    }
    async fn linearizable(&self) -> Result<Arc<World>, ProposeError> {
        Ok(self.world())
    }
    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>> {
        self.changes.subscribe()
    }
    fn leadership(&self) -> watch::Receiver<bool> {
        self.leader.subscribe()
    }
    fn new_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.ids.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        id
    }
}

/// Knows no configuration.
struct NoInspector;

#[async_trait]
impl ConfigInspector for NoInspector {
    async fn config(&self, _: &str, _: &str, _: bool, _: bool) -> Result<Value, InspectError> {
        Err(InspectError::NotFound)
    }
}

/// The API and its store.
pub struct App {
    pub store: Arc<Store>,
    pub router: Router,
}

impl App {
    pub fn new(options: ApiOptions) -> App {
        let store = Arc::new(Store {
            world: Mutex::new(Arc::new(World::empty())),
            ids: AtomicU64::new(1),
            changes: broadcast::channel(1024).0,
            leader: watch::channel(true).0,
        });
        let router = router(ApiState::new(store.clone(), Arc::new(NoInspector), options));
        App { store, router }
    }
    /// A zone with everything that a control plane makes at start.
    pub async fn started(options: ApiOptions) -> App {
        let defaults = DefaultsOptions {
            settings: options.managers(),
            skip_tenant_resources: false,
            skip_mesh_creation: false,
            skip_hostname_generators: false,
            user_tokens: true,
            bootstrap_admin_token: true,
        };
        let app = App::new(options);
        for e in ensure_defaults(&defaults, &World::empty(), ikada_api::now()).await.unwrap() {
            app.store.propose(Command { id: app.store.new_id(), ops: e.ops }).await.unwrap();
        }
        app
    }
}

/// A folder beside the workspace, by environment variable or default place. `None` (with the reason printed) when it is absent; in CI
/// that is a failure.
pub fn shared(variable: &str, name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let named = std::env::var_os(variable).map(PathBuf::from);
    // Worktrees lie one level deeper than the main checkout.
    let candidates = named.into_iter().chain([root.join("../shared").join(name), root.join("../../shared").join(name)]);
    let found = candidates.into_iter().find(|d| d.is_dir());
    if found.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "the folder shared/{name} does not exist");
        println!("skipped: the folder shared/{name} does not exist; set {variable}");
    }
    found
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Documents of a YAML stream; empty ones are dropped.
pub fn yaml(text: &str) -> Vec<Value> {
    let docs: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("YAML: {e}\n{text}"));
    docs.into_iter().filter(|d| !d.is_null()).collect()
}

pub fn bundle(text: &str) -> Vec<Resource> {
    yaml(text).iter().map(|d| rest::from_value_verbatim(d).unwrap()).collect()
}

/// First difference.
pub fn diff(want: &Value, have: &Value, at: &str) -> Option<String> {
    match (want, have) {
        (Value::Object(w), Value::Object(h)) => {
            for (k, v) in w {
                let Some(other) = h.get(k) else { return Some(format!("{at}.{k}: missing, want {v}")) };
                if let Some(d) = diff(v, other, &format!("{at}.{k}")) {
                    return Some(d);
                }
            }
            h.iter().find(|(k, _)| !w.contains_key(*k)).map(|(k, v)| format!("{at}.{k}: unexpected {v}"))
        }
        (Value::Array(w), Value::Array(h)) if w.len() == h.len() => {
            w.iter().zip(h).enumerate().find_map(|(i, (a, b))| diff(a, b, &format!("{at}[{i}]")))
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        (a, b) if a == b => None,
        (a, b) => Some(format!("{at}: want {a} got {b}")),
    }
}
