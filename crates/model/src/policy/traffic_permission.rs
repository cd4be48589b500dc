//! MeshTrafficPermission (reference: Kuma 2.14.3 policy contract, §4.14).

use super::{
    KindSpec, ValidateContext,
    common::{self, PolicySpec},
    matches::{self, Match},
    target_ref::{self, Allowed, TargetRefKind as K, TopLevel},
};
use crate::{
    kind::Kind,
    resource::View,
    schema::{Schema, field, object, text},
    violation::{Path, Violations},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::LazyLock;

/// What happens to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Action {
    Allow,
    Deny,
    /// Allowed, and counted as if it were denied.
    AllowWithShadowDeny,
}

/// Conf of `from[]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FromConf {
    /// Set in every valid policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
}

/// Conf of `rules[]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuleConf {
    /// Clients that are refused whatever else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<Match>>,
    /// Clients that are let in and counted as denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_with_shadow_deny: Option<Vec<Match>>,
    /// Clients that are let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Match>>,
}

/// A MeshTrafficPermission's spec; it has no `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshTrafficPermission(pub PolicySpec<FromConf, RuleConf>);

impl View for MeshTrafficPermission {
    const KIND: Kind = Kind::MeshTrafficPermission;
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let from = object(vec![field("action", text().one_of(&["Allow", "Deny", "AllowWithShadowDeny"]))]);
    let rules =
        object(vec![field("deny", matches::schema()), field("allowWithShadowDeny", matches::schema()), field("allow", matches::schema())]);
    object(vec![common::target_ref_field(), field("from", common::items(from)), field("rules", common::rules(rules, false))])
});

/// Registry entry.
pub static KIND: KindSpec = KindSpec { kind: Kind::MeshTrafficPermission, schema: || &SCHEMA, validate, warnings };

const TOP: TopLevel<'_> =
    TopLevel { always: &[K::Mesh, K::MeshSubset, K::MeshService, K::MeshServiceSubset, K::Dataplane], system: &[], gateway_tags: false };

fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let Some(MeshTrafficPermission(spec)) = common::read(spec, out) else { return };
    let root = Path::of("spec");
    target_ref::validate_top(ctx, spec.target_ref.as_ref(), &TOP, spec.is_inbound(), out);
    let (from, rules) = (spec.from(), spec.rules());
    if !rules.is_empty() && !from.is_empty() {
        out.add(&root, "field 'from' must be empty when 'rules' is defined");
    }
    if rules.is_empty() && from.is_empty() {
        out.add(&root, "at least one of 'from' or 'rules' has to be defined");
    }
    let allowed = Allowed { kinds: &[K::Mesh, K::MeshSubset, K::MeshService, K::MeshServiceSubset], ..Allowed::default() };
    for (i, item) in from.iter().enumerate() {
        let at = root.field("from").index(i);
        target_ref::validate(&item.target_ref, &at.field("targetRef"), &allowed, out);
        if item.default.action.is_none() {
            out.add(at.field("default").field("action"), "must be defined");
        }
    }
    for (i, rule) in rules.iter().enumerate() {
        // Paths leave `default` out; clients see them so.
        let at = root.field("rules").index(i);
        let conf = &rule.default;
        let lists = [("allow", &conf.allow), ("allowWithShadowDeny", &conf.allow_with_shadow_deny), ("deny", &conf.deny)];
        if lists.iter().all(|(_, l)| l.as_ref().is_none_or(Vec::is_empty)) {
            out.add(&at, "at least one of 'allow', 'allowWithShadowDeny', 'deny' has to be defined");
        }
        for (name, list) in lists {
            for (j, m) in list.iter().flatten().enumerate() {
                matches::validate(m, &at.field(name).index(j), out);
            }
        }
    }
}

fn warnings(_: &ValidateContext<'_>, spec: &Value) -> Vec<String> {
    let Some(MeshTrafficPermission(spec)) = common::read(spec, &mut Violations::new()) else { return Vec::new() };
    let mut all: Vec<String> = target_ref::top_level_warning(spec.target_ref.as_ref()).into_iter().collect();
    if !spec.from().is_empty() {
        all.push("'from' field is deprecated and will be removed in 3.0, use 'rules' with MeshIdentity (spiffeId) instead".into());
    }
    if spec.from().iter().any(|f| f.target_ref.kind == K::MeshService) {
        all.push("MeshService value for 'from[].targetRef.kind' is deprecated, use MeshSubset with 'kuma.io/service' instead".into());
    }
    all
}
