//! Confs of route policies: MeshHTTPRoute's merging by hostname and matches, and the hash that names a rule
//! (reference: Kuma 2.14.3 policy contract, §4.5, §4.6).

use crate::{
    merge::merge,
    spec::{Item, RefKind},
};
use base64::Engine;
use ikada_model::Kind;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Conf of a `to` item. Route policies keep it beside the targetRef; for MeshTCPRoute an item without rules stands for its own target.
pub fn item_conf(kind: Kind, item: &Item) -> Arc<Value> {
    if kind != Kind::MeshTCPRoute {
        return item.conf.clone();
    }
    match item.conf.pointer("/rules/0") {
        Some(rule) => Arc::new(rule.clone()),
        None => {
            let t = &item.target_ref;
            let mut backend = Map::new();
            let mut text = |k: &str, v: &str| {
                if !v.is_empty() {
                    backend.insert(k.to_owned(), v.into());
                }
            };
            text("kind", t.kind.as_str());
            text("name", &t.name);
            text("namespace", &t.namespace);
            text("sectionName", &t.section_name);
            for (k, v) in [("labels", &t.labels), ("tags", &t.tags)] {
                if !v.is_empty() {
                    backend.insert(k.to_owned(), json!(v));
                }
            }
            if t.kind == RefKind::Unknown {
                return Arc::new(Value::Null);
            }
            backend.insert("weight".to_owned(), 1.into());
            Arc::new(json!({ "default": { "backendRefs": [backend] } }))
        }
    }
}

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Merges confs of MeshHTTPRoutes, weakest first: one conf per hostname in order of first appearance (without a hostname: one more).
/// Rules with equal `matches` are merged; the rules of the strongest policy come first.
pub fn merge_confs(confs: &[Arc<Value>]) -> Vec<Arc<Value>> {
    let mut groups: Vec<(Option<&str>, Vec<&Value>)> = Vec::new();
    for conf in confs {
        let mut hosts: Vec<Option<&str>> = list(conf, "hostnames").iter().map(Value::as_str).collect();
        if hosts.is_empty() {
            hosts.push(None);
        }
        for host in hosts {
            match groups.iter_mut().find(|(h, _)| *h == host) {
                Some((_, members)) => members.push(conf),
                None => groups.push((host, vec![conf])),
            }
        }
    }
    let group_conf = |(host, members): (Option<&str>, Vec<&Value>)| {
        let mut conf = Map::new();
        if let Some(h) = host {
            conf.insert("hostnames".to_owned(), json!([h]));
        }
        conf.insert("rules".to_owned(), Value::Array(merge_rules(&members)));
        Arc::new(Value::Object(conf))
    };
    groups.into_iter().map(group_conf).collect()
}

fn merge_rules(confs: &[&Value]) -> Vec<Value> {
    let nothing = Value::Array(Vec::new());
    // (matches, confs weakest first), at the place of the last occurrence.
    let mut rules: Vec<(&Value, Vec<Arc<Value>>)> = Vec::new();
    for rule in confs.iter().flat_map(|c| list(c, "rules").iter().rev()) {
        let matches = rule.get("matches").unwrap_or(&nothing);
        let before = rules.iter().position(|(m, _)| *m == matches);
        let mut parts = before.map(|i| rules.remove(i).1).unwrap_or_default();
        parts.push(Arc::new(rule.get("default").cloned().unwrap_or_else(|| json!({}))));
        rules.push((matches, parts));
    }
    rules.iter().rev().map(|(matches, parts)| json!({ "matches": matches, "default": *merge(parts) })).collect()
}

/// Hashes of the `matches` of a conf's rules; empty for every kind but MeshHTTPRoute.
pub(crate) fn hashes(kind: Kind, conf: &Value) -> Vec<String> {
    if kind != Kind::MeshHTTPRoute {
        return Vec::new();
    }
    list(conf, "rules").iter().map(|r| matches_hash(r.get("matches").unwrap_or(&Value::Null))).collect()
}

/// Base64 of the SHA-256 of `matches` in Kuma's compact JSON: the Envoy route name of a rule.
pub fn matches_hash(matches: &Value) -> String {
    let mut text = String::from("[");
    for (i, m) in matches.as_array().into_iter().flatten().enumerate() {
        if i > 0 {
            text.push(',');
        }
        write_match(&mut text, m);
    }
    text.push(']');
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text.as_bytes()))
}

fn write_match(out: &mut String, m: &Value) {
    let mut fields = Vec::new();
    if let Some(path) = m.get("path").filter(|p| p.is_object()) {
        fields.push(("path", object(&[("value", path.get("value"), true), ("type", path.get("type"), true)])));
    }
    if let Some(method) = m.get("method").and_then(Value::as_str) {
        fields.push(("method", quoted(method)));
    }
    let params: Vec<String> = list(m, "queryParams")
        .iter()
        .map(|q| object(&[("type", q.get("type"), true), ("name", q.get("name"), true), ("value", q.get("value"), true)]))
        .collect();
    if !params.is_empty() {
        fields.push(("queryParams", format!("[{}]", params.join(","))));
    }
    let exact = Value::from("Exact");
    let headers: Vec<String> = list(m, "headers")
        .iter()
        .map(|h| object(&[("type", h.get("type").or(Some(&exact)), true), ("name", h.get("name"), true), ("value", h.get("value"), false)]))
        .collect();
    if !headers.is_empty() {
        fields.push(("headers", format!("[{}]", headers.join(","))));
    }
    let fields: Vec<String> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
    out.push_str(&format!("{{{}}}", fields.join(",")));
}

/// (key, value, written even when empty)
fn object(fields: &[(&str, Option<&Value>, bool)]) -> String {
    let written = fields.iter().filter_map(|(k, v, always)| {
        let text = v.and_then(Value::as_str).unwrap_or("");
        (*always || !text.is_empty()).then(|| format!("\"{k}\":{}", quoted(text)))
    });
    format!("{{{}}}", written.collect::<Vec<_>>().join(","))
}

/// A JSON string as Go writes it: HTML characters and line separators escaped.
fn quoted(s: &str) -> String {
    let mut out = String::new();
    for c in Value::from(s).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            // serde_json writes \b and \f, which Go does since 1.22 as well.
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_the_reference() {
        let prefix = json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
        assert_eq!(matches_hash(&prefix), "9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo=");
        let exact = json!([{"path": {"type": "Exact", "value": "/"}}]);
        assert_eq!(matches_hash(&exact), "JNNc6//C3P17nUsOJm5f4kqG+U3v8pXhS0od9C3+oss=");
    }

    #[test]
    fn text_of_a_match() {
        let m = json!({"headers": [{"name": "a", "value": "<&>"}, {"type": "Present", "name": "b"}], "method": "GET",
            "queryParams": [{"value": "1", "name": "q", "type": "Exact"}]});
        let mut text = String::new();
        write_match(&mut text, &m);
        assert_eq!(
            text,
            r#"{"method":"GET","queryParams":[{"type":"Exact","name":"q","value":"1"}],"headers":[{"type":"Exact","name":"a","value":"\u003c\u0026\u003e"},{"type":"Present","name":"b"}]}"#
        );
    }

    #[test]
    fn strongest_rules_first_and_equal_matches_merged() {
        let rule = |path: &str, default: Value| json!({"matches": [{"path": {"type": "Exact", "value": path}}], "default": default});
        let weak = Arc::new(json!({"rules": [rule("/a", json!({"filters": [1]})), rule("/b", json!({}))]}));
        let strong = Arc::new(json!({"rules": [rule("/c", json!({})), rule("/a", json!({"backendRefs": [2]}))]}));
        let merged = merge_confs(&[weak, strong]);
        assert_eq!(merged.len(), 1);
        let want = [rule("/c", json!({})), rule("/a", json!({"filters": [1], "backendRefs": [2]})), rule("/b", json!({}))];
        assert_eq!(merged[0]["rules"], json!(want));
    }

    #[test]
    fn one_conf_per_hostname() {
        let with = |hosts: Value, path: &str| Arc::new(json!({"hostnames": hosts, "rules": [{"matches": [{"path": path}], "default": {}}]}));
        let merged = merge_confs(&[with(json!(["a", "b"]), "1"), with(json!([]), "2"), with(json!(["b"]), "3")]);
        let hosts: Vec<_> = merged.iter().map(|c| (c.get("hostnames").cloned(), list(c, "rules").len())).collect();
        assert_eq!(hosts, [(Some(json!(["a"])), 1), (Some(json!(["b"])), 2), (None, 1)]);
    }
}
