//! Clients that are wrong, hostile or too many.

use ikada_tests::process::{ControlPlane, envoy_or_skip, eventually};
use ikada_tests::stock::{Features, StockEnvoy, bootstrap};
use ikada_tests::streams::{self, AdsStream};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(30);

fn dataplane(name: &str) -> serde_json::Value {
    json!({"type": "Dataplane", "mesh": "default", "name": name, "networking": {"address": "127.0.0.1",
        "inbound": [{"port": 1, "servicePort": 2, "tags": {"kuma.io/service": name}}]}})
}

#[tokio::test]
async fn bootstrap_refuses_what_is_wrong_with_a_clear_answer() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    let post = |body: serde_json::Value| {
        let cp = &cp;
        async move { bootstrap(cp, &body).await.unwrap() }
    };
    let (status, text) = post(json!({"mesh": "default", "name": "a", "dataplaneResource": dataplane("a").to_string()})).await;
    assert_eq!(status, 422);
    assert!(text.starts_with("Dataplane Token is required."), "{text}");
    let mut elsewhere = dataplane("a");
    elsewhere["mesh"] = "nomesh".into();
    let (status, text) = post(json!({"mesh": "nomesh", "name": "a", "dataplaneToken": "x", "dataplaneResource": elsewhere.to_string()})).await;
    assert_eq!((status, text.trim()), (422, "mesh: mesh \"nomesh\" does not exist"));
    let (status, _) = post(json!({"mesh": "default", "name": "nobody", "dataplaneToken": "x"})).await;
    assert_eq!(status, 404);
    let mut bad = dataplane("a");
    bad["networking"]["inbound"][0]["port"] = 0.into();
    let (status, text) = post(json!({"mesh": "default", "name": "a", "dataplaneToken": "x", "dataplaneResource": bad.to_string()})).await;
    assert_eq!(status, 422);
    assert!(text.contains("networking.inbound[0].port") && text.contains("port must be in the range [1, 65535]"), "{text}");
    let (status, text) = post(json!({"mesh": "default", "name": "a", "dataplaneToken": "x", "dataplaneResource": "{{{"})).await;
    assert_eq!(status, 422, "{text}");
    assert_eq!(cp.api.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn streams_with_a_wrong_token_get_nothing() {
    let Some(envoy) = envoy_or_skip("streams_with_a_wrong_token_get_nothing") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    cp.api.apply(&json!({"type": "Mesh", "name": "other"})).await.unwrap();
    let foreign = cp.api.dataplane_token("other", "a").await.unwrap();
    let namesake = cp.api.dataplane_token("default", "b").await.unwrap();
    for (case, token, reason) in [
        ("garbage", "not-a-token".to_owned(), "token is malformed"),
        ("other mesh", foreign, "could not parse token"),
        ("other name", namesake, "proxy name from requestor: a is different than in token: b"),
    ] {
        let proxy = StockEnvoy::start(&cp, &envoy, &dir.path().join(case.replace(' ', "-")), &dataplane("a"), &token, Features::Delta).await.unwrap();
        // Envoy logs the status text percent-encoded.
        let log = || proxy.process.output().replace("%20", " ");
        let refused = eventually(case, LIMIT, || async { log().contains("authentication failed") }).await;
        assert!(refused.is_ok(), "{case}: {}", log());
        assert!(log().contains(reason), "{case}: {}", log());
        assert_eq!(cp.api.get("/meshes/default/dataplanes/a").await.unwrap().status, 404, "{case}: nothing is registered");
    }
}

#[tokio::test]
async fn ten_megabytes_and_odd_requests_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    let huge = json!({"type": "Mesh", "name": "huge", "labels": {"a": "x".repeat(10 << 20)}});
    let answer = cp.api.request("PUT", "/meshes/huge", Some(&huge)).await.unwrap();
    assert_eq!(answer.status, 413, "{}", answer.text);
    assert!(answer.json().unwrap()["detail"].as_str().unwrap().contains("bytes"), "{}", answer.text);
    let (status, text) = bootstrap(&cp, &json!({"name": "a", "dataplaneResource": "x".repeat(10 << 20)})).await.unwrap();
    assert!(matches!(status, 400 | 413), "{status} {text}");
    let unbuilt = json!({"type": "MeshRateLimit", "mesh": "default", "name": "r", "spec": {}});
    let answer = cp.api.request("PUT", "/meshes/default/meshratelimits/r", Some(&unbuilt)).await.unwrap();
    assert_eq!(answer.status, 501);
    assert!(answer.text.contains("MeshRateLimit"), "{}", answer.text);
    // Not HTTP at all, on every port.
    for port in [cp.api.port, cp.dp_port, cp.diagnostics_port] {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&[0xff; 4096]).await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("the connection ends").ok();
    }
    assert_eq!(cp.api.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn ten_thousand_connections_do_not_stop_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let mut cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let wanted = usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(500).min(10_000);
    let mut open = Vec::with_capacity(wanted);
    for n in 0..wanted {
        // Several source addresses, so that ephemeral ports do not run out.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("127.0.0.{}:0", 2 + n % 4).parse().unwrap()).unwrap();
        let port = if n % 2 == 0 { cp.api.port } else { cp.dp_port };
        if let Ok(Ok(s)) = tokio::time::timeout(LIMIT, socket.connect(format!("127.0.0.1:{port}").parse().unwrap())).await {
            open.push(s);
        }
    }
    assert!(open.len() * 10 >= wanted * 9, "{} of {wanted} connections", open.len());
    assert_eq!(cp.api.get("/meshes").await.unwrap().status, 200, "answered while they are open");
    drop(open);
    assert_eq!(cp.api.get("/meshes").await.unwrap().status, 200);
    assert!(cp.process.is_running());
}

#[tokio::test]
async fn thousands_of_streams_with_wrong_tokens_are_each_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    let token = cp.api.dataplane_token("default", "good").await.unwrap();
    let channel = streams::connect(cp.dp_port).await.unwrap();
    for round in 0..20 {
        let tasks: Vec<_> = (0..100)
            .map(|n| {
                let (channel, token) = (channel.clone(), token.clone());
                // A token of somebody else, or none at all; meshes that do not exist.
                let mut dp = dataplane(&format!("bad-{n}"));
                if n % 3 == 0 {
                    dp["mesh"] = format!("mesh-{round}-{n}").into();
                }
                tokio::spawn(async move {
                    let mut stream = AdsStream::open(&channel, &dp, (n % 2 == 0).then_some(token.as_str())).await?;
                    stream.next().await.map(drop)
                })
            })
            .collect();
        for task in tasks {
            let status = task.await.unwrap().expect_err("refused");
            assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
            assert!(status.message().starts_with("authentication failed: "), "{status}");
        }
    }
    let mut good = AdsStream::open(&channel, &dataplane("good"), Some(&token)).await.unwrap();
    good.next().await.unwrap().expect("a configuration on the same connection");
    assert_eq!(cp.api.get("/meshes/default/dataplanes").await.unwrap().json().unwrap()["total"], 1);
    assert!(cp.process.is_running());
}

#[tokio::test]
async fn clients_that_say_nothing_or_little_hold_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    // Silent after TLS; silent before it; a body that does not come.
    let mut silent = streams::tls(cp.dp_port, "h2").await.unwrap();
    let mut half_open = tokio::net::TcpStream::connect(("127.0.0.1", cp.dp_port)).await.unwrap();
    let mut slow = streams::tls(cp.dp_port, "http/1.1").await.unwrap();
    slow.write_all(b"POST /bootstrap HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"mesh\": ").await.unwrap();
    let end = Duration::from_secs(20);
    let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), [0; 12]);
    let (silent, half_open, slow) = tokio::join!(
        tokio::time::timeout(end, silent.read_to_end(&mut a)),
        tokio::time::timeout(end, half_open.read_to_end(&mut b)),
        tokio::time::timeout(end, slow.read_exact(&mut c)),
    );
    assert!(silent.is_ok() && half_open.is_ok(), "both connections ended");
    slow.expect("an answer").unwrap();
    assert_eq!(String::from_utf8_lossy(&c), "HTTP/1.1 408");
}
