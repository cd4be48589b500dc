//! Custom claims; they keep the field names of Kuma's Go structs.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Claims of one token kind.
pub trait Claims: Serialize + DeserializeOwned {}

/// Go writes an absent list or map as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A user of the REST API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UserClaims {
    /// Name of the user.
    pub name: String,
    /// Groups.
    #[serde(deserialize_with = "nullable")]
    pub groups: Vec<String>,
}

/// A data plane proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DataplaneClaims {
    /// Name of the Dataplane, empty = any.
    pub name: String,
    /// Mesh, empty = any.
    pub mesh: String,
    /// Allowed values per tag.
    #[serde(deserialize_with = "nullable")]
    pub tags: BTreeMap<String, Vec<String>>,
    /// `dataplane`, `ingress`, `egress` or empty; not checked on streams.
    #[serde(rename = "Type")]
    pub proxy_type: String,
    /// Value of the label `kuma.io/workload`, empty = not bound.
    pub workload: String,
}

/// A zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ZoneClaims {
    /// Name of the zone, empty = any.
    pub zone: String,
    /// `ingress`, `egress`, `cp`.
    #[serde(deserialize_with = "nullable")]
    pub scope: Vec<String>,
}

impl Claims for UserClaims {}
impl Claims for DataplaneClaims {}
impl Claims for ZoneClaims {}
