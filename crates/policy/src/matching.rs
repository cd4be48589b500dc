//! Matching policies to a proxy and building the rules (reference: Kuma 2.14.3 policy contract, §1.5–§1.13).

use crate::{
    http_route::{item_conf, matches_hash},
    inbound::inbound_rules,
    order,
    resource::resource_rules,
    rules::{GatewayRules, InboundKey, ListenerKey, Matched, SubsetRule, ToRules, TypedMatch},
    select::{Proxy, Selection, route_by_display_name, tags_match},
    spec::{PolicySpec, RefKind, Tags, TargetRef, is_shadow},
    subset::{self, RULE_MATCHES_HASH_TAG, TagItem, tags_of},
};
use ikada_model::{Kind, Resource, labels::TAG_SERVICE};
use ikada_world::World;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// Settings of matching.
#[derive(Clone, Debug, Default)]
pub struct MatchOptions {
    /// Shadow policies take part.
    pub include_shadow: bool,
    /// `KUMA_MESH_TRAFFIC_PERMISSION_DISABLE_CLIQUES_ALGORITHM`: items are grouped by connected components.
    pub disable_cliques: bool,
}

/// All targetRef policies of a dataplane's mesh, matched against it.
pub fn match_policies(world: &World, dataplane: &Resource, options: &MatchOptions) -> Matched {
    let mut matched = Matched::default();
    let Some(proxy) = Proxy::new(world, dataplane) else { return matched };
    for kind in Kind::all().filter(|k| k.is_target_ref_policy()) {
        let t = match_kind(world, &proxy, world.list_in(kind, dataplane.mesh()), options);
        if !t.policies.is_empty() || !t.warnings.is_empty() {
            matched.kinds.insert(kind, t);
        }
    }
    matched
}

/// What one policy selects of a dataplane; empty when it does not match or cannot be resolved. Shadow policies are not told apart.
pub fn selection(world: &World, dataplane: &Resource, policy: &Resource) -> Selection {
    let spec = policy.view::<PolicySpec>();
    let proxy = Proxy::new(world, dataplane);
    spec.zip(proxy).and_then(|(spec, proxy)| proxy.select(world, policy, spec).ok()).unwrap_or_default()
}

/// Policies of one kind, matched against a proxy.
pub fn match_kind<'a>(
    world: &World,
    proxy: &Proxy<'_>,
    policies: impl IntoIterator<Item = &'a Arc<Resource>>,
    options: &MatchOptions,
) -> TypedMatch {
    let mut t = TypedMatch::default();
    let mut selected = Vec::new();
    for policy in policies {
        if is_shadow(policy) && !options.include_shadow {
            continue;
        }
        let unresolved = |e: &str| {
            format!("unable to resolve TargetRef on policy: mesh:{} name:{} error:{e:?}", policy.mesh(), policy.name())
        };
        let Some(spec) = policy.view::<PolicySpec>() else {
            t.warnings.push(unresolved("the spec cannot be read"));
            continue;
        };
        match proxy.select(world, policy, spec) {
            Ok(s) if s.is_empty() => {}
            Ok(s) => selected.push((policy, spec, s)),
            Err(e) => t.warnings.push(unresolved(&e)),
        }
    }
    // By hostname Kuma keeps the order of the list, which is that of names: visible where listeners differ in hostname only.
    let mut by_hostname: BTreeMap<ListenerKey, Vec<&Arc<Resource>>> = BTreeMap::new();
    for (policy, _, s) in &selected {
        for l in &s.gateway_listeners {
            push_once(by_hostname.entry(l.clone()).or_default(), policy);
        }
    }
    let selected =
        order::stable_sort(selected, |a, b| order::policies((a.0, &a.1.target_ref), (b.0, &b.1.target_ref)));
    let Some(info) = selected.first().and_then(|(p, ..)| p.kind().descriptor().policy) else { return t };

    let mut by_inbound: BTreeMap<InboundKey, Vec<&Arc<Resource>>> = BTreeMap::new();
    let mut by_listener: BTreeMap<InboundKey, Vec<&Arc<Resource>>> = BTreeMap::new();
    for (policy, _, s) in &selected {
        let mut add = |key: &InboundKey| push_once(by_inbound.entry(key.clone()).or_default(), policy);
        s.inbounds.iter().for_each(&mut add);
        s.gateway_listeners.iter().for_each(|l| add(&l.listener));
        for l in &s.gateway_listeners {
            push_once(by_listener.entry(l.listener.clone()).or_default(), policy);
        }
    }
    t.policies = selected.iter().map(|(p, ..)| (*p).clone()).collect();
    let mut warnings = Vec::new();
    let mut build = Build { world, options, warnings: &mut warnings };
    if info.from {
        t.from = by_inbound.iter().map(|(k, p)| (k.clone(), build.from(p))).collect();
    }
    if info.from || info.rules {
        t.inbound = by_inbound.iter().map(|(k, p)| (k.clone(), inbound_rules(p.iter().copied()))).collect();
    }
    if info.to {
        let all: Vec<&Arc<Resource>> = t.policies.iter().collect();
        t.to = build.to(&all, "To");
        t.gateway = GatewayRules {
            by_listener: by_listener.into_iter().map(|(k, p)| (k, build.to(&p, "Gateway"))).collect(),
            by_listener_and_hostname: by_hostname.into_iter().map(|(k, p)| (k, build.to(&p, "Gateway"))).collect(),
        };
    }
    if !info.from && !info.to && !info.rules {
        t.single = single_rule(&t.policies);
    }
    t.warnings.extend(warnings);
    t
}

fn push_once<'a>(list: &mut Vec<&'a Arc<Resource>>, policy: &'a Arc<Resource>) {
    if !list.last().is_some_and(|last| Arc::ptr_eq(last, policy)) {
        list.push(policy);
    }
}

/// The merged `default` of kinds without lists.
pub fn single_rule(policies: &[Arc<Resource>]) -> Option<SubsetRule> {
    let item = |p: &Arc<Resource>| {
        let conf = p.view::<PolicySpec>()?.default.clone()?;
        Some(TagItem { tags: Tags::new(), conf, policy: p.clone() })
    };
    subset::single(&policies.iter().filter_map(item).collect::<Vec<_>>())
}

/// `from` rules of policies in the given order; for callers that match by other means.
pub fn from_rules(world: &World, policies: &[&Arc<Resource>], options: &MatchOptions) -> (Vec<SubsetRule>, Vec<String>) {
    let mut warnings = Vec::new();
    let rules = Build { world, options, warnings: &mut warnings }.from(policies);
    (rules, warnings)
}

/// `to` rules of policies in the given order; for callers that match by other means.
pub fn to_rules(world: &World, policies: &[&Arc<Resource>], options: &MatchOptions) -> (ToRules, Vec<String>) {
    let mut warnings = Vec::new();
    let rules = Build { world, options, warnings: &mut warnings }.to(policies, "To");
    (rules, warnings)
}

struct Build<'a> {
    world: &'a World,
    options: &'a MatchOptions,
    warnings: &'a mut Vec<String>,
}

impl Build<'_> {
    fn or_warn(&mut self, what: &str, rules: Result<Vec<SubsetRule>, String>) -> Vec<SubsetRule> {
        rules.unwrap_or_else(|e| {
            self.warnings.push(format!("couldn't create {what} rules: {e}"));
            Vec::new()
        })
    }

    fn from(&mut self, policies: &[&Arc<Resource>]) -> Vec<SubsetRule> {
        let mut items = Vec::new();
        for policy in policies {
            for item in policy.view::<PolicySpec>().into_iter().flat_map(|s| &s.from) {
                if let Some(tags) = tags_of(&item.target_ref) {
                    items.push(TagItem { tags, conf: item.conf.clone(), policy: (*policy).clone() });
                }
            }
        }
        let rules = subset::with_negations(&items, self.options.disable_cliques);
        self.or_warn("From", rules)
    }

    fn to(&mut self, policies: &[&Arc<Resource>], what: &str) -> ToRules {
        let mut items = Vec::new();
        for policy in policies {
            let Some(spec) = policy.view::<PolicySpec>() else { continue };
            if spec.to.iter().any(|i| i.target_ref.kind == RefKind::MeshHTTPRoute) {
                continue;
            }
            if spec.target_ref.kind == RefKind::MeshHTTPRoute {
                items.extend(self.items_of_route(policy, spec));
                continue;
            }
            for item in &spec.to {
                if let Some(tags) = tags_of(&item.target_ref) {
                    items.push(TagItem { tags, conf: item_conf(policy.kind(), item), policy: (*policy).clone() });
                }
            }
        }
        let rules = subset::without_negations(&items, self.options.disable_cliques);
        ToRules { subset: self.or_warn(what, rules), resource: resource_rules(self.world, policies.iter().copied()) }
    }

    /// Items of a policy on a MeshHTTPRoute: one for each of its rules and each own item.
    fn items_of_route(&self, policy: &Arc<Resource>, spec: &PolicySpec) -> Vec<TagItem> {
        let route = route_by_display_name(self.world, policy.mesh(), &spec.target_ref.name).and_then(|r| r.view::<PolicySpec>());
        let mut items = Vec::new();
        for entry in route.into_iter().flat_map(|r| &r.to) {
            let by_service = !matches!(entry.target_ref.kind, RefKind::Mesh | RefKind::MeshSubset);
            let rules = entry.conf.get("rules").and_then(Value::as_array);
            for rule in rules.into_iter().flatten() {
                let hash = matches_hash(rule.get("matches").unwrap_or(&Value::Null));
                for own in &spec.to {
                    let mut tags = Tags::from([(RULE_MATCHES_HASH_TAG.to_owned(), hash.clone())]);
                    if by_service {
                        tags.insert(TAG_SERVICE.to_owned(), entry.target_ref.name.clone());
                    }
                    items.push(TagItem { tags, conf: item_conf(policy.kind(), own), policy: policy.clone() });
                }
            }
        }
        items
    }
}

/// Kinds that a legacy zone egress applies.
pub const EGRESS_KINDS: &[Kind] = &[
    Kind::MeshFaultInjection,
    Kind::MeshRateLimit,
    Kind::MeshTrafficPermission,
    Kind::MeshHealthCheck,
    Kind::MeshCircuitBreaker,
    Kind::MeshLoadBalancingStrategy,
];

fn selects_tags(target: &TargetRef, tags: &Tags) -> bool {
    tags_of(target).is_some_and(|wanted| tags_match(&wanted, tags))
}

/// Policies of one kind for a service on a legacy zone egress (§1.13). Rules are under the one key "empty listener". Roles, zones and
/// namespaces are not looked at.
pub fn match_egress<'a>(
    world: &World,
    service_tags: &Tags,
    policies: impl IntoIterator<Item = &'a Arc<Resource>>,
    options: &MatchOptions,
) -> TypedMatch {
    let mut t = TypedMatch::default();
    let all: Vec<(&Arc<Resource>, &PolicySpec)> = policies
        .into_iter()
        .filter(|p| options.include_shadow || !is_shadow(p))
        .filter_map(|p| p.view::<PolicySpec>().map(|s| (p, s)))
        .collect();
    let all = order::stable_sort(all, |a, b| order::policies((a.0, &a.1.target_ref), (b.0, &b.1.target_ref)));
    let Some(info) = all.first().and_then(|(p, _)| p.kind().descriptor().policy) else { return t };
    let by_top_level = info.from;
    let selected: Vec<&(&Arc<Resource>, &PolicySpec)> = all
        .iter()
        .filter(|(_, s)| {
            if by_top_level {
                selects_tags(&s.target_ref, service_tags)
            } else {
                s.to.iter().any(|i| selects_tags(&i.target_ref, service_tags))
            }
        })
        .collect();
    t.policies = selected.iter().map(|(p, _)| (*p).clone()).collect();
    let mut warnings = Vec::new();
    let mut build = Build { world, options, warnings: &mut warnings };
    if by_top_level {
        let policies: Vec<&Arc<Resource>> = t.policies.iter().collect();
        let rules = build.from(&policies);
        t.inbound.insert(InboundKey::default(), inbound_rules(policies));
        t.from.insert(InboundKey::default(), rules);
    } else {
        let mut items = Vec::new();
        for (policy, spec) in selected {
            for item in spec.to.iter().filter(|i| selects_tags(&i.target_ref, service_tags)) {
                if let Some(tags) = tags_of(&spec.target_ref) {
                    items.push(TagItem { tags, conf: item_conf(policy.kind(), item), policy: (*policy).clone() });
                }
            }
        }
        let rules = subset::without_negations(&items, options.disable_cliques);
        let rules = build.or_warn("From", rules);
        t.from.insert(InboundKey::default(), rules);
    }
    if info.to {
        t.to.resource = resource_rules(world, all.iter().map(|(p, _)| *p));
    }
    t.warnings = warnings;
    t
}
