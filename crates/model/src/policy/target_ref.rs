//! `targetRef` and `backendRef`: typed form, schema and rules (reference: Kuma 2.14.3 policy contract, §1.2, 1.14).

use super::ValidateContext;
use crate::{
    labels,
    schema::{Int, Property, Schema, field, int, list, object, required, text, text_map},
    violation::{Path, Violations},
};
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

/// Name that Kubernetes' Gateway API controllers write for a backend they cannot resolve.
pub const UNRESOLVED_BACKEND: &str = "kuma.io/unresolved-backend";

/// What a policy kind accepts at one place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Kinds.
    pub kinds: &'a [TargetRefKind],
    /// MeshGateway may carry listener tags.
    pub gateway_tags: bool,
    /// The policy configures inbounds (`from` or `rules`), so a Dataplane may be narrowed to one.
    pub inbound: bool,
    /// A name that need not be well-formed.
    pub invalid_name: Option<&'a str>,
}

/// Checks a targetRef found at `path`.
pub fn validate(r: &TargetRef, path: &Path, allowed: &Allowed<'_>, out: &mut Violations) {
    use TargetRefKind as K;
    if !allowed.kinds.contains(&r.kind) {
        out.add(path.field("kind"), format!("value '{}' is not supported", r.kind.as_str()));
        return;
    }
    let has = |field: &str| match field {
        "name" => !r.name().is_empty(),
        "labels" => r.labels.as_ref().is_some_and(|l| !l.is_empty()),
        "tags" => r.tags.as_ref().is_some_and(|t| !t.is_empty()),
        "sectionName" => !r.section_name().is_empty(),
        "namespace" => !r.namespace().is_empty(),
        "proxyTypes" => r.proxy_types.is_some(),
        _ => r.mesh.as_ref().is_some_and(|m| !m.is_empty()),
    };
    let kind = r.kind.as_str();
    let forbidden = |fields: &[&str], out: &mut Violations| {
        for f in fields.iter().filter(|f| has(f)) {
            out.add(path.field(f), format!("must not be set with kind {kind}"));
        }
    };
    match r.kind {
        K::Mesh => {
            if has("name") {
                out.add(path.field("name"), format!("using name with kind {kind} is not yet supported"));
            }
            forbidden(&["mesh", "labels", "tags", "sectionName", "namespace"], out);
            proxy_types(r, path, out);
        }
        K::MeshSubset => {
            forbidden(&["mesh", "name", "labels", "sectionName", "namespace"], out);
            tags(r.tags.as_ref(), &path.field("tags"), false, out);
            proxy_types(r, path, out);
        }
        K::Dataplane => {
            forbidden(&["mesh", "tags", "proxyTypes"], out);
            well_formed_name(r, path, allowed, out);
            if has("labels") && (has("name") || has("namespace")) {
                out.add(path.field("labels"), "either labels or name and namespace must be specified");
            }
            if has("sectionName") && !allowed.inbound {
                out.add(path.field("sectionName"), "can only be used with inbound policies");
            }
        }
        K::MeshService | K::MeshHTTPRoute => {
            forbidden(&["mesh", "tags", "proxyTypes"], out);
            if r.kind == K::MeshHTTPRoute {
                forbidden(&["sectionName"], out);
            }
            well_formed_name(r, path, allowed, out);
            name_or_labels(has("name"), has("labels"), kind, path, out);
            if has("labels") && (has("name") || has("namespace")) {
                out.add(path.field("labels"), "either labels or name and namespace must be specified");
            }
        }
        K::MeshExternalService => {
            forbidden(&["mesh", "tags", "sectionName", "proxyTypes"], out);
            well_formed_name(r, path, allowed, out);
            name_or_labels(has("name"), has("labels"), kind, path, out);
            if has("labels") && has("name") {
                out.add(path.field("labels"), "either labels or name must be specified");
            }
        }
        // Kuma checks nothing here, and neither do we: a stricter check would refuse what it accepts.
        K::MeshMultiZoneService => {}
        K::MeshServiceSubset | K::MeshGateway => {
            forbidden(&["mesh", "labels", "sectionName", "namespace", "proxyTypes"], out);
            well_formed_name(r, path, allowed, out);
            if !has("name") {
                out.add(path.field("name"), format!("must be set when kind is {kind}"));
            }
            if r.kind == K::MeshGateway && !allowed.gateway_tags {
                forbidden(&["tags"], out);
            } else {
                tags(r.tags.as_ref(), &path.field("tags"), true, out);
            }
        }
    }
}

/// Kinds that a policy accepts at the top level: `always`, and `system` only for policies with role `system` (on Universal all are).
#[derive(Clone, Copy, Debug)]
pub struct TopLevel<'a> {
    /// Whatever the role.
    pub always: &'a [TargetRefKind],
    /// With role `system` only.
    pub system: &'a [TargetRefKind],
    /// See [`Allowed`].
    pub gateway_tags: bool,
}

/// Checks the optional `spec.targetRef`.
pub fn validate_top(ctx: &ValidateContext<'_>, r: Option<&TargetRef>, top: &TopLevel<'_>, inbound: bool, out: &mut Violations) {
    let Some(r) = r else { return };
    let mut kinds = top.always.to_vec();
    if ctx.labels.and_then(|l| l.get(labels::POLICY_ROLE)).is_none_or(|role| role == "system") {
        kinds.extend(top.system);
    }
    let allowed = Allowed { kinds: &kinds, gateway_tags: top.gateway_tags, inbound, invalid_name: None };
    validate(r, &Path::of("spec.targetRef"), &allowed, out);
}

/// Warning about the kind of a top-level targetRef.
pub fn top_level_warning(r: Option<&TargetRef>) -> Option<String> {
    use TargetRefKind as K;
    match r?.kind {
        kind @ (K::MeshService | K::MeshServiceSubset | K::MeshSubset) => {
            Some(format!("{} value for 'targetRef.kind' is deprecated, use Dataplane with labels instead", kind.as_str()))
        }
        K::MeshHTTPRoute => {
            Some("MeshHTTPRoute value for 'targetRef.kind' is deprecated, use MeshHTTPRoute in spec.to[].targetRef".to_owned())
        }
        _ => None,
    }
}

fn proxy_types(r: &TargetRef, path: &Path, out: &mut Violations) {
    if r.proxy_types.as_ref().is_some_and(Vec::is_empty) {
        out.add(path.field("proxyTypes"), "must be undefined or have at least one element");
    }
}

fn name_or_labels(name: bool, labels: bool, kind: &str, path: &Path, out: &mut Violations) {
    if !name && !labels {
        out.add(path, format!("name or labels must be set when kind is {kind}"));
    }
}

fn well_formed_name(r: &TargetRef, path: &Path, allowed: &Allowed<'_>, out: &mut Violations) {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !r.name().bytes().all(ok) && allowed.invalid_name != Some(r.name()) {
        out.add(path.field("name"), "invalid characters: must consist of lower case alphanumeric characters, '-', '.' and '_'.");
    }
}

/// Tags of a reference; `selector` values may be `*` and may hold slashes.
fn tags(tags: Option<&BTreeMap<String, String>>, path: &Path, selector: bool, out: &mut Violations) {
    let common = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    for (key, value) in tags.into_iter().flatten() {
        if key.is_empty() {
            out.add(path, "tag name must be non-empty");
        }
        let at = path.key(key);
        if !key.bytes().all(|b| common(b) || b == b'/') {
            out.add(&at, "tag name must consist of alphanumeric characters, dots, dashes, slashes and underscores");
        }
        if value.is_empty() {
            out.add(&at, "tag value must be non-empty");
        }
        if selector {
            if value != "*" && !value.bytes().all(|b| common(b) || b == b'/') {
                out.add(&at, "tag value must consist of alphanumeric characters, dots, dashes, slashes and underscores or be \"*\"");
            }
        } else if !value.bytes().all(common) {
            out.add(&at, "tag value must consist of alphanumeric characters, dots, dashes and underscores");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(v: Value, allowed: &Allowed<'_>) -> Vec<(String, String)> {
        let r: TargetRef = serde_json::from_value(v).unwrap();
        let mut out = Violations::new();
        validate(&r, &Path::of("t"), allowed, &mut out);
        out.into_iter().map(|v| (v.field, v.message)).collect()
    }
    fn of(found: &[(&str, &str)]) -> Vec<(String, String)> {
        found.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn rules_per_kind() {
        let all = Allowed { kinds: &TargetRefKind::ALL, ..Allowed::default() };
        for good in [
            json!({"kind": "Mesh"}),
            json!({"kind": "Mesh", "proxyTypes": ["Sidecar"]}),
            json!({"kind": "MeshSubset", "tags": {"kuma.io/zone": "a"}}),
            json!({"kind": "Dataplane", "labels": {"a": "b"}}),
            json!({"kind": "Dataplane", "name": "x"}),
            json!({"kind": "MeshService", "name": "x", "sectionName": "http"}),
            json!({"kind": "MeshHTTPRoute", "labels": {"a": "b"}}),
            json!({"kind": "MeshExternalService", "name": "x", "namespace": "y"}),
            json!({"kind": "MeshMultiZoneService", "tags": {"": ""}, "mesh": "x"}),
            json!({"kind": "MeshServiceSubset", "name": "x", "tags": {"v": "*"}}),
            json!({"kind": "MeshGateway", "name": "x"}),
        ] {
            assert_eq!(check(good.clone(), &all), of(&[]), "{good}");
        }
        assert_eq!(
            check(json!({"kind": "Mesh", "name": "x", "tags": {"a": "b"}, "proxyTypes": []}), &all),
            of(&[
                ("t.name", "using name with kind Mesh is not yet supported"),
                ("t.tags", "must not be set with kind Mesh"),
                ("t.proxyTypes", "must be undefined or have at least one element"),
            ])
        );
        assert_eq!(
            check(json!({"kind": "Dataplane", "name": "X", "labels": {"a": "b"}, "sectionName": "s"}), &all),
            of(&[
                ("t.name", "invalid characters: must consist of lower case alphanumeric characters, '-', '.' and '_'."),
                ("t.labels", "either labels or name and namespace must be specified"),
                ("t.sectionName", "can only be used with inbound policies"),
            ])
        );
        assert_eq!(check(json!({"kind": "MeshService"}), &all), of(&[("t", "name or labels must be set when kind is MeshService")]));
        assert_eq!(
            check(json!({"kind": "MeshGateway", "tags": {"a": "b"}}), &all),
            of(&[("t.name", "must be set when kind is MeshGateway"), ("t.tags", "must not be set with kind MeshGateway")])
        );
        assert_eq!(
            check(json!({"kind": "MeshGateway", "name": "g", "tags": {"a": "?"}}), &Allowed { gateway_tags: true, ..all }),
            of(&[(
                "t.tags[\"a\"]",
                "tag value must consist of alphanumeric characters, dots, dashes, slashes and underscores or be \"*\""
            )])
        );
        assert_eq!(
            check(json!({"kind": "MeshSubset"}), &Allowed { kinds: &[TargetRefKind::Mesh], ..Allowed::default() }),
            of(&[("t.kind", "value 'MeshSubset' is not supported")])
        );
    }

    #[test]
    fn roles() {
        let top = TopLevel { always: &[TargetRefKind::Mesh], system: &[TargetRefKind::MeshGateway], gateway_tags: true };
        let r = TargetRef { name: Some("g".into()), ..TargetRef::of(TargetRefKind::MeshGateway) };
        let count = |role: Option<&str>| {
            let labels = role.map(|v| [(labels::POLICY_ROLE.to_owned(), v.to_owned())].into_iter().collect());
            let mut out = Violations::new();
            validate_top(&ValidateContext { labels: labels.as_ref(), ..ValidateContext::default() }, Some(&r), &top, false, &mut out);
            out.as_slice().len()
        };
        assert_eq!((count(None), count(Some("system")), count(Some("producer"))), (0, 0, 1));
    }
}
