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

/// Mesh, default policies and generated services as recorded, dataplanes and the scenario's own resources as applied.
fn world(live: &Path, scenario: Option<&str>) -> World {
    let mut w = Filler::default();
    let rest = live.join("01-defaults/rest");
    w.put(&recorded(&rest.join("mesh.txt")));
    for list in ["meshcircuitbreakers", "meshretries", "meshtimeouts", "meshtrafficpermissions", "meshservices"] {
        for item in recorded(&rest.join(format!("{list}.txt")))["items"].as_array().unwrap() {
            w.put(item);
        }
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

fn check(scenario: &str, input: Option<&str>) {
    let Some(live) = corpus("IKADA_LIVE_DIR", "live") else { return };
    let world = world(&live, input);
    let mut wrong = Vec::new();
    for (name, port) in [("cli", 9912), ("web", 9911)] {
        let want = recorded(&live.join(scenario).join(format!("{name}._config.json")));
        let got = view(&world, name, &metadata(name, port));
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
