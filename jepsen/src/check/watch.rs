//! Watches: who follows the changes misses nothing, or is told to read anew.
//!
//! One operation `:watch` is one connection of a watcher: it began with the state of revision `:from`, and its end, also an indeterminate
//! one
//! when the connection broke, has the value `{:from R, :events [[revision name value] …], :to R, :resync bool}`: every change that came,
//! `value` nil
//! for a deletion. With `:resync true` the server said that it cannot continue from `:from`, and the watcher started over from a list.
//! `:watch-list` is such a list: `{:revision R, :items [[name value] …]}`. A `:watch-last` is a list that was made when nobody wrote any
//! more and
//! the watchers had time to come to it.
//!
//! - Revisions of events rise, and lie above `:from`.
//! - Between `:from` and `:to` there is every acknowledged write, with what it wrote.
//! - The state that lists and events add up to is, in the end, what a list shows.

use super::Verdict;
use crate::{
    edn::Edn,
    history::{Op, Type},
};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Connections.
    pub sessions: usize,
    /// Changes that came.
    pub events: usize,
    /// Acknowledged writes that had to come, counted once per watcher.
    pub expected: usize,
    /// How often a watcher was told to start over.
    pub resyncs: usize,
}

/// An acknowledged write: what the resource is called in events, and what it holds then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Revision.
    pub revision: i64,
    /// Name of the resource.
    pub name: String,
    /// Value.
    pub value: i64,
}

/// A watcher's view while its connections are walked through.
#[derive(Default)]
struct View {
    at: Option<i64>,
    state: BTreeMap<String, i64>,
}

fn int(v: &Edn, key: &str, op: &Op) -> Result<i64> {
    v.get(key).and_then(Edn::as_int).with_context(|| format!("{op}: no :{key}"))
}

/// Checks the operations of all watchers against the acknowledged writes of what they watch. `:watcher` on each operation says whose it is.
/// Unknown when nothing was watched to the end: when no watcher's last connection reached the last acknowledged write.
pub fn check(ops: &[&Op], writes: &[Written]) -> Result<(Verdict, Summary)> {
    let mut acknowledged: BTreeMap<i64, &Written> = BTreeMap::new();
    for w in writes {
        acknowledged.insert(w.revision, w);
    }
    let last_write = acknowledged.keys().next_back().copied();
    let mut by_watcher: BTreeMap<i64, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        let watcher = op.extra("watcher").and_then(Edn::as_int).with_context(|| format!("{op}: no :watcher"))?;
        by_watcher.entry(watcher).or_default().push(op);
    }
    let mut summary = Summary::default();
    let mut findings = Vec::new();
    let mut complete = !by_watcher.is_empty();
    for (watcher, ops) in by_watcher {
        let mut view = View::default();
        for op in ops {
            let Some(end) = op.end.as_ref().filter(|e| e.kind != Type::Fail) else { continue };
            match op.f() {
                "watch-list" | "watch-last" if end.kind == Type::Ok => list(&mut view, op, &end.value, watcher, &mut findings)?,
                "watch" if matches!(end.value, Edn::Map(_)) => {
                    summary.sessions += 1;
                    session(&mut view, op, &end.value, watcher, &acknowledged, &mut summary, &mut findings)?;
                }
                _ => {}
            }
        }
        complete &= view.at.is_some() && view.at >= last_write;
    }
    let verdict = match Verdict::of(findings) {
        Verdict::Valid if !complete => Verdict::Unknown("some watcher did not come to the last acknowledged write".into()),
        v => v,
    };
    Ok((verdict, summary))
}

/// A list: where a watcher has followed until that very revision, it must show what the events added up to.
fn list(view: &mut View, op: &Op, value: &Edn, watcher: i64, findings: &mut Vec<String>) -> Result<()> {
    let at = int(value, "revision", op)?;
    let mut state = BTreeMap::new();
    for item in value.get("items").and_then(Edn::items).with_context(|| format!("{op}: no :items"))? {
        if let Some([name, v]) = item.items()
            && let (Some(name), Some(v)) = (name.as_name(), v.as_int())
        {
            state.insert(name.to_owned(), v);
        }
    }
    let last = op.f() == "watch-last";
    if (if last { view.at.is_some() } else { view.at == Some(at) }) && state != view.state {
        let differ: Vec<_> = state.keys().chain(view.state.keys()).filter(|n| state.get(*n) != view.state.get(*n)).collect();
        let name = differ.first().map_or("", |n| n.as_str());
        findings.push(format!(
            "watcher {watcher} at revision {:?}, list of {at}: {} resources differ from the list, e.g. {name}: {:?} by events, \
             {:?} in the list",
            view.at,
            differ.len(),
            view.state.get(name),
            state.get(name)
        ));
    }
    if !last {
        *view = View { at: Some(at), state };
    }
    Ok(())
}

fn session(
    view: &mut View,
    op: &Op,
    value: &Edn,
    watcher: i64,
    acknowledged: &BTreeMap<i64, &Written>,
    summary: &mut Summary,
    findings: &mut Vec<String>,
) -> Result<()> {
    let (from, to) = (int(value, "from", op)?, int(value, "to", op)?);
    if matches!(value.get("resync"), Some(Edn::Bool(true))) {
        summary.resyncs += 1;
        // What it knew counts no more; a list follows.
        view.at = None;
        return Ok(());
    }
    if view.at.is_some_and(|at| at != from) {
        findings.push(format!("watcher {watcher} went on from {from}, but was at {:?}", view.at));
    }
    let mut got: BTreeMap<i64, Vec<(String, Option<i64>)>> = BTreeMap::new();
    let mut newest = from;
    for event in value.get("events").and_then(Edn::items).with_context(|| format!("{op}: no :events"))? {
        let Some([revision, name, v]) = event.items() else { continue };
        let (Some(revision), Some(name)) = (revision.as_int(), name.as_name()) else { continue };
        summary.events += 1;
        // Changes of one revision come one after another.
        if revision < newest || revision <= from {
            findings.push(format!("watcher {watcher}: {name} of revision {revision} came after {newest}"));
        }
        newest = newest.max(revision);
        got.entry(revision).or_default().push((name.to_owned(), v.as_int()));
        match v.as_int() {
            Some(v) => view.state.insert(name.to_owned(), v),
            None => view.state.remove(name),
        };
    }
    for (revision, w) in acknowledged.range((std::ops::Bound::Excluded(from), std::ops::Bound::Included(to.max(from)))) {
        summary.expected += 1;
        let changes = got.get(revision).map_or(&[][..], Vec::as_slice);
        if !changes.iter().any(|(n, v)| *n == w.name && *v == Some(w.value)) {
            let what = if changes.is_empty() { "nothing".to_owned() } else { format!("{changes:?}") };
            findings.push(format!("watcher {watcher}: {} = {} of revision {revision} did not come, {what} did", w.name, w.value));
        }
    }
    view.at = Some(to.max(newest));
    Ok(())
}
