//! DataplaneInsights: who is connected since when, what was accepted, which certificate it has (reference: data-plane contract §4.5).
//!
//! Kept in memory per stream and written in batches: one command for many proxies.

use super::{CONFLICT_RETRIES, Proxies, Proxy, ProxyId, now};
use ikada_model::{Json, Kind, Labels, Timestamp};
use ikada_world::{Change, Command, Expect, Op, ProposeError, Put, Reason, World};
use ikada_xds::type_url;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Shortest time after which insights of a control plane that is gone are closed.
const SHORTEST_IDLE: Duration = Duration::from_millis(100);
/// Insights in one command, and the size of their specs in bytes: an entry may have 2 MiB, keys and framing included.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 3 << 19;
/// The first write of a new stream waits this long for others to join it.
const GATHER: Duration = Duration::from_millis(50);

/// Responses of one type.
#[derive(Default, Clone, Copy)]
pub struct Counts {
    sent: u64,
    acknowledged: u64,
    rejected: u64,
}

impl Counts {
    fn to_json(self) -> Value {
        let mut m = Map::new();
        for (name, n) in [("responsesSent", self.sent), ("responsesAcknowledged", self.acknowledged), ("responsesRejected", self.rejected)] {
            if n > 0 {
                m.insert(name.into(), n.to_string().into());
            }
        }
        m.into()
    }
}

/// One stream as the insight shows it.
pub struct Subscription {
    id: String,
    instance: String,
    connected: Timestamp,
    disconnected: Option<Timestamp>,
    last_update: Option<Timestamp>,
    total: Counts,
    /// CDS, EDS, LDS, RDS.
    by_type: [Counts; 4],
    version: Value,
    last_nack: Option<String>,
}

/// What happened to a response.
#[derive(Clone, Copy)]
pub enum Event {
    /// Sent.
    Sent,
    /// Accepted.
    Acknowledged,
    /// Rejected.
    Rejected,
}

impl Subscription {
    /// A new stream. `metadata` is the node's.
    pub fn new(instance: &str, metadata: &Value) -> Self {
        let mut version = metadata.get("version").cloned().unwrap_or_else(|| json!({}));
        if let Some(Value::Object(kuma_dp)) = version.get_mut("kumaDp") {
            // Proxies of the same minor version and of the two before work (reference: REST contract §8.14).
            let compatible = kuma_dp.get("version").and_then(Value::as_str).is_some_and(is_compatible);
            kuma_dp.insert("kumaCpCompatible".into(), compatible.into());
        }
        Subscription {
            id: uuid::Uuid::new_v4().to_string(),
            instance: instance.to_owned(),
            connected: now(),
            disconnected: None,
            last_update: None,
            total: Counts::default(),
            by_type: Default::default(),
            version,
            last_nack: None,
        }
    }
    /// Counts an event.
    pub fn count(&mut self, url: &str, event: Event) {
        let slot = [type_url::CLUSTER, type_url::ENDPOINTS, type_url::LISTENER, type_url::ROUTE].iter().position(|t| *t == url);
        let typed = slot.and_then(|i| self.by_type.get_mut(i));
        for counts in [Some(&mut self.total), typed].into_iter().flatten() {
            match event {
                Event::Sent => counts.sent += 1,
                Event::Acknowledged => counts.acknowledged += 1,
                Event::Rejected => counts.rejected += 1,
            }
        }
        self.last_update = Some(now());
    }
    /// Remembers what the proxy rejected last.
    pub fn rejected(&mut self, message: String) {
        self.last_nack = Some(message);
    }
    /// The stream is over.
    pub fn disconnect(&mut self) {
        self.disconnected.get_or_insert_with(now);
    }
    fn to_json(&self) -> Value {
        let mut status = Map::new();
        if let Some(t) = self.last_update {
            status.insert("lastUpdateTime".into(), t.to_string().into());
        }
        status.insert("total".into(), self.total.to_json());
        for (name, counts) in ["cds", "eds", "lds", "rds"].into_iter().zip(&self.by_type) {
            status.insert(name.into(), counts.to_json());
        }
        let mut m = Map::new();
        m.insert("id".into(), self.id.clone().into());
        m.insert("controlPlaneInstanceId".into(), self.instance.clone().into());
        m.insert("connectTime".into(), self.connected.to_string().into());
        if let Some(t) = self.disconnected {
            m.insert("disconnectTime".into(), t.to_string().into());
        }
        m.insert("status".into(), status.into());
        m.insert("version".into(), self.version.clone());
        m.into()
    }
}

fn is_compatible(version: &str) -> bool {
    let mut parts = version.split('.').map(|p| p.parse::<u32>());
    match (parts.next(), parts.next()) {
        (Some(Ok(2)), Some(Ok(minor))) => (12..=14).contains(&minor),
        _ => false,
    }
}

/// `mTLS` of an insight.
pub struct MtlsInsight {
    /// End of the certificate.
    pub expiration: Timestamp,
    /// When it was issued.
    pub last_regeneration: Timestamp,
    /// How many were issued on this stream.
    pub regenerations: u32,
    /// Backend that issued it.
    pub issued_backend: String,
    /// All backends of the mesh.
    pub supported_backends: Vec<String>,
}

impl MtlsInsight {
    fn to_json(&self) -> Value {
        json!({
            "certificateExpirationTime": self.expiration.to_string(),
            "lastCertificateRegeneration": self.last_regeneration.to_string(),
            "certificateRegenerations": self.regenerations,
            "issuedBackend": self.issued_backend,
            "supportedBackends": self.supported_backends,
        })
    }
}

/// Closes open subscriptions that `which` chooses, in place. True when something changed.
fn close_subscriptions(insight: &mut Value, at: Timestamp, which: impl Fn(&Map<String, Value>) -> bool) -> bool {
    let mut changed = false;
    for s in insight.get_mut("subscriptions").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        if !s.contains_key("disconnectTime") && which(s) {
            s.insert("disconnectTime".into(), at.to_string().into());
            changed = true;
        }
    }
    changed
}

fn connect_time(subscription: &Map<String, Value>) -> Option<Timestamp> {
    Timestamp::parse(subscription.get("connectTime")?.as_str()?).ok()
}

fn text<'v>(subscription: &'v Map<String, Value>, field: &str) -> &'v str {
    subscription.get(field).and_then(Value::as_str).unwrap_or("")
}

/// Puts a subscription in its place by the time at which it began: the last one is the newest, whichever node serves it.
fn place(list: &mut Vec<Value>, mine: Value, connected: Timestamp) {
    list.retain(|s| s.get("id") != mine.get("id"));
    let newer = |s: &Value| s.as_object().and_then(connect_time).is_some_and(|t| t > connected);
    let at = list.iter().rposition(|s| !newer(s)).map_or(0, |last| last + 1);
    list.insert(at, mine);
}

/// In groups that fit into one entry each.
fn by_size<T>(puts: Vec<(Op, T)>) -> Vec<Vec<(Op, T)>> {
    let (mut groups, mut bytes) = (vec![Vec::new()], 0);
    for put in puts {
        let size = if let Op::Put(p) = &put.0 { p.spec.text().len() } else { 0 };
        bytes += size;
        match groups.last_mut() {
            Some(group) if group.is_empty() || bytes <= BATCH_BYTES => group.push(put),
            _ => {
                bytes = size;
                groups.push(vec![put]);
            }
        }
    }
    groups
}

impl Proxies {
    /// The whole insight of a proxy: stored subscriptions with these streams' put in, oldest first. The newest one tells the rest, and an open
    /// one closes those that began before it; both count wherever the stream is, so that nodes do not undo each other's.
    fn insight_spec(&self, world: &World, id: &ProxyId, streams: &[Arc<Proxy>]) -> Value {
        let stored = world.get(&id.insight()).map(|r| r.spec.value().clone()).unwrap_or_else(|| json!({}));
        let mut spec = json!({"subscriptions": stored.get("subscriptions").cloned().unwrap_or_else(|| json!([]))});
        let mut newest = Value::Null;
        for proxy in streams {
            let state = proxy.state.lock();
            let (mine, connected) = (&state.subscription, state.subscription.connected);
            if mine.disconnected.is_none() {
                close_subscriptions(&mut spec, now(), |s| text(s, "id") != mine.id && connect_time(s).is_none_or(|t| t <= connected));
            }
            if let Some(list) = spec.get_mut("subscriptions").and_then(Value::as_array_mut) {
                place(list, mine.to_json(), connected);
                let surplus = list.len().saturating_sub(self.options.insights.subscription_limit);
                list.drain(..surplus);
                newest = list.last().and_then(|s| s.get("id").cloned()).unwrap_or_default();
            }
        }
        let Some(last) = streams.last() else { return spec };
        let state = last.state.lock();
        if newest != *state.subscription.id {
            // Another node serves the proxy now: what it says of it stays.
            let mut rest = stored;
            if let Some(subscriptions) = spec.get_mut("subscriptions") {
                rest["subscriptions"] = subscriptions.take();
            }
            return rest;
        }
        if let Some(mtls) = &state.mtls {
            spec["mTLS"] = mtls.to_json();
        }
        if !state.node_metadata.is_null() {
            spec["metadata"] = state.node_metadata.clone();
        }
        if let Some(error) = state.error.as_ref().or(state.subscription.last_nack.as_ref()) {
            // Ours, beside Kuma's fields: readers of the insight ignore what they do not know.
            spec["lastError"] = error.clone().into();
        }
        spec
    }

    /// What has to be written: per proxy its streams, one that ended before the one that is open.
    pub(super) fn take_dirty_insights(&self) -> Vec<Vec<Arc<Proxy>>> {
        let table = self.table.lock();
        let mut all: BTreeMap<ProxyId, Vec<Arc<Proxy>>> =
            std::mem::take(&mut *self.departed.lock()).into_iter().map(|(id, p)| (id, vec![p])).collect();
        for (id, proxy) in &*table {
            if std::mem::take(&mut proxy.state.lock().insight_dirty) || all.contains_key(id) {
                all.entry(id.clone()).or_default().push(proxy.clone());
            }
        }
        all.into_values().collect()
    }

    /// These were not written: they are taken again with the next flush.
    fn give_back(&self, unwritten: impl IntoIterator<Item = Vec<Arc<Proxy>>>) {
        let table = self.table.lock();
        let mut departed = self.departed.lock();
        for proxy in unwritten.into_iter().flatten() {
            if table.get(&proxy.id).is_some_and(|p| Arc::ptr_eq(p, &proxy)) {
                proxy.state.lock().insight_dirty = true;
            } else {
                // One that ended later is in there already.
                departed.entry(proxy.id.clone()).or_insert(proxy);
            }
        }
    }

    /// Writes all insights that changed. The only writer of this node, so that no write builds on what another one is about to replace. What
    /// the store does not take is tried again with the next flush.
    pub(super) async fn flush_insights(&self) {
        let dirty = self.take_dirty_insights();
        if self.options.insights.subscription_limit == 0 {
            return;
        }
        let mut unwritten = Vec::new();
        for batch in dirty.chunks(BATCH) {
            if !unwritten.is_empty() {
                unwritten.extend_from_slice(batch);
                continue;
            }
            let world = self.store.world();
            // Insights of dataplanes that are gone would be left over.
            let ids = batch.iter().filter_map(|streams| Some((&streams.first()?.id, streams)));
            let alive = ids.filter(|(id, _)| world.get(&id.dataplane()).is_some());
            let puts: Vec<_> = alive.map(|(id, streams)| (self.insight_put(&world, id, streams), streams.clone())).collect();
            unwritten.extend(self.write_insights(puts).await);
        }
        if !unwritten.is_empty() {
            self.give_back(unwritten);
        }
    }

    pub(super) fn insight_put(&self, world: &World, id: &ProxyId, streams: &[Arc<Proxy>]) -> Op {
        let spec = Json::from_value(&self.insight_spec(world, id, streams));
        // Another node may write it too, for an earlier or later stream of the proxy.
        let expect = world.get(&id.insight()).map_or(Expect::Absent, |stored| Expect::Version(stored.version));
        // With the owner a deletion between here and the entry rejects the command instead of leaving an insight behind.
        Op::Put(Put { owner: Some(id.dataplane()), expect, ..Put::new(id.insight(), Labels::new(), spec) })
    }

    /// Writes in as few commands as their size allows; in halves when one is too large all the same, when one of the dataplanes is gone, or when
    /// another node wrote one of the insights meanwhile. Gives what was not written.
    pub(super) async fn write_insights(&self, puts: Vec<(Op, Vec<Arc<Proxy>>)>) -> Vec<Vec<Arc<Proxy>>> {
        let mut todo = by_size(puts);
        let mut overtaken = Vec::new();
        while let Some(mut puts) = todo.pop() {
            if puts.is_empty() {
                continue;
            }
            let ops = puts.iter().map(|(op, _)| op.clone()).collect();
            match self.store.propose(Command { id: self.store.new_id(), ops }).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(_) | ProposeError::TooLarge { .. }) if puts.len() > 1 => {
                    let half = puts.split_off(puts.len() / 2);
                    todo.extend([half, puts]);
                }
                Err(error @ ProposeError::TooLarge { .. }) => {
                    let proxy = puts.first().and_then(|(_, s)| s.first()).map(|p| p.id.to_string());
                    tracing::warn!(proxy, %error, "an insight is not written: the metadata of the proxy's node is too large");
                }
                // To be built on what the other node wrote.
                Err(ProposeError::Rejected(r)) if matches!(r.reason, Reason::Conflict | Reason::AlreadyExists) => {
                    overtaken.extend(puts.into_iter().map(|(_, streams)| streams));
                    self.insight_wake.notify_one();
                }
                // Its dataplane is gone.
                Err(ProposeError::Rejected(_)) => {}
                Err(error) => {
                    todo.push(puts);
                    overtaken.extend(todo.into_iter().flatten().map(|(_, streams)| streams));
                    tracing::warn!(%error, proxies = overtaken.len(), "insights are not written, trying again later");
                    return overtaken;
                }
            }
        }
        overtaken
    }

    /// Another node took the process for dead and closed what is open here: it is written again. An open stream elsewhere is newer, or soon
    /// closed.
    pub(super) fn defend_insight(&self, change: &Change) {
        let Some(after) = change.after.as_ref().filter(|r| r.kind() == Kind::DataplaneInsight) else { return };
        let id = ProxyId { mesh: after.key.mesh.clone(), name: after.key.name.clone() };
        let Some(proxy) = self.connected(&id) else { return };
        let subscriptions = after.spec.value().get("subscriptions").and_then(Value::as_array);
        if !subscriptions.into_iter().flatten().all(|s| s.get("disconnectTime").is_some()) {
            return;
        }
        proxy.state.lock().insight_dirty = true;
        self.insight_wake.notify_one();
    }

    /// A dataplane that was deleted took the insight along; when it is made again while its proxy is connected, the insight is too.
    pub(super) fn renew_insight(&self, change: &Change) {
        let created = change.before.is_none().then(|| change.key()).flatten().filter(|k| k.kind == Kind::Dataplane);
        let proxy = created.and_then(|k| self.connected(&ProxyId { mesh: k.mesh.clone(), name: k.name.clone() }));
        if let Some(proxy) = proxy {
            proxy.state.lock().insight_dirty = true;
            self.insight_wake.notify_one();
        }
    }

    /// Writes changed insights: soon after a connect or a certificate, else at most once per flush interval. Idle when nothing changes.
    pub async fn run_insights(self: Arc<Self>, stop: CancellationToken) {
        let interval = self.options.insights.flush_interval.max(Duration::from_millis(100));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.insight_wake.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(interval) => {}
            }
            self.flush_insights().await;
        }
        // A planned stop loses nothing, and what is still open ends with it.
        for proxy in self.all() {
            let mut state = proxy.state.lock();
            state.subscription.disconnect();
            state.insight_dirty = true;
        }
        // More than once for what another node wrote at the same time: the proxies go there now.
        for _ in 0..CONFLICT_RETRIES {
            self.flush_insights().await;
        }
    }

    /// On the leader: closes subscriptions of processes that are gone, when a process had time to come back and its proxies to connect; and
    /// again after that time, for what the store did not take. `living` gives the ids of the processes that are not.
    pub async fn run_finalizer(self: Arc<Self>, living: impl Fn(&World, Duration) -> BTreeSet<String> + Send, stop: CancellationToken) {
        let interval = self.options.insights.idle_timeout.max(SHORTEST_IDLE);
        let leads = self.store.leadership();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            if *leads.borrow() {
                let world = self.store.world();
                self.finalize(&world, &living(&world, interval), &stop).await;
            }
        }
    }

    /// Closes what the processes that are not among `living` left open, and what this one did.
    pub(super) async fn finalize(&self, world: &World, living: &BTreeSet<String>, stop: &CancellationToken) {
        for r in world.list(Kind::DataplaneInsight) {
            if stop.is_cancelled() {
                return;
            }
            let id = ProxyId { mesh: r.key.mesh.clone(), name: r.key.name.clone() };
            if self.connected(&id).is_some() {
                continue;
            }
            let mine = self.options.instance_id.as_str();
            let mut spec = r.spec.value().clone();
            let gone = |s: &Map<String, Value>| match text(s, "controlPlaneInstanceId") {
                instance if instance == mine => true,
                instance => !living.contains(instance),
            };
            if !close_subscriptions(&mut spec, now(), gone) {
                continue;
            }
            let op = Op::Put(Put { expect: Expect::Version(r.version), ..Put::new(r.key.clone(), r.labels.clone(), Json::from_value(&spec)) });
            match self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await {
                // Rejected: somebody wrote it meanwhile, so it is looked after.
                Ok(_) | Err(ProposeError::Rejected(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "insights of a control plane that is gone are not closed, trying again later");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_of_the_recording() {
        let metadata = json!({"version": {"kumaDp": {"version": "2.14.3"}, "envoy": {"version": "1.40.0"}}});
        let mut s = Subscription::new("host-1-a1b2", &metadata);
        s.count(type_url::CLUSTER, Event::Sent);
        s.count(type_url::CLUSTER, Event::Acknowledged);
        s.count(type_url::SECRET, Event::Sent);
        let v = s.to_json();
        assert_eq!(v["status"]["cds"], json!({"responsesSent": "1", "responsesAcknowledged": "1"}));
        assert_eq!(v["status"]["total"], json!({"responsesSent": "2", "responsesAcknowledged": "1"}));
        assert_eq!(v["status"]["rds"], json!({}));
        assert_eq!(v["version"]["kumaDp"]["kumaCpCompatible"], true);
        assert!(v.get("disconnectTime").is_none());
        let mut insight = json!({"subscriptions": [v]});
        assert!(!close_subscriptions(&mut insight, now(), |s| text(s, "id") == "another"));
        assert!(close_subscriptions(&mut insight, now(), |_| true));
        assert!(!close_subscriptions(&mut insight, now(), |_| true));
    }

    #[test]
    fn the_newest_is_last_whoever_writes() {
        let s = |id: &str, second: i64| json!({"id": id, "connectTime": Timestamp(second * 1_000_000_000).to_string()});
        let mut list = vec![s("a", 1), s("b", 5)];
        place(&mut list, s("c", 3), Timestamp(3_000_000_000));
        place(&mut list, s("d", 9), Timestamp(9_000_000_000));
        // Written again with news: it stays where it was.
        place(&mut list, s("a", 1), Timestamp(1_000_000_000));
        let ids: Vec<_> = list.iter().map(|s| s["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a", "c", "b", "d"]);
    }
}
