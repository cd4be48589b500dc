//! MeshTimeout by the client's identity: routes of inbounds that match on what the TLS handshake left in the filter state
//! (policy contract §4.1, "source-conditioned routes").

use super::conf::Conf;
use crate::{
    proto::{exact, prefix},
    resources::{Chain, NetworkFilter, network_filter},
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{DataSource, SubstitutionFormatString, data_source, substitution_format_string},
        route::v3::{Route, VirtualHost, route, route_action::ClusterSpecifier},
    },
    extensions::filters::{
        common::set_filter_state::v3::{FilterStateValue, filter_state_value},
        network::set_filter_state::v3::Config,
    },
    r#type::matcher::v3::{FilterStateMatcher, StringMatcher, filter_state_matcher},
};
use ikada_policy::{
    InboundRule, merge,
    spec::{Match, MatchType, ValueMatch},
};
use serde_json::Value;
use std::sync::Arc;

const SET_FILTER_STATE: &str = "envoy.filters.network.set_filter_state";
const ID_KEY: &str = "kuma.mesh_timeout.match.spiffe_id";
const SNI_KEY: &str = "kuma.mesh_timeout.match.sni";

/// A rule with everything that weaker rules say about the same clients merged in.
struct Effective<'a> {
    id: &'a ValueMatch,
    sni: Option<&'a ValueMatch>,
    conf: Arc<Value>,
}

/// Adds the routes to every chain of an inbound. `rules`: most specific first.
pub(crate) fn apply(chains: &mut [Chain], rules: &[InboundRule]) {
    let effective = effective(rules);
    if effective.is_empty() {
        return;
    }
    let mut values = vec![value(ID_KEY, "%DOWNSTREAM_PEER_URI_SAN%")];
    if effective.iter().any(|e| e.sni.is_some()) {
        values.push(value(SNI_KEY, "%REQUESTED_SERVER_NAME%"));
    }
    let filter = network_filter(SET_FILTER_STATE, &Config { on_downstream_tls_handshake: values, ..Default::default() });
    for chain in chains {
        if !chain.filters.iter().any(|f| matches!(f, NetworkFilter::Other(f) if f.name == SET_FILTER_STATE)) {
            chain.filters.insert(0, NetworkFilter::Other(Box::new(filter.clone())));
        }
        for host in chain.hcms_mut().flat_map(|h| &mut h.routes.virtual_hosts) {
            condition(host, &effective);
        }
    }
}

fn effective(rules: &[InboundRule]) -> Vec<Effective<'_>> {
    let mut kept: Vec<(&ValueMatch, &Match, &InboundRule)> = rules
        .iter()
        .filter_map(|r| {
            let m = r.r#match.as_ref()?;
            let http = Conf(&r.conf).at("http");
            let speaks = http.at("requestTimeout").is_set() || http.at("streamIdleTimeout").is_set();
            Some((m.spiffe_id.as_ref()?, m, r)).filter(|_| speaks)
        })
        .collect();
    // By specificity as all inbound rules; where that is equal, the longer prefix is the more specific.
    kept.sort_by_key(|(id, m, _)| {
        let length = if id.kind == MatchType::Prefix { id.value.len() } else { 0 };
        (id.kind, m.sni.is_none(), std::cmp::Reverse(length))
    });
    let mut out: Vec<Effective<'_>> = Vec::new();
    for (id, m, _) in &kept {
        if out.iter().any(|e| e.id == *id && e.sni == m.sni.as_ref()) {
            continue;
        }
        // Least specific first, so that the most specific has the last word.
        let confs: Vec<Arc<Value>> =
            kept.iter().rev().filter(|(_, other, _)| subsumes(other, m)).map(|(_, _, rule)| rule.conf.clone()).collect();
        out.push(Effective { id, sni: m.sni.as_ref(), conf: merge(&confs) });
    }
    out
}

/// Every client that `narrow` speaks about is one that `wide` speaks about.
fn subsumes(wide: &Match, narrow: &Match) -> bool {
    let ids = match (&wide.spiffe_id, &narrow.spiffe_id) {
        (Some(w), Some(n)) if w.kind == MatchType::Prefix => n.value.starts_with(&w.value),
        (Some(w), Some(n)) => n.kind == MatchType::Exact && w.value == n.value,
        (wide, _) => wide.is_none(),
    };
    ids && (wide.sni.is_none() || wide.sni == narrow.sni)
}

// Envoy deprecates read_only, as filter state becomes read-only by itself; proxies of the supported versions still need it.
#[expect(deprecated)]
fn value(key: &str, format: &str) -> FilterStateValue {
    let source = DataSource { specifier: Some(data_source::Specifier::InlineString(format.to_owned())), ..Default::default() };
    let format =
        SubstitutionFormatString { format: Some(substitution_format_string::Format::TextFormatSource(source)), ..Default::default() };
    FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey(key.to_owned())),
        value: Some(filter_state_value::Value::FormatString(format)),
        factory_key: "envoy.string".to_owned(),
        read_only: true,
        skip_if_empty: true,
        ..Default::default()
    }
}

fn matcher(key: &str, value: StringMatcher) -> FilterStateMatcher {
    FilterStateMatcher { key: key.to_owned(), matcher: Some(filter_state_matcher::Matcher::StringMatch(value)) }
}

fn condition(host: &mut VirtualHost, effective: &[Effective<'_>]) {
    let originals = std::mem::take(&mut host.routes);
    for original in originals {
        if leads_somewhere(&original) {
            host.routes.extend(effective.iter().map(|e| conditioned(&original, e)));
        }
        host.routes.push(original);
    }
}

fn leads_somewhere(r: &Route) -> bool {
    let Some(route::Action::Route(action)) = &r.action else { return false };
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name) | ClusterSpecifier::ClusterHeader(name)) => !name.is_empty(),
        Some(ClusterSpecifier::WeightedClusters(w)) => !w.clusters.is_empty(),
        _ => false,
    }
}

fn conditioned(original: &Route, e: &Effective<'_>) -> Route {
    let mut r = original.clone();
    let id = if e.id.kind == MatchType::Prefix { prefix(&e.id.value) } else { exact(&e.id.value) };
    let states = &mut r.r#match.get_or_insert_default().filter_state;
    states.push(matcher(ID_KEY, id));
    states.extend(e.sni.map(|sni| matcher(SNI_KEY, exact(&sni.value))));
    if let Some(route::Action::Route(action)) = &mut r.action {
        let http = Conf(&e.conf).at("http");
        action.timeout = http.at("requestTimeout").duration().or(action.timeout);
        action.idle_timeout = http.at("streamIdleTimeout").duration().or(action.idle_timeout);
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hcm::{http, manager, prefix_route, to_cluster},
        proto::seconds,
        resources::Hcm,
    };
    use ikada_model::{Json, Key, Kind, Resource};
    use ikada_policy::RuleOrigin;
    use serde_json::json;

    fn rule(id: (MatchType, &str), sni: Option<&str>, conf: Value) -> InboundRule {
        let value = |kind, text: &str| ValueMatch { kind, value: text.to_owned() };
        let policy = Arc::new(Resource::new(Key::new(Kind::MeshTimeout, "default", "t"), Json::default()));
        InboundRule {
            r#match: Some(Match { spiffe_id: Some(value(id.0, id.1)), sni: sni.map(|s| value(MatchType::Exact, s)) }),
            conf: Arc::new(json!({ "http": conf })),
            origin: RuleOrigin { policy, index: 0 },
        }
    }

    #[test]
    fn a_server_name_goes_before_the_length_of_a_prefix() {
        let rules = [
            rule((MatchType::Prefix, "spiffe://a/long"), None, json!({"requestTimeout": "1s"})),
            rule((MatchType::Prefix, "spiffe://a"), Some("s"), json!({"requestTimeout": "2s"})),
            rule((MatchType::Prefix, "spiffe://a/l"), None, json!({"requestTimeout": "3s"})),
        ];
        let ids: Vec<_> = effective(&rules).iter().map(|e| (e.id.value.clone(), e.sni.is_some())).collect();
        assert_eq!(ids, [("spiffe://a".into(), true), ("spiffe://a/long".into(), false), ("spiffe://a/l".into(), false)]);
    }

    #[test]
    fn narrow_rules_inherit_from_wide_ones() {
        let rules = [
            rule((MatchType::Exact, "spiffe://a/b"), Some("s"), json!({"streamIdleTimeout": "6s"})),
            rule((MatchType::Prefix, "spiffe://"), None, json!({"requestTimeout": "1s", "streamIdleTimeout": "1s"})),
            rule((MatchType::Prefix, "spiffe://a/"), None, json!({"requestTimeout": "7s"})),
            rule((MatchType::Prefix, "spiffe://a/long"), None, json!({"maxStreamDuration": "7s"})),
        ];
        let hcm: Hcm = manager("x", &[], "", "", vec![prefix_route("/", to_cluster("local"))]);
        let mut chains = [Chain { filters: vec![http(hcm)], ..Default::default() }];
        apply(&mut chains, &rules);
        apply(&mut chains[..0], &rules);
        assert_eq!(chains[0].filters.len(), 2);
        let routes: Vec<_> = chains[0].hcms_mut().flat_map(|h| h.routes.virtual_hosts[0].routes.clone()).collect();
        let seen: Vec<_> = routes
            .iter()
            .map(|r| {
                let Some(route::Action::Route(a)) = &r.action else { panic!("{r:?}") };
                (r.r#match.as_ref().unwrap().filter_state.len(), a.timeout, a.idle_timeout)
            })
            .collect();
        assert_eq!(seen, [(2, seconds(7), seconds(6)), (1, seconds(7), seconds(1)), (1, seconds(1), seconds(1)), (0, None, None)]);
    }
}
