//! The state-of-the-world variant over a loopback connection.

use ikada_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
use crate::support::*;

#[tokio::test]
async fn full_responses() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(CLUSTER, "a", "a1"), resource(CLUSTER, "b", "b1"), resource(LISTENER, "l", "l1")]));
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(CLUSTER, &[], "", "", None).await;
    let first = c.next().await;
    assert_eq!(bodies(&first), ["a1", "b1"]);
    assert_eq!(first.control_plane.as_ref().unwrap().identifier, "cp-1");
    c.request(CLUSTER, &[], &first.version_info, &first.nonce, None).await;
    c.request(LISTENER, &[], "", "", None).await;
    assert_eq!(c.expect(LISTENER, &[]).await, ["l1"]);
    c.silence().await;
    // The removed cluster stays until the listeners were acknowledged.
    fake.publish(snapshot([resource(CLUSTER, "b", "b2"), resource(LISTENER, "l", "l2")]));
    assert_eq!(c.expect(CLUSTER, &[]).await, ["a1", "b2"]);
    assert_eq!(c.expect(LISTENER, &[]).await, ["l2"]);
    assert_eq!(c.expect(CLUSTER, &[]).await, ["b2"]);
    c.silence().await;
}

#[tokio::test]
async fn a_changed_cluster_takes_its_endpoints_along() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot(eds_cluster("a", "1", "ea")));
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(CLUSTER, &[], "", "", None).await;
    c.expect(CLUSTER, &[]).await;
    c.request(ENDPOINTS, &["a"], "", "", None).await;
    assert_eq!(c.expect(ENDPOINTS, &["a"]).await, ["ea"]);
    c.silence().await;
    fake.publish(snapshot(eds_cluster("a", "2", "ea")));
    assert_eq!(c.expect(CLUSTER, &[]).await.len(), 1);
    assert_eq!(c.expect(ENDPOINTS, &["a"]).await, ["ea"]);
    c.silence().await;
}

#[tokio::test]
async fn named_subscriptions() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(SECRET, "s", "s1"), resource(SECRET, "t", "t1"), resource(ROUTE, "r", "r1")]));
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(SECRET, &["none"], "", "", None).await;
    c.silence().await;
    c.request(SECRET, &["none", "s"], "", "", None).await;
    let r = c.next().await;
    assert_eq!(bodies(&r), ["s1"]);
    // More names with the acknowledgement.
    c.request(SECRET, &["s", "t"], &r.version_info, &r.nonce, None).await;
    assert_eq!(c.expect(SECRET, &["t"]).await, ["s1", "t1"]);
    // Fewer names need no answer; what is not named is not sent.
    fake.publish(snapshot([resource(SECRET, "s", "s2"), resource(SECRET, "t", "t1")]));
    c.silence().await;
    fake.publish(snapshot([resource(SECRET, "s", "s2"), resource(SECRET, "t", "t2")]));
    assert_eq!(c.expect(SECRET, &[]).await, ["t2"]);
    // An empty list after names is no wildcard.
    fake.publish(snapshot([resource(SECRET, "s", "s3"), resource(SECRET, "t", "t3")]));
    c.silence().await;
}

#[tokio::test]
async fn a_subscription_changes_with_an_answered_nonce() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(SECRET, "s", "s1"), resource(SECRET, "t", "t1")]));
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(SECRET, &["s"], "", "", None).await;
    let r = c.next().await;
    c.request(SECRET, &["s"], &r.version_info, &r.nonce, None).await;
    c.request(SECRET, &["s", "t"], &r.version_info, &r.nonce, None).await;
    assert_eq!(c.expect(SECRET, &["s", "t"]).await, ["s1", "t1"]);
    c.silence().await;
    assert_eq!(fake.journal(), ["sent Secret +1 -0", "ack Secret", "synced newest", "sent Secret +2 -0", "ack Secret"]);
}

#[tokio::test]
async fn resume_with_the_same_version_sends_nothing() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(CLUSTER, "a", "a1")]));
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(CLUSTER, &[], "", "", None).await;
    let version = c.next().await.version_info;
    drop(c);
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(CLUSTER, &[], &version, "", None).await;
    c.silence().await;
    fake.publish(snapshot([resource(CLUSTER, "a", "a2")]));
    assert_eq!(c.expect(CLUSTER, &[]).await, ["a2"]);
    drop(c);
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(CLUSTER, &[], &version, "", None).await;
    assert_eq!(c.expect(CLUSTER, &[]).await, ["a2"]);
}

#[tokio::test]
async fn rejections() {
    let (fake, address) = serve(options()).await;
    fake.publish(snapshot([resource(LISTENER, "bad", "bad1"), resource(LISTENER, "good", "good1")]));
    let mut c = FullClient::new(address, "m.dp").await;
    c.request(LISTENER, &[], "", "", None).await;
    let r = c.next().await;
    // Nobody is named: nothing goes out until something changes.
    c.request(LISTENER, &[], "", &r.nonce, Some("cannot decode")).await;
    c.silence().await;
    fake.publish(snapshot([resource(LISTENER, "bad", "bad1"), resource(LISTENER, "good", "good2")]));
    let r = c.next().await;
    assert_eq!(bodies(&r), ["bad1", "good2"]);
    // The named one stays out, and comes back when it changes.
    c.request(LISTENER, &[], "", &r.nonce, Some("Error adding/updating listener(s) bad: why")).await;
    assert_eq!(c.expect(LISTENER, &[]).await, ["good2"]);
    c.silence().await;
    fake.publish(snapshot([resource(LISTENER, "bad", "bad2"), resource(LISTENER, "good", "good2")]));
    let r = c.next().await;
    assert_eq!(bodies(&r), ["bad2", "good2"]);
    // A stale nonce changes nothing.
    c.request(LISTENER, &["x"], "", "0", None).await;
    c.silence().await;
    c.request(LISTENER, &[], &r.version_info, &r.nonce, None).await;
    // A bad update keeps the last good version of that resource in later responses.
    fake.publish(snapshot([resource(LISTENER, "bad", "bad3"), resource(LISTENER, "good", "good2")]));
    let r = c.next().await;
    c.request(LISTENER, &[], "", &r.nonce, Some("bad: again")).await;
    fake.publish(snapshot([resource(LISTENER, "bad", "bad3"), resource(LISTENER, "good", "good3")]));
    assert_eq!(c.expect(LISTENER, &[]).await, ["bad2", "good3"]);
}
