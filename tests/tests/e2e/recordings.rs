//! What a stock Kuma answered in the same state (`../shared/live`), against a running control plane with two real sidecars.

use ikada_tests::{
    process::{ControlPlane, envoy_or_skip, eventually},
    recordings::{Recording, live_dir_or_skip, masked},
    stock::{Features, StockEnvoy, bootstrap},
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

fn yaml(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    ikada_model::yaml::parse_documents(&text).unwrap().into_iter().filter(|d| !d.is_null()).collect()
}

/// Scenario → files that are applied on top of the base state. `06` to `08` replace what they name.
const SCENARIOS: [(&str, &[&str]); 8] = [
    ("01-defaults", &[]),
    ("02-meshhttproute", &["02-meshhttproute.yaml"]),
    ("03-meshtimeout", &["03-meshtimeout.yaml"]),
    ("04-meshcircuitbreaker", &["04-meshcircuitbreaker.yaml"]),
    ("05-meshretry", &["05-meshretry.yaml"]),
    ("06-meshtrafficpermission", &["06-meshtrafficpermission.yaml"]),
    ("07-permissive-mtls", &["07-permissive-mtls.yaml"]),
    ("08-no-mtls", &["08-no-mtls.yaml"]),
];

#[tokio::test]
async fn a_stock_control_plane_answered_the_same() {
    let test = "a_stock_control_plane_answered_the_same";
    let (Some(envoy), Some(live)) = (envoy_or_skip(test), live_dir_or_skip(test)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    cp.api.apply(&json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]}})).await.unwrap();
    let inputs = live.join("inputs");
    cp.api.apply(&yaml(&inputs.join("permit-all.yaml"))[0]).await.unwrap();
    let mut sidecars = Vec::new();
    // In the order of the recording: it decides who gets the first virtual IP.
    for (name, readiness) in [("cli", 9912), ("web", 9911)] {
        let dataplane = &yaml(&inputs.join(format!("{name}.yaml")))[0];
        let token = cp.api.dataplane_token("default", name).await.unwrap();
        sidecars.push(StockEnvoy::start_with_readiness(&cp, &envoy, &dir.path().join(name), dataplane, &token, Features::Delta, readiness).await.unwrap());
        eventually("MeshService", LIMIT, || async { cp.api.get(&format!("/meshes/default/meshservices/{name}")).await.is_ok_and(|a| a.status == 200) }).await.unwrap();
    }
    let settled = eventually("services ready", LIMIT, || async {
        let Ok(list) = cp.api.get("/meshes/default/meshservices").await.unwrap().json() else { return false };
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.len() == 2 && items.iter().all(|i| i["status"]["tls"]["status"] == "Ready" && i["status"]["dataplaneProxies"]["connected"] == 1)
    })
    .await;
    assert!(settled.is_ok(), "{}\n{}", cp.api.get("/meshes/default/meshservices").await.unwrap().text, cp.process.output());

    let mut differences = Vec::new();
    for name in [
        "index", "meshes", "mesh", "dataplane", "meshservice", "meshservices", "meshtimeouts", "meshcircuitbreakers", "meshretries",
        "meshtrafficpermissions", "hostnamegenerators", "secrets", "zones", "who-am-i", "versions", "no-route", "not-found", "mesh-not-found",
    ] {
        let recording = Recording::read(&live.join("01-defaults/rest").join(format!("{name}.txt"))).unwrap();
        let answer = cp.api.request(&recording.method, &recording.path, None).await.unwrap();
        if (answer.status, answer.content_type.as_str()) != (recording.status, recording.content_type.as_str()) {
            differences.push(format!("{name}: {} {:?}, recorded {} {:?}", answer.status, answer.content_type, recording.status, recording.content_type));
        }
        if recording.content_type == "application/json" {
            let (ours, theirs) = (masked(&answer.json().unwrap()), masked(&serde_json::from_str(&recording.body).unwrap()));
            if ours != theirs {
                differences.push(format!("{name}:\n ours     {ours}\n recorded {theirs}"));
            }
        } else if answer.text.trim() != recording.body.trim() {
            differences.push(format!("{name}: {:?}, recorded {:?}", answer.text, recording.body));
        }
    }
    for (scenario, files) in SCENARIOS {
        let mut last = 0;
        let mut applied = Vec::new();
        for file in files {
            for resource in yaml(&inputs.join(file)) {
                last = cp.api.apply(&resource).await.unwrap();
                applied.push(resource);
            }
        }
        if last > 0 {
            cp.propagation_ms(last).await.unwrap();
        }
        for name in ["cli", "web"] {
            let recorded: Value = recorded_config(&live.join(scenario).join(format!("{name}._config.json")));
            let path = format!("/meshes/default/dataplanes/{name}/_config?include=diff&shadow=false");
            let ours = cp.api.get(&path).await.unwrap().json().unwrap();
            ikada_tests::recordings::compare_configs(&format!("{scenario}/{name}"), &ours, &recorded, &mut differences);
        }
        for resource in applied.iter().rev() {
            match resource["type"].as_str() {
                // Replaced what was there: put that back.
                Some("Mesh") => drop(cp.api.apply(&json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"},
                    "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]}})).await.unwrap()),
                Some("MeshTrafficPermission") => drop(cp.api.apply(&yaml(&inputs.join("permit-all.yaml"))[0]).await.unwrap()),
                _ => assert_eq!(cp.api.request("DELETE", &ikada_tests::process::path_of(resource).unwrap(), None).await.unwrap().status, 200),
            }
        }
    }
    for sidecar in &mut sidecars {
        assert!(sidecar.process.is_running());
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

fn recorded_config(path: &Path) -> Value {
    // The first line names the request, as in the other recordings.
    let text = fs::read_to_string(path).unwrap();
    let body = if text.starts_with('#') { text.split_once('\n').map_or("", |(_, b)| b) } else { &text };
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn the_dp_server_answers_as_stock() {
    let Some(live) = live_dir_or_skip("the_dp_server_answers_as_stock") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    let dataplane = &yaml(&live.join("inputs/cli.yaml"))[0];
    let request = |features: Value| {
        json!({"mesh": "default", "name": "cli", "proxyType": "dataplane", "dataplaneToken": "TOKEN", "dataplaneResource": dataplane.to_string(),
            "workdir": "/workdir/cli", "readinessPort": 9912, "features": features})
    };
    for (file, features) in [("bootstrap-delta", json!(["feature-delta-grpc"])), ("bootstrap-sotw", json!([]))] {
        let recording = Recording::read(&live.join("01-defaults/rest").join(format!("{file}.txt"))).unwrap();
        let (status, text) = bootstrap(&cp, &request(features)).await.unwrap();
        assert_eq!(status, recording.status, "{text}");
        let read = |t: &str| ikada_model::yaml::parse_documents(t).unwrap().remove(0);
        let (mut ours, mut theirs) = (read(&text), read(&recording.body));
        for side in [&mut ours, &mut theirs] {
            // What the request decides (its versions, features, resource text) and what the machine decides.
            if let Some(m) = side.pointer_mut("/node/metadata").and_then(Value::as_object_mut) {
                for k in ["version", "features", "dataplane.resource", "systemCaPath", "otelEnvInventory", "dataplane.dns.port", "ipv6Enabled", "dynamicMetadata"] {
                    m.remove(k);
                }
            }
        }
        let (ours, theirs) = (ikada_tests::recordings::bootstrap_masked(&ours), ikada_tests::recordings::bootstrap_masked(&theirs));
        assert_eq!(ours, theirs, "{file}");
    }
    let recording = Recording::read(&live.join("01-defaults/rest/bootstrap-no-token.txt")).unwrap();
    let mut no_token = request(json!([]));
    no_token.as_object_mut().unwrap().remove("dataplaneToken");
    let (status, text) = bootstrap(&cp, &no_token).await.unwrap();
    assert_eq!((status, text.trim()), (recording.status, recording.body.trim()));
}
