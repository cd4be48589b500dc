//! Transparent proxying: passthrough listeners, DNS and the outbounds that virtual addresses make (data-plane contract §5.7, §5.10, §5.13).

use crate::{
    context::GenerateError,
    destination::{Destination, Frame},
    dynamic_config::DynamicConfig,
    encode::pack,
    endpoints::{PLACEHOLDER_PORT, resolve},
    hcm::tcp_proxy,
    outbound::Outb,
    proto::{boolv, seconds, socket, socket_address, u32v},
    resources::{Chain, ClusterItem, ListenerItem, NetworkFilter, Part, ResourceSet},
};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::{DiscoveryType, LbPolicy},
        core::v3::{Address, BindConfig, TrafficDirection, address, socket_address::Protocol as Transport},
        listener::v3::{FilterChainMatch, Listener, ListenerFilter, listener_filter},
    },
    data::dns::v3::{
        DnsTable,
        dns_table::{AddressList, DnsEndpoint, DnsVirtualDomain, dns_endpoint},
    },
    extensions::filters::udp::dns_filter::v3::{
        DnsFilterConfig,
        dns_filter_config::{ServerContextConfig, server_context_config},
    },
};
use ikada_model::{
    Kind, MeshService,
    dataplane::Tags,
    labels::{self, TAG_SERVICE},
    mesh::{MeshServicesMode, TlsMode},
    mesh_service::MeshServiceStatus,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Takes connections to undeclared ports of a workload without ports.
const NO_DESTINATION: &str = "self_transparentproxy_no_destination_inbound";
/// Life of DNS answers, seconds.
const DNS_TTL: i64 = 30;

/// How traffic of this proxy is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transparent {
    inbound_port: u32,
    outbound_port: u32,
    ipv6: bool,
}

impl Transparent {
    /// `None`: traffic is not redirected.
    pub(crate) fn of(frame: &Frame<'_>) -> Result<Option<Transparent>, GenerateError> {
        let (meta, networking) = (frame.context.metadata, &frame.dataplane.networking);
        let found = if meta.has_feature("feature-transparent-proxy-in-dataplane-metadata") {
            match &meta.transparent_proxy {
                Some(t) => Transparent { inbound_port: t.inbound_port, outbound_port: t.outbound_port, ipv6: t.ip_family_mode != "ipv4" },
                None => Transparent { inbound_port: 15006, outbound_port: 15001, ipv6: true },
            }
        } else {
            let Some(t) = &networking.transparent_proxying else { return Ok(None) };
            Transparent { inbound_port: t.redirect_port_inbound, outbound_port: t.redirect_port_outbound, ipv6: t.ip_family_mode != "IPv4" }
        };
        let reachable = found.ipv6 || resolve(frame.context.settings, &networking.address).is_some_and(|a| a.parse::<Ipv4Addr>().is_ok());
        if found.inbound_port.max(found.outbound_port) > 65535 {
            return Err(frame.invalid("redirect ports of transparent proxying must be in [0, 65535]"));
        }
        Ok((found.inbound_port.max(found.outbound_port) > 0 && reachable).then_some(found))
    }

    /// Adds the passthrough listeners and clusters.
    pub(crate) fn generate(self, frame: &Frame<'_>, set: &mut ResourceSet) {
        if self.outbound_port == 0 {
            return;
        }
        for (family, any, loopback) in [("ipv4", "0.0.0.0", "127.0.0.6"), ("ipv6", "::", "::6")] {
            if family == "ipv6" && !self.ipv6 {
                continue;
            }
            let name = frame.naming.passthrough("outbound", family);
            if frame.mesh.passthrough() {
                set.add_cluster(original_dst(&name));
            }
            set.add_listener(passthrough(&name, any, self.outbound_port, TrafficDirection::Outbound, vec![to(&name)]));
            if self.inbound_port == 0 {
                continue;
            }
            let name = frame.naming.passthrough("inbound", family);
            let mut cluster = original_dst(&name);
            // From this address the redirection rules let traffic through.
            cluster.cluster.upstream_bind_config =
                Some(BindConfig { source_address: Some(socket_address(loopback, 0)), ..Default::default() });
            set.add_cluster(cluster);
            let mut item = passthrough(&name, any, self.inbound_port, TrafficDirection::Inbound, inbound_chains(frame, &name));
            item.listener.enable_reuse_port = boolv(frame.context.metadata.has_feature("feature-reuse-port"));
            set.add_listener(item);
        }
        let mut nowhere = ClusterItem::new(NO_DESTINATION, DiscoveryType::Static, Part::System);
        nowhere.cluster.alt_stat_name = NO_DESTINATION.to_owned();
        set.add_cluster(nowhere);
    }
}

/// A cluster that sends to where the connection was going.
pub(crate) fn original_dst(name: &str) -> ClusterItem {
    let mut item = ClusterItem::new(name, DiscoveryType::OriginalDst, Part::System);
    item.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    item
}

fn to(cluster: &str) -> Chain {
    Chain { filters: vec![NetworkFilter::TcpProxy(Box::new(tcp_proxy(cluster, cluster)))], ..Default::default() }
}

fn passthrough(name: &str, address: &str, port: u32, direction: TrafficDirection, chains: Vec<Chain>) -> ListenerItem {
    ListenerItem {
        listener: Listener {
            name: name.to_owned(),
            address: socket(address, port),
            use_original_dst: boolv(true),
            traffic_direction: direction as i32,
            ..Default::default()
        },
        chains,
        part: Part::System,
    }
}

/// Under STRICT mTLS only declared ports pass, so that plain text cannot get around it.
fn inbound_chains(frame: &Frame<'_>, name: &str) -> Vec<Chain> {
    let ports: BTreeSet<u32> = frame.dataplane.networking.inbound.iter().map(|i| i.port).collect();
    let strict = frame.context.metadata.has_feature("feature-strict-inbound-ports") && frame.mtls() == Some(TlsMode::Strict);
    if !strict || ports.is_empty() {
        return vec![to(name)];
    }
    ports
        .into_iter()
        .map(|port| {
            let mut chain = if port == PLACEHOLDER_PORT {
                let mut proxy = tcp_proxy(name, NO_DESTINATION);
                proxy.stat_prefix = crate::proto::sanitize(name);
                Chain { filters: vec![NetworkFilter::TcpProxy(Box::new(proxy))], ..Default::default() }
            } else {
                to(name)
            };
            chain.filter_chain_match = Some(FilterChainMatch { destination_port: u32v(port), ..Default::default() });
            chain
        })
        .collect()
}

/// Domain names of virtual addresses.
pub(crate) type Domains = BTreeMap<String, BTreeSet<IpAddr>>;

/// Everything that the mesh gave a virtual address and this proxy may reach, and the names of those addresses.
pub(crate) fn virtual_outbounds(frame: &Frame<'_>) -> (Vec<Outb>, Domains) {
    let (mut out, mut domains) = (Vec::new(), Domains::new());
    let none = Default::default();
    let reach = frame.dataplane.networking.transparent_proxying.as_ref().unwrap_or(&none);
    let own = own_ports(frame);
    let mut add = |ip: IpAddr, port: u32, destination: Destination, tags: Tags, names: &[String]| {
        if port == 0 || port > 65535 || own.contains(&(ip, port)) {
            return;
        }
        for name in names {
            domains.entry(name.clone()).or_default().insert(ip);
        }
        out.push(Outb { address: ip.to_string(), port, destination: Arc::new(destination), bind: false, tags });
    };
    for service in frame.context.world.list_in(Kind::MeshService, frame.mesh_name) {
        let Some(spec) = service.view::<MeshService>() else { continue };
        let status = frame.context.world.status_of(service);
        let names: Vec<String> = status
            .get("addresses")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|a| a.get("hostname")?.as_str())
            .map(str::to_owned)
            .collect();
        let Ok(status) = serde_json::from_value::<MeshServiceStatus>(status) else { continue };
        for ip in status.vips.iter().filter_map(|v| v.ip.parse::<IpAddr>().ok()) {
            for port in &spec.ports {
                let reachable = match &reach.reachable_backends {
                    Some(b) => b.refs.iter().any(|r| r.selects(service, port.port)),
                    None => reach.reachable_services.is_empty() && frame.mesh.mesh_services.mode != MeshServicesMode::ReachableBackends,
                };
                if reachable {
                    add(ip, port.port, Destination::of_port(frame, service, port), Tags::new(), &names);
                }
            }
        }
    }
    if frame.mesh.mesh_services.mode != MeshServicesMode::Exclusive {
        for (service, ip, ports) in legacy_vips(frame) {
            if !reach.reachable_services.is_empty() && !reach.reachable_services.contains(&service) {
                continue;
            }
            let domain = &frame.context.settings.dns_domain;
            let mut names = vec![format!("{service}.{domain}")];
            if service.contains('_') {
                names.push(format!("{}.{domain}", service.replace('_', ".")));
            }
            let tags = Tags::from([(TAG_SERVICE.to_owned(), service)]);
            for port in ports {
                add(ip, port, Destination::legacy(frame, tags.clone()), tags.clone(), &names);
            }
        }
    }
    (out, domains)
}

/// Addresses and ports of the proxy's own inbounds, on its side and the workload's.
fn own_ports(frame: &Frame<'_>) -> BTreeSet<(IpAddr, u32)> {
    let networking = &frame.dataplane.networking;
    let settings = frame.context.settings;
    networking
        .inbound
        .iter()
        .flat_map(|i| [(networking.inbound_address(i), i.port), (networking.workload_address(i), i.workload_port())])
        .filter_map(|(address, port)| Some((resolve(settings, address)?.parse().ok()?, port)))
        .collect()
}

/// Services of the stored view of legacy virtual addresses: name, address, ports.
fn legacy_vips(frame: &Frame<'_>) -> Vec<(String, IpAddr, BTreeSet<u32>)> {
    let name = format!("kuma-{}-dns-vips", frame.mesh_name);
    let Some(view) = frame.context.world.find(Kind::Config, "", &name) else { return Vec::new() };
    let Some(Ok(Value::Object(view))) = view.spec.value().get("config").and_then(Value::as_str).map(serde_json::from_str) else {
        return Vec::new();
    };
    view.iter()
        .filter_map(|(key, entry)| {
            let service = key.strip_prefix("0:")?;
            let ip = entry.get("address")?.as_str()?.parse().ok()?;
            let stored = entry.get("outbounds").and_then(Value::as_array).into_iter().flatten();
            let mut ports: BTreeSet<u32> =
                stored.filter_map(|o| o.get("Port")?.as_u64()?.try_into().ok()).filter(|p: &u32| *p != 0).collect();
            ports.insert(frame.context.settings.service_vip_port);
            Some((service.to_owned(), ip, ports))
        })
        .collect()
}

/// An IPv4 address as IPv6 clients get it: `::ffff:f100:1`, halves without zero padding.
fn mapped(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("::ffff:{:x}:{:x}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

fn answers(ips: &BTreeSet<IpAddr>, ipv6: bool) -> Vec<String> {
    let mut out: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
    if ipv6 {
        out.extend(ips.iter().filter_map(|ip| match ip {
            IpAddr::V4(v4) => Some(mapped(*v4)),
            IpAddr::V6(_) => None,
        }));
    }
    out
}

impl Transparent {
    /// Adds the DNS listener, or hands the records to the sidecar's own DNS server.
    pub(crate) fn dns(self, frame: &Frame<'_>, set: &mut ResourceSet, dynamic: &mut DynamicConfig, domains: &Domains) {
        let meta = frame.context.metadata;
        if meta.dns_port == 0 {
            return;
        }
        if meta.has_feature("feature-embedded-dns") {
            let records: Vec<Value> = domains.iter().map(|(name, ips)| json!({"name": name, "ips": answers(ips, self.ipv6)})).collect();
            let dp = frame.context.dataplane;
            let extra: BTreeMap<&str, &str> = [
                ("kuma_workload", dp.label(labels::WORKLOAD).unwrap_or_default()),
                ("k8s_kuma_io_namespace", dp.namespace()),
                ("mesh", frame.mesh_name),
                ("kuma_io_zone", dp.zone()),
            ]
            .into_iter()
            .filter(|(_, v)| !v.is_empty())
            .collect();
            dynamic.add("/dns", json!({"records": records, "ttl": DNS_TTL, "extraLabels": extra}).to_string());
            return;
        }
        let virtual_domains = domains
            .iter()
            .map(|(name, ips)| DnsVirtualDomain {
                name: name.clone(),
                endpoint: Some(DnsEndpoint {
                    endpoint_config: Some(dns_endpoint::EndpointConfig::AddressList(AddressList { address: answers(ips, self.ipv6) })),
                }),
                answer_ttl: seconds(DNS_TTL),
            })
            .collect();
        let table = DnsTable { virtual_domains, ..Default::default() };
        let config = DnsFilterConfig {
            stat_prefix: "kuma_dns".to_owned(),
            server_config: Some(ServerContextConfig { config_source: Some(server_context_config::ConfigSource::InlineDnsTable(table)) }),
            ..Default::default()
        };
        let mut at = socket_address("127.0.0.1", meta.dns_port);
        at.protocol = Transport::Udp as i32;
        set.add_listener(ListenerItem {
            listener: Listener {
                name: frame.naming.dns(),
                address: Some(Address { address: Some(address::Address::SocketAddress(at)) }),
                listener_filters: vec![ListenerFilter {
                    name: "envoy.filters.udp.dns_filter".to_owned(),
                    config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&config))),
                    ..Default::default()
                }],
                traffic_direction: TrafficDirection::Inbound as i32,
                // UDP needs one socket per worker.
                enable_reuse_port: boolv(true),
                ..Default::default()
            },
            chains: Vec::new(),
            part: Part::System,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_as_ipv6() {
        assert_eq!(mapped(Ipv4Addr::new(240, 0, 0, 1)), "::ffff:f000:1");
        assert_eq!(mapped(Ipv4Addr::new(241, 0, 0, 0)), "::ffff:f100:0");
        let ips = BTreeSet::from(["240.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(answers(&ips, true), ["240.0.0.1", "2001:db8::1", "::ffff:f000:1"]);
        assert_eq!(answers(&ips, false), ["240.0.0.1", "2001:db8::1"]);
    }
}
