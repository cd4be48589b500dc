//! Typed view of a Mesh's canonical spec (reference: Kuma 2.14.3 REST contract, §8.1).

use crate::{kind::Kind, resource::View};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// A mesh.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mesh {
    /// Mutual TLS.
    pub mtls: Option<Mtls>,
    /// Networking.
    pub networking: Option<MeshNetworking>,
    /// Routing.
    pub routing: Routing,
    /// Constraints on members.
    pub constraints: Option<Value>,
    /// Kinds of default policies that are not created.
    pub skip_creating_initial_policies: Vec<String>,
    /// MeshService generation.
    pub mesh_services: MeshServices,
}

/// `mtls`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mtls {
    /// Name of the enabled backend; empty = mTLS off.
    pub enabled_backend: String,
    /// Backends.
    pub backends: Vec<CaBackend>,
    /// Skip the check of the backend.
    pub skip_validation: bool,
}

/// STRICT or PERMISSIVE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum TlsMode {
    /// mTLS only.
    #[default]
    #[serde(rename = "STRICT")]
    Strict,
    /// Plain text is accepted too.
    #[serde(rename = "PERMISSIVE")]
    Permissive,
}

/// `mtls.backends[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CaBackend {
    /// Name.
    pub name: String,
    /// `builtin` or `provided`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Settings of workload certificates.
    pub dp_cert: Option<DpCert>,
    /// Settings of the backend.
    pub conf: Option<Value>,
    /// Mode.
    pub mode: TlsMode,
}

/// `mtls.backends[].dpCert`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DpCert {
    /// Rotation.
    pub rotation: Option<Rotation>,
}

/// `mtls.backends[].dpCert.rotation`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// Life of a workload certificate, e.g. `24h`, `1d`.
    pub expiration: String,
}

/// `networking`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MeshNetworking {
    /// Outbound.
    pub outbound: Option<MeshOutbound>,
}

/// `networking.outbound`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MeshOutbound {
    /// Unset = true.
    pub passthrough: Option<bool>,
}

/// `routing`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Routing {
    /// Prefer the own zone.
    pub locality_aware_load_balancing: bool,
    /// Through the zone egress.
    pub zone_egress: bool,
    /// Deny MeshExternalServices by default.
    pub default_forbid_mesh_external_service_access: bool,
}

/// Whether MeshServices are generated and used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum MeshServicesMode {
    /// Not at all.
    #[default]
    Disabled,
    /// Beside legacy services.
    Everywhere,
    /// Only where reachable backends name them.
    ReachableBackends,
    /// Instead of legacy services.
    Exclusive,
}

/// `meshServices`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MeshServices {
    /// Mode.
    pub mode: MeshServicesMode,
}

impl View for Mesh {
    const KIND: Kind = Kind::Mesh;
}

impl Mesh {
    /// The enabled CA backend.
    pub fn enabled_backend(&self) -> Option<&CaBackend> {
        let m = self.mtls.as_ref()?;
        if m.enabled_backend.is_empty() {
            return None;
        }
        m.backends.iter().find(|b| b.name == m.enabled_backend)
    }
    /// mTLS is on.
    pub fn mtls_enabled(&self) -> bool {
        self.enabled_backend().is_some()
    }
    /// Outbound passthrough, default true.
    pub fn passthrough(&self) -> bool {
        self.networking.as_ref().and_then(|n| n.outbound.as_ref()).and_then(|o| o.passthrough).unwrap_or(true)
    }
}

/// Name of the Secret with a builtin backend's CA certificate.
pub fn builtin_ca_cert_secret(mesh: &str, backend: &str) -> String {
    format!("{mesh}.ca-builtin-cert-{backend}")
}

/// Name of the Secret with a builtin backend's CA key.
pub fn builtin_ca_key_secret(mesh: &str, backend: &str) -> String {
    format!("{mesh}.ca-builtin-key-{backend}")
}

/// A span with one unit, `^(\d+)(y|w|d|h|m|s|ms)$`, or `0`. A year has 365 days. `None` when it is not of that form or too long.
pub fn parse_lifetime(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        "y" => 365 * 86_400_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(millis).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        for (text, secs) in [("0", 0), ("0s", 0), ("1d", 86_400), ("2y", 2 * 365 * 86_400), ("1w", 604_800), ("5000ms", 5)] {
            assert_eq!(parse_lifetime(text), Some(Duration::from_secs(secs)), "{text}");
        }
        for bad in ["", "1", "d", "1d2h", "-1d", "1.5h", "99999999999999999999y", "9999999999999999y"] {
            assert_eq!(parse_lifetime(bad), None, "{bad}");
        }
    }
}
