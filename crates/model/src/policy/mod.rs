//! Kinds with a `spec` body: their schemas, validators and deprecation warnings, and typed readings of their confs
//! (reference: Kuma 2.14.3 policy contract, §1.1–1.3, 3.5, 4).
//!
//! A kind is a [`KindSpec`]: a schema (data) and a validator on the canonical spec. Shared parts: [`target_ref`], [`mod@matches`],
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
#[derive(Debug)]
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

/// The canonical form of a spec without any check: schema defaults filled, unknown fields dropped, durations and numbers as Go writes
/// them. For specs that are stored as they are (bundles) and for comparisons. A kind without [`KindSpec`] keeps its spec. Errors with Go's
/// text where the typed decoding would fail.
pub fn canonical_spec(kind: Kind, spec: &Value) -> Result<Value, String> {
    let mut spec = spec.clone();
    if let Some(k) = kind_spec(kind) {
        let schema = (k.schema)();
        schema.fill_defaults(&mut spec);
        schema.canonicalize(&mut spec)?;
    }
    Ok(spec)
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
    if violations.is_empty() {
        return Ok(spec);
    }
    let mut found = violations.into_vec();
    found.truncate(schema::MAX_ERRORS);
    Err(SpecError::Invalid(found))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, resource::Json};
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::{Map, json};

    fn body(kind: Kind, spec: &Value) -> Value {
        json!({"type": kind.name(), "mesh": "default", "name": "x", "spec": spec})
    }

    /// What the typed reading of a kind writes back.
    fn through_types(kind: Kind, spec: &Value) -> Value {
        fn through<T: serde::de::DeserializeOwned + serde::Serialize>(v: &Value) -> Value {
            serde_json::to_value(T::deserialize(v).unwrap()).unwrap()
        }
        match kind {
            Kind::MeshTimeout => through::<timeout::MeshTimeout>(spec),
            Kind::MeshRetry => through::<retry::MeshRetry>(spec),
            Kind::MeshCircuitBreaker => through::<circuit_breaker::MeshCircuitBreaker>(spec),
            Kind::MeshTrafficPermission => through::<traffic_permission::MeshTrafficPermission>(spec),
            Kind::MeshHTTPRoute => through::<http_route::MeshHTTPRoute>(spec),
            Kind::MeshService => through::<crate::MeshService>(spec),
            other => panic!("no types for {other}"),
        }
    }

    /// Every field of every schema has a place in the typed form, under the same name.
    #[test]
    fn types_know_all_fields_of_the_schemas() {
        for k in KINDS {
            let example = (k.schema)().example();
            let mut errors = Vec::new();
            (k.schema)().check(&example, "spec", &mut errors);
            assert_eq!(errors, Vec::<String>::new(), "{}", k.kind);
            assert_eq!(canonical_spec(k.kind, &example).unwrap(), example, "{}", k.kind);
            assert_eq!(through_types(k.kind, &example), example, "{}", k.kind);
        }
    }

    #[test]
    fn envelope() {
        let invalid = |v: Value| match decode_spec(Kind::MeshTimeout, &v) {
            Some(Err(SpecError::Invalid(v))) => v.into_iter().map(|v| (v.field, v.message)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let found = invalid(json!({"type": "MeshRetry", "mesh": 1, "labels": {"a": 1}}));
        let all: Vec<&str> = found.iter().map(|(f, m)| if f.is_empty() { m.as_str() } else { f.as_str() }).collect();
        assert_eq!(
            all,
            [
                ".name in body is required",
                ".spec in body is required",
                "mesh in body must be of type string: \"number\"",
                "type in body should be one of [MeshTimeout]",
                "labels.a in body must be of type string: \"number\"",
            ]
        );
        let spec = json!({"targetRef": {"kind": "Nope"}, "to": 1});
        let found = invalid(body(Kind::MeshTimeout, &spec));
        let kinds = "in body should be one of [Mesh MeshSubset MeshGateway MeshService MeshExternalService MeshMultiZoneService \
                     MeshServiceSubset MeshHTTPRoute Dataplane]";
        assert_eq!(
            found,
            [
                ("spec.targetRef.kind".to_owned(), kinds.to_owned()),
                ("spec.to".to_owned(), "in body must be of type array: \"number\"".to_owned()),
            ]
        );
    }

    #[test]
    fn what_types_refuse_is_malformed() {
        let spec = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1x"}}]});
        assert_eq!(
            decode_spec(Kind::MeshTimeout, &body(Kind::MeshTimeout, &spec)),
            Some(Err(SpecError::Malformed(r#"invalid MeshTimeout object: "time: unknown unit \"x\" in duration \"1x\"""#.to_owned())))
        );
    }

    #[test]
    fn stored_form() {
        let spec = json!({
            "to": [{"default": {"connectionTimeout": "90s", "nope": 1}, "targetRef": {"kind": "Mesh", "weight": 2}}], "status": {}
        });
        let Some(Ok(stored)) = decode_spec(Kind::MeshTimeout, &body(Kind::MeshTimeout, &spec)) else { panic!() };
        assert_eq!(stored, json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1m30s"}}]}));
        let a = Json::from_value(&stored);
        let b = Json::from_value(&json!({"to": [{"default": {"connectionTimeout": "1m30s"}, "targetRef": {"kind": "Mesh"}}]}));
        assert_eq!(a.text(), b.text());
    }

    /// Words that schemas know, so that arbitrary values come past the outermost checks.
    fn word() -> impl Strategy<Value = String> {
        const WORDS: &str = "type mesh name spec labels targetRef kind to from rules default matches path value method headers \
            queryParams filters backendRefs urlRewrite requestRedirect hostname port statusCode weight tags proxyTypes sectionName \
            http tcp grpc retryOn backOff baseInterval hostSelection predicate connectionTimeout idleTimeout requestTimeout \
            outlierDetection detectors interval successRate standardDeviationFactor spiffeID sni allow deny action selector \
            dataplaneTags ports targetPort identities";
        const VALUES: &str = "Mesh MeshService Dataplane MeshGateway Exact PathPrefix GET / 1s 2h 0s -1s x 5xx 503 Allow \
            ReplacePrefixMatch URLRewrite RequestRedirect OmitPreviousPriorities Seconds spiffe://a/b";
        let all: Vec<String> = WORDS.split_whitespace().chain(VALUES.split_whitespace()).map(str::to_owned).collect();
        prop_oneof![8 => select(all), 1 => "\\PC{0,8}"]
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-2_i64..70_000).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            word().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec((word(), inner), 0..6).prop_map(|kv| Value::Object(kv.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    /// The full example of a kind with parts replaced by arbitrary values or removed.
    fn damaged(kind: &'static KindSpec) -> impl Strategy<Value = Value> {
        vec((any::<prop::sample::Index>(), prop::option::of(any_json())), 0..4).prop_map(move |changes| {
            let mut spec = (kind.schema)().example();
            for (index, new) in changes {
                let paths = pointers(&spec);
                let path = &paths[index.index(paths.len())];
                match (new, path.rsplit_once('/')) {
                    (None, Some((parent, key))) => {
                        if let Some(Value::Object(map)) = spec.pointer_mut(parent) {
                            map.remove(key);
                        }
                    }
                    (Some(v), _) => {
                        if let Some(place) = spec.pointer_mut(path) {
                            *place = v;
                        }
                    }
                    (None, None) => {}
                }
            }
            spec
        })
    }

    fn pointers(v: &Value) -> Vec<String> {
        let children: Vec<(String, &Value)> = match v {
            Value::Object(m) => m.iter().map(|(k, v)| (k.replace('~', "~0").replace('/', "~1"), v)).collect(),
            Value::Array(a) => a.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
            _ => Vec::new(),
        };
        let below = children.iter().flat_map(|(k, v)| pointers(v).into_iter().map(move |p| format!("/{k}{p}")));
        std::iter::once(String::new()).chain(below).collect()
    }

    fn kind_and_damaged() -> impl Strategy<Value = (&'static KindSpec, Value)> {
        select(KINDS.to_vec()).prop_flat_map(|k| (Just(k), damaged(k)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn arbitrary_bodies_never_panic(kind in select(KINDS.to_vec()), v in any_json()) {
            let _ = decode::decode(kind.kind, &v);
            let _ = decode::decode(kind.kind, &body(kind.kind, &v));
            // Data that bypassed the schema.
            let _ = decode::validate(kind.kind, "m", "n", &Labels::new(), &v);
            let _ = decode::warnings(kind.kind, "m", "n", &Labels::new(), &v);
        }

        #[test]
        fn damaged_specs((kind, spec) in kind_and_damaged()) {
            let decoded = decode::decode(kind.kind, &body(kind.kind, &spec));
            // Whatever passes the schema can be read as types, writes back the same, and is its own canonical form.
            let mut filled = spec.clone();
            (kind.schema)().fill_defaults(&mut filled);
            let mut errors = Vec::new();
            (kind.schema)().check(&filled, "spec", &mut errors);
            if let (true, Ok(canonical)) = (errors.is_empty(), canonical_spec(kind.kind, &spec)) {
                prop_assert_eq!(&canonical_spec(kind.kind, &canonical).unwrap(), &canonical);
                if kind.kind != Kind::MeshService {
                    prop_assert_eq!(&through_types(kind.kind, &canonical), &canonical);
                }
                let valid = decode::validate(kind.kind, "default", "x", &Labels::new(), &canonical).is_empty();
                prop_assert_eq!(valid, decoded.is_ok());
            } else {
                prop_assert!(decoded.is_err());
            }
        }
    }
}
