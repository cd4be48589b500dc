//! Streams that come, go and come back, with a real store behind them.

use super::*;
use async_trait::async_trait;
use ikada_api::managers;
use ikada_model::{Json, Labels, Resource};
use ikada_raft::{Options, RaftStore};
use ikada_world::{Change, Applied, ChangeSet, Command, Expect, Op, ProposeError, Put, World};
use ikada_xds::{CloseReason, Session, Source, StreamOpen, type_url};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{RwLock, broadcast};
use tokio_util::sync::CancellationToken;

/// A store that can be made to refuse writes, or to take its time.
struct Moody {
    inner: Arc<RaftStore>,
    refuses: AtomicBool,
    /// Proposals wait while a test holds it.
    gate: Arc<RwLock<()>>,
    waiting: AtomicUsize,
    _dir: tempfile::TempDir,
}

#[async_trait]
impl Replicator for Moody {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(ProposeError::Unavailable("test".into()));
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // On its way, whether somebody waits for it or not.
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        let write = tokio::spawn(async move {
            drop(gate.read().await);
            inner.propose(command).await
        });
        write.await.unwrap()
    }
    fn world(&self) -> Arc<World> {
        self.inner.world()
    }
    async fn linearizable(&self) -> Result<Arc<World>, ProposeError> {
        self.inner.linearizable().await
    }
    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>> {
        self.inner.subscribe()
    }
    fn leadership(&self) -> watch::Receiver<bool> {
        self.inner.leadership()
    }
    fn new_id(&self) -> [u8; 16] {
        self.inner.new_id()
    }
}

struct Bench {
    store: Arc<Moody>,
    proxies: Arc<Proxies>,
    streams: AtomicUsize,
}

fn resource(name: &str) -> Value {
    json!({"type": "Dataplane", "mesh": "default", "name": name, "networking": {"address": "127.0.0.1",
        "inbound": [{"port": 8080, "servicePort": 80, "tags": {"kuma.io/service": name}}]}})
}

impl Bench {
    async fn new(deregistration_delay: Duration) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let inner = RaftStore::open(Options::new(dir.path().join("data"))).await.unwrap();
        let store = Arc::new(Moody { inner, refuses: AtomicBool::new(false), gate: Arc::default(), waiting: AtomicUsize::new(0), _dir: dir });
        let insights = crate::config::Insights { deregistration_delay, ..crate::config::Config::load(None, [], &crate::config::Flags::default()).unwrap().0.insights };
        let options = ProxiesOptions {
            health: crate::config::Config::load(None, [], &crate::config::Flags::default()).unwrap().0.health,
            mode: Mode::Zone { federated: false },
            zone: "default".into(),
            instance_id: "here".into(),
            require_token: false,
            settings: Settings::default(),
            insights,
        };
        let proxies = Proxies::new(store.clone(), options, Arc::new(Metrics::default()));
        Bench { store, proxies, streams: AtomicUsize::new(0) }
    }
    async fn apply(&self, ops: Vec<Op>) {
        self.store.propose(Command { id: self.store.new_id(), ops }).await.unwrap();
    }
    async fn mesh(&self, spec: Value) {
        let put = Put { expect: Expect::Absent, ..Put::new(Key::new(Kind::Mesh, "", "default"), Labels::new(), Json::from_value(&spec)) };
        let settings = managers::Settings { mode: Mode::Zone { federated: false }, zone: "default".into(), unsafe_delete: false, create_mesh_routing_resources: false };
        let ops = managers::create_mesh(&settings, &self.store.world(), put, now()).await.unwrap();
        self.apply(ops).await;
    }
    async fn connect(&self, name: &str) -> session::ProxySession {
        self.connect_with(name, &json!({"dataplane.type": "dataplane", "dataplane.resource": resource(name).to_string()})).await
    }
    async fn connect_with(&self, name: &str, metadata: &Value) -> session::ProxySession {
        self.connect_to_with(&self.proxies, name, metadata).await
    }
    async fn connect_to(&self, proxies: &Arc<Proxies>, name: &str) -> session::ProxySession {
        self.connect_to_with(proxies, name, &json!({"dataplane.type": "dataplane", "dataplane.resource": resource(name).to_string()})).await
    }
    async fn connect_to_with(&self, proxies: &Arc<Proxies>, name: &str, metadata: &Value) -> session::ProxySession {
        use envoy_types::pb::google::protobuf::{Struct, Value as Pb, value::Kind};
        let fields = metadata.as_object().unwrap().iter().map(|(k, v)| (k.clone(), Pb { kind: Some(Kind::StringValue(v.as_str().unwrap().into())) }));
        let node = envoy_types::pb::envoy::config::core::v3::Node {
            id: format!("default.{name}"),
            metadata: Some(Struct { fields: fields.collect() }),
            ..Default::default()
        };
        let stream_id = self.streams.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        let open = StreamOpen { stream_id, node, credential: None, delta: true, peer: None, handle: StreamHandle::default() };
        ProxySource(proxies.clone()).open(open).await.unwrap()
    }
    fn proxy(&self, name: &str) -> Arc<Proxy> {
        self.proxies.connected(&self.id(name)).unwrap()
    }
    fn id(&self, name: &str) -> ProxyId {
        ProxyId { mesh: "default".into(), name: name.into() }
    }
    fn dataplane(&self, name: &str) -> Option<Arc<Resource>> {
        self.store.world().get(&self.id(name).dataplane()).cloned()
    }
    fn subscriptions(&self, name: &str) -> Vec<Value> {
        let world = self.store.world();
        let insight = world.get(&self.id(name).insight()).map(|i| i.spec.value().clone()).unwrap_or_default();
        insight["subscriptions"].as_array().cloned().unwrap_or_default()
    }
}

fn client_left() -> CloseReason {
    CloseReason::Client(String::new())
}

async fn eventually(what: &str, limit: Duration, check: impl Fn() -> bool) {
    let end = std::time::Instant::now() + limit;
    while !check() {
        assert!(std::time::Instant::now() < end, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const LIMIT: Duration = Duration::from_secs(20);

fn rotating(expiration: &str) -> Value {
    json!({"mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin", "dpCert": {"rotation": {"expiration": expiration}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_without_any_other_change() {
    let b = Bench::new(Duration::from_secs(3600)).await;
    b.mesh(rotating("4s")).await;
    let stop = CancellationToken::new();
    let reconcile = tokio::spawn(b.proxies.clone().run_reconcile(stop.clone()));
    let session = b.connect("web").await;
    let snapshots = session.snapshots();
    let certificate = || {
        let snapshot = snapshots.borrow().clone()?;
        let entry = snapshot.typed(type_url::SECRET)?.get("identity_cert:secret:default")?.encoded.clone();
        Some(entry.body.clone())
    };
    eventually("the first certificate", LIMIT, || certificate().is_some()).await;
    let (first, at) = (certificate(), std::time::Instant::now());
    let index = b.store.world().index();
    eventually("another one", LIMIT, || certificate() != first).await;
    // Certificates end at a whole second.
    let life = Duration::from_millis(2_400)..Duration::from_secs(4);
    assert!(life.contains(&(at.elapsed() + Duration::from_millis(300))), "after 4/5 of its life: {:?}", at.elapsed());
    assert_eq!(b.store.world().index(), index, "nothing else happened");

    // The dataplane goes while the proxy stays: the due certificate cannot be renewed, and that must keep nobody busy.
    b.apply(vec![Op::Delete { key: b.id("web").dataplane(), expect: Expect::Any }]).await;
    let before = certificate();
    eventually("it is due", LIMIT, || b.proxy("web").state.lock().renewal_retry.is_some()).await;
    let due = b.proxies.mark_due_certificates();
    assert!(due.is_some_and(|at| at > SystemTime::now() + Duration::from_secs(2)), "looked at again after a pause: {due:?}");
    assert_eq!(certificate(), before, "nothing is taken away");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(2), reconcile).await.expect("it stops").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_off_and_on_again() {
    let b = Bench::new(Duration::from_secs(3600)).await;
    b.mesh(rotating("1h")).await;
    let stop = CancellationToken::new();
    let reconcile = tokio::spawn(b.proxies.clone().run_reconcile(stop.clone()));
    let session = b.connect("web").await;
    let snapshots = session.snapshots();
    let secrets = || snapshots.borrow().clone().map(|s| s.typed(type_url::SECRET).map_or(0, |t| t.len()));
    eventually("secrets", LIMIT, || secrets() == Some(2)).await;
    let mesh = |spec: &Value| Op::Put(Put::new(Key::new(Kind::Mesh, "", "default"), Labels::new(), Json::from_value(spec)));
    b.apply(vec![mesh(&json!({}))]).await;
    eventually("no secrets", LIMIT, || secrets() == Some(0)).await;
    assert!(b.proxy("web").state.lock().mtls.is_none());
    b.apply(vec![mesh(&rotating("1h"))]).await;
    eventually("secrets again", LIMIT, || secrets() == Some(2)).await;
    stop.cancel();
    reconcile.await.unwrap();
}

#[tokio::test]
async fn the_last_insight_of_a_stream_waits_for_a_store_that_takes_it() {
    let b = Bench::new(Duration::from_secs(3600)).await;
    b.mesh(json!({})).await;
    let session = b.connect("web").await;
    b.proxies.flush_insights().await;
    assert!(b.subscriptions("web")[0].get("disconnectTime").is_none());

    b.store.refuses.store(true, Ordering::Relaxed);
    session.closed(&client_left());
    b.proxies.flush_insights().await;
    // It comes back meanwhile: both streams are told, the open one last.
    let again = b.connect("web").await;
    b.proxies.flush_insights().await;
    b.store.refuses.store(false, Ordering::Relaxed);
    b.proxies.flush_insights().await;
    let all = b.subscriptions("web");
    let open: Vec<_> = all.iter().map(|s| s.get("disconnectTime").is_none()).collect();
    assert_eq!(open, [false, true], "{all:?}");

    again.closed(&client_left());
    b.proxies.flush_insights().await;
    let all = b.subscriptions("web");
    assert!(all.iter().all(|s| s.get("disconnectTime").is_some()), "{all:?}");
    assert!(b.proxies.departed.lock().is_empty());
}

#[tokio::test]
async fn a_thousand_insights_are_one_entry() {
    let b = Bench::new(Duration::from_secs(3600)).await;
    b.mesh(json!({})).await;
    // As large as that of a proxy that reconnected once, with the metadata that it sends.
    let subscription = |n: usize| {
        json!({"id": format!("{n:032}"), "controlPlaneInstanceId": "here-1234-abcd", "connectTime": "2026-01-01T00:00:00.000000000Z",
            "status": {"total": {"responsesSent": "8", "responsesAcknowledged": "8"}, "cds": {"responsesSent": "2"}, "eds": {"responsesSent": "2"}},
            "version": {"kumaDp": {"version": "2.14.3", "gitTag": "v2.14.3", "buildDate": "2026-01-01", "kumaCpCompatible": true},
                "envoy": {"version": "1.36.2", "build": "0123456789abcdef0123456789abcdef01234567/1.36.2/Clean/RELEASE/BoringSSL"}}})
    };
    let dataplanes = (0..1000).map(|n| Op::Put(Put::new(b.id(&format!("web-{n}")).dataplane(), Labels::new(), Json::from_value(&json!({})))));
    b.apply(dataplanes.collect()).await;
    let put = |n: usize| {
        let id = b.id(&format!("web-{n}"));
        let spec = Json::from_value(&json!({"subscriptions": [subscription(n), subscription(n + 1)]}));
        (Op::Put(Put { owner: Some(id.dataplane()), ..Put::new(id.insight(), Labels::new(), spec) }), Vec::new())
    };
    let before = b.store.world();
    assert!(b.proxies.write_insights((0..1000).map(put).collect()).await.is_empty());
    let after = b.store.world();
    assert_eq!(after.list(Kind::DataplaneInsight).count(), 1000);
    assert_eq!(after.index() - before.index(), 1, "one entry");
    assert_eq!(after.revision(), before.revision(), "which is none of policy state");
    assert_eq!(after.status_revision(), after.index());
}

#[tokio::test]
async fn insights_that_do_not_fit_into_one_entry_are_written_in_several() {
    let b = Bench::new(Duration::from_secs(3600)).await;
    b.mesh(json!({})).await;
    let mut sessions = Vec::new();
    for n in 0..6 {
        let name = format!("web-{n}");
        let metadata = json!({"dataplane.type": "dataplane", "dataplane.resource": resource(&name).to_string(), "note": "x".repeat(700_000)});
        sessions.push(b.connect_with(&name, &metadata).await);
    }
    // One alone is larger than an entry may be, and holds up nobody.
    let metadata = json!({"dataplane.type": "dataplane", "dataplane.resource": resource("huge").to_string(), "note": "x".repeat(3_000_000)});
    sessions.push(b.connect_with("huge", &metadata).await);
    // The dataplane of one goes at the same moment.
    let world = b.store.world();
    b.apply(vec![Op::Delete { key: b.id("web-3").dataplane(), expect: Expect::Any }]).await;
    let dirty = b.proxies.take_dirty_insights();
    let puts = dirty.iter().map(|s| (b.proxies.insight_put(&world, &s[0].id, s), s.clone())).collect();
    assert!(b.proxies.write_insights(puts).await.is_empty());
    let written: Vec<_> = (0..6).filter(|n| !b.subscriptions(&format!("web-{n}")).is_empty()).collect();
    assert_eq!(written, [0, 1, 2, 4, 5]);
    assert!(b.subscriptions("huge").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataplane_made_again_has_an_insight_again() {
    let b = Bench::new(Duration::from_secs(3600)).await;
    b.mesh(json!({})).await;
    let stop = CancellationToken::new();
    let reconcile = tokio::spawn(b.proxies.clone().run_reconcile(stop.clone()));
    let _session = b.connect("web").await;
    b.proxies.flush_insights().await;
    let stored = b.dataplane("web").unwrap();
    b.apply(vec![Op::Delete { key: stored.key.clone(), expect: Expect::Any }]).await;
    assert!(b.subscriptions("web").is_empty(), "it went with its dataplane");
    eventually("settled", LIMIT, || !b.proxy("web").state.lock().insight_dirty || { b.proxy("web").state.lock().insight_dirty = false; false }).await;
    b.apply(vec![Op::Put(Put::new(stored.key.clone(), stored.labels.clone(), stored.spec.clone()))]).await;
    eventually("marked", LIMIT, || b.proxy("web").state.lock().insight_dirty).await;
    b.proxies.flush_insights().await;
    assert_eq!(b.subscriptions("web").len(), 1);
    stop.cancel();
    reconcile.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_left_is_deregistered_also_when_the_store_refuses_at_first() {
    let b = Bench::new(Duration::from_millis(10)).await;
    b.mesh(json!({})).await;
    let session = b.connect("web").await;
    b.proxies.flush_insights().await;
    b.store.refuses.store(true, Ordering::Relaxed);
    session.closed(&client_left());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(b.dataplane("web").is_some());
    b.store.refuses.store(false, Ordering::Relaxed);
    eventually("deregistered", LIMIT, || b.dataplane("web").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_comes_back_during_its_deregistration_registers_again() {
    let b = Bench::new(Duration::ZERO).await;
    b.mesh(json!({})).await;
    let session = b.connect("web").await;
    let closed = b.store.gate.write().await;
    let waiting = b.store.waiting.load(Ordering::Relaxed);
    session.closed(&client_left());
    eventually("the deletion is on its way", LIMIT, || b.store.waiting.load(Ordering::Relaxed) > waiting).await;
    // Its dataplane is still there and as it should be: nothing to register.
    let back = b.connect("web").await;
    let proxy = b.proxy("web");
    assert!(!proxy.handle.is_ended());
    drop(closed);
    eventually("the stream ends", LIMIT, || proxy.handle.is_ended()).await;
    back.closed(&client_left());
    let _third = b.connect("web").await;
    assert!(b.dataplane("web").is_some() && !b.proxy("web").handle.is_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_nobody_waits_for_is_undone() {
    let b = Bench::new(Duration::ZERO).await;
    b.mesh(json!({})).await;
    let closed = b.store.gate.write().await;
    // The client goes away while its dataplane is being written.
    assert!(tokio::time::timeout(Duration::from_millis(50), b.connect("web")).await.is_err());
    drop(closed);
    eventually("written all the same", LIMIT, || b.dataplane("web").is_some()).await;
    eventually("undone", LIMIT, || b.dataplane("web").is_none()).await;
}

#[tokio::test]
async fn a_stop_closes_every_subscription_and_deregisters_nobody() {
    let b = Bench::new(Duration::ZERO).await;
    b.mesh(json!({})).await;
    let (one, _two) = (b.connect("one").await, b.connect("two").await);
    let stop = CancellationToken::new();
    stop.cancel();
    b.proxies.begin_stop();
    one.closed(&client_left());
    let late = b.connect("late").await;
    assert!(b.proxy("late").handle.is_ended(), "a stream that begins during the stop ends");
    // The stream of "two" has not come to its end yet.
    b.proxies.clone().run_insights(stop).await;
    for name in ["one", "two", "late"] {
        assert!(b.subscriptions(name)[0].get("disconnectTime").is_some(), "{name}");
        assert!(b.dataplane(name).is_some(), "{name}");
    }
    drop(late);
}

#[tokio::test]
async fn insights_of_a_control_plane_that_is_gone_are_closed() {
    let b = Bench::new(Duration::ZERO).await;
    b.mesh(json!({})).await;
    let (_one, _two) = (b.connect("one").await, b.connect("two").await);
    b.proxies.flush_insights().await;
    // A crash: nothing was closed. One of the proxies comes back.
    let insights = crate::config::Insights { idle_timeout: Duration::from_millis(100), ..b.proxies.options.insights.clone() };
    let options = ProxiesOptions { instance_id: "later".into(), insights, ..b.proxies.options.clone() };
    let later = Proxies::new(b.store.clone(), options, Arc::new(Metrics::default()));
    let b = Bench { proxies: later, ..b };
    let _back = b.connect("two").await;
    b.proxies.flush_insights().await;
    let stop = CancellationToken::new();
    b.store.refuses.store(true, Ordering::Relaxed);
    let finalizer = tokio::spawn(b.proxies.clone().run_finalizer(|_, _| BTreeSet::new(), stop.clone()));
    tokio::time::sleep(Duration::from_millis(250)).await;
    b.store.refuses.store(false, Ordering::Relaxed);
    eventually("closed", LIMIT, || b.subscriptions("one").iter().all(|s| s.get("disconnectTime").is_some())).await;
    let two = b.subscriptions("two");
    assert_eq!(two.iter().filter(|s| s.get("disconnectTime").is_none()).count(), 1, "{two:?}");
    assert!(two.last().is_some_and(|s| s["controlPlaneInstanceId"] == "later" && s.get("disconnectTime").is_none()), "{two:?}");
    stop.cancel();
    finalizer.await.unwrap();
}

/// Two nodes of a cluster, over one store.
#[tokio::test]
async fn nodes_do_not_undo_each_others_insights() {
    let here = Bench::new(Duration::from_secs(60)).await;
    here.mesh(json!({})).await;
    let options = ProxiesOptions { instance_id: "there".into(), ..here.proxies.options.clone() };
    let there = Proxies::new(here.store.clone(), options, Arc::new(Metrics::default()));
    let open = |subscriptions: &[Value]| {
        let open = subscriptions.iter().filter(|s| s.get("disconnectTime").is_none());
        open.map(|s| s["controlPlaneInstanceId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // The proxy moves from here to there, and this node does not notice yet: its stream hangs.
    let hanging = here.connect("web").await;
    here.proxies.flush_insights().await;
    assert_eq!(open(&here.subscriptions("web")), ["here"]);
    let stale = here.store.world();
    let moved = here.connect_to(&there, "web").await;
    there.flush_insights().await;
    assert_eq!(open(&here.subscriptions("web")), ["there"], "the new stream closed the one before");
    here.proxy("web").state.lock().insight_dirty = true;
    here.proxies.flush_insights().await;
    let both = here.subscriptions("web");
    assert_eq!((open(&both).contains(&"there".to_owned()), both.last().unwrap()["controlPlaneInstanceId"].as_str()), (true, Some("there")), "{both:?}");
    // A write that was built on an older world is not taken; it is built again.
    let late = here.proxies.insight_put(&stale, &here.id("web"), &[here.proxy("web")]);
    let unwritten = here.proxies.write_insights(vec![(late, vec![here.proxy("web")])]).await;
    assert_eq!((unwritten.len(), here.subscriptions("web")), (1, both));
    hanging.closed(&client_left());
    here.proxies.flush_insights().await;
    let all = here.subscriptions("web");
    assert_eq!((open(&all), all.last().unwrap()["controlPlaneInstanceId"].as_str()), (vec!["there".to_owned()], Some("there")), "{all:?}");

    // The leader closes nothing of a node that lives, whoever leads.
    let stop = CancellationToken::new();
    let living = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    here.proxies.finalize(&here.store.world(), &living(&["here", "there"]), &stop).await;
    assert_eq!(here.subscriptions("web"), all);
    here.proxies.finalize(&here.store.world(), &living(&["here"]), &stop).await;
    assert!(open(&here.subscriptions("web")).is_empty());
    // It was a partition: the node comes back and says that its stream is open.
    let mut bus = here.store.subscribe();
    here.proxies.finalize(&here.store.world(), &living(&["here"]), &stop).await;
    assert!(bus.try_recv().is_err(), "closed once");
    let insight = here.store.world().get(&here.id("web").insight()).cloned();
    there.defend_insight(&Change { before: None, after: insight });
    there.flush_insights().await;
    assert_eq!(open(&here.subscriptions("web")), ["there"]);
    drop(moved);
}

#[tokio::test]
async fn meshes_that_do_not_exist_leave_nothing_in_the_key_cache() {
    let b = Bench::new(Duration::ZERO).await;
    b.mesh(json!({})).await;
    let world = b.store.world();
    let dataplane = Resource::new(b.id("web").dataplane(), Json::default());
    let cache = auth::KeyCache::default();
    for n in 0..100 {
        let id = ProxyId { mesh: format!("m{n}").into(), name: "web".into() };
        assert!(cache.authenticate(&world, &id, &dataplane, Some("x")).is_err());
    }
    assert_eq!(cache.len(), 0);
    cache.authenticate(&world, &b.id("web"), &dataplane, Some("x")).unwrap_err();
    assert_eq!(cache.len(), 1);
}
