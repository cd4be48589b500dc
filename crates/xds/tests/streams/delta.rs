//! The delta variant over a loopback connection.

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use ikada_xds::{
    Options,
    type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, RUNTIME, SECRET},
};
use std::time::Duration;
use crate::support::*;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| s.to_string()).collect()
}

/// Two EDS clusters, a listener, a secret.
fn base() -> Vec<std::sync::Arc<ikada_xds::Encoded>> {
    let mut all: Vec<_> = [eds_cluster("a", "1", "ea"), eds_cluster("b", "1", "eb")].into_iter().flatten().collect();
    all.push(resource(LISTENER, "l", "l1"));
    all.push(resource(SECRET, "s", "s1"));
    all
}

/// Subscribes as Envoy does and acknowledges everything of [`base`].
async fn converge(c: &mut DeltaClient) {
    c.subscribe(CLUSTER, &[]).await;
    assert_eq!(c.expect(CLUSTER).await.0, names(&["a", "b"]));
    c.subscribe(ENDPOINTS, &["a", "b"]).await;
    assert_eq!(c.expect(ENDPOINTS).await.0, names(&["a", "b"]));
    c.subscribe(LISTENER, &[]).await;
    assert_eq!(c.expect(LISTENER).await.0, names(&["l"]));
    c.subscribe(SECRET, &["s"]).await;
    assert_eq!(c.expect(SECRET).await.0, names(&["s"]));
    c.silence().await;
}

#[tokio::test]
async fn full_then_differences() {
    let (fake, address) = serve(options()).await;
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(CLUSTER, &[]).await;
    c.silence().await;
    fake.publish(snapshot(base()));
    let first = c.next().await;
    assert_eq!(first.control_plane.as_ref().unwrap().identifier, "cp-1");
    assert_eq!(content(&first), (names(&["a", "b"]), vec![]));
    assert_eq!(first.resources[0].resource.as_ref().unwrap().type_url, CLUSTER);
    c.ack(&first).await;

    let mut more = base();
    more.extend(eds_cluster("c", "1", "ec"));
    fake.publish(snapshot(more));
    assert_eq!(c.expect(CLUSTER).await, (names(&["c"]), vec![]));
    fake.publish(snapshot(base()));
    // No listeners were asked for: the removal waits for the grace only.
    assert_eq!(c.expect(CLUSTER).await, (vec![], names(&["c"])));
    c.silence().await;
    assert_eq!(fake.journal().iter().filter(|e| *e == "ack Cluster").count(), 3);
    assert_eq!(fake.journal().last().unwrap(), "synced newest");
}

#[tokio::test]
async fn an_empty_wildcard_is_answered_once() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([]));
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(LISTENER, &[]).await;
    assert_eq!(c.expect(LISTENER).await, (vec![], vec![]));
    c.silence().await;
}

#[tokio::test]
async fn a_changed_cluster_takes_its_endpoints_along() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot(base()));
    let mut c = DeltaClient::new(address, "m.dp").await;
    converge(&mut c).await;
    let mut changed = base();
    changed.extend(eds_cluster("a", "2", "ea"));
    changed.push(resource(LISTENER, "l", "l2"));
    fake.publish(snapshot(changed));
    assert_eq!(c.expect(CLUSTER).await, (names(&["a"]), vec![]));
    assert_eq!(c.expect(ENDPOINTS).await, (names(&["a"]), vec![]));
    assert_eq!(c.expect(LISTENER).await, (names(&["l"]), vec![]));
    c.silence().await;
}

#[tokio::test]
async fn endpoints_do_not_wait_for_the_clusters_acknowledgement() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot(base()));
    let mut c = DeltaClient::new(address, "m.dp").await;
    converge(&mut c).await;
    let mut changed = base();
    changed.extend(eds_cluster("a", "2", "ea"));
    changed.push(resource(LISTENER, "l", "l2"));
    fake.publish(snapshot(changed));
    let clusters = c.next().await;
    assert_eq!((clusters.type_url.as_str(), content(&clusters).0), (CLUSTER, names(&["a"])));
    // Envoy acknowledges clusters when they are warm.
    assert_eq!(c.expect(ENDPOINTS).await.0, names(&["a"]));
    c.silence().await;
    c.ack(&clusters).await;
    assert_eq!(c.expect(LISTENER).await.0, names(&["l"]));
}

#[tokio::test]
async fn one_unanswered_response_per_type_and_the_newest_state_wins() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(SECRET, "s", "1")]));
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(SECRET, &["s"]).await;
    let first = c.next().await;
    for i in 2..9 {
        fake.publish(snapshot([resource(SECRET, "s", &i.to_string())]));
    }
    c.silence().await;
    c.ack(&first).await;
    let second = c.next().await;
    assert_eq!(second.resources[0].resource.as_ref().unwrap().value, b"8");
    // A stale nonce answers nothing.
    c.ack(&first).await;
    fake.publish(snapshot([resource(SECRET, "s", "9")]));
    c.silence().await;
    c.ack(&second).await;
    assert_eq!(c.next().await.resources[0].resource.as_ref().unwrap().value, b"9");
}

#[tokio::test]
async fn clusters_go_after_listeners() {
    let (fake, address) = serve(options()).await;
    let route = |r: &str| resource(ROUTE, "r", r);
    fake.publish(snapshot(base().into_iter().chain([route("1")])));
    let mut c = DeltaClient::new(address, "m.dp").await;
    converge(&mut c).await;
    c.subscribe(ROUTE, &["r"]).await;
    c.expect(ROUTE).await;
    // b is replaced by c; listener and route follow.
    let next = [eds_cluster("a", "1", "ea"), eds_cluster("c", "1", "ec")].into_iter().flatten();
    fake.publish(snapshot(next.chain([resource(LISTENER, "l", "l2"), resource(LISTENER, "m", "m"), route("2"), resource(SECRET, "s", "s1")])));
    assert_eq!(c.expect(CLUSTER).await, (names(&["c"]), vec![]));
    c.subscribe(ENDPOINTS, &["c"]).await;
    assert_eq!(c.expect(ENDPOINTS).await, (names(&["c"]), vec![]));
    assert_eq!(c.expect(LISTENER).await, (names(&["l", "m"]), vec![]));
    assert_eq!(c.expect(ROUTE).await, (names(&["r"]), vec![]));
    assert_eq!(c.expect(CLUSTER).await, (vec![], names(&["b"])));
    c.unsubscribe(ENDPOINTS, &["b"]).await;
    c.silence().await;
}

#[tokio::test]
async fn listeners_wait_for_endpoints_that_are_not_asked_for_yet() {
    let slow = Options { endpoint_grace: Duration::from_millis(500), ..options() };
    let (fake, address) = serve(slow).await;
    fake.publish(snapshot(base()));
    let mut c = DeltaClient::new(address, "m.dp").await;
    converge(&mut c).await;
    let mut more = base();
    more.extend(eds_cluster("c", "1", "ec"));
    more.push(resource(LISTENER, "l", "l2"));
    fake.publish(snapshot(more));
    c.expect(CLUSTER).await;
    c.silence().await;
    // Never asked for: the listeners go out after the grace.
    c.expect(LISTENER).await;
}

#[tokio::test]
async fn resume_sends_only_what_changed() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot(base()));
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(CLUSTER, &[]).await;
    let clusters = c.next().await;
    c.ack(&clusters).await;
    c.subscribe(ENDPOINTS, &["a", "b"]).await;
    let endpoints = c.next().await;
    drop(c);
    fake.heard("closed closed by the client").await;

    let (cv, ev) = (versions(&clusters), versions(&endpoints));
    let pairs = |v: &'_ [(String, String)]| v.iter().map(|(n, v)| (n.clone(), v.clone())).collect::<Vec<_>>();
    let mut c = DeltaClient::new(address, "m.dp").await;
    let known: Vec<_> = pairs(&cv);
    c.resume(CLUSTER, &[], &known.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>()).await;
    let known: Vec<_> = pairs(&ev);
    c.resume(ENDPOINTS, &["a", "b"], &known.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>()).await;
    c.silence().await;
    drop(c);

    // One version is another one's, one cluster is gone.
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.resume(CLUSTER, &["*"], &[("a", &cv[0].1), ("b", "other"), ("gone", "1")]).await;
    assert_eq!(c.expect(CLUSTER).await, (names(&["b"]), vec![]));
    assert_eq!(c.expect(CLUSTER).await, (vec![], names(&["gone"])));
    c.silence().await;
}

#[tokio::test]
async fn explicit_names() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(ROUTE, "r", "1"), resource(ROUTE, "other", "1"), resource(SECRET, "s", "1")]));
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(ROUTE, &["r", "none"]).await;
    assert_eq!(c.expect(ROUTE).await, (names(&["r"]), names(&["none"])));
    // A name is answered whenever it is subscribed to, known or not.
    c.subscribe(ROUTE, &["r"]).await;
    assert_eq!(c.expect(ROUTE).await, (names(&["r"]), vec![]));
    // Absent secrets are waited for in silence.
    c.subscribe(SECRET, &["s", "later"]).await;
    assert_eq!(c.expect(SECRET).await, (names(&["s"]), vec![]));
    c.silence().await;
    fake.publish(snapshot([resource(ROUTE, "none", "1"), resource(SECRET, "s", "1"), resource(SECRET, "later", "1")]));
    assert_eq!(c.expect(ROUTE).await, (names(&["none"]), names(&["r"])));
    assert_eq!(c.expect(SECRET).await, (names(&["later"]), vec![]));
    // What is not subscribed to any more is not sent.
    c.unsubscribe(SECRET, &["s"]).await;
    c.silence().await;
    fake.publish(snapshot([resource(ROUTE, "none", "1"), resource(SECRET, "s", "2"), resource(SECRET, "later", "1")]));
    c.silence().await;
}

#[tokio::test]
async fn wildcard_and_back() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(ROUTE, "r", "1"), resource(ROUTE, "q", "1")]));
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(ROUTE, &["*", "r"]).await;
    assert_eq!(c.expect(ROUTE).await.0, names(&["q", "r"]));
    c.unsubscribe(ROUTE, &["*"]).await;
    c.silence().await;
    fake.publish(snapshot([resource(ROUTE, "r", "2"), resource(ROUTE, "q", "2")]));
    assert_eq!(c.expect(ROUTE).await.0, names(&["r"]));
}

#[tokio::test]
async fn a_rejected_version_is_not_sent_again() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(LISTENER, "good", "1"), resource(LISTENER, "bad", "1")]));
    let mut c = DeltaClient::new(address, "m.dp").await;
    c.subscribe(LISTENER, &[]).await;
    let r = c.next().await;
    c.nack(&r, "Error adding/updating listener(s) bad: no filter chains").await;
    // The rest goes out again without it.
    assert_eq!(c.expect(LISTENER).await, (names(&["good"]), vec![]));
    fake.publish(snapshot([resource(LISTENER, "good", "2"), resource(LISTENER, "bad", "1")]));
    assert_eq!(c.expect(LISTENER).await, (names(&["good"]), vec![]));
    fake.publish(snapshot([resource(LISTENER, "good", "2"), resource(LISTENER, "bad", "2")]));
    let r = c.next().await;
    assert_eq!(content(&r).0, names(&["bad"]));
    c.nack(&r, "something else").await;
    c.silence().await;
    assert!(!fake.journal().iter().any(|e| e.starts_with("synced")));
    fake.publish(snapshot([resource(LISTENER, "good", "2"), resource(LISTENER, "bad", "3")]));
    assert_eq!(c.expect(LISTENER).await, (names(&["bad"]), vec![]));
    assert!(fake.journal().contains(&"nack Listener bad: something else".to_owned()));
}

#[tokio::test]
async fn a_newer_stream_takes_over() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot(base()));
    let mut old = DeltaClient::new(address, "m.dp").await;
    old.subscribe(CLUSTER, &[]).await;
    old.expect(CLUSTER).await;
    let mut new = DeltaClient::new(address, "m.dp").await;
    new.subscribe(CLUSTER, &[]).await;
    let status = old.end().await;
    assert_eq!((status.code(), status.message()), (Code::Aborted, "a newer stream of this proxy took over"));
    assert_eq!(new.expect(CLUSTER).await.0.len(), 2);
    fake.heard("closed ended by the server: a newer stream of this proxy took over").await;
}

#[tokio::test]
async fn refusals() {
    let (fake, address) = serve(Options { max_names: 3, ..options() }).await;
    fake.publish(snapshot(base()));
    // The node must come first, and stay.
    let mut c = DeltaClient::new(address, "").await;
    c.subscribe(CLUSTER, &[]).await;
    assert_eq!(c.end().await.code(), Code::InvalidArgument);
    let mut c = DeltaClient::new(address, "m.a").await;
    c.subscribe(CLUSTER, &[]).await;
    c.expect(CLUSTER).await;
    let other = DeltaDiscoveryRequest { node: node("m.b"), type_url: CLUSTER.to_owned(), ..Default::default() };
    c.requests.send(other).await.unwrap();
    assert_eq!(
        c.end().await.message(),
        "stream was authenticated for ID m.a. Received request is for node with ID m.b. Node ID cannot be changed after stream is initialized"
    );
    // Limits.
    let mut c = DeltaClient::new(address, "m.c").await;
    c.subscribe(SECRET, &["1", "2", "3", "4"]).await;
    assert!(c.end().await.message().starts_with("more than 3 resource names"));
    let mut c = DeltaClient::new(address, "m.d").await;
    c.subscribe("", &[]).await;
    assert_eq!(c.end().await.message(), "the request has no type_url");
    let mut c = DeltaClient::new(address, "m.e").await;
    let long = "x".repeat(5000);
    c.subscribe(SECRET, &[&long]).await;
    assert!(c.end().await.message().contains("5000 bytes"));
    fake.heard("closed refused: the request has no type_url").await;
}

#[tokio::test]
async fn credentials() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot(base()));
    let ask = async |tokens: &[&'static str]| {
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(rx));
        for t in tokens {
            request.metadata_mut().append("authorization", t.parse().unwrap());
        }
        let mut responses = connect(address).await.delta_aggregated_resources(request).await.unwrap().into_inner();
        tx.send(DeltaDiscoveryRequest { node: node("m.dp"), type_url: CLUSTER.to_owned(), ..Default::default() }).await.unwrap();
        responses.message().await.map(|r| r.unwrap().resources.len())
    };
    assert_eq!(ask(&["token"]).await.unwrap(), 2);
    assert_eq!(ask(&["bad"]).await.unwrap_err().message(), "authentication failed: bad token");
    let two = ask(&["token", "token"]).await.unwrap_err();
    assert_eq!(two.message(), "authentication failed: request must have exactly 1 \"authorization\" header, got 2");
}

#[tokio::test]
async fn a_slow_reader_is_dropped_and_a_late_answer_is_told() {
    let fast = Options { write_timeout: Duration::from_millis(300), ack_timeout: Duration::from_millis(100), ..options() };
    let (fake, address) = serve(fast).await;
    let big = "x".repeat(4 << 20);
    fake.publish(snapshot([SECRET, RUNTIME, CLUSTER].map(|t| resource(t, "x", &big))));
    let mut c = DeltaClient::new(address, "m.dp").await;
    // Nothing is read: HTTP/2 holds two responses, the third waits in the channel.
    for t in [SECRET, RUNTIME, CLUSTER] {
        c.subscribe(t, &["x"]).await;
    }
    assert_eq!(fake.heard("closed").await, "closed slow reader: a response was not taken for 300ms");
    fake.heard("late Secret").await;
}

#[tokio::test]
async fn a_silent_client_is_dropped() {
    let (_fake, address) = serve(Options { first_request_timeout: Duration::from_millis(50), ..options() }).await;
    let mut c = DeltaClient::new(address, "m.dp").await;
    assert_eq!(c.end().await.code(), Code::DeadlineExceeded);
}
