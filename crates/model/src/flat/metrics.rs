//! The Prometheus metrics backend, the same in Mesh and Dataplane (reference: Kuma 2.14.3 REST contract, §8.1; legacy §3.7).

use super::{
    checks::{list, text},
    proto::{self, Enum, Message, Type, field},
};
use crate::violation::{Path, Violations};
use serde_json::{Value, json};
use std::collections::HashSet;

/// The only type of metrics backends.
pub const PROMETHEUS: &str = "prometheus";

static TLS_MODE: Enum =
    Enum { name: "kuma.mesh.v1alpha1.PrometheusTlsConfig.Mode", values: &[("activeMTLSBackend", 0), ("providedTLS", 1), ("disabled", 2)] };
static AGGREGATE: Message = Message {
    name: "kuma.mesh.v1alpha1.PrometheusAggregateMetricsConfig",
    fields: &[
        field("name", Type::String),
        field("port", Type::U32),
        field("path", Type::String),
        field("enabled", Type::BoolValue),
        field("address", Type::String),
    ],
};
static CONF: Message = Message {
    name: "kuma.mesh.v1alpha1.PrometheusMetricsBackendConfig",
    fields: &[
        field("port", Type::U32),
        field("path", Type::String),
        field("tags", Type::Map(&Type::String)),
        field("skipMTLS", Type::BoolValue),
        field("aggregate", Type::List(&Type::Message(&AGGREGATE))),
        field(
            "envoy",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.PrometheusEnvoyConfig",
                fields: &[field("filterRegex", Type::String), field("usedOnly", Type::BoolValue)],
            }),
        ),
        field(
            "tls",
            Type::Message(&Message { name: "kuma.mesh.v1alpha1.PrometheusTlsConfig", fields: &[field("mode", Type::Enum(&TLS_MODE))] }),
        ),
    ],
};

/// The canonical conf of a Prometheus backend, `{}` when there is none. Errors when it is no such conf.
pub fn prometheus_conf(conf: Option<&Value>) -> Result<Value, String> {
    proto::canonicalize(&CONF, conf.unwrap_or(&Value::Null))
}

/// Rules on the conf of a Prometheus backend; `at` is the conf itself.
pub fn validate_conf(at: &Path, conf: Option<&Value>, out: &mut Violations) {
    let conf = match prometheus_conf(conf) {
        Ok(conf) => conf,
        Err(e) => return out.add(at, format!("could not parse config: {e}")),
    };
    if let (Some(skip), Some(tls)) = (conf.get("skipMTLS"), conf.get("tls")) {
        let consistent = match text(tls, "mode") {
            "" => skip.as_bool() == Some(false),
            "disabled" => skip.as_bool() == Some(true),
            _ => false,
        };
        if !consistent {
            out.add(at, "skipMTLS and tls configuration cannot be defined together");
        }
    }
    if let Some(envoy) = conf.get("envoy")
        && let Err(e) = regex::Regex::new(text(envoy, "filterRegex"))
    {
        let reason = e.to_string();
        let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
        out.add(at.field("envoy").field("filterRegex"), format!("provided regexp isn't correct: {last}"));
    }
    let mut used = HashSet::new();
    for (i, item) in list(&conf, "aggregate").iter().enumerate() {
        let name = text(item, "name");
        if !used.insert(name) {
            out.add(at.field("aggregate").index(i).field("name"), format!("duplicate entry: {name}, values have to be unique"));
        }
    }
}

/// The conf with the defaults that are stored with a Mesh: port, path, tags and the TLS mode that `skipMTLS` means.
/// A conf that does not parse stays as it is (it is refused before).
pub fn default_conf(conf: Option<&Value>) -> Value {
    let Ok(Value::Object(mut conf)) = prometheus_conf(conf) else { return conf.cloned().unwrap_or_else(|| json!({})) };
    let mut absent = |key: &str, value: Value| {
        conf.entry(key).or_insert(value);
    };
    absent("port", json!(5670));
    absent("path", json!("/metrics"));
    absent("tags", json!({"kuma.io/service": "dataplane-metrics"}));
    let skip = conf.get("skipMTLS").and_then(Value::as_bool);
    match conf.get("tls") {
        None => {
            conf.insert("tls".into(), if skip == Some(true) { json!({"mode": "disabled"}) } else { json!({}) });
        }
        Some(tls) if text(tls, "mode") == "providedTLS" => {
            conf.remove("skipMTLS");
        }
        Some(_) => {}
    }
    Value::Object(conf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let full = |rest: Value| {
            let mut v = json!({"port": 5670, "path": "/metrics", "tags": {"kuma.io/service": "dataplane-metrics"}});
            for (key, value) in rest.as_object().unwrap() {
                v[key] = value.clone();
            }
            v
        };
        assert_eq!(default_conf(None), full(json!({"tls": {}})));
        assert_eq!(default_conf(Some(&json!({"skipMTLS": true}))), full(json!({"skipMTLS": true, "tls": {"mode": "disabled"}})));
        assert_eq!(default_conf(Some(&json!({"skip_mtls": 1, "skipMTLS": false}))), full(json!({"skipMTLS": false, "tls": {}})));
        assert_eq!(
            default_conf(Some(&json!({"port": 1, "tls": {"mode": 1}, "skipMTLS": true}))),
            full(json!({"port": 1, "tls": {"mode": "providedTLS"}}))
        );
        let once = default_conf(None);
        assert_eq!(default_conf(Some(&once)), once);
    }

    #[test]
    fn rules() {
        let check = |conf: Value| {
            let mut out = Violations::new();
            validate_conf(&Path::of("c"), Some(&conf), &mut out);
            out.into_iter().map(|v| v.to_string()).collect::<Vec<_>>()
        };
        assert!(check(json!({"skipMTLS": false, "tls": {}})).is_empty());
        assert!(check(json!({"skipMTLS": true, "tls": {"mode": "disabled"}})).is_empty());
        assert_eq!(check(json!({"skipMTLS": true, "tls": {}})), ["c: skipMTLS and tls configuration cannot be defined together"]);
        assert!(check(json!({"envoy": {"filterRegex": "("}}))[0].starts_with("c.envoy.filterRegex: provided regexp isn't correct: "));
        assert_eq!(check(json!({"port": "x"})), ["c: could not parse config: json: cannot unmarshal string into Go value of type uint32"]);
    }
}
