//! From a REST body to a canonical spec, and the rules on it (reference: Kuma 2.14.3 REST contract, §3.1).
//!
//! A PUT is: [`parse`] the bytes → [`decode`] (shape, defaults, schema, the kind's own validator with empty meta: step 3) →
//! checks of the meta data against the path and the labels (step 5: [`crate::ident`], [`crate::labels`]) → labels computed →
//! [`default_spec`] → [`validate`] with the real meta (step 7). [`warnings`] go into the answer.

use crate::{
    flat, go, go_json, ident,
    kind::Kind,
    labels::DISPLAY_NAME,
    policy::{self, SpecError, ValidateContext},
    resource::{Json, Labels},
    time::Timestamp,
    violation::{Violation, Violations},
};
use serde_json::Value;

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// `type` of the body, "" when absent. It may differ from the kind of the path: step 5 refuses that.
    pub type_name: String,
    /// `name` of the body, "" when absent.
    pub name: String,
    /// `mesh` of the body. Kinds with `spec` take `default` when it is absent (schema default).
    pub mesh: Option<String>,
    /// `labels` of the body.
    pub labels: Labels,
    /// Canonical spec.
    pub spec: Json,
}

/// Why a body was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// 400, title `Bad Request`; the text is the detail.
    #[error("{0}")]
    Malformed(String),
    /// 400, title `Could not process a resource`, detail `Resource is not valid`.
    #[error("resource is not valid: {}", .0.iter().map(Violation::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    /// 501: the kind is known, but this version does not handle it.
    #[error("resources of type {0} are not supported by this version")]
    NotImplemented(Kind),
}

/// Whether [`decode`] and [`validate`] know the kind.
pub fn is_implemented(kind: Kind) -> bool {
    flat::flat_kind(kind).is_some() || policy::kind_spec(kind).is_some()
}

/// Reads the bytes of a body as JSON. The error is `Malformed` with Go's text for the syntax error.
pub fn parse(kind: Kind, body: &[u8]) -> Result<Value, DecodeError> {
    // What Go reads and this does not: texts that are no UTF-8 and nesting deeper than 128.
    serde_json::from_slice(body).map_err(|e| malformed(kind, &go_json::syntax_error(body).unwrap_or_else(|| e.to_string())))
}

/// Step 3 of a PUT. Also what a client does before it sends.
pub fn decode(kind: Kind, body: &Value) -> Result<Decoded, DecodeError> {
    let spec = match flat::flat_kind(kind) {
        Some(flat) => {
            // Meta data come first: so do their errors.
            Meta::read(body).map_err(|e| malformed(kind, &e))?;
            let spec = flat.canonicalize(body).map_err(|e| malformed(kind, &e))?;
            let mut out = Violations::new();
            (flat.validate)(&ValidateContext::default(), &spec, &mut out);
            if !out.is_empty() {
                return Err(DecodeError::Invalid(out.into_vec()));
            }
            spec
        }
        None => match policy::decode_spec(kind, body).ok_or(DecodeError::NotImplemented(kind))? {
            Ok(spec) => spec,
            Err(SpecError::Malformed(detail)) => return Err(DecodeError::Malformed(detail)),
            Err(SpecError::Invalid(violations)) => {
                let mut bounded = Violations::new();
                bounded.extend(violations);
                return Err(DecodeError::Invalid(bounded.into_vec()));
            }
        },
    };
    let meta = Meta::read(body).map_err(|e| malformed(kind, &e))?;
    let mesh = match meta.mesh {
        None if kind.is_mesh_scoped() && kind.descriptor().is_plugin() => Some(DEFAULT_MESH.to_owned()),
        mesh => mesh,
    };
    Ok(Decoded { type_name: meta.type_name, name: meta.name, mesh, labels: meta.labels, spec: Json::from_value(&spec) })
}

/// Mesh of a body that names none, for kinds with `spec` (a default of their schema).
pub const DEFAULT_MESH: &str = "default";

/// Defaults that the control plane fills into a canonical spec before it validates and stores it (step 7). Kinds whose defaults come
/// from their schema are complete after [`decode`] already.
pub fn default_spec(kind: Kind, spec: Value) -> Value {
    match flat::flat_kind(kind).and_then(|f| f.default) {
        Some(fill) => fill(spec),
        None => spec,
    }
}

/// The kind's validator with the real meta data (step 7). `spec` is canonical. Empty for kinds that are not implemented.
pub fn validate(kind: Kind, mesh: &str, name: &str, labels: &Labels, spec: &Value) -> Vec<Violation> {
    let ctx = ValidateContext { mesh, name, labels: Some(labels) };
    let mut out = Violations::new();
    if let Some(flat) = flat::flat_kind(kind) {
        (flat.validate)(&ctx, spec, &mut out);
    } else if let Some(k) = policy::kind_spec(kind) {
        (k.validate)(&ctx, spec, &mut out);
    }
    out.into_vec()
}

/// Deprecation warnings for the answer to a PUT (§2.4). `spec` is canonical.
pub fn warnings(kind: Kind, mesh: &str, name: &str, labels: &Labels, spec: &Value) -> Vec<String> {
    if let Some(k) = policy::kind_spec(kind) {
        return (k.warnings)(&ValidateContext { mesh, name, labels: Some(labels) }, spec);
    }
    let display_name = labels.get(DISPLAY_NAME).filter(|n| !n.is_empty()).map_or(name, String::as_str);
    match kind {
        Kind::Mesh | Kind::Zone => ident::dns1035_warning(kind, display_name).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn malformed(kind: Kind, error: &str) -> DecodeError {
    DecodeError::Malformed(format!("invalid {kind} object: {}", go::quote(error)))
}

/// Meta data of a body (§2.1).
struct Meta {
    type_name: String,
    name: String,
    mesh: Option<String>,
    labels: Labels,
}

impl Meta {
    fn read(body: &Value) -> Result<Meta, String> {
        let Value::Object(map) = body else {
            return Err(format!("json: cannot unmarshal {} into Go value of type v1alpha1.ResourceMeta", go::json_type(body)));
        };
        let text = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(other) => Err(field_error(other, key, "string")),
        };
        for key in ["creationTime", "modificationTime"] {
            if let Some(t) = text(key)? {
                Timestamp::parse(&t)
                    .map_err(|_| format!("parsing time {0} as \"2006-01-02T15:04:05Z07:00\": cannot parse {0}", go::quote(&t)))?;
            }
        }
        let mut labels = Labels::new();
        match map.get("labels") {
            None | Some(Value::Null) => {}
            Some(Value::Object(m)) => {
                for (k, v) in m {
                    let v = match v {
                        Value::String(s) => s.clone(),
                        Value::Null => String::new(),
                        other => return Err(field_error(other, "labels", "string")),
                    };
                    labels.insert(k.clone(), v);
                }
            }
            Some(other) => return Err(field_error(other, "labels", "map[string]string")),
        }
        Ok(Meta {
            type_name: text("type")?.unwrap_or_default(),
            name: text("name")?.unwrap_or_default(),
            mesh: text("mesh")?.filter(|m| !m.is_empty()),
            labels,
        })
    }
}

fn field_error(value: &Value, field: &str, want: &str) -> String {
    format!("json: cannot unmarshal {} into Go struct field ResourceMeta.{field} of type {want}", go::json_type(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn malformed_detail(kind: Kind, body: Value) -> String {
        match decode(kind, &body) {
            Err(DecodeError::Malformed(detail)) => detail,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn details_of_malformed_bodies() {
        assert_eq!(
            parse(Kind::MeshTimeout, b"{not json").unwrap_err(),
            DecodeError::Malformed(
                r#"invalid MeshTimeout object: "invalid character 'n' looking for beginning of object key string""#.to_owned()
            )
        );
        for (body, error) in [
            (json!([]), r#""json: cannot unmarshal array into Go value of type v1alpha1.ResourceMeta""#),
            (json!({"name": 4}), r#""json: cannot unmarshal number into Go struct field ResourceMeta.name of type string""#),
            (json!({"labels": []}), r#""json: cannot unmarshal array into Go struct field ResourceMeta.labels of type map[string]string""#),
            (json!({"labels": {"a": 1}}), r#""json: cannot unmarshal number into Go struct field ResourceMeta.labels of type string""#),
            (
                json!({"networking": {"inbound": [{"state": "Odd"}]}}),
                r#""unknown value \"\\\"Odd\\\"\" for enum kuma.mesh.v1alpha1.Dataplane.Networking.Inbound.State""#,
            ),
        ] {
            assert_eq!(malformed_detail(Kind::Dataplane, body), format!("invalid Dataplane object: {error}"));
        }
        assert!(malformed_detail(Kind::Mesh, json!({"creationTime": "yesterday"})).contains(r#"parsing time \"yesterday\" as"#));
    }

    #[test]
    fn meta_and_spec() {
        let body = json!({
            "type": "Dataplane", "name": "dp", "mesh": "m", "labels": {"a": "b"}, "creationTime": "0001-01-01T00:00:00Z", "kri": "ignored",
            "networking": {"address": "10.0.0.1", "inbound": [{"port": 80, "service_port": "8080", "tags": {"kuma.io/service": "s"}}]},
        });
        let d = decode(Kind::Dataplane, &body).unwrap();
        assert_eq!((d.type_name.as_str(), d.name.as_str(), d.mesh.as_deref()), ("Dataplane", "dp", Some("m")));
        assert_eq!(d.labels, Labels::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(
            d.spec.value(),
            &json!({"networking": {
                "address": "10.0.0.1", "inbound": [{"port": 80, "servicePort": 8080, "tags": {"kuma.io/service": "s"}}]
            }})
        );
        let must_be_defined = [Violation::new("networking", "must be defined")];
        // Only kinds with `spec` have a default mesh.
        assert_eq!(decode(Kind::Secret, &json!({"type": "Secret", "name": "s"})).unwrap().mesh, None);
        let item = json!({"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1h"}});
        let policy = json!({"type": "MeshTimeout", "name": "t", "spec": {"to": [item]}});
        assert_eq!(decode(Kind::MeshTimeout, &policy).unwrap().mesh.as_deref(), Some(DEFAULT_MESH));
        assert_eq!(decode(Kind::TrafficRoute, &json!({})), Err(DecodeError::NotImplemented(Kind::TrafficRoute)));
        assert!(matches!(decode(Kind::Dataplane, &json!({})), Err(DecodeError::Invalid(v)) if v[..] == must_be_defined));
    }

    #[test]
    fn real_meta() {
        let (none, empty) = (Labels::new(), json!({}));
        // CA backends are looked at when the name is known.
        let spec = json!({"mtls": {"backends": [{"name": "b", "type": "vault"}]}});
        assert!(validate(Kind::Mesh, "", "", &none, &spec).is_empty());
        assert_eq!(validate(Kind::Mesh, "", "m", &none, &spec).len(), 1);
        assert!(warnings(Kind::Mesh, "", "m", &none, &empty).is_empty());
        assert!(warnings(Kind::Mesh, "", "a.a", &none, &empty).iter().any(|w| w.starts_with("Invalid Mesh resource name: 'a.a'.")));
        let named = Labels::from([(DISPLAY_NAME.to_owned(), "fine".to_owned())]);
        assert!(warnings(Kind::Zone, "", "1.x", &named, &empty).is_empty());
        assert!(warnings(Kind::Secret, "m", "1.x", &none, &empty).is_empty());
    }
}
