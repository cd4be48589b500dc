//! Answers of a running stock Kuma 2.14.3, for the state that its recording was made in (folder `01-defaults`).

use crate::common::{App, diff, read, shared, yaml};
use ikada_api::{ApiOptions, Index};
use ikada_model::{Kind, Mode, Timestamp, decode::is_implemented, rest};
use serde_json::{Value, json};
use std::path::Path;

/// Status, content type and body of a recording.
fn recorded(dir: &Path, name: &str) -> (u16, String, String) {
    let text = read(&dir.join(format!("{name}.txt")));
    let (head, body) = text.split_once('\n').unwrap();
    let (_, answer) = head.rsplit_once("-> ").unwrap();
    let (status, content_type) = answer.split_once(' ').unwrap();
    (status.parse().unwrap(), content_type.to_owned(), body.to_owned())
}

/// Blanks what differs from run to run: times, and the data of secrets (masked in the recording).
fn mask(v: &mut Value) {
    match v {
        Value::Object(m) => {
            if let Some(Value::String(s)) = m.get_mut("data") {
                *s = "MASKED".into();
            }
            m.values_mut().for_each(mask);
        }
        Value::Array(a) => a.iter_mut().for_each(mask),
        Value::String(s) if Timestamp::parse(s).is_ok() => *s = Timestamp::ZERO.to_string(),
        _ => {}
    }
}

async fn like_the_recording(inputs: &Path, rest_dir: &Path) -> App {
    let index = Index {
        hostname: "host-1".into(),
        product: "Kuma".into(),
        version: "2.14.3".into(),
        instance_id: "host-1-a1b2".into(),
        based_on_kuma: String::new(),
    };
    let options = ApiOptions { mode: Mode::Zone { federated: false }, index, gui: ikada_api::Gui { enabled: true, ..Default::default() }, ..ApiOptions::default() };
    let app = App::started(options).await;
    let mesh = json!({
        "type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]},
    });
    app.store("/meshes/default", &mesh).await;
    for (file, plural) in [("web", "dataplanes"), ("cli", "dataplanes"), ("permit-all", "meshtrafficpermissions")] {
        let v = yaml(&read(&inputs.join(format!("{file}.yaml")))).remove(0);
        app.store(&format!("/meshes/default/{plural}/{}", v["name"].as_str().unwrap()), &v).await;
    }
    // What the API cannot write: the insight of a connected proxy and the generated MeshServices.
    let body = |name: &str| serde_json::from_str::<Value>(&recorded(rest_dir, name).2).unwrap();
    let mut insight = body("dataplane._overview")["dataplaneInsight"].clone();
    for (k, v) in [("type", "DataplaneInsight"), ("mesh", "default"), ("name", "cli")] {
        insight[k] = v.into();
    }
    let mut verbatim = vec![rest::from_value_verbatim(&insight).unwrap()];
    verbatim.extend(body("meshservices")["items"].as_array().unwrap().iter().map(|v| rest::from_value_verbatim(v).unwrap()));
    app.store.preload(verbatim).await;
    app
}

#[tokio::test]
async fn answers_of_stock_kuma() {
    let Some(live) = shared("IKADA_LIVE_DIR", "live") else { return };
    let kinds = [Kind::Mesh, Kind::Dataplane, Kind::MeshTrafficPermission, Kind::MeshTimeout];
    let missing: Vec<_> = kinds.into_iter().filter(|k| !is_implemented(*k)).collect();
    assert_eq!(missing, [], "these kinds must be writable to make the state of the recording");
    let dir = live.join("01-defaults/rest");
    let app = like_the_recording(&live.join("inputs"), &dir).await;
    let timeout = |name: &str, spec: Value| json!({"type": "MeshTimeout", "mesh": "default", "name": name, "spec": spec}).to_string();
    let bad_kind = timeout("bad", json!({"targetRef": {"kind": "Nope"}, "to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1s"}}]}));
    let empty = timeout("bad", json!({"targetRef": {"kind": "Mesh"}}));
    let requests: Vec<(&str, &str, &str, Option<&str>)> = vec![
        ("index", "GET", "/", None),
        ("meshes", "GET", "/meshes", None),
        ("mesh", "GET", "/meshes/default", None),
        ("zones", "GET", "/zones", None),
        ("zones._overview", "GET", "/zones/_overview", None),
        ("hostnamegenerators", "GET", "/hostnamegenerators", None),
        ("secrets", "GET", "/meshes/default/secrets", None),
        ("dataplane", "GET", "/meshes/default/dataplanes/cli", None),
        ("dataplane._overview", "GET", "/meshes/default/dataplanes/cli/_overview", None),
        ("dataplane+insights", "GET", "/meshes/default/dataplanes+insights/cli", None),
        ("dataplane._layout", "GET", "/meshes/default/dataplanes/cli/_layout", None),
        ("meshservice", "GET", "/meshes/default/meshservices/web", None),
        ("meshservices", "GET", "/meshes/default/meshservices", None),
        ("meshtimeouts", "GET", "/meshes/default/meshtimeouts", None),
        ("meshcircuitbreakers", "GET", "/meshes/default/meshcircuitbreakers", None),
        ("meshretries", "GET", "/meshes/default/meshretries", None),
        ("meshtrafficpermissions", "GET", "/meshes/default/meshtrafficpermissions", None),
        ("mesh-not-found", "GET", "/meshes/nomesh/dataplanes", None),
        ("not-found", "GET", "/meshes/default/dataplanes/nobody", None),
        ("no-route", "GET", "/nothing", None),
        ("versions", "GET", "/versions", None),
        ("who-am-i", "GET", "/who-am-i", None),
        ("put-invalid", "PUT", "/meshes/default/meshtimeouts/bad", Some(&bad_kind)),
        ("put-name-mismatch", "PUT", "/meshes/default/meshtimeouts/other", Some(&empty)),
        ("put-not-json", "PUT", "/meshes/default/meshtimeouts/bad", Some("{not json")),
        ("token-bad", "POST", "/tokens/dataplane", Some(r#"{"name":"x","mesh":"default","type":"dataplane","validFor":"1h"}"#)),
    ];
    let mut failures = Vec::new();
    let count = requests.len();
    for (name, method, path, body) in requests {
        let (status, content_type, want) = recorded(&dir, name);
        let a = app.send(method, path, body.map(str::as_bytes)).await;
        if (a.status, a.header("content-type")) != (status, content_type.as_str()) {
            failures.push(format!("{name}: want {status} {content_type} got {} {} {}", a.status, a.header("content-type"), a.text));
            continue;
        }
        let difference = match name {
            // A token is random.
            "token-bad" => None,
            // As it is, to the last blank; these have no field whose order is free.
            _ if status >= 400 => (a.text.trim_end() != want.trim_end()).then(|| format!("want {want}\ngot {}", a.text)),
            _ => {
                let (mut have, mut want) = (a.json(), serde_json::from_str::<Value>(&want).unwrap());
                mask(&mut have);
                mask(&mut want);
                if name == "index" {
                    assert!(!have["clusterId"].as_str().unwrap().is_empty());
                    want["clusterId"] = have["clusterId"].clone();
                }
                diff(&want, &have, "$")
            }
        };
        failures.extend(difference.map(|d| format!("{name}: {d}")));
    }
    println!("{} of {count} recordings answered alike", count - failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
