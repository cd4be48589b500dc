//! Registers: reads, writes and compare-and-sets of single resources.
//!
//! A compare-and-set is a PUT with `If-Match` and the ETag under which the client has read the value (`If-None-Match: *` where it has read
//! that
//! there is none). Values are never used twice, so the ETag stands for the value.

use super::{Connections, Shared, number_of, path, put};
use crate::{edn::Edn, history::Type, http::Ask, record::Actor, rng::Rng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// Mesh that the registers are in.
pub const MESH: &str = "registers";
/// Operations on one register, before its clients go on to the next: the search for an order stays small.
const OPERATIONS: i64 = 150;
/// Indeterminate operations on one register, likewise.
const INDETERMINATE: i64 = 8;

/// Clients that work on the same register at a time.
pub struct Group {
    key: AtomicI64,
    left: AtomicI64,
    unknown: AtomicI64,
    keys: Arc<AtomicI64>,
    values: Arc<AtomicI64>,
}

impl Group {
    /// `keys` and `values` give out what is not used yet.
    pub fn new(keys: Arc<AtomicI64>, values: Arc<AtomicI64>) -> Group {
        let key = AtomicI64::new(keys.fetch_add(1, Ordering::Relaxed));
        Group { key, left: AtomicI64::new(OPERATIONS), unknown: AtomicI64::new(0), keys, values }
    }
    fn next_key(&self) -> i64 {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 || self.unknown.load(Ordering::Relaxed) >= INDETERMINATE {
            self.left.store(OPERATIONS, Ordering::Relaxed);
            self.unknown.store(0, Ordering::Relaxed);
            self.key.store(self.keys.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        }
        self.key.load(Ordering::Relaxed)
    }
}

fn name(key: i64) -> String {
    format!("r-{key}")
}

fn pair(key: i64, value: Edn) -> Edn {
    Edn::Vector(vec![Edn::Int(key), value])
}

/// What a client knows of a register: value and version, `(None, 0)` where it is not there.
type Known = (Option<i64>, i64);

/// One client, until the run stops. `own` is the host of its node.
pub async fn client(shared: &Shared, group: &Group, own: usize, mut rng: Rng) {
    let mut actor = Actor::new(&shared.recorder, "register");
    let mut connections = Connections::new(shared, own);
    let mut known: Option<(i64, Known)> = None;
    let mut fresh = false;
    while !shared.stopped() {
        let key = group.next_key();
        let seen = known.filter(|(k, _)| *k == key).map(|(_, seen)| seen);
        // What was just read is often compared at once: later somebody else has changed it.
        let roll = if fresh && rng.chance(70) { 99 } else { rng.below(100) };
        fresh = false;
        let worked = match roll {
            0..40 => {
                let seen = read(&mut connections, &mut actor, "read", key).await;
                fresh = seen.is_some();
                known = seen.map(|s| (key, s)).or(known);
                fresh
            }
            40..46 => read(&mut connections, &mut actor, "read-local", key).await.is_some(),
            46..52 => read(&mut connections, &mut actor, "read-stale", key).await.is_some(),
            roll => {
                let condition = if roll < 80 { None } else { seen };
                let (kind, now) = write(shared, &mut connections, &mut actor, group, key, condition, &mut rng).await;
                if kind == Type::Info {
                    group.unknown.fetch_add(1, Ordering::Relaxed);
                }
                // What was refused because it knew something old is better read anew.
                known = now.map(|now| (key, now));
                kind == Type::Ok || condition.is_some()
            }
        };
        // A node that does not answer is not asked all the time.
        let pause = if fresh { 0 } else if worked { rng.between(5, 40) } else { rng.between(60, 200) };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn read(connections: &mut Connections<'_>, actor: &mut Actor<'_>, f: &str, key: i64) -> Option<Known> {
    actor.invoke(f, pair(key, Edn::Nil));
    let mut ask = Ask::get(path(MESH, &name(key)));
    if let Some(level) = f.strip_prefix("read-") {
        ask = ask.with("ikada-read", level);
    }
    let (answer, mut extra) = connections.read(&ask).await;
    let known = match answer {
        Ok(a) if a.status.is_success() => {
            let body = serde_json::from_slice(&a.body).unwrap_or_default();
            let found = number_of(&body).zip(a.number("etag"));
            found.map(|(v, version)| (Some(v), version)).ok_or("an answer without number or ETag".to_owned())
        }
        Ok(_) => Ok((None, 0)),
        Err(e) => Err(e),
    };
    match known {
        Ok(known) => {
            extra.push(("version".to_owned(), Edn::Int(known.1)));
            actor.end(Type::Ok, f, pair(key, Edn::option(known.0)), extra);
            Some(known)
        }
        // A read without answer had no effect.
        Err(e) => {
            extra.push(("error".to_owned(), Edn::text(e)));
            actor.end(Type::Fail, f, pair(key, Edn::Nil), extra);
            None
        }
    }
}

async fn write(
    shared: &Shared,
    connections: &mut Connections<'_>,
    actor: &mut Actor<'_>,
    group: &Group,
    key: i64,
    condition: Option<Known>,
    rng: &mut Rng,
) -> (Type, Option<Known>) {
    let value = group.values.fetch_add(1, Ordering::Relaxed);
    let ask = put(MESH, &name(key), value);
    let (f, argument, ask) = match condition {
        None => ("write", Edn::Int(value), ask),
        Some((None, _)) => ("cas", Edn::Vector(vec![Edn::Nil, Edn::Int(value)]), ask.with("if-none-match", "*")),
        Some((old, version)) => {
            ("cas", Edn::Vector(vec![Edn::option(old), Edn::Int(value)]), ask.with("if-match", format!("\"{version}\"")))
        }
    };
    actor.invoke(f, pair(key, argument.clone()));
    // Half of the writes are repeated until their outcome is known.
    let idempotency_key = rng.chance(50).then(|| format!("register-{value}"));
    let written = connections.write(&ask, idempotency_key, 6, rng).await;
    let version = written.version;
    let (kind, extra) = written.into_extra();
    if kind == Type::Ok && version.is_none() {
        shared.odd_answer(format!("PUT of {value}: no ETag"));
    }
    actor.end(kind, f, pair(key, argument), extra);
    (kind, version.map(|v| (Some(value), v)))
}
