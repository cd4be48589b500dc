//! Kinds with a `spec` body: their schemas, validators and deprecation warnings, and typed readings of their confs
//! (reference: Kuma 2.14.3 policy contract, §1.1–1.3, 3.5, 4).
//!
//! A kind is a [`KindSpec`]: a schema (data) and a validator on the canonical spec. Shared parts: [`target_ref`], [`matches`],
//! [`common`].

pub mod circuit_breaker;
pub mod common;
pub mod http_route;
pub mod matches;
pub mod mesh_service;
pub mod retry;
pub mod target_ref;
pub mod timeout;
pub mod traffic_permission;

use crate::{
    go,
    kind::Kind,
    resource::Labels,
    schema::{self, Schema},
    violation::{Violation, Violations},
};
use serde_json::Value;

/// Who the resource is. With empty meta (`ValidateContext::default()`) rules on names do not fire; Kuma validates a body that way
/// before it knows whether the write creates or updates, and again with the real meta.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidateContext<'a> {
    /// Mesh, or "".
    pub mesh: &'a str,
    /// Name, or "".
    pub name: &'a str,
    /// Labels; `None` = none.
    pub labels: Option<&'a Labels>,
}

/// What is specific to a kind with a `spec` body.
pub struct KindSpec {
    /// The kind.
    pub kind: Kind,
    /// Schema of `spec`.
    pub schema: fn() -> &'static Schema,
    /// The kind's own rules, on a canonical spec. Paths start with `spec.` (or are `name`).
    pub validate: fn(&ValidateContext<'_>, &Value, &mut Violations),
    /// Deprecation warnings of a canonical spec.
    pub warnings: fn(&ValidateContext<'_>, &Value) -> Vec<String>,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecError {
    /// It does not decode; the text is the detail of a 400 `Bad Request`.
    Malformed(String),
    /// It breaks the schema or the kind's rules.
    Invalid(Vec<Violation>),
}

/// The registry; `None` for flat kinds and kinds that are not built yet.
pub fn kind_spec(kind: Kind) -> Option<&'static KindSpec> {
    KINDS.iter().copied().find(|k| k.kind == kind)
}

static KINDS: &[&KindSpec] =
    &[&http_route::KIND, &timeout::KIND, &traffic_permission::KIND, &circuit_breaker::KIND, &retry::KIND, &mesh_service::KIND];

/// Decodes the whole body of a write (`type`, `name`, `spec`, ...) as Kuma does before it looks at the meta: schema defaults, schema
/// checks, canonical form, the kind's validator with empty meta. Returns the canonical spec. `None` when `kind` has no [`KindSpec`].
///
/// A missing `mesh` means `default` (a schema default); reading it is the caller's part, as for the other meta fields.
pub fn decode_spec(kind: Kind, body: &Value) -> Option<Result<Value, SpecError>> {
    kind_spec(kind).map(|k| decode_with(k, body))
}

fn decode_with(kind: &KindSpec, body: &Value) -> Result<Value, SpecError> {
    let malformed = |error: &str| SpecError::Malformed(format!("invalid {} object: {}", kind.kind.name(), go::quote(error)));
    let Some(body) = body.as_object() else {
        return Err(malformed(&format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", go::json_type(body))));
    };
    let schema = (kind.schema)();
    let mut errors = Vec::new();
    check_envelope(kind.kind, body, &mut errors);
    let mut spec = body.get("spec").cloned();
    if let Some(spec) = &mut spec {
        schema.fill_defaults(spec);
        schema.check(spec, "spec", &mut errors);
    }
    let Some(mut spec) = spec.filter(|_| errors.is_empty()) else {
        return Err(SpecError::Invalid(errors.iter().map(|e| schema::violation(e)).collect()));
    };
    schema.canonicalize(&mut spec).map_err(|e| malformed(&e))?;
    let mut violations = Violations::new();
    (kind.validate)(&ValidateContext::default(), &spec, &mut violations);
    if violations.is_empty() { Ok(spec) } else { Err(SpecError::Invalid(violations.into_vec())) }
}

/// The part of a kind's schema that is the same for all: `type`, `mesh`, `name`, `labels`, times.
fn check_envelope(kind: Kind, body: &serde_json::Map<String, Value>, errors: &mut Vec<String>) {
    for (name, required) in
        [("type", true), ("name", true), ("spec", true), ("mesh", false), ("creationTime", false), ("modificationTime", false)]
    {
        match body.get(name) {
            // The path of the root is empty, its separator is written all the same.
            None if required => errors.push(format!(".{name} in body is required")),
            // A null mesh gets its default.
            None => {}
            Some(Value::Null) if name == "mesh" => {}
            Some(_) if name == "spec" => {}
            Some(v) => schema::text().check(v, name, errors),
        }
    }
    if let Some(Value::String(t)) = body.get("type")
        && t != kind.name()
    {
        errors.push(format!("type in body should be one of [{}]", kind.name()));
    }
    if let Some(labels) = body.get("labels") {
        schema::text_map().check(labels, "labels", errors);
    }
}
