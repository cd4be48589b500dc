//! MeshTCPRoute: makes the TCP outbounds, its own and those that no HTTP route made (policy contract §4.6).

use super::{
    conf::Conf,
    http_route::{self, backend, listener, service_of},
};
use crate::{
    context::GenerateError,
    destination::{Destination, Frame},
    hcm::tcp_proxy,
    outbound::{Outb, add_destination},
    proto::sanitize,
    resources::{Chain, NetworkFilter, Protocol, ResourceSet},
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight,
};
use ikada_model::Resource;
use ikada_policy::TypedMatch;
use std::sync::Arc;

/// Merged conf and the policy whose references it resolves by: the strongest.
fn conf_of<'a>(rules: &'a TypedMatch, destination: &Destination) -> Option<(Conf<'a>, Option<&'a Resource>)> {
    if let Some(rule) = destination.kri.as_ref().and_then(|kri| rules.to.compute(kri)) {
        return Some((Conf(rule.first()), rule.origins.last().map(|o| &*o.policy)));
    }
    let rule = service_of(destination).and_then(|s| rules.to.for_service(s))?;
    Some((Conf(&rule.conf), rule.origins.last().map(|policy| &**policy)))
}

/// Adds listener, clusters and endpoints of an outbound that is not HTTP, or that a MeshTCPRoute takes from HTTP.
pub(crate) fn add(
    frame: &Frame<'_>,
    set: &mut ResourceSet,
    rules: &TypedMatch,
    http_rules: &TypedMatch,
    outbound: &Outb,
) -> Result<(), GenerateError> {
    let own = &outbound.destination;
    let conf = conf_of(rules, own);
    if own.protocol.is_http() && (conf.is_none() || http_route::speaks_about(http_rules, own)) {
        return Ok(());
    }
    let mut splits: Vec<(Arc<Destination>, u32)> = Vec::new();
    match conf {
        None => splits.push((own.clone(), 100)),
        Some((conf, origin)) => {
            for r in conf.at("default").at("backendRefs").items() {
                let Some(origin) = origin else { continue };
                let Some((destination, weight)) = backend(frame, origin, r)? else { continue };
                if weight > 0 && !matches!(destination.protocol, Protocol::Tls | Protocol::Mysql) {
                    splits.push((Arc::new(destination), weight));
                }
            }
        }
    }
    let mut proxy = tcp_proxy(&own.cluster, &own.cluster);
    match splits.as_slice() {
        [] => return Ok(()),
        [(one, _)] => proxy.cluster_specifier = Some(ClusterSpecifier::Cluster(one.cluster.clone())),
        many => {
            let clusters = many.iter().map(|(d, weight)| ClusterWeight { name: d.cluster.clone(), weight: *weight, ..Default::default() });
            proxy.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() }));
        }
    }
    for (destination, _) in &splits {
        add_destination(frame, set, destination);
    }
    let mut filters = Vec::new();
    if own.protocol == Protocol::Kafka {
        filters.push(NetworkFilter::Other(Box::new(crate::contrib::kafka_broker(&sanitize(&own.cluster)))));
    }
    filters.push(NetworkFilter::TcpProxy(Box::new(proxy)));
    set.add_listener(listener(frame, outbound, Chain { filters, ..Default::default() }));
    Ok(())
}
