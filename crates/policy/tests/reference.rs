//! Worked examples of the policy contract, and the rules that the corpus does not reach.

use ikada_model::{Json, Key, Kind, Kri, Labels, Resource, Timestamp, labels};
use ikada_policy::{
    Backend, BackendRef, InboundKey, InboundRule, MatchOptions, match_policies, resolve_backend_ref, resolve_port,
    resource::resource_rules,
    rules::mesh_kri,
    selection,
};
use ikada_world::{Command, EntryMeta, Op, Put, World};
use serde_json::{Value, json};
use std::sync::Arc;

fn resource(kind: Kind, name: &str, labels: &[(&str, &str)], spec: Value) -> Resource {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Resource::new(Key::new(kind, "default", name), Json::from_value(&spec)).with_labels(labels)
}

fn world(resources: &[Resource]) -> World {
    let mesh = Resource::new(Key::new(Kind::Mesh, "", "default"), Json::default());
    let put = |r: &Resource| {
        let mut put = Put::new(r.key.clone(), r.labels.clone(), r.spec.clone());
        put.times = Some((r.creation_time, r.creation_time));
        Op::Put(put)
    };
    let command = Command { id: [1; 16], ops: std::iter::once(&mesh).chain(resources).map(put).collect() };
    let (world, _, outcome) = World::empty().apply(EntryMeta { index: 1, time: Default::default() }, &command);
    outcome.unwrap();
    world
}

fn dataplane(labels: &[(&str, &str)]) -> Resource {
    let inbound = json!({"port": 8080, "name": "http", "tags": {"kuma.io/service": "web"}});
    resource(Kind::Dataplane, "web-1", labels, json!({"networking": {"address": "192.168.0.1", "inbound": [inbound]}}))
}

const GLOBAL: (&str, &str) = (labels::ORIGIN, "global");
const ZONE: (&str, &str) = (labels::ORIGIN, "zone");

fn names(w: &World, dp: &Resource) -> Vec<String> {
    match_policies(w, dp, &MatchOptions::default()).of(Kind::MeshTimeout).policies.iter().map(|p| p.name().to_owned()).collect()
}

#[test]
fn precedence() {
    let to = json!([{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1h0m0s"}}]);
    let by_labels = json!({"targetRef": {"kind": "Dataplane", "labels": {"app": "web"}}, "to": to});
    let policies = [
        resource(Kind::MeshTimeout, "b", &[GLOBAL], json!({"to": to})),
        resource(Kind::MeshTimeout, "a", &[GLOBAL], json!({"to": to})),
        resource(Kind::MeshTimeout, "z", &[ZONE], json!({"to": to})),
        resource(Kind::MeshTimeout, "c", &[GLOBAL], by_labels),
    ];
    assert_eq!(names(&world(&policies), &dataplane(&[("app", "web")])), ["b", "a", "z", "c"]);
    assert_eq!(names(&world(&policies), &dataplane(&[])), ["b", "a", "z"]);
}

#[test]
fn rules_by_resource_and_both_lookups() {
    let item = |target: Value, conf: Value| json!({"targetRef": target, "default": conf});
    let backend = resource(Kind::MeshService, "backend", &[], json!({"ports": [{"port": 80, "name": "http"}, {"port": 81}]}));
    let other = resource(Kind::MeshService, "other", &[], json!({"ports": [{"port": 80}]}));
    let port = json!({"kind": "MeshService", "name": "backend", "sectionName": "http"});
    let p1 = [item(json!({"kind": "Mesh"}), json!({"idle": "1h"})), item(port, json!({"idle": "2m"}))];
    let p2 = [item(json!({"kind": "MeshService", "name": "backend"}), json!({"idle": "5m", "connect": "1s"}))];
    let policies = [
        resource(Kind::MeshTimeout, "p1", &[], json!({"to": p1})),
        resource(Kind::MeshTimeout, "p2", &[], json!({"to": p2})),
        resource(Kind::MeshTimeout, "p3", &[], json!({"targetRef": {"kind": "MeshHTTPRoute", "name": "r"}, "to": p2})),
    ];
    let w = world(&[backend.clone(), other.clone(), policies[0].clone(), policies[1].clone()]);
    let policies: Vec<Arc<Resource>> = policies.into_iter().map(Arc::new).collect();
    let rules = ikada_policy::ToRules { subset: Vec::new(), resource: resource_rules(&w, &policies) };
    let whole = Kri::of(&backend);
    let port = |section: &str| whole.clone().with_section(section);
    let confs: Vec<_> = rules.resource.iter().map(|(k, r)| (k.clone(), r.first().clone())).collect();
    let want = [
        (mesh_kri("default"), json!({"idle": "1h"})),
        (whole.clone(), json!({"idle": "5m", "connect": "1s"})),
        (port("http"), json!({"idle": "2m", "connect": "1s"})),
    ];
    assert_eq!(confs, want);

    let route = Kri::of(&resource(Kind::MeshHTTPRoute, "r", &[], json!({})));
    let a = |service: &Kri| rules.resource_context(Some(&route), Some(service), "default").map(|r| r.first()["idle"].clone());
    assert_eq!(a(&port("http")), Some(json!("2m")));
    assert_eq!(a(&port("81")), Some(json!("5m")));
    assert_eq!(a(&Kri::of(&other)), Some(json!("1h")));
    let b = |key: &Kri| rules.compute(key).map(|r| r.first()["idle"].clone());
    assert_eq!(b(&port("81")), Some(json!("5m")));
    assert_eq!(b(&route), Some(json!("1h")));
    assert_eq!(b(&Kri::of(&dataplane(&[]))), None, "other kinds know exact hits only");
}

#[test]
fn inbound_rules_are_ordered_by_how_specific_they_are() {
    let spiffe = |t: &str, v: &str| json!({"type": t, "value": format!("spiffe://td/{v}")});
    let sni = json!({"type": "Exact", "value": "x.local"});
    let rules = [
        json!({"matches": [{"spiffeID": spiffe("Prefix", "a")}], "default": {"n": 1}}),
        json!({"default": {"n": 2}}),
        json!({"matches": [{"spiffeID": spiffe("Exact", "b"), "sni": sni}], "default": {"n": 3}}),
        json!({"matches": [{"sni": sni}, {"spiffeID": spiffe("Exact", "b")}], "default": {"n": 4}}),
    ];
    let strong = resource(Kind::MeshTimeout, "a", &[], json!({"rules": [{"default": {"m": 5}}]}));
    let w = world(&[resource(Kind::MeshTimeout, "b", &[], json!({"rules": rules})), strong]);
    let matched = match_policies(&w, &dataplane(&[]), &MatchOptions::default());
    let key = InboundKey { address: "192.168.0.1".into(), port: 8080 };
    let rules = &matched.of(Kind::MeshTimeout).inbound[&key];
    let order: Vec<_> = rules.iter().map(|r| r.conf.get("n").and_then(Value::as_i64).unwrap_or(5)).collect();
    assert_eq!(order, [3, 4, 1, 4, 2, 5]);
    assert_eq!(*InboundRule::all_traffic(rules).unwrap(), json!({"n": 2, "m": 5}));
    assert!(InboundRule::all_traffic(&rules[..3]).is_none());
}

#[test]
fn policies_of_other_zones_and_namespaces_do_not_act_here() {
    let spec = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {}}]});
    let policy = |l: &[(&str, &str)]| resource(Kind::MeshTimeout, "p", l, spec.clone());
    let zone = |z: &'static str| (labels::ZONE, z);
    let role = |r: &'static str| (labels::POLICY_ROLE, r);
    let here = dataplane(&[ZONE, zone("east")]);
    let w = world(&[]);
    let acts = |l: &[(&str, &str)], dp: &Resource| !selection(&w, dp, &policy(l)).is_empty();
    assert!(acts(&[ZONE, zone("east")], &here));
    assert!(!acts(&[ZONE, zone("west")], &here));
    assert!(acts(&[ZONE, zone("west"), role("producer")], &here));
    assert!(acts(&[GLOBAL, zone("west")], &here));
    assert!(acts(&[ZONE, zone("west")], &dataplane(&[])), "a proxy without origin is not scoped");
    let namespaced = dataplane(&[(labels::NAMESPACE, "shop")]);
    assert!(acts(&[role("consumer"), (labels::NAMESPACE, "shop")], &namespaced));
    assert!(!acts(&[role("workload-owner"), (labels::NAMESPACE, "bank")], &namespaced));
}

#[test]
fn nothing_to_select_is_no_match() {
    let spec = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {}}]});
    let w = world(&[resource(Kind::MeshTimeout, "p", &[], spec)]);
    let bare = resource(Kind::Dataplane, "d", &[], json!({"networking": {"address": "1.1.1.1"}}));
    assert!(names(&w, &bare).is_empty());
}

#[test]
fn shadow_policies_take_part_on_request() {
    let shadow = resource(Kind::MeshTrace, "t", &[(labels::EFFECT, "shadow")], json!({"default": {"tags": []}}));
    let w = world(&[shadow]);
    let with = |include_shadow| {
        let options = MatchOptions { include_shadow, ..Default::default() };
        match_policies(&w, &dataplane(&[]), &options).of(Kind::MeshTrace).single.is_some()
    };
    assert!(!with(false));
    assert!(with(true));
}

#[test]
fn backend_refs() {
    let zone = |z: &'static str| (labels::ZONE, z);
    let service = |name: &str, born: u64| {
        let mut r = resource(Kind::MeshService, name, &[zone("east"), ("app", "db")], json!({"ports": [{"port": 80, "name": "81"}, {"port": 81}]}));
        r.creation_time = Timestamp::from_millis(born);
        r
    };
    let w = world(&[service("a", 2), service("b", 1), service("c", 1)]);
    let origin = resource(Kind::MeshHTTPRoute, "r", &[zone("east")], json!({}));
    let resolve = |v: Value| resolve_backend_ref(&w, &origin, &serde_json::from_value::<BackendRef>(v).unwrap());
    let real = |v: Value| match resolve(v) {
        Some(Backend::Real(kri)) => kri.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(real(json!({"kind": "MeshService", "name": "x", "port": 80})), "kri_msvc_default_east__x_80");
    assert_eq!(real(json!({"kind": "MeshExternalService", "name": "x"})), "kri_extsvc_default_east__x_");
    assert_eq!(real(json!({"kind": "MeshService", "labels": {"app": "db"}, "port": 80})), "kri_msvc_default_east__b_80", "the oldest");
    assert_eq!(resolve(json!({"kind": "MeshService", "labels": {"app": "no"}, "port": 80})), None);
    let legacy = |v: Value| match resolve(v) {
        Some(Backend::Legacy(tags)) => json!(tags),
        other => panic!("{other:?}"),
    };
    assert_eq!(legacy(json!({"kind": "MeshService", "name": "x", "weight": 3})), json!({"kuma.io/service": "x"}));
    let subset = json!({"kind": "MeshServiceSubset", "name": "x", "tags": {"v": "1"}, "port": 80});
    assert_eq!(legacy(subset), json!({"kuma.io/service": "x", "v": "1"}));
    let a = w.find(Kind::MeshService, "default", "a").unwrap();
    assert_eq!(resolve_port(a, "81"), Some((80, "81".to_owned())), "names before numbers");
    assert_eq!(resolve_port(a, "80"), Some((80, "81".to_owned())));
    assert_eq!(resolve_port(a, "82"), None);
}

#[test]
fn a_policy_on_a_route_without_that_route_warns() {
    let spec = json!({"targetRef": {"kind": "MeshHTTPRoute", "name": "r"}, "to": [{"targetRef": {"kind": "Mesh"}, "default": {}}]});
    let w = world(&[resource(Kind::MeshTimeout, "p", &[], spec)]);
    let matched = match_policies(&w, &dataplane(&[]), &MatchOptions::default());
    let want = "unable to resolve TargetRef on policy: mesh:default name:p error:\"couldn't resolve MeshHTTPRoute targetRef with name 'r'\"";
    assert_eq!(matched.warnings().collect::<Vec<_>>(), [want]);
}
