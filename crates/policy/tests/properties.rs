//! Matching takes whatever a store can hold.

use ikada_model::{Json, Key, Kind, Labels, Resource, labels};
use ikada_policy::{MatchOptions, Proxy, match_egress, match_policies, matching};
use ikada_world::{Command, EntryMeta, Op, Put, World};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use std::sync::Arc;

const MESH: &str = "m";
const REF_KINDS: &[&str] = &[
    "Mesh", "MeshSubset", "MeshGateway", "MeshService", "MeshExternalService", "MeshMultiZoneService", "MeshServiceSubset", "MeshHTTPRoute",
    "Dataplane", "Nonsense",
];
const NAMES: &[&str] = &["a", "b", "c", "a_ns_svc_80", ""];

fn tags() -> impl Strategy<Value = Value> {
    vec((select(&["kuma.io/service", "v", "w"][..]), select(&["a", "b", "*"][..])), 0..3)
        .prop_map(|t| Value::Object(t.into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect()))
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    Value::Object(fields.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect::<Map<_, _>>())
}

fn target_ref() -> impl Strategy<Value = Value> {
    let name = || option::of(select(NAMES).prop_map(Value::from));
    (select(REF_KINDS), name(), option::of(tags()), option::of(tags()), name(), option::of(Just(json!(["Gateway"])))).prop_map(
        |(kind, name, tags, labels, section, types)| {
            object(vec![
                ("kind", Some(json!(kind))),
                ("name", name),
                ("tags", tags),
                ("labels", labels),
                ("sectionName", section),
                ("proxyTypes", types),
            ])
        },
    )
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), any::<u32>().prop_map(Value::from), ".{0,4}".prop_map(Value::from)];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let key = select(&["rules", "matches", "default", "hostnames", "path", "appendX", "backendRefs", "targetRef"][..]);
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((key, inner), 0..3).prop_map(|o| Value::Object(o.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

fn item() -> impl Strategy<Value = Value> {
    (target_ref(), prop_oneof![anything().prop_map(|d| json!({ "default": d })), anything()]).prop_map(|(target, mut rest)| {
        if let Value::Object(o) = &mut rest {
            o.insert("targetRef".into(), target);
        }
        rest
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let part = || {
        let typed = (select(&["Exact", "Prefix"][..]), select(NAMES)).prop_map(|(t, v)| json!({"type": t, "value": v}));
        option::of(typed)
    };
    let matches = vec((part(), part()).prop_map(|(s, n)| object(vec![("spiffeID", s), ("sni", n)])), 0..3);
    (matches, anything()).prop_map(|(m, d)| json!({"matches": m, "default": d}))
}

fn spec() -> impl Strategy<Value = Value> {
    let structured =
        (option::of(target_ref()), vec(item(), 0..4), vec(item(), 0..4), vec(rule(), 0..3), option::of(anything())).prop_map(
            |(target, to, from, rules, default)| {
                object(vec![
                    ("targetRef", target),
                    ("to", Some(json!(to))),
                    ("from", Some(json!(from))),
                    ("rules", Some(json!(rules))),
                    ("default", default),
                ])
            },
        );
    prop_oneof![9 => structured, 1 => anything()]
}

fn resource(kind: Kind, spec: impl Strategy<Value = Value>) -> impl Strategy<Value = Resource> {
    let label = (
        select(&[labels::ORIGIN, labels::ZONE, labels::POLICY_ROLE, labels::DISPLAY_NAME, labels::NAMESPACE, "v"][..]),
        select(&["global", "zone", "producer", "consumer", "a", "b"][..]),
    );
    (select(NAMES), vec(label, 0..3), spec).prop_map(move |(name, labels, spec)| {
        let labels: Labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Resource::new(Key::new(kind, MESH, name), Json::from_value(&spec)).with_labels(labels)
    })
}

fn policies() -> impl Strategy<Value = Vec<Resource>> {
    let kinds: Vec<Kind> = Kind::all().filter(|k| k.is_target_ref_policy()).collect();
    vec(select(kinds).prop_flat_map(|k| resource(k, spec())), 0..12)
}

fn dataplane() -> impl Strategy<Value = Resource> {
    let inbound = (1u32..4, tags(), select(NAMES)).prop_map(|(port, tags, name)| json!({"port": port, "tags": tags, "name": name}));
    let gateway = option::of((tags(), select(&["BUILTIN", "DELEGATED"][..])).prop_map(|(tags, t)| json!({"tags": tags, "type": t})));
    let listener = select(&["ZoneIngress", "ZoneEgress"][..]).prop_map(|t| json!({"type": t, "port": 9, "address": "::1"}));
    let networking = (vec(inbound, 0..3), gateway, vec(listener, 0..2)).prop_map(|(inbound, gateway, listeners)| {
        let address = ("address", Some(json!("1.1.1.1")));
        let networking = vec![address, ("inbound", Some(json!(inbound))), ("gateway", gateway), ("listeners", Some(json!(listeners)))];
        json!({ "networking": object(networking) })
    });
    resource(Kind::Dataplane, networking)
}

fn others() -> impl Strategy<Value = Vec<Resource>> {
    let service = vec((1u32..100, select(NAMES)), 0..3).prop_map(|ports| {
        let ports: Vec<Value> = ports.into_iter().map(|(p, n)| json!({"port": p, "name": n})).collect();
        json!({ "ports": ports })
    });
    let listener = (1u32..4, tags(), select(NAMES)).prop_map(|(p, t, h)| json!({"port": p, "tags": t, "hostname": h}));
    let gateway = (tags(), vec(listener, 0..3))
        .prop_map(|(t, l)| json!({"selectors": [{"match": t.clone()}], "tags": t, "conf": {"listeners": l}}));
    let any_spec = prop_oneof![3 => service.boxed(), 1 => anything().boxed()];
    let of = |kind| resource(kind, any_spec.clone()).boxed();
    let one = prop_oneof![
        of(Kind::MeshService),
        of(Kind::MeshExternalService),
        of(Kind::MeshMultiZoneService),
        resource(Kind::MeshGateway, gateway).boxed(),
    ];
    vec(one, 0..8)
}

fn world(resources: &[Resource]) -> World {
    let mesh = Resource::new(Key::new(Kind::Mesh, "", MESH), Json::default());
    let ops = std::iter::once(&mesh).chain(resources).map(|r| Op::Put(Put::new(r.key.clone(), r.labels.clone(), r.spec.clone()))).collect();
    World::empty().apply(EntryMeta { index: 1, time: Default::default() }, &Command { id: [1; 16], ops }).0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn matching_never_panics_and_is_consistent(p in policies(), o in others(), dp in dataplane()) {
        let w = world(&p.iter().chain(&o).cloned().collect::<Vec<_>>());
        let matched = match_policies(&w, &dp, &MatchOptions::default());
        let again = match_policies(&w, &dp, &MatchOptions { disable_cliques: true, include_shadow: true });
        let proxy = Proxy::new(&w, &dp);
        for (kind, t) in matched.iter() {
            prop_assert_eq!(again.of(kind).policies.len(), t.policies.len());
            let info = kind.descriptor().policy.unwrap();
            prop_assert!(info.to || t.to.is_empty());
            prop_assert!(info.from || t.from.is_empty());
            prop_assert_eq!(t.from.len().max(t.inbound.len()), t.inbound.len());
            for policy in &t.policies {
                prop_assert!(!matching::selection(&w, &dp, policy).is_empty());
                prop_assert!(proxy.is_some());
            }
            for (key, rule) in &t.to.resource {
                prop_assert!(!rule.origins.is_empty());
                prop_assert_eq!(t.to.compute(key).map(|r| &r.section), Some(&rule.section));
            }
            for rules in t.from.values().chain(std::iter::once(&t.to.subset)) {
                for r in rules {
                    prop_assert!(!r.origins.is_empty());
                }
            }
            for rules in t.inbound.values() {
                let order: Vec<_> = rules.iter().map(|r| ikada_policy::inbound::specificity(r.r#match.as_ref())).collect();
                prop_assert!(order.windows(2).all(|w| w[0] >= w[1]), "most specific first");
            }
        }
    }

    #[test]
    fn egress_never_panics(p in policies(), tags in tags()) {
        let w = world(&p);
        let tags = serde_json::from_value(tags).unwrap();
        let policies: Vec<Arc<Resource>> = p.into_iter().map(Arc::new).collect();
        for kind in Kind::all() {
            match_egress(&w, &tags, policies.iter().filter(|p| p.kind() == kind), &MatchOptions::default());
        }
    }
}
