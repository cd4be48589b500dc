//! `/cluster…` over a cluster that notes what it is asked.

use crate::common::{App, REMOTE};
use async_trait::async_trait;
use bytes::Bytes;
use ikada_api::{
    ApiOptions,
    cluster::{ClusterAdmin, ClusterError, Snapshot},
};
use serde_json::{Value, json};
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Three nodes; the second does not answer.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

fn token() -> Value {
    json!({"id": "t1", "expires": "2026-01-01T00:00:00Z", "voter": true, "uses": 1})
}

#[async_trait]
impl ClusterAdmin for Fake {
    async fn status(&self) -> Result<Value, ClusterError> {
        Ok(json!({"cluster": "c", "node": 1, "members": [{"id": 1, "role": "leader"}, {"id": 2, "reachable": false}]}))
    }
    async fn create_join_token(&self, valid_for: Duration, voter: bool, uses: u32) -> Result<Value, ClusterError> {
        self.note(format!("token {valid_for:?} {voter} {uses}"));
        if uses == 0 {
            return Err(ClusterError::Invalid("uses must be at least 1".into()));
        }
        Ok(json!({"token": "ikada-join-SECRET", "id": "t1"}))
    }
    async fn join_tokens(&self) -> Result<Vec<Value>, ClusterError> {
        Ok(vec![token()])
    }
    async fn revoke_join_token(&self, id: &str) -> Result<(), ClusterError> {
        if id == "t1" { Ok(()) } else { Err(ClusterError::NotFound(format!("there is no join token {id:?}"))) }
    }
    async fn promote(&self, node: u64, force: bool) -> Result<(), ClusterError> {
        self.note(format!("promote {node} {force}"));
        if force { Ok(()) } else { Err(ClusterError::Refused { message: "4 voters tolerate no more failures than 3".into(), forcible: true }) }
    }
    async fn remove(&self, node: u64, force: bool) -> Result<(), ClusterError> {
        self.note(format!("remove {node} {force}"));
        Err(ClusterError::Unknown("no answer in time".into()))
    }
    async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, ClusterError> {
        match to {
            Some(2) => Err(ClusterError::Unavailable("node 2 does not answer".into())),
            to => Ok(to.unwrap_or(3)),
        }
    }
    async fn snapshot(&self) -> Result<Snapshot, ClusterError> {
        let (tx, bytes) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            for part in ["all ", "of ", "it"] {
                tx.send(Ok::<_, io::Error>(Bytes::from_static(part.as_bytes()))).await.ok();
            }
        });
        Ok(Snapshot { index: 9, size: None, bytes })
    }
    async fn tune(&self) -> Result<Value, ClusterError> {
        Ok(json!({"reasons": ["node 2 did not answer"]}))
    }
}

fn app() -> (Arc<Fake>, App) {
    let fake = Arc::new(Fake::default());
    let app = App::of(ApiOptions::default(), |state| state.with_cluster(fake.clone()));
    (fake, app)
}

async fn post(app: &App, path: &str, body: Value) -> (u16, Value) {
    let a = app.send("POST", path, Some(body.to_string().as_bytes())).await;
    (a.status, a.json())
}

#[tokio::test]
async fn status_and_members() {
    let (_, app) = app();
    let status = app.get("/cluster").await.json();
    assert_eq!((&status["cluster"], &status["members"][0]["role"]), (&json!("c"), &json!("leader")));
    let members = app.get("/cluster/members").await.json();
    assert_eq!((&members["total"], &members["items"][1]), (&json!(2), &json!({"id": 2, "reachable": false})));
}

#[tokio::test]
async fn tokens() {
    let (fake, app) = app();
    let (status, made) = post(&app, "/cluster/join-tokens", json!({"uses": 2, "voter": false})).await;
    assert_eq!((status, &made["token"]), (201, &json!("ikada-join-SECRET")));
    assert_eq!(post(&app, "/cluster/join-tokens", json!({"validFor": "90s"})).await.0, 201);
    assert_eq!(post(&app, "/cluster/join-tokens", json!({"uses": 0})).await.0, 400);
    assert_eq!(*fake.asked.lock().unwrap(), ["token 3600s false 2", "token 90s true 1", "token 3600s true 0"]);
    for (body, said) in [(json!({"use": 1}), "unknown field `use`"), (json!({"validFor": "-1s"}), "negative"), (json!({"validFor": "1"}), "validFor")] {
        let (status, refused) = post(&app, "/cluster/join-tokens", body).await;
        assert!(status == 400 && refused.to_string().contains(said), "{refused}");
    }
    let list = app.get("/cluster/join-tokens").await.json();
    assert_eq!((&list["total"], &list["items"][0]), (&json!(1), &token()));
    assert_eq!(app.send("DELETE", "/cluster/join-tokens/t1", None).await.status, 200);
    assert_eq!(app.send("DELETE", "/cluster/join-tokens/t2", None).await.status, 404);
}

#[tokio::test]
async fn members_are_changed_and_refusals_say_why() {
    let (fake, app) = app();
    let (status, refused) = post(&app, "/cluster/members/4:promote", json!({})).await;
    assert!(status == 409 && refused["detail"].as_str().unwrap().contains("4 voters"), "{refused}");
    assert_eq!(refused["invalid_parameters"][0]["field"], "force");
    assert_eq!(post(&app, "/cluster/members/4:promote", json!({"force": true})).await.0, 200);
    assert_eq!(post(&app, "/cluster/members/2:remove", json!({"force": false})).await.0, 504);
    let (status, refused) = post(&app, "/cluster/members/two:remove", json!({})).await;
    assert_eq!((status, &refused["invalid_parameters"][0]["field"]), (400, &json!("id")));
    assert_eq!(*fake.asked.lock().unwrap(), ["promote 4 false", "promote 4 true", "remove 2 false"]);
    assert_eq!(post(&app, "/cluster/transfer-leader", json!({})).await, (200, json!({"leader": 3})));
    assert_eq!(post(&app, "/cluster/transfer-leader", json!({"to": 1})).await, (200, json!({"leader": 1})));
    assert_eq!(post(&app, "/cluster/transfer-leader", json!({"to": 2})).await.0, 503);
    assert_eq!(app.get("/cluster/transfer-leader").await.status, 405);
}

#[tokio::test]
async fn a_snapshot_is_streamed_and_tuning_says_what_it_found() {
    let (_, app) = app();
    let a = app.get("/cluster/snapshot").await;
    assert_eq!((a.status, a.text.as_str(), a.header("ikada-snapshot-index")), (200, "all of it", "9"));
    let tuning = post(&app, "/cluster/tune", json!({})).await;
    assert_eq!(tuning, (200, json!({"reasons": ["node 2 did not answer"]})));
    assert_eq!(post(&app, "/cluster/tune", json!({"apply": "yes"})).await.0, 400);
}

#[tokio::test]
async fn only_administrators_and_only_where_there_is_a_cluster() {
    let (fake, app) = app();
    for (method, path) in [("GET", "/cluster"), ("GET", "/cluster/snapshot"), ("POST", "/cluster/join-tokens"), ("POST", "/cluster/members/2:remove")] {
        let a = app.request(method, path, &[("content-type", "application/json")], Vec::new(), REMOTE).await;
        assert_eq!(a.status, 403, "{method} {path}");
        assert!(a.json()["detail"].as_str().unwrap().contains("cannot administer the cluster"));
    }
    assert!(fake.asked.lock().unwrap().is_empty());
    let alone = App::new(ApiOptions::default());
    assert_eq!(alone.get("/cluster").await.status, 501);
}
