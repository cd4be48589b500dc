//! Type URLs of Envoy resources and the order in which an aggregated stream serves them.

/// Clusters.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Endpoints of a cluster.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Listeners.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Routes of a listener.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Certificates and CAs.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Runtime layers.
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";

/// Serving order; types that are not listed come after these.
pub const ORDER: [&str; 6] = [CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET, RUNTIME];

/// Position in [`ORDER`], `ORDER.len()` for other types.
pub(crate) fn rank(type_url: &str) -> usize {
    ORDER.iter().position(|t| *t == type_url).unwrap_or(ORDER.len())
}

/// Types for which a first request without names means all resources (the legacy form of `*`).
pub(crate) fn legacy_wildcard(type_url: &str) -> bool {
    type_url == CLUSTER || type_url == LISTENER
}

/// Types whose absence is not told to a client that names them.
///
/// Envoy takes a removed assignment as an empty one, and a removed secret or runtime layer as an error; what it wants is to wait until the resource
/// exists. It unsubscribes by itself when nothing refers to the resource any more.
pub(crate) fn absence_is_silent(type_url: &str) -> bool {
    type_url == ENDPOINTS || type_url == SECRET || type_url == RUNTIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        assert!(ORDER.windows(2).all(|w| rank(w[0]) < rank(w[1])));
        assert_eq!(rank("other"), ORDER.len());
        assert!(legacy_wildcard(CLUSTER) && !legacy_wildcard(SECRET));
    }
}
