//! Generation of MeshServices from dataplanes, and their status (reference: data-plane contract §5.12).
//!
//! A function of the world: what has to be written so that the MeshServices of one mesh are as they should be.

use super::{
    hostnames::{self, Taken},
    vips::Allocator,
};
use ikada_model::{
    Dataplane, Json, Key, Kind, Labels, Mesh, MeshService, Resource, Timestamp,
    dataplane::Inbound,
    kind::kds,
    labels::{self, TAG_SERVICE},
    mesh::MeshServicesMode,
    mesh_service::{DataplaneRef, Identity, LabelSelector, Port, Selector, TargetPort},
};
use ikada_world::{Expect, Op, Put, World};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Value of `kuma.io/managed-by` on what is generated here.
const MANAGED_BY: &str = "meshservice-generator";
/// Inbound port that stands for "no port" (reference: data-plane contract §5.3).
const NO_PORT: u32 = 49151;

/// What the functions here need beside the world.
pub struct Context<'a> {
    /// Own zone.
    pub zone: &'a str,
    /// Now.
    pub now: Timestamp,
    /// How long an empty MeshService stays.
    pub grace: Duration,
}

/// What has to be written, and when to look again even if nothing changes (end of a grace period).
#[derive(Debug, Default)]
pub struct Plan {
    /// Operations of one command.
    pub ops: Vec<Op>,
    /// Time of the next look.
    pub next: Option<Timestamp>,
    /// Lines for the log, once each.
    pub notes: Vec<String>,
}

fn is_local(r: &Resource, zone: &str) -> bool {
    (r.zone().is_empty() || r.zone() == zone) && r.label(labels::ORIGIN) != Some("global")
}

/// RFC 1035 label of at most 63 characters.
fn is_dns_label(s: &str) -> bool {
    s.len() <= 63
        && s.starts_with(|c: char| c.is_ascii_lowercase())
        && !s.ends_with('-')
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn port_of(inbound: &Inbound) -> Port {
    Port {
        name: inbound.section(),
        port: inbound.port,
        target_port: Some(TargetPort::Number(inbound.port)),
        app_protocol: inbound.protocol().filter(|p| !p.is_empty()).unwrap_or("tcp").to_owned(),
    }
}

/// Ports of each service that local dataplanes offer, one entry per dataplane in order of creation, then name.
fn offers<'a>(dataplanes: &[&'a Arc<Resource>], notes: &mut Vec<String>) -> BTreeMap<String, Vec<(&'a str, Vec<Port>)>> {
    let mut by_service: BTreeMap<String, Vec<(&str, Vec<Port>)>> = BTreeMap::new();
    for r in dataplanes {
        let Some(dp) = r.view::<Dataplane>() else { continue };
        let mut mine: BTreeMap<&str, Vec<Port>> = BTreeMap::new();
        for inbound in dp.networking.inbound.iter().filter(|i| i.port != NO_PORT) {
            if let Some(service) = inbound.service().filter(|s| !s.is_empty()) {
                mine.entry(service).or_default().push(port_of(inbound));
            }
        }
        for (service, ports) in mine {
            if is_dns_label(service) {
                by_service.entry(service.to_owned()).or_default().push((r.name(), ports));
            } else {
                notes.push(format!("no MeshService is generated for service {service:?} of dataplane {:?}: not a valid RFC 1035 label", r.name()));
            }
        }
    }
    by_service
}

/// Inbounds of a dataplane that a selector takes. All of them for selectors by name or label.
fn selected<'a>(selector: &Selector, r: &Resource, dp: &'a Dataplane) -> Vec<&'a Inbound> {
    if let Some(tags) = &selector.dataplane_tags {
        return dp.networking.inbound.iter().filter(|i| tags.iter().all(|(k, v)| i.tags.get(k) == Some(v))).collect();
    }
    let takes = match (&selector.dataplane_ref, &selector.dataplane_labels) {
        (Some(DataplaneRef { name }), _) => r.name() == name,
        (None, Some(LabelSelector { match_labels })) => match_labels.iter().all(|(k, v)| r.labels.get(k) == Some(v)),
        (None, None) => false,
    };
    if takes { dp.networking.inbound.iter().collect() } else { Vec::new() }
}

fn takes_port(port: &Port, inbound: &Inbound) -> bool {
    match &port.target_port {
        Some(TargetPort::Number(n)) => inbound.port == *n,
        Some(TargetPort::Name(n)) => inbound.name == *n,
        None => false,
    }
}

/// Facts about the dataplanes behind a service.
#[derive(Default)]
struct Members {
    total: u32,
    connected: u32,
    healthy: u32,
    with_certificate: u32,
    identities: std::collections::BTreeSet<String>,
}

fn is_online(insight: &Value) -> bool {
    let open = |s: &Value| s.get("connectTime").is_some() && s.get("disconnectTime").is_none();
    insight.get("subscriptions").and_then(Value::as_array).is_some_and(|subs| subs.iter().any(open))
}

fn members(world: &World, spec: &MeshService, dataplanes: &[&Arc<Resource>]) -> Members {
    let mut m = Members::default();
    for r in dataplanes {
        let Some(dp) = r.view::<Dataplane>() else { continue };
        let inbounds = selected(&spec.selector, r, dp);
        if inbounds.is_empty() {
            continue;
        }
        m.total += 1;
        m.identities.extend(inbounds.iter().filter_map(|i| i.service()).map(str::to_owned));
        if spec.ports.iter().all(|p| inbounds.iter().any(|i| takes_port(p, i) && i.is_healthy())) {
            m.healthy += 1;
        }
        if let Some(insight) = world.find(Kind::DataplaneInsight, r.mesh(), r.name()) {
            let insight = insight.spec.value();
            m.connected += u32::from(is_online(insight));
            let issued = insight.pointer("/mTLS/issuedBackend").and_then(Value::as_str).is_some_and(|b| !b.is_empty());
            m.with_certificate += u32::from(issued);
        }
    }
    m
}

/// Whether all proxies of a service are known to accept mTLS. It never goes back while mTLS stays on.
fn tls_status(mesh: &Mesh, before: &Value, m: &Members) -> &'static str {
    let was_ready = before.pointer("/tls/status").and_then(Value::as_str) == Some("Ready");
    if mesh.mtls_enabled() && (was_ready || (m.total > 0 && m.with_certificate == m.total)) { "Ready" } else { "NotReady" }
}

/// Labels of a generated MeshService; those that somebody else added stay.
fn generated_labels(mesh: &str, name: &str, zone: &str, existing: Option<&Arc<Resource>>) -> Labels {
    let mut all = existing.map(|r| r.labels.clone()).unwrap_or_default();
    for (k, v) in [
        (labels::MESH, mesh),
        (labels::DISPLAY_NAME, name),
        (labels::MANAGED_BY, MANAGED_BY),
        (labels::ENV, "universal"),
        (labels::ZONE, zone),
        (labels::ORIGIN, "zone"),
    ] {
        all.insert(k.to_owned(), v.to_owned());
    }
    all.remove(labels::GRACE_PERIOD);
    all
}

/// What a MeshService should be.
struct Wanted {
    name: String,
    labels: Labels,
    spec: MeshService,
    existing: Option<Arc<Resource>>,
}

/// What has to be written for the MeshServices of one mesh.
pub fn plan(world: &World, mesh: &str, cx: &Context<'_>, vips: &mut Allocator) -> Plan {
    let mut plan = Plan::default();
    let Some(mesh_resource) = world.mesh(mesh) else { return plan };
    let Some(mesh_spec) = mesh_resource.view::<Mesh>() else { return plan };
    let mut dataplanes: Vec<_> = world.list_in(Kind::Dataplane, mesh).filter(|r| is_local(r, cx.zone)).collect();
    dataplanes.sort_by_key(|r| (r.creation_time, r.key.name.clone()));

    let offered = match mesh_spec.mesh_services.mode {
        MeshServicesMode::Disabled => BTreeMap::new(),
        _ => offers(&dataplanes, &mut plan.notes),
    };
    let mut wanted: Vec<Wanted> = Vec::new();
    for existing in world.list_in(Kind::MeshService, mesh).filter(|r| is_local(r, cx.zone)) {
        let Some(spec) = existing.view::<MeshService>() else { continue };
        let ours = existing.label(labels::MANAGED_BY) == Some(MANAGED_BY);
        if !ours || offered.contains_key(existing.name()) {
            let labels = if ours { generated_labels(mesh, existing.name(), cx.zone, Some(existing)) } else { existing.labels.clone() };
            wanted.push(Wanted { name: existing.name().to_owned(), labels, spec: spec.clone(), existing: Some(existing.clone()) });
        } else if let Some(w) = retire(existing, spec, mesh_spec, cx, &mut plan) {
            wanted.push(w);
        }
    }
    for (service, ports) in &offered {
        let known = wanted.iter().position(|w| w.name == *service);
        let stored = known.and_then(|i| wanted.get(i)).map(|w| (w.spec.ports.clone(), w.labels.get(labels::MANAGED_BY).map(String::as_str) == Some(MANAGED_BY)));
        if stored.as_ref().is_some_and(|(_, ours)| !ours) {
            continue;
        }
        let keep = stored.map(|(p, _)| p).filter(|p| ports.iter().any(|(_, offer)| offer == p));
        let Some(chosen) = keep.or_else(|| ports.first().map(|(_, p)| p.clone())) else { continue };
        for (dataplane, _) in ports.iter().filter(|(_, p)| *p != chosen) {
            plan.notes.push(format!("dataplane {dataplane:?} offers service {service:?} with other ports than its MeshService; they are not reachable"));
        }
        let selector = Selector { dataplane_tags: Some([(TAG_SERVICE.to_owned(), service.clone())].into()), ..Selector::default() };
        match known.and_then(|i| wanted.get_mut(i)) {
            Some(w) => {
                w.spec.ports = chosen;
                w.spec.selector = selector;
            }
            None => wanted.push(Wanted {
                name: service.clone(),
                labels: generated_labels(mesh, service, cx.zone, None),
                spec: MeshService { ports: chosen, selector, ..MeshService::default() },
                existing: None,
            }),
        }
    }
    // Age decides who gets a host name and the lower address.
    wanted.sort_by_key(|w| (w.existing.as_ref().map_or(cx.now, |r| r.creation_time), w.name.clone()));
    write(world, (mesh_resource, mesh_spec), &dataplanes, wanted, vips, &mut plan);
    plan
}

/// A generated MeshService without dataplanes: marked, and deleted when its grace period is over or the mesh wants none.
fn retire(existing: &Arc<Resource>, spec: &MeshService, mesh: &Mesh, cx: &Context<'_>, plan: &mut Plan) -> Option<Wanted> {
    let mut labels_ = existing.labels.clone();
    if mesh.mesh_services.mode != MeshServicesMode::Disabled {
        let since = existing.label(labels::GRACE_PERIOD).and_then(|t| Timestamp::parse(t).ok());
        let start = since.unwrap_or(cx.now);
        let grace = i64::try_from(cx.grace.as_nanos()).unwrap_or(i64::MAX);
        let end = Timestamp(start.0.saturating_add(grace));
        if end > cx.now {
            plan.next = Some(plan.next.map_or(end, |n| n.min(end)));
            if since.is_none() {
                let seconds = Timestamp(cx.now.0 - cx.now.0.rem_euclid(1_000_000_000));
                labels_.insert(labels::GRACE_PERIOD.to_owned(), seconds.to_string());
            }
            return Some(Wanted { name: existing.name().to_owned(), labels: labels_, spec: spec.clone(), existing: Some(existing.clone()) });
        }
    }
    plan.ops.push(Op::Delete { key: existing.key.clone(), expect: Expect::Version(existing.version) });
    None
}

fn write(
    world: &World,
    (mesh_resource, mesh): (&Arc<Resource>, &Mesh),
    dataplanes: &[&Arc<Resource>],
    wanted: Vec<Wanted>,
    vips: &mut Allocator,
    plan: &mut Plan,
) {
    let generators = hostnames::generators(world);
    let mut taken = Taken::new();
    for mut w in wanted {
        let members = members(world, &w.spec, dataplanes);
        w.spec.identities = members.identities.iter().map(|s| Identity { kind: "ServiceTag".into(), value: s.clone() }).collect();
        w.spec.state = if members.healthy > 0 { "Available" } else { "Unavailable" }.to_owned();
        let key = Key::new(Kind::MeshService, mesh_resource.name(), &w.name);
        let probe = Resource::new(key.clone(), Json::default());
        let before = w.existing.as_ref().map(|r| r.status.value().clone()).unwrap_or(Value::Null);

        let (addresses, conditions) = hostnames::status(&generators, ("meshService", "MeshServiceList"), &probe, &w.labels, &mut taken);
        let mut status = serde_json::Map::new();
        let vip = before.pointer("/vips/0/ip").and_then(Value::as_str).map(str::to_owned).or_else(|| vips.allocate(&key));
        match vip {
            Some(ip) => drop(status.insert("vips".into(), json!([{ "ip": ip }]))),
            None => plan.notes.push(format!("no virtual IP is left for MeshService {:?} in mesh {:?}: widen ipam.meshService.cidr", w.name, mesh_resource.name())),
        }
        if !addresses.is_empty() {
            status.insert("addresses".into(), addresses.into());
        }
        if !conditions.is_empty() {
            status.insert("hostnameGenerators".into(), conditions.into());
        }
        status.insert("tls".into(), json!({"status": tls_status(mesh, &before, &members)}));

        let Ok(spec) = serde_json::to_value(&w.spec) else { continue };
        let (spec, status) = (Json::from_value(&spec), Json::from_value(&Value::Object(status)));
        let same = w.existing.as_ref().is_some_and(|r| r.spec == spec && r.labels == w.labels && r.status == status);
        if !same {
            plan.ops.push(Op::Put(Put {
                status: Some(status),
                owner: Some(mesh_resource.key.clone()),
                expect: w.existing.as_ref().map_or(Expect::Absent, |r| Expect::Version(r.version)),
                ..Put::new(key.clone(), w.labels, spec)
            }));
        }
        let counts = json!({"dataplaneProxies": {"connected": members.connected, "healthy": members.healthy, "total": members.total}});
        let counts = Json::from_value(&counts);
        if world.status_overlay(&key) != Some(&counts) {
            plan.ops.push(Op::Status { key, status: counts });
        }
    }
}

/// Whether a change of this kind can change what [`plan`] returns.
pub fn is_input(kind: Kind) -> bool {
    matches!(kind, Kind::Mesh | Kind::Dataplane | Kind::DataplaneInsight | Kind::MeshService | Kind::HostnameGenerator)
}

/// Addresses that MeshServices of all meshes have.
pub fn stored_vips(world: &World) -> impl Iterator<Item = &str> {
    world
        .list(Kind::MeshService)
        .filter(|r| r.kind().descriptor().has(kds::PROVIDED_BY_ZONE))
        .filter_map(|r| r.status.value().pointer("/vips/0/ip").and_then(Value::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_world::{Command, EntryMeta};

    fn apply(w: &World, ops: Vec<Op>) -> World {
        let index = w.index() + 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&index.to_be_bytes());
        let (next, _, out) = w.apply(EntryMeta { index, time: Timestamp::from_millis(1_000_000 + index) }, &Command { id, ops });
        out.unwrap();
        next
    }
    fn put(kind: Kind, mesh: &str, name: &str, spec: Value) -> Op {
        Op::Put(Put::new(Key::new(kind, mesh, name), Labels::new(), Json::from_value(&spec)))
    }
    fn dataplane(name: &str, port: u32, protocol: &str) -> Op {
        let tags = json!({"kuma.io/service": "web", "kuma.io/protocol": protocol});
        put(Kind::Dataplane, "m", name, json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": port, "tags": tags}]}}))
    }
    fn cx(now: u64) -> Context<'static> {
        Context { zone: "default", now: Timestamp::from_millis(now), grace: Duration::from_secs(3600) }
    }

    #[test]
    fn generated_kept_retired_and_deleted() {
        let mut vips = Allocator::new("241.0.0.0/8").unwrap();
        let w = apply(&World::empty(), vec![
            put(Kind::Mesh, "", "m", json!({"meshServices": {"mode": "Exclusive"}})),
            dataplane("a", 80, "http"),
            dataplane("b", 81, "tcp"),
        ]);
        let p = plan(&w, "m", &cx(2_000_000), &mut vips);
        assert_eq!(p.ops.len(), 2);
        assert!(p.notes.iter().any(|n| n.contains("\"b\"")), "{:?}", p.notes);
        let w = apply(&w, p.ops);
        let web = w.find(Kind::MeshService, "m", "web").unwrap().clone();
        assert_eq!(web.spec.value()["ports"], json!([{"name": "80", "port": 80, "targetPort": 80, "appProtocol": "http"}]));
        assert_eq!(web.spec.value()["identities"], json!([{"type": "ServiceTag", "value": "web"}]));
        assert_eq!(web.spec.value()["state"], "Available");
        assert_eq!(w.status_of(&web)["vips"][0]["ip"], "241.0.0.0");
        assert_eq!(w.status_of(&web)["tls"]["status"], "NotReady");
        assert_eq!(w.status_of(&web)["dataplaneProxies"], json!({"connected": 0, "healthy": 1, "total": 2}));
        assert!(plan(&w, "m", &cx(2_000_000), &mut vips).ops.is_empty(), "nothing to do the second time");

        // The first dataplane leaves: the ports of the other one are taken.
        let del = |n: &str| Op::Delete { key: Key::new(Kind::Dataplane, "m", n), expect: Expect::Any };
        let w = apply(&w, vec![del("a")]);
        let p = plan(&w, "m", &cx(2_000_001), &mut vips);
        let w = apply(&w, p.ops);
        assert_eq!(w.find(Kind::MeshService, "m", "web").unwrap().spec.value()["ports"][0]["port"], 81);

        let w = apply(&w, vec![del("b")]);
        let p = plan(&w, "m", &cx(3_000_000), &mut vips);
        assert_eq!(p.next, Some(Timestamp::from_millis(3_000_000 + 3_600_000)));
        let w = apply(&w, p.ops);
        let web = w.find(Kind::MeshService, "m", "web").unwrap();
        assert!(web.label(labels::GRACE_PERIOD).is_some());
        assert_eq!(web.spec.value()["state"], "Unavailable");
        // It comes back: the mark goes. It stays away: it is deleted.
        let back = apply(&w, vec![dataplane("a", 80, "http")]);
        let p = plan(&back, "m", &cx(4_000_000), &mut vips);
        assert!(apply(&back, p.ops).find(Kind::MeshService, "m", "web").unwrap().label(labels::GRACE_PERIOD).is_none());
        let p = plan(&w, "m", &cx(3_000_000 + 3_600_001), &mut vips);
        assert!(apply(&w, p.ops).find(Kind::MeshService, "m", "web").is_none());
    }

    #[test]
    fn tls_ready_when_every_proxy_has_a_certificate() {
        let mut vips = Allocator::new("241.0.0.0/8").unwrap();
        let mtls = json!({"mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]}, "meshServices": {"mode": "Exclusive"}});
        let insight = json!({"subscriptions": [{"id": "1", "connectTime": "2026-01-01T00:00:00Z"}], "mTLS": {"issuedBackend": "ca"}});
        let w = apply(&World::empty(), vec![put(Kind::Mesh, "", "m", mtls), dataplane("a", 80, "http")]);
        let p = plan(&w, "m", &cx(1), &mut vips);
        let w = apply(&w, p.ops);
        assert_eq!(w.status_of(w.find(Kind::MeshService, "m", "web").unwrap())["tls"]["status"], "NotReady");
        let w = apply(&w, vec![put(Kind::DataplaneInsight, "m", "a", insight)]);
        let p = plan(&w, "m", &cx(1), &mut vips);
        let w = apply(&w, p.ops);
        assert_eq!(w.status_of(w.find(Kind::MeshService, "m", "web").unwrap())["tls"]["status"], "Ready");
        let w = apply(&w, vec![dataplane("b", 80, "http")]);
        let p = plan(&w, "m", &cx(1), &mut vips);
        let w = apply(&w, p.ops);
        let web = w.find(Kind::MeshService, "m", "web").unwrap();
        assert_eq!(w.status_of(web)["tls"]["status"], "Ready", "it does not go back");
        assert_eq!(w.status_of(web)["dataplaneProxies"], json!({"connected": 1, "healthy": 2, "total": 2}));
    }

    #[test]
    fn foreign_services_keep_their_spec() {
        let mut vips = Allocator::new("241.0.0.0/8").unwrap();
        let own = json!({"selector": {"dataplaneTags": {"kuma.io/service": "web"}}, "ports": [{"port": 9, "targetPort": 80, "appProtocol": "tcp"}]});
        let w = apply(&World::empty(), vec![
            put(Kind::Mesh, "", "m", json!({"meshServices": {"mode": "Exclusive"}})),
            put(Kind::MeshService, "m", "web", own),
            dataplane("a", 80, "http"),
        ]);
        let p = plan(&w, "m", &cx(1), &mut vips);
        let w = apply(&w, p.ops);
        let web = w.find(Kind::MeshService, "m", "web").unwrap();
        assert_eq!(web.spec.value()["ports"][0]["port"], 9);
        assert_eq!(web.spec.value()["identities"][0]["value"], "web");
        assert_eq!(w.status_of(web)["vips"][0]["ip"], "241.0.0.0");
    }
}
