//! Watchers of the set: they follow `GET /_watch`, break off, come back with the last id that they saw, also at another node.
//!
//! A stream is recorded as `:watch-list` (the state it begins with, until `synced`) and `:watch` (what came after it); see `check::watch`.

use super::{Shared, number_of, set};
use crate::{
    bed::net,
    edn::Edn,
    history::Type,
    http::{Ask, Client},
    record::{Actor, Extra},
    rng::Rng,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// Longest wait for the head of an answer.
const OPEN: Duration = Duration::from_secs(4);
/// Largest event that is read, in bytes.
const MAX_EVENT: usize = 1 << 20;

/// Elements as a watcher has them: name to value.
pub type State = BTreeMap<String, i64>;

/// What a watcher knows, for others to look at.
pub type View = Arc<Mutex<State>>;

/// One event of a stream, or the id that a comment carried.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    id: Option<i64>,
    data: String,
}

/// Takes server-sent events apart.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    /// The events that are whole after these bytes. `None`: what comes is no such stream, or has no end.
    fn feed(&mut self, bytes: &[u8]) -> Option<Vec<Event>> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let mut event = Event::default();
            for line in std::str::from_utf8(&block).ok()?.lines() {
                match line.split_once(':').map(|(k, v)| (k, v.trim_start())) {
                    Some(("event", v)) => event.name = v.to_owned(),
                    Some(("id", v)) => event.id = Some(v.parse().ok()?),
                    Some(("data", v)) => event.data.push_str(v),
                    _ => {}
                }
            }
            events.push(event);
        }
        (self.buffer.len() <= MAX_EVENT).then_some(events)
    }
}

/// Where a watcher is between its streams.
struct Watcher<'a> {
    number: i64,
    actor: Actor<'a>,
    view: View,
    /// Last id.
    at: Option<i64>,
    /// Changes of the `:watch` that goes on, with the id that it began after.
    watching: Option<(i64, Vec<Edn>)>,
    /// Names and values of the state that is being sent.
    listing: Option<Vec<(String, i64)>>,
}

/// Name and value of an element in the data of an event. `None` for what is not an element.
fn element(data: &Value) -> Option<(String, i64, Option<i64>)> {
    let name = data.get("name")?.as_str()?;
    set::is_element(data).then_some(())?;
    Some((name.to_owned(), data.get("revision")?.as_i64()?, data.get("resource").and_then(number_of)))
}

/// A pair as an EDN vector.
fn item(name: &str, value: i64) -> Edn {
    Edn::Vector(vec![Edn::text(name), Edn::Int(value)])
}

/// The value of a `:watch-list`.
pub fn list_value(revision: i64, state: &State) -> Edn {
    let items = state.iter().map(|(n, v)| item(n, *v)).collect();
    Edn::Map(vec![(Edn::keyword("revision"), Edn::Int(revision)), (Edn::keyword("items"), Edn::Vector(items))])
}

impl Watcher<'_> {
    fn extra(&self, host: usize) -> Extra {
        vec![("watcher".to_owned(), Edn::Int(self.number)), ("stream-of".to_owned(), Edn::text(net::name(host)))]
    }
    fn begin_list(&mut self) {
        self.actor.invoke("watch-list", Edn::Nil);
        self.listing = Some(Vec::new());
    }
    fn begin_watch(&mut self, from: i64) {
        self.actor.invoke("watch", Edn::Map(vec![(Edn::keyword("from"), Edn::Int(from))]));
        self.watching = Some((from, Vec::new()));
    }
    fn end_watch(&mut self, host: usize, resync: bool) {
        if let Some((from, events)) = self.watching.take() {
            let to = self.at.unwrap_or(from);
            let value = [("from", Edn::Int(from)), ("events", Edn::Vector(events)), ("to", Edn::Int(to)), ("resync", Edn::Bool(resync))];
            let value = Edn::Map(value.into_iter().map(|(k, v)| (Edn::keyword(k), v)).collect());
            self.actor.end(Type::Ok, "watch", value, self.extra(host));
        }
    }
    /// The stream is over.
    fn end(&mut self, host: usize, why: &str) {
        self.end_watch(host, false);
        if self.listing.take().is_some() {
            let mut extra = self.extra(host);
            extra.push(("error".to_owned(), Edn::text(why)));
            self.actor.end(Type::Fail, "watch-list", Edn::Nil, extra);
        }
    }
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// One event. False: it is not what the stream may send here.
    fn take(&mut self, event: &Event, host: usize) -> bool {
        let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
        match event.name.as_str() {
            "sync" => {
                let Some(listing) = &mut self.listing else { return false };
                if let Some((name, _, Some(value))) = element(&data) {
                    listing.push((name, value));
                }
            }
            "synced" => {
                let (Some(items), Some(id)) = (self.listing.take(), event.id) else { return false };
                let state: State = items.into_iter().collect();
                self.actor.end(Type::Ok, "watch-list", list_value(id, &state), self.extra(host));
                *self.state() = state;
                self.at = Some(id);
                self.begin_watch(id);
            }
            "resync" => {
                self.end(host, "resync");
                // The checker learns of it in any case, also when it is the first thing that a stream says.
                self.begin_watch(self.at.unwrap_or(0));
                self.end_watch(host, true);
                self.at = None;
                self.begin_list();
            }
            "put" | "delete" => {
                let Some((_, events)) = &mut self.watching else { return false };
                if let Some((name, revision, value)) = element(&data) {
                    events.push(Edn::Vector(vec![Edn::Int(revision), Edn::text(&name), Edn::option(value)]));
                    match value {
                        Some(v) => self.state().insert(name, v),
                        None => self.state().remove(&name),
                    };
                }
            }
            "" => {}
            _ => return false,
        }
        // The id of an entry is on its last event; a comment moves it too.
        if self.watching.is_some()
            && let Some(id) = event.id
        {
            self.at = Some(id);
        }
        true
    }
}

/// Follows the set until the run is over. `own` is the host of the node it begins with.
pub async fn watcher(shared: &Shared, number: i64, own: usize, view: View, mut rng: Rng) {
    let mut w = Watcher { number, actor: Actor::new(&shared.recorder, "watch"), view, at: None, watching: None, listing: None };
    let mut host = own;
    while !shared.watched.load(Ordering::Relaxed) {
        let mut ask = Ask::get(format!("/_watch?kinds=MeshCircuitBreaker&mesh={}", set::MESH));
        ask = ask.with("ikada-read", ["linearizable", "local", "stale"][rng.index(3)]);
        match w.at {
            Some(at) => {
                ask = ask.with("last-event-id", at.to_string());
                w.begin_watch(at);
            }
            None => w.begin_list(),
        }
        let net = shared.hosts.get(host).cloned();
        let stream = match net {
            Some(net) => Client::new(net).open(&ask, OPEN).await,
            None => return,
        };
        let why = match stream {
            Ok((status, _, body)) if status == 200 => follow(shared, &mut w, host, body, &mut rng).await,
            Ok((status, ..)) => {
                if !matches!(status.as_u16(), 503 | 504) {
                    shared.odd_answer(format!("{}: {status}", ask.path));
                }
                status.to_string()
            }
            Err(e) => format!("{e:#}"),
        };
        w.end(host, &why);
        // It goes on somewhere else, or comes back.
        host = rng.index(shared.hosts.len());
        tokio::time::sleep(Duration::from_millis(rng.between(50, 400))).await;
    }
}

/// Takes what comes until the stream ends, nothing comes for long, or the watcher has enough.
async fn follow(shared: &Shared, w: &mut Watcher<'_>, host: usize, mut body: Incoming, rng: &mut Rng) -> String {
    let enough = Instant::now() + Duration::from_millis(rng.between(2000, 20_000));
    let mut parser = Parser::default();
    loop {
        // Often enough to notice that the run is over.
        let frame = match timeout_at(Instant::now() + Duration::from_millis(200), body.frame()).await {
            Err(_) if shared.watched.load(Ordering::Relaxed) => return "the run is over".into(),
            Err(_) if Instant::now() > enough => return "enough".into(),
            Err(_) => continue,
            Ok(None) => return "the stream ended".into(),
            Ok(Some(Err(e))) => return e.to_string(),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let Some(events) = parser.feed(&data) else {
            shared.odd_answer(format!("{}: what came is no stream of events", net::name(host)));
            return "no stream of events".into();
        };
        for event in events {
            if !w.take(&event, host) {
                shared.odd_answer(format!("{}: a watch got `{}` where it may not come", net::name(host), event.name));
                return "an event out of place".into();
            }
        }
        if Instant::now() > enough && w.watching.is_some() {
            return "enough".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_pieces() {
        let text = "retry: 1000\n\nevent: put\nid: 7\ndata: {\"a\":1}\n\n: alive\nid: 9\n\nevent: pu";
        for size in 1..text.len() {
            let mut p = Parser::default();
            let all: Vec<Event> = text.as_bytes().chunks(size).flat_map(|c| p.feed(c).unwrap()).collect();
            let put = Event { name: "put".into(), id: Some(7), data: "{\"a\":1}".into() };
            assert_eq!(all, [Event::default(), put, Event { id: Some(9), ..Event::default() }]);
        }
        assert!(Parser::default().feed(b"id: x\n\n").is_none());
        assert!(Parser::default().feed(&vec![b'a'; MAX_EVENT + 1]).is_none(), "an event without end");
    }
}
