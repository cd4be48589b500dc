//! The recorded configurations of a running stock Kuma: the same resources must give the same configuration.

use crate::common::{Filler, corpus, differences, recorded, yaml};
use ikada_envoy::{ProxyContext, ProxyMetadata, ProxySecrets, Settings, config_view, generate};
use ikada_model::{Kind, Resource};
use ikada_world::World;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

/// What the recorded proxies sent.
fn metadata(name: &str, readiness: u32) -> ProxyMetadata {
    ProxyMetadata::from_json(&json!({
        "features": ["feature-tcp-accesslog-via-named-pipe", "feature-otel-via-kuma-dp", "feature-strict-inbound-ports", "feature-reuse-port"],
        "workdir": format!("/workdir/{name}"),
        "dataplane.admin.port": "9901",
        "dataplane.admin.socketPath": format!("/workdir/{name}/kuma-envoy-admin.sock"),
        "dataplane.readinessReporter.port": readiness.to_string(),
        "ipv6Enabled": true,
    }))
}

/// Mesh and default policies as recorded.
fn base(live: &Path) -> Filler {
    let mut w = Filler::default();
    let rest = live.join("01-defaults/rest");
    w.put(&recorded(&rest.join("mesh.txt")));
    for list in ["meshcircuitbreakers", "meshretries", "meshtimeouts", "meshtrafficpermissions"] {
        for item in recorded(&rest.join(format!("{list}.txt")))["items"].as_array().unwrap() {
            w.put(item);
        }
    }
    w
}

/// The base, services as recorded, dataplanes and the scenario's own resources as applied.
fn world(live: &Path, scenario: Option<&str>) -> World {
    let mut w = base(live);
    for item in recorded(&live.join("01-defaults/rest/meshservices.txt"))["items"].as_array().unwrap() {
        w.put(item);
    }
    for input in ["cli", "web", "permit-all"].into_iter().chain(scenario) {
        for body in yaml(&live.join(format!("inputs/{input}.yaml"))) {
            w.put_in_zone(&body, "default");
        }
    }
    w.world()
}

fn dataplane(world: &World, name: &str) -> Arc<Resource> {
    world.find(Kind::Dataplane, "default", name).unwrap().clone()
}

fn view(world: &World, name: &str, metadata: &ProxyMetadata) -> Value {
    let dp = dataplane(world, name);
    let (settings, secrets) = (Settings::default(), ProxySecrets::dummy());
    let context = ProxyContext { world, dataplane: &dp, metadata, settings: &settings, secrets: &secrets, include_shadow: false };
    config_view(&generate(&context).unwrap()).unwrap()
}

/// As kuma-dp with transparent proxying and CoreDNS.
fn transparent_metadata(name: &str, readiness: u32) -> ProxyMetadata {
    ProxyMetadata { dns_port: 15054, ..metadata(name, readiness) }
}

/// MeshServices as the generator and the allocator made them while 09 and 10 were recorded: addresses in the order web, db, cli.
fn with_virtual_addresses(w: &mut Filler) {
    for (i, (name, port, section, protocol)) in
        [("web", 21000, "http", "http"), ("db", 21020, "tcp", "tcp"), ("cli", 21010, "21010", "http")].iter().enumerate()
    {
        w.put(&json!({
            "type": "MeshService", "mesh": "default", "name": name,
            "labels": {"kuma.io/display-name": name, "kuma.io/env": "universal", "kuma.io/managed-by": "meshservice-generator",
                "kuma.io/mesh": "default", "kuma.io/origin": "zone", "kuma.io/zone": "default"},
            "spec": {
                "state": "Available", "selector": {"dataplaneTags": {"kuma.io/service": name}},
                "ports": [{"name": section, "port": port, "targetPort": port, "appProtocol": protocol}],
                "identities": [{"type": "ServiceTag", "value": name}]},
            "status": {"addresses": [{"hostname": format!("{name}.svc.mesh.local")}], "vips": [{"ip": format!("241.0.0.{i}")}],
                "tls": {"status": "Ready"}},
        }));
    }
}

fn transparent(live: &Path, cli: &str) -> Filler {
    let mut w = base(live);
    with_virtual_addresses(&mut w);
    for input in ["transparent/web", "transparent/db", cli, "permit-all"] {
        for body in yaml(&live.join(format!("inputs/{input}.yaml"))) {
            w.put_in_zone(&body, "default");
        }
    }
    w
}

fn check(scenario: &str, input: Option<&str>) {
    let Some(live) = corpus("IKADA_LIVE_DIR", "live") else { return };
    let proxies = [("cli", metadata("cli", 9912)), ("web", metadata("web", 9911))];
    compare(&live, scenario, &world(&live, input), &proxies);
}

fn compare(live: &Path, scenario: &str, world: &World, proxies: &[(&str, ProxyMetadata)]) {
    let mut wrong = Vec::new();
    for (name, metadata) in proxies {
        let want = recorded(&live.join(scenario).join(format!("{name}._config.json")));
        let got = view(world, name, metadata);
        assert!(want["xds"].as_object().is_some_and(|t| t.len() >= 2), "{scenario}: the recording is empty");
        differences(name, &got["xds"], &want["xds"], &mut wrong);
    }
    assert!(wrong.is_empty(), "{scenario}: {} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn defaults() {
    check("01-defaults", None);
}
#[test]
fn mesh_http_route() {
    check("02-meshhttproute", Some("02-meshhttproute"));
}
#[test]
fn mesh_timeout() {
    check("03-meshtimeout", Some("03-meshtimeout"));
}
#[test]
fn mesh_circuit_breaker() {
    check("04-meshcircuitbreaker", Some("04-meshcircuitbreaker"));
}
#[test]
fn mesh_retry() {
    check("05-meshretry", Some("05-meshretry"));
}
#[test]
fn mesh_traffic_permission() {
    check("06-meshtrafficpermission", Some("06-meshtrafficpermission"));
}
#[test]
fn permissive_mtls() {
    check("07-permissive-mtls", Some("07-permissive-mtls"));
}
#[test]
fn no_mtls() {
    check("08-no-mtls", Some("08-no-mtls"));
}

#[test]
fn transparent_proxying() {
    let Some(live) = corpus("IKADA_LIVE_DIR", "live") else { return };
    let world = transparent(&live, "transparent/cli").world();
    let proxies = [("cli", 9912), ("web", 9911), ("db", 9913)].map(|(n, p)| (n, transparent_metadata(n, p)));
    compare(&live, "09-transparent", &world, &proxies);
}
#[test]
fn reachable_backends() {
    let Some(live) = corpus("IKADA_LIVE_DIR", "live") else { return };
    let world = transparent(&live, "transparent/cli-reach").world();
    compare(&live, "10-reachable-backends", &world, &[("cli", transparent_metadata("cli", 9912))]);
}
#[test]
fn reachable_services() {
    let Some(live) = corpus("IKADA_LIVE_DIR", "live") else { return };
    let mut w = transparent(&live, "transparent/cli-reach-services");
    w.put(
        &json!({"type": "Mesh", "name": "default", "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]}}),
    );
    for service in ["web", "db", "cli"] {
        w.delete(Kind::MeshService, service);
    }
    let vips = json!({"0:cli": {"address": "240.0.0.0", "outbounds": [{"Port": 0, "TagSet": {"kuma.io/service": "cli"}, "Origin": "service"}]},
        "0:web": {"address": "240.0.0.2", "outbounds": [{"Port": 0, "TagSet": {"kuma.io/service": "web"}, "Origin": "service"}]}});
    w.put(&json!({"type": "Config", "name": "kuma-default-dns-vips", "config": vips.to_string()}));
    compare(&live, "12-reachable-services", &w.world(), &[("cli", transparent_metadata("cli", 9912))]);
}
