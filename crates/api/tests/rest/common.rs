//! A control plane's API over a store that lives in memory, and the corpus' rules of comparison.

use async_trait::async_trait;
use axum::{Router, body::Body, extract::ConnectInfo};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use ikada_api::{
    ApiOptions, ApiState, ConfigInspector, InspectError,
    managers::{DefaultsOptions, Ensure, ensure_defaults},
    router,
};
use ikada_model::{Resource, Timestamp, rest};
use ikada_world::{Applied, ChangeSet, Command, Contact, EntryMeta, Op, ProposeError, Put, Replicator, World};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{OnceCell, broadcast, watch};
use tower::ServiceExt;

/// Applies commands straight to a world under a lock; no disk, no network.
pub struct LocalReplicator {
    world: Mutex<Arc<World>>,
    ids: AtomicU64,
    changes: broadcast::Sender<Arc<ChangeSet>>,
    leader: watch::Sender<bool>,
    /// Errors to answer the next proposals with.
    pub failures: Mutex<Vec<ProposeError>>,
    /// What the node knows of its leader. Without a recent contact nothing is linearizable.
    pub contact: Mutex<Contact>,
}

impl LocalReplicator {
    pub fn new() -> Arc<Self> {
        Arc::new(LocalReplicator {
            world: Mutex::new(Arc::new(World::empty())),
            ids: AtomicU64::new(1),
            changes: broadcast::channel(1024).0,
            leader: watch::channel(true).0,
            failures: Mutex::default(),
            contact: Mutex::new(Contact::ALONE),
        })
    }
    /// Applies a command at once: nobody runs in between.
    pub fn apply(&self, ops: Vec<Op>) -> u64 {
        let mut world = self.world.lock().unwrap();
        let index = world.index() + 1;
        let (next, changes, outcome) = world.apply(EntryMeta { index, time: ikada_api::now() }, &Command { id: self.new_id(), ops });
        outcome.unwrap();
        *world = Arc::new(next);
        let _ = self.changes.send(Arc::new(changes));
        index
    }
    /// Stores resources as they are.
    pub async fn preload(&self, resources: Vec<Resource>) {
        let ops = resources.into_iter().map(|r| {
            let times = Some((r.creation_time, r.modification_time));
            Op::Put(Put { status: Some(r.status), times, ..Put::new(r.key, r.labels, r.spec) })
        });
        let id = self.new_id();
        self.propose(Command { id, ops: ops.collect() }).await.expect("a preload has no preconditions");
    }
}

#[async_trait]
impl Replicator for LocalReplicator {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        if let Some(e) = self.failures.lock().unwrap().pop() {
            return Err(e);
        }
        // As with a real store, others go on between the world that a write was built from and its application.
        tokio::task::yield_now().await;
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
        if !self.contact().is_recent() {
            return Err(ProposeError::Unavailable("no majority".into()));
        }
        Ok(self.world())
    }
    fn contact(&self) -> Contact {
        *self.contact.lock().unwrap()
    }
    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>> {
        self.changes.subscribe()
    }
    fn leadership(&self) -> watch::Receiver<bool> {
        self.leader.subscribe()
    }
    fn new_id(&self) -> [u8; 16] {
        let mut id = [0xee; 16];
        id[..8].copy_from_slice(&self.ids.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        id
    }
}

/// Knows one dataplane, `shown`; panics for `boom`.
pub struct FixedInspector;

#[async_trait]
impl ConfigInspector for FixedInspector {
    async fn config(&self, mesh: &str, name: &str, shadow: bool, include_diff: bool) -> Result<Value, InspectError> {
        match name {
            "shown" => Ok(serde_json::json!({"mesh": mesh, "shadow": shadow, "diff": include_diff})),
            "boom" => panic!("an inspector that fails"),
            _ => Err(InspectError::NotFound),
        }
    }
}

/// The API and its store.
pub struct App {
    pub store: Arc<LocalReplicator>,
    pub state: ApiState,
    pub router: Router,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("not JSON ({e}): {:?}", self.text))
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

pub const LOCAL: &str = "127.0.0.1:50000";
pub const REMOTE: &str = "192.0.2.7:50000";
pub const HOST: &str = "localhost:5681";

impl App {
    pub fn new(options: ApiOptions) -> App {
        App::of(options, |state| state)
    }
    pub fn of(options: ApiOptions, change: impl FnOnce(ApiState) -> ApiState) -> App {
        let store = LocalReplicator::new();
        let state = change(ApiState::new(store.clone(), Arc::new(FixedInspector), options));
        App { store, router: router(state.clone()), state }
    }
    /// A zone with everything that a control plane makes at start. The keys are made once for all tests of a binary.
    pub async fn started(options: ApiOptions) -> App {
        static OPS: OnceCell<Vec<Ensure>> = OnceCell::const_new();
        let o = DefaultsOptions {
            settings: options.managers(),
            skip_tenant_resources: false,
            skip_mesh_creation: false,
            skip_hostname_generators: false,
            user_tokens: true,
            bootstrap_admin_token: true,
        };
        let app = App::new(options);
        let all = OPS.get_or_try_init(|| async { ensure_defaults(&o, &World::empty(), ikada_api::now()).await }).await;
        for e in all.unwrap() {
            app.store.propose(Command { id: app.store.new_id(), ops: e.ops.clone() }).await.unwrap();
        }
        app
    }
    /// A request from this machine, with JSON when there is a body.
    pub async fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Answer {
        let headers: &[(&str, &str)] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        self.request(method, path, headers, body.unwrap_or_default().to_vec(), LOCAL).await
    }
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>, peer: &str) -> Answer {
        let mut rq = Request::builder().method(method).uri(path).header("host", HOST);
        for (k, v) in headers {
            rq = rq.header(*k, *v);
        }
        if !body.is_empty() {
            rq = rq.header("content-length", body.len());
        }
        let mut rq = rq.body(Body::from(body)).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        rq.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        let response = self.router.clone().oneshot(rq).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some(body.to_string().as_bytes())).await
    }
    /// A PUT that has to work.
    pub async fn store(&self, path: &str, body: &Value) {
        let a = self.put(path, body).await;
        assert!(matches!(StatusCode::from_u16(a.status), Ok(StatusCode::OK | StatusCode::CREATED)), "PUT {path}: {} {}", a.status, a.text);
    }
}

/// A folder beside the workspace, by environment variable or default place. `None` (with the reason printed) when it is absent; in CI
/// that is a failure.
pub fn shared(variable: &str, name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(name), PathBuf::from);
    // Worktrees lie one level deeper than the main checkout.
    let deeper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared").join(name);
    let found = [dir.clone(), deeper].into_iter().find(|d| d.is_dir());
    if found.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} does not exist", dir.display());
        println!("skipped: {} does not exist; set {variable}", dir.display());
    }
    found
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Documents of a YAML stream; empty ones are dropped.
pub fn yaml(text: &str) -> Vec<Value> {
    // One bundle has a key twice; the last one counts, as for the runner of the corpus.
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
    let docs: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).unwrap_or_else(|e| panic!("YAML: {e}\n{text}"));
    docs.into_iter().filter(|d| !d.is_null()).collect()
}

pub fn bundle(text: &str) -> Vec<Resource> {
    yaml(text).iter().map(|d| rest::from_value_verbatim(d).unwrap()).collect()
}

/// Blanks times.
pub fn mask(text: &str) -> String {
    let times = regex::Regex::new(r#"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d[^"]+"#).unwrap();
    times.replace_all(text, Timestamp::ZERO.to_string()).into_owned()
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
        (Value::Array(w), Value::Array(h)) => {
            if let Some(d) = w.iter().zip(h).enumerate().find_map(|(i, (a, b))| diff(a, b, &format!("{at}[{i}]"))) {
                return Some(d);
            }
            (w.len() != h.len()).then(|| format!("{at}: want {} elements, got {}", w.len(), h.len()))
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        (a, b) if a == b => None,
        (a, b) => Some(format!("{at}: want {a} got {b}")),
    }
}
