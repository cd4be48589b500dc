//! Rules by tags: `from` lists and `to` lists for legacy outbounds (reference: Kuma 2.14.3 policy contract, §1.8, §1.9).

use crate::{
    merge::conf_list,
    rules::{SubsetRule, SubsetTag},
    spec::{RefKind, Tags, TargetRef},
};
use ikada_model::{Resource, labels::TAG_SERVICE};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Tag of a rule that speaks about one rule of a MeshHTTPRoute.
pub const RULE_MATCHES_HASH_TAG: &str = "__rule-matches-hash__";

/// How many subsets the items of one list may be split into. Real meshes stay below a hundred.
const MAX_SUBSETS: usize = 65_536;

/// Bound on the work of finding groups, in visited nodes of the search.
const MAX_GROUP_STEPS: usize = 1 << 20;

/// An item of a list as a set of tags.
#[derive(Clone, Debug)]
pub(crate) struct TagItem {
    pub tags: Tags,
    pub conf: Arc<Value>,
    pub policy: Arc<Resource>,
}

/// Tags that a reference stands for; `None` for kinds that cannot be said in tags.
pub(crate) fn tags_of(target: &TargetRef) -> Option<Tags> {
    let service = || (TAG_SERVICE.to_owned(), target.name.clone());
    match target.kind {
        RefKind::Mesh => Some(Tags::new()),
        RefKind::MeshSubset => Some(target.tags.clone()),
        RefKind::MeshService => Some(Tags::from([service()])),
        RefKind::MeshServiceSubset => {
            let mut tags = target.tags.clone();
            tags.extend([service()]);
            Some(tags)
        }
        _ => None,
    }
}

/// Rules with negations: every client falls into one subset of each group. `disable_cliques`: groups are connected components.
pub(crate) fn with_negations(items: &[TagItem], disable_cliques: bool) -> Result<Vec<SubsetRule>, String> {
    let too_many = || format!("the tags of {} items combine to more than {MAX_SUBSETS} subsets", items.len());
    // Items with equal tags always share their groups: find groups of distinct tag sets.
    let mut distinct: Vec<(&Tags, Vec<usize>)> = Vec::new();
    let mut index: BTreeMap<&Tags, usize> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let at = *index.entry(&item.tags).or_insert_with(|| {
            distinct.push((&item.tags, Vec::new()));
            distinct.len() - 1
        });
        if let Some(d) = distinct.get_mut(at) {
            d.1.push(i);
        }
    }
    let neighbours: Vec<BTreeSet<usize>> = distinct
        .iter()
        .enumerate()
        .map(|(i, (a, _))| distinct.iter().enumerate().filter(|(j, (b, _))| i != *j && can_share(a, b)).map(|(j, _)| j).collect())
        .collect();
    // A few dozen items can have millions of groups: what they cost is looked at while they are found.
    let mut room = MAX_SUBSETS;
    let mut affordable = |group: &BTreeSet<usize>| {
        let tags = group.iter().filter_map(|d| distinct.get(*d)).flat_map(|(tags, _)| *tags);
        let left = subsets(&dimensions(tags)).and_then(|n| room.checked_sub(n));
        room = left.unwrap_or(0);
        left.is_some()
    };
    let groups = if disable_cliques { components(&neighbours) } else { cliques(&neighbours, &mut affordable).ok_or_else(too_many)? };
    let mut groups: Vec<(String, BTreeSet<usize>)> = groups
        .into_iter()
        .map(|g| {
            let members: BTreeSet<usize> = g.iter().filter_map(|d| distinct.get(*d)).flat_map(|(_, items)| items.iter().copied()).collect();
            (members.iter().map(usize::to_string).collect::<Vec<_>>().join(":"), members)
        })
        .collect();
    groups.sort_by(|a, b| b.0.cmp(&a.0));
    let mut rules = Vec::new();
    let mut budget = MAX_SUBSETS;
    for (_, group) in &groups {
        let members: Vec<(usize, &TagItem)> = group.iter().filter_map(|i| Some((*i, items.get(*i)?))).collect();
        for subset in partition(&members, &mut budget).ok_or_else(too_many)? {
            let relevant: Vec<(usize, &TagItem)> = members.iter().copied().filter(|(_, i)| item_contains(&i.tags, &subset)).collect();
            push_rules(&mut rules, subset, &relevant);
        }
    }
    rules.sort_by_key(|r| std::cmp::Reverse(r.subset.iter().filter(|t| !t.not).count()));
    Ok(rules)
}

/// Rules without negations when at most one tag key occurs, else as [`with_negations`].
pub(crate) fn without_negations(items: &[TagItem], disable_cliques: bool) -> Result<Vec<SubsetRule>, String> {
    let keys: BTreeSet<&String> = items.iter().flat_map(|i| i.tags.keys()).collect();
    if keys.len() > 1 {
        return with_negations(items, disable_cliques);
    }
    let mut seen = BTreeSet::new();
    let mut rules = Vec::new();
    // The value of the one key decides what is relevant; going over all items per subset would be quadratic.
    let mut by_tags: BTreeMap<&Tags, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        by_tags.entry(&item.tags).or_default().push(i);
    }
    let everyone = by_tags.get(&Tags::new()).cloned().unwrap_or_default();
    for item in items {
        if !seen.insert(&item.tags) {
            continue;
        }
        let mut relevant = by_tags.get(&item.tags).cloned().unwrap_or_default();
        if !item.tags.is_empty() {
            relevant.extend(&everyone);
            relevant.sort_unstable();
        }
        let relevant: Vec<(usize, &TagItem)> = relevant.iter().filter_map(|i| Some((*i, items.get(*i)?))).collect();
        let subset = item.tags.iter().map(|(k, v)| SubsetTag { key: k.clone(), value: v.clone(), not: false }).collect();
        push_rules(&mut rules, subset, &relevant);
    }
    rules.sort_by_key(|r: &SubsetRule| std::cmp::Reverse(r.subset.len()));
    Ok(rules)
}

/// The rule of kinds with one `default`.
pub(crate) fn single(items: &[TagItem]) -> Option<SubsetRule> {
    let mut rules = Vec::new();
    push_rules(&mut rules, Vec::new(), &items.iter().enumerate().collect::<Vec<_>>());
    rules.pop()
}

fn push_rules(rules: &mut Vec<SubsetRule>, subset: Vec<SubsetTag>, relevant: &[(usize, &TagItem)]) {
    let Some(kind) = relevant.first().map(|(_, i)| i.policy.kind()) else { return };
    let mut seen = BTreeSet::new();
    let origins: Vec<Arc<Resource>> = relevant.iter().filter(|(_, i)| seen.insert(&i.policy.key)).map(|(_, i)| i.policy.clone()).collect();
    let mut origin_by_matches = BTreeMap::new();
    for (_, i) in relevant {
        for hash in crate::http_route::hashes(kind, &i.conf) {
            origin_by_matches.insert(hash, i.policy.clone());
        }
    }
    let confs: Vec<Arc<Value>> = relevant.iter().map(|(_, i)| i.conf.clone()).collect();
    for conf in conf_list(kind, &confs) {
        rules.push(SubsetRule {
            subset: subset.clone(),
            conf,
            origins: origins.clone(),
            items: relevant.iter().map(|(at, _)| *at).collect(),
            origin_by_matches: origin_by_matches.clone(),
        });
    }
}

/// Some client can have both sets of tags.
fn can_share(a: &Tags, b: &Tags) -> bool {
    a.iter().all(|(k, v)| b.get(k).is_none_or(|w| w == v))
}

/// The item speaks about all clients of the subset.
fn item_contains(item: &Tags, subset: &[SubsetTag]) -> bool {
    item.iter().all(|(k, v)| {
        let mut of_key = subset.iter().filter(|t| t.key == *k).peekable();
        of_key.peek().is_some() && of_key.all(|t| !t.not && t.value == *v)
    })
}

/// Values of each key.
fn dimensions<'a>(tags: impl Iterator<Item = (&'a String, &'a String)>) -> BTreeMap<&'a String, BTreeSet<&'a String>> {
    let mut dims: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (k, v) in tags {
        dims.entry(k).or_default().insert(v);
    }
    dims
}

/// Number of subsets that they make: each value of a key, or none of them.
fn subsets(dims: &BTreeMap<&String, BTreeSet<&String>>) -> Option<usize> {
    dims.values().try_fold(1usize, |n, values| n.checked_mul(values.len() + 1))
}

/// All subsets that the tags of a group make, in the order of an odometer whose first wheel turns fastest. `None`: over the budget.
fn partition(members: &[(usize, &TagItem)], budget: &mut usize) -> Option<Vec<Vec<SubsetTag>>> {
    let dims = dimensions(members.iter().flat_map(|(_, i)| &i.tags));
    let total = subsets(&dims)?;
    let dims: Vec<(&String, Vec<&String>)> = dims.into_iter().map(|(k, v)| (k, v.into_iter().collect())).collect();
    *budget = budget.checked_sub(total)?;
    let mut wheels = vec![0usize; dims.len()];
    let mut all = Vec::with_capacity(total);
    for _ in 0..total {
        for (wheel, (_, values)) in wheels.iter_mut().zip(&dims) {
            *wheel = if *wheel == values.len() { 0 } else { *wheel + 1 };
            if *wheel != 0 {
                break;
            }
        }
        let mut subset = Vec::new();
        for (wheel, (key, values)) in wheels.iter().zip(&dims) {
            let tag = |value: &&String, not| SubsetTag { key: (*key).clone(), value: (*value).clone(), not };
            match values.len().checked_sub(wheel + 1).and_then(|i| values.get(i)) {
                Some(value) => subset.push(tag(value, false)),
                None => subset.extend(values.iter().map(|v| tag(v, true))),
            }
        }
        all.push(subset);
    }
    Some(all)
}

fn components(neighbours: &[BTreeSet<usize>]) -> Vec<BTreeSet<usize>> {
    let mut seen = vec![false; neighbours.len()];
    let mut all = Vec::new();
    for start in 0..neighbours.len() {
        let mut todo = vec![start];
        let mut group = BTreeSet::new();
        while let Some(n) = todo.pop() {
            if let Some(s) = seen.get_mut(n).filter(|s| !**s) {
                *s = true;
                group.insert(n);
                todo.extend(neighbours.get(n).into_iter().flatten());
            }
        }
        if !group.is_empty() {
            all.push(group);
        }
    }
    all
}

/// Maximal cliques (Bron–Kerbosch with a pivot), without recursion. `None`: too much work, or one that is not affordable.
fn cliques(neighbours: &[BTreeSet<usize>], affordable: &mut impl FnMut(&BTreeSet<usize>) -> bool) -> Option<Vec<BTreeSet<usize>>> {
    let empty = BTreeSet::new();
    let of = |n: usize| neighbours.get(n).unwrap_or(&empty);
    let mut all = Vec::new();
    let mut steps = 0usize;
    let mut stack = vec![(BTreeSet::new(), (0..neighbours.len()).collect::<BTreeSet<usize>>(), BTreeSet::new())];
    while let Some((clique, mut candidates, mut excluded)) = stack.pop() {
        steps += 1;
        if steps > MAX_GROUP_STEPS {
            return None;
        }
        let pivot = candidates.union(&excluded).copied().max_by_key(|n| of(*n).intersection(&candidates).count());
        let Some(pivot) = pivot else {
            if !clique.is_empty() {
                if !affordable(&clique) {
                    return None;
                }
                all.push(clique);
            }
            continue;
        };
        for v in candidates.difference(of(pivot)).copied().collect::<Vec<_>>() {
            let mut bigger: BTreeSet<usize> = clique.clone();
            bigger.insert(v);
            stack.push((bigger, candidates.intersection(of(v)).copied().collect(), excluded.intersection(of(v)).copied().collect()));
            candidates.remove(&v);
            excluded.insert(v);
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind};
    use serde_json::json;

    fn item(policy: &str, tags: &[(&str, &str)], conf: &str) -> TagItem {
        let policy = Resource::new(Key::new(Kind::MeshTrafficPermission, "m", policy), Json::default());
        let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        TagItem { tags, conf: Arc::new(json!({ "action": conf })), policy: Arc::new(policy) }
    }
    fn show(rules: &[SubsetRule]) -> Vec<String> {
        let tag = |t: &SubsetTag| format!("{}{}{}", t.key, if t.not { "≠" } else { "=" }, t.value);
        rules.iter().map(|r| format!("{} {}", r.subset.iter().map(tag).collect::<Vec<_>>().join(","), r.conf["action"].as_str().unwrap())).collect()
    }

    #[test]
    fn order_of_the_reference() {
        let items = [item("p", &[], "x"), item("p", &[("s", "orders"), ("v", "v1")], "a"), item("p", &[("s", "orders"), ("v", "v2")], "b")];
        let members: Vec<(usize, &TagItem)> = items.iter().enumerate().collect();
        let subsets: Vec<String> = partition(&members, &mut 100)
            .unwrap()
            .iter()
            .map(|s| s.iter().map(|t| format!("{}{}", if t.not { "-" } else { "" }, t.value)).collect::<Vec<_>>().join(","))
            .collect();
        assert_eq!(subsets, ["-orders,v2", "orders,v1", "-orders,v1", "orders,-v1,-v2", "-orders,-v1,-v2", "orders,v2"]);
    }

    #[test]
    fn disjoint_items_do_not_interact() {
        let items = [item("p", &[("s", "backend")], "Allow"), item("p", &[("s", "web"), ("version", "v1")], "Deny")];
        assert_eq!(show(&with_negations(&items, false).unwrap()), ["s=web,version=v1 Deny", "s=backend Allow"]);
    }

    #[test]
    fn everyone_but_one() {
        let items = [item("p", &[], "Deny"), item("p", &[("s", "orders")], "Allow")];
        assert_eq!(show(&with_negations(&items, false).unwrap()), ["s=orders Allow", "s≠orders Deny"]);
        assert_eq!(show(&without_negations(&items, false).unwrap()), ["s=orders Allow", " Deny"]);
    }

    #[test]
    fn too_many_subsets_are_refused() {
        let tags: Vec<(String, String)> = (0..20).map(|i| (format!("k{i}"), "v".to_owned())).collect();
        let tags: Vec<(&str, &str)> = tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert!(with_negations(&[item("p", &tags, "x")], false).unwrap_err().contains("subsets"));
    }

    #[test]
    fn millions_of_groups_are_refused_at_once() {
        // One of three values for each of 13 keys: 3^13 groups.
        let items: Vec<TagItem> =
            (0..13).flat_map(|k| ["a", "b", "c"].map(|v| item("p", &[(&*format!("k{k}"), v)], "x"))).collect();
        let start = std::time::Instant::now();
        assert!(with_negations(&items, false).unwrap_err().contains("subsets"));
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
