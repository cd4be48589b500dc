//! The stream of changes.

use crate::common::{App, HOST, LOCAL, REMOTE};
use axum::{body::Body, extract::ConnectInfo};
use http::Request;
use http_body_util::BodyExt;
use ikada_api::ApiOptions;
use ikada_model::{Json, Key, Kind, Labels};
use ikada_world::{Contact, Expect, Op, Put};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(30);

fn put(kind: Kind, mesh: &str, name: &str, x: u64) -> Op {
    Op::Put(Put::new(Key::new(kind, mesh, name), Labels::new(), Json::from_value(&json!({"x": x}))))
}
fn delete(kind: Kind, mesh: &str, name: &str) -> Op {
    Op::Delete { key: Key::new(kind, mesh, name), expect: Expect::Any }
}
fn app() -> App {
    let app = App::new(ApiOptions { watch_heartbeat: Duration::from_millis(20), ..ApiOptions::default() });
    app.store.apply(vec![put(Kind::Mesh, "", "default", 0), put(Kind::Secret, "default", "s", 0)]);
    app
}

/// One event, or a comment (`name` is then empty).
#[derive(Debug)]
struct Event {
    name: String,
    id: Option<u64>,
    data: Value,
}

impl Event {
    fn short(&self) -> String {
        let part = |k: &str| self.data[k].as_str().unwrap_or("").to_owned();
        format!("{} {}/{}{}", self.name, part("type"), part("name"), if self.id.is_some() { " id" } else { "" })
    }
}

struct Stream {
    body: Body,
    text: String,
}

impl Stream {
    async fn open(app: &App, path: &str, last: Option<u64>) -> Stream {
        let (status, stream) = Stream::try_open(app, path, last, LOCAL).await;
        assert_eq!(status, 200);
        stream
    }
    async fn try_open(app: &App, path: &str, last: Option<u64>, peer: &str) -> (u16, Stream) {
        let mut rq = Request::builder().uri(path).header("host", HOST);
        if let Some(last) = last {
            rq = rq.header("last-event-id", last.to_string());
        }
        let mut rq = rq.body(Body::empty()).unwrap();
        rq.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        let response = app.router.clone().oneshot(rq).await.unwrap();
        if response.status() == 200 {
            assert_eq!(response.headers()["content-type"], "text/event-stream");
        }
        (response.status().as_u16(), Stream { body: response.into_body(), text: String::new() })
    }
    /// The next event or comment; `None` when the stream has ended.
    async fn raw(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let mut e = Event { name: String::new(), id: None, data: Value::Null };
                for line in block.lines() {
                    match line.split_once(": ").unwrap_or_else(|| panic!("{line:?}")) {
                        ("event", v) => e.name = v.to_owned(),
                        ("id", v) => e.id = Some(v.parse().unwrap()),
                        ("data", v) => e.data = serde_json::from_str(v).unwrap(),
                        ("", "alive") | ("retry", "1000") => {}
                        other => panic!("{other:?}"),
                    }
                }
                self.text = rest.to_owned();
                return Some(e);
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.expect("a stream that lives")?;
            let bytes = frame.unwrap().into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    async fn next(&mut self) -> Event {
        loop {
            let e = self.raw().await.expect("an event");
            if !e.name.is_empty() {
                return e;
            }
        }
    }
    async fn take(&mut self, n: usize) -> Vec<String> {
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(self.next().await.short());
        }
        out
    }
}

#[tokio::test]
async fn a_snapshot_then_changes_and_the_id_comes_last() {
    let app = app();
    app.store.apply(vec![put(Kind::Dataplane, "default", "a", 1), put(Kind::Dataplane, "other", "b", 1)]);
    let mut s = Stream::open(&app, "/_watch?kinds=Mesh,dataplanes&mesh=default", None).await;
    assert_eq!(s.take(3).await, ["sync Mesh/default", "sync Dataplane/a", "synced / id"]);
    app.store.apply(vec![put(Kind::Dataplane, "other", "b", 2), put(Kind::Secret, "default", "s", 2)]);
    let index = app.store.apply(vec![put(Kind::Dataplane, "default", "a", 2), delete(Kind::Dataplane, "default", "a"), put(Kind::Dataplane, "default", "c", 1)]);
    let first = s.next().await;
    assert_eq!((first.id, first.data["revision"].as_u64()), (None, Some(index)));
    assert_eq!(first.data["resource"]["x"], 2, "what it was then, although it is gone by now");
    assert_eq!(first.data["mesh"], "default");
    assert_eq!(s.take(2).await, ["delete Dataplane/a", "put Dataplane/c id"]);
    // The body is that of REST.
    app.store.apply(vec![put(Kind::Dataplane, "default", "d", 5)]);
    let e = s.next().await;
    assert_eq!(e.data["resource"], app.get("/meshes/default/dataplanes/d").await.json());
}

#[tokio::test]
async fn who_comes_back_misses_nothing() {
    let app = app();
    let mut s = Stream::open(&app, "/_watch?kinds=Dataplane", None).await;
    let synced = s.next().await;
    let index = app.store.apply(vec![put(Kind::Dataplane, "default", "a", 1), put(Kind::Dataplane, "default", "b", 1)]);
    // Half of an entry was read: all of it comes again.
    assert_eq!(s.take(1).await, ["put Dataplane/a"]);
    drop(s);
    app.store.apply(vec![delete(Kind::Dataplane, "default", "a")]);
    let mut s = Stream::open(&app, "/_watch?kinds=Dataplane", synced.id).await;
    assert_eq!(s.take(3).await, ["put Dataplane/a", "put Dataplane/b id", "delete Dataplane/a id"]);
    // Also by index; and what a browser sends goes before it.
    let mut s = Stream::open(&app, &format!("/_watch?kinds=Dataplane&index={index}"), None).await;
    assert_eq!(s.take(1).await, ["delete Dataplane/a id"]);
    let mut s = Stream::open(&app, "/_watch?kinds=Dataplane&index=1", Some(index)).await;
    assert_eq!(s.take(1).await, ["delete Dataplane/a id"]);
    // The id moves on while nothing of interest happens.
    let mut s = Stream::open(&app, "/_watch?kinds=Dataplane", Some(index)).await;
    s.next().await;
    let other = app.store.apply(vec![put(Kind::Secret, "default", "s", 1)]);
    while s.raw().await.unwrap().id != Some(other) {}
}

#[tokio::test]
async fn what_is_not_known_any_more_is_said() {
    let app = app();
    let mut s = Stream::open(&app, "/_watch?kinds=Mesh", None).await;
    assert_eq!(s.take(2).await, ["sync Mesh/default", "synced / id"]);
    // More than the bus holds, before anybody can take it.
    app.store.apply(vec![put(Kind::Mesh, "", "m", 0)]);
    for i in 0..1500 {
        app.store.apply(vec![put(Kind::Secret, "default", "s", i)]);
    }
    let e = s.next().await;
    assert!(e.name == "resync" && e.id.is_none() && e.data["reason"].as_str().unwrap().contains("not all known"), "{e:?}");
    assert_eq!(s.take(3).await, ["sync Mesh/default", "sync Mesh/m", "synced / id"]);
    app.store.apply(vec![delete(Kind::Mesh, "", "m")]);
    assert_eq!(s.take(1).await, ["delete Mesh/m id"]);
    // A revision that this cluster never had.
    let mut s = Stream::open(&app, "/_watch?kinds=Mesh&index=1000000", None).await;
    let e = s.next().await;
    assert!(e.name == "resync" && e.data["reason"].as_str().unwrap().contains("ahead"), "{e:?}");
    assert_eq!(s.take(2).await, ["sync Mesh/default", "synced / id"]);
}

#[tokio::test]
async fn secrets_are_for_those_who_may_read_them() {
    let app = app();
    app.store.apply(vec![put(Kind::Config, "", "internal", 1)]);
    let (status, _) = Stream::try_open(&app, "/_watch?kinds=Secret", None, REMOTE).await;
    assert_eq!(status, 403);
    let (_, mut s) = Stream::try_open(&app, "/_watch", None, REMOTE).await;
    assert_eq!(s.take(2).await, ["sync Mesh/default", "synced / id"]);
    app.store.apply(vec![put(Kind::Secret, "default", "s", 3), put(Kind::Config, "", "internal", 2), put(Kind::Mesh, "", "m", 1)]);
    assert_eq!(s.take(1).await, ["put Mesh/m id"]);
    let mut s = Stream::open(&app, "/_watch", None).await;
    assert_eq!(s.take(4).await, ["sync Mesh/default", "sync Mesh/m", "sync Secret/s", "synced / id"]);
    for (query, status) in [("kinds=Nothing", 400), ("kinds=Config", 400), ("kinds=ServiceInsight", 400), ("kinds=Zone&mesh=m", 400), ("index=x", 400)] {
        assert_eq!(Stream::try_open(&app, &format!("/_watch?{query}"), None, LOCAL).await.0, status, "{query}");
    }
    assert_eq!(app.request("GET", "/_watch", &[("last-event-id", "x")], vec![], LOCAL).await.status, 400);
}

#[tokio::test]
async fn status_is_shown_with_its_resource() {
    let app = app();
    app.store.apply(vec![put(Kind::MeshService, "default", "web", 1)]);
    let mut s = Stream::open(&app, "/_watch?kinds=MeshService,DataplaneInsight", None).await;
    assert_eq!(s.take(2).await, ["sync MeshService/web", "synced / id"]);
    let status = Json::from_value(&json!({"dataplaneProxies": {"total": 4}}));
    app.store.apply(vec![Op::Status { key: Key::new(Kind::MeshService, "default", "web"), status }, put(Kind::DataplaneInsight, "default", "d", 1)]);
    let e = s.next().await;
    assert_eq!((e.short().as_str(), &e.data["resource"]["status"]["dataplaneProxies"]["total"]), ("put MeshService/web", &json!(4)));
    assert_eq!(s.take(1).await, ["put DataplaneInsight/d id"]);
    app.store.apply(vec![delete(Kind::MeshService, "default", "web")]);
    assert_eq!(s.take(1).await, ["delete MeshService/web id"], "once, although its status goes too");
}

#[tokio::test]
async fn streams_end_with_the_node_its_contact_and_their_client() {
    let stop = CancellationToken::new();
    let app = App::of(ApiOptions { waiters: 1, watch_heartbeat: Duration::from_millis(20), ..ApiOptions::default() }, |state| state.until(stop.clone()));
    let s = Stream::open(&app, "/_watch", None).await;
    assert_eq!(Stream::try_open(&app, "/_watch", None, LOCAL).await.0, 429);
    drop(s);
    // Its place is free again as soon as its task was told.
    let mut s = loop {
        tokio::task::yield_now().await;
        let (status, s) = Stream::try_open(&app, "/_watch", None, LOCAL).await;
        if status == 200 {
            break s;
        }
    };
    *app.store.contact.lock().unwrap() = Contact { leader: None, since: None, lease: Duration::from_millis(600) };
    while s.raw().await.is_some() {}
    *app.store.contact.lock().unwrap() = Contact::ALONE;
    let mut s = Stream::open(&app, "/_watch", None).await;
    stop.cancel();
    while s.raw().await.is_some() {}
}

/// Repeatable random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What a client makes of the events.
#[derive(Default)]
struct Client {
    state: BTreeMap<(String, String, String), Value>,
    last: Option<u64>,
    resyncs: usize,
}

impl Client {
    fn take(&mut self, e: &Event) {
        let part = |k: &str| e.data[k].as_str().unwrap_or("").to_owned();
        let key = (part("type"), part("mesh"), part("name"));
        match e.name.as_str() {
            "resync" => {
                self.resyncs += 1;
                self.state.clear();
            }
            "sync" | "put" => {
                self.state.insert(key, e.data["resource"].clone());
            }
            "delete" => {
                self.state.remove(&key);
            }
            "synced" | "" => {}
            other => panic!("{other}"),
        }
        self.last = e.id.or(self.last);
    }
    async fn open(&mut self, app: &App) -> Stream {
        if self.last.is_none() {
            self.state.clear();
        }
        Stream::open(app, "/_watch?kinds=Mesh,Dataplane,DataplaneInsight,MeshService", self.last).await
    }
}

fn random_op(r: &mut Random, meshes: &[&str]) -> Op {
    let mesh = meshes[r.below(meshes.len() as u64) as usize];
    let name = format!("n{}", r.below(6));
    let kind = [Kind::Dataplane, Kind::DataplaneInsight, Kind::MeshService, Kind::Secret][r.below(4) as usize];
    match r.below(10) {
        0..=4 => put(kind, mesh, &name, r.below(1000)),
        5 => {
            let status = Json::from_value(&json!({"x": r.below(1000)}));
            Op::Status { key: Key::new(Kind::MeshService, mesh, &name), status }
        }
        6..=8 => delete(kind, mesh, &name),
        // Takes everything in it along.
        _ => delete(Kind::Mesh, "", mesh),
    }
}

#[tokio::test]
async fn whoever_comes_back_at_random_sees_exactly_what_is() {
    let (mut resumed, mut resyncs) = (0, 0);
    for seed in 0..30 {
        let mut r = Random(seed);
        let app = app();
        let mut client = Client::default();
        let mut stream = client.open(&app).await;
        for _ in 0..40 {
            match r.below(12) {
                0..=5 => {
                    let mut ops: Vec<Op> = (0..=r.below(4)).map(|_| random_op(&mut r, &["default", "other"])).collect();
                    if r.below(3) == 0 {
                        let owner = Some(Key::new(Kind::Mesh, "", "default"));
                        let dataplane = Put::new(Key::new(Kind::Dataplane, "default", "owned"), Labels::new(), Json::from_value(&json!({"x": r.below(9)})));
                        ops.extend([put(Kind::Mesh, "", "default", r.below(9)), Op::Put(Put { owner, ..dataplane })]);
                    }
                    app.store.apply(ops);
                }
                6..=8 => {
                    for _ in 0..r.below(8) {
                        client.take(&stream.raw().await.unwrap());
                    }
                }
                9 | 10 => {
                    resumed += 1;
                    drop(stream);
                    stream = client.open(&app).await;
                }
                _ if r.below(6) == 0 => {
                    for _ in 0..1100 {
                        app.store.apply(vec![random_op(&mut r, &["default"])]);
                    }
                }
                _ => tokio::task::yield_now().await,
            }
        }
        let end = app.store.apply(vec![put(Kind::Mesh, "", "end", seed)]);
        while client.last.is_none_or(|last| last < end) {
            client.take(&stream.raw().await.unwrap());
        }
        let mut want = BTreeMap::new();
        for path in ["/meshes", "/dataplanes", "/dataplane-insights", "/meshservices"] {
            let a = app.get(&format!("{path}?size=1000")).await.json();
            for item in a["items"].as_array().unwrap() {
                let part = |k: &str| item[k].as_str().unwrap_or("").to_owned();
                want.insert((part("type"), part("mesh"), part("name")), item.clone());
            }
        }
        assert_eq!(client.state, want, "seed {seed}");
        resyncs += client.resyncs;
    }
    assert!(resumed > 80 && resyncs > 8, "{resumed} {resyncs}: both were tried");
}
