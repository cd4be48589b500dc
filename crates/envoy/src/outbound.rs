//! Outbounds: which destinations a proxy opens, and their clusters and endpoints (data-plane contract §5.6, §5.9, §5.13).

use crate::{
    context::{GenerateError, type_urls},
    destination::{Destination, Frame},
    endpoints::resolve,
    proto::ads,
    resources::{ClusterItem, HttpVersion, Part, ResourceSet, encoded},
    tls,
};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{DiscoveryType, EdsClusterConfig};
use ikada_model::{dataplane::Tags, labels::TAG_SERVICE};
use std::sync::Arc;

/// One outbound.
pub(crate) struct Outb {
    /// IP to bind (or to be redirected from).
    pub(crate) address: String,
    /// Port.
    pub(crate) port: u32,
    /// Where it leads.
    pub(crate) destination: Arc<Destination>,
    /// The listener binds; otherwise redirected traffic is handed to it.
    pub(crate) bind: bool,
    /// Tags that the outbound was given, for legacy ones.
    pub(crate) tags: Tags,
}

/// The outbounds that the Dataplane lists. Those whose real destination does not exist are left out.
pub(crate) fn explicit(frame: &Frame<'_>) -> Result<Vec<Outb>, GenerateError> {
    let mut out = Vec::new();
    for o in &frame.dataplane.networking.outbound {
        let text = if o.address.is_empty() { "127.0.0.1" } else { &o.address };
        let address = resolve(frame.context.settings, text)
            .ok_or_else(|| frame.invalid(format!("outbound address {text:?} is not an IP address and could not be resolved")))?
            .to_owned();
        if o.port == 0 || o.port > 65535 {
            return Err(frame.invalid(format!("outbound port {} is not in [1, 65535]", o.port)));
        }
        let destination = match &o.backend_ref {
            Some(r) => match Destination::of_outbound(frame, r)? {
                Some(d) => d,
                None => continue,
            },
            None if o.tags.get(TAG_SERVICE).is_none_or(String::is_empty) => {
                return Err(frame.invalid(format!("outbound on port {} has neither backendRef nor tag {TAG_SERVICE}", o.port)));
            }
            None => Destination::legacy(frame, o.tags.clone()),
        };
        out.push(Outb { address, port: o.port, destination: Arc::new(destination), bind: true, tags: o.tags.clone() });
    }
    Ok(out)
}

/// Adds cluster and endpoints of a destination, once.
pub(crate) fn add_destination(frame: &Frame<'_>, set: &mut ResourceSet, destination: &Arc<Destination>) {
    if set.clusters.contains_key(&destination.cluster) {
        return;
    }
    let mut item = ClusterItem::new(&destination.cluster, DiscoveryType::Eds, Part::Outbound(destination.clone()));
    item.cluster.eds_cluster_config = Some(EdsClusterConfig { eds_config: Some(ads()), ..Default::default() });
    // Sidecars speak HTTP/2 to each other whatever the application's protocol; TCP traffic does not look at the option.
    item.speak(HttpVersion::Two);
    if destination.uses_tls(frame) {
        let ids = destination.identities(frame);
        item.cluster.transport_socket = Some(tls::upstream(frame.naming, frame.mesh_name, &ids, &destination.sni(frame)));
        set.uses_mesh_secrets = true;
    }
    set.add_cluster(item);
    let make = || encoded(type_urls::ENDPOINT, &destination.cluster, &destination.endpoints(frame));
    let endpoints = frame.shared.endpoints(&frame.context.dataplane.key.mesh, &destination.cluster, make);
    set.endpoints.insert(destination.cluster.clone(), endpoints);
}
