//! The bootstrap itself (§2 of the data-plane contract).

use super::{
    error::BootstrapError,
    params::BootstrapParams,
    request::{BootstrapRequest, ProxyType},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_model::{Dataplane, Mesh, Resource, dataplane::Admin, mesh::MeshServicesMode};
use serde_json::{Map, Value, json};
use std::{net::IpAddr, time::Duration};

/// Longest socket path before its suffix, bytes.
const MAX_SOCKET_PATH_BYTES: usize = 98;
/// Mode of the admin socket, 0600.
const ADMIN_SOCKET_MODE: u32 = 384;

/// Whose bootstrap it is.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Dataplane, ZoneIngress or ZoneEgress; from the request or from the store.
    pub resource: &'a Resource,
    /// Mesh of the resource; `None` for zone proxies.
    pub mesh: Option<&'a Resource>,
    /// Address that the proxy reached the control plane at, without port ([`super::host_without_port`]). `bootstrapServer.params.xdsHost` replaces it.
    pub host: &'a str,
    /// The xDS host is a name that resolves to IPv4 addresses only.
    pub ipv4_only: bool,
    /// PEM of the data-plane server's certificate: the anchor when the request carries none.
    pub server_pem: &'a str,
}

/// Builds the bootstrap as `envoy.config.bootstrap.v3.Bootstrap` in protobuf JSON. The checks of [`super::check`] are not repeated.
/// Errors: [`BootstrapError::Internal`] when the resource does not read as its kind.
pub fn generate(request: &BootstrapRequest, subject: &Subject<'_>, params: &BootstrapParams) -> Result<Value, BootstrapError> {
    let g = Generator::new(request, subject, params)?;
    let mut root = Map::new();
    root.insert("node".into(), g.node());
    root.insert("layeredRuntime".into(), g.layered_runtime());
    root.insert("statsConfig".into(), stats_config());
    root.insert(
        "defaultRegexEngine".into(),
        json!({
            "name": "envoy.regex_engines.google_re2",
            "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.regex_engines.v3.GoogleRE2"},
        }),
    );
    let over_ads = json!({"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"});
    let ads_type = if request.has_feature("feature-delta-grpc") { "DELTA_GRPC" } else { "GRPC" };
    root.insert("dynamicResources".into(), json!({"ldsConfig": over_ads, "cdsConfig": over_ads, "adsConfig": g.api_config(ads_type)}));
    if params.hds_enabled && request.proxy_type == ProxyType::Dataplane {
        root.insert("hdsConfig".into(), g.api_config("GRPC"));
    }
    root.insert("staticResources".into(), g.static_resources());
    if let Some(admin) = g.admin() {
        root.insert("admin".into(), admin);
    }
    if g.builtin_gateway {
        root.insert("overloadManager".into(), g.overload_manager());
    }
    Ok(Value::Object(root))
}

struct Generator<'a> {
    request: &'a BootstrapRequest,
    params: &'a BootstrapParams,
    host: &'a str,
    ipv4_only: bool,
    ca: String,
    cluster: String,
    builtin_gateway: bool,
    unified_names: bool,
    admin_port: u32,
}

impl<'a> Generator<'a> {
    fn new(request: &'a BootstrapRequest, subject: &Subject<'a>, params: &'a BootstrapParams) -> Result<Self, BootstrapError> {
        let unreadable = || BootstrapError::Internal(format!("{} does not read as its kind", subject.resource.key));
        let unified = request.has_feature("feature-unified-resource-naming");
        let (cluster, builtin_gateway, unified_names, port) = if request.proxy_type == ProxyType::Dataplane {
            let dataplane = subject.resource.view::<Dataplane>().ok_or_else(unreadable)?;
            let mesh = subject.mesh.and_then(|m| m.view::<Mesh>());
            let exclusive = mesh.is_some_and(|m| m.mesh_services.mode == MeshServicesMode::Exclusive);
            let workload = if params.inbound_tags_disabled { subject.resource.label(ikada_model::labels::WORKLOAD) } else { None };
            let cluster = workload.map_or_else(|| dataplane.identifying_service(), str::to_owned);
            (cluster, dataplane.is_builtin_gateway(), unified && exclusive, dataplane.networking.admin.as_ref().map_or(0, |a| a.port))
        } else {
            let admin = subject.resource.spec.value().pointer("/networking/admin").cloned().unwrap_or_default();
            let admin: Option<Admin> = serde_json::from_value(admin).map_err(|_| unreadable())?;
            (request.proxy_type.as_str().to_owned(), false, unified, admin.map_or(0, |a| a.port))
        };
        let anchor = if request.ca_cert.is_empty() { subject.server_pem } else { &request.ca_cert };
        Ok(Generator {
            request,
            params,
            host: if params.xds_host.is_empty() { subject.host } else { &params.xds_host },
            ipv4_only: subject.ipv4_only,
            ca: STANDARD.encode(anchor),
            cluster,
            builtin_gateway,
            unified_names,
            admin_port: if port == 0 { params.admin_port } else { port },
        })
    }

    fn admin_socket(&self) -> Option<String> {
        (self.admin_port != 0 && self.params.envoy_admin_unix_socket && !self.request.workdir.is_empty())
            .then(|| socket_path(&self.request.workdir, "kuma-envoy-admin"))
    }

    fn node(&self) -> Value {
        let r = self.request;
        let (dp, envoy) = (&r.version.kuma_dp, &r.version.envoy);
        let mut envoy_version = json!({"version": envoy.version, "build": envoy.build});
        if envoy.kuma_dp_compatible {
            envoy_version["kumaDpCompatible"] = json!(true);
        }
        let mut m = Map::new();
        m.insert(
            "version".into(),
            json!({
                "kumaDp": {"version": dp.version, "gitTag": dp.git_tag, "gitCommit": dp.git_commit, "buildDate": dp.build_date},
                "envoy": envoy_version,
            }),
        );
        m.insert("features".into(), json!(r.features));
        m.insert("workdir".into(), json!(r.workdir));
        m.insert("metricsCertPath".into(), json!(r.metrics_resources.cert_path));
        m.insert("metricsKeyPath".into(), json!(r.metrics_resources.key_path));
        m.insert("systemCaPath".into(), json!(r.system_ca_path));
        m.insert("ipv6Enabled".into(), json!(r.ipv6_enabled));
        m.insert("spireAgent.socketPath".into(), json!(r.spire_resources.socket_path));
        m.insert("dataplane.proxyType".into(), json!(r.proxy_type.as_str()));
        if !r.dataplane_resource.is_empty() {
            m.insert("dataplane.resource".into(), json!(r.dataplane_resource));
        }
        if self.admin_port != 0 {
            m.insert("dataplane.admin.port".into(), json!(self.admin_port.to_string()));
            if !self.params.admin_address.is_empty() {
                m.insert("dataplane.admin.address".into(), json!(self.params.admin_address));
            }
        }
        if let Some(path) = self.admin_socket() {
            m.insert("dataplane.admin.socketPath".into(), json!(path));
        }
        if r.dns_port != 0 && r.proxy_type == ProxyType::Dataplane {
            m.insert("dataplane.dns.port".into(), json!(r.dns_port.to_string()));
        }
        if r.readiness_port != 0 {
            m.insert("dataplane.readinessReporter.port".into(), json!(r.readiness_port.to_string()));
        }
        if r.app_probe_proxy_disabled {
            m.insert("dataplane.appProbeProxy.enabled".into(), json!("true"));
        }
        if !r.dynamic_metadata.is_empty() {
            m.insert("dynamicMetadata".into(), json!(r.dynamic_metadata));
        }
        if let Some(config) = &r.dataplane_config {
            m.insert("transparentProxy".into(), json!(config));
        }
        if let Some(otel) = &r.otel_env {
            m.insert("otelEnvInventory".into(), json!(otel));
        }
        json!({"id": r.node_id(), "cluster": self.cluster, "metadata": m})
    }

    fn layered_runtime(&self) -> Value {
        let mut layers = vec![json!({
            "name": "kuma",
            "staticLayer": {"re2.max_program_size.error_level": u32::MAX, "re2.max_program_size.warn_level": 1000},
        })];
        if self.builtin_gateway {
            layers.push(json!({
                "name": "gateway.listeners",
                "rtdsLayer": {"name": "gateway.listeners", "rtdsConfig": {"ads": {}, "resourceApiVersion": "V3"}},
            }));
        }
        json!({"layers": layers})
    }

    fn reloadable_token(&self) -> bool {
        self.params.enable_reloadable_tokens && !self.request.dataplane_token_path.is_empty()
    }

    fn api_config(&self, api_type: &str) -> Value {
        let service = if self.reloadable_token() {
            json!({"googleGrpc": self.google_grpc()})
        } else {
            let mut service = json!({"envoyGrpc": {"clusterName": self.ads_cluster_name()}});
            if !self.request.dataplane_token.is_empty() {
                service["initialMetadata"] = json!([{"key": "authorization", "value": self.request.dataplane_token}]);
            }
            service
        };
        json!({"apiType": api_type, "transportApiVersion": "V3", "setNodeOnFirstMessageOnly": true, "grpcServices": [service]})
    }

    fn google_grpc(&self) -> Value {
        const PLUGIN: &str = "envoy.grpc_credentials.file_based_metadata";
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_owned() };
        // 64-bit integers are strings in protobuf JSON.
        let int = |n: u32| json!({"intValue": n.to_string()});
        json!({
            "targetUri": format!("{host}:{}", self.params.xds_port),
            "statPrefix": "ads",
            "credentialsFactoryName": PLUGIN,
            "callCredentials": [{"fromPlugin": {
                "name": PLUGIN,
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig",
                    "secretData": {"filename": self.request.dataplane_token_path},
                },
            }}],
            "channelCredentials": {"sslCredentials": {"rootCerts": {"inlineBytes": self.ca}}},
            "channelArgs": {"args": {
                "grpc.http2.max_pings_without_data": int(0),
                "grpc.keepalive_time_ms": int(10_000),
                "grpc.keepalive_timeout_ms": int(30_000),
                "grpc.max_receive_message_length": int(self.params.xds_grpc_max_receive_message_bytes),
            }},
        })
    }

    fn ads_cluster_name(&self) -> &'static str {
        if self.unified_names { "system_ads" } else { "ads_cluster" }
    }

    fn static_resources(&self) -> Value {
        let r = self.request;
        let log_sink = if self.unified_names { "system_access_log_sink" } else { "access_log_sink" };
        let log_path = socket_path(&r.workdir, &format!("kuma-al-{}-{}", r.name, r.mesh));
        let mut clusters = vec![self.cluster(log_sink, "STATIC", json!({"pipe": {"path": log_path}}))];
        if !self.reloadable_token() {
            clusters.push(self.ads_cluster());
        }
        let san = |kind: &str| json!({"sanType": kind, "matcher": {"exact": self.host}});
        let validation = json!({
            "trustedCa": {"inlineBytes": self.ca},
            "matchTypedSubjectAltNames": [san("DNS"), san("IP_ADDRESS")],
        });
        json!({"clusters": clusters, "secrets": [{"name": "cp_validation_ctx", "validationContext": validation}]})
    }

    fn ads_cluster(&self) -> Value {
        let literal = self.host.parse::<IpAddr>().is_ok();
        let address = json!({"socketAddress": {"address": self.host, "portValue": self.params.xds_port}});
        let mut cluster = self.cluster(self.ads_cluster_name(), if literal { "STATIC" } else { "STRICT_DNS" }, address);
        if !literal && self.ipv4_only && self.host != "localhost" {
            cluster["dnsLookupFamily"] = json!("V4_ONLY");
        }
        cluster["transportSocket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": self.host,
                "commonTlsContext": {
                    "tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_2"},
                    "validationContextSdsSecretConfig": {"name": "cp_validation_ctx"},
                },
            },
        });
        cluster
    }

    fn cluster(&self, name: &str, kind: &str, address: Value) -> Value {
        const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        json!({
            "name": name,
            "type": kind,
            "connectTimeout": duration(self.params.xds_connect_timeout),
            "loadAssignment": {"clusterName": name, "endpoints": [{"lbEndpoints": [{"endpoint": {"address": address}}]}]},
            "upstreamConnectionOptions": {"tcpKeepalive": {"keepaliveProbes": 3, "keepaliveTime": 10, "keepaliveInterval": 10}},
            "typedExtensionProtocolOptions": {HTTP_OPTIONS: {
                "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
                "explicitHttpConfig": {"http2ProtocolOptions": {}},
            }},
        })
    }

    fn admin(&self) -> Option<Value> {
        if self.admin_port == 0 {
            return None;
        }
        let address = match self.admin_socket() {
            Some(path) => json!({"pipe": {"path": path, "mode": ADMIN_SOCKET_MODE}}),
            None => json!({"socketAddress": {"address": self.params.admin_address, "portValue": self.admin_port}}),
        };
        Some(json!({
            "address": address,
            "accessLog": [{
                "name": "envoy.access_loggers.file",
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": self.params.admin_access_log_path,
                },
            }],
        }))
    }

    fn overload_manager(&self) -> Value {
        const HEAP: &str = "envoy.resource_monitors.fixed_heap";
        let mut monitors = vec![json!({
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "maxActiveDownstreamConnections": self.params.gateway_global_downstream_max_connections.to_string(),
            },
        })];
        let mut manager = json!({"refreshInterval": "0.250s"});
        let heap = self.request.resources.max_heap_size_bytes;
        if heap > 0 {
            monitors.push(json!({
                "name": HEAP,
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "maxHeapSizeBytes": heap.to_string(),
                },
            }));
            let action = |name: &str, at: f64| json!({"name": name, "triggers": [{"name": HEAP, "threshold": {"value": at}}]});
            manager["actions"] =
                json!([action("envoy.overload_actions.shrink_heap", 0.95), action("envoy.overload_actions.stop_accepting_requests", 0.98)]);
        }
        manager["resourceMonitors"] = json!(monitors);
        manager
    }
}

fn stats_config() -> Value {
    let tag = |name: &str, regex: &str| json!({"tagName": name, "regex": regex});
    json!({"statsTags": [
        tag("name", r"^grpc\.((.+)\.)"),
        tag("status", r"^grpc.*streams_closed(_([0-9]+))"),
        tag("kafka_name", r"^kafka(\.(\S*[0-9]))\."),
        tag("kafka_type", r"^kafka\..*\.(.*?(?=_duration|$))"),
        tag("worker", r"(worker_([0-9]+)\.)"),
        tag("listener", r"((.+?)\.)rbac\."),
    ]})
}

/// Path of a unix socket in the work directory: cut to what a socket address holds, on a character's boundary.
fn socket_path(workdir: &str, name: &str) -> String {
    let mut path = if workdir.is_empty() { name.to_owned() } else { format!("{}/{name}", workdir.trim_end_matches('/')) };
    if path.len() > MAX_SOCKET_PATH_BYTES {
        let cut = (0..=MAX_SOCKET_PATH_BYTES).rev().find(|i| path.is_char_boundary(*i)).unwrap_or(0);
        path.truncate(cut);
    }
    path + ".sock"
}

/// A duration in protobuf JSON: seconds with 0, 3, 6 or 9 decimals.
fn duration(d: Duration) -> String {
    let (s, n) = (d.as_secs(), d.subsec_nanos());
    match n {
        0 => format!("{s}s"),
        n if n % 1_000_000 == 0 => format!("{s}.{:03}s", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{s}.{:06}s", n / 1_000),
        n => format!("{s}.{n:09}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind};

    fn dataplane(spec: &str) -> Resource {
        Resource::new(Key::new(Kind::Dataplane, "default", "dp-1"), Json::from_text(spec).unwrap())
    }
    fn mesh(spec: &str) -> Resource {
        Resource::new(Key::new(Kind::Mesh, "", "default"), Json::from_text(spec).unwrap())
    }
    fn subject<'a>(resource: &'a Resource, mesh: Option<&'a Resource>, host: &'a str) -> Subject<'a> {
        Subject { resource, mesh, host, ipv4_only: true, server_pem: "PEM" }
    }
    fn request() -> BootstrapRequest {
        BootstrapRequest { mesh: "default".into(), name: "dp-1".into(), workdir: "/w".into(), ..Default::default() }
    }

    #[test]
    fn admin_forms() {
        let dp = dataplane(r#"{"networking":{"address":"1.1.1.1"}}"#);
        let on_socket = generate(&request(), &subject(&dp, None, "cp"), &BootstrapParams::default()).unwrap();
        assert_eq!(on_socket["admin"]["address"], json!({"pipe": {"path": "/w/kuma-envoy-admin.sock", "mode": 384}}));
        assert_eq!(on_socket["node"]["metadata"]["dataplane.admin.socketPath"], "/w/kuma-envoy-admin.sock");
        assert_eq!(on_socket["node"]["cluster"], "unknown");
        let no_workdir = BootstrapRequest { workdir: String::new(), ..request() };
        let tcp = generate(&no_workdir, &subject(&dp, None, "cp"), &BootstrapParams::default()).unwrap();
        assert_eq!(tcp["admin"]["address"], json!({"socketAddress": {"address": "127.0.0.1", "portValue": 9901}}));
        let off = generate(&request(), &subject(&dp, None, "cp"), &BootstrapParams { admin_port: 0, ..Default::default() }).unwrap();
        assert!(off.get("admin").is_none() && off["node"]["metadata"].get("dataplane.admin.port").is_none());
    }

    #[test]
    fn unified_names_need_an_exclusive_mesh() {
        let dp = dataplane("{}");
        let unified = BootstrapRequest { features: vec!["feature-unified-resource-naming".into()], ..request() };
        for (mode, names) in [("Exclusive", ["system_access_log_sink", "system_ads"]), ("Everywhere", ["access_log_sink", "ads_cluster"])] {
            let mesh = mesh(&format!(r#"{{"meshServices":{{"mode":"{mode}"}}}}"#));
            let b = generate(&unified, &subject(&dp, Some(&mesh), "cp"), &BootstrapParams::default()).unwrap();
            for (i, name) in names.iter().enumerate() {
                assert_eq!(b["staticResources"]["clusters"][i]["name"], *name);
                assert_eq!(b["staticResources"]["clusters"][i]["loadAssignment"]["clusterName"], *name);
            }
            assert_eq!(b["dynamicResources"]["adsConfig"]["grpcServices"][0]["envoyGrpc"]["clusterName"], names[1]);
        }
    }

    #[test]
    fn lookup_family_and_type_follow_the_host() {
        let dp = dataplane("{}");
        let ads = |host: &str| generate(&request(), &subject(&dp, None, host), &BootstrapParams::default()).unwrap()["staticResources"]["clusters"][1].clone();
        assert_eq!((&ads("cp")["type"], &ads("cp")["dnsLookupFamily"]), (&json!("STRICT_DNS"), &json!("V4_ONLY")));
        assert_eq!(ads("localhost").get("dnsLookupFamily"), None);
        assert_eq!((&ads("::1")["type"], ads("10.0.0.1").get("dnsLookupFamily")), (&json!("STATIC"), None));
    }

    #[test]
    fn zone_proxies() {
        let ingress = Resource::new(Key::new(Kind::ZoneIngress, "", "zi"), Json::from_text(r#"{"networking":{"admin":{"port":7}}}"#).unwrap());
        let request = BootstrapRequest { name: "zi".into(), proxy_type: ProxyType::Ingress, workdir: "/w".into(), dns_port: 53, ..Default::default() };
        let b = generate(&request, &subject(&ingress, None, "cp"), &BootstrapParams::default()).unwrap();
        assert_eq!((&b["node"]["id"], &b["node"]["cluster"]), (&json!(".zi"), &json!("ingress")));
        assert_eq!((b.get("hdsConfig"), b["node"]["metadata"].get("dataplane.dns.port")), (None, None));
        assert_eq!(b["node"]["metadata"]["dataplane.admin.port"], "7");
    }

    #[test]
    fn workload_label_names_the_cluster() {
        let dp = dataplane(r#"{"networking":{"inbound":[{"port":1,"tags":{"kuma.io/service":"web"}}]}}"#)
            .with_labels([("kuma.io/workload".to_owned(), "pay".to_owned())].into());
        let cluster = |disabled| {
            let params = BootstrapParams { inbound_tags_disabled: disabled, ..Default::default() };
            generate(&request(), &subject(&dp, None, "cp"), &params).unwrap()["node"]["cluster"].clone()
        };
        assert_eq!((cluster(false), cluster(true)), (json!("web"), json!("pay")));
    }

    #[test]
    fn texts() {
        assert_eq!(socket_path("/tmp/", "a"), "/tmp/a.sock");
        assert_eq!(socket_path("/tmp", &"x".repeat(200)).len(), 98 + 5);
        assert!(socket_path("/tmp", &"é".repeat(200)).len() <= 98 + 5);
        for (ms, text) in [(1000, "1s"), (1500, "1.500s"), (0, "0s")] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration(Duration::from_micros(1)), "0.000001s");
    }
}
