//! MeshTrafficPermission (policy contract §4.14).

use super::conf::Conf;
use crate::{
    destination::Frame,
    encode::pack,
    proto::{exact, sanitize},
    resources::{Chain, HTTP_RBAC, ListenerItem, NETWORK_RBAC, NetworkFilter, Part, ResourceSet, http_filter, network_filter},
};
use envoy_types::pb::{
    envoy::{
        config::rbac::v3::{Action as NamedAction, Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac::Action},
        extensions::{
            filters::{http::rbac::v3::Rbac as HttpRbac, network::rbac::v3::Rbac as NetworkRbac},
            matching::common_inputs::{network::v3::ServerNameInput, ssl::v3::UriSanInput},
        },
    },
    google::protobuf::Any,
    xds::{
        core::v3::TypedExtensionConfig,
        r#type::matcher::v3::{
            Matcher, StringMatcher,
            matcher::{
                MatcherList, MatcherType, OnMatch,
                matcher_list::{
                    FieldMatcher, Predicate,
                    predicate::{MatchType, PredicateList, SinglePredicate, single_predicate},
                },
                on_match,
            },
            string_matcher::MatchPattern,
        },
    },
};
use ikada_model::{Kri, labels::TAG_SERVICE};
use ikada_policy::{InboundRule, SubsetRule, TypedMatch};

const POLICY: &str = "MeshTrafficPermission";

/// Access control of the TLS chains of inbound listeners. Without mTLS there is nothing to tell clients apart by.
pub(crate) fn apply(frame: &Frame<'_>, set: &mut ResourceSet, rules: &TypedMatch) {
    if frame.mtls().is_none() || frame.dataplane.is_builtin_gateway() {
        return;
    }
    for item in set.listeners.values_mut() {
        let Part::Inbound(key, _) = &item.part else { continue };
        let by_match = rules.inbound.get(key).map_or(&[][..], Vec::as_slice);
        let access = if by_match.is_empty() {
            by_tags(frame.mesh_name, rules.from.get(key).map_or(&[][..], Vec::as_slice))
        } else {
            by_matches(by_match)
        };
        let inspect = access.needs_sni;
        control(item, &access);
        if inspect {
            item.inspect_tls();
        }
    }
}

/// What the filter enforces, in one of two languages.
#[derive(Default)]
struct Access {
    rules: Option<Rules>,
    shadow_rules: Option<Rules>,
    matcher: Option<Matcher>,
    shadow_matcher: Option<Matcher>,
    needs_sni: bool,
}

fn control(item: &mut ListenerItem, access: &Access) {
    let stat_prefix = format!("{}.", sanitize(&item.listener.name));
    for chain in item.chains.iter_mut().filter(|c| c.is_tls()) {
        chain.filters.retain(|f| !matches!(f, NetworkFilter::Other(f) if f.name == NETWORK_RBAC));
        control_chain(chain, access, &stat_prefix);
    }
}

fn control_chain(chain: &mut Chain, access: &Access, stat_prefix: &str) {
    let http = HttpRbac {
        rules: access.rules.clone(),
        shadow_rules: access.shadow_rules.clone(),
        matcher: access.matcher.clone(),
        shadow_matcher: access.shadow_matcher.clone(),
        ..Default::default()
    };
    let mut is_http = false;
    for hcm in chain.hcms_mut() {
        hcm.manager.http_filters.insert(0, http_filter(HTTP_RBAC, &http));
        is_http = true;
    }
    if !is_http {
        let network = NetworkRbac {
            rules: http.rules,
            shadow_rules: http.shadow_rules,
            matcher: http.matcher,
            shadow_matcher: http.shadow_matcher,
            stat_prefix: stat_prefix.to_owned(),
            ..Default::default()
        };
        chain.filters.insert(0, NetworkFilter::Other(Box::new(network_filter(NETWORK_RBAC, &network))));
    }
}

/// `from`: clients by the tags in their certificates. Nobody allowed = an empty policy set, which denies.
fn by_tags(mesh: &str, rules: &[SubsetRule]) -> Access {
    let with =
        |action: &'static str| rules.iter().filter(move |r| Conf(&r.conf).at("action").text() == Some(action)).map(|r| client(mesh, r));
    let shadowed: Vec<Principal> = with("AllowWithShadowDeny").collect();
    let allowed: Vec<Principal> = with("Allow").chain(shadowed.iter().cloned()).collect();
    let set = |action: Action, principals: Vec<Principal>| {
        let any = Permission { rule: Some(permission::Rule::Any(true)) };
        let policy = Policy { permissions: vec![any], principals, ..Default::default() };
        Rules { action: action as i32, policies: [(POLICY.to_owned(), policy)].into(), ..Default::default() }
    };
    Access {
        rules: Some(if allowed.is_empty() { Rules::default() } else { set(Action::Allow, allowed) }),
        shadow_rules: (!shadowed.is_empty()).then(|| set(Action::Deny, shadowed)),
        ..Default::default()
    }
}

fn identified(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn client(mesh: &str, rule: &SubsetRule) -> Principal {
    let mut ids: Vec<Principal> = rule
        .subset
        .iter()
        .map(|t| {
            let name = if t.key == TAG_SERVICE { format!("spiffe://{mesh}/{}", t.value) } else { format!("kuma://{}/{}", t.key, t.value) };
            let is = identified(principal::Identifier::Authenticated(principal::Authenticated { principal_name: Some(exact(&name)) }));
            if t.not { identified(principal::Identifier::NotId(Box::new(is))) } else { is }
        })
        .collect();
    match (ids.len(), ids.pop()) {
        (1, Some(one)) => one,
        (_, Some(last)) => {
            ids.push(last);
            identified(principal::Identifier::AndIds(principal::Set { ids }))
        }
        (_, None) => identified(principal::Identifier::Any(true)),
    }
}

/// `rules`: clients by SPIFFE id and server name. Deny goes before allow across all policies, so their order does not matter.
fn by_matches(rules: &[InboundRule]) -> Access {
    let entries = |fields: &[&str], action: Action| -> Vec<FieldMatcher> {
        rules
            .iter()
            .filter_map(|r| {
                let conf = Conf(&r.conf);
                let matches: Vec<Conf<'_>> = fields.iter().flat_map(|f| conf.at(f).items()).collect();
                Some(FieldMatcher {
                    predicate: Some(any_of(&matches)?),
                    on_match: Some(on_match(&Kri::of(&r.origin.policy).to_string(), action)),
                })
            })
            .collect()
    };
    let matcher = |matchers: Vec<FieldMatcher>| Matcher {
        matcher_type: (!matchers.is_empty()).then_some(MatcherType::MatcherList(MatcherList { matchers })),
        on_no_match: Some(Box::new(on_match("default", Action::Deny))),
    };
    let mut all = entries(&["deny"], Action::Deny);
    all.extend(entries(&["allow", "allowWithShadowDeny"], Action::Allow));
    let shadow = entries(&["allowWithShadowDeny"], Action::Deny);
    let needs_sni = rules
        .iter()
        .flat_map(|r| ["deny", "allow", "allowWithShadowDeny"].map(|f| Conf(&r.conf).at(f)))
        .flat_map(Conf::items)
        .any(|m| m.at("sni").is_set());
    Access { matcher: Some(matcher(all)), shadow_matcher: (!shadow.is_empty()).then(|| matcher(shadow)), needs_sni, ..Default::default() }
}

fn extension(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) }
}

fn on_match(name: &str, action: Action) -> OnMatch {
    let named = NamedAction { name: name.to_owned(), action: action as i32 };
    OnMatch { on_match: Some(on_match::OnMatch::Action(extension("envoy.filters.rbac.action", pack(&named)))), ..Default::default() }
}

fn single(input: TypedExtensionConfig, pattern: MatchPattern) -> Predicate {
    let value = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    let single = SinglePredicate { input: Some(input), matcher: Some(single_predicate::Matcher::ValueMatch(value)) };
    Predicate { match_type: Some(MatchType::SinglePredicate(single)) }
}

/// `None` when no match has a condition.
fn any_of(matches: &[Conf<'_>]) -> Option<Predicate> {
    let mut all: Vec<Predicate> = matches.iter().filter_map(|m| all_of(*m)).collect();
    match all.len() {
        0 | 1 => all.pop(),
        _ => Some(Predicate { match_type: Some(MatchType::OrMatcher(PredicateList { predicate: all })) }),
    }
}

fn all_of(m: Conf<'_>) -> Option<Predicate> {
    let pattern = |v: Conf<'_>| {
        let text = v.at("value").text()?.to_owned();
        Some(if v.at("type").text() == Some("Prefix") { MatchPattern::Prefix(text) } else { MatchPattern::Exact(text) })
    };
    let id = pattern(m.at("spiffeID")).map(|p| single(extension("envoy.matching.inputs.uri_san", pack(&UriSanInput {})), p));
    let sni = pattern(m.at("sni")).map(|p| single(extension("envoy.matching.inputs.server_name", pack(&ServerNameInput {})), p));
    match (id, sni) {
        (Some(a), Some(b)) => Some(Predicate { match_type: Some(MatchType::AndMatcher(PredicateList { predicate: vec![a, b] })) }),
        (a, b) => a.or(b),
    }
}
