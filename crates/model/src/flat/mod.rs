//! Kinds whose spec lies at the top level of the body as protobuf JSON (reference: Kuma 2.14.3 REST contract, §2.2 and §8).
//!
//! A kind is a table of fields ([`proto::Message`]), a validator and, for a few, defaults: see [`FlatKind`].

pub mod ca;
pub mod checks;
pub mod dataplane;
pub mod insight;
pub mod mesh;
pub mod metrics;
pub mod proto;

use crate::{kind::Kind, policy::ValidateContext, rest::META_KEYS, violation::Violations};
use serde_json::{Map, Value};

/// One flat kind.
pub struct FlatKind {
    /// Fields of the spec.
    pub message: &'static proto::Message,
    /// Its own rules, on a canonical spec.
    pub validate: fn(&ValidateContext<'_>, &Value, &mut Violations),
    /// Defaults filled in before a spec is stored, on a canonical spec.
    pub default: Option<fn(Value) -> Value>,
}

impl FlatKind {
    /// The canonical spec of a body, see [`proto::canonicalize`]. Meta data never count as fields.
    pub fn canonicalize(&self, body: &Value) -> Result<Value, String> {
        let fields: Map<String, Value> = match body {
            Value::Object(m) => m.iter().filter(|(k, _)| !META_KEYS.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect(),
            _ => Map::new(),
        };
        proto::canonicalize(self.message, &Value::Object(fields))
    }
}

const fn no_rules(_: &ValidateContext<'_>, _: &Value, _: &mut Violations) {}

/// The table of a kind; `None` when it is not flat or not implemented.
pub fn flat_kind(kind: Kind) -> Option<&'static FlatKind> {
    static MESH: FlatKind = FlatKind { message: &mesh::MESH, validate: mesh::validate, default: Some(mesh::default_spec) };
    static DATAPLANE: FlatKind = FlatKind { message: &dataplane::DATAPLANE, validate: dataplane::validate, default: None };
    static DATAPLANE_INSIGHT: FlatKind = FlatKind { message: &insight::DATAPLANE_INSIGHT, validate: no_rules, default: None };
    static ZONE: FlatKind = FlatKind { message: &system::ZONE, validate: no_rules, default: None };
    static ZONE_INSIGHT: FlatKind = FlatKind { message: &insight::ZONE_INSIGHT, validate: no_rules, default: None };
    static SECRET: FlatKind = FlatKind { message: &system::SECRET, validate: no_rules, default: None };
    static CONFIG: FlatKind = FlatKind { message: &system::CONFIG, validate: no_rules, default: None };
    match kind {
        Kind::Mesh => Some(&MESH),
        Kind::Dataplane => Some(&DATAPLANE),
        Kind::DataplaneInsight => Some(&DATAPLANE_INSIGHT),
        Kind::Zone => Some(&ZONE),
        Kind::ZoneInsight => Some(&ZONE_INSIGHT),
        Kind::Secret | Kind::GlobalSecret => Some(&SECRET),
        Kind::Config => Some(&CONFIG),
        _ => None,
    }
}

/// Zone, secrets and control-plane state (§8.4). They have no rules of their own.
mod system {
    use super::proto::{Message, Type, field};

    /// `enabled` unset = true.
    pub static ZONE: Message = Message { name: "kuma.system.v1alpha1.Zone", fields: &[field("enabled", Type::BoolValue)] };
    pub static SECRET: Message = Message { name: "kuma.system.v1alpha1.Secret", fields: &[field("data", Type::BytesValue)] };
    pub static CONFIG: Message = Message { name: "kuma.system.v1alpha1.Config", fields: &[field("config", Type::String)] };
}
