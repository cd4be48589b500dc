//! What clients do while things break.

pub mod register;
pub mod set;
pub mod watch;

use crate::{
    bed::sys::NetNs,
    edn::Edn,
    history::Type,
    http::{Answer, Ask, Client, Reply},
    record::{Extra, Recorder},
    rng::Rng,
};
use http::Method;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

/// How long a client waits for an answer; shorter than the deadline of the store, so that some writes get their answer from nobody.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// What all clients share.
pub struct Shared {
    /// The history.
    pub recorder: Recorder,
    /// Network of each host.
    pub hosts: Vec<Arc<NetNs>>,
    /// How often each node was started.
    pub boots: Vec<AtomicI64>,
    /// Clients end.
    pub stop: AtomicBool,
    /// Watchers end.
    pub watched: AtomicBool,
    /// Randomness; clients fork it.
    pub rng: Rng,
    /// Clients take stale reads for linearizable ones.
    pub stale_reads: bool,
    /// Answers that no fault explains.
    pub odd: Mutex<Vec<String>>,
}

impl Shared {
    /// Whether clients are to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    /// Notes an answer that no fault explains.
    pub fn odd_answer(&self, what: String) {
        self.odd.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
    /// Which start of a node it is.
    fn boot(&self, host: usize) -> i64 {
        self.boots.get(host).map_or(0, |b| b.load(Ordering::Relaxed))
    }
}

/// Connections of one client: its own node, and the others for repeated requests.
pub struct Connections<'a> {
    shared: &'a Shared,
    clients: Vec<Client>,
    own: usize,
}

impl<'a> Connections<'a> {
    /// None is open yet.
    pub fn new(shared: &'a Shared, own: usize) -> Self {
        let clients = shared.hosts.iter().map(|h| Client::new(h.clone())).collect();
        Connections { shared, clients, own }
    }
    /// One request to a node. Also says who answered: node, and which start of it, when it was the same all the time.
    async fn ask(&mut self, host: usize, ask: &Ask) -> (Reply, Extra) {
        let before = self.shared.boot(host);
        let reply = match self.clients.get_mut(host) {
            Some(client) => client.ask(ask, PATIENCE).await,
            None => Reply::NotSent("no such host".into()),
        };
        let mut extra = vec![("node".to_owned(), Edn::text(crate::bed::net::name(host)))];
        if self.shared.boot(host) == before {
            extra.push(("boot".to_owned(), Edn::Int(before)));
        }
        if let Reply::Answer(a) = &reply
            // That something is not there is an answer at a revision too.
            && (a.status.is_success() || (ask.method == Method::GET && a.status == 404))
            && let Some(revision) = a.number("ikada-revision")
        {
            extra.push(("revision".to_owned(), Edn::Int(revision)));
        }
        (reply, extra)
    }
    /// A read from the own node: its answer when it is 200 or 404.
    pub async fn read(&mut self, ask: &Ask) -> (Result<Answer, String>, Extra) {
        let unlabelled = !ask.headers.iter().any(|(k, _)| *k == "ikada-read");
        let ask = &if self.shared.stale_reads && unlabelled { ask.clone().with("ikada-read", "stale") } else { ask.clone() };
        match self.ask(self.own, ask).await {
            (Reply::Answer(a), extra) if matches!(a.status.as_u16(), 200 | 404) => (Ok(a), extra),
            (Reply::Answer(a), extra) => {
                if !matches!(a.status.as_u16(), 503 | 504) {
                    self.shared.odd_answer(format!("{} {}: {}", ask.method, ask.path, a.error()));
                }
                (Err(a.error()), extra)
            }
            (Reply::NotSent(e) | Reply::Lost(e), extra) => (Err(e), extra),
        }
    }
    /// A write. With `key` it is repeated under this idempotency key, also at other nodes, until its outcome is known or `tries` are over;
    /// without it goes to the own node once.
    pub async fn write(&mut self, ask: &Ask, key: Option<String>, tries: usize, rng: &mut Rng) -> Written {
        let ask = key.iter().fold(ask.clone(), |a, k| a.with("idempotency-key", k.as_str()));
        let tries = if key.is_some() { tries } else { 1 };
        // Whether some attempt may have had an effect.
        let mut open = false;
        let mut last = Written { kind: Type::Fail, why: String::new(), version: None, extra: Vec::new() };
        for attempt in 0..tries {
            let host = if attempt == 0 { self.own } else { rng.index(self.clients.len()) };
            let (reply, extra) = self.ask(host, &ask).await;
            let why = match reply {
                Reply::Answer(a) => match a.status.as_u16() {
                    200 | 201 => return Written { kind: Type::Ok, why: String::new(), version: a.number("etag"), extra },
                    // The store has decided, also about the earlier attempts: they are the same command.
                    409 | 412 => return Written { kind: Type::Fail, why: a.error(), version: None, extra },
                    // Certainly not accepted, this time.
                    503 => a.error(),
                    500 | 504 => {
                        open = true;
                        a.error()
                    }
                    _ => {
                        self.shared.odd_answer(format!("{} {}: {}", ask.method, ask.path, a.error()));
                        a.error()
                    }
                },
                Reply::NotSent(e) => e,
                Reply::Lost(e) => {
                    open = true;
                    e
                }
            };
            last = Written { kind: if open { Type::Info } else { Type::Fail }, why, version: None, extra };
            if attempt + 1 < tries {
                tokio::time::sleep(Duration::from_millis(rng.between(50, 400))).await;
            }
        }
        last
    }
}

/// Outcome of a write.
pub struct Written {
    /// What is known.
    pub kind: Type,
    /// Why it is not [`Type::Ok`].
    pub why: String,
    /// Version of the resource after it.
    pub version: Option<i64>,
    /// Who answered, and the revision.
    pub extra: Extra,
}

impl Written {
    /// Keys of the event.
    pub fn into_extra(self) -> (Type, Extra) {
        let mut extra = self.extra;
        if self.kind != Type::Ok {
            extra.retain(|(k, _)| k != "revision");
            extra.push(("error".to_owned(), Edn::text(self.why)));
        }
        (self.kind, extra)
    }
}

/// Path of a resource that holds a number.
pub fn path(mesh: &str, name: &str) -> String {
    format!("/meshes/{mesh}/meshcircuitbreakers/{name}")
}

/// A PUT of a number: a real policy, since those are what the control plane keeps. The number is its connection limit.
pub fn put(mesh: &str, name: &str, value: i64) -> Ask {
    let body = json!({"type": "MeshCircuitBreaker", "mesh": mesh, "name": name, "spec": {
        "targetRef": {"kind": "Mesh"},
        "to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionLimits": {"maxConnections": value}}}]}});
    Ask::send(Method::PUT, path(mesh, name), &body)
}

/// The number that a resource holds.
pub fn number_of(resource: &Value) -> Option<i64> {
    resource.pointer("/spec/to/0/default/connectionLimits/maxConnections").and_then(Value::as_i64)
}

/// A PUT of a mesh.
pub fn put_mesh(name: &str) -> Ask {
    Ask::send(Method::PUT, format!("/meshes/{name}"), &json!({"type": "Mesh", "name": name}))
}
