//! Body of `POST /bootstrap`.

use super::error::BootstrapError;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Longest accepted body, bytes. A request carries at most a resource and a certificate chain.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What a proxy says about itself (§1.2). Unknown fields are ignored, `null` and absent fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BootstrapRequest {
    /// Mesh; empty for zone proxies.
    #[serde(deserialize_with = "lenient")]
    pub mesh: String,
    /// Name.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// Kind of proxy.
    #[serde(deserialize_with = "lenient")]
    pub proxy_type: ProxyType,
    /// Token itself.
    #[serde(deserialize_with = "lenient")]
    pub dataplane_token: String,
    /// File of the token on the proxy's machine.
    #[serde(deserialize_with = "lenient")]
    pub dataplane_token_path: String,
    /// The proxy's resource, JSON or YAML.
    #[serde(deserialize_with = "lenient")]
    pub dataplane_resource: String,
    /// Versions.
    #[serde(deserialize_with = "lenient")]
    pub version: Version,
    /// PEM of the CA that the proxy verifies the control plane with.
    #[serde(deserialize_with = "lenient")]
    pub ca_cert: String,
    /// Free.
    #[serde(deserialize_with = "lenient")]
    pub dynamic_metadata: BTreeMap<String, String>,
    /// Port of the DNS filter or proxy.
    #[serde(deserialize_with = "lenient")]
    pub dns_port: u32,
    /// Port of the readiness reporter.
    #[serde(deserialize_with = "lenient")]
    pub readiness_port: u32,
    /// Inverted historic name: true = the application probe proxy is enabled.
    #[serde(deserialize_with = "lenient")]
    pub app_probe_proxy_disabled: bool,
    /// `linux`, …
    #[serde(deserialize_with = "lenient")]
    pub operating_system: String,
    /// Feature flags.
    #[serde(deserialize_with = "lenient")]
    pub features: Vec<String>,
    /// Limits.
    #[serde(deserialize_with = "lenient")]
    pub resources: WorkloadResources,
    /// Directory of the unix sockets.
    #[serde(deserialize_with = "lenient")]
    pub workdir: String,
    /// TLS files of the metrics endpoint.
    #[serde(deserialize_with = "lenient")]
    pub metrics_resources: MetricsResources,
    /// CA bundle of the machine.
    #[serde(deserialize_with = "lenient")]
    pub system_ca_path: String,
    /// Transparent proxy settings, copied to the node's metadata.
    #[serde(deserialize_with = "lenient")]
    pub dataplane_config: Option<Map<String, Value>>,
    /// Local IPv6.
    #[serde(deserialize_with = "lenient", rename = "ipv6Enabled")]
    pub ipv6_enabled: bool,
    /// SPIRE.
    #[serde(deserialize_with = "lenient")]
    pub spire_resources: SpireResources,
    /// Inventory of `OTEL_*`, copied to the node's metadata.
    #[serde(deserialize_with = "lenient")]
    pub otel_env: Option<Map<String, Value>>,
}

/// Kind of proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyType {
    /// Sidecar or gateway.
    #[default]
    #[serde(alias = "")]
    Dataplane,
    /// Zone ingress.
    Ingress,
    /// Zone egress.
    Egress,
}

impl ProxyType {
    /// Value of `dataplane.proxyType`.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyType::Dataplane => "dataplane",
            ProxyType::Ingress => "ingress",
            ProxyType::Egress => "egress",
        }
    }
}

/// `version`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Version {
    /// kuma-dp.
    #[serde(deserialize_with = "lenient")]
    pub kuma_dp: KumaDpVersion,
    /// Envoy.
    #[serde(deserialize_with = "lenient")]
    pub envoy: EnvoyVersion,
}

/// `version.kumaDp`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KumaDpVersion {
    /// Version.
    pub version: String,
    /// Tag.
    pub git_tag: String,
    /// Commit.
    pub git_commit: String,
    /// Date.
    pub build_date: String,
}

/// `version.envoy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvoyVersion {
    /// Version.
    pub version: String,
    /// Build.
    pub build: String,
    /// kuma-dp supports this Envoy.
    pub kuma_dp_compatible: bool,
}

/// `resources`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadResources {
    /// Memory limit, bytes; 0 = none.
    pub max_heap_size_bytes: u64,
}

/// `metricsResources`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricsResources {
    /// Certificate file.
    pub cert_path: String,
    /// Key file.
    pub key_path: String,
}

/// `spireResources`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SpireResources {
    /// Agent socket.
    pub socket_path: String,
}

/// `null` reads as the default.
fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

impl BootstrapRequest {
    /// Reads a body. Errors: [`BootstrapError::NotJson`], also for bodies above 4 MiB; [`BootstrapError::Invalid`] without a name.
    pub fn parse(body: &[u8]) -> Result<Self, BootstrapError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(BootstrapError::NotJson(format!("{} bytes, at most {MAX_BODY_BYTES} are read", body.len())));
        }
        let request: Self = serde_json::from_slice(body).map_err(|e| BootstrapError::NotJson(e.to_string()))?;
        if request.name.is_empty() {
            return Err(BootstrapError::invalid([("name", "cannot be empty")]));
        }
        Ok(request)
    }
    /// The resource that the request carries, parsed but not validated; `None` when it carries none. It must have the type of the proxy.
    pub fn inline_resource(&self) -> Result<Option<Value>, BootstrapError> {
        if self.dataplane_resource.is_empty() {
            return Ok(None);
        }
        let invalid = |why: String| BootstrapError::invalid([("dataplaneResource", why)]);
        // A YAML reader reads JSON too, but Go's escapes are JSON's: try that first.
        let value: Value = match serde_json::from_str(&self.dataplane_resource) {
            Ok(v) => v,
            Err(_) => serde_saphyr::from_str(&self.dataplane_resource).map_err(|e| invalid(format!("is neither JSON nor YAML: {e}")))?,
        };
        let wanted = match self.proxy_type {
            ProxyType::Dataplane => "Dataplane",
            ProxyType::Ingress => "ZoneIngress",
            ProxyType::Egress => "ZoneEgress",
        };
        match value.get("type").and_then(Value::as_str) {
            Some(t) if t == wanted => Ok(Some(value)),
            Some(t) => Err(invalid(format!("is a {t}, a proxy of type {:?} needs a {wanted}", self.proxy_type.as_str()))),
            None => Err(invalid(format!("has no field type, it must be a {wanted}"))),
        }
    }
    /// Whether the proxy sent a feature flag.
    pub fn has_feature(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }
    /// `<mesh>.<name>`; `.<name>` for zone proxies.
    pub fn node_id(&self) -> String {
        format!("{}.{}", self.mesh, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerant() {
        let r = BootstrapRequest::parse(br#"{"name":"a","proxyType":"","features":null,"new":[1],"ipv6Enabled":true,"version":null}"#).unwrap();
        assert_eq!((r.proxy_type, r.features.len(), r.ipv6_enabled), (ProxyType::Dataplane, 0, true));
        assert_eq!(BootstrapRequest::parse(b"{").unwrap_err().status(), 400);
        assert_eq!(BootstrapRequest::parse(br#"{"mesh":"m"}"#).unwrap_err().status(), 422);
    }

    #[test]
    fn inline_resource_must_fit() {
        let with = |r: &str| BootstrapRequest { dataplane_resource: r.into(), ..Default::default() }.inline_resource();
        assert_eq!(with("").unwrap(), None);
        assert!(with("type: Dataplane\nname: x\n").unwrap().is_some());
        assert!(with(r#"{"type":"Dataplane"}"#).unwrap().is_some());
        assert_eq!(with("type: ZoneIngress").unwrap_err().status(), 422);
        assert_eq!(with("a: [").unwrap_err().status(), 422);
        assert_eq!(with("- 1").unwrap_err().status(), 422);
    }
}
