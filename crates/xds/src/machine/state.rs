//! State of one type on one stream.

use super::{Diff, Outgoing, Variant,
    request::{Answer, Refusal, Request}};
use crate::{
    snapshot::{Entry, Snapshot, Typed, digest},
    type_url::{absence_is_silent, legacy_wildcard},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use tokio::time::Instant;

/// A version that no resource has: the client named one that this server did not make.
const FOREIGN: u64 = 0;

/// A response that was sent and not answered.
#[derive(Debug)]
pub(super) struct Pending {
    pub nonce: String,
    pub sent_at: Instant,
    pub overdue_told: bool,
    /// Resources that the client does not have yet.
    pub upserts: Vec<Entry>,
    /// Names that it will not have any more.
    pub removals: Vec<Arc<str>>,
    /// Hash over the target that it was made of.
    pub target: u64,
}

/// What is not sent again: a version, or (`None`) a removal.
type Rejected = BTreeMap<Arc<str>, Option<u64>>;

/// What the client has of a resource.
#[derive(Debug)]
struct Known {
    version: u64,
    /// State of the world only: the next full response may have to repeat it.
    entry: Option<Entry>,
}

#[derive(Debug, Default)]
pub(super) struct TypeState {
    type_url: Arc<str>,
    wildcard: bool,
    subscribed: BTreeSet<Arc<str>>,
    known: BTreeMap<Arc<str>, Known>,
    /// Names that must be answered although nothing changed.
    asked: BTreeSet<Arc<str>>,
    /// The first answer of a wildcard subscription was not sent.
    due: bool,
    /// `version_info` that the client came with (state of the world), until a snapshot is there to compare.
    claimed: Option<String>,
    rejected: Rejected,
    /// State of the world: a response made of this target was rejected as a whole.
    rejected_target: Option<u64>,
    pub pending: Option<Pending>,
    /// Nonce of the last response, answered or not.
    last_nonce: String,
    /// Nothing is sent before.
    pub hold_until: Option<Instant>,
    /// What there is to send; `None` = to be computed.
    pub diff: Option<Diff>,
}

impl TypeState {
    #[cfg(test)]
    pub fn type_url(&self) -> &Arc<str> {
        &self.type_url
    }

    /// Whether the client refused something of the current target.
    pub fn has_rejected(&self) -> bool {
        !self.rejected.is_empty() || self.rejected_target.is_some()
    }

    /// Whether the client wants this name.
    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.subscribed.contains(name)
    }

    /// Whether the client has this resource, or is being sent it.
    pub fn has_or_is_sent(&self, name: &str) -> bool {
        self.known.contains_key(name) || self.pending.iter().flat_map(|p| &p.upserts).any(|e| &*e.encoded.name == name)
    }

    /// Has a wanted name answered once more.
    pub fn ask_again(&mut self, name: &Arc<str>) {
        if self.wants(name) && self.asked.insert(name.clone()) {
            self.diff = None;
        }
    }

    pub fn check(&self, max_names: usize) -> Result<(), Refusal> {
        // `asked` only holds subscribed names and names of one request.
        if self.subscribed.len() > max_names || self.asked.len() > 2 * max_names {
            return Err(Refusal::TooManyNames { type_url: self.type_url.clone(), limit: max_names });
        }
        Ok(())
    }

    /// Takes the pending response when the request answers it.
    pub fn answer(&mut self, request: &Request) -> Answer {
        match self.pending.take_if(|p| p.nonce == request.response_nonce) {
            // An answered nonce comes again with later changes of the subscription.
            None if self.last_nonce == request.response_nonce => Answer::Nothing,
            None => Answer::Stale,
            Some(p) => match &request.error {
                None => Answer::Ack(p),
                Some(message) => Answer::Nack(p, message.clone()),
            },
        }
    }

    pub fn accept(&mut self, variant: Variant, pending: &Pending) {
        self.diff = None;
        self.rejected_target = None;
        for name in &pending.removals {
            self.known.remove(name);
            self.rejected.remove(name);
        }
        for e in &pending.upserts {
            let name = &e.encoded.name;
            self.rejected.remove(name);
            if self.wants(name) {
                let entry = (variant == Variant::StateOfTheWorld).then(|| e.clone());
                self.known.insert(name.clone(), Known { version: e.version, entry });
            }
        }
    }

    /// Remembers what must not be sent again. When the message names some of the resources, only those are at fault: the others go out again without
    /// them. Otherwise the whole response is.
    pub fn reject(&mut self, variant: Variant, pending: &Pending, message: &str) -> Vec<(Arc<str>, u64)> {
        self.diff = None;
        let blamed = |e: &&Entry| names_it(message, &e.encoded.name);
        let any = pending.upserts.iter().any(|e| blamed(&e));
        let at_fault: Vec<_> = pending.upserts.iter().filter(|e| !any || blamed(e)).map(|e| (e.encoded.name.clone(), e.version)).collect();
        if variant == Variant::StateOfTheWorld && !any {
            self.rejected_target = Some(pending.target);
            return at_fault;
        }
        self.rejected.extend(at_fault.iter().map(|(n, v)| (n.clone(), Some(*v))));
        if !any {
            self.rejected.extend(pending.removals.iter().map(|n| (n.clone(), None)));
        }
        at_fault
    }

    /// State of the world: the names of a request. `first` = the version that a new stream came with.
    pub fn subscribe_full(&mut self, url: &Arc<str>, names: &[String], first: Option<&str>) {
        let had_names = !self.subscribed.is_empty();
        let was_wildcard = self.wildcard;
        let wanted: BTreeSet<Arc<str>> = names.iter().filter(|n| *n != "*").map(|n| n.as_str().into()).collect();
        let star = names.iter().any(|n| n == "*");
        // An empty list means all as long as no names were ever given, and none afterwards.
        let wildcard = star || (wanted.is_empty() && legacy_wildcard(url) && (first.is_some() || (was_wildcard && !had_names)));
        if let Some(version) = first {
            self.type_url = url.clone();
            self.claimed = (!version.is_empty()).then(|| version.to_owned());
            self.due = wildcard;
        } else {
            if wildcard == was_wildcard && wanted == self.subscribed {
                return;
            }
            self.asked.extend(wanted.difference(&self.subscribed).cloned());
            self.due |= wildcard && !was_wildcard;
        }
        self.wildcard = wildcard;
        self.subscribed = wanted;
        self.forget_unwanted();
        self.diff = None;
    }

    /// Delta: the differences of a request.
    pub fn subscribe_difference(&mut self, url: &Arc<str>, first: bool, subscribe: &[String], unsubscribe: &[String], initial: &HashMap<String, String>) {
        if first {
            self.type_url = url.clone();
            self.known = initial.iter().map(|(n, v)| (n.as_str().into(), Known { version: parse_version(v), entry: None })).collect();
            let star = subscribe.iter().any(|n| n == "*");
            self.wildcard = star || (subscribe.is_empty() && legacy_wildcard(url));
            self.due = self.wildcard && initial.is_empty();
        } else if subscribe.is_empty() && unsubscribe.is_empty() {
            return;
        }
        self.diff = None;
        for name in subscribe {
            if name == "*" {
                self.due |= !first && !self.wildcard;
                self.wildcard = true;
                continue;
            }
            let name: Arc<str> = name.as_str().into();
            // The client may have forgotten it. On a new stream it says itself what it has.
            if !first || !self.known.contains_key(&name) {
                self.asked.insert(name.clone());
            }
            self.subscribed.insert(name);
        }
        for name in unsubscribe {
            if name == "*" {
                self.wildcard = false;
                self.due = false;
                continue;
            }
            if self.subscribed.remove(name.as_str()) && self.wildcard {
                // It stays of interest; the protocol wants the answer to the wildcard told.
                self.asked.insert(name.as_str().into());
            }
        }
        self.forget_unwanted();
    }

    fn forget_unwanted(&mut self) {
        if self.wildcard {
            return;
        }
        let subscribed = &self.subscribed;
        self.known.retain(|n, _| subscribed.contains(n));
        self.asked.retain(|n| subscribed.contains(n));
        self.rejected.retain(|n, _| subscribed.contains(n));
    }

    /// The wanted part of a snapshot and of what is retained beside it, by name.
    fn target<'s>(&self, typed: Option<&'s Typed>, retained: &'s BTreeMap<Arc<str>, Entry>) -> BTreeMap<&'s str, &'s Entry> {
        let retained = retained.values().filter(|e| self.wants(&e.encoded.name));
        let mut target: BTreeMap<&str, &Entry> = retained.map(|e| (&*e.encoded.name, e)).collect();
        match typed {
            Some(typed) if self.wildcard => target.extend(typed.iter().map(|(n, e)| (&**n, e))),
            Some(typed) => target.extend(self.subscribed.iter().filter_map(|n| typed.get(n)).map(|e| (&*e.encoded.name, e))),
            None => {}
        }
        target
    }

    /// Computes `diff` when something changed.
    pub fn refresh(&mut self, variant: Variant, url: &str, snapshot: &Snapshot, retained: &BTreeMap<Arc<str>, Entry>) {
        if self.diff.is_some() || self.pending.is_some() {
            return;
        }
        let target = self.target(snapshot.typed(url), retained);
        let whole = digest(target.iter().map(|(n, e)| (*n, e.version)));
        if self.claimed.take().is_some_and(|claimed| parse_version(&claimed) == whole) {
            self.known = target.values().map(|e| (e.encoded.name.clone(), Known { version: e.version, entry: Some((*e).clone()) })).collect();
            self.due = false;
        }
        self.rejected.retain(|n, v| target.get(&**n).map(|e| e.version) == *v);
        let mut diff = Diff { due: self.due, target: whole, ..Diff::default() };
        for (name, e) in &target {
            let asked = self.asked.contains(*name);
            let current = self.known.get(*name).is_some_and(|k| k.version == e.version);
            let bad = self.rejected.get(*name) == Some(&Some(e.version));
            if asked || !(current || bad) {
                diff.upserts.push((*e).clone());
            }
        }
        let gone = |n: &Arc<str>| !target.contains_key(&**n);
        let gone_known: Vec<Arc<str>> = self.known.keys().filter(|n| gone(n) && self.rejected.get(*n) != Some(&None)).cloned().collect();
        let mut absent: Vec<Arc<str>> = self.asked.iter().filter(|n| gone(n) && !self.known.contains_key(*n)).cloned().collect();
        // A full response says nothing of names it leaves out, but for the two types that are whole by nature.
        let silent = absence_is_silent(url) || (variant == Variant::StateOfTheWorld && !legacy_wildcard(url));
        if silent && !self.wildcard {
            // The client is not told; when the resource comes back it is sent, because it is not known any more.
            for n in &gone_known {
                self.known.remove(n);
            }
            absent.clear();
        } else {
            diff.removals = gone_known;
        }
        // What is not there and not told needs no answer any more: it is sent when it appears.
        let told: BTreeSet<&Arc<str>> = absent.iter().chain(&diff.removals).collect();
        self.asked.retain(|n| target.contains_key(&**n) || told.contains(n));
        if variant == Variant::Delta {
            diff.absent = absent;
        } else {
            self.asked.retain(|n| target.contains_key(&**n));
            if self.rejected_target == Some(whole) {
                diff = Diff::default();
            } else {
                self.rejected_target = None;
            }
        }
        self.diff = Some(diff);
    }

    /// Makes a response of `diff`; the caller saw that there is something to send.
    pub fn send(&mut self, variant: Variant, type_url: Arc<str>, nonce: String, removals: bool, now: Instant) -> Outgoing {
        let diff = self.diff.take().unwrap_or_default();
        let removed = if removals { diff.removals } else { Vec::new() };
        let mut after: BTreeMap<Arc<str>, u64> = self.known.iter().map(|(n, k)| (n.clone(), k.version)).collect();
        for n in &removed {
            after.remove(n);
        }
        after.extend(diff.upserts.iter().map(|e| (e.encoded.name.clone(), e.version)));
        let version = digest(after.iter().map(|(n, v)| (&**n, *v)));
        self.asked.clear();
        self.due = false;
        self.hold_until = None;
        self.last_nonce.clone_from(&nonce);
        let resources = match variant {
            Variant::Delta => diff.upserts.clone(),
            Variant::StateOfTheWorld => {
                let mut all: BTreeMap<&str, &Entry> = self.known.values().filter_map(|k| k.entry.as_ref()).map(|e| (&*e.encoded.name, e)).collect();
                for n in &removed {
                    all.remove(&**n);
                }
                all.extend(diff.upserts.iter().map(|e| (&*e.encoded.name, e)));
                all.into_values().cloned().collect()
            }
        };
        self.pending = Some(Pending { nonce: nonce.clone(), sent_at: now, overdue_told: false, upserts: diff.upserts, removals: removed.clone(), target: diff.target });
        let removed = if variant == Variant::Delta { removed.into_iter().chain(diff.absent).collect() } else { Vec::new() };
        Outgoing { type_url, nonce, version, resources, removed }
    }
}

/// Versions on the wire: 16 hexadecimal digits.
fn parse_version(text: &str) -> u64 {
    if text.len() == 16 { u64::from_str_radix(text, 16).unwrap_or(FOREIGN) } else { FOREIGN }
}

/// Whether an error message names a resource: the name, not as a part of a longer word.
fn names_it(message: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '.';
    !name.is_empty()
        && message.match_indices(name).any(|(at, _)| {
            let before = message.get(..at).and_then(|s| s.chars().next_back());
            let mut rest = message.get(at + name.len()..).unwrap_or_default().trim_start_matches('.').chars();
            !before.is_some_and(word) && !rest.next().is_some_and(word)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame() {
        let message = "Error adding/updating cluster(s) web: bad timeout, web-2: no type";
        assert!(names_it(message, "web") && names_it(message, "web-2"));
        assert!(!names_it(message, "we") && !names_it(message, "2") && !names_it(message, ""));
        assert!(!names_it("web.default: bad", "web"));
        assert!(names_it("rejected: inbound:10.0.0.1:80.", "inbound:10.0.0.1:80"));
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version(&format!("{:016x}", u64::MAX)), u64::MAX);
        assert_eq!((parse_version("1"), parse_version("+123456789abcdef"), parse_version("zzzzzzzzzzzzzzzz")), (0, 0x123456789abcdef, 0));
    }
}
