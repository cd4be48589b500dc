//! A set that only grows: what was acknowledged is there, and nothing else (Jepsen's `set-full`).
//!
//! `:add n`; `:read #{…}` is linearizable: it has every element that was known before it began. `:read-local` and `:read-stale` may miss
//! elements, but contain only what somebody tried to add.

use super::Verdict;
use crate::{
    edn::Edn,
    history::{Op, Type},
};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Additions that were tried.
    pub attempts: usize,
    /// Acknowledged ones.
    pub acknowledged: usize,
    /// Indeterminate ones that took effect.
    pub recovered: usize,
    /// Answered linearizable reads.
    pub reads: usize,
}

/// What is known about one element.
struct Element {
    begun: u64,
    outcome: Type,
    /// Index from which on every linearizable read that begins has to show it.
    known: Option<u64>,
    seen: bool,
}

/// Checks a history. Unknown when no linearizable read began after the last acknowledged addition.
pub fn check(ops: &[Op]) -> Result<(Verdict, Summary)> {
    let mut elements: BTreeMap<i64, Element> = BTreeMap::new();
    let mut reads = Vec::new();
    for op in ops {
        if op.f() == "add" {
            let n = op.invoke.value.as_int().with_context(|| format!("{op}: no number"))?;
            elements.insert(n, Element { begun: op.invoke.index, outcome: op.outcome(), known: op.ok_index(), seen: false });
        } else if let (Some(value), Some(end)) = (op.ok_value(), op.ok_index()) {
            let items = value.items().with_context(|| format!("{op}: no set"))?;
            let items: BTreeSet<i64> = items.iter().filter_map(Edn::as_int).collect();
            reads.push((op, items, end));
        }
    }
    let mut findings = Vec::new();
    for (op, items, end) in &reads {
        for n in items {
            match elements.get_mut(n) {
                None => findings.push(format!("{n} was never added, but shown by process {} :{} [{end}]", op.invoke.process, op.f())),
                Some(e) if e.begun > *end => findings.push(format!("{n} was shown [{end}] before its addition began [{}]", e.begun)),
                Some(e) if e.outcome == Type::Fail => {
                    findings.push(format!("{n} was refused for certain, but shown by process {} :{} [{end}]", op.invoke.process, op.f()));
                }
                Some(e) => {
                    if op.f() == "read" {
                        e.seen = true;
                        e.known = Some(e.known.map_or(*end, |k| k.min(*end)));
                    }
                }
            }
        }
    }
    let linearizable: Vec<_> = reads.iter().filter(|(op, ..)| op.f() == "read").collect();
    let last = linearizable.iter().max_by_key(|(op, ..)| op.invoke.index);
    for (n, e) in &elements {
        let Some(known) = e.known else { continue };
        let missing = linearizable.iter().find(|(op, items, _)| op.invoke.index > known && !items.contains(n));
        let Some((op, ..)) = missing else { continue };
        let gone = last.is_some_and(|(_, items, _)| !items.contains(n));
        findings.push(format!("{n}, known since {known}, is {} at {}", if gone { "lost" } else { "missing for a while" }, op.invoke.index));
    }
    let summary = Summary {
        attempts: elements.len(),
        acknowledged: elements.values().filter(|e| e.outcome == Type::Ok).count(),
        recovered: elements.values().filter(|e| e.outcome == Type::Info && e.seen).count(),
        reads: linearizable.len(),
    };
    let acknowledged_until = ops.iter().filter(|o| o.f() == "add").filter_map(Op::ok_index).max();
    let complete = last.is_some_and(|(op, ..)| acknowledged_until.is_none_or(|a| op.invoke.index > a));
    let verdict = match Verdict::of(findings) {
        Verdict::Valid if !complete => Verdict::Unknown("no linearizable read after the last addition was answered".into()),
        v => v,
    };
    Ok((verdict, summary))
}
