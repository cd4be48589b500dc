//! The TCP outbounds (policy contract §4.6): every outbound that no HTTP route made.

use crate::{
    destination::Frame,
    hcm::tcp_proxy,
    outbound::{Outb, add_destination},
    proto::sanitize,
    plugins::http_route::listener,
    resources::{Chain, NetworkFilter, Protocol, ResourceSet},
};

/// Adds listener, cluster and endpoints of an outbound.
pub(crate) fn add(frame: &Frame<'_>, set: &mut ResourceSet, outbound: &Outb) {
    let destination = &outbound.destination;
    add_destination(frame, set, destination);
    let mut filters = Vec::new();
    if destination.protocol == Protocol::Kafka {
        filters.push(NetworkFilter::Other(Box::new(crate::contrib::kafka_broker(&sanitize(&destination.cluster)))));
    }
    filters.push(NetworkFilter::TcpProxy(Box::new(tcp_proxy(&destination.cluster, &destination.cluster))));
    set.add_listener(listener(frame, outbound, Chain { filters, ..Default::default() }));
}
