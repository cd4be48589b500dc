//! Suites `xds-*`: parts of a proxy's configuration. A case shows what one generator adds, so the whole is generated and what the case
//! names is looked up in it, as the corpus asks.

use super::EvalError;
use crate::corpus::{self, Case};
use anyhow::Context;
use ikada_envoy::{GenerateError, ProxyContext, ProxyMetadata, ProxySecrets, Settings, generate_base, json};
use ikada_model::{Kind, Resource, decode, rest::from_value_verbatim};
use serde_json::{Map, Value, json};

/// `json-patch-diff`. The corpus names the two sides the other way round: the expected patch removes what is in `after` and adds what is
/// in `before`. (In replies of `_config`, which the suites `envoyconfig-*` hold, the patch leads to the configuration shown.)
pub fn json_patch_diff(case: &Case) -> Result<Value, EvalError> {
    let read = |field: &str| anyhow::Ok(serde_json::from_str::<Value>(&case.text(field)?)?);
    Ok(Value::Array(ikada_envoy::json_patch_diff(&read("after")?, &read("before")?)))
}

/// `xds-part`.
pub fn part(case: &Case) -> Result<Value, EvalError> {
    let dataplane = from_value_verbatim(&dataplane(case)?).map_err(anyhow::Error::msg)?;
    let mut resources = vec![mesh(case)?];
    if !case.field("resources").is_empty() {
        resources.extend(case.resources("resources")?.into_iter().filter(|r| r.kind() != Kind::Mesh));
    }
    if let Some(r) = resources.iter().find(|r| !decode::is_implemented(r.kind())) {
        return Err(EvalError::Unsupported(format!("the case needs {}, which is not built yet", r.kind())));
    }
    resources.extend(services(case, &dataplane)?);
    resources.push(dataplane.clone());
    let world = corpus::world(&resources)?;
    let admin = case.spec.pointer("/context/envoy_admin_mtls").unwrap_or(&Value::Null);
    let text = |key: &str| admin.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let secrets =
        ProxySecrets { admin_server: Some((text("cert"), text("key"))), admin_ca: Some(text("ca")), ..ProxySecrets::dummy() };
    let (metadata, settings) = (metadata(case), settings(case));
    let context = ProxyContext {
        world: &world,
        dataplane: &dataplane,
        metadata: &metadata,
        settings: &settings,
        secrets: &secrets,
        include_shadow: false,
    };
    let generated = generate_base(&context).map_err(|e| match e {
        GenerateError::Unsupported { .. } => EvalError::Unsupported(e.to_string()),
        e => EvalError::Failed(e.into()),
    })?;
    let expected = case.expected()?;
    let named = |r: &Value| Some((r.get("name")?.as_str()?.to_owned(), r.get("resource")?.get("@type")?.as_str()?.to_owned()));
    let wanted: Vec<_> = expected.get("resources").and_then(Value::as_array).into_iter().flatten().filter_map(named).collect();
    let mut found = Vec::new();
    for g in generated.iter().filter(|g| wanted.iter().any(|(name, ty)| *name == *g.name && ty == g.type_url)) {
        let mut resource = json::to_value(g.type_url, &g.bytes).with_context(|| format!("{} {}", g.type_url, g.name))?;
        if let Value::Object(o) = &mut resource {
            o.insert("@type".to_owned(), g.type_url.into());
        }
        found.push(json!({ "name": &*g.name, "resource": resource }));
    }
    Ok(json!({ "resources": found }))
}

/// The Dataplane of a case, possibly only its `networking` there.
fn dataplane(case: &Case) -> anyhow::Result<Value> {
    let body = case.documents("dataplane")?.into_iter().next();
    let mut body = body.and_then(|d| d.as_object().cloned()).unwrap_or_default();
    for (k, v) in [("type", "Dataplane"), ("mesh", "default"), ("name", "web-1")] {
        body.entry(k).or_insert_with(|| v.into());
    }
    let networking = body.entry("networking").or_insert_with(|| json!({}));
    if let Some(n) = networking.as_object_mut() {
        n.entry("address").or_insert_with(|| "192.168.0.1".into());
    }
    Ok(Value::Object(body))
}

fn mesh(case: &Case) -> anyhow::Result<Resource> {
    let stored = if case.field("resources").is_empty() { Vec::new() } else { case.documents("resources")? };
    let mut mesh = stored
        .into_iter()
        .find(|d| d.get("type").and_then(Value::as_str) == Some("Mesh"))
        .unwrap_or_else(|| json!({"type": "Mesh", "name": "default"}));
    if !case.param("mode").is_empty()
        && let Some(backend) = mesh.pointer_mut("/mtls/backends/0").and_then(Value::as_object_mut)
    {
        backend.insert("mode".to_owned(), case.param("mode").into());
    }
    let mode = ["meshServiceMode", "meshServicesMode"].map(|p| case.param(p)).into_iter().find(|m| !m.is_empty());
    if let (Some(mode), Some(m)) = (mode, mesh.as_object_mut()) {
        m.insert("meshServices".to_owned(), json!({ "mode": mode }));
    }
    from_value_verbatim(&mesh).map_err(anyhow::Error::msg)
}

/// Services with the VIPs and names of the context, for those that the dataplane has an outbound to.
fn services(case: &Case, dataplane: &Resource) -> anyhow::Result<Vec<Resource>> {
    let outbounds = dataplane.spec.value().pointer("/networking/outbound").and_then(Value::as_array);
    let opened: Vec<&Value> = outbounds.into_iter().flatten().filter_map(|o| o.get("address")).collect();
    let vips = case.spec.pointer("/context/vip_domains").and_then(Value::as_array);
    let service = |(i, vip): (usize, &Value)| {
        let address = vip.get("address").filter(|a| opened.contains(a))?;
        let domains = vip.get("domains").and_then(Value::as_array).into_iter().flatten();
        let names: Vec<Value> = domains.map(|d| json!({ "hostname": d })).collect();
        Some(json!({"type": "MeshService", "mesh": dataplane.mesh(), "name": format!("s{i}"), "spec": {"ports": [{"port": 80}]},
            "status": {"vips": [{"ip": address}], "addresses": names}}))
    };
    vips.into_iter().flatten().enumerate().filter_map(service).map(|s| from_value_verbatim(&s).map_err(anyhow::Error::msg)).collect()
}

/// Node metadata from `context` and `params`.
fn metadata(case: &Case) -> ProxyMetadata {
    let nothing = Map::new();
    let of = |name: &str| case.spec.get(name).and_then(Value::as_object).unwrap_or(&nothing);
    let (context, params) = (of("context"), of("params"));
    let flags = params.get("features").or_else(|| params.get("dataplaneMeta")?.get("Features")).and_then(Value::as_object);
    let features: Vec<&String> = flags.into_iter().flatten().filter(|(_, on)| **on == Value::Bool(true)).map(|(f, _)| f).collect();
    let port = |from: &Map<String, Value>, key: &str| from.get(key).and_then(Value::as_u64).unwrap_or(0).to_string();
    ProxyMetadata::from_json(&json!({
        "features": features,
        "dataplane.admin.port": port(context, "admin_port"),
        "dataplane.admin.address": params.get("adminAddress"),
        "dataplane.readinessReporter.port": port(params, "readinessPort"),
        "dataplane.dns.port": port(context, "dns_port"),
        "ipv6Enabled": true,
    }))
}

/// Settings of the control plane from `context`. Addresses there may have a note, `fc00::/7 (prefix length 128)`: the length of the note
/// counts, the address is all before it.
fn settings(case: &Case) -> Settings {
    let mut settings = Settings::default();
    let cidr = |text: &str| match text.split_once(" (prefix length ") {
        Some((address, length)) => format!("{address}/{}", length.trim_end_matches(')')),
        None if text.contains(':') => format!("{text}/128"),
        None => text.to_owned(),
    };
    if let Some(list) = case.spec.pointer("/context/internal_addresses").and_then(Value::as_array) {
        settings.known_internal_cidrs = list.iter().filter_map(Value::as_str).map(cidr).collect();
    }
    settings
}
