//! What revisions promise, over all keys and nodes: the order that the log claims is the order that clients saw.
//!
//! Ends of operations carry `:revision` (of a write: the index of its log entry; of a read: the state that it was read from), reads of one
//! key
//! also `:version` (the index of the entry that wrote the value), both also `:node` and `:boot` (which start of that node answered).
//!
//! - A write has an index of its own, above everything that was answered before it began: also above what linearizable reads showed.
//! - A linearizable read shows a state that is not older than anything answered before it began.
//! - Any read, also a local or stale one, shows the newest acknowledged write of the state that it claims to show.
//! - A value is written once, however often the request was repeated: two versions of one value are two effects.
//! - A node that answered does not go back afterwards, until it starts anew; it shows what was written through it.

use super::Verdict;
use crate::{edn::Edn, history::Op};
use std::collections::BTreeMap;

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Writes with a revision.
    pub writes: usize,
    /// Linearizable reads with a revision.
    pub reads: usize,
    /// Local and stale reads with a revision.
    pub weak: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Write,
    Read,
    Weak,
}

fn what(f: &str) -> Option<What> {
    match f {
        "write" | "cas" | "add" => Some(What::Write),
        "read" => Some(What::Read),
        "read-local" | "read-stale" => Some(What::Weak),
        _ => None,
    }
}

fn number(op: &Op, key: &str) -> Option<i64> {
    op.extra(key).and_then(Edn::as_int)
}

/// `[key, value after]` of an answered operation on a register.
fn keyed(op: &Op) -> Option<(i64, Option<i64>)> {
    let [k, v] = op.ok_value()?.items()? else { return None };
    let v = if op.f() == "cas" { v.items()?.get(1)? } else { v };
    Some((k.as_int()?, v.as_int()))
}

/// The highest revision so far, and who answered it.
#[derive(Clone, Default)]
struct Floor(i64, String);

impl Floor {
    fn raise(&mut self, revision: i64, by: &Op) {
        if revision > self.0 {
            *self = Floor(revision, by.to_string());
        }
    }
}

/// Checks the answered operations of all workloads that carry revisions.
pub fn check<'a>(ops: impl IntoIterator<Item = &'a Op>) -> (Verdict, Summary) {
    let known: Vec<(&Op, What, i64, u64)> = ops
        .into_iter()
        .filter_map(|op| Some((op, what(op.f())?, number(op, "revision")?, op.ok_index()?)))
        .collect();
    let mut findings = Vec::new();
    let mut summary = Summary::default();
    let mut by_revision: BTreeMap<i64, &Op> = BTreeMap::new();
    // Per register: revision of each acknowledged write and what it left.
    let mut written: BTreeMap<i64, BTreeMap<i64, Option<i64>>> = BTreeMap::new();
    for (op, w, revision, _) in &known {
        match w {
            What::Write => summary.writes += 1,
            What::Read => summary.reads += 1,
            What::Weak => summary.weak += 1,
        }
        if *w != What::Write {
            continue;
        }
        if let Some(other) = by_revision.insert(*revision, op) {
            findings.push(format!("revision {revision} was given to two writes: {other} and {op}"));
        }
        if let Some((k, v)) = keyed(op) {
            written.entry(k).or_default().insert(*revision, v);
        }
    }

    // Begins and ends in the order of time; the floors are what ended before a begin.
    let mut moments: Vec<(u64, usize, bool)> = Vec::with_capacity(known.len() * 2);
    for (i, (op, _, _, end)) in known.iter().enumerate() {
        moments.extend([(op.invoke.index, i, true), (*end, i, false)]);
    }
    moments.sort_unstable();
    let mut answered = Floor::default();
    let mut of_node: BTreeMap<(String, i64), Floor> = BTreeMap::new();
    let mut at_begin: Vec<(Floor, Floor)> = vec![(Floor::default(), Floor::default()); known.len()];
    for (_, i, begin) in moments {
        let (op, w, revision, _) = &known[i];
        let node = op.extra("node").and_then(Edn::as_name).zip(number(op, "boot")).map(|(n, b)| (n.to_owned(), b));
        if begin {
            let node_floor = node.and_then(|n| of_node.get(&n).cloned()).unwrap_or_default();
            at_begin[i] = (answered.clone(), node_floor);
            continue;
        }
        let (floor, node_floor) = std::mem::take(&mut at_begin[i]);
        match w {
            What::Write if *revision <= floor.0 => {
                findings.push(format!("{op} has revision {revision}, but {} was answered before with {}", floor.1, floor.0));
            }
            What::Read if *revision < floor.0 => {
                findings.push(format!("{op} shows revision {revision}, but {} was answered before with {}", floor.1, floor.0));
            }
            What::Weak if *revision < node_floor.0 => {
                let Floor(before, by) = &node_floor;
                findings.push(format!("{op} shows revision {revision} on a node that before answered {before} for {by}"));
            }
            _ => {}
        }
        if *w != What::Weak {
            answered.raise(*revision, op);
        }
        if let Some(node) = node {
            of_node.entry(node).or_default().raise(*revision, op);
        }
    }

    // Version of each value that was seen or acknowledged.
    let mut versions: BTreeMap<(i64, i64), (i64, &Op)> = BTreeMap::new();
    for (op, w, revision, _) in &known {
        let Some((k, v)) = keyed(op) else { continue };
        let version = if *w == What::Write { Some(*revision) } else { number(op, "version") };
        if let (Some(v), Some(version)) = (v, version) {
            let (first, by) = *versions.entry((k, v)).or_insert((version, op));
            if first != version {
                findings.push(format!("value {v} of key {k} was written twice: version {first} for {by}, version {version} for {op}"));
            }
        }
        if *w == What::Write {
            continue;
        }
        let version = version.unwrap_or(0);
        if version > *revision {
            findings.push(format!("{op} shows version {version} in the older state {revision}"));
        }
        let newest = written.get(&k).and_then(|all| all.range(..=*revision).next_back());
        if let Some((at, value)) = newest
            && *at > version
        {
            findings.push(format!("{op} shows version {version} in state {revision}, where {value:?} was written at {at}"));
        }
    }
    (Verdict::of(findings), summary)
}
