//! Envoy admin and readiness (data-plane contract §5.4).

use crate::{
    context::GenerateError,
    destination::Frame,
    endpoints::resolve,
    hcm::{http, loopback, manager, prefix_route, static_cluster, to_cluster},
    proto::{boolv, pipe, socket},
    resources::{Chain, ListenerItem, Part, ResourceSet},
    tls,
};
use envoy_types::pb::envoy::config::{
    core::v3::TrafficDirection,
    listener::v3::{FilterChainMatch, Listener},
    route::v3::Route,
};

/// Where old proxies report readiness.
const READINESS_SOCKET: &str = "kuma-readiness-reporter.sock";

/// Adds the admin and readiness clusters, and the admin listener when the proxy's address is not that of the admin itself.
pub(crate) fn generate(frame: &Frame<'_>, set: &mut ResourceSet) -> Result<(), GenerateError> {
    let (context, meta, naming) = (frame.context, frame.context.metadata, frame.naming);
    if meta.admin_port == 0 {
        return Ok(());
    }
    // Envoy itself must reach the admin, so an unspecified address is its loopback.
    let admin_address = match meta.admin_address.as_str() {
        "" | "127.0.0.1" | "0.0.0.0" => "127.0.0.1",
        "::1" | "::" => "::1",
        other => return Err(frame.invalid(format!("admin address {other:?} must be one of 127.0.0.1, 0.0.0.0, ::1, ::"))),
    };
    let admin = if meta.admin_socket_path.is_empty() { socket(admin_address, meta.admin_port) } else { pipe(&meta.admin_socket_path) };
    set.add_cluster(static_cluster(&naming.admin(), admin, Part::System));
    let networking = &frame.dataplane.networking;
    let address = resolve(context.settings, &networking.address)
        .ok_or_else(|| frame.invalid(format!("address {:?} is not an IP address and could not be resolved", networking.address)))?;
    let readiness = if meta.has_feature("feature-readiness-unix-socket") {
        let workdir = meta.workdir.trim_end_matches('/');
        pipe(&if workdir.is_empty() { READINESS_SOCKET.to_owned() } else { format!("{workdir}/{READINESS_SOCKET}") })
    } else {
        let port = if meta.readiness_port == 0 { context.settings.readiness_port } else { meta.readiness_port };
        if port == 0 || port > 65535 {
            return Err(frame.invalid("ReadinessPort has to be in (0, 65535] range"));
        }
        // With the admin on a socket the reporter listens on the loopback of the proxy's address family.
        let on_socket = !meta.admin_socket_path.is_empty() && meta.admin_address.is_empty();
        socket(if on_socket && address.contains(':') { "::1" } else { admin_address }, port)
    };
    set.add_cluster(static_cluster(&naming.readiness(), readiness, Part::System));
    if address == admin_address {
        return Ok(());
    }
    let server = context.secrets.admin_server.as_ref().ok_or_else(|| GenerateError::NoSecret("Envoy admin server certificate".into()))?;
    let ca = context.secrets.admin_ca.as_ref().ok_or_else(|| GenerateError::NoSecret("envoy-admin-ca".into()))?;
    let to = |prefix: &str, cluster: &str| {
        let mut action = to_cluster(cluster);
        action.prefix_rewrite = prefix.to_owned();
        prefix_route(prefix, action)
    };
    let ready = to("/ready", &naming.readiness());
    let chain = |routes: Vec<Route>| Chain {
        filters: vec![http(manager(&naming.admin(), &loopback(context), "", &naming.admin(), routes))],
        ..Default::default()
    };
    let plain = chain(vec![ready.clone()]);
    let mut secured = chain(vec![ready, to("/", &naming.admin())]);
    secured.filter_chain_match = Some(FilterChainMatch { transport_protocol: "tls".into(), ..Default::default() });
    secured.transport_socket = Some(tls::admin(&server.0, &server.1, ca));
    let mut item = ListenerItem {
        listener: Listener {
            name: naming.admin(),
            address: socket(address, meta.admin_port),
            traffic_direction: TrafficDirection::Inbound as i32,
            enable_reuse_port: boolv(meta.has_feature("feature-reuse-port")),
            ..Default::default()
        },
        chains: vec![plain, secured],
        part: Part::System,
    };
    item.inspect_tls();
    set.add_listener(item);
    Ok(())
}
