//! `targetRef` and `backendRef`: typed form, schema and rules (reference: Kuma 2.14.3 policy contract, §1.2, 1.14).

use crate::schema::{Int, Property, Schema, field, int, list, object, required, text, text_map};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a targetRef can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TargetRefKind {
    #[default]
    Mesh,
    MeshSubset,
    MeshGateway,
    MeshService,
    MeshExternalService,
    MeshMultiZoneService,
    MeshServiceSubset,
    MeshHTTPRoute,
    Dataplane,
}

impl TargetRefKind {
    /// All, in the order of the schema.
    pub const ALL: [TargetRefKind; 9] = [
        TargetRefKind::Mesh,
        TargetRefKind::MeshSubset,
        TargetRefKind::MeshGateway,
        TargetRefKind::MeshService,
        TargetRefKind::MeshExternalService,
        TargetRefKind::MeshMultiZoneService,
        TargetRefKind::MeshServiceSubset,
        TargetRefKind::MeshHTTPRoute,
        TargetRefKind::Dataplane,
    ];
    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            TargetRefKind::Mesh => "Mesh",
            TargetRefKind::MeshSubset => "MeshSubset",
            TargetRefKind::MeshGateway => "MeshGateway",
            TargetRefKind::MeshService => "MeshService",
            TargetRefKind::MeshExternalService => "MeshExternalService",
            TargetRefKind::MeshMultiZoneService => "MeshMultiZoneService",
            TargetRefKind::MeshServiceSubset => "MeshServiceSubset",
            TargetRefKind::MeshHTTPRoute => "MeshHTTPRoute",
            TargetRefKind::Dataplane => "Dataplane",
        }
    }
    /// MeshService, MeshExternalService, MeshMultiZoneService: kinds of destinations that are resources.
    pub fn is_destination(self) -> bool {
        matches!(self, TargetRefKind::MeshService | TargetRefKind::MeshExternalService | TargetRefKind::MeshMultiZoneService)
    }
}

/// Kinds of proxies that a targetRef of kind Mesh or MeshSubset can be narrowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ProxyType {
    Sidecar,
    Gateway,
}

/// A reference to proxies or destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Kind.
    pub kind: TargetRefKind,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Subset tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Kinds of proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_types: Option<Vec<ProxyType>>,
    /// Kubernetes namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Selects by labels instead of by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Inbound of a Dataplane or port of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

impl TargetRef {
    /// A targetRef of this kind alone.
    pub fn of(kind: TargetRefKind) -> Self {
        TargetRef { kind, ..TargetRef::default() }
    }
    /// Name or "".
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("")
    }
    /// Namespace or "".
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("")
    }
    /// Section name or "".
    pub fn section_name(&self) -> &str {
        self.section_name.as_deref().unwrap_or("")
    }
}

/// Where a route sends traffic. `weight` has the schema default 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendRef {
    /// The destination.
    #[serde(flatten)]
    pub target_ref: TargetRef,
    /// Share of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Port of the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
}

impl BackendRef {
    /// Weight, default 1.
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }
}

fn fields() -> Vec<Property> {
    vec![
        required("kind", text().one_of(&TargetRefKind::ALL.map(TargetRefKind::as_str))),
        field("name", text()),
        field("tags", text_map()),
        field("mesh", text()),
        field("proxyTypes", list(text().one_of(&["Sidecar", "Gateway"]))),
        field("namespace", text()),
        field("labels", text_map()),
        field("sectionName", text()),
    ]
}

/// Schema of a targetRef.
pub fn schema() -> Schema {
    object(fields())
}

/// Schema of a backendRef.
pub fn backend_ref_schema() -> Schema {
    let mut all = fields();
    all.push(field("weight", int(Int::U32).at_least(0).or(1)));
    all.push(field("port", int(Int::U32)));
    object(all)
}
