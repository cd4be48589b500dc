//! Where a proxy can go, and under which names (reference: Kuma 2.14.3 REST contract, §4.3: `_layout`, `_hostnames`).

use crate::{
    auth::User,
    error::{ApiError, title},
    inspect::find,
    read::require_mesh,
    state::ApiState,
};
use ikada_model::{
    Dataplane, Kind, Kri, Labels, Mesh, Mode, Resource,
    dataplane::{Networking, OutboundBackendRef},
    hostname,
    labels,
    mesh::MeshServicesMode,
};
use ikada_policy::resource::ports;
use ikada_world::World;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Protocol of inbounds and ports that name none.
const TCP: &str = "tcp";

/// Kinds with a host name, by their segment of the path.
pub const NAMED: [&str; 3] = ["meshservices", "meshexternalservices", "meshmultizoneservices"];

fn destinations<'a>(world: &'a World, mesh: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
    NAMED.into_iter().filter_map(Kind::by_path).flat_map(move |kind| world.list_in(kind, mesh))
}

/// `appProtocol` of a port, or the protocol of a MeshExternalService.
fn protocol(destination: &Resource, port: u32) -> &str {
    let spec = destination.spec.value();
    let found = match destination.kind() {
        Kind::MeshExternalService => spec.pointer("/match/protocol"),
        _ => {
            let mut all = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
            all.find(|p| p.get("port").and_then(Value::as_u64) == Some(port.into())).and_then(|p| p.get("appProtocol"))
        }
    };
    found.and_then(Value::as_str).filter(|p| !p.is_empty()).unwrap_or(TCP)
}

/// Whether `networking.outbound[].backendRef` of a dataplane leads to this port. Names are those of the proxy's own zone.
fn leads_to(r: &OutboundBackendRef, dataplane: &Resource, destination: &Resource, port: u32) -> bool {
    if r.kind != destination.kind().name() || r.port != port {
        return false;
    }
    if r.labels.is_empty() {
        let zone = destination.zone();
        return destination.display_name() == r.name && (zone.is_empty() || zone == dataplane.zone());
    }
    r.labels.iter().all(|(k, v)| destination.label(k) == Some(v))
}

/// Whether the proxy can reach a port: what its outbounds name, and without outbounds or with redirected traffic everything that it does not
/// exclude.
fn reaches(n: &Networking, dataplane: &Resource, destination: &Resource, port: u32) -> bool {
    let named = n.outbound.iter().filter_map(|o| o.backend_ref.as_ref()).any(|r| leads_to(r, dataplane, destination, port));
    if named || (n.transparent_proxying.is_none() && !n.outbound.is_empty()) {
        return named;
    }
    match &n.transparent_proxying {
        None => true,
        Some(t) => match &t.reachable_backends {
            Some(backends) => backends.refs.iter().any(|r| r.selects(destination, port)),
            None => t.reachable_services.is_empty(),
        },
    }
}

/// `GET …/dataplanes/{name}/_layout`: inbounds, zone listeners and reachable destinations, with the names of their Envoy resources.
pub fn layout(state: &ApiState, world: &World, user: &User, mesh: &str, name: &str) -> Result<Value, ApiError> {
    let r = find(state, world, user, (Kind::Dataplane, mesh, name))?;
    if world.mesh(mesh).and_then(|m| m.view::<Mesh>()).is_none_or(|m| m.mesh_services.mode != MeshServicesMode::Exclusive) {
        return Err(ApiError::bad_request("bad request: can't use _layout endpoint without meshService enabled"));
    }
    let unset = Dataplane::default();
    let n = &r.view::<Dataplane>().unwrap_or(&unset).networking;
    let kri = Kri::of(r);
    let part = |section: &str| kri.clone().with_section(section).to_string();
    let inbounds: Vec<_> = n
        .inbound
        .iter()
        .map(|i| {
            let section = i.section();
            json!({
                "kri": part(&section),
                "port": i.port,
                "protocol": i.protocol().unwrap_or(TCP),
                "proxyResourceName": format!("self_inbound_dp_{section}"),
            })
        })
        .collect();
    let listeners: Vec<_> = n
        .listeners
        .iter()
        .map(|l| {
            let section = if l.name.is_empty() { l.port.to_string() } else { l.name.clone() };
            let resource = format!("self_{}_dp_{section}", l.kind.to_ascii_lowercase());
            json!({"kri": part(&section), "port": l.port, "type": l.kind, "proxyResourceName": resource})
        })
        .collect();
    let mut outbounds = BTreeMap::new();
    for d in destinations(world, mesh) {
        for (port, section) in ports(d).into_iter().filter(|(port, _)| reaches(n, r, d, *port)) {
            let kri = Kri::of(d).with_section(section).to_string();
            let shown = json!({"kri": kri, "port": port, "protocol": protocol(d, port), "proxyResourceName": kri});
            outbounds.insert(kri, shown);
        }
    }
    let outbounds: Vec<_> = outbounds.into_values().collect();
    Ok(json!({"kri": kri.to_string(), "labels": r.labels, "inbounds": inbounds, "outbounds": outbounds, "listeners": listeners}))
}

/// `GET …/{services}/{name}/_hostnames`: what HostnameGenerators make of a service, and in which zones. No access check, as in Kuma.
pub fn hostnames(state: &ApiState, world: &World, segment: &str, mesh: &str, name: &str) -> Result<Value, ApiError> {
    let Some(kind) = NAMED.contains(&segment).then(|| Kind::by_path(segment)).flatten() else {
        return Err(ApiError::invalid(&format!("only {:?} are available for inspection", NAMED.join(",")), Vec::new()));
    };
    require_mesh(world, kind, mesh)?;
    let service = world.find(kind, mesh, name).ok_or_else(|| ApiError::not_found(title::SERVICE))?;
    let field = match kind {
        Kind::MeshExternalService => "meshExternalService",
        Kind::MeshMultiZoneService => "meshMultiZoneService",
        _ => "meshService",
    };
    let with_origin = |origin: &str| {
        let mut all = service.labels.clone();
        all.insert(labels::ORIGIN.to_owned(), origin.to_owned());
        all
    };
    // The global knows the labels that a service has where it lives and, once synced, elsewhere.
    let seen: Vec<Labels> = match state.options.mode {
        Mode::Global => ["zone", "global"].map(with_origin).into(),
        Mode::Zone { .. } => vec![service.labels.clone()],
    };
    let zone = Some(service.zone()).filter(|z| !z.is_empty()).unwrap_or(service.display_name());
    let mut names: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for generator in world.list(Kind::HostnameGenerator) {
        let template = generator.spec.value().get("template").and_then(Value::as_str).unwrap_or("");
        for labels in seen.iter().filter(|l| hostname::selects(generator, field, l)) {
            // A template that this service's labels cannot fill gives no name.
            if let Ok(name) = hostname::expand(template, service, labels) {
                names.entry(name).or_default().insert(zone);
            }
        }
    }
    let item = |(name, zones): (String, BTreeSet<&str>)| {
        let zones: Vec<_> = zones.into_iter().map(|z| json!({"name": z})).collect();
        json!({"hostname": name, "zones": zones})
    };
    let items: Vec<_> = names.into_iter().map(item).collect();
    Ok(json!({"total": items.len(), "items": if items.is_empty() { Value::Null } else { items.into() }}))
}
