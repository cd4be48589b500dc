//! Cases of the conformance corpus that generation alone can answer.

use crate::common::{Filler, corpus, differences, recorded, yaml};
use ikada_envoy::{
    Generated, ProxyContext, ProxyMetadata, ProxySecrets, Settings, config_view, generate, generate_base, json, json_patch_diff,
};
use ikada_model::{Kind, Resource};
use ikada_world::World;
use regex::{Captures, Regex};
use serde_json::{Map, Value, json};
use std::{
    fs,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

fn cases(suite: &str) -> Vec<PathBuf> {
    let Some(root) = corpus("IKADA_CONFORMANCE_DIR", "conformance") else { return Vec::new() };
    let mut all: Vec<PathBuf> = fs::read_dir(root.join(suite)).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    assert!(!all.is_empty(), "{suite} has no cases");
    all
}

fn one(path: &Path) -> Value {
    yaml(path).into_iter().next().unwrap_or(Value::Null)
}

/// Node metadata from `context` and `params` of an xds-part case.
fn metadata(case: &Value) -> ProxyMetadata {
    let (context, params) = (&case["context"], &case["params"]);
    let flags = [params, &params["dataplaneMeta"]].into_iter().find_map(|p| p.get("features").or(p.get("Features"))?.as_object());
    let features: Vec<&String> = flags.into_iter().flatten().filter(|(_, on)| **on == json!(true)).map(|(f, _)| f).collect();
    let port = |v: &Value| v.as_u64().unwrap_or(0).to_string();
    ProxyMetadata::from_json(&json!({
        "features": features,
        "dataplane.admin.port": port(&context["admin_port"]),
        "dataplane.admin.address": params["adminAddress"],
        "dataplane.readinessReporter.port": port(&params["readinessPort"]),
        "dataplane.dns.port": port(&context["dns_port"]),
        "ipv6Enabled": true,
    }))
}

/// The Dataplane of an xds-part case, possibly only its `networking`.
fn dataplane(case: &Path) -> Value {
    let mut dp = match one(&case.join("dataplane.yaml")) {
        Value::Object(m) => m,
        _ => Map::new(),
    };
    for (k, v) in [("type", "Dataplane"), ("mesh", "default"), ("name", "web-1")] {
        dp.entry(k).or_insert_with(|| v.into());
    }
    let networking = dp.entry("networking").or_insert_with(|| json!({}));
    if networking.get("address").is_none() {
        networking["address"] = "192.168.0.1".into();
    }
    Value::Object(dp)
}

fn mesh(case: &Path, spec: &Value) -> Value {
    let stored = case.join("resources.yaml");
    let mut mesh = match stored.is_file() {
        true => yaml(&stored).into_iter().find(|d| d["type"] == "Mesh").unwrap(),
        false => json!({"type": "Mesh", "name": "default"}),
    };
    let params = &spec["params"];
    if let Some(mode) = params.get("mode") {
        mesh["mtls"]["backends"][0]["mode"] = mode.clone();
    }
    if let Some(mode) = params.get("meshServiceMode").or(params.get("meshServicesMode")) {
        mesh["meshServices"] = json!({"mode": mode});
    }
    mesh
}

fn settings(spec: &Value) -> Settings {
    // "fc00::/7 (prefix length 128)": the whole text before the blank is the address.
    let cidrs = spec["context"]["internal_addresses"].as_array().map(|list| {
        list.iter()
            .filter_map(Value::as_str)
            .map(|c| {
                c.split_once(" (prefix length ").map_or_else(
                    || if c.contains(':') { format!("{c}/128") } else { c.to_owned() },
                    |(a, n)| format!("{a}/{}", n.trim_end_matches(')')),
                )
            })
            .collect()
    });
    let defaults = Settings::default();
    Settings { known_internal_cidrs: cidrs.unwrap_or(defaults.known_internal_cidrs.clone()), ..defaults }
}

/// Generates what the case's generator makes and compares the resources that the case expects by type and name. `skip` names resources
/// that need policies of the old model.
fn check_part(case: &Path, world: Filler, skip: &[&str]) {
    let spec = one(&case.join("case.yaml"));
    let title = spec["title"].as_str().unwrap_or_default();
    let body = dataplane(case);
    let mut world = world;
    world.put(&mesh(case, &spec));
    world.put(&body);
    let world = world.world();
    let dp = world.find(Kind::Dataplane, "default", body["name"].as_str().unwrap()).unwrap().clone();
    let admin = &spec["context"]["envoy_admin_mtls"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let secrets = ProxySecrets {
        admin_server: Some((text(&admin["cert"]), text(&admin["key"]))),
        admin_ca: Some(text(&admin["ca"])),
        ..Default::default()
    };
    let (metadata, settings) = (metadata(&spec), settings(&spec));
    let context =
        ProxyContext { world: &world, dataplane: &dp, metadata: &metadata, settings: &settings, secrets: &secrets, include_shadow: false };
    let got = generate_base(&context).unwrap_or_else(|e| panic!("{title}: {e}"));
    let expected = one(&case.join("expected.yaml"));
    let mut wrong = Vec::new();
    for want in expected["resources"].as_array().into_iter().flatten() {
        let (name, type_url) = (want["name"].as_str().unwrap(), want["resource"]["@type"].as_str().unwrap());
        if skip.contains(&name) {
            continue;
        }
        let mut resource = want["resource"].clone();
        resource.as_object_mut().unwrap().remove("@type");
        let found: Option<&Generated> = got.iter().find(|g| &*g.name == name && g.type_url == type_url);
        let value = found.map_or(Value::Null, |g| json::to_value(g.type_url, &g.bytes).unwrap());
        differences(name, &value, &resource, &mut wrong);
    }
    assert!(wrong.is_empty(), "{title}: {} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn xds_admin() {
    for case in cases("xds-admin") {
        check_part(&case, Filler::default(), &[]);
    }
}

#[test]
fn xds_inbound() {
    for case in cases("xds-inbound") {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("09-") {
            println!("left out: {name} needs MeshTrust");
            continue;
        }
        // Policies of the old model are attached to this inbound.
        let skip: &[&str] = if name.starts_with("08-") { &[] } else { &["inbound:192.168.0.1:80"] };
        check_part(&case, Filler::default(), skip);
    }
}

#[test]
fn xds_dns() {
    for case in cases("xds-dns") {
        let spec = one(&case.join("case.yaml"));
        let mut world = Filler::default();
        let opened = dataplane(&case)["networking"]["outbound"].clone();
        for (i, vip) in spec["context"]["vip_domains"].as_array().into_iter().flatten().enumerate() {
            if !opened.as_array().into_iter().flatten().any(|o| o["address"] == vip["address"]) {
                continue;
            }
            let addresses: Vec<Value> = vip["domains"].as_array().unwrap().iter().map(|d| json!({"hostname": d})).collect();
            world.put(&json!({"type": "MeshService", "mesh": "default", "name": format!("s{i}"), "spec": {"ports": [{"port": 80}]},
                "status": {"vips": [{"ip": vip["address"]}], "addresses": addresses}}));
        }
        check_part(&case, world, &[]);
    }
}

#[test]
fn xds_direct_access() {
    for case in cases("xds-direct-access") {
        let mut world = Filler::default();
        for body in yaml(&case.join("resources.yaml")).iter().filter(|d| d["type"] == "Dataplane") {
            world.put(body);
        }
        check_part(&case, world, &[]);
    }
}

#[test]
fn xds_diff() {
    for case in cases("xds-diff") {
        let read = |f: &str| recorded(&case.join(f));
        // The expected patch removes what after.json has and adds what before.json has.
        let got = Value::Array(json_patch_diff(&read("after.json"), &read("before.json")));
        assert_eq!(got, read("expected.json"), "{}", case.display());
    }
}

const MESH: &str = "envoyconfig";
const ZONE: &str = "kuma-3";
/// Kinds whose cases are answered.
const BUILT: [&str; 5] = ["MeshHTTPRoute", "MeshTimeout", "MeshTrafficPermission", "MeshCircuitBreaker", "MeshRetry"];

/// A MeshService as the generator, the updater and the allocator would leave it.
fn service(name: &str, port: u64, protocol: &str, vip: usize) -> Value {
    json!({
        "type": "MeshService", "mesh": MESH, "name": name,
        "labels": {"kuma.io/display-name": name, "kuma.io/env": "universal", "kuma.io/managed-by": "meshservice-generator",
            "kuma.io/mesh": MESH, "kuma.io/origin": "zone", "kuma.io/zone": ZONE},
        "spec": {"state": "Available", "selector": {"dataplaneTags": {"kuma.io/service": name}},
            "ports": [{"name": port.to_string(), "port": port, "targetPort": port, "appProtocol": protocol}],
            "identities": [{"type": "ServiceTag", "value": name}]},
        "status": {"addresses": [{"hostname": format!("{name}.svc.mesh.local")}], "vips": [{"ip": format!("241.0.0.{vip}")}],
            "tls": {"status": "Ready"}},
    })
}

fn sidecar(world: &World, dp: &Arc<Resource>, include_shadow: bool) -> Value {
    let metadata = ProxyMetadata::from_json(&json!({
        "features": ["feature-tcp-accesslog-via-named-pipe", "feature-otel-via-kuma-dp", "feature-embedded-dns",
            "feature-strict-inbound-ports", "feature-reuse-port"],
        "workdir": "/tmp", "ipv6Enabled": false,
        "dataplane.admin.port": "9901", "dataplane.readinessReporter.port": "9902", "dataplane.dns.port": "15054",
    }));
    let (settings, secrets) = (Settings { zone: ZONE.into(), ..Default::default() }, ProxySecrets::dummy());
    let context = ProxyContext { world, dataplane: dp, metadata: &metadata, settings: &settings, secrets: &secrets, include_shadow };
    config_view(&generate(&context).unwrap()).unwrap()
}

/// The suite's normalisation.
struct Normalizer {
    v4: Regex,
    v6: Regex,
}

impl Normalizer {
    fn new() -> Self {
        Normalizer {
            v4: Regex::new(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b").unwrap(),
            v6: Regex::new(r"\[?[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F]*\]?").unwrap(),
        }
    }
    fn text(&self, s: &str) -> String {
        let s = self.v4.replace_all(s, "IP_REDACTED");
        let v6 = |c: &Captures<'_>| {
            let token = &c[0];
            let is = token.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok();
            if is { "IP_REDACTED".to_owned() } else { token.to_owned() }
        };
        self.v6.replace_all(&s, v6).into_owned()
    }
    fn value(&self, v: &Value) -> Value {
        match v {
            Value::String(s) => self.text(s).into(),
            Value::Array(a) => a.iter().map(|x| self.value(x)).collect(),
            Value::Object(m) => {
                let mut out = Map::new();
                for (k, x) in m.iter().filter(|(k, _)| *k != "dnsLookupFamily") {
                    let x = if k == "statPrefix" && x.is_string() { "STAT_PREFIX_REDACTED".into() } else { self.value(x) };
                    out.insert(self.text(k), x);
                }
                Value::Object(out)
            }
            other => other.clone(),
        }
    }
    fn config(&self, xds: &Value, diff: &Value) -> Value {
        let mut xds = xds.clone();
        for (t, resources) in xds.as_object_mut().into_iter().flatten() {
            let Some(resources) = resources.as_object_mut() else { continue };
            resources.remove("_kuma:dynamicconfig");
            for (_, r) in resources.iter_mut().filter(|(n, _)| matches!(n.as_str(), "kuma:envoy:admin" | "kuma:readiness")) {
                let at = if t.ends_with("Listener") { "/address" } else { "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address" };
                if let Some(a) = r.pointer_mut(at) {
                    *a = json!({"socketAddress": {"address": "ADMIN_REDACTED", "portValue": 0}});
                }
            }
        }
        let ops = diff.as_array().into_iter().flatten().filter(|o| o["op"] != "test");
        let ops = ops.filter(|o| !o["path"].as_str().unwrap_or_default().ends_with("maxDirectResponseBodySizeBytes"));
        let mut ops: Vec<Value> = ops.map(|o| self.value(o)).collect();
        ops.sort_by_key(|o| (o["path"].to_string(), o["op"] != "remove", o["value"].to_string()));
        json!({"xds": self.value(&xds), "diff": ops})
    }
}

#[test]
fn envoyconfig_sidecars() {
    let (mut answered, mut left_out) = (Vec::new(), Vec::new());
    let mut wrong = Vec::new();
    let normalizer = Normalizer::new();
    for case in cases("envoyconfig-sidecars") {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let policies: Vec<Value> = yaml(&case.join("policies.yaml")).into_iter().filter(|p| !p.is_null()).collect();
        if policies.iter().any(|p| !BUILT.contains(&p["type"].as_str().unwrap_or_default())) {
            left_out.push(name);
            continue;
        }
        let mut world = Filler::default();
        for body in yaml(&case.join("resources.yaml")).iter().chain(&policies) {
            world.put_in_zone(body, ZONE);
        }
        world.put(&service("demo-client", 3000, "tcp", 0));
        world.put(&service("test-server", 80, "http", 1));
        let world = world.world();
        for proxy in ["demo-client", "test-server"] {
            let dp = world.find(Kind::Dataplane, MESH, proxy).unwrap();
            let (running, shadow) = (sidecar(&world, dp, false), sidecar(&world, dp, true));
            let diff = Value::Array(json_patch_diff(&running["xds"], &shadow["xds"]));
            let got = normalizer.config(&shadow["xds"], &diff);
            let want = recorded(&case.join(format!("expected.{proxy}.json")));
            let want = normalizer.config(&want["xds"], &want["diff"]);
            differences(&format!("{name} {proxy}"), &got, &want, &mut wrong);
        }
        answered.push(name);
    }
    println!("answered {}: {answered:?}; left out {}: {left_out:?}", answered.len(), left_out.len());
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}
