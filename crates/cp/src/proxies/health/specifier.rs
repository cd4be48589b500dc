//! What Envoy shall probe (reference: data-plane contract §7.1).

use crate::config::Health;
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                Address, BindConfig, HealthCheck, Locality, Pipe, SocketAddress, address,
                health_check::{HealthChecker, HttpHealthCheck, TcpHealthCheck},
                socket_address::PortSpecifier,
            },
            endpoint::v3::Endpoint,
        },
        service::health::v3::{ClusterHealthCheck, HealthCheckSpecifier, LocalityEndpoints},
    },
    google::protobuf::{self, UInt32Value},
};
use ikada_envoy::ProxyMetadata;
use ikada_model::{Dataplane, GoDuration};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Names of the cluster of Envoy's admin, legacy and unified.
pub(super) const ADMIN: [&str; 2] = ["kuma:envoy:admin", "system_envoy_admin"];
/// Start of the names of the clusters of applications; the workload's port follows. Also with unified names.
pub(super) const WORKLOAD: &str = "localhost:";

/// What a specifier is made of.
pub(super) struct Subject<'a> {
    pub(super) dataplane: &'a Dataplane,
    pub(super) metadata: &'a ProxyMetadata,
    /// The mesh's names are unified when the proxy understands that (`meshServices.mode: Exclusive`).
    pub(super) exclusive: bool,
    /// DNS names that are known: name → IP.
    pub(super) hosts: &'a BTreeMap<String, String>,
}

/// One cluster for Envoy itself, so that a draining one takes its inbounds out, and one per workload port with a probe.
pub(super) fn specifier(subject: &Subject<'_>, health: &Health) -> HealthCheckSpecifier {
    let mut clusters = probes(subject, health);
    if let Some(admin) = admin(subject, health) {
        clusters.insert(0, admin);
    }
    HealthCheckSpecifier { cluster_health_checks: clusters, interval: duration(health.interval) }
}

fn probes(subject: &Subject<'_>, health: &Health) -> Vec<ClusterHealthCheck> {
    let networking = &subject.dataplane.networking;
    let transparent = transparent(subject);
    let mut clusters: BTreeMap<u32, (ClusterHealthCheck, BTreeSet<IpAddr>)> = BTreeMap::new();
    for inbound in &networking.inbound {
        let Some(probe) = &inbound.service_probe else { continue };
        let port = inbound.workload_port();
        // A name that the control plane does not know has no cluster in the proxy's configuration either.
        let Some(ip) = resolve(subject.hosts, networking.workload_address(inbound)) else { continue };
        if port == 0 || port > 65_535 {
            continue;
        }
        // Inbounds that share a workload port share its cluster: the name carries only the port.
        let (cluster, addresses) = clusters.entry(port).or_insert_with(|| {
            let bind = (transparent && !ip.is_loopback()).then(|| {
                let source = if ip.is_ipv6() { "::6" } else { "127.0.0.6" };
                BindConfig { source_address: Some(socket(source.to_owned(), 0)), ..Default::default() }
            });
            let cluster = ClusterHealthCheck {
                cluster_name: format!("{WORKLOAD}{port}"),
                health_checks: vec![check(Some(probe), health, HealthChecker::TcpHealthCheck(TcpHealthCheck::default()))],
                upstream_bind_config: bind,
                ..Default::default()
            };
            (cluster, BTreeSet::new())
        });
        if addresses.insert(ip) {
            let address = Address { address: Some(address::Address::SocketAddress(socket(ip.to_string(), port))) };
            add_endpoint(cluster, address);
        }
    }
    clusters.into_values().map(|(c, _)| c).collect()
}

/// Traffic of the machine is redirected to the proxy: as the configuration of inbounds decides it.
fn transparent(subject: &Subject<'_>) -> bool {
    if subject.metadata.has_feature("feature-transparent-proxy-in-dataplane-metadata") {
        // Without more it redirects on the default ports.
        return subject.metadata.transparent_proxy.as_ref().is_none_or(|t| t.inbound_port != 0 || t.outbound_port != 0);
    }
    subject.dataplane.networking.transparent_proxying.as_ref().is_some_and(|t| t.redirect_port_inbound != 0 || t.redirect_port_outbound != 0)
}

fn admin(subject: &Subject<'_>, health: &Health) -> Option<ClusterHealthCheck> {
    let meta = subject.metadata;
    if meta.admin_port == 0 && meta.admin_socket_path.is_empty() {
        return None;
    }
    let address = if meta.admin_socket_path.is_empty() {
        let ip = if matches!(meta.admin_address.as_str(), "::1" | "::") { "::1" } else { "127.0.0.1" };
        address::Address::SocketAddress(socket(ip.to_owned(), meta.admin_port))
    } else {
        address::Address::Pipe(Pipe { path: meta.admin_socket_path.clone(), mode: 0 })
    };
    let unified = subject.exclusive && meta.has_feature("feature-unified-resource-naming");
    let [legacy, new] = ADMIN;
    let http = HttpHealthCheck { host: "localhost".into(), path: "/ready".into(), ..Default::default() };
    let mut cluster = ClusterHealthCheck {
        cluster_name: if unified { new } else { legacy }.to_owned(),
        health_checks: vec![check(None, health, HealthChecker::HttpHealthCheck(http))],
        ..Default::default()
    };
    add_endpoint(&mut cluster, Address { address: Some(address) });
    Some(cluster)
}

fn add_endpoint(cluster: &mut ClusterHealthCheck, address: Address) {
    let endpoint = Endpoint { address: Some(address), ..Default::default() };
    match cluster.locality_endpoints.first_mut() {
        Some(l) => l.endpoints.push(endpoint),
        None => cluster.locality_endpoints.push(LocalityEndpoints { locality: Some(Locality::default()), endpoints: vec![endpoint] }),
    }
}

/// A check with what the probe says, else the defaults.
fn check(probe: Option<&Value>, health: &Health, checker: HealthChecker) -> HealthCheck {
    let time = |key: &str| {
        let text = probe?.get(key)?.as_str()?;
        GoDuration::parse(text).ok()?.to_std().filter(|d| !d.is_zero())
    };
    let threshold = |key: &str, default: u32| {
        let n = probe.and_then(|p| p.get(key)?.as_u64()).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        Some(UInt32Value { value: n.unwrap_or(default) })
    };
    let interval = time("interval");
    HealthCheck {
        timeout: duration(time("timeout").unwrap_or(health.check_timeout)),
        interval: duration(interval.unwrap_or(health.check_interval)),
        // Clusters of health discovery never have traffic, so this is the interval that Envoy uses: a probe that names one means it.
        no_traffic_interval: duration(interval.unwrap_or(health.check_no_traffic_interval)),
        healthy_threshold: threshold("healthyThreshold", health.healthy_threshold),
        unhealthy_threshold: threshold("unhealthyThreshold", health.unhealthy_threshold),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn resolve(hosts: &BTreeMap<String, String>, name: &str) -> Option<IpAddr> {
    name.parse().ok().or_else(|| hosts.get(name)?.parse().ok())
}

fn socket(address: String, port: u32) -> SocketAddress {
    SocketAddress { address, port_specifier: Some(PortSpecifier::PortValue(port)), ..Default::default() }
}

fn duration(d: Duration) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nanos: i32::try_from(d.subsec_nanos()).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(networking: Value, metadata: Value, exclusive: bool) -> HealthCheckSpecifier {
        let dataplane: Dataplane = serde_json::from_value(json!({ "networking": networking })).unwrap();
        let metadata = ProxyMetadata::from_json(&metadata);
        let hosts = BTreeMap::from([("app.internal".to_owned(), "10.1.1.1".to_owned())]);
        let (config, _) = crate::config::Config::load(None, [], &crate::config::Flags::default()).unwrap();
        specifier(&Subject { dataplane: &dataplane, metadata: &metadata, exclusive, hosts: &hosts }, &config.health)
    }
    fn names(s: &HealthCheckSpecifier) -> Vec<&str> {
        s.cluster_health_checks.iter().map(|c| c.cluster_name.as_str()).collect()
    }
    fn addresses(c: &ClusterHealthCheck) -> Vec<String> {
        let of = |a: &Endpoint| match a.address.as_ref().unwrap().address.as_ref().unwrap() {
            address::Address::SocketAddress(s) => format!("{}:{:?}", s.address, s.port_specifier.as_ref().unwrap()),
            address::Address::Pipe(p) => p.path.clone(),
            other => format!("{other:?}"),
        };
        c.locality_endpoints.iter().flat_map(|l| &l.endpoints).map(of).collect()
    }

    #[test]
    fn without_probes_envoy_itself_is_looked_at() {
        let s = of(json!({"address": "10.0.0.1", "inbound": [{"port": 80}]}), json!({"dataplane.admin.port": "9901"}), false);
        assert_eq!((names(&s), s.interval.unwrap().seconds), (vec!["kuma:envoy:admin"], 5));
        let s = of(json!({"address": "unknown", "inbound": [{"port": 80, "serviceProbe": {"tcp": {}}}]}), json!({"dataplane.admin.port": "9901"}), false);
        assert_eq!(names(&s), ["kuma:envoy:admin"], "a name that is not known cannot be probed");
    }

    #[test]
    fn one_cluster_per_workload_port_and_one_for_envoy() {
        let probe = json!({"tcp": {}});
        let networking = json!({"address": "10.0.0.1", "inbound": [
            {"port": 80, "servicePort": 8080, "serviceAddress": "127.0.0.1", "serviceProbe": probe},
            {"port": 81, "servicePort": 8080, "serviceAddress": "127.0.0.1", "serviceProbe": probe},
            {"port": 82, "servicePort": 8080, "serviceAddress": "app.internal", "serviceProbe": probe},
            {"port": 83},
            {"port": 84, "serviceProbe": probe},
        ]});
        let s = of(networking.clone(), json!({"dataplane.admin.port": "9901"}), false);
        assert_eq!(names(&s), ["kuma:envoy:admin", "localhost:84", "localhost:8080"]);
        assert_eq!(addresses(&s.cluster_health_checks[0]), ["127.0.0.1:PortValue(9901)"]);
        assert_eq!(addresses(&s.cluster_health_checks[1]), ["10.0.0.1:PortValue(84)"]);
        assert_eq!(addresses(&s.cluster_health_checks[2]), ["127.0.0.1:PortValue(8080)", "10.1.1.1:PortValue(8080)"]);
        let unified = json!({"dataplane.admin.port": "9901", "dataplane.admin.socketPath": "/w/admin.sock", "features": ["feature-unified-resource-naming"]});
        let s = of(networking.clone(), unified.clone(), true);
        assert_eq!(names(&s), ["system_envoy_admin", "localhost:84", "localhost:8080"]);
        assert_eq!(addresses(&s.cluster_health_checks[0]), ["/w/admin.sock"]);
        assert_eq!(names(&of(networking.clone(), unified, false))[0], "kuma:envoy:admin");
        assert_eq!(names(&of(networking, json!({}), false)), ["localhost:84", "localhost:8080"], "without an admin");
    }

    #[test]
    fn settings_of_a_probe_and_their_defaults() {
        let networking = json!({"address": "10.0.0.1", "inbound": [
            {"port": 1, "serviceProbe": {"tcp": {}}},
            {"port": 2, "serviceProbe": {"interval": "10s", "timeout": "0.500s", "healthyThreshold": 3, "unhealthyThreshold": 4}},
            {"port": 3, "serviceProbe": {"interval": "nonsense", "timeout": "-1s", "healthyThreshold": -1, "unhealthyThreshold": "x"}},
        ]});
        let all: Vec<_> = of(networking, json!({}), false)
            .cluster_health_checks
            .iter()
            .map(|c| {
                let h = &c.health_checks[0];
                let t = |d: &Option<protobuf::Duration>| d.as_ref().map(|d| (d.seconds, d.nanos)).unwrap();
                assert!(matches!(h.health_checker, Some(HealthChecker::TcpHealthCheck(_))));
                (t(&h.timeout), t(&h.interval), t(&h.no_traffic_interval), h.healthy_threshold.unwrap().value, h.unhealthy_threshold.unwrap().value)
            })
            .collect();
        let defaults = ((2, 0), (1, 0), (1, 0), 1, 1);
        assert_eq!(all, [defaults, ((0, 500_000_000), (10, 0), (10, 0), 3, 4), defaults]);
    }

    #[test]
    fn transparent_proxies_probe_from_the_address_that_is_not_redirected() {
        let networking = json!({"address": "10.0.0.1", "inbound": [
            {"port": 1, "serviceProbe": {}}, {"port": 2, "serviceAddress": "127.0.0.1", "serviceProbe": {}}, {"port": 3, "address": "fd00::1", "serviceProbe": {}},
        ]});
        let bind = |s: HealthCheckSpecifier| -> Vec<Option<String>> {
            s.cluster_health_checks.into_iter().map(|c| c.upstream_bind_config.map(|b| b.source_address.unwrap().address)).collect()
        };
        assert_eq!(bind(of(networking.clone(), json!({"features": ["feature-transparent-proxy-in-dataplane-metadata"]}), false)), [Some("127.0.0.6".to_owned()), None, Some("::6".to_owned())]);
        assert_eq!(bind(of(networking.clone(), json!({}), false)), [None, None, None]);
        let mut redirected = networking;
        redirected["transparentProxying"] = json!({"redirectPortInbound": 15006, "redirectPortOutbound": 15001});
        assert!(bind(of(redirected, json!({}), false))[0].is_some());
    }
}
