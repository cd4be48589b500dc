//! Rules for incoming traffic, from `rules` lists and `from` lists read as such (reference: Kuma 2.14.3 policy contract, §1.11).

use crate::{
    order,
    rules::{InboundRule, RuleOrigin},
    spec::{Match, MatchType, PolicySpec, ValueMatch},
};
use ikada_model::Resource;
use serde_json::Value;
use std::sync::Arc;

struct Entry<'a> {
    policy: &'a Arc<Resource>,
    spec: &'a PolicySpec,
    index: usize,
    matches: &'a [Match],
    conf: Arc<Value>,
}

/// How specific a match is; greater is more specific: identity exact, identity prefix, no identity, then sni or none.
pub fn specificity(m: Option<&Match>) -> (u8, u8) {
    let rank = |v: Option<&ValueMatch>| match v.map(|v| v.kind) {
        Some(MatchType::Exact) => 2,
        Some(MatchType::Prefix) => 1,
        None => 0,
    };
    (rank(m.and_then(|m| m.spiffe_id.as_ref())), u8::from(m.is_some_and(|m| m.sni.is_some())))
}

/// Rules of policies that matched one inbound, most specific first, then weakest first.
pub fn inbound_rules<'a>(policies: impl IntoIterator<Item = &'a Arc<Resource>>) -> Vec<InboundRule> {
    let mut entries = Vec::new();
    for policy in policies {
        let Some(spec) = policy.view::<PolicySpec>() else { continue };
        let from_as_rules = policy.kind().descriptor().policy.is_some_and(|p| p.from_as_rules);
        for (index, r) in spec.rules.iter().enumerate() {
            entries.push(Entry { policy, spec, index, matches: &r.matches, conf: r.default.clone() });
        }
        if spec.rules.is_empty() && from_as_rules {
            for (index, item) in spec.from.iter().enumerate() {
                entries.push(Entry { policy, spec, index, matches: &[], conf: item.conf.clone() });
            }
        }
    }
    let entries = order::stable_sort(entries, |a, b| {
        order::inbound_items((a.policy, &a.spec.target_ref), (b.policy, &b.spec.target_ref))
    });
    let mut rules = Vec::new();
    for e in entries {
        let origin = RuleOrigin { policy: e.policy.clone(), index: e.index };
        let rule = |m: Option<&Match>| InboundRule { r#match: m.cloned(), conf: e.conf.clone(), origin: origin.clone() };
        if e.matches.is_empty() {
            rules.push(rule(None));
        }
        rules.extend(e.matches.iter().map(|m| rule(Some(m))));
    }
    rules.sort_by_key(|r| std::cmp::Reverse(specificity(r.r#match.as_ref())));
    rules
}
