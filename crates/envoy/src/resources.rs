//! The resources of one proxy while they are made: typed messages that later plugins edit in place, each with the tag that says where it
//! comes from. Encoded once, at the end.

use crate::{
    context::{GenerateError, Generated, type_urls},
    destination::Destination,
    encode::{canonical, pack, version},
    proto::{sanitize, seconds, u32v},
};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{Cluster, cluster},
        core::v3::TransportSocket,
        listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter},
        route::v3::{Route, RouteConfiguration},
    },
    extensions::{
        filters::{
            http::router::v3::Router,
            listener::tls_inspector::v3::TlsInspector,
            network::{
                http_connection_manager::v3::{HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter},
                tcp_proxy::v3::TcpProxy,
            },
        },
        transport_sockets::tls::v3::Secret,
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
        },
    },
};
use ikada_policy::InboundKey;
use prost::{Message, Name};
use std::{collections::BTreeMap, sync::Arc};

/// Network filter names.
pub(crate) const HCM: &str = "envoy.filters.network.http_connection_manager";
pub(crate) const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
pub(crate) const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
/// HTTP filter names.
pub(crate) const ROUTER: &str = "envoy.filters.http.router";
pub(crate) const HTTP_RBAC: &str = "envoy.filters.http.rbac";
/// Transport socket name.
pub(crate) const TLS: &str = "envoy.transport_sockets.tls";
/// Key of the HTTP options of a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Application protocol of an inbound or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub(crate) enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
    Tls,
    Kafka,
    Mysql,
    Unknown,
}

impl Protocol {
    /// From a field or tag.
    pub(crate) fn parse(text: &str) -> Protocol {
        match text {
            "http" => Protocol::Http,
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "tcp" => Protocol::Tcp,
            "tls" => Protocol::Tls,
            "kafka" => Protocol::Kafka,
            "mysql" => Protocol::Mysql,
            _ => Protocol::Unknown,
        }
    }
    /// Handled by an HTTP connection manager.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Grpc)
    }
}

/// Which part of the proxy a resource serves.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// None in particular (admin, passthrough).
    System,
    /// An inbound.
    Inbound(InboundKey, Protocol),
    /// An outbound to this destination.
    Outbound(Arc<Destination>),
}

/// HTTP version spoken to a cluster's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// A cluster in the making. The HTTP options are kept beside it, typed.
#[derive(Clone, Debug)]
pub(crate) struct ClusterItem {
    pub(crate) cluster: Cluster,
    pub(crate) http: Option<HttpProtocolOptions>,
    pub(crate) part: Part,
}

impl ClusterItem {
    /// A cluster of this type with the default connect timeout (5 s).
    pub(crate) fn new(name: &str, kind: cluster::DiscoveryType, part: Part) -> Self {
        let alt = sanitize(name);
        let cluster = Cluster {
            name: name.to_owned(),
            alt_stat_name: if alt == name { String::new() } else { alt },
            connect_timeout: seconds(5),
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(kind as i32)),
            ..Default::default()
        };
        ClusterItem { cluster, http: None, part }
    }
    /// Sets the HTTP version; other HTTP options stay.
    pub(crate) fn speak(&mut self, version: HttpVersion) {
        let config = match version {
            HttpVersion::One => ProtocolConfig::HttpProtocolOptions(Default::default()),
            HttpVersion::Two => ProtocolConfig::Http2ProtocolOptions(Default::default()),
        };
        self.http.get_or_insert_default().upstream_protocol_options =
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) }));
    }
    fn finish(mut self) -> Cluster {
        if let Some(mut http) = self.http {
            // Envoy refuses options without a protocol choice.
            http.upstream_protocol_options.get_or_insert_with(|| {
                UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                    protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Default::default())),
                })
            });
            self.cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&http));
        }
        self.cluster
    }
}

/// An HTTP connection manager with its inline routes.
#[derive(Clone, Debug)]
pub(crate) struct Hcm {
    pub(crate) manager: HttpConnectionManager,
    pub(crate) routes: RouteConfiguration,
}

impl Hcm {
    /// All routes of all virtual hosts.
    pub(crate) fn routes_mut(&mut self) -> impl Iterator<Item = &mut Route> {
        self.routes.virtual_hosts.iter_mut().flat_map(|v| v.routes.iter_mut())
    }
    fn finish(mut self) -> HttpConnectionManager {
        self.manager.route_specifier = Some(RouteSpecifier::RouteConfig(self.routes));
        self.manager
    }
}

/// A network filter in the making.
#[derive(Clone, Debug)]
pub(crate) enum NetworkFilter {
    Hcm(Box<Hcm>),
    TcpProxy(Box<TcpProxy>),
    /// Any other, already packed.
    Other(Box<Filter>),
}

/// A network filter from its name and typed config.
pub(crate) fn network_filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(pack(config))) }
}

/// An HTTP filter from its name and typed config.
pub(crate) fn http_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter { name: name.to_owned(), config_type: Some(http_filter::ConfigType::TypedConfig(pack(config))), ..Default::default() }
}

/// `envoy.filters.http.router`, always the last HTTP filter.
pub(crate) fn router() -> HttpFilter {
    http_filter(ROUTER, &Router::default())
}

/// A filter chain in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    pub(crate) filter_chain_match: Option<FilterChainMatch>,
    pub(crate) filters: Vec<NetworkFilter>,
    pub(crate) transport_socket: Option<TransportSocket>,
}

impl Chain {
    /// Terminates TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.transport_socket.as_ref().is_some_and(|t| t.name == TLS)
    }
    /// Its HTTP connection managers.
    pub(crate) fn hcms_mut(&mut self) -> impl Iterator<Item = &mut Hcm> {
        self.filters.iter_mut().filter_map(|f| match f {
            NetworkFilter::Hcm(h) => Some(h.as_mut()),
            _ => None,
        })
    }
    /// Its TCP proxies.
    pub(crate) fn tcp_proxies_mut(&mut self) -> impl Iterator<Item = &mut TcpProxy> {
        self.filters.iter_mut().filter_map(|f| match f {
            NetworkFilter::TcpProxy(t) => Some(t.as_mut()),
            _ => None,
        })
    }
    fn finish(self) -> FilterChain {
        let filters = self.filters.into_iter().map(|f| match f {
            NetworkFilter::Hcm(h) => network_filter(HCM, &h.finish()),
            NetworkFilter::TcpProxy(t) => network_filter(TCP_PROXY, t.as_ref()),
            NetworkFilter::Other(f) => *f,
        });
        FilterChain {
            filter_chain_match: self.filter_chain_match,
            filters: filters.collect(),
            transport_socket: self.transport_socket,
            ..Default::default()
        }
    }
}

/// A listener in the making.
#[derive(Clone, Debug)]
pub(crate) struct ListenerItem {
    pub(crate) listener: Listener,
    pub(crate) chains: Vec<Chain>,
    pub(crate) part: Part,
}

impl ListenerItem {
    /// Adds the TLS inspector once.
    pub(crate) fn inspect_tls(&mut self) {
        const NAME: &str = "envoy.filters.listener.tls_inspector";
        if self.listener.listener_filters.iter().all(|f| f.name != NAME) {
            self.listener.listener_filters.push(ListenerFilter {
                name: NAME.to_owned(),
                config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&TlsInspector::default()))),
                ..Default::default()
            });
        }
    }
    fn finish(self) -> Listener {
        Listener { filter_chains: self.chains.into_iter().map(Chain::finish).collect(), ..self.listener }
    }
}

/// All resources of a proxy by type and name. A second resource with the same type and name replaces the first (as upstream does with
/// two inbounds of the same service port).
#[derive(Debug, Default)]
pub(crate) struct ResourceSet {
    pub(crate) clusters: BTreeMap<String, ClusterItem>,
    pub(crate) endpoints: BTreeMap<String, Generated>,
    pub(crate) listeners: BTreeMap<String, ListenerItem>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Some TLS context refers to the secrets of the mesh.
    pub(crate) uses_mesh_secrets: bool,
}

impl ResourceSet {
    /// Adds or replaces a cluster.
    pub(crate) fn add_cluster(&mut self, item: ClusterItem) {
        self.clusters.insert(item.cluster.name.clone(), item);
    }
    /// Adds or replaces a listener.
    pub(crate) fn add_listener(&mut self, item: ListenerItem) {
        self.listeners.insert(item.listener.name.clone(), item);
    }
    /// Encodes everything, ordered by type and name. Every EDS cluster must have its endpoints.
    pub(crate) fn finish(self) -> Result<Vec<Generated>, GenerateError> {
        let mut out = Vec::with_capacity(self.clusters.len() + self.endpoints.len() + self.listeners.len() + self.secrets.len());
        for (name, item) in &self.clusters {
            if item.cluster.eds_cluster_config.is_some() && !self.endpoints.contains_key(name) {
                return Err(GenerateError::Invalid { resource: format!("cluster {name:?}"), message: "has no endpoints resource".into() });
            }
        }
        for (name, item) in self.clusters {
            out.push(encoded(type_urls::CLUSTER, &name, &item.finish()));
        }
        out.extend(self.endpoints.into_values());
        for (name, item) in self.listeners {
            out.push(encoded(type_urls::LISTENER, &name, &item.finish()));
        }
        for (name, secret) in self.secrets {
            out.push(encoded(type_urls::SECRET, &name, &secret));
        }
        Ok(out)
    }
}

/// A resource, encoded.
pub(crate) fn encoded<M: Message + Name>(type_url: &'static str, name: &str, message: &M) -> Generated {
    let bytes = canonical(&M::full_name(), message.encode_to_vec());
    Generated { name: name.into(), type_url, version: version(&bytes), bytes: bytes.into() }
}

/// Weight of an endpoint or cluster.
pub(crate) fn weight(w: u32) -> Option<envoy_types::pb::google::protobuf::UInt32Value> {
    u32v(w)
}
