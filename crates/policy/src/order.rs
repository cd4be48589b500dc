//! Precedence of policies and of their items, weakest first (reference: Kuma 2.14.3 policy contract, §1.6).

use crate::spec::{RefKind, TargetRef, role};
use ikada_model::{Resource, labels};
use std::cmp::Ordering;

/// Policies: keys 1 to 5 and 7.
pub fn policies(a: (&Resource, &TargetRef), b: (&Resource, &TargetRef)) -> Ordering {
    top_level(a, b).then_with(|| gateway_tags(a.1, b.1)).then_with(|| role(a.0).cmp(&role(b.0))).then_with(|| names(a.0, b.0))
}

/// Items of inbound lists: as policies, without the gateway key.
pub fn inbound_items(a: (&Resource, &TargetRef), b: (&Resource, &TargetRef)) -> Ordering {
    top_level(a, b).then_with(|| role(a.0).cmp(&role(b.0))).then_with(|| names(a.0, b.0))
}

/// Items of `to` for real resources: (policy, top level, item).
pub fn to_items(a: (&Resource, &TargetRef, &TargetRef), b: (&Resource, &TargetRef, &TargetRef)) -> Ordering {
    top_level((a.0, a.1), (b.0, b.1))
        .then_with(|| role(a.0).cmp(&role(b.0)))
        .then_with(|| a.2.kind.cmp(&b.2.kind))
        .then_with(|| match (a.2.kind, b.2.kind) {
            (RefKind::MeshService, RefKind::MeshService) => has_section(a.2).cmp(&has_section(b.2)),
            _ => Ordering::Equal,
        })
        .then_with(|| names(a.0, b.0))
}

fn top_level(a: (&Resource, &TargetRef), b: (&Resource, &TargetRef)) -> Ordering {
    let by_dataplane = || match (a.1.kind, b.1.kind) {
        (RefKind::Dataplane, RefKind::Dataplane) => {
            let how = match (selects_by(a.1), selects_by(b.1)) {
                (Some(x), Some(y)) => x.cmp(&y),
                _ => Ordering::Equal,
            };
            how.then_with(|| has_section(a.1).cmp(&has_section(b.1)))
        }
        _ => Ordering::Equal,
    };
    a.1.kind.cmp(&b.1.kind).then_with(by_dataplane).then_with(|| origin(a.0).cmp(&origin(b.0)))
}

/// 0 by labels, 1 by name; `None` for every dataplane, which is as strong as either.
fn selects_by(t: &TargetRef) -> Option<u8> {
    if !t.labels.is_empty() {
        Some(0)
    } else if !t.name.is_empty() {
        Some(1)
    } else {
        None
    }
}

fn has_section(t: &TargetRef) -> bool {
    !t.section_name.is_empty()
}

fn origin(r: &Resource) -> u8 {
    match r.label(labels::ORIGIN) {
        Some("global") => 1,
        Some("zone") => 3,
        _ => 2,
    }
}

fn gateway_tags(a: &TargetRef, b: &TargetRef) -> Ordering {
    match (a.kind, b.kind) {
        (RefKind::MeshGateway, RefKind::MeshGateway) => a.tags.len().cmp(&b.tags.len()),
        _ => Ordering::Equal,
    }
}

/// Reverse: the first name in byte order is the strongest.
fn names(a: &Resource, b: &Resource) -> Ordering {
    b.display_name().cmp(a.display_name())
}

/// Stable sort that takes any comparison. The precedence is not transitive where `kind: Dataplane` meets labels and names, which the
/// standard sort may answer with a panic. Insertion within blocks, then merging; equal to insertion sort for up to 20 elements, as in Go.
pub fn stable_sort<T>(items: Vec<T>, cmp: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    const BLOCK: usize = 20;
    let mut runs: Vec<Vec<T>> = Vec::new();
    for item in items {
        match runs.last_mut().filter(|r| r.len() < BLOCK) {
            Some(run) => {
                let at = run.iter().rposition(|x| cmp(&item, x) != Ordering::Less).map_or(0, |i| i + 1);
                run.insert(at, item);
            }
            None => runs.push(vec![item]),
        }
    }
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut pairs = runs.into_iter();
        while let Some(a) = pairs.next() {
            merged.push(match pairs.next() {
                Some(b) => merge_runs(a, b, &cmp),
                None => a,
            });
        }
        runs = merged;
    }
    runs.pop().unwrap_or_default()
}

fn merge_runs<T>(a: Vec<T>, b: Vec<T>, cmp: &impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (Some(x), Some(y)) => out.extend(if cmp(y, x) == Ordering::Less { b.next() } else { a.next() }),
            (Some(_), None) => out.extend(a.next()),
            (None, Some(_)) => out.extend(b.next()),
            (None, None) => return out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_like_the_standard_sort(v in prop::collection::vec(0u8..10, 0..100)) {
            let items: Vec<(u8, usize)> = v.iter().copied().zip(0..).collect();
            let mut want = items.clone();
            want.sort_by_key(|x| x.0);
            prop_assert_eq!(stable_sort(items, |a, b| a.0.cmp(&b.0)), want);
        }
        #[test]
        fn takes_any_comparison(v in prop::collection::vec(any::<u8>(), 0..100)) {
            let n = v.len();
            let out = stable_sort(v, |a, b| if (a ^ b) % 3 == 0 { Ordering::Less } else { Ordering::Greater });
            prop_assert_eq!(out.len(), n);
        }
    }
}
