//! The REST form of resources (reference: Kuma 2.14.3 REST contract, §2.1, §2.2).

use crate::{
    kind::{Body, Kind},
    kri::{Kri, sni},
    mesh_service::MeshService,
    policy,
    resource::{Json, Key, Labels, Resource},
    time::Timestamp,
};
use serde_json::{Map, Value, json};

/// Metadata keys of a body; in flat kinds everything else is the spec.
pub const META_KEYS: &[&str] = &["type", "mesh", "name", "creationTime", "modificationTime", "labels", "kri", "snis"];

/// The resource as REST shows it. `status` is the stored status merged with the fast-changing one.
pub fn to_value(r: &Resource, status: &Value) -> Value {
    let mut m = meta(r);
    match r.kind().descriptor().body {
        Body::Flat => {
            if let Value::Object(spec) = r.spec.value() {
                for (k, v) in spec {
                    m.entry(k.clone()).or_insert_with(|| v.clone());
                }
            }
        }
        Body::Spec => {
            m.insert("spec".into(), r.spec.value().clone());
        }
        Body::SpecStatus => {
            m.insert("spec".into(), r.spec.value().clone());
            m.insert("status".into(), status_with_defaults(r.kind(), status));
        }
    }
    Value::Object(m)
}

/// The metadata part alone.
pub fn meta(r: &Resource) -> Map<String, Value> {
    let mut m = Map::new();
    m.insert("type".into(), r.kind().name().into());
    if r.kind().is_mesh_scoped() {
        m.insert("mesh".into(), r.mesh().into());
    }
    m.insert("name".into(), r.name().into());
    m.insert("creationTime".into(), r.creation_time.to_string().into());
    m.insert("modificationTime".into(), r.modification_time.to_string().into());
    if !r.labels.is_empty() {
        m.insert("labels".into(), json!(r.labels));
    }
    if !r.kind().descriptor().short.is_empty() {
        m.insert("kri".into(), Kri::of(r).to_string().into());
    }
    let snis = snis(r);
    if !snis.is_empty() {
        m.insert("snis".into(), Value::Array(snis));
    }
    m
}

/// Status fields that are present even when nothing is known.
fn status_with_defaults(kind: Kind, status: &Value) -> Value {
    let mut s = match status {
        Value::Object(m) => m.clone(),
        _ => Map::new(),
    };
    match kind {
        Kind::MeshService => {
            s.entry("tls").or_insert_with(|| json!({}));
            s.entry("dataplaneProxies").or_insert_with(|| json!({}));
        }
        Kind::MeshExternalService => {
            s.entry("vip").or_insert_with(|| json!({}));
        }
        Kind::Workload => {
            s.entry("dataplaneProxies").or_insert_with(|| json!({"connected": 0, "healthy": 0, "total": 0}));
        }
        _ => {}
    }
    Value::Object(s)
}

fn snis(r: &Resource) -> Vec<Value> {
    let entry = |port: u64, section: &str| json!({"port": port, "sni": sni(r.kind(), r.mesh(), r.display_name(), &r.labels, section)});
    match r.kind() {
        Kind::MeshService => {
            let Some(ms) = r.view::<MeshService>() else { return Vec::new() };
            let mut ports: Vec<_> = ms.ports.iter().collect();
            ports.sort_by_key(|p| p.port);
            ports.iter().map(|p| entry(p.port.into(), &p.section())).collect()
        }
        Kind::MeshExternalService => {
            r.spec.value().pointer("/match/port").and_then(Value::as_u64).map(|p| entry(p, &p.to_string())).into_iter().collect()
        }
        Kind::MeshMultiZoneService => {
            let mut ports: Vec<(u64, String)> = r
                .spec
                .value()
                .get("ports")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|p| {
                    let n = p.get("port")?.as_u64()?;
                    Some((n, p.get("name").and_then(Value::as_str).filter(|s| !s.is_empty()).map_or_else(|| n.to_string(), str::to_owned)))
                })
                .collect();
            ports.sort();
            ports.iter().map(|(n, section)| entry(*n, section)).collect()
        }
        _ => Vec::new(),
    }
}

/// A resource read verbatim from its REST form: nothing is computed or validated beyond the shape, and defaults are only those that
/// decoding fills in (those of the schemas of `spec`-bodied kinds).
/// Used for bundles. Errors are texts for people.
pub fn from_value_verbatim(body: &Value) -> Result<Resource, String> {
    let Value::Object(m) = body else { return Err("a resource must be a JSON object".into()) };
    let text = |k: &str| m.get(k).and_then(Value::as_str);
    let type_name = text("type").ok_or("a resource must have a \"type\"")?;
    let kind = Kind::by_name(type_name).ok_or_else(|| format!("unknown resource type {type_name:?}"))?;
    let name = text("name").ok_or_else(|| format!("a {kind} must have a \"name\""))?;
    let mesh = text("mesh").filter(|s| !s.is_empty()).unwrap_or("default");
    let (spec, status) = match kind.descriptor().body {
        Body::Flat => {
            let spec: Map<_, _> = m.iter().filter(|(k, _)| !META_KEYS.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect();
            (Value::Object(spec), Value::Null)
        }
        _ => {
            let spec = m.get("spec").cloned().unwrap_or_else(|| json!({}));
            let spec = policy::canonical_spec(kind, &spec).map_err(|e| format!("spec of {kind} {name:?}: {e}"))?;
            (spec, m.get("status").cloned().unwrap_or(Value::Null))
        }
    };
    let time = |k: &str| match m.get(k) {
        None | Some(Value::Null) => Ok(Timestamp::ZERO),
        Some(Value::String(s)) => Timestamp::parse(s),
        Some(other) => Err(format!("{k} must be a string, got {other}")),
    };
    let labels: Labels = match m.get("labels") {
        None | Some(Value::Null) => Labels::new(),
        Some(v) => serde_json::from_value(v.clone()).map_err(|e| format!("labels of {kind} {name:?}: {e}"))?,
    };
    let mut r = Resource::new(Key::new(kind, mesh, name), Json::from_value(&spec)).with_labels(labels);
    r.creation_time = time("creationTime")?;
    r.modification_time = time("modificationTime")?;
    if !status.is_null() {
        r.status = Json::from_value(&status);
    }
    Ok(r)
}
