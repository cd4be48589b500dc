//! After a proxy is gone (reference: data-plane contract §4.4).

use super::{CONFLICT_PAUSE, Proxies, Proxy, ProxyId};
use ikada_model::{Kind, Timestamp};
use ikada_world::{Command, Expect, Op, ProposeError};
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How often old offline dataplanes are looked for.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// Pause before a deregistration is tried again when the store does not accept writes.
const RETRY: Duration = Duration::from_secs(5);

/// Status for a stream whose dataplane was deregistered while it began.
pub(super) fn deregistered() -> Status {
    Status::unavailable("the dataplane was just deregistered, after an earlier stream: connect again to register it")
}

/// Last subscription of an insight.
fn last_subscription(insight: &Value) -> Option<&Value> {
    insight.get("subscriptions")?.as_array()?.last()
}

impl Proxies {
    /// The stream of a proxy ended.
    pub(super) fn depart(self: Arc<Self>, proxy: Arc<Proxy>) {
        proxy.state.lock().subscription.disconnect();
        {
            let mut table = self.table.lock();
            if table.get(&proxy.id).is_none_or(|p| p.stream_id != proxy.stream_id) {
                // A newer stream took over: its insight tells that this one is over.
                return;
            }
            table.remove(&proxy.id);
            self.metrics.streams(table.len());
            self.departed.lock().insert(proxy.id.clone(), proxy.clone());
        }
        self.insight_wake.notify_one();
        if proxy.registered && !self.stopping.load(Ordering::Relaxed) {
            let delay = self.options.insights.deregistration_delay;
            self.deregister(proxy.id.clone(), delay);
        }
    }

    /// Deletes the dataplane that a proxy brought along, after a delay, unless the proxy is back by then.
    pub(super) fn deregister(self: Arc<Self>, id: ProxyId, delay: Duration) {
        // Streams also end when the runtime does.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            while !self.stopping.load(Ordering::Relaxed) && self.connected(&id).is_none() {
                let world = self.store.world();
                let Some(dataplane) = world.get(&id.dataplane()) else { return };
                let elsewhere = world
                    .get(&id.insight())
                    .and_then(|i| last_subscription(i.spec.value())?.get("controlPlaneInstanceId")?.as_str())
                    .is_some_and(|instance| instance != self.options.instance_id);
                if elsewhere {
                    return;
                }
                let op = Op::Delete { key: dataplane.key.clone(), expect: Expect::Version(dataplane.version) };
                match self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await {
                    Ok(_) => {
                        tracing::info!(proxy = %id, "deregistered");
                        // It came back while the deletion was on its way and found its dataplane still there: it has to bring it again.
                        if let Some(back) = self.connected(&id).filter(|p| p.registered) {
                            back.handle.end(deregistered());
                        }
                        return;
                    }
                    // Changed meanwhile: look again.
                    Err(ProposeError::Rejected(_)) => tokio::time::sleep(CONFLICT_PAUSE).await,
                    Err(error) => {
                        tracing::warn!(proxy = %id, %error, "not deregistered, trying again later");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
    }

    /// On the leader: deletes dataplanes that have been offline for a long time.
    pub async fn run_cleanup(self: Arc<Self>, stop: CancellationToken) {
        let leads = self.store.leadership();
        let age = i64::try_from(self.options.insights.cleanup_age.as_nanos()).unwrap_or(i64::MAX);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CLEANUP_INTERVAL) => {}
            }
            if !*leads.borrow() {
                continue;
            }
            let world = self.store.world();
            let limit = Timestamp(super::now().0.saturating_sub(age));
            let old: Vec<_> = world
                .list(Kind::DataplaneInsight)
                .filter(|i| {
                    let gone = last_subscription(i.spec.value()).and_then(|s| s.get("disconnectTime")?.as_str());
                    gone.and_then(|t| Timestamp::parse(t).ok()).is_some_and(|t| t < limit)
                })
                .filter_map(|i| world.find(Kind::Dataplane, i.mesh(), i.name()))
                .map(|d| Op::Delete { key: d.key.clone(), expect: Expect::Version(d.version) })
                .collect();
            for op in old {
                let Op::Delete { key, .. } = &op else { continue };
                if stop.is_cancelled() || self.connected(&ProxyId { mesh: key.mesh.clone(), name: key.name.clone() }).is_some() {
                    continue;
                }
                tracing::info!(%key, "deleted: offline for longer than runtime.universal.dataplaneCleanupAge");
                self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await.ok();
            }
        }
    }
}
