//! HTTP connection managers, static clusters and plain routes that several generators share (data-plane contract §5.1).

use crate::{
    context::ProxyContext,
    proto::{boolv, cidr, sanitize},
    resources::{ClusterItem, Hcm, NetworkFilter, Part, router},
};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::DiscoveryType,
        core::v3::Address,
        endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
        route::v3::{Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action::ClusterSpecifier, route_match},
    },
    extensions::filters::network::{
        http_connection_manager::v3::{HttpConnectionManager, http_connection_manager::InternalAddressConfig},
        tcp_proxy::v3::{TcpProxy, tcp_proxy},
    },
};

/// `ipam.knownInternalCIDRs`, without the IPv6 ones when the proxy has no IPv6.
pub(crate) fn known_internal(context: &ProxyContext<'_>) -> Vec<String> {
    context.settings.known_internal_cidrs.iter().filter(|c| context.metadata.ipv6_enabled || !c.contains(':')).cloned().collect()
}

/// Loopback only, for the admin listener.
pub(crate) fn loopback(context: &ProxyContext<'_>) -> Vec<String> {
    let all = ["127.0.0.1/32", "::1/128"];
    all.iter().filter(|c| context.metadata.ipv6_enabled || !c.contains(':')).map(|c| (*c).to_owned()).collect()
}

/// A connection manager with the router, one virtual host for every domain, and these routes.
pub(crate) fn manager(stat_prefix: &str, internal: &[String], route_config: &str, virtual_host: &str, routes: Vec<Route>) -> Hcm {
    Hcm {
        manager: HttpConnectionManager {
            stat_prefix: sanitize(stat_prefix),
            http_filters: vec![router()],
            internal_address_config: Some(InternalAddressConfig {
                cidr_ranges: internal.iter().map(|c| cidr(c)).collect(),
                ..Default::default()
            }),
            ..Default::default()
        },
        routes: RouteConfiguration {
            name: route_config.to_owned(),
            validate_clusters: boolv(false),
            virtual_hosts: vec![VirtualHost { name: virtual_host.to_owned(), domains: vec!["*".to_owned()], routes, ..Default::default() }],
            ..Default::default()
        },
    }
}

/// `prefix` → cluster.
pub(crate) fn prefix_route(prefix: &str, action: RouteAction) -> Route {
    Route {
        r#match: Some(RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix(prefix.to_owned())), ..Default::default() }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    }
}

/// To one cluster.
pub(crate) fn to_cluster(cluster: &str) -> RouteAction {
    RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())), ..Default::default() }
}

/// A TCP proxy to one cluster.
pub(crate) fn tcp_proxy(stat_prefix: &str, cluster: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: sanitize(stat_prefix),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

/// A connection manager as a network filter.
pub(crate) fn http(hcm: Hcm) -> NetworkFilter {
    NetworkFilter::Hcm(Box::new(hcm))
}

/// A STATIC cluster with one endpoint.
pub(crate) fn static_cluster(name: &str, address: Option<Address>, part: Part) -> ClusterItem {
    let mut item = ClusterItem::new(name, DiscoveryType::Static, part);
    let endpoint =
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(Endpoint { address, ..Default::default() })), ..Default::default() };
    item.cluster.load_assignment = Some(ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
        ..Default::default()
    });
    item
}
