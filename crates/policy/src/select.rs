//! Which listeners of a proxy a policy selects (reference: Kuma 2.14.3 policy contract, §1.5).

use crate::{
    rules::{InboundKey, ListenerKey},
    spec::{PolicySpec, RefKind, Role, Tags, TargetRef, role},
};
use ikada_model::{Dataplane, Kind, Kri, Resource, labels};
use ikada_world::World;
use serde::Deserialize;
use std::sync::Arc;

/// How many MeshHTTPRoutes may refer to one another before the chain is given up.
const MAX_ROUTE_CHAIN: usize = 8;

/// What a policy selects of a proxy. The policy matches when anything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Inbounds and zone-proxy listeners.
    pub inbounds: Vec<InboundKey>,
    /// Listeners of a builtin gateway.
    pub gateway_listeners: Vec<ListenerKey>,
    /// The proxy is a delegated gateway and is selected.
    pub delegated: bool,
}

impl Selection {
    /// The policy does not match.
    pub fn is_empty(&self) -> bool {
        self.inbounds.is_empty() && self.gateway_listeners.is_empty() && !self.delegated
    }
}

/// A proxy as policies see it.
pub struct Proxy<'a> {
    /// The dataplane.
    pub resource: &'a Resource,
    /// Its spec.
    pub dataplane: &'a Dataplane,
    /// The MeshGateway chosen for it, by its tags alone.
    pub gateway: Option<&'a Arc<Resource>>,
    listeners: Vec<GatewayListener>,
}

struct GatewayListener {
    key: ListenerKey,
    tags: Tags,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GatewaySpec {
    selectors: Vec<Selector>,
    tags: Tags,
    conf: GatewayConf,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct Selector {
    r#match: Tags,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct GatewayConf {
    listeners: Vec<ListenerSpec>,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct ListenerSpec {
    hostname: String,
    port: u32,
    tags: Tags,
}

fn gateway_spec(r: &Resource) -> GatewaySpec {
    GatewaySpec::deserialize(r.spec.value()).unwrap_or_default()
}

/// Every selector tag is present with that value; `*` stands for any value.
pub fn tags_match(selector: &Tags, tags: &Tags) -> bool {
    selector.iter().all(|(k, want)| tags.get(k).is_some_and(|have| want == "*" || want == have))
}

/// Every label is present with that value.
pub fn labels_match(selector: &Tags, labels: &Tags) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The MeshGateway that serves a dataplane: the selector with the most tags, then the most concrete ones, then the youngest, then the
/// first name. Gateways of other zones are not candidates.
pub fn selected_gateway<'a>(world: &'a World, resource: &Resource, dp: &Dataplane) -> Option<&'a Arc<Resource>> {
    let tag_sets: Vec<&Tags> =
        dp.networking.inbound.iter().map(|i| &i.tags).chain(dp.networking.gateway.iter().map(|g| &g.tags)).collect();
    let zone = resource.zone();
    let mut best: Option<((usize, usize), &Arc<Resource>)> = None;
    for candidate in world.list_in(Kind::MeshGateway, resource.mesh()) {
        let global = candidate.label(labels::ORIGIN).is_none_or(|o| o == "global");
        if !global && !zone.is_empty() && candidate.zone() != zone {
            continue;
        }
        let spec = gateway_spec(candidate);
        let rank_of = |s: &Selector| (s.r#match.len(), s.r#match.values().filter(|v| *v != "*").count());
        let matching = spec.selectors.iter().filter(|s| tag_sets.iter().any(|t| tags_match(&s.r#match, t)));
        let Some(rank) = matching.map(rank_of).max() else { continue };
        let better = best.is_none_or(|(r, b)| rank > r || (rank == r && candidate.creation_time > b.creation_time));
        if better {
            best = Some((rank, candidate));
        }
    }
    best.map(|(_, g)| g)
}

impl<'a> Proxy<'a> {
    /// Reads a dataplane. `None` when the resource is not a readable Dataplane.
    pub fn new(world: &'a World, resource: &'a Resource) -> Option<Self> {
        let dataplane = resource.view::<Dataplane>()?;
        let gateway = selected_gateway(world, resource, dataplane);
        let mut listeners = Vec::new();
        if let Some(g) = gateway {
            let spec = gateway_spec(g);
            for l in spec.conf.listeners {
                let mut tags = dataplane.networking.gateway.as_ref().map(|g| g.tags.clone()).unwrap_or_default();
                tags.extend(spec.tags.clone());
                tags.extend(l.tags);
                let hostname = if l.hostname.is_empty() { "*".to_owned() } else { l.hostname };
                let listener = InboundKey { address: dataplane.networking.address.clone(), port: l.port };
                listeners.push(GatewayListener { key: ListenerKey { listener, hostname }, tags });
            }
        }
        Some(Proxy { resource, dataplane, gateway, listeners })
    }

    fn is_delegated(&self) -> bool {
        self.dataplane.is_gateway() && !self.dataplane.is_builtin_gateway()
    }

    fn inbound_keys(&self, wanted: impl Fn(&ikada_model::dataplane::Inbound) -> bool) -> Vec<InboundKey> {
        let net = &self.dataplane.networking;
        let selected = net.inbound.iter().filter(|i| wanted(i));
        selected.map(|i| InboundKey { address: net.inbound_address(i).to_owned(), port: i.port }).collect()
    }

    fn zone_listener_keys(&self, section: &str) -> impl Iterator<Item = InboundKey> {
        let net = &self.dataplane.networking;
        net.listeners
            .iter()
            .filter(move |l| section.is_empty() || l.name == section || (l.name.is_empty() && l.port.to_string() == section))
            .map(|l| InboundKey { address: if l.address.is_empty() { net.address.clone() } else { l.address.clone() }, port: l.port })
    }

    fn by_tags(&self, tags: &Tags) -> Selection {
        let gateway_tags = self.dataplane.networking.gateway.as_ref().map(|g| &g.tags);
        Selection {
            inbounds: self.inbound_keys(|i| tags_match(tags, &i.tags)),
            gateway_listeners: self.listeners.iter().filter(|l| tags_match(tags, &l.tags)).map(|l| l.key.clone()).collect(),
            delegated: self.is_delegated() && gateway_tags.is_some_and(|t| tags_match(tags, t)),
        }
    }

    fn has_type(&self, types: &[String]) -> bool {
        let own = if self.dataplane.is_gateway() { "Gateway" } else { "Sidecar" };
        types.is_empty() || types.iter().any(|t| t == own)
    }

    /// A policy that another zone made acts here only as a producer policy.
    fn in_zone_scope(&self, policy: &Resource) -> bool {
        if role(policy) == Role::Producer {
            return true;
        }
        let proxy = match self.gateway {
            Some(g) if self.dataplane.is_builtin_gateway() => g.as_ref(),
            _ => self.resource,
        };
        let proxy_origin = proxy.label(labels::ORIGIN);
        if proxy_origin.is_none_or(|o| o == "global") || policy.label(labels::ORIGIN) != Some("zone") {
            return true;
        }
        let Some(zone) = policy.label(labels::ZONE) else { return true };
        proxy_origin == Some("zone") && proxy.label(labels::ZONE).is_none_or(|z| z == zone)
    }

    fn in_namespace_scope(&self, policy: &Resource) -> bool {
        match role(policy) {
            Role::Consumer | Role::WorkloadOwner => policy.namespace() == self.resource.namespace(),
            Role::System | Role::Producer => true,
        }
    }

    /// What a policy selects of this proxy. Errors are texts for a warning.
    pub fn select(&self, world: &World, policy: &Resource, spec: &PolicySpec) -> Result<Selection, String> {
        self.select_ref(world, policy, &spec.target_ref, MAX_ROUTE_CHAIN)
    }

    fn select_ref(&self, world: &World, policy: &Resource, target: &TargetRef, depth: usize) -> Result<Selection, String> {
        if !self.in_zone_scope(policy) || !self.in_namespace_scope(policy) {
            return Ok(Selection::default());
        }
        match target.kind {
            RefKind::Mesh => {
                if !self.has_type(&target.proxy_types) {
                    return Ok(Selection::default());
                }
                let mut all = self.by_tags(&Tags::new());
                all.inbounds.extend(self.zone_listener_keys(""));
                Ok(all)
            }
            RefKind::MeshSubset if self.has_type(&target.proxy_types) => Ok(self.by_tags(&target.tags)),
            RefKind::MeshSubset => Ok(Selection::default()),
            RefKind::MeshService | RefKind::MeshServiceSubset => {
                let mut tags = if target.kind == RefKind::MeshService { Tags::new() } else { target.tags.clone() };
                tags.insert(labels::TAG_SERVICE.to_owned(), target.name.clone());
                Ok(self.by_tags(&tags))
            }
            RefKind::Dataplane => Ok(self.by_dataplane_ref(policy, target)),
            RefKind::MeshGateway => {
                let named = self.gateway.is_some_and(|g| g.display_name() == target.name);
                let mut s = Selection::default();
                if named && self.dataplane.is_builtin_gateway() {
                    s.gateway_listeners =
                        self.listeners.iter().filter(|l| tags_match(&target.tags, &l.tags)).map(|l| l.key.clone()).collect();
                }
                Ok(s)
            }
            RefKind::MeshHTTPRoute => {
                let unresolved = || format!("couldn't resolve MeshHTTPRoute targetRef with name '{}'", target.name);
                let route = route_by_display_name(world, policy.mesh(), &target.name).ok_or_else(unresolved)?;
                let spec = route.view::<PolicySpec>().filter(|_| depth > 0).ok_or_else(unresolved)?;
                self.select_ref(world, route, &spec.target_ref, depth - 1)
            }
            RefKind::MeshExternalService | RefKind::MeshMultiZoneService | RefKind::Unknown => {
                Err(format!("unsupported targetRef kind '{}'", target.kind.as_str()))
            }
        }
    }

    fn by_dataplane_ref(&self, policy: &Resource, target: &TargetRef) -> Selection {
        if self.gateway.is_some() || self.dataplane.is_builtin_gateway() {
            return Selection::default();
        }
        let selected = if !target.labels.is_empty() {
            labels_match(&target.labels, &self.resource.labels)
        } else if !target.name.is_empty() {
            Kri::of(self.resource) == kri_of_ref(policy, Kind::Dataplane, &target.name, &target.namespace)
        } else {
            target.namespace.is_empty()
        };
        if !selected {
            return Selection::default();
        }
        let section = &target.section_name;
        let mut inbounds = self.inbound_keys(|i| section.is_empty() || i.section() == *section);
        inbounds.extend(self.zone_listener_keys(section));
        Selection { inbounds, gateway_listeners: Vec::new(), delegated: self.is_delegated() }
    }
}

/// The identifier that a reference by name in a policy means: the policy's own mesh and zone, its namespace unless one is given.
pub(crate) fn kri_of_ref(policy: &Resource, kind: Kind, name: &str, namespace: &str) -> Kri {
    let namespace = if namespace.is_empty() { policy.namespace() } else { namespace };
    Kri {
        kind,
        mesh: policy.mesh().to_owned(),
        zone: policy.zone().to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        section: String::new(),
    }
}

/// A MeshHTTPRoute by display name; the first by stored name when several have it.
pub(crate) fn route_by_display_name<'a>(world: &'a World, mesh: &str, name: &str) -> Option<&'a Arc<Resource>> {
    let direct = world.find(Kind::MeshHTTPRoute, mesh, name).filter(|r| r.display_name() == name);
    direct.or_else(|| world.list_in(Kind::MeshHTTPRoute, mesh).find(|r| r.display_name() == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key};
    use serde_json::json;

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selectors() {
        assert!(tags_match(&tags(&[]), &tags(&[])));
        assert!(tags_match(&tags(&[("a", "*")]), &tags(&[("a", "1"), ("b", "2")])));
        assert!(!tags_match(&tags(&[("a", "*")]), &tags(&[("b", "2")])));
        assert!(!labels_match(&tags(&[("a", "*")]), &tags(&[("a", "1")])), "labels know no wildcard");
    }

    #[test]
    fn a_chain_of_routes_ends() {
        let spec = json!({"targetRef": {"kind": "MeshHTTPRoute", "name": "r"}});
        let route = Resource::new(Key::new(Kind::MeshHTTPRoute, "m", "r"), Json::from_value(&spec));
        let world = crate::testing::world(vec![route.clone()]);
        let dp = json!({"networking": {"address": "1.1.1.1", "inbound": [{"port": 80}]}});
        let dp = Resource::new(Key::new(Kind::Dataplane, "m", "d"), Json::from_value(&dp));
        let proxy = Proxy::new(&world, &dp).unwrap();
        let err = proxy.select(&world, &route, route.view().unwrap()).unwrap_err();
        assert_eq!(err, "couldn't resolve MeshHTTPRoute targetRef with name 'r'");
    }
}
