//! Which plugin makes an outbound.

use crate::common::Filler;
use ikada_envoy::{ProxyContext, ProxyMetadata, ProxySecrets, Settings, config_view, generate, type_urls};
use ikada_model::Kind;
use serde_json::{Value, json};

/// One proxy with an outbound to port 80 (http) on 1080 and to port 83 (tcp) on 1083, and these policies.
fn listeners(policies: &[Value]) -> Value {
    let mut w = Filler::default();
    w.put(&json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"}}));
    let port = |n: u32, p: &str| json!({"port": n, "targetPort": n, "name": p, "appProtocol": p});
    for name in ["web", "other"] {
        w.put(&json!({"type": "MeshService", "mesh": "default", "name": name, "spec": {
            "selector": {"dataplaneTags": {"kuma.io/service": name}}, "ports": [port(80, "http"), port(83, "tcp")]}}));
    }
    let to = |port: u32, section: u32| json!({"port": port, "backendRef": {"kind": "MeshService", "name": "web", "port": section}});
    w.put(&json!({"type": "Dataplane", "mesh": "default", "name": "cli", "networking": {"address": "10.0.0.1",
        "inbound": [{"port": 8080, "tags": {"kuma.io/service": "cli"}}], "outbound": [to(1080, 80), to(1083, 83)]}}));
    policies.iter().for_each(|p| w.put(p));
    let world = w.world();
    let dp = world.find(Kind::Dataplane, "default", "cli").unwrap();
    let (metadata, settings, secrets) = (ProxyMetadata::default(), Settings::default(), ProxySecrets::default());
    let context =
        ProxyContext { world: &world, dataplane: dp, metadata: &metadata, settings: &settings, secrets: &secrets, include_shadow: false };
    config_view(&generate(&context).unwrap()).unwrap()["xds"][type_urls::LISTENER].clone()
}

fn filter(listeners: &Value, port: u32) -> &Value {
    &listeners[format!("outbound:127.0.0.1:{port}")]["filterChains"][0]["filters"][0]["typedConfig"]
}

fn tcp_route(backends: Value) -> Value {
    json!({"type": "MeshTCPRoute", "mesh": "default", "name": "t", "spec": {"to": [
        {"targetRef": {"kind": "MeshService", "name": "web"}, "rules": [{"default": {"backendRefs": backends}}]}]}})
}

#[test]
fn protocol_decides_without_policies() {
    let l = listeners(&[]);
    assert_eq!(filter(&l, 1080)["routeConfig"]["name"], "kri_msvc_default___web_80");
    assert_eq!(filter(&l, 1083)["cluster"], "default_web___msvc_83");
}

#[test]
fn tcp_route_takes_http_outbounds_unless_an_http_route_speaks() {
    let to = |port: u32, weight: u32| json!({"kind": "MeshService", "name": "other", "port": port, "weight": weight});
    let route = tcp_route(json!([to(83, 3), to(80, 1), to(84, 5), to(80, 0)]));
    let l = listeners(std::slice::from_ref(&route));
    let split = json!({"clusters": [{"name": "default_other___msvc_83", "weight": 3}, {"name": "default_other___msvc_80", "weight": 1}]});
    assert_eq!(filter(&l, 1083)["weightedClusters"], split);
    assert_eq!(filter(&l, 1080)["weightedClusters"], split);
    let http = json!({"type": "MeshHTTPRoute", "mesh": "default", "name": "h", "spec": {"to": [
        {"targetRef": {"kind": "MeshService", "name": "web"}, "rules": [{"matches": [{"path": {"type": "Exact", "value": "/"}}], "default": {}}]}]}});
    let l = listeners(&[route, http]);
    assert_eq!(filter(&l, 1080)["routeConfig"]["virtualHosts"][0]["routes"][0]["name"], "kri_mhttpr_default___h_");
    assert_eq!(filter(&l, 1083)["weightedClusters"], split, "an HTTP route has no destination that is not HTTP");
}

#[test]
fn what_is_not_built_is_refused_and_named() {
    let error = |dataplane: Value, extra: Option<Value>| {
        let mut w = Filler::default();
        w.put(&json!({"type": "Mesh", "name": "default"}));
        w.put(&json!({"type": "Dataplane", "mesh": "default", "name": "x", "labels": {"app": "a"}, "networking": dataplane}));
        extra.iter().for_each(|e| w.put(e));
        let world = w.world();
        let dp = world.find(Kind::Dataplane, "default", "x").unwrap();
        let (metadata, settings, secrets) = (ProxyMetadata::default(), Settings::default(), ProxySecrets::default());
        let context =
            ProxyContext { world: &world, dataplane: dp, metadata: &metadata, settings: &settings, secrets: &secrets, include_shadow: false };
        generate(&context).map_or_else(|e| e.to_string(), |_| "accepted".to_owned())
    };
    let plain = json!({"address": "10.0.0.1", "inbound": [{"port": 80, "tags": {"kuma.io/service": "x"}}]});
    assert_eq!(error(plain.clone(), None), "accepted");
    let begin = "dataplane \"x\" in mesh \"default\" cannot be configured: ";
    assert_eq!(
        error(json!({"address": "10.0.0.1", "gateway": {"type": "BUILTIN", "tags": {"kuma.io/service": "x"}}}), None),
        format!("{begin}a builtin gateway is not supported")
    );
    assert_eq!(
        error(json!({"address": "10.0.0.1", "listeners": [{"type": "ZoneIngress", "port": 1}]}), None),
        format!("{begin}a zone proxy listener is not supported")
    );
    let identity = |label: &str| {
        json!({"type": "MeshIdentity", "mesh": "default", "name": "i", "spec": {"selector": {"dataplane": {"matchLabels": {"app": label}}}}})
    };
    assert_eq!(error(plain.clone(), Some(identity("b"))), "accepted");
    assert!(error(plain.clone(), Some(identity("a"))).contains("MeshIdentity"));
    let tls = json!({"type": "MeshTLS", "mesh": "default", "name": "t",
        "spec": {"targetRef": {"kind": "Mesh"}, "from": [{"targetRef": {"kind": "Mesh"}, "default": {"mode": "Strict"}}]}});
    assert_eq!(error(plain, Some(tls)), format!("{begin}a MeshTLS that applies to it is not supported"));
}
