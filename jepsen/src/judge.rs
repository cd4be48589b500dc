//! All checkers over one history.

use crate::{
    check::{
        Verdict,
        linear::Bounds,
        order, register, set,
        watch::{self, Written},
    },
    edn::Edn,
    history::{self, Event, Op},
};
use anyhow::{Result, bail};

/// Part of a run that has a checker of its own; `:workload` on each event says to which it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checker {
    /// [`register`]
    Register,
    /// [`set`]
    Set,
    /// [`order`]; over all workloads.
    Order,
    /// [`watch`]
    Watch,
}

impl Checker {
    /// All, in the order of the report.
    pub const ALL: [Checker; 4] = [Checker::Register, Checker::Set, Checker::Watch, Checker::Order];
    /// Name in histories and reports.
    pub fn name(self) -> &'static str {
        match self {
            Checker::Register => "register",
            Checker::Set => "set",
            Checker::Order => "order",
            Checker::Watch => "watch",
        }
    }
    /// By name.
    pub fn by_name(name: &str) -> Option<Checker> {
        Checker::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// A line of the report.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which checker.
    pub checker: Checker,
    /// What it says.
    pub verdict: Verdict,
    /// What it looked at.
    pub looked_at: String,
}

/// Name of the resource that an element of the set is.
pub fn element_name(n: i64) -> String {
    format!("s-{n}")
}

/// Acknowledged additions with their revisions: what watchers of the set have to see.
fn written(ops: &[&Op]) -> Vec<Written> {
    let adds = ops.iter().filter(|o| o.f() == "add" && o.ok_index().is_some());
    let written = |o: &&Op| {
        let value = o.invoke.value.as_int()?;
        Some(Written { revision: o.extra("revision").and_then(Edn::as_int)?, name: element_name(value), value })
    };
    adds.filter_map(written).collect()
}

/// Runs a checker over the operations of its workload. Operations without `:workload` belong to every one.
pub fn judge(checker: Checker, ops: &[Op], bounds: Bounds) -> Result<Finding> {
    let of = |name: &str, o: &Op| o.invoke.extra("workload").and_then(Edn::as_name).is_none_or(|w| w == name);
    let (verdict, looked_at) = match checker {
        Checker::Register => {
            let linearizable = ops.iter().filter(|o| of("register", o) && !o.f().starts_with("read-"));
            let (verdict, s) = register::check(&linearizable.cloned().collect::<Vec<_>>(), bounds)?;
            (verdict, format!("{} operations on {} keys", s.operations, s.keys))
        }
        Checker::Set => {
            let ops: Vec<Op> = ops.iter().filter(|o| of("set", o)).cloned().collect();
            let (verdict, s) = set::check(&ops)?;
            let text = format!("{} of {} additions acknowledged, {} recovered, {} reads", s.acknowledged, s.attempts, s.recovered, s.reads);
            (verdict, text)
        }
        Checker::Order => {
            let (verdict, s) = order::check(ops);
            (verdict, format!("{} writes, {} linearizable and {} weak reads", s.writes, s.reads, s.weak))
        }
        Checker::Watch => {
            let watches: Vec<&Op> = ops.iter().filter(|o| o.f().starts_with("watch")).collect();
            let adds: Vec<&Op> = ops.iter().filter(|o| of("set", o)).collect();
            let (verdict, s) = watch::check(&watches, &written(&adds))?;
            let text = format!("{} connections, {} changes, {} writes awaited, {} resyncs", s.sessions, s.events, s.expected, s.resyncs);
            (verdict, text)
        }
    };
    Ok(Finding { checker, verdict, looked_at })
}

/// Runs the given checkers over a history; all that have something to look at when none is given.
pub fn judge_all(events: &[Event], checkers: &[Checker], bounds: Bounds) -> Result<Vec<Finding>> {
    let ops = history::operations(events)?;
    let has = |c: Checker| match c {
        Checker::Register => ops.iter().any(|o| matches!(o.f(), "write" | "cas")),
        Checker::Set => ops.iter().any(|o| o.f() == "add"),
        Checker::Watch => ops.iter().any(|o| o.f() == "watch"),
        Checker::Order => ops.iter().any(|o| o.extra("revision").is_some()),
    };
    let chosen: Vec<Checker> = if checkers.is_empty() { Checker::ALL.into_iter().filter(|c| has(*c)).collect() } else { checkers.to_vec() };
    if chosen.is_empty() {
        bail!("the history has no operation that a checker knows");
    }
    chosen.into_iter().map(|c| judge(c, &ops, bounds)).collect()
}
