//! Typed view of a MeshService's canonical spec and status (reference: Kuma 2.14.3 REST contract, §8.6).

use crate::{kind::Kind, resource::View};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A service of a mesh.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshService {
    /// `Available` or `Unavailable`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Which dataplanes serve it.
    pub selector: Selector,
    /// Ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Identities of its instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<Identity>,
}

/// At most one of its fields is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Selector {
    /// By inbound tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_tags: Option<BTreeMap<String, String>>,
    /// By name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_ref: Option<DataplaneRef>,
    /// By labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_labels: Option<LabelSelector>,
}

/// A dataplane by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataplaneRef {
    /// Name.
    pub name: String,
}

/// `matchLabels`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// All must be equal.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// Number or name of an inbound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// Inbound port.
    Number(u32),
    /// Inbound name.
    Name(String),
}

/// `spec.ports[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    /// Name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Port.
    pub port: u32,
    /// Inbound it leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// Protocol, default tcp.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app_protocol: String,
}

/// `spec.identities[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// `ServiceTag` or `SpiffeID`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Value.
    pub value: String,
}

/// `status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshServiceStatus {
    /// Virtual IPs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<Vip>,
    /// TLS readiness.
    pub tls: TlsStatus,
}

/// `status.vips[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vip {
    /// Address.
    pub ip: String,
}

/// `status.tls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsStatus {
    /// `Ready` or `NotReady`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
}

impl View for MeshService {
    const KIND: Kind = Kind::MeshService;
}

impl Port {
    /// Section: the port's name, else its number.
    pub fn section(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }
    /// Protocol, default tcp.
    pub fn protocol(&self) -> &str {
        if self.app_protocol.is_empty() { "tcp" } else { &self.app_protocol }
    }
}
