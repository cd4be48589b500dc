//! The bootstrap suite of the conformance corpus, and the recorded bootstraps of a stock control plane.

use ikada_envoy::bootstrap::{
    BootstrapError, BootstrapParams, BootstrapRequest, Response, ServerCertificate, Subject, check, check_dataplane, generate, host_without_port, respond,
};
use ikada_model::{Dataplane, Json, Key, Kind, Resource};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The folder `name` beside the conformance corpus, which `IKADA_CONFORMANCE_DIR` names, else `../shared/conformance` of the workspace. `None`, with
/// the reason printed, where it is absent. In CI it must be there.
fn corpus(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance");
    let conformance = std::env::var_os("IKADA_CONFORMANCE_DIR").map_or(default, PathBuf::from);
    let dir = conformance.join("..").join(name);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing; set IKADA_CONFORMANCE_DIR", dir.display());
    println!("skipped: {} is missing; set IKADA_CONFORMANCE_DIR", dir.display());
    None
}

fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Resources of a YAML stream, stored as they are.
fn load(path: &Path) -> BTreeMap<Key, Resource> {
    let text = fs::read_to_string(path).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    documents.iter().filter(|d| !d.is_null()).map(resource).map(|r| (r.key.clone(), r)).collect()
}

fn resource(document: &Value) -> Resource {
    let mut spec = document.as_object().unwrap().clone();
    let mut take = |k: &str| spec.remove(k).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let (kind, mesh, name) = (take("type"), take("mesh"), take("name"));
    Resource::new(Key::new(Kind::by_name(&kind).unwrap(), &mesh, &name), Json::from_value(&Value::Object(spec)))
}

fn params(env: &Value) -> BootstrapParams {
    let mut p = BootstrapParams::default();
    for (name, value) in env.as_object().into_iter().flatten() {
        let v = value.as_str().unwrap().to_owned();
        match name.as_str() {
            "KUMA_BOOTSTRAP_SERVER_PARAMS_ADMIN_PORT" => p.admin_port = v.parse().unwrap(),
            "KUMA_BOOTSTRAP_SERVER_PARAMS_ENVOY_ADMIN_UNIX_SOCKET" => p.envoy_admin_unix_socket = v.parse().unwrap(),
            "KUMA_BOOTSTRAP_SERVER_PARAMS_ADMIN_ADDRESS" => p.admin_address = v,
            "KUMA_BOOTSTRAP_SERVER_PARAMS_ADMIN_ACCESS_LOG_PATH" => p.admin_access_log_path = v,
            "KUMA_BOOTSTRAP_SERVER_PARAMS_XDS_HOST" => p.xds_host = v,
            "KUMA_BOOTSTRAP_SERVER_PARAMS_XDS_PORT" => p.xds_port = v.parse().unwrap(),
            "KUMA_BOOTSTRAP_SERVER_PARAMS_XDS_CONNECT_TIMEOUT" => {
                p.xds_connect_timeout = Duration::from_secs(v.strip_suffix('s').unwrap().parse().unwrap());
            }
            "KUMA_BOOTSTRAP_SERVER_PARAMS_XDS_GRPC_MAX_RECEIVE_MESSAGE_BYTES" => p.xds_grpc_max_receive_message_bytes = v.parse().unwrap(),
            "KUMA_DP_SERVER_AUTHN_DP_PROXY_TYPE" => p.dp_token_required = v != "none",
            "KUMA_DP_SERVER_AUTHN_ZONE_PROXY_TYPE" => p.zone_token_required = v != "none",
            "KUMA_DP_SERVER_AUTHN_ENABLE_RELOADABLE_TOKENS" => p.enable_reloadable_tokens = v.parse().unwrap(),
            "KUMA_DP_SERVER_HDS_ENABLED" => p.hds_enabled = v.parse().unwrap(),
            "KUMA_PROXY_GATEWAY_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS" => p.gateway_global_downstream_max_connections = v.parse().unwrap(),
            other => panic!("the test does not know {other}"),
        }
    }
    p
}

/// What a server does with one request.
fn answer(body: &[u8], accept: Option<&str>, store: &BTreeMap<Key, Resource>, params: &BootstrapParams) -> Result<Response, BootstrapError> {
    let request = BootstrapRequest::parse(body)?;
    let server = ServerCertificate { pem: "PEM".into(), sans: vec!["localhost".into(), "127.0.0.1".into()] };
    let host = host_without_port("127.0.0.1:5678");
    check(&request, host, params, &server, |_| Some(true))?;
    let inline = request.inline_resource()?.map(|v| resource(&v));
    let stored = store.get(&Key::new(Kind::Dataplane, &request.mesh, &request.name));
    let subject = inline.as_ref().or(stored).ok_or(BootstrapError::NotFound)?;
    let mesh = store.get(&Key::new(Kind::Mesh, "", subject.mesh()));
    if inline.is_some() {
        check_dataplane(subject.mesh(), mesh.is_some(), subject.view::<Dataplane>().unwrap())?;
    }
    let subject = Subject { resource: subject, mesh: Some(mesh.ok_or(BootstrapError::NotFound)?), host, ipv4_only: false, server_pem: &server.pem };
    let bootstrap = generate(&request, &subject, params)?;
    respond(accept, &bootstrap, &request, &subject, params)
}

/// The server's own certificate is no part of a comparison.
fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                if k == "inlineBytes" {
                    *v = Value::String("MASKED".into());
                } else {
                    mask(v);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(mask),
        _ => {}
    }
}

#[test]
fn conformance_suite() {
    let Some(dir) = corpus("conformance") else { return };
    let mut cases = 0;
    for entry in fs::read_dir(dir.join("bootstrap")).unwrap() {
        let case_dir = entry.unwrap().path();
        let name = case_dir.file_name().unwrap().to_string_lossy().into_owned();
        let case = yaml(&case_dir.join("case.yaml"));
        let store = load(&case_dir.join(case["resources"].as_str().unwrap()));
        let params = params(&case["env"]);
        for step in case["steps"].as_array().unwrap() {
            let body = fs::read(case_dir.join(step["body"].as_str().unwrap())).unwrap();
            let answer = answer(&body, None, &store, &params);
            let status = answer.as_ref().map_or_else(BootstrapError::status, |_| 200);
            assert_eq!(u64::from(status), step["status"].as_u64().unwrap(), "{name}: {answer:?}");
            let text = answer.map_or_else(|e| e.body(), |r| r.body);
            match step["compare"].as_str().unwrap() {
                "yaml" => {
                    let mut expected = yaml(&case_dir.join(step["expect"].as_str().unwrap()));
                    let mut got: Value = serde_saphyr::from_str(&text).unwrap();
                    mask(&mut expected);
                    mask(&mut got);
                    assert_eq!(got, expected, "{name}");
                }
                "text" => assert_eq!(text.trim_end(), fs::read_to_string(case_dir.join(step["expect"].as_str().unwrap())).unwrap().trim_end(), "{name}"),
                "status" => {}
                other => panic!("{name}: compare {other}"),
            }
            cases += 1;
        }
    }
    assert!(cases >= 11, "only {cases} steps were run");
}

/// The recorded answers of a stock control plane, to the request that their own text tells.
#[test]
fn recorded_bootstraps() {
    let Some(dir) = corpus("live") else { return };
    for name in ["bootstrap-sotw", "bootstrap-delta", "bootstrap-no-mesh"] {
        let text = fs::read_to_string(dir.join("01-defaults/rest").join(format!("{name}.txt"))).unwrap();
        let (first, yaml) = text.split_once('\n').unwrap();
        assert_eq!(first, "# POST /bootstrap -> 200 text/x-yaml");
        let mut expected: Value = serde_saphyr::from_str(yaml).unwrap();
        let metadata = &expected["node"]["metadata"];
        let (mesh, proxy) = expected["node"]["id"].as_str().unwrap().split_once('.').unwrap();
        let request = serde_json::json!({
            "mesh": mesh, "name": proxy, "dataplaneToken": "TOKEN",
            "dataplaneResource": metadata["dataplane.resource"], "features": metadata["features"], "version": metadata["version"],
            "workdir": metadata["workdir"], "readinessPort": 9912,
        });
        let mesh = serde_json::json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"}});
        let store = [resource(&mesh)].into_iter().map(|r| (r.key.clone(), r)).collect();
        let response = answer(request.to_string().as_bytes(), Some("*/*"), &store, &BootstrapParams::default()).unwrap();
        assert_eq!(response.content_type, "text/x-yaml");
        let mut got: Value = serde_saphyr::from_str(&response.body).unwrap();
        mask(&mut got);
        mask(&mut expected);
        assert_eq!(got, expected, "{name}");
    }
}
