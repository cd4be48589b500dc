//! Recordings of a stock control plane, and how they are compared.

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folder of the recordings: `IKADA_LIVE_DIR`, else `../shared/live`. `None` after saying why the test is skipped; a skip fails in CI.
pub fn live_dir_or_skip(test: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("IKADA_LIVE_DIR").map_or_else(|| crate::process::workspace().join("../shared/live"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: the recordings are missing in CI: {}", dir.display());
    eprintln!("{test}: skipped, no recordings in {}", dir.display());
    None
}

/// One recorded request and its answer.
#[derive(Debug)]
pub struct Recording {
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Status.
    pub status: u16,
    /// Content type.
    pub content_type: String,
    /// Body.
    pub body: String,
}

impl Recording {
    /// Reads `# METHOD PATH -> STATUS CONTENT-TYPE`, then the body.
    pub fn read(path: &Path) -> Result<Recording> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let bad = || anyhow!("{}: the first line must be `# METHOD PATH -> STATUS CONTENT-TYPE`", path.display());
        let (head, body) = text.split_once('\n').ok_or_else(bad)?;
        let (request, answer) = head.trim_start_matches("# ").split_once(" -> ").ok_or_else(bad)?;
        let (method, path_) = request.split_once(' ').ok_or_else(bad)?;
        let (status, content_type) = answer.split_once(' ').ok_or_else(bad)?;
        let status = status.parse().map_err(|_| bad())?;
        Ok(Recording { method: method.into(), path: path_.into(), status, content_type: content_type.trim().into(), body: body.into() })
    }
}

/// Fields whose values differ between any two runs.
const VARYING: [&str; 6] = ["creationTime", "modificationTime", "data", "clusterId", "instanceId", "hostname"];

/// A body with what differs between any two runs replaced. `hostname` is kept where it is a service's.
pub fn masked(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter()
                .map(|(k, v)| {
                    let service_name = k == "hostname" && m.contains_key("origin");
                    let value = if VARYING.contains(&k.as_str()) && !service_name { Value::from("*") } else { masked(v) };
                    (k.clone(), value)
                })
                .collect(),
        ),
        Value::Array(a) => a.iter().map(masked).collect(),
        other => other.clone(),
    }
}

/// A bootstrap with certificates and the address of the control plane replaced.
pub fn bootstrap_masked(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter()
                .map(|(k, v)| {
                    let varies = matches!(k.as_str(), "inlineBytes" | "inlineString" | "portValue" | "exact" | "sni" | "address") && !v.is_object();
                    (k.clone(), if varies { Value::from("*") } else { bootstrap_masked(v) })
                })
                .collect::<Map<_, _>>(),
        ),
        Value::Array(a) => a.iter().map(bootstrap_masked).collect(),
        other => other.clone(),
    }
}

/// Compares two `_config` answers per type and resource name; differences are added as texts. Certificates, keys and working folders vary.
pub fn compare_configs(what: &str, ours: &Value, recorded: &Value, differences: &mut Vec<String>) {
    let empty = Map::new();
    let types = |v: &'_ Value| v.get("xds").and_then(Value::as_object).cloned().unwrap_or_else(|| empty.clone());
    let (a, b) = (types(ours), types(recorded));
    let mut urls: Vec<&String> = a.keys().chain(b.keys()).collect();
    urls.sort();
    urls.dedup();
    for url in urls {
        let of = |t: &Map<String, Value>| t.get(url).and_then(Value::as_object).cloned().unwrap_or_default();
        let (a, b) = (of(&a), of(&b));
        let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            match (a.get(name), b.get(name)) {
                (Some(x), Some(y)) if secrets_masked(x) == secrets_masked(y) => {}
                (Some(x), Some(y)) => {
                    differences.push(format!("{what} {url} {name}:\n ours     {}\n recorded {}", secrets_masked(x), secrets_masked(y)));
                }
                (Some(_), None) => differences.push(format!("{what} {url} {name}: not in the recording")),
                (None, _) => differences.push(format!("{what} {url} {name}: missing")),
            }
        }
    }
    let diff = |v: &Value| v.get("diff").and_then(Value::as_array).map_or(0, Vec::len);
    if diff(ours) != diff(recorded) {
        differences.push(format!("{what}: diff has {} operations, recorded {}", diff(ours), diff(recorded)));
    }
}

fn secrets_masked(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter()
                .map(|(k, v)| {
                    let varies = matches!(k.as_str(), "inlineBytes" | "inlineString" | "path") && v.is_string();
                    // A path of a route match is configuration, a path of a socket is not.
                    let socket = k != "path" || v.as_str().is_some_and(|p| p.ends_with(".sock"));
                    (k.clone(), if varies && socket { Value::from("*") } else { secrets_masked(v) })
                })
                .collect(),
        ),
        Value::Array(a) => a.iter().map(secrets_masked).collect(),
        other => other.clone(),
    }
}
