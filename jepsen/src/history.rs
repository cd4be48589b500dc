//! Histories in Jepsen's form: what clients asked, what they were told, and when.

use crate::edn::{self, Edn};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What an event says about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// It begins.
    Invoke,
    /// It took effect.
    Ok,
    /// It certainly had no effect and never will.
    Fail,
    /// Nobody knows; it may take effect at any time from its begin on.
    Info,
}

impl Type {
    /// Name of the keyword.
    pub fn name(self) -> &'static str {
        match self {
            Type::Invoke => "invoke",
            Type::Ok => "ok",
            Type::Fail => "fail",
            Type::Info => "info",
        }
    }
}

/// Who acts. A client process does one thing at a time; after an [`Type::Info`] its number is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A client.
    Client(u64),
    /// What breaks things.
    Nemesis,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Process::Client(n) => write!(f, "{n}"),
            Process::Nemesis => f.write_str(":nemesis"),
        }
    }
}

/// One event of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Who.
    pub process: Process,
    /// What is known.
    pub kind: Type,
    /// Function, e.g. `read`.
    pub f: String,
    /// Argument, or result.
    pub value: Edn,
    /// Place in the history, from 0.
    pub index: u64,
    /// Nanoseconds since the start of the run, monotonic.
    pub time: u64,
    /// Further keys, e.g. `:node`, `:revision`, `:error`.
    pub extra: Vec<(String, Edn)>,
}

impl Event {
    /// A further key.
    pub fn extra(&self, key: &str) -> Option<&Edn> {
        self.extra.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }
    /// As one map.
    pub fn to_edn(&self) -> Edn {
        let process = match self.process {
            Process::Client(n) => Edn::int(n),
            Process::Nemesis => Edn::keyword("nemesis"),
        };
        let own = [
            ("process", process),
            ("type", Edn::keyword(self.kind.name())),
            ("f", Edn::keyword(&self.f)),
            ("value", self.value.clone()),
            ("index", Edn::int(self.index)),
            ("time", Edn::int(self.time)),
        ];
        let own = own.into_iter().map(|(k, v)| (Edn::keyword(k), v));
        Edn::Map(own.chain(self.extra.iter().map(|(k, v)| (Edn::keyword(k), v.clone()))).collect())
    }
    /// Of one map. `position` is its place in the file, the index when it names none.
    pub fn from_edn(map: &Edn, position: u64) -> Result<Event> {
        let Edn::Map(pairs) = map else { bail!("operation {position} is not a map: {map}") };
        let process = match map.get("process") {
            Some(Edn::Int(n)) => Process::Client(u64::try_from(*n).map_err(|_| anyhow!("operation {position}: a negative process"))?),
            Some(p) if p.as_name() == Some("nemesis") => Process::Nemesis,
            other => bail!("operation {position}: :process is {other:?}"),
        };
        let kind = match map.get("type").and_then(Edn::as_name) {
            Some("invoke") => Type::Invoke,
            Some("ok") => Type::Ok,
            Some("fail") => Type::Fail,
            Some("info") => Type::Info,
            other => bail!("operation {position}: :type is {other:?}"),
        };
        let f = map.get("f").and_then(Edn::as_name).with_context(|| format!("operation {position} has no :f"))?.to_owned();
        let number = |k: &str| map.get(k).and_then(Edn::as_int).and_then(|n| u64::try_from(n).ok());
        let extra = pairs.iter().filter_map(|(k, v)| match k {
            Edn::Keyword(k) if !["process", "type", "f", "value", "index", "time"].contains(&k.as_str()) => Some((k.clone(), v.clone())),
            _ => None,
        });
        Ok(Event {
            process,
            kind,
            f,
            value: map.get("value").cloned().unwrap_or(Edn::Nil),
            index: number("index").unwrap_or(position),
            time: number("time").unwrap_or(position),
            extra: extra.collect(),
        })
    }
}

/// Reads a history: one map after another, or a vector of maps.
pub fn parse(text: &str) -> Result<Vec<Event>> {
    let mut values = edn::parse_all(text)?;
    if let [Edn::Vector(v) | Edn::List(v)] = values.as_mut_slice() {
        values = std::mem::take(v);
    }
    values.iter().enumerate().map(|(i, v)| Event::from_edn(v, i as u64)).collect()
}

/// An operation of a client with its completion.
#[derive(Clone, Debug)]
pub struct Op {
    /// The begin.
    pub invoke: Event,
    /// The end, when there is one in the history: [`Type::Ok`], [`Type::Fail`] or [`Type::Info`].
    pub end: Option<Event>,
}

impl Op {
    /// What is known about it.
    pub fn outcome(&self) -> Type {
        self.end.as_ref().map_or(Type::Info, |e| e.kind)
    }
    /// Index of its end if it is known to have taken effect.
    pub fn ok_index(&self) -> Option<u64> {
        self.end.as_ref().filter(|e| e.kind == Type::Ok).map(|e| e.index)
    }
    /// The result if it is known to have taken effect.
    pub fn ok_value(&self) -> Option<&Edn> {
        self.end.as_ref().filter(|e| e.kind == Type::Ok).map(|e| &e.value)
    }
    /// A further key of the end, else of the begin.
    pub fn extra(&self, key: &str) -> Option<&Edn> {
        self.end.as_ref().and_then(|e| e.extra(key)).or_else(|| self.invoke.extra(key))
    }
    /// Function.
    pub fn f(&self) -> &str {
        &self.invoke.f
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { invoke, end } = self;
        write!(f, "process {} :{} {} [{}", invoke.process, invoke.f, end.as_ref().map_or(&invoke.value, |e| &e.value), invoke.index)?;
        match end {
            Some(e) => write!(f, "..{} {}]", e.index, e.kind.name()),
            None => f.write_str("..]"),
        }
    }
}

/// Pairs begins with ends, in the order of the begins. The nemesis' events are left out. Errors when a process does two things at a time or
/// acts on after an indeterminate operation, and when indices do not rise.
pub fn operations(events: &[Event]) -> Result<Vec<Op>> {
    let mut ops: Vec<Op> = Vec::new();
    let mut open: BTreeMap<u64, usize> = BTreeMap::new();
    let mut gone = BTreeSet::new();
    let mut last = None;
    for e in events {
        if last.is_some_and(|l| e.index <= l) {
            bail!("index {} does not rise", e.index);
        }
        last = Some(e.index);
        let Process::Client(process) = e.process else { continue };
        if gone.contains(&process) {
            bail!("index {}: process {process} acts on after an indeterminate operation", e.index);
        }
        if e.kind == Type::Invoke {
            if open.insert(process, ops.len()).is_some() {
                bail!("index {}: process {process} does two things at a time", e.index);
            }
            ops.push(Op { invoke: e.clone(), end: None });
            continue;
        }
        let op = open.remove(&process).and_then(|i| ops.get_mut(i)).with_context(|| format!("index {}: an end without a begin", e.index))?;
        if op.invoke.f != e.f {
            bail!("index {}: :{} ends what began as :{}", e.index, e.f, op.invoke.f);
        }
        if e.kind == Type::Info {
            gone.insert(process);
        }
        op.end = Some(e.clone());
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_are_written() {
        let text = "{:process 0, :type :invoke, :f :write, :value [1 2], :index 0, :time 5, :node \"n1\"}\n\
                    {:process :nemesis, :type :info, :f :kill, :value nil, :index 1, :time 6}\n\
                    {:process 0, :type :ok, :f :write, :value [1 2], :index 2, :time 7, :revision 9}\n";
        let events = parse(text).unwrap();
        let written: String = events.iter().map(|e| format!("{}\n", e.to_edn())).collect();
        assert_eq!(written, text);
        assert_eq!(parse(&format!("[{text}]")).unwrap(), events);
        let ops = operations(&events).unwrap();
        assert_eq!(ops.len(), 1);
        assert_eq!((ops[0].outcome(), ops[0].ok_index()), (Type::Ok, Some(2)));
        assert_eq!(ops[0].extra("revision"), Some(&Edn::Int(9)));
        assert_eq!(ops[0].extra("node"), Some(&Edn::text("n1")));
    }

    #[test]
    fn histories_that_cannot_be() {
        let e = |p: u64, t: &str, f: &str| format!("{{:process {p} :type :{t} :f :{f} :value nil}}");
        for (lines, part) in [
            (vec![e(0, "ok", "read")], "without a begin"),
            (vec![e(0, "invoke", "read"), e(0, "invoke", "read")], "two things"),
            (vec![e(0, "invoke", "read"), e(0, "info", "read"), e(0, "invoke", "read")], "indeterminate"),
            (vec![e(0, "invoke", "read"), e(0, "ok", "write")], "began as"),
        ] {
            let error = operations(&parse(&lines.join("\n")).unwrap()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let same_index = "{:process 0 :type :invoke :f :a :index 4} {:process 1 :type :invoke :f :a :index 4}";
        assert!(operations(&parse(same_index).unwrap()).is_err());
        assert!(parse("{:process 0 :type :done :f :a}").is_err());
        assert!(parse("{:process 0 :type :ok}").is_err());
        assert!(parse("[1 2]").is_err());
    }
}
