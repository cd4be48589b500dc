//! All state of one stream, without clock, socket or task: requests and snapshots go in, responses come out.
//!
//! Invariants: at most one response per type is unanswered; a response is diffed from the newest snapshot at the moment it is made; what the client is
//! believed to have (`known`) changes only by an acknowledgement or by the client's own word.
//!
//! Order: clusters, their endpoints, listeners, routes. Listeners and routes wait until the types before them have nothing to send and nothing
//! unanswered. Endpoints are sent after clusters but must not wait for their acknowledgement: Envoy withholds it until the clusters are warm, which takes
//! their endpoints. Clusters are removed last, when listeners and routes have settled (make before break). Secrets and runtime wait for nobody. Listeners are added and removed
//! in one response: Envoy removes first, and a renamed listener keeps its port.

mod request;
mod state;

use crate::{
    snapshot::{Entry, Snapshot},
    type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, rank},
};
use request::Answer;
pub(crate) use request::{Refusal, Request, Update};
use state::{Pending, TypeState};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Most types on one stream.
const MAX_TYPES: usize = 16;

/// Variant of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Responses carry differences.
    Delta,
    /// Responses carry everything of the type.
    StateOfTheWorld,
}

/// Limits and delays of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub max_names: usize,
    pub nack_backoff: Duration,
    pub endpoint_grace: Duration,
    pub ack_timeout: Duration,
}

/// A response to send.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub type_url: Arc<str>,
    pub nonce: String,
    /// Hash over the content the client has after it: `system_version_info` or `version_info`.
    pub version: u64,
    pub resources: Vec<Entry>,
    /// Delta only.
    pub removed: Vec<Arc<str>>,
}

/// What a request said about a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ack { nonce: String },
    Nack { nonce: String, message: String, rejected: Vec<(Arc<str>, u64)> },
}

/// What a type would send now.
#[derive(Debug, Default, Clone)]
struct Diff {
    /// New, changed, or asked for again.
    upserts: Vec<Entry>,
    /// Known to the client, gone from the snapshot.
    removals: Vec<Arc<str>>,
    /// Asked for, not there: told once (delta).
    absent: Vec<Arc<str>>,
    /// The first response of a wildcard subscription is due even when it is empty.
    due: bool,
    /// Hash over the target.
    target: u64,
}

impl Diff {
    fn adds(&self) -> bool {
        !self.upserts.is_empty() || !self.absent.is_empty() || self.due
    }
    fn is_empty(&self) -> bool {
        !self.adds() && self.removals.is_empty()
    }
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Machine {
    variant: Variant,
    limits: Limits,
    /// In serving order.
    types: BTreeMap<(usize, Arc<str>), TypeState>,
    snapshot: Option<Arc<Snapshot>>,
    /// [`Self::synced`] told the snapshot.
    synced_told: bool,
    /// Assignments that left the snapshot, by the cluster that needs them: the client still has, or is being sent, that cluster. Without them a cluster
    /// that leaves before its endpoints went out would never warm up, never be acknowledged and so never be removed.
    retained: BTreeMap<Arc<str>, Entry>,
    nonces: u64,
    /// Assignments of clusters the client just accepted and has not asked for yet; listeners wait for them until then.
    expected_endpoints: BTreeSet<Arc<str>>,
    expected_until: Option<Instant>,
    /// Until then clusters are not removed unless the client asked for listeners: on a new stream its first requests come one after the other.
    settle_until: Option<Instant>,
}

impl Machine {
    pub fn new(variant: Variant, limits: Limits) -> Self {
        Machine {
            variant,
            limits,
            types: BTreeMap::new(),
            snapshot: None,
            synced_told: false,
            retained: BTreeMap::new(),
            nonces: 0,
            expected_endpoints: BTreeSet::new(),
            expected_until: None,
            settle_until: None,
        }
    }

    /// A new target.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        for ((_, url), t) in &mut self.types {
            let old = self.snapshot.as_ref().and_then(|s| s.typed(url)).map(|t| t.digest());
            let new = snapshot.typed(url).map(|t| t.digest());
            if self.snapshot.is_none() || old != new {
                t.diff = None;
            }
        }
        self.expected_endpoints.retain(|n| snapshot.typed(ENDPOINTS).is_some_and(|t| t.get(n).is_some()));
        if let Some(old) = self.snapshot.take() {
            let assignment = |c: &Entry| old.typed(ENDPOINTS)?.get(c.encoded.endpoints.as_ref()?).cloned();
            let clusters = old.typed(CLUSTER).into_iter().flat_map(|t| t.iter());
            self.retained.extend(clusters.filter_map(|(name, c)| Some((name.clone(), assignment(c)?))));
        }
        let present = |name: &str| snapshot.typed(ENDPOINTS).is_some_and(|t| t.get(name).is_some());
        self.retained.retain(|_, e| !present(&e.encoded.name));
        self.snapshot = Some(snapshot);
        self.synced_told = false;
        self.release();
    }

    /// Forgets retained assignments of clusters that the client does not have any more.
    fn release(&mut self) {
        if self.retained.is_empty() {
            return;
        }
        let before = self.retained.len();
        match self.types.get(&(rank(CLUSTER), CLUSTER.into())) {
            Some(clusters) => self.retained.retain(|name, _| clusters.has_or_is_sent(name)),
            None => self.retained.clear(),
        }
        if self.retained.len() != before
            && let Some(eds) = self.types.get_mut(&(rank(ENDPOINTS), ENDPOINTS.into()))
        {
            eds.diff = None;
        }
    }

    /// A request. Returns what it said about the outstanding response of its type.
    pub fn on_request(&mut self, request: Request, now: Instant) -> Result<Option<Verdict>, Refusal> {
        request.check(self.limits.max_names)?;
        let key = (rank(&request.type_url), request.type_url.clone());
        let first = !self.types.contains_key(&key);
        if first && self.types.len() >= MAX_TYPES {
            return Err(Refusal::TooManyTypes(MAX_TYPES));
        }
        let variant = self.variant;
        self.settle_until.get_or_insert(now + self.limits.endpoint_grace);
        let t = self.types.entry(key).or_default();
        let mut verdict = None;
        let mut stale = false;
        if !first && !request.response_nonce.is_empty() {
            match t.answer(&request) {
                Answer::Stale => stale = true,
                Answer::Nothing => {}
                Answer::Ack(pending) => {
                    t.accept(variant, &pending);
                    verdict = Some((pending, None));
                }
                Answer::Nack(pending, message) => {
                    let rejected = t.reject(variant, &pending, &message);
                    t.hold_until = Some(now + self.limits.nack_backoff);
                    verdict = Some((pending, Some((message, rejected))));
                }
            }
        }
        // Differences of subscriptions count whatever nonce they come with; a full list with a stale nonce is outdated itself.
        match &request.update {
            Update::Full { names, version_info } => {
                if !stale {
                    t.subscribe_full(&request.type_url, names, first.then_some(version_info.as_str()));
                }
            }
            Update::Difference { subscribe, unsubscribe, initial } => {
                t.subscribe_difference(&request.type_url, first, subscribe, unsubscribe, initial);
            }
        }
        t.check(self.limits.max_names)?;
        if &*request.type_url == ENDPOINTS && !self.expected_endpoints.is_empty() {
            self.expected_endpoints.retain(|n| !t.wants(n));
        }
        Ok(verdict.map(|(pending, nack)| match nack {
            None => {
                if &*request.type_url == CLUSTER {
                    self.expect_endpoints(&pending, now);
                }
                Verdict::Ack { nonce: pending.nonce }
            }
            Some((message, rejected)) => Verdict::Nack { nonce: pending.nonce, message, rejected },
        }))
    }

    fn expect_endpoints(&mut self, accepted: &Pending, now: Instant) {
        let Some(assignments) = self.snapshot.as_ref().and_then(|s| s.typed(ENDPOINTS)) else { return };
        let eds = self.types.get(&(rank(ENDPOINTS), ENDPOINTS.into()));
        let expected = accepted.upserts.iter().filter_map(|e| e.encoded.endpoints.clone());
        let fresh: BTreeSet<_> = expected.filter(|n| assignments.get(n).is_some() && !eds.is_some_and(|t| t.wants(n))).collect();
        if !fresh.is_empty() {
            self.expected_endpoints.extend(fresh);
            self.expected_until = Some(now + self.limits.endpoint_grace);
        }
    }

    /// The digest of the snapshot, once, when the client has acknowledged all of it that it asked for. To be asked after [`next`](Self::next) had nothing.
    pub fn synced(&mut self) -> Option<u64> {
        let settled = |t: &TypeState| t.pending.is_none() && !t.has_rejected() && t.diff.as_ref().is_some_and(Diff::is_empty);
        if self.synced_told || self.types.is_empty() || !self.types.values().all(settled) {
            return None;
        }
        self.synced_told = true;
        self.snapshot.as_ref().map(|s| s.digest())
    }

    /// When [`next`](Self::next), which had nothing at `now`, may have something without a new request or snapshot. To be asked with the same `now`.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let holds = self.types.values().filter_map(|t| t.hold_until);
        let grace = if self.expected_endpoints.is_empty() { None } else { self.expected_until };
        holds.chain(grace).chain(self.settle_until).filter(|at| *at > now).min()
    }

    /// The first response that has not been answered for the timeout and was not told yet; tells it once.
    pub fn overdue(&mut self, now: Instant) -> Option<(Arc<str>, String, Duration)> {
        for ((_, url), t) in &mut self.types {
            if let Some(p) = &mut t.pending {
                let age = now.saturating_duration_since(p.sent_at);
                if !p.overdue_told && age >= self.limits.ack_timeout {
                    p.overdue_told = true;
                    return Some((url.clone(), p.nonce.clone(), age));
                }
            }
        }
        None
    }

    /// When the next response becomes overdue.
    pub fn overdue_at(&self) -> Option<Instant> {
        self.types.values().filter_map(|t| t.pending.as_ref()).filter(|p| !p.overdue_told).map(|p| p.sent_at + self.limits.ack_timeout).min()
    }

    /// The next response to send, if any. It counts as sent.
    pub fn next(&mut self, now: Instant) -> Option<Outgoing> {
        let snapshot = self.snapshot.clone()?;
        if self.expected_until.is_some_and(|until| until <= now) {
            self.expected_endpoints.clear();
            self.expected_until = None;
        }
        self.release();
        let none = BTreeMap::new();
        for ((_, url), t) in &mut self.types {
            t.refresh(self.variant, url, &snapshot, if &**url == ENDPOINTS { &self.retained } else { &none });
        }
        // While the client rejects a listener or route, what it has instead may refer to clusters that are gone from the snapshot.
        let settled = |m: &Self, url: &str| {
            m.state(url).is_none_or(|t| t.pending.is_none() && !t.has_rejected() && t.diff.as_ref().is_none_or(Diff::is_empty))
        };
        let quiet = |m: &Self, url: &str| m.state(url).is_none_or(|t| t.pending.is_none() && t.diff.as_ref().is_none_or(|d| !d.adds()));
        let clusters_quiet = quiet(self, CLUSTER);
        let endpoints_quiet = quiet(self, ENDPOINTS) && self.expected_endpoints.is_empty();
        let listeners_quiet = quiet(self, LISTENER);
        let listeners_asked = self.state(LISTENER).is_some() || self.settle_until.is_none_or(|until| until <= now);
        let cluster_removals = listeners_asked && settled(self, LISTENER) && settled(self, ROUTE);
        let mut chosen = None;
        for ((_, url), t) in &self.types {
            let may = match &**url {
                LISTENER => clusters_quiet && endpoints_quiet,
                ROUTE => clusters_quiet && endpoints_quiet && listeners_quiet,
                _ => true,
            };
            let removals = &**url != CLUSTER || cluster_removals;
            let something = t.diff.as_ref().is_some_and(|d| d.adds() || (removals && !d.removals.is_empty()));
            if may && something && t.pending.is_none() && t.hold_until.is_none_or(|at| at <= now) {
                chosen = Some((url.clone(), removals));
                break;
            }
        }
        let (url, removals) = chosen?;
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let variant = self.variant;
        let t = self.types.get_mut(&(rank(&url), url.clone()))?;
        let out = t.send(variant, url, nonce, removals, now);
        if &*out.type_url == CLUSTER {
            let changed: Vec<_> = t.pending.iter().flat_map(|p| &p.upserts).filter_map(|c| c.encoded.endpoints.clone()).collect();
            self.repeat_endpoints(&changed);
        }
        Some(out)
    }

    /// The client waits for the endpoints of each cluster it is sent. Their wire version tells most changes, but not a cluster that changed there and
    /// back before its endpoints went out.
    fn repeat_endpoints(&mut self, names: &[Arc<str>]) {
        let Some(eds) = self.types.get_mut(&(rank(ENDPOINTS), ENDPOINTS.into())) else { return };
        for name in names {
            eds.ask_again(name);
        }
    }

    fn state(&self, url: &str) -> Option<&TypeState> {
        self.types.get(&(rank(url), url.into()))
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod model_tests;
