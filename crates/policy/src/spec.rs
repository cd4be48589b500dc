//! What all targetRef policies have in common (reference: Kuma 2.14.3 policy contract, §1.2): the parsed form is cached with the
//! stored version, confs stay JSON and are shared.

use ikada_model::{Kind, Resource, View, labels};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// Tags or labels.
pub type Tags = BTreeMap<String, String>;

/// `targetRef.kind`. The order is the precedence of top-level kinds, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Deserialize)]
#[allow(missing_docs)]
pub enum RefKind {
    #[default]
    Mesh,
    Dataplane,
    MeshSubset,
    MeshGateway,
    MeshService,
    MeshExternalService,
    MeshMultiZoneService,
    MeshServiceSubset,
    MeshHTTPRoute,
    /// A text that is none of them; such a reference selects nothing.
    #[serde(other)]
    Unknown,
}

impl RefKind {
    /// As written in specs; `""` for unknown ones.
    pub fn as_str(self) -> &'static str {
        match self {
            RefKind::Mesh => "Mesh",
            RefKind::Dataplane => "Dataplane",
            RefKind::MeshSubset => "MeshSubset",
            RefKind::MeshGateway => "MeshGateway",
            RefKind::MeshService => "MeshService",
            RefKind::MeshExternalService => "MeshExternalService",
            RefKind::MeshMultiZoneService => "MeshMultiZoneService",
            RefKind::MeshServiceSubset => "MeshServiceSubset",
            RefKind::MeshHTTPRoute => "MeshHTTPRoute",
            RefKind::Unknown => "",
        }
    }
    /// The resource kind that such a reference resolves to; `None` for the tag-only kinds and for MeshGateway and Dataplane,
    /// which are never destinations.
    pub fn destination(self) -> Option<Kind> {
        match self {
            RefKind::Mesh => Some(Kind::Mesh),
            RefKind::MeshService => Some(Kind::MeshService),
            RefKind::MeshExternalService => Some(Kind::MeshExternalService),
            RefKind::MeshMultiZoneService => Some(Kind::MeshMultiZoneService),
            RefKind::MeshHTTPRoute => Some(Kind::MeshHTTPRoute),
            _ => None,
        }
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// `targetRef`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TargetRef {
    /// Kind.
    pub kind: RefKind,
    /// Display name; empty when unset.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Namespace; empty when unset.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// Labels; empty when unset.
    #[serde(deserialize_with = "or_default")]
    pub labels: Tags,
    /// Tags; empty when unset.
    #[serde(deserialize_with = "or_default")]
    pub tags: Tags,
    /// Inbound name or port name; empty when unset.
    #[serde(deserialize_with = "or_default")]
    pub section_name: String,
    /// `Sidecar`, `Gateway`; empty = both.
    #[serde(deserialize_with = "or_default")]
    pub proxy_types: Vec<String>,
}

/// A reference to a destination in a conf (reference: §1.14).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    /// The destination.
    #[serde(flatten)]
    pub target: TargetRef,
    /// Share of the traffic; unset = 1.
    pub weight: Option<u32>,
    /// Port; unset = not given.
    pub port: Option<u32>,
}

/// `to[]` or `from[]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// Whom it speaks about.
    pub target_ref: TargetRef,
    /// `default`; for route policies the item without its targetRef (`hostnames`, `rules`).
    pub conf: Arc<Value>,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut m = Map::<String, Value>::deserialize(d)?;
        let target_ref = match m.remove("targetRef") {
            None | Some(Value::Null) => TargetRef::default(),
            Some(v) => TargetRef::deserialize(v).map_err(serde::de::Error::custom)?,
        };
        let conf = match m.remove("default") {
            Some(conf) => conf,
            None => Value::Object(m),
        };
        Ok(Item { target_ref, conf: Arc::new(conf) })
    }
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
pub enum MatchType {
    /// Equal.
    Exact,
    /// Begins with.
    Prefix,
}

/// `{type, value}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct ValueMatch {
    /// How.
    #[serde(rename = "type")]
    pub kind: MatchType,
    /// With what.
    pub value: String,
}

/// `rules[].matches[]`: both parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Match {
    /// Identity of the client.
    #[serde(rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<ValueMatch>,
    /// Server name that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<ValueMatch>,
}

/// `rules[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuleItem {
    /// Any of them must hold; empty = all traffic.
    #[serde(deserialize_with = "or_default")]
    pub matches: Vec<Match>,
    /// Conf.
    pub default: Arc<Value>,
}

/// Spec of a targetRef policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicySpec {
    /// Absent = `{kind: Mesh}`.
    #[serde(deserialize_with = "or_default")]
    pub target_ref: TargetRef,
    /// Outbound confs.
    #[serde(deserialize_with = "or_default")]
    pub to: Vec<Item>,
    /// Inbound confs by client.
    #[serde(deserialize_with = "or_default")]
    pub from: Vec<Item>,
    /// Inbound confs by match.
    #[serde(deserialize_with = "or_default")]
    pub rules: Vec<RuleItem>,
    /// The conf of kinds without lists.
    pub default: Option<Arc<Value>>,
}

impl View for PolicySpec {
    const KIND: Kind = Kind::MeshHTTPRoute;
    fn reads(kind: Kind) -> bool {
        kind.is_target_ref_policy()
    }
}

/// `kuma.io/policy-role`. The order is the precedence, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Also the default.
    System,
    /// Made by the owner of a destination for its clients.
    Producer,
    /// Made by a client's namespace for its own outbounds.
    Consumer,
    /// Made by a namespace for its own workloads.
    WorkloadOwner,
}

/// Role of a policy; an unknown text counts as `system`.
pub fn role(policy: &Resource) -> Role {
    match policy.label(labels::POLICY_ROLE) {
        Some("producer") => Role::Producer,
        Some("consumer") => Role::Consumer,
        Some("workload-owner") => Role::WorkloadOwner,
        _ => Role::System,
    }
}

/// Label `kuma.io/effect: shadow`.
pub fn is_shadow(policy: &Resource) -> bool {
    policy.label(labels::EFFECT) == Some("shadow")
}
