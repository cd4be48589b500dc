//! Kuma's internal dump of rules.

use ikada_model::{Kind, Kri, Resource, go, policy::kind_spec, rest};
use ikada_policy::{
    InboundKey, InboundRule, ResourceRule, RuleOrigin, SubsetRule, TargetRef, ToRules,
    rules::GatewayRules,
    spec::Tags,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How the metadata of resources look.
#[derive(Clone, Copy)]
pub enum MetaForm {
    /// As over REST.
    Rest,
    /// As Kuma's own test metadata; meshes are as over REST there too.
    Test,
}

/// A spec as Kuma's typed decoding and encoding leaves it. The corpus holds specs as people wrote them; kinds with a schema have been
/// brought into this form by loading.
pub fn typed_spec(kind: Kind, spec: &Value) -> Value {
    let mut spec = spec.clone();
    if kind_spec(kind).is_none() {
        durations(&mut spec);
        defaults(kind, &mut spec);
    }
    spec
}

/// Kinds whose schema is not there yet: every text that is a Go duration is one.
fn durations(v: &mut Value) {
    match v {
        Value::String(s) if s.starts_with(|c: char| c.is_ascii_digit()) && s.ends_with(|c: char| c.is_ascii_alphabetic()) => {
            if let Ok(d) = go::parse_duration(s) {
                *s = go::format_duration(d);
            }
        }
        Value::Array(a) => a.iter_mut().for_each(durations),
        Value::Object(o) => o.values_mut().for_each(durations),
        _ => {}
    }
}

/// Kinds whose schema is not there yet: the schema defaults that decide over the results of rules.
fn defaults(kind: Kind, spec: &mut Value) {
    let (parents, key, field, value): (&[&str], _, _, _) = match kind {
        Kind::MeshTrace => (&["default", "backends"], "datadog", "splitService", json!(false)),
        Kind::MeshTCPRoute => (&["to", "rules", "default", "backendRefs"], "", "weight", json!(1)),
        _ => return,
    };
    for_each(spec, parents, &mut |v| {
        let target = if key.is_empty() { Some(v) } else { v.get_mut(key) };
        if let Some(Value::Object(o)) = target {
            o.entry(field).or_insert_with(|| value.clone());
        }
    });
}

/// Everything under a path of keys; lists on the way stand for each of their elements.
fn for_each(v: &mut Value, path: &[&str], f: &mut dyn FnMut(&mut Value)) {
    match (v, path) {
        (Value::Array(items), _) => items.iter_mut().for_each(|i| for_each(i, path, f)),
        (v, []) => f(v),
        (v, [key, rest @ ..]) => {
            if let Some(inner) = v.get_mut(*key) {
                for_each(inner, rest, f);
            }
        }
    }
}

pub fn meta(r: &Resource, form: MetaForm) -> Value {
    match form {
        MetaForm::Test if r.kind() != Kind::Mesh => json!({
            "CreationTime": r.creation_time.to_string(), "ModificationTime": r.modification_time.to_string(), "Labels": r.labels,
            "Mesh": r.mesh(), "Name": r.name(), "NameExtensions": null, "Version": "",
        }),
        _ => {
            let mut m = rest::meta(r);
            m.remove("snis");
            Value::Object(m)
        }
    }
}

/// A policy as an item of a list.
pub fn policy(r: &Resource) -> Value {
    let mut m = rest::meta(r);
    m.insert("spec".to_owned(), r.spec.value().clone());
    Value::Object(m)
}

pub fn target_ref(t: &TargetRef) -> Value {
    let mut m = Map::new();
    let mut text = |k: &str, v: &str| {
        if !v.is_empty() {
            m.insert(k.to_owned(), v.into());
        }
    };
    text("kind", t.kind.as_str());
    text("name", &t.name);
    text("namespace", &t.namespace);
    text("sectionName", &t.section_name);
    let mut map = |k: &str, v: &Tags| m.insert(k.to_owned(), json!(v));
    map("labels", &t.labels);
    map("tags", &t.tags);
    m.insert("proxyTypes".to_owned(), json!(t.proxy_types));
    Value::Object(m)
}

fn rule_origin(o: &RuleOrigin, form: MetaForm) -> Value {
    json!({ "Resource": meta(&o.policy, form), "RuleIndex": o.index })
}

pub fn subset_rule(r: &SubsetRule) -> Value {
    let by_matches: Map<String, Value> = r.origin_by_matches.iter().map(|(h, p)| (h.clone(), meta(p, MetaForm::Rest))).collect();
    json!({
        "Subset": r.subset.iter().map(|t| json!({ "Key": t.key, "Value": t.value, "Not": t.not })).collect::<Vec<_>>(),
        "Conf": *r.conf,
        "Origin": r.origins.iter().map(|p| meta(p, MetaForm::Rest)).collect::<Vec<_>>(),
        "OriginByMatches": by_matches,
    })
}

pub fn subset_rules(rules: &[SubsetRule]) -> Value {
    rules.iter().map(subset_rule).collect()
}

pub fn inbound_rules(rules: &[InboundRule]) -> Value {
    rules.iter().map(|r| json!({ "match": r.r#match, "conf": *r.conf, "origin": rule_origin(&r.origin, MetaForm::Rest) })).collect()
}

pub fn resource_rules(rules: &BTreeMap<Kri, ResourceRule>, form: MetaForm) -> Value {
    let rule = |r: &ResourceRule| {
        let by_matches: Map<String, Value> = r.origin_by_matches.iter().map(|(h, o)| (h.clone(), rule_origin(o, form))).collect();
        json!({
            "Resource": meta(&r.resource, form),
            "ResourceSectionName": r.section,
            "Conf": r.conf.iter().map(|c| (**c).clone()).collect::<Vec<_>>(),
            "Origin": r.origins.iter().map(|o| rule_origin(o, form)).collect::<Vec<_>>(),
            "OriginByMatches": by_matches,
        })
    };
    Value::Object(rules.iter().map(|(k, r)| (k.to_string(), rule(r))).collect())
}

pub fn to_rules(t: &ToRules) -> Value {
    json!({ "Rules": subset_rules(&t.subset), "ResourceRules": resource_rules(&t.resource, MetaForm::Rest) })
}

pub fn gateway_rules(g: &GatewayRules) -> Value {
    let hostnames: Map<String, Value> =
        g.by_listener_and_hostname.iter().map(|(k, t)| (format!("{}:{}", k.listener, k.hostname), to_rules(t))).collect();
    json!({ "ByListener": by_key(&g.by_listener, to_rules), "ByListenerAndHostname": hostnames })
}

pub fn by_key<T>(map: &BTreeMap<InboundKey, T>, dump: impl Fn(&T) -> Value) -> Value {
    Value::Object(map.iter().map(|(k, v)| (k.to_string(), dump(v))).collect())
}
