//! DataplaneInsights: who is connected since when, what was accepted, which certificate it has (reference: data-plane contract §4.5).
//!
//! Kept in memory per stream and written in batches: one command for many proxies.

use super::{Proxies, Proxy, now};
use ikada_model::{Json, Labels, Timestamp};
use ikada_world::{Command, Expect, Op, ProposeError, Put, Reason, World};
use ikada_xds::type_url;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Insights in one command.
const BATCH: usize = 500;
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

/// Closes open subscriptions other than `except`, in place. True when something changed.
pub fn close_subscriptions(insight: &mut Value, except: &str, at: Timestamp) -> bool {
    let mut changed = false;
    for s in insight.get_mut("subscriptions").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let id = s.get("id").and_then(Value::as_str).unwrap_or("");
        if id != except && !s.contains_key("disconnectTime") {
            s.insert("disconnectTime".into(), at.to_string().into());
            changed = true;
        }
    }
    changed
}

impl Proxies {
    /// The whole insight of a proxy: stored subscriptions with this stream's put in.
    fn insight_spec(&self, world: &World, proxy: &Proxy) -> Value {
        let stored = world.get(&proxy.id.insight()).map(|r| r.spec.value().clone()).unwrap_or_else(|| json!({}));
        let state = proxy.state.lock();
        let mut spec = json!({"subscriptions": stored.get("subscriptions").cloned().unwrap_or_else(|| json!([]))});
        close_subscriptions(&mut spec, &state.subscription.id, now());
        let mine = state.subscription.to_json();
        if let Some(list) = spec.get_mut("subscriptions").and_then(Value::as_array_mut) {
            list.retain(|s| s.get("id") != mine.get("id"));
            list.push(mine);
            let surplus = list.len().saturating_sub(self.options.insights.subscription_limit);
            list.drain(..surplus);
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

    /// Writes the insights of these proxies. What cannot be written is tried again with the next flush.
    pub(super) async fn write_insights(&self, proxies: &[Arc<Proxy>]) {
        if self.options.insights.subscription_limit == 0 {
            return;
        }
        for batch in proxies.chunks(BATCH) {
            let world = self.store.world();
            let mut ops = Vec::new();
            for proxy in batch {
                proxy.state.lock().insight_dirty = false;
                if world.get(&proxy.id.dataplane()).is_none() {
                    continue;
                }
                let owner = proxy.id.dataplane();
                // Without this a deletion between here and the entry would reject the whole batch with "owner not found".
                let spec = Json::from_value(&self.insight_spec(&world, proxy));
                ops.push(Op::Put(Put { owner: Some(owner), ..Put::new(proxy.id.insight(), Labels::new(), spec) }));
            }
            if ops.is_empty() {
                continue;
            }
            match self.store.propose(Command { id: self.store.new_id(), ops: ops.clone() }).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(r)) if r.reason == Reason::OwnerNotFound && ops.len() > 1 => {
                    // A dataplane went away meanwhile: the others are written one by one.
                    for op in ops {
                        self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await.ok();
                    }
                }
                Err(ProposeError::Rejected(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, proxies = batch.len(), "insights are not written, trying again later");
                    for proxy in batch {
                        proxy.state.lock().insight_dirty = true;
                    }
                }
            }
        }
    }

    fn take_dirty_insights(&self) -> Vec<Arc<Proxy>> {
        self.all().into_iter().filter(|p| p.state.lock().insight_dirty).collect()
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
            let dirty = self.take_dirty_insights();
            self.write_insights(&dirty).await;
        }
        // The last state of every stream, disconnected or not, must not be lost by a planned stop.
        let dirty = self.take_dirty_insights();
        self.write_insights(&dirty).await;
    }

    /// Closes subscriptions of control planes that are gone. Runs once, when a finished process has had time to come back.
    pub async fn run_finalizer(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(self.options.insights.idle_timeout) => {}
        }
        let world = self.store.world();
        let mut ops = Vec::new();
        for r in world.list(ikada_model::Kind::DataplaneInsight) {
            let id = super::ProxyId { mesh: r.key.mesh.clone(), name: r.key.name.clone() };
            if self.connected(&id).is_some() {
                continue;
            }
            let mut spec = r.spec.value().clone();
            if close_subscriptions(&mut spec, "", now()) {
                ops.push(Op::Put(Put { expect: Expect::Version(r.version), ..Put::new(r.key.clone(), r.labels.clone(), Json::from_value(&spec)) }));
            }
        }
        for op in ops {
            self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await.ok();
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
        assert!(close_subscriptions(&mut insight, "", now()));
        assert!(!close_subscriptions(&mut insight, "", now()));
    }
}
