//! Dataplane: fields, rules, and what a write changes in it (reference: Kuma 2.14.3 REST contract, §8.2 and §6.5).

use super::{
    checks::{self, TagValues, list, number, text, text_map},
    mesh::METRICS_BACKEND,
    metrics,
    proto::{Enum, Message, Type, field},
};
use crate::{
    go, ident,
    labels::{self, TAG_PROTOCOL, TAG_SERVICE},
    mesh::MeshServicesMode,
    policy::ValidateContext,
    violation::{Path, Violations},
};
use serde_json::{Map, Value, json};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

static STATE: &[(&str, i32)] = &[("Ready", 0), ("NotReady", 1), ("Ignored", 2)];
static INBOUND_STATE: Enum = Enum { name: "kuma.mesh.v1alpha1.Dataplane.Networking.Inbound.State", values: STATE };
static LISTENER_STATE: Enum =
    Enum { name: "kuma.mesh.v1alpha1.Dataplane.Networking.Listener.State", values: &[("Ready", 0), ("NotReady", 1)] };
static LISTENER_TYPE: Enum = Enum {
    name: "kuma.mesh.v1alpha1.Dataplane.Networking.Listener.Type",
    values: &[("Unspecified", 0), ("ZoneIngress", 1), ("ZoneEgress", 2)],
};
static GATEWAY_TYPE: Enum =
    Enum { name: "kuma.mesh.v1alpha1.Dataplane.Networking.Gateway.GatewayType", values: &[("DELEGATED", 0), ("BUILTIN", 1)] };
static IP_FAMILY: Enum = Enum {
    name: "kuma.mesh.v1alpha1.Dataplane.Networking.TransparentProxying.IpFamilyMode",
    values: &[("UnSpecified", 0), ("DualStack", 1), ("IPv4", 2), ("IPv6", 3)],
};
const TAGS: Type = Type::Map(&Type::String);

static INBOUND: Message = Message {
    name: "kuma.mesh.v1alpha1.Dataplane.Networking.Inbound",
    fields: &[
        field("port", Type::U32),
        field("servicePort", Type::U32),
        field("serviceAddress", Type::String),
        field("address", Type::String),
        field("tags", TAGS),
        field(
            "health",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Dataplane.Networking.Inbound.Health",
                fields: &[field("ready", Type::Bool)],
            }),
        ),
        field(
            "serviceProbe",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Dataplane.Networking.Inbound.ServiceProbe",
                fields: &[
                    field("interval", Type::Duration),
                    field("timeout", Type::Duration),
                    field("unhealthyThreshold", Type::U32Value),
                    field("healthyThreshold", Type::U32Value),
                    field(
                        "tcp",
                        Type::Message(&Message { name: "kuma.mesh.v1alpha1.Dataplane.Networking.Inbound.ServiceProbe.Tcp", fields: &[] }),
                    ),
                ],
            }),
        ),
        field("state", Type::Enum(&INBOUND_STATE)),
        field("name", Type::String),
        field("protocol", Type::String),
    ],
};
static OUTBOUND: Message = Message {
    name: "kuma.mesh.v1alpha1.Dataplane.Networking.Outbound",
    fields: &[
        field("address", Type::String),
        field("port", Type::U32),
        field("tags", TAGS),
        field(
            "backendRef",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Dataplane.Networking.Outbound.BackendRef",
                fields: &[field("kind", Type::String), field("name", Type::String), field("port", Type::U32), field("labels", TAGS)],
            }),
        ),
    ],
};
static LISTENER: Message = Message {
    name: "kuma.mesh.v1alpha1.Dataplane.Networking.Listener",
    fields: &[
        field("type", Type::Enum(&LISTENER_TYPE)),
        field("address", Type::String),
        field("port", Type::U32),
        field("name", Type::String),
        field("state", Type::Enum(&LISTENER_STATE)),
    ],
};
static TRANSPARENT_PROXYING: Message = Message {
    name: "kuma.mesh.v1alpha1.Dataplane.Networking.TransparentProxying",
    fields: &[
        field("redirectPortInbound", Type::U32),
        field("redirectPortOutbound", Type::U32),
        field("directAccessServices", Type::List(&Type::String)),
        field("reachableServices", Type::List(&Type::String)),
        field("ipFamilyMode", Type::Enum(&IP_FAMILY)),
        field(
            "reachableBackends",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Dataplane.Networking.TransparentProxying.ReachableBackends",
                fields: &[field(
                    "refs",
                    Type::List(&Type::Message(&Message {
                        name: "kuma.mesh.v1alpha1.Dataplane.Networking.TransparentProxying.ReachableBackendRef",
                        fields: &[
                            field("kind", Type::String),
                            field("name", Type::String),
                            field("namespace", Type::String),
                            field("port", Type::U32Value),
                            field("labels", TAGS),
                        ],
                    })),
                )],
            }),
        ),
    ],
};

/// Fields of a Dataplane.
pub static DATAPLANE: Message = Message {
    name: "kuma.mesh.v1alpha1.Dataplane",
    fields: &[
        field(
            "networking",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Dataplane.Networking",
                fields: &[
                    field("address", Type::String),
                    field("advertisedAddress", Type::String),
                    field("inbound", Type::List(&Type::Message(&INBOUND))),
                    field("outbound", Type::List(&Type::Message(&OUTBOUND))),
                    field(
                        "gateway",
                        Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.Dataplane.Networking.Gateway",
                            fields: &[field("tags", TAGS), field("type", Type::Enum(&GATEWAY_TYPE))],
                        }),
                    ),
                    field("transparentProxying", Type::Message(&TRANSPARENT_PROXYING)),
                    field("admin", Type::Message(&Message { name: "kuma.mesh.v1alpha1.EnvoyAdmin", fields: &[field("port", Type::U32)] })),
                    field("listeners", Type::List(&Type::Message(&LISTENER))),
                ],
            }),
        ),
        field("metrics", Type::Message(&METRICS_BACKEND)),
        field(
            "probes",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Dataplane.Probes",
                fields: &[
                    field("port", Type::U32),
                    field(
                        "endpoints",
                        Type::List(&Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.Dataplane.Probes.Endpoint",
                            fields: &[field("inboundPort", Type::U32), field("inboundPath", Type::String), field("path", Type::String)],
                        })),
                    ),
                ],
            }),
        ),
    ],
};

const REF_KINDS: &[&str] = &["MeshExternalService", "MeshMultiZoneService", "MeshService"];
const REF_KIND: &str = "invalid value. Available values are: MeshExternalService,MeshMultiZoneService,MeshService";
const IP_ONLY: &str = "address has to be valid IP address";

/// Rules on a Dataplane. They do not depend on its meta data.
pub fn validate(_: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let at = Path::of("networking");
    let Some(net) = spec.get("networking") else { return out.add(at, "must be defined") };
    admin(&at.field("admin").field("port"), net, out);
    let gateway = net.get("gateway");
    let builtin = gateway.is_some_and(|g| text(g, "type") == "BUILTIN");
    let forbid = |what: &str, present: bool, kind: &str, out: &mut Violations| {
        if present {
            out.add(at.field(what), format!("{what} cannot be defined for {kind} gateways"));
        }
    };
    let has = |what: &str| !list(net, what).is_empty();
    let mut with_probes = true;
    match gateway {
        Some(g) if builtin => {
            forbid("inbound", has("inbound"), "builtin", out);
            forbid("outbound", has("outbound"), "builtin", out);
            forbid("listeners", has("listeners"), "builtin", out);
            forbid("probes", spec.get("probes").is_some(), "builtin", out);
            with_probes = false;
            self::gateway(&at.field("gateway").field("tags"), g, out);
        }
        Some(g) => {
            forbid("inbound", has("inbound"), "delegated", out);
            forbid("listeners", has("listeners"), "delegated", out);
            self::gateway(&at.field("gateway").field("tags"), g, out);
        }
        None => listeners(&at.field("listeners"), net, out),
    }
    networking(&at, net, out);
    if let Some(probes) = spec.get("probes").filter(|_| with_probes) {
        self::probes(&Path::of("probes"), probes, out);
    }
    if let Some(backend) = spec.get("metrics") {
        let at = Path::of("metrics");
        if text(backend, "type") == metrics::PROMETHEUS {
            metrics::validate_conf(&at.field("conf"), backend.get("conf"), out);
        } else {
            out.add(at.field("type"), "unknown backend type. Available backends: \"prometheus\"");
        }
    }
}

fn networking(at: &Path, net: &Value, out: &mut Violations) {
    checks::address(at, text(net, "address"), out);
    for (i, x) in list(net, "inbound").iter().enumerate() {
        inbound(&at.field("inbound").index(i), x, text(net, "address"), out);
    }
    for (i, x) in list(net, "outbound").iter().enumerate() {
        outbound(&at.field("outbound").index(i), x, out);
    }
    // Kuma's path lacks a letter.
    let at = at.field("transparentProxing.reachableBackends.refs");
    let refs = net.pointer("/transparentProxying/reachableBackends").map_or(&[][..], |r| list(r, "refs"));
    for (i, x) in refs.iter().enumerate() {
        reachable(&at.index(i), x, out);
    }
}

/// The admin port is bound to loopback: nothing else may use it there.
fn admin(at: &Path, net: &Value, out: &mut Violations) {
    let Some(port) = net.get("admin").map(|a| number(a, "port")) else { return };
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let overlaps = |address: &str| checks::ip(address).is_some_and(|ip| ip.is_unspecified() || ip == loopback);
    let or = |first: u64, second: u64| if first == 0 { second } else { first };
    let outbound = list(net, "outbound").iter().any(|o| {
        let address = text(o, "address");
        number(o, "port") == port && (address.is_empty() || overlaps(address))
    });
    if outbound {
        out.add(at, "must differ from outbound");
    }
    let inbound = list(net, "inbound").iter().any(|i| {
        let proxy = match text(i, "address") {
            "" => text(net, "address"),
            own => own,
        };
        let app = match text(i, "serviceAddress") {
            "" => proxy,
            own => own,
        };
        (number(i, "port") == port && overlaps(proxy)) || (or(number(i, "servicePort"), number(i, "port")) == port && overlaps(app))
    });
    if inbound {
        out.add(at, "must differ from inbound");
    }
}

fn inbound(at: &Path, inbound: &Value, dataplane_address: &str, out: &mut Violations) {
    let (port, service_port) = (number(inbound, "port"), number(inbound, "servicePort"));
    checks::port(&at.field("port"), port, out);
    if service_port != 0 {
        checks::port(&at.field("servicePort"), service_port, out);
    }
    let (address, service_address) = (text(inbound, "address"), text(inbound, "serviceAddress"));
    if !service_address.is_empty() {
        let at = at.field("serviceAddress");
        if checks::ip(service_address).is_none() {
            out.add(&at, "serviceAddress has to be valid IP address");
        }
        if (service_address == dataplane_address || service_address == address) && (service_port == 0 || service_port == port) {
            out.add(&at, "serviceAddress and servicePort has to differ from address and port");
        }
    }
    if !address.is_empty() && checks::ip(address).is_none() {
        out.add(at.field("address"), IP_ONLY);
    }
    let at_tags = at.field("tags");
    let tags = text_map(inbound, "tags");
    required_service(&at_tags, &tags, out);
    checks::protocol_tag(&at_tags, &tags, out);
    checks::tags(&at_tags, &tags, TagValues::Real, out);
    match text(inbound, "protocol") {
        "" => {}
        protocol => checks::protocol(&at.field("protocol"), protocol, out),
    }
    let Some(probe) = inbound.get("serviceProbe") else { return };
    let at = at.field("serviceProbe");
    for field in ["interval", "timeout"] {
        if let Some(duration) = probe.get(field) {
            checks::positive_duration(&at.field(field), Some(duration), out);
        }
    }
    for field in ["unhealthyThreshold", "healthyThreshold"] {
        if probe.get(field).is_some() {
            checks::threshold(&at.field(field), number(probe, field), out);
        }
    }
}

/// Tags are optional as a whole; with tags there must be a service. The zone alone does not count: the control plane adds it to owners
/// without tags ([`prepare_dataplane`]), and what it stores must stay writable.
fn required_service(at: &Path, tags: &[(&str, &str)], out: &mut Violations) {
    if tags.iter().any(|(k, _)| *k != labels::ZONE) && !checks::has_service(tags) {
        out.add(at.key(TAG_SERVICE), "tag has to exist");
    }
}

fn outbound(at: &Path, outbound: &Value, out: &mut Violations) {
    let address = text(outbound, "address");
    if !address.is_empty() && checks::ip(address).is_none() {
        out.add(at.field("address"), IP_ONLY);
    }
    checks::port(&at.field("port"), number(outbound, "port"), out);
    let tags = text_map(outbound, "tags");
    let at_tags = at.field("tags");
    checks::tags(&at_tags, &tags, TagValues::Real, out);
    let Some(backend_ref) = outbound.get("backendRef") else {
        if !checks::has_service(&tags) {
            out.add(at_tags, format!("mandatory tag \"{TAG_SERVICE}\" is missing"));
        }
        return;
    };
    let at = at.field("backendRef");
    if !tags.is_empty() {
        out.add(&at, "both backendRef and tags/service cannot be defined");
    }
    let kind = text(backend_ref, "kind");
    if !REF_KINDS.contains(&kind) {
        out.add(at.field("kind"), REF_KIND);
    }
    if text(backend_ref, "name").is_empty() && text_map(backend_ref, "labels").is_empty() {
        out.add(&at, "either 'name' or 'labels' should be specified");
    }
    if kind != "MeshExternalService" {
        checks::port(&at.field("port"), number(backend_ref, "port"), out);
    }
}

fn gateway(at: &Path, gateway: &Value, out: &mut Violations) {
    let tags = text_map(gateway, "tags");
    required_service(at, &tags, out);
    if let Some((_, protocol)) = tags.iter().find(|(k, _)| *k == TAG_PROTOCOL)
        && *protocol != "tcp"
    {
        out.add(at.key(TAG_PROTOCOL), format!("other values than tcp are not allowed, provided value {}", go::quote(protocol)));
    }
    checks::tags(at, &tags, TagValues::Real, out);
}

fn reachable(at: &Path, reference: &Value, out: &mut Violations) {
    if !REF_KINDS.contains(&text(reference, "kind")) {
        out.add(at.field("kind"), REF_KIND);
    }
    let (name, labels) = (text(reference, "name"), text_map(reference, "labels"));
    if name.is_empty() {
        if labels.is_empty() {
            out.add(at, "name or labels are required");
        }
        if !text(reference, "namespace").is_empty() {
            out.add(at, "name is required, when namespace is defined");
        }
    } else {
        ident::validate_reference(&at.field("name"), name, out);
        if !labels.is_empty() {
            out.add(at.field("labels"), "labels cannot be defined when name is specified");
        }
    }
    if reference.get("port").is_some() {
        checks::port(&at.field("port"), number(reference, "port"), out);
    }
}

/// Listeners of zone proxies: each has its own name and its own address, also against the inbounds.
fn listeners(at: &Path, net: &Value, out: &mut Violations) {
    let inbounds = list(net, "inbound");
    let mut names: HashSet<&str> = inbounds.iter().map(|i| text(i, "name")).filter(|n| !n.is_empty()).collect();
    let taken: HashSet<(&str, u64)> = inbounds
        .iter()
        .map(|i| match text(i, "address") {
            "" => (text(net, "address"), number(i, "port")),
            own => (own, number(i, "port")),
        })
        .collect();
    let mut used: HashMap<(&str, u64), &str> = HashMap::new();
    for (i, listener) in list(net, "listeners").iter().enumerate() {
        let at = at.index(i);
        let kind = text(listener, "type");
        if !matches!(kind, "ZoneIngress" | "ZoneEgress") {
            out.add(at.field("type"), "type must be ZoneIngress or ZoneEgress");
        }
        let (address, port, name) = (text(listener, "address"), number(listener, "port"), text(listener, "name"));
        checks::address(&at, address, out);
        checks::port(&at.field("port"), port, out);
        if !name.is_empty() && !names.insert(name) {
            out.add(at.field("name"), format!("name {} must be unique across inbounds and listeners", go::quote(name)));
        }
        let place = (address, port);
        match used.get(&place) {
            Some(other) if *other == kind => out.add(&at, format!("address:port {address}:{port} is already used by another listener")),
            Some(_) => out.add(&at, format!("address:port {address}:{port} is used by listeners of different types")),
            None => {
                used.insert(place, kind);
            }
        }
        if taken.contains(&place) {
            out.add(&at, format!("address:port {address}:{port} collides with an inbound listener"));
        }
    }
}

fn probes(at: &Path, probes: &Value, out: &mut Violations) {
    checks::port(&at.field("port"), number(probes, "port"), out);
    for (i, endpoint) in list(probes, "endpoints").iter().enumerate() {
        let at = at.field("endpoints").index(i);
        checks::port(&at.field("inboundPort"), number(endpoint, "inboundPort"), out);
        for field in ["inboundPath", "path"] {
            if !checks::is_url_path(text(endpoint, field)) {
                out.add(at.field(field), "should be a valid URL Path");
            }
        }
    }
}

/// What the control plane changes in a canonical Dataplane spec before it validates and stores it.
///
/// The zone tag of every inbound and of the gateway is overwritten. An inbound without tags stays without when the mesh runs in mode
/// Exclusive. When the proxy is created, inbounds with a `serviceProbe` start as not ready, because nothing has probed them yet.
pub fn prepare_dataplane(zone: &str, mesh_mode: MeshServicesMode, create: bool, mut spec: Value) -> Value {
    let Some(networking) = spec.get_mut("networking").and_then(Value::as_object_mut) else { return spec };
    for inbound in networking.get_mut("inbound").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let has_tags = inbound.get("tags").and_then(Value::as_object).is_some_and(|t| !t.is_empty());
        if has_tags || mesh_mode != MeshServicesMode::Exclusive {
            set_zone(inbound, zone);
        }
        if create && inbound.contains_key("serviceProbe") {
            inbound.insert("state".to_owned(), json!("NotReady"));
            // `ready: false` is the default and therefore not written.
            inbound.insert("health".to_owned(), json!({}));
        }
    }
    if let Some(gateway) = networking.get_mut("gateway").and_then(Value::as_object_mut) {
        set_zone(gateway, zone);
    }
    spec
}

fn set_zone(owner: &mut Map<String, Value>, zone: &str) {
    let tags = owner.entry("tags").or_insert_with(|| json!({}));
    if let Some(tags) = tags.as_object_mut() {
        tags.insert(labels::ZONE.to_owned(), json!(zone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared() {
        let spec = json!({"networking": {
            "inbound": [{"port": 1}, {"port": 2, "tags": {"kuma.io/zone": "x"}, "serviceProbe": {"tcp": {}}}],
            "gateway": {"tags": {"kuma.io/service": "g"}},
        }});
        let out = prepare_dataplane("z", MeshServicesMode::Exclusive, true, spec.clone());
        assert_eq!(
            out,
            json!({"networking": {
                "inbound": [
                    {"port": 1},
                    {"port": 2, "tags": {"kuma.io/zone": "z"}, "serviceProbe": {"tcp": {}}, "state": "NotReady", "health": {}},
                ],
                "gateway": {"tags": {"kuma.io/service": "g", "kuma.io/zone": "z"}},
            }})
        );
        let out = prepare_dataplane("z", MeshServicesMode::Disabled, false, spec);
        assert_eq!(out["networking"]["inbound"][0], json!({"port": 1, "tags": {"kuma.io/zone": "z"}}));
        assert_eq!(out["networking"]["inbound"][1].get("state"), None);
        assert_eq!(prepare_dataplane("z", MeshServicesMode::Disabled, true, json!({})), json!({}));
    }

    fn errors(networking: Value) -> Vec<String> {
        let spec = super::super::proto::canonicalize(&DATAPLANE, &json!({ "networking": networking })).unwrap();
        let mut out = Violations::new();
        validate(&ValidateContext::default(), &spec, &mut out);
        out.into_iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn admin_port() {
        let with = |inbound: Value| errors(json!({"address": "10.0.0.1", "admin": {"port": 9901}, "inbound": [inbound]}));
        assert!(with(json!({"port": 9901})).is_empty());
        let refused = ["networking.admin.port: must differ from inbound"];
        assert_eq!(with(json!({"port": 9901, "address": "127.0.0.1"})), refused);
        assert_eq!(with(json!({"port": 9901, "address": "0.0.0.0"})), refused);
        assert_eq!(with(json!({"port": 80, "servicePort": 9901, "serviceAddress": "127.0.0.1"})), refused);
        assert!(with(json!({"port": 80, "servicePort": 9901})).is_empty());
    }

    #[test]
    fn references() {
        let with = |r: Value| errors(json!({"address": "10.0.0.1", "transparentProxying": {"reachableBackends": {"refs": [r]}}}));
        let at = "networking.transparentProxing.reachableBackends.refs[0]";
        assert_eq!(with(json!({"kind": "MeshService"})), [format!("{at}: name or labels are required")]);
        assert_eq!(
            with(json!({"kind": "x", "namespace": "ns", "labels": {"a": "b"}})),
            [format!("{at}.kind: {REF_KIND}"), format!("{at}: name is required, when namespace is defined")]
        );
        assert_eq!(with(json!({"kind": "MeshService", "name": "A"})).len(), 1);
        assert_eq!(
            with(json!({"kind": "MeshService", "name": "a", "labels": {"a": "b"}})),
            [format!("{at}.labels: labels cannot be defined when name is specified")]
        );
        assert!(with(json!({"kind": "MeshService", "name": "a", "port": 80})).is_empty());
    }

    #[test]
    fn zone_listeners() {
        let listener = |kind: &str, port: u64| json!({"type": kind, "address": "10.0.0.1", "port": port});
        let with = |listeners: Value| errors(json!({"address": "10.0.0.1", "inbound": [{"port": 80}], "listeners": listeners}));
        assert!(with(json!([listener("ZoneIngress", 1), listener("ZoneEgress", 2)])).is_empty());
        assert_eq!(
            with(
                json!([listener("ZoneIngress", 1), listener("ZoneEgress", 1), listener("ZoneEgress", 80), {"address": "10.0.0.1", "port": 3}])
            ),
            [
                "networking.listeners[1]: address:port 10.0.0.1:1 is used by listeners of different types",
                "networking.listeners[2]: address:port 10.0.0.1:80 collides with an inbound listener",
                "networking.listeners[3].type: type must be ZoneIngress or ZoneEgress",
            ]
        );
    }

    #[test]
    fn what_is_prepared_stays_valid() {
        let spec = json!({"networking": {"address": "10.0.0.1", "inbound": [{"port": 80}], "transparentProxying": {}}});
        let prepared = prepare_dataplane("z", MeshServicesMode::Disabled, true, spec);
        assert_eq!(prepared["networking"]["inbound"][0]["tags"], json!({"kuma.io/zone": "z"}));
        assert_eq!(errors(prepared["networking"].clone()), Vec::<String>::new());
        assert_eq!(
            errors(json!({"address": "10.0.0.1", "inbound": [{"port": 80, "tags": {"kuma.io/zone": "z", "v": "1"}}]})),
            ["networking.inbound[0].tags[\"kuma.io/service\"]: tag has to exist"]
        );
    }
}
