//! MeshTimeout (policy contract §4.1).

use super::{
    client_timeout,
    conf::{Conf, UNSET},
};
use crate::{
    destination::Frame,
    proto::seconds,
    resources::{Chain, ClusterItem, Part, Protocol, ResourceSet},
};
use envoy_types::pb::{
    envoy::config::{
        core::v3::HttpProtocolOptions,
        route::v3::{Route, route},
    },
    google::protobuf::Duration,
};
use ikada_model::Kri;
use ikada_policy::{InboundKey, InboundRule, TypedMatch};

/// Values of fields that no policy sets.
const CONNECT: i64 = 5;
const IDLE: i64 = 3600;
const REQUEST: i64 = 15;
const STREAM_IDLE: i64 = 1800;

/// Edits listeners and clusters of inbounds and outbounds.
pub(crate) fn apply(frame: &Frame<'_>, set: &mut ResourceSet, rules: &TypedMatch) {
    for item in set.listeners.values_mut() {
        match &item.part {
            Part::System => {}
            Part::Inbound(key, _) => {
                with_inbound_conf(rules, key, |conf| item.chains.iter_mut().for_each(|c| common(c, conf)));
                client_timeout::apply(&mut item.chains, rules.inbound.get(key).map_or(&[], Vec::as_slice));
            }
            Part::Outbound(destination) => match &destination.section_kri {
                Some(kri) => {
                    let conf = service_conf(rules, kri, frame.mesh_name);
                    for chain in &mut item.chains {
                        common(chain, conf);
                        for hcm in chain.hcms_mut() {
                            hcm.routes_mut().for_each(|r| route_conf(rules, r, kri, frame.mesh_name));
                        }
                    }
                }
                None => {
                    let conf = super::http_route::service_of(destination).and_then(|s| rules.to.for_service(s)).map(|r| Conf(&r.conf));
                    item.chains.iter_mut().for_each(|c| legacy(c, conf));
                }
            },
        }
    }
    for item in set.clusters.values_mut() {
        match item.part.clone() {
            Part::System => {}
            Part::Inbound(key, protocol) => with_inbound_conf(rules, &key, |conf| cluster(item, protocol, conf)),
            Part::Outbound(destination) => {
                let conf = match &destination.section_kri {
                    Some(kri) => service_conf(rules, kri, frame.mesh_name),
                    None => {
                        super::http_route::service_of(&destination).and_then(|s| rules.to.for_service(s)).map_or(UNSET, |r| Conf(&r.conf))
                    }
                };
                cluster(item, destination.protocol, conf);
            }
        }
    }
}

/// Calls `edit` with the conf of all traffic to an inbound: the zero conf when there are no rules, nothing when every rule has a match.
fn with_inbound_conf(rules: &TypedMatch, key: &InboundKey, edit: impl FnOnce(Conf<'_>)) {
    let of_inbound = rules.inbound.get(key).map_or(&[][..], Vec::as_slice);
    match InboundRule::all_traffic(of_inbound) {
        Some(conf) => edit(Conf(&conf)),
        None if of_inbound.is_empty() => edit(UNSET),
        None => {}
    }
}

fn service_conf<'a>(rules: &'a TypedMatch, kri: &Kri, mesh: &str) -> Conf<'a> {
    rules.to.resource_context(None, Some(kri), mesh).map_or(UNSET, |r| Conf(r.first()))
}

/// Timeouts of a route that a MeshHTTPRoute named.
fn route_conf(rules: &TypedMatch, r: &mut Route, service: &Kri, mesh: &str) {
    let Ok(route_kri) = r.name.parse::<Kri>() else { return };
    if let Some(rule) = rules.to.resource_context(Some(&route_kri), Some(service), mesh) {
        route_timeouts(r, Conf(rule.first()));
    }
}

fn or(value: Option<Duration>, default: i64) -> Option<Duration> {
    value.or(seconds(default))
}

fn route_timeouts(r: &mut Route, conf: Conf<'_>) {
    if let Some(route::Action::Route(action)) = &mut r.action {
        let http = conf.at("http");
        action.timeout = or(http.at("requestTimeout").duration(), REQUEST);
        action.idle_timeout = http.at("streamIdleTimeout").duration().or(action.idle_timeout).or(seconds(STREAM_IDLE));
    }
}

/// The idle timeout lives on the cluster, so that of the connection manager is always off.
fn no_idle_timeout(options: &mut Option<HttpProtocolOptions>) {
    options.get_or_insert_default().idle_timeout = seconds(0);
}

fn common(chain: &mut Chain, conf: Conf<'_>) {
    for hcm in chain.hcms_mut() {
        hcm.routes_mut().for_each(|r| route_timeouts(r, conf));
        hcm.manager.request_headers_timeout = or(conf.at("http").at("requestHeadersTimeout").duration(), 0);
        no_idle_timeout(&mut hcm.manager.common_http_protocol_options);
    }
    for tcp in chain.tcp_proxies_mut() {
        tcp.idle_timeout = or(conf.at("idleTimeout").duration(), IDLE);
    }
}

/// Legacy outbounds keep what they have where nothing is configured.
fn legacy(chain: &mut Chain, conf: Option<Conf<'_>>) {
    for hcm in chain.hcms_mut() {
        no_idle_timeout(&mut hcm.manager.common_http_protocol_options);
        if let Some(conf) = conf {
            hcm.routes_mut().for_each(|r| route_timeouts(r, conf));
            hcm.manager.request_headers_timeout = or(conf.at("http").at("requestHeadersTimeout").duration(), 0);
        }
    }
    if let Some(conf) = conf {
        for tcp in chain.tcp_proxies_mut() {
            tcp.idle_timeout = or(conf.at("idleTimeout").duration(), IDLE);
        }
    }
}

fn cluster(item: &mut ClusterItem, protocol: Protocol, conf: Conf<'_>) {
    item.cluster.connect_timeout = or(conf.at("connectionTimeout").duration(), CONNECT);
    // Not for grpc, as upstream.
    if matches!(protocol, Protocol::Http | Protocol::Http2) {
        let http = conf.at("http");
        let options = item.http.get_or_insert_default().common_http_protocol_options.get_or_insert_default();
        options.idle_timeout = or(conf.at("idleTimeout").duration(), IDLE);
        options.max_stream_duration = or(http.at("maxStreamDuration").duration(), 0);
        options.max_connection_duration = or(http.at("maxConnectionDuration").duration(), 0);
    }
}
