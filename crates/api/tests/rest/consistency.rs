//! Read levels, and requests that wait for a change.

use crate::common::{Answer, App, LOCAL};
use ikada_api::{ApiOptions, DEFAULT_WAIT, MAX_WAIT};
use ikada_model::{Json, Key, Kind, Labels};
use ikada_world::{Contact, Expect, Op, Put};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn put(kind: Kind, mesh: &str, name: &str) -> Op {
    Op::Put(Put::new(Key::new(kind, mesh, name), Labels::new(), Json::from_value(&json!({"networking": {}}))))
}
fn app() -> Arc<App> {
    let app = App::new(ApiOptions::default());
    let mesh = Put::new(Key::new(Kind::Mesh, "", "default"), Labels::new(), Json::from_value(&json!({"meshServices": {"mode": "Exclusive"}})));
    app.store.apply(vec![Op::Put(mesh), put(Kind::Dataplane, "default", "a"), put(Kind::Zone, "", "z")]);
    Arc::new(app)
}
async fn at(app: &App, path: &str, level: &str) -> Answer {
    app.request("GET", path, &[("ikada-read", level)], vec![], LOCAL).await
}
fn ask(app: &Arc<App>, path: String) -> JoinHandle<Answer> {
    let app = app.clone();
    tokio::spawn(async move { app.get(&path).await })
}
/// Returns when so many requests wait.
async fn waiting(app: &App, n: usize) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while app.state.waiting() != n {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} requests wait, not {n}", app.state.waiting()));
}
/// Lets everything run that can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
fn revision(a: &Answer) -> u64 {
    a.header("ikada-revision").parse().unwrap()
}

const READS: &[&str] = &[
    "/meshes",
    "/meshes/default",
    "/meshes/default/dataplanes",
    "/meshes/default/dataplanes/a",
    "/meshes/default/dataplanes/_overview",
    "/meshes/default/dataplanes/a/_overview",
    "/dataplanes",
    "/zones/_overview",
    "/_kri/kri_m____default_",
    "/meshes/default/meshtimeouts/x/_resources/dataplanes",
    "/meshes/default/dataplanes/a/_policies",
    "/meshes/default/dataplanes/a/_rules",
    "/meshes/default/dataplanes/shown/_config",
    "/meshes/default/meshservices/x/_hostnames",
];

#[tokio::test]
async fn levels() {
    let app = app();
    let ok = |a: &Answer| a.status == 200 || a.status == 404;
    for path in READS {
        for level in ["linearizable", "local", "stale", " local "] {
            let a = at(&app, path, level).await;
            assert!(ok(&a), "{path} {level}: {} {}", a.status, a.text);
            assert!(revision(&a) > 0);
            let contact = if level == "linearizable" { ("", "") } else { ("0", "true") };
            assert_eq!((a.header("ikada-last-contact"), a.header("ikada-known-leader")), contact, "{path} {level}");
        }
        let a = at(&app, path, "fresh").await;
        assert_eq!((a.status, a.json()["detail"].as_str().unwrap()), (400, "bad request: the header Ikada-Read must be one of linearizable, local, stale"));
    }
    // Cut off, within the lease and beyond it.
    let lease = Duration::from_millis(600);
    for (since, local) in [(Some(Duration::from_millis(700)), 503), (None, 503), (Some(Duration::from_millis(600)), 200)] {
        *app.store.contact.lock().unwrap() = Contact { leader: Some(3), since, lease };
        for path in READS {
            let a = at(&app, path, "local").await;
            assert!(if local == 200 { ok(&a) } else { a.status == 503 }, "{path} {since:?}: {} {}", a.status, a.text);
            let a = at(&app, path, "stale").await;
            assert!(ok(&a), "{path}: {} {}", a.status, a.text);
            let age = since.map_or_else(|| "unknown".to_owned(), |s| s.as_millis().to_string());
            assert_eq!((a.header("ikada-last-contact"), a.header("ikada-known-leader")), (age.as_str(), "true"));
            if local == 503 {
                assert_eq!(app.get(path).await.status, 503, "linearizable is the default");
            }
        }
    }
    *app.store.contact.lock().unwrap() = Contact { leader: None, since: Some(Duration::from_millis(100)), lease };
    let a = at(&app, "/meshes", "local").await;
    let want = "this node knows no leader and was in contact with one 100 ms ago: ask another node, or take what this one has with Ikada-Read: stale";
    assert_eq!((a.status, a.json()["detail"].as_str().unwrap(), a.header("ikada-known-leader")), (503, want, "false"));
    // Is there a control plane? Also without a leader; unless more is asked.
    assert_eq!(app.get("/").await.status, 200);
    assert_eq!((at(&app, "/", "local").await.status, at(&app, "/", "linearizable").await.status, at(&app, "/", "stale").await.status), (503, 503, 200));
}

#[tokio::test]
async fn what_is_no_index_or_wait_is_refused() {
    let app = app();
    for (query, detail) in [
        ("index=", "\"index\" must be a number"),
        ("index=-1", "\"index\" must be a number"),
        ("index=x", "\"index\" must be a number"),
        ("index=99999999999999999999", "\"index\" must be a number"),
        ("index=1&wait=soon", "\"wait\" must be a duration"),
        ("index=1&wait=-1s", "\"wait\" must be a duration"),
        ("wait=1s", "\"wait\" needs \"index\""),
    ] {
        let a = app.get(&format!("/meshes?{query}")).await;
        assert!(a.status == 400 && a.text.contains(&detail.replace('"', "\\\"")), "{query}: {} {}", a.status, a.text);
    }
    assert_eq!(app.get("/policies?index=1").await.status, 400);
    // What is wrong anyway is said at once.
    for (path, status) in [("/meshes?size=0&index=99", 400), ("/meshes/default?format=x&index=99", 400), ("/meshes/default/service-insights?index=99", 501)] {
        assert_eq!(app.get(path).await.status, status, "{path}");
    }
    let nobody = app.request("GET", "/meshes/default/secrets?index=99", &[], vec![], crate::common::REMOTE).await;
    assert_eq!(nobody.status, 403);
    assert!(DEFAULT_WAIT < MAX_WAIT);
}

#[tokio::test]
async fn a_list_waits_for_its_kind_and_mesh() {
    let app = app();
    let path = "/meshes/default/dataplanes";
    let first = app.get(path).await;
    let n = revision(&first);
    for old in [0, n - 1] {
        assert_eq!(app.get(&format!("{path}?index={old}")).await.text, first.text, "what changed since is told at once");
    }
    let waits = ask(&app, format!("{path}?index={n}&wait=5m"));
    waiting(&app, 1).await;
    app.store.apply(vec![put(Kind::Secret, "default", "s"), put(Kind::Zone, "", "y")]);
    app.store.apply(vec![put(Kind::Mesh, "", "other"), put(Kind::Dataplane, "other", "b")]);
    app.store.apply(vec![put(Kind::DataplaneInsight, "default", "a")]);
    settle().await;
    assert!(!waits.is_finished(), "nothing of these concerns it");
    let changed = app.store.apply(vec![put(Kind::Dataplane, "default", "b")]);
    let a = waits.await.unwrap();
    assert_eq!((a.json()["total"].as_u64(), revision(&a)), (Some(2), changed));
    // A deletion counts, also in an entry of the past.
    app.store.apply(vec![Op::Delete { key: Key::new(Kind::Dataplane, "default", "b"), expect: Expect::Any }]);
    app.store.apply(vec![put(Kind::Secret, "default", "s")]);
    assert_eq!(app.get(&format!("{path}?index={changed}&wait=5m")).await.json()["total"], 1);
    // Only others' changes since: it waits, and the client learns the newer revision when the wait is over.
    let n = revision(&app.get(path).await);
    let newest = app.store.apply(vec![put(Kind::Secret, "default", "s")]);
    let a = app.get(&format!("{path}?index={n}&wait=50ms")).await;
    assert_eq!((a.json()["total"].as_u64(), revision(&a)), (Some(1), newest));
    // The next page does not wait.
    app.store.apply(vec![put(Kind::Dataplane, "default", "c")]);
    let next = app.get(&format!("{path}?size=1&index={n}&wait=1s")).await.json()["next"].as_str().unwrap().to_owned();
    assert!(!next.contains("index") && !next.contains("wait"), "{next}");
}

#[tokio::test]
async fn policy_and_status_do_not_wake_each_other() {
    let app = app();
    app.store.apply(vec![put(Kind::DataplaneInsight, "default", "a"), put(Kind::MeshService, "default", "web")]);
    let index = |path: &'static str| {
        let app = app.clone();
        async move { revision(&app.get(path).await) }
    };
    let insights = ask(&app, format!("/meshes/default/dataplane-insights?index={}", index("/meshes/default/dataplane-insights").await));
    let plain = ask(&app, format!("/meshes/default/dataplanes/a?index={}", index("/meshes/default/dataplanes/a").await));
    let overview = ask(&app, format!("/meshes/default/dataplanes/a/_overview?index={}", index("/meshes/default/dataplanes/a/_overview").await));
    waiting(&app, 3).await;
    let status = app.store.apply(vec![put(Kind::DataplaneInsight, "default", "a")]);
    assert_eq!(revision(&insights.await.unwrap()), status);
    assert_eq!(revision(&overview.await.unwrap()), status);
    settle().await;
    assert!(!plain.is_finished());
    let insights = ask(&app, format!("/meshes/default/dataplane-insights?index={status}"));
    waiting(&app, 2).await;
    let policy = app.store.apply(vec![put(Kind::Dataplane, "default", "a")]);
    assert_eq!(revision(&plain.await.unwrap()), policy);
    settle().await;
    assert!(!insights.is_finished());
    insights.abort();
    // The fast-changing part of a status is shown with its resource.
    let service = ask(&app, format!("/meshes/default/meshservices/web?index={policy}"));
    waiting(&app, 1).await;
    let key = Key::new(Kind::MeshService, "default", "web");
    app.store.apply(vec![Op::Status { key, status: Json::from_value(&json!({"dataplaneProxies": {"total": 7}})) }]);
    assert_eq!(service.await.unwrap().json()["status"]["dataplaneProxies"]["total"], 7);
}

#[tokio::test]
async fn what_is_not_there_yet_is_waited_for() {
    let app = app();
    let absent = app.get("/meshes/default/dataplanes/new").await;
    assert_eq!(absent.status, 404);
    let waits = ask(&app, format!("/meshes/default/dataplanes/new?index={}", revision(&absent)));
    let mesh = ask(&app, format!("/meshes/later/dataplanes?index={}", revision(&app.get("/meshes/later/dataplanes").await)));
    waiting(&app, 2).await;
    app.store.apply(vec![put(Kind::Dataplane, "default", "another")]);
    settle().await;
    assert!(!waits.is_finished());
    app.store.apply(vec![put(Kind::Dataplane, "default", "new")]);
    assert_eq!(waits.await.unwrap().status, 200);
    app.store.apply(vec![put(Kind::Mesh, "", "later")]);
    assert_eq!(mesh.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_node_that_is_behind_catches_up_first() {
    let app = app();
    let ahead = revision(&app.get("/meshes").await) + 2;
    let waits = ask(&app, format!("/meshes?index={ahead}"));
    waiting(&app, 1).await;
    for i in 0..2 {
        assert!(app.store.apply(vec![put(Kind::Mesh, "", &format!("m{i}"))]) <= ahead);
        settle().await;
        assert!(!waits.is_finished(), "the client has seen that elsewhere");
    }
    let changed = app.store.apply(vec![put(Kind::Mesh, "", "news")]);
    assert_eq!(revision(&waits.await.unwrap()), changed);
    // Who never gets there gets what there is, with its revision.
    let a = app.get("/meshes?index=1000000&wait=10ms").await;
    assert_eq!((a.status, revision(&a)), (200, changed));
}

#[tokio::test]
async fn a_subscriber_that_lagged_looks_again() {
    let app = app();
    let n = revision(&app.get("/meshes").await);
    let waits = ask(&app, format!("/meshes?index={n}"));
    waiting(&app, 1).await;
    // More than the bus holds, and the only change that matters is lost among it.
    app.store.apply(vec![put(Kind::Mesh, "", "lost")]);
    for _ in 0..1500 {
        app.store.apply(vec![put(Kind::Zone, "", "z")]);
    }
    assert_eq!(waits.await.unwrap().json()["total"], 2);
    // Nothing is known of then any more: answered at once, and not over and over.
    let a = app.get(&format!("/meshes?index={n}&wait=5m")).await;
    let waits = ask(&app, format!("/meshes?index={}", revision(&a)));
    waiting(&app, 1).await;
    settle().await;
    assert!(!waits.is_finished());
}

#[tokio::test]
async fn who_leaves_frees_its_place_and_there_are_so_many() {
    let app = App::new(ApiOptions { waiters: 2, ..ApiOptions::default() });
    app.store.apply(vec![put(Kind::Mesh, "", "default")]);
    let app = Arc::new(app);
    let path = "/meshes?index=1".to_owned();
    for _ in 0..3 {
        let waits: Vec<_> = (0..2).map(|_| ask(&app, path.clone())).collect();
        waiting(&app, 2).await;
        let a = app.get(&path).await;
        assert_eq!(a.status, 429);
        assert!(a.text.contains("2 requests wait"), "{}", a.text);
        assert_eq!(app.get("/meshes").await.status, 200, "who does not wait is not concerned");
        waits.iter().for_each(JoinHandle::abort);
        waiting(&app, 0).await;
    }
}

#[tokio::test]
async fn a_stop_ends_waits_with_the_current_answer() {
    let stop = CancellationToken::new();
    let app = Arc::new(App::of(ApiOptions::default(), |state| state.until(stop.clone())));
    app.store.apply(vec![put(Kind::Mesh, "", "default")]);
    let waits = ask(&app, "/meshes?index=1&wait=5m".into());
    waiting(&app, 1).await;
    stop.cancel();
    let a = waits.await.unwrap();
    assert_eq!((a.status, a.json()["total"].as_u64()), (200, Some(1)));
}

#[tokio::test]
async fn contact_that_is_lost_during_a_wait_is_told() {
    let app = app();
    let local = {
        let app = app.clone();
        tokio::spawn(async move { at(&app, "/meshes?index=1", "local").await })
    };
    waiting(&app, 1).await;
    *app.store.contact.lock().unwrap() = Contact { leader: None, since: None, lease: Duration::from_millis(600) };
    app.store.apply(vec![put(Kind::Mesh, "", "x")]);
    assert_eq!(local.await.unwrap().status, 503);
}
