//! Registers with compare-and-set, many keys: Knossos' `cas-register`, per key.
//!
//! `:read [k v]`, `:write [k v]`, `:cas [k [from to]]`; a register that was never written is `nil`.

use super::{
    Verdict,
    linear::{self, Bounds, Interval, Model, Search},
};
use crate::{
    edn::Edn,
    history::{Op, Type},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// A call with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Read this.
    Read(Option<i64>),
    /// Wrote this.
    Write(i64),
    /// Found the first, left the second.
    Cas(Option<i64>, i64),
}

/// The model of one register.
pub struct Register;

impl Model for Register {
    type Call = Call;
    type State = Option<i64>;
    fn step(&self, state: &Option<i64>, call: &Call) -> Option<Option<i64>> {
        match *call {
            Call::Read(v) => (*state == v).then_some(v),
            Call::Write(v) => Some(Some(v)),
            Call::Cas(from, to) => (*state == from).then_some(Some(to)),
        }
    }
}

/// Value of a register: a number or `nil`.
fn value(v: &Edn) -> Result<Option<i64>> {
    match v {
        Edn::Nil => Ok(None),
        Edn::Int(n) => Ok(Some(*n)),
        other => bail!("{other} is no value of a register"),
    }
}

fn pair(v: &Edn) -> Result<(&Edn, &Edn)> {
    match v.items() {
        Some([a, b]) => Ok((a, b)),
        _ => bail!("{v} is no pair"),
    }
}

/// Key of an operation's value `[k v]`.
pub fn key(op: &Op) -> Result<i64> {
    pair(&op.invoke.value)?.0.as_int().with_context(|| format!("{op}: the key is no number"))
}

/// The call that an operation made, with the value of its end when that is known.
pub fn call(op: &Op) -> Result<Call> {
    let (_, v) = pair(op.ok_value().unwrap_or(&op.invoke.value)).with_context(|| op.to_string())?;
    Ok(match op.f() {
        "read" => Call::Read(value(v)?),
        "write" => Call::Write(value(v)?.context("nil cannot be written")?),
        "cas" => {
            let (from, to) = pair(v)?;
            Call::Cas(value(from)?, value(to)?.context("nil cannot be written")?)
        }
        f => bail!("unknown function :{f}"),
    })
}

/// Operations of one register as a linearizability search takes them. Failed operations and reads without answer say nothing. An
/// indeterminate
/// write whose value nobody saw is left out: it may never have happened, and where it did, an order without it is as good, since between it
/// and the next write of the order there is nothing that looked. One whose value somebody saw took effect before that answer, if nothing
/// else
/// wrote this value: that is its end.
pub fn intervals(ops: &[&Op]) -> Result<Vec<(usize, Interval<Call>)>> {
    let mut all = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let call = call(op)?;
        match op.outcome() {
            Type::Fail => continue,
            Type::Info if matches!(call, Call::Read(_)) => continue,
            _ => all.push((i, Interval { call, start: op.invoke.index, end: op.ok_index() })),
        }
    }
    loop {
        let seen: BTreeSet<i64> = all
            .iter()
            .filter_map(|(_, o)| match o.call {
                Call::Read(v) | Call::Cas(v, _) => v,
                Call::Write(_) => None,
            })
            .collect();
        let before = all.len();
        all.retain(|(_, o)| match o.call {
            Call::Write(v) | Call::Cas(_, v) => o.end.is_some() || seen.contains(&v),
            Call::Read(_) => true,
        });
        if all.len() == before {
            break;
        }
    }
    let mut writers: BTreeMap<i64, usize> = BTreeMap::new();
    let mut first_seen: BTreeMap<i64, u64> = BTreeMap::new();
    for (_, o) in &all {
        if let Call::Write(v) | Call::Cas(_, v) = o.call {
            *writers.entry(v).or_default() += 1;
        }
        if let (Call::Read(Some(v)) | Call::Cas(Some(v), _), Some(end)) = (o.call, o.end) {
            first_seen.entry(v).and_modify(|e| *e = end.min(*e)).or_insert(end);
        }
    }
    for (_, o) in &mut all {
        if let (None, Call::Write(v) | Call::Cas(_, v)) = (o.end, o.call)
            && writers.get(&v) == Some(&1)
        {
            o.end = first_seen.get(&v).copied();
        }
    }
    Ok(all)
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Registers.
    pub keys: usize,
    /// Operations that were given a place.
    pub operations: usize,
}

/// Checks each key by itself. The time bound is for all keys together.
pub fn check(ops: &[Op], bounds: Bounds) -> Result<(Verdict, Summary)> {
    let mut by_key: BTreeMap<i64, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        by_key.entry(key(op)?).or_default().push(op);
    }
    let begun = Instant::now();
    let mut summary = Summary { keys: by_key.len(), operations: 0 };
    let mut verdict = Verdict::Valid;
    for (key, ops) in &by_key {
        let with_place = intervals(ops)?;
        let calls: Vec<_> = with_place.iter().map(|(_, i)| i.clone()).collect();
        let left = Bounds { time: bounds.time.saturating_sub(begun.elapsed()), ..bounds };
        let of_key = match linear::search(&Register, None, &calls, left) {
            Search::Linearizable => {
                summary.operations += calls.len();
                Verdict::Valid
            }
            Search::Impossible { placed, stuck } => {
                let name = with_place.get(stuck).and_then(|(i, _)| ops.get(*i)).map(ToString::to_string).unwrap_or_default();
                Verdict::Invalid(vec![format!(
                    "key {key} is not linearizable: {placed} of {} operations have a place, then none is left for {name}",
                    calls.len()
                )])
            }
            Search::GaveUp(why) => Verdict::Unknown(format!("key {key} with {} operations: {why}", calls.len())),
        };
        verdict = verdict.and(of_key);
    }
    Ok((verdict, summary))
}
