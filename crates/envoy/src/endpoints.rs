//! Endpoints of destinations (data-plane contract §5.9). Functions of the world and the destination alone, so that their result can be
//! shared between proxies.

use crate::{
    context::{Generated, Settings},
    proto::{socket, string_struct},
    resources::weight,
};
use envoy_types::pb::envoy::config::{
    core::v3::{Locality, Metadata},
    endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};
use ikada_model::{
    Dataplane, Kind, Mesh, MeshService, Resource,
    dataplane::{Inbound, Tags},
    labels::{self, TAG_SERVICE},
    mesh_service::{Port, TargetPort},
};
use ikada_world::World;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Port of inbounds that only stand for a workload without ports.
pub(crate) const PLACEHOLDER_PORT: u32 = 49151;

/// An address as an IP: itself, or what the control plane resolved it to.
pub(crate) fn resolve<'a>(settings: &'a Settings, address: &'a str) -> Option<&'a str> {
    if address.parse::<IpAddr>().is_ok() {
        return Some(address);
    }
    settings.hosts.get(address).map(String::as_str).filter(|ip| ip.parse::<IpAddr>().is_ok())
}

/// What proxies of one world share, so that it is made once: the encoded endpoints of each cluster.
///
/// Good for one revision of policy state and one [`Settings`]; make a new one when either changes. Without it every proxy assembles the
/// endpoints of each of its destinations itself.
#[derive(Default)]
pub struct Shared {
    /// (mesh, cluster) → endpoints.
    endpoints: Mutex<HashMap<(Arc<str>, String), Generated>>,
}

impl Shared {
    /// The endpoints of a cluster, made by `make` when they are asked for the first time. Two threads may both make them; they come out
    /// equal.
    pub(crate) fn endpoints(&self, mesh: &Arc<str>, cluster: &str, make: impl FnOnce() -> Generated) -> Generated {
        let lock = || self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (mesh.clone(), cluster.to_owned());
        if let Some(known) = lock().get(&key) {
            return known.clone();
        }
        let made = make();
        lock().insert(key, made.clone());
        made
    }
}

/// (priority, zone) → endpoints.
type Localities = BTreeMap<(u32, String), Vec<LbEndpoint>>;

/// Local healthy instances of one port of a MeshService. Instances whose address cannot be resolved are left out.
///
/// Of services that came from other zones nothing is known here yet: they have no endpoints.
pub(crate) fn of_mesh_service(world: &World, settings: &Settings, mesh: &Mesh, service: &Resource, port: &Port) -> Localities {
    let mut out = Localities::new();
    let Some(spec) = service.view::<MeshService>() else { return out };
    if crate::destination::is_remote(service) {
        return out;
    }
    let no_tags = Tags::new();
    let leads_here = |inbound: &Inbound| match &port.target_port {
        Some(TargetPort::Number(n)) => inbound.port == *n,
        Some(TargetPort::Name(name)) => inbound.name == *name,
        None => inbound.port == 0,
    };
    let mut add = |r: &Arc<Resource>, tags: &Tags| {
        let Some(dp) = r.view::<Dataplane>() else { return };
        for inbound in &dp.networking.inbound {
            if leads_here(inbound) && inbound.is_healthy() && tags.iter().all(|(k, v)| inbound.tags.get(k) == Some(v)) {
                push(&mut out, settings, mesh, r, dp, inbound);
            }
        }
    };
    let mesh_name = service.mesh();
    if let Some(wanted) = &spec.selector.dataplane_tags {
        match wanted.get(TAG_SERVICE) {
            Some(s) => world.dataplanes_of_service(mesh_name, s).for_each(|r| add(r, wanted)),
            None => world.list_in(Kind::Dataplane, mesh_name).for_each(|r| add(r, wanted)),
        }
    } else if let Some(named) = &spec.selector.dataplane_ref {
        world.find(Kind::Dataplane, mesh_name, &named.name).into_iter().for_each(|r| add(r, &no_tags));
    } else if let Some(wanted) = &spec.selector.dataplane_labels {
        world
            .list_in(Kind::Dataplane, mesh_name)
            .filter(|r| wanted.match_labels.iter().all(|(k, v)| r.label(k) == Some(v)))
            .for_each(|r| add(r, &no_tags));
    }
    out
}

/// Local healthy inbounds that have all these tags.
pub(crate) fn of_tags(world: &World, settings: &Settings, mesh: &Mesh, mesh_name: &str, tags: &Tags) -> Localities {
    let mut out = Localities::new();
    let Some(service) = tags.get(TAG_SERVICE) else { return out };
    for r in world.dataplanes_of_service(mesh_name, service) {
        let Some(dp) = r.view::<Dataplane>() else { continue };
        for inbound in &dp.networking.inbound {
            let wanted = tags.iter().all(|(k, v)| v == "*" && inbound.tags.contains_key(k) || inbound.tags.get(k) == Some(v));
            if wanted && inbound.is_healthy() {
                push(&mut out, settings, mesh, r, dp, inbound);
            }
        }
    }
    out
}

fn push(out: &mut Localities, settings: &Settings, mesh: &Mesh, r: &Resource, dp: &Dataplane, inbound: &Inbound) {
    if inbound.port == PLACEHOLDER_PORT {
        return;
    }
    let Some(address) = resolve(settings, dp.networking.advertised(inbound)) else { return };
    let zone = inbound.tags.get(labels::ZONE).map_or_else(|| r.zone(), String::as_str);
    let far = mesh.routing.locality_aware_load_balancing && !zone.is_empty() && zone != settings.zone;
    let mut tags = inbound.tags.clone();
    tags.remove(TAG_SERVICE);
    let mut metadata = Metadata::default();
    if !tags.is_empty() {
        let fields = string_struct(&tags);
        metadata.filter_metadata.insert("envoy.lb".to_owned(), fields.clone());
        metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), fields);
    }
    if !r.labels.is_empty() {
        metadata.filter_metadata.insert("io.kuma.labels".to_owned(), string_struct(&r.labels));
    }
    let endpoint = Endpoint { address: socket(address, inbound.port), ..Default::default() };
    out.entry((u32::from(far), zone.to_owned())).or_default().push(LbEndpoint {
        metadata: (!metadata.filter_metadata.is_empty()).then_some(metadata),
        load_balancing_weight: weight(1),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    });
}

/// The endpoints resource of a cluster.
pub(crate) fn assignment(cluster: &str, localities: Localities) -> ClusterLoadAssignment {
    let locality = |zone: String| (!zone.is_empty()).then(|| Locality { zone, ..Default::default() });
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: localities
            .into_iter()
            .map(|((priority, zone), lb_endpoints)| LocalityLbEndpoints {
                locality: locality(zone),
                lb_endpoints,
                priority,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}
