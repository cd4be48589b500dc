//! Rules by real resource, from `to` lists (reference: Kuma 2.14.3 policy contract, §1.10).

use crate::{
    http_route::{hashes, item_conf},
    merge::conf_list,
    order,
    rules::{ResourceRule, RuleOrigin},
    select::{kri_of_ref, labels_match},
    spec::{PolicySpec, RefKind, Tags, TargetRef},
};
use ikada_model::{Kind, Kri, MeshService, Resource, kri::synced_name, labels};
use ikada_world::World;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The resource with this identifier; the section is not looked at.
pub fn find_by_kri<'a>(world: &'a World, kri: &Kri) -> Option<&'a Arc<Resource>> {
    if kri.kind == Kind::Mesh {
        return world.mesh(&kri.name);
    }
    let is_it = |r: &&Arc<Resource>| {
        r.display_name() == kri.name && r.zone() == kri.zone && r.namespace() == kri.namespace && r.mesh() == kri.mesh
    };
    let direct = world.find(kri.kind, &kri.mesh, &kri.name).filter(is_it);
    let part = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
    let synced = || {
        let name = synced_name(&kri.mesh, &kri.name, part(&kri.zone).as_deref(), part(&kri.namespace).as_deref());
        world.find(kri.kind, &kri.mesh, &name).filter(is_it)
    };
    direct.or_else(synced).or_else(|| world.list_in(kri.kind, &kri.mesh).find(is_it))
}

/// Ports of a destination as (number, section name); empty for kinds without ports.
pub fn ports(r: &Resource) -> Vec<(u32, String)> {
    let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    match r.kind() {
        Kind::MeshService => r.view::<MeshService>().map(|ms| ms.ports.iter().map(|p| (p.port, p.section())).collect()).unwrap_or_default(),
        Kind::MeshExternalService => {
            r.spec.value().get("match").and_then(|m| number(m, "port")).map(|p| (p, p.to_string())).into_iter().collect()
        }
        Kind::MeshMultiZoneService => {
            let ports = r.spec.value().get("ports").and_then(Value::as_array);
            let section = |p: &Value, n: u32| p.get("name").and_then(Value::as_str).filter(|s| !s.is_empty()).map_or_else(|| n.to_string(), str::to_owned);
            ports.into_iter().flatten().filter_map(|p| number(p, "port").map(|n| (n, section(p, n)))).collect()
        }
        _ => Vec::new(),
    }
}

/// A resource or one port of it.
#[derive(Clone, Debug)]
pub struct ResolvedRef {
    /// Resource.
    pub resource: Arc<Resource>,
    /// Section name of the port; empty for the whole resource.
    pub section: String,
}

impl ResolvedRef {
    /// Its identifier.
    pub fn kri(&self) -> Kri {
        Kri::of(&self.resource).with_section(self.section.clone())
    }
}

enum PortFilter {
    None,
    Name(String),
    Number(u32),
}

/// Resources that a `to` reference means.
pub fn resolve_target_ref(world: &World, policy: &Resource, target: &TargetRef) -> Vec<ResolvedRef> {
    let Some(kind) = target.kind.destination() else { return Vec::new() };
    if kind == Kind::Mesh {
        return world.mesh(policy.mesh()).map(|m| ResolvedRef { resource: m.clone(), section: String::new() }).into_iter().collect();
    }
    let mut wanted = target.labels.clone();
    let mut port = if target.section_name.is_empty() || kind == Kind::MeshHTTPRoute {
        PortFilter::None
    } else {
        PortFilter::Name(target.section_name.clone())
    };
    if wanted.is_empty()
        && kind == Kind::MeshService
        && target.section_name.is_empty()
        && let Some((labels, number)) = legacy_service_name(&target.name)
    {
        wanted = labels;
        port = number.map_or(PortFilter::None, PortFilter::Number);
    }
    let resources: Vec<&Arc<Resource>> = if wanted.is_empty() {
        find_by_kri(world, &kri_of_ref(policy, kind, &target.name, &target.namespace)).into_iter().collect()
    } else {
        world.list_in(kind, policy.mesh()).filter(|r| labels_match(&wanted, &r.labels)).collect()
    };
    let section_of = |r: &Resource| match &port {
        PortFilter::None => Some(String::new()),
        PortFilter::Name(n) => ports(r).into_iter().map(|(_, s)| s).find(|s| s == n),
        PortFilter::Number(n) => ports(r).into_iter().find(|(p, _)| p == n).map(|(_, s)| s),
    };
    resources.into_iter().filter_map(|r| section_of(r).map(|section| ResolvedRef { resource: r.clone(), section })).collect()
}

/// `<name>_<namespace>_svc[_<port>]`, the `kuma.io/service` of a Kubernetes Service, as labels and a port.
fn legacy_service_name(name: &str) -> Option<(Tags, Option<u32>)> {
    let parts: Vec<&str> = name.split('_').collect();
    let (name, namespace, port) = match parts.as_slice() {
        [name, namespace, _] => (name, namespace, None),
        [name, namespace, _, port] => (name, namespace, Some(port.parse().ok()?)),
        _ => return None,
    };
    let labels = [(labels::DISPLAY_NAME, name), (labels::NAMESPACE, namespace)];
    Some((labels.into_iter().map(|(k, v)| (k.to_owned(), (*v).to_owned())).collect(), port))
}

/// A `to` item of a matched policy.
#[derive(Clone)]
pub struct ToEntry<'a> {
    /// Policy.
    pub policy: &'a Arc<Resource>,
    /// Its spec.
    pub spec: &'a PolicySpec,
    /// Index of the item.
    pub index: usize,
    /// Its reference.
    pub target: &'a TargetRef,
    /// Its conf.
    pub conf: Arc<Value>,
}

/// `to` items of policies for real resources, weakest first. Policies with a top-level MeshHTTPRoute have none.
pub fn sorted_to_entries<'a>(policies: impl IntoIterator<Item = &'a Arc<Resource>>) -> Vec<ToEntry<'a>> {
    let mut entries = Vec::new();
    for policy in policies {
        let Some(spec) = policy.view::<PolicySpec>().filter(|s| s.target_ref.kind != RefKind::MeshHTTPRoute) else { continue };
        for (index, item) in spec.to.iter().enumerate() {
            entries.push(ToEntry { policy, spec, index, target: &item.target_ref, conf: item_conf(policy.kind(), item) });
        }
    }
    order::stable_sort(entries, |a, b| {
        order::to_items((a.policy, &a.spec.target_ref, a.target), (b.policy, &b.spec.target_ref, b.target))
    })
}

/// Rules of matched policies by resource (§1.10): one for each resource, or port, that some item means.
pub fn resource_rules<'a>(world: &World, policies: impl IntoIterator<Item = &'a Arc<Resource>>) -> BTreeMap<Kri, ResourceRule> {
    let entries = sorted_to_entries(policies);
    let mut keys: BTreeMap<Kri, ResolvedRef> = BTreeMap::new();
    // Which entries speak about a mesh, and about a resource with which section.
    let mut by_mesh: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut by_resource: HashMap<Kri, Vec<(usize, String)>> = HashMap::new();
    for (i, e) in entries.iter().enumerate() {
        for resolved in resolve_target_ref(world, e.policy, e.target) {
            let whole = Kri::of(&resolved.resource);
            if whole.kind == Kind::Mesh {
                by_mesh.entry(whole.name.clone()).or_default().push(i);
            } else {
                by_resource.entry(whole.clone()).or_default().push((i, resolved.section.clone()));
            }
            keys.insert(whole.with_section(resolved.section.clone()), resolved);
        }
    }
    // A selector by labels gives many resources the same items: they share the merged conf.
    let mut merged: HashMap<Vec<usize>, Vec<Arc<Value>>> = HashMap::new();
    let mut rules = BTreeMap::new();
    for (key, resolved) in keys {
        let mesh = if key.kind == Kind::Mesh { &key.name } else { &key.mesh };
        let mut relevant: BTreeSet<usize> = by_mesh.get(mesh).into_iter().flatten().copied().collect();
        let by_port = matches!(key.kind, Kind::MeshService | Kind::MeshMultiZoneService);
        let about = by_resource.get(&key.without_section()).into_iter().flatten();
        relevant.extend(about.filter(|(_, s)| !by_port || s.is_empty() || *s == key.section).map(|(i, _)| *i));
        let relevant: Vec<usize> = relevant.into_iter().collect();
        let items: Vec<&ToEntry> = relevant.iter().filter_map(|i| entries.get(*i)).collect();
        let Some(kind) = items.first().map(|e| e.policy.kind()) else { continue };
        let conf = merged.entry(relevant).or_insert_with(|| conf_list(kind, &items.iter().map(|e| e.conf.clone()).collect::<Vec<_>>())).clone();
        let mut seen = BTreeSet::new();
        let origin = |e: &ToEntry| RuleOrigin { policy: e.policy.clone(), index: e.index };
        let origins = items.iter().filter(|e| seen.insert((&e.policy.key, e.index))).map(|e| origin(e)).collect();
        let by_hash = items.iter().flat_map(|e| hashes(kind, &e.conf).into_iter().map(|h| (h, origin(e)))).collect();
        let section = resolved.section;
        rules.insert(key, ResourceRule { resource: resolved.resource, section, conf, origins, origin_by_matches: by_hash });
    }
    rules
}
