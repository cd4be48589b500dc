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
use ikada_policy::{InboundRule, SubsetRule, SubsetTag, TypedMatch};
use std::collections::{BTreeMap, BTreeSet};

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

/// Most pairs of an allowing and a denying rule that are compared; more deny everything. Real policies have some hundred rules.
const MAX_PAIRS: usize = 1 << 22;

/// `from`: clients by the tags in their certificates. Nobody allowed = an empty policy set, which denies.
fn by_tags(mesh: &str, rules: &[SubsetRule]) -> Access {
    let with = |action: &'static str| -> Vec<&SubsetRule> {
        rules.iter().filter(|r| Conf(&r.conf).at("action").text() == Some(action)).collect()
    };
    let (allow, shadow, deny) = (with("Allow"), with("AllowWithShadowDeny"), with("Deny"));
    let (mut allowed, mut shadowed) = (Vec::new(), Vec::new());
    if (allow.len() + shadow.len()).saturating_mul(deny.len()) <= MAX_PAIRS {
        shadowed = clients(mesh, &shadow, &deny);
        allowed = clients(mesh, &allow, &deny);
        allowed.extend(shadowed.iter().cloned());
    }
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

/// Clients that are allowed, but for those in some subsets.
#[derive(Default)]
struct Excepted<'a> {
    members: Vec<Principal>,
    exceptions: BTreeSet<&'a [SubsetTag]>,
}

/// Clients of rules that allow, but for those that a denying rule knows better.
fn clients(mesh: &str, allow: &[&SubsetRule], deny: &[&SubsetRule]) -> Vec<Principal> {
    let mut out = Vec::new();
    // Rules made of the same items have the same exceptions: a rule that never meets a denial loses nothing by it.
    let mut excepted: BTreeMap<&BTreeSet<usize>, Excepted<'_>> = BTreeMap::new();
    for rule in allow {
        let except = deny.iter().filter(|d| overrules(d, rule)).map(|d| d.subset.as_slice());
        let mut except = except.peekable();
        if except.peek().is_none() {
            out.push(client(mesh, &rule.subset));
            continue;
        }
        let group = excepted.entry(&rule.items).or_default();
        group.members.push(client(mesh, &rule.subset));
        group.exceptions.extend(except);
    }
    for Excepted { members, exceptions } in excepted.into_values() {
        let mut ids = vec![identified(principal::Identifier::OrIds(principal::Set { ids: members }))];
        ids.extend(exceptions.into_iter().map(|e| identified(principal::Identifier::NotId(Box::new(client(mesh, e))))));
        out.push(identified(principal::Identifier::AndIds(principal::Set { ids })));
    }
    out
}

/// A client may be in both subsets, and what the denying rule says of it was made of an item that the allowing one does not know. That is
/// so where items exclude each other: the rule "everyone but A is allowed" of one group knows nothing of "B is denied" of another, and RBAC
/// adds up all that is allowed. The rule that knows all items which speak about a client is the one that counts; it is never overruled so.
fn overrules(denial: &SubsetRule, allow: &SubsetRule) -> bool {
    !denial.items.is_subset(&allow.items) && can_meet(&denial.subset, &allow.subset)
}

fn can_meet(a: &[SubsetTag], b: &[SubsetTag]) -> bool {
    a.iter().all(|x| b.iter().filter(|y| x.key == y.key).all(|y| (x.not && y.not) || (x.value == y.value) == (x.not == y.not)))
}

fn identified(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn client(mesh: &str, subset: &[SubsetTag]) -> Principal {
    let mut ids: Vec<Principal> = subset
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
    let mut all = Vec::new();
    // A denial of everyone leaves nothing to tell apart.
    if !rules.iter().flat_map(|r| Conf(&r.conf).at("deny").items()).any(|m| all_of(m).is_none()) {
        all.extend(entries(&["deny"], Action::Deny));
        all.extend(entries(&["allow", "allowWithShadowDeny"], Action::Allow));
    }
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

/// `None` when none of the matches can be used, see [`all_of`].
fn any_of(matches: &[Conf<'_>]) -> Option<Predicate> {
    let mut all: Vec<Predicate> = matches.iter().filter_map(|m| all_of(*m)).collect();
    match all.len() {
        0 | 1 => all.pop(),
        _ => Some(Predicate { match_type: Some(MatchType::OrMatcher(PredicateList { predicate: all })) }),
    }
}

/// `None` when it has no condition, or one that cannot be read: such a match lets nobody in, and as a denial it denies everyone.
fn all_of(m: Conf<'_>) -> Option<Predicate> {
    let pattern = |v: Conf<'_>| {
        let text = v.at("value").text().filter(|t| !t.is_empty())?.to_owned();
        match v.at("type").text()? {
            "Exact" => Some(MatchPattern::Exact(text)),
            "Prefix" => Some(MatchPattern::Prefix(text)),
            _ => None,
        }
    };
    let mut all = Vec::new();
    let id = m.at("spiffeID");
    if id.is_set() {
        all.push(single(extension("envoy.matching.inputs.uri_san", pack(&UriSanInput {})), pattern(id)?));
    }
    let sni = m.at("sni");
    if sni.is_set() {
        all.push(single(extension("envoy.matching.inputs.server_name", pack(&ServerNameInput {})), pattern(sni)?));
    }
    match all.len() {
        0 | 1 => all.pop(),
        _ => Some(Predicate { match_type: Some(MatchType::AndMatcher(PredicateList { predicate: all })) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind, Resource};
    use ikada_policy::{MatchOptions, inbound::inbound_rules, matching::from_rules};
    use ikada_world::World;
    use proptest::{prelude::*, sample::select};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn policy(spec: &Value) -> Arc<Resource> {
        Arc::new(Resource::new(Key::new(Kind::MeshTrafficPermission, "m", "p"), Json::from_value(spec)))
    }

    fn access(from: &[(Value, &str)]) -> Access {
        let item = |(tags, action): &(Value, &str)| {
            json!({"targetRef": {"kind": "MeshSubset", "tags": tags}, "default": {"action": action}})
        };
        let policy = policy(&json!({"from": from.iter().map(item).collect::<Vec<_>>()}));
        by_tags("m", &from_rules(&World::default(), &[&policy], &MatchOptions::default()).0)
    }

    /// Whether Envoy sees a client with these names in its certificate in the principal.
    fn is(p: &Principal, names: &[String]) -> bool {
        match p.identifier.as_ref().unwrap() {
            principal::Identifier::Any(any) => *any,
            principal::Identifier::AndIds(set) => set.ids.iter().all(|p| is(p, names)),
            principal::Identifier::OrIds(set) => set.ids.iter().any(|p| is(p, names)),
            principal::Identifier::NotId(p) => !is(p, names),
            principal::Identifier::Authenticated(a) => names.iter().any(|n| a.principal_name == Some(exact(n))),
            other => panic!("{other:?}"),
        }
    }

    fn allows(access: &Access, tags: &[(&str, &str)]) -> bool {
        let names: Vec<String> = tags.iter().map(|(k, v)| format!("kuma://{k}/{v}")).collect();
        access.rules.iter().flat_map(|r| r.policies.values()).flat_map(|p| &p.principals).any(|p| is(p, &names))
    }

    #[test]
    fn two_denials_under_one_permission() {
        let access = access(&[(json!({}), "Allow"), (json!({"app": "a"}), "Deny"), (json!({"app": "b"}), "Deny")]);
        let of = |app| allows(&access, &[("app", app)]);
        assert_eq!((of("a"), of("b"), of("c")), (false, false, true));
    }

    #[test]
    fn thousand_denials_stay_small() {
        let denials = (0..1000).map(|i| (json!({"app": format!("a{i}")}), "Deny"));
        let items: Vec<_> = std::iter::once((json!({}), "Allow")).chain(denials).collect();
        let access = access(&items);
        assert!(prost::Message::encoded_len(access.rules.as_ref().unwrap()) < 200_000);
        assert!(allows(&access, &[("app", "b")]) && !allows(&access, &[("app", "a999")]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A client is let in exactly when the last item that speaks about it says so.
        #[test]
        fn the_last_item_counts(items in prop::collection::vec(
            (prop::option::of(select(vec!["1", "2", "3"])), prop::option::of(select(vec!["1", "2"])), any::<bool>()), 0..6))
        {
            let tags = |a: &Option<&'static str>, b: &Option<&'static str>| -> Vec<(&'static str, &'static str)> {
                a.iter().map(|v| ("a", *v)).chain(b.iter().map(|v| ("b", *v))).collect()
            };
            let object = |t: Vec<(&str, &str)>| json!(t.into_iter().collect::<BTreeMap<_, _>>());
            let action = |allow: bool| if allow { "Allow" } else { "Deny" };
            let from: Vec<(Value, &str)> = items.iter().map(|(a, b, allow)| (object(tags(a, b)), action(*allow))).collect();
            let access = access(&from);
            for a in [None, Some("1"), Some("2"), Some("3"), Some("4")] {
                for b in [None, Some("1"), Some("2"), Some("3")] {
                    let speaks = |i: &&(Option<&str>, Option<&str>, bool)| (i.0.is_none() || i.0 == a) && (i.1.is_none() || i.1 == b);
                    let want = items.iter().rev().find(speaks).is_some_and(|i| i.2);
                    prop_assert_eq!(allows(&access, &tags(&a, &b)), want, "client a={:?} b={:?}", a, b);
                }
            }
        }
    }

    #[test]
    fn a_denial_of_everyone_leaves_nothing() {
        let allow = json!([{"spiffeID": {"type": "Prefix", "value": "spiffe://m"}}]);
        let matchers = |deny: Value| {
            let policy = policy(&json!({"rules": [{"default": {"allow": allow, "deny": deny}}]}));
            match by_matches(&inbound_rules([&policy])).matcher.unwrap().matcher_type {
                Some(MatcherType::MatcherList(list)) => list.matchers.len(),
                _ => 0,
            }
        };
        assert_eq!(matchers(json!([])), 1);
        assert_eq!(matchers(json!([{"sni": {"type": "Exact", "value": "s"}}])), 2);
        let sni = json!({"type": "Exact", "value": "s"});
        for everyone in [json!({}), json!({"spiffeID": {"type": "Regex", "value": "x"}}), json!({"sni": sni, "spiffeID": {}})] {
            assert_eq!(matchers(json!([{ "sni": sni }, everyone])), 0, "{everyone}");
        }
    }
}
