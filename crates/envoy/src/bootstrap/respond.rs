//! Forms of the answer (§1.3 of the data-plane contract).

use super::{config::Subject, error::BootstrapError, params::BootstrapParams, request::{BootstrapRequest, ProxyType}};
use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_model::Dataplane;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// An answer with status 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub body: String,
}

/// The answer for `accept` (the header's value): exactly `application/json` gives the JSON form, anything else the YAML.
pub fn respond(
    accept: Option<&str>,
    bootstrap: &Value,
    request: &BootstrapRequest,
    subject: &Subject<'_>,
    params: &BootstrapParams,
) -> Result<Response, BootstrapError> {
    let yaml = to_yaml(bootstrap)?;
    if accept != Some("application/json") {
        return Ok(Response { content_type: "text/x-yaml", body: yaml });
    }
    let body = json!({
        "bootstrap": STANDARD.encode(yaml),
        "kumaSidecarConfiguration": sidecar_configuration(request, subject, params),
    });
    Ok(Response { content_type: "application/json", body: body.to_string() })
}

/// A bootstrap as YAML.
pub fn to_yaml(value: &Value) -> Result<String, BootstrapError> {
    let mut text = String::new();
    // No folded or literal blocks: quoted scalars leave no doubt about line ends in tokens, certificates and inline resources.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options).map_err(|e| BootstrapError::Internal(e.to_string()))?;
    Ok(text)
}

/// `kumaSidecarConfiguration`: what kuma-dp itself needs.
pub fn sidecar_configuration(request: &BootstrapRequest, subject: &Subject<'_>, params: &BootstrapParams) -> Value {
    if request.proxy_type != ProxyType::Dataplane {
        return json!({"networking": {"corefileTemplate": null, "address": ""}, "metrics": {"aggregate": []}});
    }
    let address = subject.resource.view::<Dataplane>().map_or("", |d| &d.networking.address);
    json!({
        "networking": {"corefileTemplate": params.corefile_template.as_ref().map(|t| STANDARD.encode(t)), "address": address},
        "metrics": {"aggregate": aggregate(subject, address)},
    })
}

/// Applications to scrape: those of the mesh's enabled Prometheus backend, overlaid by name with the dataplane's own.
fn aggregate(subject: &Subject<'_>, address: &str) -> Vec<Value> {
    let Some(mesh) = subject.mesh else { return Vec::new() };
    let metrics = mesh.spec.value().get("metrics").unwrap_or(&Value::Null);
    let enabled = metrics.get("enabledBackend").and_then(Value::as_str).unwrap_or_default();
    let backends = metrics.get("backends").and_then(Value::as_array).into_iter().flatten();
    let Some(backend) = backends.into_iter().find(|b| !enabled.is_empty() && text(b, "name") == enabled && text(b, "type") == "prometheus") else {
        return Vec::new();
    };
    let own = subject.resource.spec.value().get("metrics").unwrap_or(&Value::Null);
    let list = |v: &Value| v.pointer("/conf/aggregate").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut by_name: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for entry in list(backend).into_iter().chain(list(own)) {
        let name = text(&entry, "name").to_owned();
        if let Value::Object(fields) = entry {
            by_name.insert(name, fields);
        }
    }
    by_name
        .into_iter()
        .filter(|(_, e)| e.get("enabled") != Some(&Value::Bool(false)))
        .map(|(name, e)| {
            let own_address = e.get("address").and_then(Value::as_str).filter(|a| !a.is_empty()).unwrap_or(address);
            json!({
                "name": name,
                "address": own_address,
                "port": e.get("port").and_then(Value::as_u64).unwrap_or(0),
                "path": e.get("path").and_then(Value::as_str).unwrap_or_default(),
            })
        })
        .collect()
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind, Resource};
    use proptest::prelude::*;

    fn resource(kind: Kind, spec: Value) -> Resource {
        Resource::new(Key::new(kind, "default", "x"), Json::from_value(&spec))
    }

    #[test]
    fn json_form() {
        let mesh = resource(
            Kind::Mesh,
            json!({"metrics": {"enabledBackend": "p", "backends": [{"name": "p", "type": "prometheus", "conf": {"aggregate": [
                {"name": "app", "port": 1, "path": "/mesh"}, {"name": "gone", "port": 2}, {"name": "side", "port": 3, "path": "/s", "address": "9.9.9.9"},
            ]}}]}}),
        );
        let dp = resource(
            Kind::Dataplane,
            json!({"networking": {"address": "192.168.0.1"}, "metrics": {"type": "prometheus", "conf": {"aggregate": [
                {"name": "app", "port": 8080, "path": "/metrics"}, {"name": "gone", "enabled": false},
            ]}}}),
        );
        let subject = Subject { resource: &dp, mesh: Some(&mesh), host: "cp", ipv4_only: false, server_pem: "" };
        let params = BootstrapParams { corefile_template: Some(b"abc".to_vec()), ..Default::default() };
        let r = respond(Some("application/json"), &json!({"a": 1}), &BootstrapRequest::default(), &subject, &params).unwrap();
        assert_eq!(r.content_type, "application/json");
        let body: Value = serde_json::from_str(&r.body).unwrap();
        assert_eq!(STANDARD.decode(body["bootstrap"].as_str().unwrap()).unwrap(), b"a: 1\n");
        assert_eq!(
            body["kumaSidecarConfiguration"],
            json!({
                "networking": {"corefileTemplate": "YWJj", "address": "192.168.0.1"},
                "metrics": {"aggregate": [
                    {"name": "app", "address": "192.168.0.1", "port": 8080, "path": "/metrics"},
                    {"name": "side", "address": "9.9.9.9", "port": 3, "path": "/s"},
                ]},
            })
        );
        let yaml = respond(Some("application/json, */*"), &json!({"a": 1}), &BootstrapRequest::default(), &subject, &params).unwrap();
        assert_eq!(yaml, Response { content_type: "text/x-yaml", body: "a: 1\n".into() });
    }

    #[test]
    fn strings_that_look_like_something_else() {
        for s in ["9901", "yes", "on", "y", "~", "null", "1e3", "0x1F", "true", "- a", "a: b", "a #b", " x ", "", "a\nb\n", "\u{85}", "é", "1:20", "2020-01-01", "=", "<<", "%a", "@a", "`a"] {
            let v = json!({"k": s, "l": [s], s: 1});
            let yaml = to_yaml(&v).unwrap();
            assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), v, "{yaml}");
            if ["9901", "yes", "on", "y", "1e3", "0x1F", "2020-01-01", "1:20"].contains(&s) {
                assert!(!yaml.contains(&format!("k: {s}\n")), "a YAML 1.1 reader would misread {yaml}");
            }
        }
    }

    proptest! {
        #[test]
        fn yaml_round_trips(key in ".{0,12}", text in "\\PC{0,40}|[ -~\n\t]{0,40}", n in any::<i64>(), b in any::<bool>()) {
            let v = json!({"o": {key: [text, n, b, {}, []]}});
            let yaml = to_yaml(&v).unwrap();
            prop_assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), v, "{}", yaml);
        }
    }
}
