//! Traffic through real sidecars.

use ikada_tests::{
    apps::{self, App},
    process::{ControlPlane, Dataplane, envoy_or_skip, eventually, free_port},
    stock::{Features, StockEnvoy},
};
use nix::sys::signal::Signal;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);

fn mesh(name: &str) -> Value {
    json!({"type": "Mesh", "name": name, "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]}})
}
fn permission(action: &str) -> Value {
    json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "all", "spec": {
        "targetRef": {"kind": "Mesh"}, "from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": action}}]}})
}
fn dataplane(name: &str, port: u16, app: u16) -> Value {
    json!({"type": "Dataplane", "mesh": "default", "name": name, "networking": {"address": "127.0.0.1",
        "inbound": [{"port": port, "servicePort": app, "serviceAddress": "127.0.0.1", "tags": {"kuma.io/service": name, "kuma.io/protocol": "http"}}]}})
}
fn with_outbound(mut dataplane: Value, local: u16, service: &str, port: u16) -> Value {
    dataplane["networking"]["outbound"] = json!([{"port": local, "backendRef": {"kind": "MeshService", "name": service, "port": port}}]);
    dataplane
}

/// Takes any server certificate and remembers it.
#[derive(Debug, Default)]
struct Remember(Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Remember {
    fn verify_server_cert(&self, end: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(end.to_vec());
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256]
    }
}

/// The certificate that a TLS server shows.
async fn peer_certificate(port: u16) -> ikada_pki::CertInfo {
    let remember = Arc::new(Remember::default());
    let mut config = rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(remember.clone()).with_no_client_auth();
    config.alpn_protocols = vec![b"kuma".to_vec()];
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // Without a client certificate the server ends the connection, after it has shown its own.
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect("server".try_into().unwrap(), stream).await.ok();
    let der = remember.0.lock().unwrap().clone().expect("a certificate");
    ikada_pki::parse_certificate(&der).unwrap()
}

fn names(dump: &Value, section: &str, kind: &str) -> Vec<String> {
    let configs = dump["configs"].as_array().unwrap();
    let section = configs.iter().find(|c| c["@type"].as_str().unwrap().ends_with(section)).unwrap_or(&Value::Null);
    let mut all: Vec<String> = section[kind]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["cluster"]["name"].as_str().or(c["name"].as_str()).or(c["active_state"]["listener"]["name"].as_str()))
        .map(str::to_owned)
        .collect();
    all.sort();
    all
}

async fn two_stock_sidecars(dir: &Path, envoy: &Path, features: Features) {
    let mut cp = ControlPlane::start(dir, &[], &[]).await.unwrap();
    cp.api.apply(&mesh("default")).await.unwrap();
    cp.api.apply(&permission("Allow")).await.unwrap();
    let (app, own) = (App::start("web").await.unwrap(), App::start("cli").await.unwrap());
    let (web_port, cli_port, out) = (free_port().unwrap(), free_port().unwrap(), free_port().unwrap());
    let web_dp = dataplane("web", web_port, app.port);
    let cli_dp = with_outbound(dataplane("cli", cli_port, own.port), out, "web", web_port);
    let token = cp.api.dataplane_token("default", "web").await.unwrap();
    let web = StockEnvoy::start(&cp, envoy, &dir.join("web"), &web_dp, &token, features).await.unwrap();
    let token = cp.api.dataplane_token("default", "cli").await.unwrap();
    let mut cli = StockEnvoy::start(&cp, envoy, &dir.join("cli"), &cli_dp, &token, features).await.unwrap();

    let through = eventually("a request through the mesh", LIMIT, || async { apps::get(out, "/hello").await.is_ok_and(|a| a.status == 200 && a.app == "web") }).await;
    assert!(through.is_ok(), "{through:?}\n{}\n{}\n{}", cp.process.output(), web.process.output(), cli.process.output());
    let answer = apps::get(out, "/hello").await.unwrap();
    assert!(answer.body.contains("x-forwarded-client-cert: ") && answer.body.contains("URI=spiffe://default/cli"), "the server sees the client's identity: {}", answer.body);
    assert_eq!(peer_certificate(web_port).await.uris[..2], ["spiffe://default/web".to_owned(), "kuma://kuma.io/protocol/http".to_owned()]);

    // Names and filters of the contract.
    let dump = web.config_dump().await.unwrap();
    let inbound = format!("inbound:127.0.0.1:{web_port}");
    assert_eq!(names(&dump, "ListenersConfigDump", "dynamic_listeners"), std::slice::from_ref(&inbound));
    assert!(names(&dump, "ClustersConfigDump", "dynamic_active_clusters").contains(&format!("localhost:{}", app.port)));
    let text = dump.to_string();
    for filter in ["envoy.filters.network.rbac", "envoy.filters.network.http_connection_manager", "envoy.filters.http.router"] {
        assert!(text.contains(filter), "{filter}");
    }
    let dump = cli.config_dump().await.unwrap();
    let outbound = format!("outbound:127.0.0.1:{out}");
    assert!(names(&dump, "ListenersConfigDump", "dynamic_listeners").contains(&outbound));
    assert!(names(&dump, "ClustersConfigDump", "dynamic_active_clusters").contains(&format!("default_web__default_msvc_{web_port}")));
    let secrets = names(&dump, "SecretsConfigDump", "dynamic_active_secrets");
    assert_eq!(secrets, ["identity_cert:secret:default", "mesh_ca:secret:default"]);
    assert!(!dump.to_string().contains("error_state"), "nothing was rejected");

    // The insight tells it all.
    let seen = eventually("insight", LIMIT, || async {
        let Ok(i) = cp.api.get("/meshes/default/dataplanes/cli/_overview").await.unwrap().json() else { return false };
        let sub = &i["dataplaneInsight"]["subscriptions"][0];
        i["dataplaneInsight"]["mTLS"]["issuedBackend"] == "ca-1" && sub["status"]["total"]["responsesAcknowledged"].is_string() && sub["disconnectTime"].is_null()
    })
    .await;
    assert!(seen.is_ok(), "{}", cp.api.get("/meshes/default/dataplanes/cli/_overview").await.unwrap().text);

    // A policy acts, and acts back.
    cp.api.apply(&permission("Deny")).await.unwrap();
    eventually("denied", LIMIT, || async { apps::get(out, "/").await.is_ok_and(|a| a.status == 403 || a.status == 503) }).await.unwrap();
    let revision = cp.api.apply(&permission("Allow")).await.unwrap();
    eventually("allowed", LIMIT, || async { apps::get(out, "/").await.is_ok_and(|a| a.status == 200) }).await.unwrap();
    assert!(cp.propagation_ms(revision).await.unwrap() < 15_000.0);

    // The control plane dies: traffic goes on. It comes back: the proxies reconnect, nothing is torn down.
    cp.process.kill();
    for _ in 0..50 {
        assert_eq!(apps::get(out, "/").await.unwrap().status, 200);
    }
    cp.restart().await.unwrap();
    eventually("reconnected", LIMIT, || async { cp.propagation(1).await.is_ok_and(|r| r["proxies"].as_array().is_some_and(|p| p.len() == 2) && r["synced"] == true) }).await.unwrap();
    assert_eq!(apps::get(out, "/").await.unwrap().status, 200);
    cp.api.apply(&permission("Deny")).await.unwrap();
    eventually("denied after the restart", LIMIT, || async { apps::get(out, "/").await.is_ok_and(|a| a.status == 403 || a.status == 503) }).await.unwrap();

    // A proxy that leaves is deregistered.
    cli.process.kill();
    eventually("deregistered", LIMIT, || async { cp.api.get("/meshes/default/dataplanes/cli").await.is_ok_and(|a| a.status == 404) }).await.unwrap();
    assert_eq!(cp.api.get("/meshes/default/dataplanes/web").await.unwrap().status, 200);
}

#[tokio::test]
async fn stock_envoys_speak_delta() {
    let Some(envoy) = envoy_or_skip("stock_envoys_speak_delta") else { return };
    let dir = tempfile::tempdir().unwrap();
    two_stock_sidecars(dir.path(), &envoy, Features::Delta).await;
}

#[tokio::test]
async fn stock_envoys_speak_state_of_the_world() {
    let Some(envoy) = envoy_or_skip("stock_envoys_speak_state_of_the_world") else { return };
    let dir = tempfile::tempdir().unwrap();
    two_stock_sidecars(dir.path(), &envoy, Features::Sotw).await;
}

#[tokio::test]
async fn launcher_waits_drains_and_restarts() {
    let Some(envoy) = envoy_or_skip("launcher_waits_drains_and_restarts") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut cp = ControlPlane::start(dir.path(), &[("KUMA_XDS_DATAPLANE_DEREGISTRATION_DELAY", "0s")], &[]).await.unwrap();
    cp.api.apply(&mesh("default")).await.unwrap();
    cp.api.apply(&permission("Allow")).await.unwrap();
    let app = App::start("web").await.unwrap();
    let (port, out) = (free_port().unwrap(), free_port().unwrap());
    let yaml = with_outbound(dataplane("web", port, app.port), out, "web", port).to_string();
    // The launcher starts before the control plane: it waits.
    let mut dp = {
        let token = cp.api.dataplane_token("default", "web").await.unwrap();
        cp.process.kill();
        let started = Dataplane::start_with_token(&cp, &envoy, dir.path(), "web", &yaml, &token).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        started
    };
    assert!(dp.process.is_running(), "{}", dp.process.output());
    cp.restart().await.unwrap();
    let works = || async { apps::get(out, "/").await.is_ok_and(|a| a.status == 200) };
    let through = eventually("a request through the mesh", LIMIT, works).await;
    assert!(through.is_ok(), "{through:?}\n{}", dp.process.output());

    dp.process.signal(Signal::SIGTERM).unwrap();
    let status = dp.process.wait(LIMIT).await.unwrap();
    assert!(status.success(), "{status} {}", dp.process.output());
    eventually("deregistered", LIMIT, || async { cp.api.get("/meshes/default/dataplanes/web").await.is_ok_and(|a| a.status == 404) }).await.unwrap();
    // Again in the same directory.
    let dp = Dataplane::start(&cp, &envoy, dir.path(), "default", "web", &yaml).await.unwrap();
    let through = eventually("a request after a restart", LIMIT, works).await;
    assert!(through.is_ok(), "{through:?}\n{}", dp.process.output());
}

#[tokio::test]
async fn a_dns_name_is_an_address() {
    let Some(envoy) = envoy_or_skip("a_dns_name_is_an_address") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    cp.api.apply(&mesh("default")).await.unwrap();
    cp.api.apply(&permission("Allow")).await.unwrap();
    let app = App::start("web").await.unwrap();
    let (port, out) = (free_port().unwrap(), free_port().unwrap());
    let mut dp = with_outbound(dataplane("web", port, app.port), out, "web", port);
    dp["networking"]["address"] = "localhost".into();
    let token = cp.api.dataplane_token("default", "web").await.unwrap();
    let web = StockEnvoy::start(&cp, &envoy, &dir.path().join("web"), &dp, &token, Features::Delta).await.unwrap();
    let through = eventually("a request through the mesh", LIMIT, || async { apps::get(out, "/").await.is_ok_and(|a| a.status == 200 && a.app == "web") }).await;
    assert!(through.is_ok(), "{through:?}\n{}\n{}", cp.process.output(), web.process.output());
}

#[tokio::test]
async fn certificates_of_a_few_seconds_are_replaced_under_traffic() {
    let Some(envoy) = envoy_or_skip("certificates_of_a_few_seconds_are_replaced_under_traffic") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[("KUMA_METRICS_DATAPLANE_SUBSCRIPTION_LIMIT", "0")], &[]).await.unwrap();
    let mut short = mesh("default");
    short["mtls"]["backends"][0]["dpCert"] = json!({"rotation": {"expiration": "5s"}});
    cp.api.apply(&short).await.unwrap();
    cp.api.apply(&permission("Allow")).await.unwrap();
    let app = App::start("web").await.unwrap();
    let (port, out) = (free_port().unwrap(), free_port().unwrap());
    let web = with_outbound(dataplane("web", port, app.port), out, "web", port);
    let token = cp.api.dataplane_token("default", "web").await.unwrap();
    let proxy = StockEnvoy::start(&cp, &envoy, &dir.path().join("web"), &web, &token, Features::Delta).await.unwrap();
    let through = eventually("a request through the mesh", LIMIT, || async { apps::get(out, "/").await.is_ok_and(|a| a.status == 200) }).await;
    assert!(through.is_ok(), "{through:?}\n{}", proxy.process.output());
    let first = peer_certificate(port).await.not_after;
    // Two lives, nothing else happens, every request succeeds.
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while std::time::Instant::now() < end {
        let answer = apps::get(out, "/").await.unwrap();
        assert_eq!(answer.status, 200, "{}\n{}", answer.body, cp.process.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = peer_certificate(port).await.not_after;
    assert!(last > std::time::SystemTime::now() && last > first, "{first:?} {last:?}");
    // Without insights, too, it can be asked what the connected proxy gets.
    assert_eq!(cp.api.get("/meshes/default/dataplane-insights").await.unwrap().json().unwrap()["total"], 0);
    let config = cp.api.get("/meshes/default/dataplanes/web/_config").await.unwrap();
    assert_eq!(config.status, 200, "{}", config.text);
}
