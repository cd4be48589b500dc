//! What generation needs and what it gives.

use bytes::Bytes;
use ikada_model::Resource;
use ikada_world::World;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Type URLs of the resources that are generated, in the order in which they are sent.
pub mod type_urls {
    /// Clusters.
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// Endpoints.
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// Listeners.
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// Route configurations (inline in listeners, so normally none).
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// Secrets.
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// Runtime layers (builtin gateways only).
    pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    /// All of them.
    pub const ALL: [&str; 6] = [CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, RUNTIME];
}

/// One proxy in one world.
#[derive(Clone, Copy)]
pub struct ProxyContext<'a> {
    /// All resources.
    pub world: &'a World,
    /// The Dataplane (as stored or as sent in the node metadata).
    pub dataplane: &'a Resource,
    /// What the proxy said about itself.
    pub metadata: &'a ProxyMetadata,
    /// Settings of the control plane.
    pub settings: &'a Settings,
    /// Certificates and keys.
    pub secrets: &'a ProxySecrets,
    /// Policies labelled `kuma.io/effect: shadow` count too.
    pub include_shadow: bool,
}

/// Settings of the control plane that generation depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of this zone.
    pub zone: String,
    /// `ipam.knownInternalCIDRs`, each `address/length`.
    pub known_internal_cidrs: Vec<String>,
    /// Fallback for the readiness port when the proxy sent none (`bootstrapServer.params.readinessPort`); 0 = no fallback, which is an error
    /// of generation.
    pub readiness_port: u32,
    /// DNS names in addresses of dataplanes → IP, as the control plane resolved them. A name that is not here is unresolvable: such an
    /// instance is left out of endpoints.
    pub hosts: BTreeMap<String, String>,
    /// `dnsServer.domain`: suffix of the names of legacy services.
    pub dns_domain: String,
    /// `dnsServer.serviceVipPort`: port of the outbounds of legacy services under transparent proxying.
    pub service_vip_port: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let cidrs = ["10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12", "fc00::/7", "fd00::/8", "127.0.0.1/32", "::1/128"];
        Settings {
            zone: "default".into(),
            known_internal_cidrs: cidrs.map(str::to_owned).to_vec(),
            readiness_port: 0,
            hosts: BTreeMap::new(),
            dns_domain: "mesh".into(),
            service_vip_port: 80,
        }
    }
}

/// The Envoy node's metadata, read (data-plane contract §2.2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyMetadata {
    /// `features`.
    pub features: BTreeSet<String>,
    /// `dataplane.admin.port`; 0 = no admin.
    pub admin_port: u32,
    /// `dataplane.admin.address`; empty = 127.0.0.1.
    pub admin_address: String,
    /// `dataplane.admin.socketPath`; empty = the admin listens on a port.
    pub admin_socket_path: String,
    /// `dataplane.readinessReporter.port`; 0 = not sent.
    pub readiness_port: u32,
    /// `dataplane.dns.port`; 0 = off.
    pub dns_port: u32,
    /// `workdir`.
    pub workdir: String,
    /// `ipv6Enabled`; absent counts as true.
    pub ipv6_enabled: bool,
    /// `transparentProxy`.
    pub transparent_proxy: Option<TransparentProxyMetadata>,
    /// `dataplane.proxyType`: `dataplane`, `ingress` or `egress`; absent = `dataplane`.
    pub proxy_type: String,
    /// `dataplane.resource`: the resource as JSON text, when the proxy brought it along.
    pub dataplane_resource: Option<String>,
    /// `version`.
    pub version: Value,
    /// `dynamicMetadata`.
    pub dynamic: Value,
}

/// `transparentProxy` of the node metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct TransparentProxyMetadata {
    /// `dualstack` or `ipv4`.
    pub ip_family_mode: String,
    /// Port inbound traffic is redirected to; 0 = not redirected.
    pub inbound_port: u32,
    /// Port outbound traffic is redirected to; 0 = not redirected.
    pub outbound_port: u32,
}

impl ProxyMetadata {
    /// From the node metadata as JSON. Unknown keys are ignored, wrong types count as absent: a proxy must not be able to break its stream
    /// by odd metadata.
    pub fn from_json(v: &Value) -> Self {
        let text = |k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        // Ports travel as text; numbers are accepted too.
        let number = |v: Option<&Value>| match v {
            Some(Value::String(s)) => s.parse().unwrap_or(0),
            // A protobuf Struct has only doubles.
            Some(Value::Number(n)) => n.as_f64().filter(|f| (0.0..=65535.0).contains(f)).map_or(0, |f| f as u32),
            _ => 0u32,
        };
        let port = |k: &str| number(v.get(k));
        let redirect = |tp: &Value, which: &str, default: u32| {
            let Some(r) = tp.pointer(&format!("/redirect/{which}")) else { return default };
            if r.get("enabled").and_then(Value::as_bool) == Some(false) { 0 } else { r.get("port").map_or(default, |p| number(Some(p))) }
        };
        let proxy_type = text("dataplane.proxyType");
        ProxyMetadata {
            features: v
                .get("features")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            admin_port: port("dataplane.admin.port"),
            admin_address: text("dataplane.admin.address"),
            admin_socket_path: text("dataplane.admin.socketPath"),
            readiness_port: port("dataplane.readinessReporter.port"),
            dns_port: port("dataplane.dns.port"),
            workdir: text("workdir"),
            ipv6_enabled: v.get("ipv6Enabled").and_then(Value::as_bool).unwrap_or(true),
            transparent_proxy: v.get("transparentProxy").filter(|t| t.is_object()).map(|tp| TransparentProxyMetadata {
                ip_family_mode: tp.get("ipFamilyMode").and_then(Value::as_str).unwrap_or("dualstack").to_owned(),
                inbound_port: redirect(tp, "inbound", 15006),
                outbound_port: redirect(tp, "outbound", 15001),
            }),
            proxy_type: if proxy_type.is_empty() { "dataplane".to_owned() } else { proxy_type },
            dataplane_resource: v.get("dataplane.resource").and_then(Value::as_str).map(str::to_owned),
            version: v.get("version").cloned().unwrap_or(Value::Null),
            dynamic: v.get("dynamicMetadata").cloned().unwrap_or(Value::Null),
        }
    }
    /// A feature flag was sent.
    pub fn has_feature(&self, name: &str) -> bool {
        self.features.contains(name)
    }
}

/// Certificates and keys, PEM. Missing ones that the configuration refers to are an error of generation.
#[derive(Clone, Default)]
pub struct ProxySecrets {
    /// Own identity: certificate chain and private key.
    pub identity: Option<(String, String)>,
    /// CA of the proxy's mesh.
    pub mesh_ca: Option<String>,
    /// Server certificate and key of the admin listener.
    pub admin_server: Option<(String, String)>,
    /// CA that signs the control plane's admin client certificate.
    pub admin_ca: Option<String>,
}

impl ProxySecrets {
    /// What inspection shows instead of secrets: `CERT`, `KEY`, `CA`, and nothing for the admin listener.
    pub fn dummy() -> Self {
        let pair = || Some(("CERT".to_owned(), "KEY".to_owned()));
        ProxySecrets {
            identity: pair(),
            mesh_ca: Some("CA".to_owned()),
            admin_server: Some(Default::default()),
            admin_ca: Some(String::new()),
        }
    }
}

/// Never prints keys.
impl std::fmt::Debug for ProxySecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxySecrets")
            .field("identity", &self.identity.is_some())
            .field("mesh_ca", &self.mesh_ca.is_some())
            .field("admin_server", &self.admin_server.is_some())
            .field("admin_ca", &self.admin_ca.is_some())
            .finish()
    }
}

/// One generated resource, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Name.
    pub name: Arc<str>,
    /// Type URL, one of [`type_urls`].
    pub type_url: &'static str,
    /// Hash of `bytes`: equal content has an equal version on every node and in every process.
    pub version: u64,
    /// The message in canonical protobuf encoding (map entries sorted by key).
    pub bytes: Bytes,
}

/// Why nothing was generated. The texts are for people; the proxy keeps what it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The dataplane asks for something that is not built yet.
    #[error("dataplane {dataplane:?} in mesh {mesh:?} cannot be configured: {feature} is not supported")]
    Unsupported {
        /// Mesh.
        mesh: String,
        /// Name.
        dataplane: String,
        /// What is missing.
        feature: String,
    },
    /// The mesh does not exist.
    #[error("mesh {0:?} does not exist")]
    NoMesh(String),
    /// A resource or the proxy's metadata does not allow a valid configuration.
    #[error("{resource}: {message}")]
    Invalid {
        /// The resource at fault.
        resource: String,
        /// What is wrong.
        message: String,
    },
    /// A secret that the configuration refers to is not there (yet).
    #[error("secret {0:?} is not available yet")]
    NoSecret(String),
    /// A message could not be encoded (a defect of the descriptor set).
    #[error("cannot encode {type_url} {name:?}: {message}")]
    Encode {
        /// Type.
        type_url: &'static str,
        /// Name.
        name: String,
        /// Cause.
        message: String,
    },
}
