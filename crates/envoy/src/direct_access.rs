//! Direct access to instances by their own addresses under transparent proxying (data-plane contract §5.7, "direct access").

use crate::{
    destination::Frame,
    endpoints::resolve,
    hcm::tcp_proxy,
    outbound::Outb,
    proto::{boolv, host_port, socket},
    resources::{Chain, ListenerItem, NetworkFilter, Part, ResourceSet},
    tls,
    transparent::original_dst,
};
use envoy_types::pb::envoy::config::{core::v3::TrafficDirection, listener::v3::Listener};
use ikada_model::{Dataplane, Kind, Resource, dataplane::Inbound};
use std::{collections::BTreeSet, sync::Arc};

const CLUSTER: &str = "direct_access";

/// Adds a listener per inbound of the services that the proxy wants to reach directly, and the cluster behind them. Instances that are
/// not healthy are reachable too; addresses that have an outbound are left to it.
pub(crate) fn generate(frame: &Frame<'_>, set: &mut ResourceSet, outbounds: &[Outb]) {
    let Some(services) = frame.dataplane.networking.transparent_proxying.as_ref().map(|t| &t.direct_access_services) else { return };
    let taken: BTreeSet<(&str, u32)> = outbounds.iter().map(|o| (o.address.as_str(), o.port)).collect();
    let every = services.iter().any(|s| s == "*");
    let wanted = |i: &Inbound| every || i.service().is_some_and(|s| services.iter().any(|w| w == s));
    let world = frame.context.world;
    let candidates: Vec<&Arc<Resource>> = if every {
        world.list_in(Kind::Dataplane, frame.mesh_name).collect()
    } else {
        services.iter().flat_map(|s| world.dataplanes_of_service(frame.mesh_name, s)).collect()
    };
    let mut any = false;
    for r in candidates {
        let Some(dp) = r.view::<Dataplane>().filter(|_| r.key != frame.context.dataplane.key) else { continue };
        for inbound in dp.networking.inbound.iter().filter(|i| wanted(i)) {
            let Some(address) = resolve(frame.context.settings, dp.networking.advertised(inbound)) else { continue };
            if !taken.contains(&(address, inbound.port)) {
                set.add_listener(listener(address, inbound.port));
                any = true;
            }
        }
    }
    if any {
        let mut cluster = original_dst(CLUSTER);
        if frame.mtls().is_some() {
            cluster.cluster.transport_socket = Some(tls::upstream(frame.naming, frame.mesh_name, &[], ""));
            set.uses_mesh_secrets = true;
        }
        set.add_cluster(cluster);
    }
}

fn listener(address: &str, port: u32) -> ListenerItem {
    let name = format!("{CLUSTER}_{}", host_port(address, port));
    ListenerItem {
        chains: vec![Chain { filters: vec![NetworkFilter::TcpProxy(Box::new(tcp_proxy(&name, CLUSTER)))], ..Default::default() }],
        listener: Listener {
            name,
            address: socket(address, port),
            traffic_direction: TrafficDirection::Outbound as i32,
            bind_to_port: boolv(false),
            ..Default::default()
        },
        part: Part::System,
    }
}
