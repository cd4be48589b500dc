//! Which policies speak about which proxies (reference: Kuma 2.14.3 REST contract, §4.3, §4.4).

use crate::{
    auth::User,
    error::{ApiError, title},
    list::{Page, Query},
    read::require_mesh,
    state::ApiState,
};
use ikada_model::{Dataplane, Kind, Mesh, MeshService, Resource, dataplane::Inbound, mesh::MeshServicesMode};
use ikada_policy::{InboundKey, MatchOptions, RuleOrigin, SubsetRule, TypedMatch, http_route::matches_hash, match_policies, selection};
use ikada_world::World;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// `Meta` of inspection: no times, labels always.
fn meta(r: &Resource) -> Value {
    json!({"type": r.kind().name(), "mesh": r.mesh(), "name": r.name(), "labels": r.labels})
}

fn find<'a>(state: &ApiState, world: &'a World, user: &User, (kind, mesh, name): (Kind, &str, &str)) -> Result<&'a Arc<Resource>, ApiError> {
    require_mesh(world, kind, mesh)?;
    state.options.access.resource(user, kind).map_err(ApiError::denied)?;
    let title = if kind.descriptor().policy.is_some() { title::POLICY } else { title::GET };
    world.find(kind, mesh, name).ok_or_else(|| ApiError::not_found(title))
}

/// `GET …/{policies or meshservices}/{name}/_resources/dataplanes`: the dataplanes that a policy or MeshService selects.
pub fn dataplanes(state: &ApiState, world: &World, user: &User, query: &Query, key: (Kind, &str, &str)) -> Result<Value, ApiError> {
    let r = find(state, world, user, key)?;
    if r.kind() != Kind::MeshService && !r.kind().is_target_ref_policy() {
        return Err(ApiError::not_implemented(title::LIST, format_args!("inspecting resources of type {}", r.kind())));
    }
    let page = Page::parse(query)?;
    let name = query.get("name").unwrap_or("");
    let selected = |dp: &&Arc<Resource>| {
        dp.name().contains(name)
            && match r.view::<MeshService>() {
                Some(service) => serves(service, dp),
                None => !selection(world, dp, r).is_empty(),
            }
    };
    let (mut total, mut items) = (0usize, Vec::new());
    for dp in world.list_in(Kind::Dataplane, r.mesh()).filter(selected) {
        if page.holds(total) {
            items.push(meta(dp));
        }
        total += 1;
    }
    let mut out = json!({"total": total, "items": items});
    if let Some(offset) = page.next(total) {
        out["next"] = offset.to_string().into();
    }
    Ok(out)
}

/// Whether a MeshService's selector names the dataplane. An empty selector names none.
fn serves(service: &MeshService, dp: &Resource) -> bool {
    let s = &service.selector;
    if let Some(wanted) = s.dataplane_tags.as_ref().filter(|t| !t.is_empty()) {
        let inbounds = dp.view::<Dataplane>().map_or(&[] as &[Inbound], |d| &d.networking.inbound);
        return inbounds.iter().any(|i| wanted.iter().all(|(k, v)| i.tags.get(k) == Some(v)));
    }
    if let Some(by_name) = &s.dataplane_ref {
        return by_name.name == dp.name();
    }
    let labels = s.dataplane_labels.as_ref().map(|l| &l.match_labels).filter(|l| !l.is_empty());
    labels.is_some_and(|wanted| wanted.iter().all(|(k, v)| dp.label(k) == Some(v)))
}

fn origins(all: &[RuleOrigin]) -> Vec<Value> {
    all.iter().map(|o| json!({"resourceMeta": meta(&o.policy), "ruleIndex": o.index})).collect()
}

fn subset_rule(r: &SubsetRule) -> Value {
    let matchers: Vec<_> = r.subset.iter().map(|t| json!({"key": t.key, "value": t.value, "not": t.not})).collect();
    json!({"matchers": matchers, "conf": *r.conf, "origin": r.origins.iter().map(|o| meta(o)).collect::<Vec<_>>()})
}

/// The inbound that a key means, as rules show it.
fn inbound(dp: &Dataplane, key: &InboundKey) -> Value {
    let n = &dp.networking;
    let found = n.inbound.iter().find(|i| i.port == key.port && n.inbound_address(i) == key.address);
    let mut v = json!({"port": key.port, "tags": found.map(|i| &i.tags).cloned().unwrap_or_default()});
    if let Some(name) = found.map(|i| &i.name).filter(|n| !n.is_empty()) {
        v["name"] = name.as_str().into();
    }
    v
}

/// Rules by inbound, sorted by port; inbounds that nothing speaks about are left out.
fn by_inbound<T>(dp: &Dataplane, rules: &BTreeMap<InboundKey, Vec<T>>, show: impl Fn(&T) -> Value) -> Vec<Value> {
    let mut all: Vec<_> = rules.iter().filter(|(_, rules)| !rules.is_empty()).collect();
    all.sort_by_key(|(k, _)| k.port);
    all.into_iter().map(|(k, rules)| json!({"inbound": inbound(dp, k), "rules": rules.iter().map(&show).collect::<Vec<_>>()})).collect()
}

/// One entry of `rules`; `None` when the kind yields nothing.
fn rule_entry(kind: Kind, t: &TypedMatch, dp: &Dataplane, exclusive: bool) -> Option<Value> {
    let to: Vec<_> = t.to.subset.iter().filter(|_| !exclusive).map(subset_rule).collect();
    let mut resources: Vec<_> = t.to.resource.values().collect();
    resources.sort_by(|a, b| a.resource.name().cmp(b.resource.name()));
    let resources: Vec<_> = resources
        .into_iter()
        .map(|r| {
            json!({
                "resourceMeta": meta(&r.resource),
                "resourceSectionName": r.section,
                "conf": r.conf.iter().map(|c| (**c).clone()).collect::<Vec<_>>(),
                "origin": origins(&r.origins),
            })
        })
        .collect();
    let from = by_inbound(dp, &t.from, subset_rule);
    let inbound = by_inbound(dp, &t.inbound, |r| {
        let mut v = json!({"conf": [*r.conf], "origin": origins(std::slice::from_ref(&r.origin))});
        if let Some(m) = r.r#match.as_ref().and_then(|m| serde_json::to_value(m).ok()) {
            v["match"] = m;
        }
        v
    });
    if to.is_empty() && resources.is_empty() && from.is_empty() && inbound.is_empty() && t.single.is_none() {
        return None;
    }
    let mut v = json!({
        "type": kind.name(),
        "toRules": to,
        "toResourceRules": resources,
        "fromRules": from,
        "inboundRules": inbound,
        "warnings": t.warnings,
    });
    if let Some(single) = &t.single {
        v["proxyRule"] = json!({"conf": *single.conf, "origin": single.origins.iter().map(|o| meta(o)).collect::<Vec<_>>()});
    }
    Some(v)
}

/// `GET …/dataplanes/{name}/_rules`
pub fn rules(state: &ApiState, world: &World, user: &User, mesh: &str, name: &str) -> Result<Value, ApiError> {
    let r = find(state, world, user, (Kind::Dataplane, mesh, name))?;
    let exclusive = world.mesh(mesh).and_then(|m| m.view::<Mesh>()).is_some_and(|m| m.mesh_services.mode == MeshServicesMode::Exclusive);
    let unset = Dataplane::default();
    let dp = r.view::<Dataplane>().unwrap_or(&unset);
    let matched = match_policies(world, r, &MatchOptions::default());
    let routes = matched.of(Kind::MeshHTTPRoute);
    let confs = routes.to.subset.iter().map(|s| &s.conf).chain(routes.to.resource.values().flat_map(|r| &r.conf));
    let hashes: Map<String, Value> = confs
        .flat_map(|c| c.get("rules").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|rule| rule.get("matches"))
        .map(|m| (matches_hash(m), m.clone()))
        .collect();
    let matches: Vec<_> = hashes.into_iter().map(|(hash, m)| json!({"hash": hash, "match": m})).collect();
    let entries: Vec<_> = matched.iter().filter_map(|(kind, t)| rule_entry(kind, t, dp, exclusive)).collect();
    Ok(json!({"resource": meta(r), "httpMatches": matches, "rules": entries}))
}
