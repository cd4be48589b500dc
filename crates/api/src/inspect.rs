//! Which policies speak about which proxies (reference: Kuma 2.14.3 REST contract, §4.3, §4.4).

use crate::{
    auth::User,
    error::{ApiError, title},
    list::{Page, Query},
    read::require_mesh,
    state::ApiState,
};
use ikada_model::{Dataplane, Kind, Kri, Mesh, MeshService, Resource, dataplane::Inbound, mesh::MeshServicesMode};
use ikada_policy::{
    InboundKey, MatchOptions, ResourceRule, RuleOrigin, SubsetRule, TypedMatch, http_route::matches_hash, match_policies, selection,
};
use ikada_world::World;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// `Meta` of inspection: no times, labels always.
fn meta(r: &Resource) -> Value {
    json!({"type": r.kind().name(), "mesh": r.mesh(), "name": r.name(), "labels": r.labels})
}

pub(crate) fn find<'a>(state: &ApiState, world: &'a World, user: &User, (kind, mesh, name): (Kind, &str, &str)) -> Result<&'a Arc<Resource>, ApiError> {
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

/// What of a dataplane `_policies` is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The proxy as a whole.
    Proxy,
    /// One inbound or zone listener, by KRI.
    Inbound(String),
    /// One destination, by KRI.
    Outbound(String),
    /// The routes of a destination.
    Routes(String),
    /// One route of a destination.
    Route {
        /// KRI of the destination.
        outbound: String,
        /// KRI of the route.
        route: String,
    },
}

fn parse_kri(text: &str) -> Result<Kri, ApiError> {
    text.parse().map_err(|e| ApiError::bad_request(format!("bad request: {e}")))
}

/// Distinct policies as `origins`.
fn kris<'a>(policies: impl IntoIterator<Item = &'a Arc<Resource>>) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for p in policies {
        let origin = json!({"kri": Kri::of(p).to_string()});
        if !all.contains(&origin) {
            all.push(origin);
        }
    }
    all
}

fn is_route(kind: Kind) -> bool {
    matches!(kind, Kind::MeshHTTPRoute | Kind::MeshTCPRoute)
}

/// Address and port of the inbound or zone listener with this section name.
fn section_key(dp: &Dataplane, section: &str) -> Option<InboundKey> {
    let n = &dp.networking;
    let inbound = n.inbound.iter().find(|i| i.section() == section);
    let listener = n.listeners.iter().find(|l| if l.name.is_empty() { l.port.to_string() == section } else { l.name == section });
    inbound
        .map(|i| InboundKey { address: n.inbound_address(i).to_owned(), port: i.port })
        .or_else(|| listener.map(|l| InboundKey { address: l.address.clone(), port: l.port }))
}

/// `GET …/dataplanes/{name}/_policies` and its kin for inbounds, outbounds and routes.
pub fn policies(state: &ApiState, world: &World, user: &User, (mesh, name): (&str, &str), part: &Part) -> Result<Value, ApiError> {
    let r = find(state, world, user, (Kind::Dataplane, mesh, name))?;
    let exclusive = world.mesh(mesh).and_then(|m| m.view::<Mesh>()).is_some_and(|m| m.mesh_services.mode == MeshServicesMode::Exclusive);
    if !exclusive {
        return Err(ApiError::bad_request("bad request: can't use _policies endpoint without meshService enabled"));
    }
    let matched = match_policies(world, r, &MatchOptions::default());
    let shown = |rule: &ResourceRule, kind: Kind| {
        let conf: Vec<_> = rule.conf.iter().map(|c| (**c).clone()).collect();
        json!({"kind": kind.name(), "conf": conf, "origins": kris(rule.origins.iter().map(|o| &o.policy))})
    };
    let items: Vec<Value> = match part {
        Part::Proxy => matched
            .iter()
            .filter_map(|(kind, t)| Some((kind, t.single.as_ref()?)))
            .map(|(kind, s)| json!({"kind": kind.name(), "conf": *s.conf, "origins": kris(&s.origins)}))
            .collect(),
        Part::Inbound(kri) => {
            let section = parse_kri(kri)?.section;
            let key = r.view::<Dataplane>().and_then(|dp| section_key(dp, &section));
            let key = key.ok_or_else(|| ApiError::internal(title::GET, "inbound not found"))?;
            let rules = matched.iter().filter_map(|(kind, t)| Some((kind, t.inbound.get(&key).filter(|r| !r.is_empty())?)));
            rules
                .map(|(kind, rules)| {
                    let shown: Vec<_> = rules.iter().map(|r| json!({"kri": Kri::of(&r.origin.policy).to_string(), "conf": *r.conf})).collect();
                    json!({"kind": kind.name(), "origins": kris(rules.iter().map(|r| &r.origin.policy)), "rules": shown})
                })
                .collect()
        }
        Part::Outbound(kri) => {
            let kri = parse_kri(kri)?;
            matched.iter().filter_map(|(kind, t)| Some(shown(t.to.compute(&kri)?, kind))).collect()
        }
        Part::Route { outbound, route } => {
            let (outbound, route) = (parse_kri(outbound)?, parse_kri(route)?);
            let kinds = matched.iter().filter(|(kind, _)| !is_route(*kind));
            kinds.filter_map(|(kind, t)| Some(shown(t.to.resource_context(Some(&route), Some(&outbound), mesh)?, kind))).collect()
        }
        Part::Routes(kri) => {
            let kri = parse_kri(kri)?;
            let kinds = matched.iter().filter(|(kind, _)| is_route(*kind));
            let routes: Vec<_> = kinds.filter_map(|(kind, t)| Some(routes(t.to.compute(&kri)?, kind))).collect();
            return Ok(json!({"routes": routes}));
        }
    };
    Ok(json!({"policies": items}))
}

/// `rules` of a conf.
fn rules_of(conf: &Value) -> &[Value] {
    conf.get("rules").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Rules of the routes of a destination, each with the route it comes from.
fn routes(rule: &ResourceRule, kind: Kind) -> Value {
    // A conf of MeshTCPRoute is its one rule.
    let items = rule.conf.iter().flat_map(|c| if kind == Kind::MeshTCPRoute { std::slice::from_ref(&**c) } else { rules_of(c) });
    let rules: Vec<_> = items
        .map(|item| {
            let conf = item.get("default").cloned().unwrap_or_else(|| json!({}));
            if kind == Kind::MeshTCPRoute {
                return json!({"kri": "", "matches": null, "conf": conf});
            }
            let matches = item.get("matches").cloned().unwrap_or(Value::Null);
            let origin = rule.origin_by_matches.get(&matches_hash(&matches));
            let kri = origin.map(|o| Kri::of(&o.policy).to_string()).unwrap_or_default();
            json!({"kri": kri, "matches": matches, "conf": conf})
        })
        .collect();
    json!({"kind": kind.name(), "origins": kris(rule.origins.iter().map(|o| &o.policy)), "rules": rules})
}
