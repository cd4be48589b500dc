//! Listeners and clusters of a proxy's own ports (data-plane contract §5.5).

use crate::{
    context::GenerateError,
    destination::Frame,
    endpoints::{PLACEHOLDER_PORT, resolve},
    hcm::{http, known_internal, manager, prefix_route, static_cluster, tcp_proxy, to_cluster},
    naming::self_inbound,
    proto::{boolv, sanitize, seconds, socket, socket_address, tags_metadata, unified_name_metadata},
    resources::{Chain, HttpVersion, ListenerItem, NETWORK_RBAC, NetworkFilter, Part, Protocol, ResourceSet, http_filter, network_filter},
    tls,
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{BindConfig, HttpProtocolOptions, TrafficDirection},
        listener::v3::{FilterChainMatch, Listener},
        rbac::v3::Rbac as Rules,
    },
    extensions::filters::{
        http::grpc_stats::v3::FilterConfig as GrpcStats,
        network::{
            http_connection_manager::v3::http_connection_manager::{ForwardClientCertDetails, SetCurrentClientCertDetails},
            rbac::v3::Rbac,
        },
    },
};
use ikada_model::{dataplane::Inbound, mesh::TlsMode};
use ikada_policy::InboundKey;
use std::net::IpAddr;

/// Route table entries and timeouts before policies: twice those of outbounds, so that the client's side gives up first.
const CONNECT: i64 = 10;
const IDLE: i64 = 7200;
const STREAM_IDLE: i64 = 3600;

/// An inbound with what its names are made of.
pub(crate) struct Inb<'a> {
    pub(crate) inbound: &'a Inbound,
    /// IP that it binds.
    pub(crate) address: String,
    pub(crate) section: String,
    pub(crate) protocol: Protocol,
    pub(crate) cluster: String,
    pub(crate) listener: String,
}

impl Inb<'_> {
    /// How rules know it.
    fn key(&self, frame: &Frame<'_>) -> InboundKey {
        InboundKey { address: frame.dataplane.networking.inbound_address(self.inbound).to_owned(), port: self.inbound.port }
    }
}

/// Inbounds that get a listener: all but placeholders; a gateway has none.
pub(crate) fn inbounds<'a>(frame: &Frame<'a>) -> Result<Vec<Inb<'a>>, GenerateError> {
    let networking = &frame.dataplane.networking;
    if frame.dataplane.is_gateway() {
        return Ok(Vec::new());
    }
    let mut out = Vec::with_capacity(networking.inbound.len());
    for inbound in networking.inbound.iter().filter(|i| i.port != PLACEHOLDER_PORT) {
        let text = networking.inbound_address(inbound);
        let address = resolve(frame.context.settings, text)
            .ok_or_else(|| frame.invalid(format!("inbound address {text:?} is not an IP address and could not be resolved")))?
            .to_owned();
        if inbound.port == 0 || inbound.port > 65535 || inbound.service_port > 65535 {
            return Err(frame.invalid(format!("inbound port {} is not in [1, 65535]", inbound.port)));
        }
        let section = inbound.section();
        out.push(Inb {
            protocol: inbound.protocol().map_or(Protocol::Unknown, Protocol::parse),
            cluster: frame.naming.inbound_cluster(inbound.workload_port(), &section),
            listener: frame.naming.inbound_listener(&address, inbound.port, &section),
            inbound,
            address,
            section,
        });
    }
    Ok(out)
}

/// Adds a cluster and a listener per inbound. `transparent`: traffic is redirected, so listeners do not bind and the application sees
/// 127.0.0.6 as its client.
pub(crate) fn generate(frame: &Frame<'_>, set: &mut ResourceSet, transparent: bool) -> Result<(), GenerateError> {
    for i in inbounds(frame)? {
        add_cluster(frame, set, &i, transparent)?;
        add_listener(frame, set, &i, transparent);
    }
    Ok(())
}

fn add_cluster(frame: &Frame<'_>, set: &mut ResourceSet, i: &Inb<'_>, transparent: bool) -> Result<(), GenerateError> {
    let text = frame.dataplane.networking.workload_address(i.inbound);
    let address = resolve(frame.context.settings, text)
        .ok_or_else(|| frame.invalid(format!("service address {text:?} is not an IP address and could not be resolved")))?;
    let part = Part::Inbound(i.key(frame), i.protocol);
    let mut item = static_cluster(&i.cluster, socket(address, i.inbound.workload_port()), part);
    item.cluster.connect_timeout = seconds(CONNECT);
    if i.protocol.is_http() {
        item.http.get_or_insert_default().common_http_protocol_options =
            Some(HttpProtocolOptions { idle_timeout: seconds(IDLE), ..Default::default() });
        item.speak(if i.protocol == Protocol::Http { HttpVersion::One } else { HttpVersion::Two });
    }
    let ip: Option<IpAddr> = address.parse().ok();
    if transparent && !ip.is_some_and(|ip| ip.is_loopback()) {
        let source = if address.contains(':') { "::6" } else { "127.0.0.6" };
        item.cluster.upstream_bind_config = Some(BindConfig { source_address: Some(socket_address(source, 0)), ..Default::default() });
    }
    set.add_cluster(item);
    Ok(())
}

/// Network filters of one chain, without access control.
fn filters(frame: &Frame<'_>, i: &Inb<'_>) -> Vec<NetworkFilter> {
    if !i.protocol.is_http() {
        let mut proxy = tcp_proxy(&i.cluster, &i.cluster);
        proxy.idle_timeout = seconds(IDLE);
        let mut out = Vec::new();
        if i.protocol == Protocol::Kafka {
            out.push(NetworkFilter::Other(Box::new(crate::contrib::kafka_broker(&sanitize(&i.cluster)))));
        }
        out.push(NetworkFilter::TcpProxy(Box::new(proxy)));
        return out;
    }
    let (route_config, virtual_host) = match i.inbound.service() {
        _ if frame.naming.unified => (i.listener.clone(), i.listener.clone()),
        Some(service) => (format!("inbound:{service}"), service.to_owned()),
        None => (i.listener.clone(), i.listener.clone()),
    };
    let mut action = to_cluster(&i.cluster);
    action.timeout = seconds(0);
    let routes = vec![prefix_route("/", action)];
    let mut hcm = manager(&i.cluster, &known_internal(frame.context), &route_config, &virtual_host, routes);
    hcm.routes.request_headers_to_remove = vec!["x-kuma-tags".to_owned()];
    let m = &mut hcm.manager;
    m.common_http_protocol_options = Some(HttpProtocolOptions { idle_timeout: seconds(IDLE), ..Default::default() });
    m.stream_idle_timeout = seconds(STREAM_IDLE);
    m.forward_client_cert_details = ForwardClientCertDetails::SanitizeSet as i32;
    m.set_current_client_cert_details = Some(SetCurrentClientCertDetails { uri: true, ..Default::default() });
    if i.protocol == Protocol::Grpc {
        m.http_filters.insert(0, grpc_stats());
    }
    vec![http(hcm)]
}

/// `envoy.filters.http.grpc_stats`.
pub(crate) fn grpc_stats() -> envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter {
    http_filter("envoy.filters.http.grpc_stats", &GrpcStats { emit_filter_state: true, ..Default::default() })
}

fn add_listener(frame: &Frame<'_>, set: &mut ResourceSet, i: &Inb<'_>, transparent: bool) {
    let base = filters(frame, i);
    let plain = |matcher: Option<FilterChainMatch>| Chain { filter_chain_match: matcher, filters: base.clone(), ..Default::default() };
    let secured = |matcher: Option<FilterChainMatch>| {
        // With mTLS and nothing that allows, everything is denied.
        let rbac = Rbac { rules: Some(Rules::default()), stat_prefix: format!("{}.", sanitize(&i.listener)), ..Default::default() };
        let mut filters = vec![NetworkFilter::Other(Box::new(network_filter(NETWORK_RBAC, &rbac)))];
        filters.extend(base.clone());
        Chain { filter_chain_match: matcher, filters, transport_socket: Some(tls::downstream(frame.naming, frame.mesh_name)) }
    };
    let transport = |protocol: &str, alpn: &[&str]| {
        Some(FilterChainMatch {
            transport_protocol: protocol.to_owned(),
            application_protocols: alpn.iter().map(|a| (*a).to_owned()).collect(),
            ..Default::default()
        })
    };
    let mode = frame.mtls();
    set.uses_mesh_secrets |= mode.is_some();
    let chains = match mode {
        None => vec![plain(None)],
        Some(TlsMode::Strict) => vec![secured(None)],
        Some(TlsMode::Permissive) => {
            vec![plain(transport("raw_buffer", &[])), plain(transport("tls", &[])), secured(transport("tls", &[tls::ALPN]))]
        }
    };
    let metadata =
        if i.inbound.tags.is_empty() { unified_name_metadata(&self_inbound(&i.section)) } else { tags_metadata(&i.inbound.tags) };
    let mut item = ListenerItem {
        listener: Listener {
            name: i.listener.clone(),
            address: socket(&i.address, i.inbound.port),
            metadata: Some(metadata),
            stat_prefix: if frame.naming.unified { i.listener.clone() } else { String::new() },
            traffic_direction: TrafficDirection::Inbound as i32,
            enable_reuse_port: boolv(frame.context.metadata.has_feature("feature-reuse-port")),
            bind_to_port: if transparent { boolv(false) } else { None },
            ..Default::default()
        },
        chains,
        part: Part::Inbound(i.key(frame), i.protocol),
    };
    if mode == Some(TlsMode::Permissive) {
        item.inspect_tls();
    }
    set.add_listener(item);
}
