//! Health of applications as Envoy probes it.

use ikada_tests::{
    process::{ControlPlane, Dataplane, envoy_or_skip, eventually, free_port},
    stock::{Features, StockEnvoy},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(40);
const SETTINGS: [(&str, &str); 2] = [("KUMA_DP_SERVER_HDS_INTERVAL", "1s"), ("KUMA_XDS_DATAPLANE_DEREGISTRATION_DELAY", "1s")];

async fn inbounds(cp: &ControlPlane, name: &str) -> Vec<Value> {
    let answer = cp.api.get(&format!("/meshes/default/dataplanes/{name}")).await.unwrap();
    if answer.status != 200 {
        return Vec::new();
    }
    answer.json().unwrap()["networking"]["inbound"].as_array().cloned().unwrap_or_default()
}
/// States of all inbounds, once the dataplane is there.
async fn states(cp: &ControlPlane, name: &str) -> Vec<String> {
    inbounds(cp, name).await.iter().map(|i| i["state"].as_str().unwrap_or("Ready").to_owned()).collect()
}
async fn becomes(cp: &ControlPlane, name: &str, wanted: &[&str]) {
    let done = eventually(&format!("states {wanted:?}"), LIMIT, || async { states(cp, name).await == wanted }).await;
    if let Err(e) = done {
        panic!("{e}: {:?}\n{}", inbounds(cp, name).await, cp.process.output());
    }
}

#[tokio::test]
async fn probes_decide_about_the_state_of_inbounds() {
    let Some(envoy) = envoy_or_skip("probes_decide_about_the_state_of_inbounds") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &SETTINGS, &[]).await.unwrap();
    let (app, other) = (free_port().unwrap(), free_port().unwrap());
    let inbound = |port: u16, app: u16, probe: bool| {
        let mut i = json!({"port": port, "servicePort": app, "serviceAddress": "127.0.0.1", "tags": {"kuma.io/service": "web"}});
        if probe {
            i["serviceProbe"] = json!({"tcp": {}, "interval": "0.200s", "timeout": "0.500s"});
        }
        i
    };
    let mut dataplane = json!({"type": "Dataplane", "mesh": "default", "name": "web", "networking": {"address": "127.0.0.1",
        "inbound": [inbound(free_port().unwrap(), app, true), inbound(free_port().unwrap(), other, false)]}});
    let token = cp.api.dataplane_token("default", "web").await.unwrap();
    let mut proxy = StockEnvoy::start(&cp, &envoy, &dir.path().join("web"), &dataplane, &token, Features::Delta).await.unwrap();

    becomes(&cp, "web", &["NotReady", "Ready"]).await;
    eventually("Envoy got a specifier", LIMIT, || async { stat(&proxy, "hds_delegate.requests").await > 0 }).await.unwrap();
    eventually("Envoy reported", LIMIT, || async { stat(&proxy, "hds_delegate.responses").await > 3 }).await.unwrap();
    assert_eq!(states(&cp, "web").await, ["NotReady", "Ready"], "nothing listens yet");
    let first = inbounds(&cp, "web").await;

    let listening = TcpListener::bind(("127.0.0.1", app)).await.unwrap();
    let accepting = tokio::spawn(async move { while listening.accept().await.is_ok() {} });
    becomes(&cp, "web", &["Ready", "Ready"]).await;
    assert_eq!(inbounds(&cp, "web").await[0]["health"], json!({"ready": true}));
    assert_ne!(first, inbounds(&cp, "web").await);

    // What does not change is not written.
    let version = || async { cp.api.get("/meshes/default/dataplanes/web").await.unwrap().json().unwrap()["modificationTime"].clone() };
    let (written, reports) = (version().await, stat(&proxy, "hds_delegate.responses").await);
    eventually("more reports", LIMIT, || async { stat(&proxy, "hds_delegate.responses").await > reports + 2 }).await.unwrap();
    assert_eq!(version().await, written);

    accepting.abort();
    becomes(&cp, "web", &["NotReady", "Ready"]).await;

    // A changed Dataplane changes what is probed: the other port has a probe now, and an application.
    let _listening = TcpListener::bind(("127.0.0.1", other)).await.unwrap();
    dataplane["networking"]["inbound"] = json!([inbound(free_port().unwrap(), app, true), inbound(free_port().unwrap(), other, true)]);
    dataplane["networking"]["inbound"][1]["state"] = json!("NotReady");
    cp.api.apply(&dataplane).await.unwrap();
    becomes(&cp, "web", &["NotReady", "Ready"]).await;

    // Envoy fails its own check: everything is out.
    assert!(admin_post(&dir.path().join("web/kuma-envoy-admin.sock"), "/healthcheck/fail").await.contains("200"));
    becomes(&cp, "web", &["NotReady", "NotReady"]).await;

    assert_quiet(&proxy.process.output());
    assert!(proxy.process.is_running());
    let log = cp.process.output();
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn without_probes_envoy_itself_decides() {
    let Some(envoy) = envoy_or_skip("without_probes_envoy_itself_decides") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &SETTINGS, &[]).await.unwrap();
    let port = free_port().unwrap();
    let yaml = format!(
        "type: Dataplane\nmesh: default\nname: plain\nnetworking:\n  address: 127.0.0.1\n  inbound:\n  - port: {port}\n    servicePort: {}\n    tags: {{kuma.io/service: plain}}\n",
        free_port().unwrap()
    );
    let mut dp = Dataplane::start(&cp, &envoy, dir.path(), "default", "plain", &yaml).await.unwrap();
    becomes(&cp, "plain", &["Ready"]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(states(&cp, "plain").await, ["Ready"]);
    assert!(dp.process.is_running());
    assert_quiet(&dp.process.output());
}

/// No word about health discovery among Envoy's warnings.
fn assert_quiet(log: &str) {
    let bad: Vec<_> = log.lines().filter(|l| l.contains("HealthDiscovery") || l.contains("StreamHealthCheck") || l.to_lowercase().contains("hds")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// A counter of Envoy; 0 when it is not there.
async fn stat(proxy: &StockEnvoy, name: &str) -> u64 {
    let text = proxy.admin(&format!("/stats?filter={name}")).await.unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok()).unwrap_or(0)
}

async fn admin_post(socket: &std::path::Path, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(format!("POST {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
