//! After a proxy is gone (reference: data-plane contract §4.4).

use super::{Proxies, Proxy};
use ikada_model::{Kind, Timestamp};
use ikada_world::{Command, Expect, Op};
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often old offline dataplanes are looked for.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Last subscription of an insight.
fn last_subscription(insight: &Value) -> Option<&Value> {
    insight.get("subscriptions")?.as_array()?.last()
}

impl Proxies {
    /// The stream of a proxy ended.
    pub(super) fn depart(self: Arc<Self>, proxy: Arc<Proxy>) {
        proxy.state.lock().subscription.disconnect();
        let stopping = self.stopping.load(Ordering::Relaxed);
        let replaced = {
            let mut table = self.table.lock();
            let mine = table.get(&proxy.id).is_some_and(|p| p.stream_id == proxy.stream_id);
            if mine && !stopping {
                table.remove(&proxy.id);
            }
            self.metrics.streams(table.len());
            !mine
        };
        if replaced {
            return;
        }
        if stopping {
            // Written with the last flush: the proxy stays in the table.
            proxy.state.lock().insight_dirty = true;
            return;
        }
        tokio::spawn(async move {
            self.write_insights(std::slice::from_ref(&proxy)).await;
            if !proxy.registered {
                return;
            }
            tokio::time::sleep(self.options.insights.deregistration_delay).await;
            if self.stopping.load(Ordering::Relaxed) || self.connected(&proxy.id).is_some() {
                return;
            }
            let world = self.store.world();
            let Some(dataplane) = world.get(&proxy.id.dataplane()) else { return };
            let elsewhere = world
                .get(&proxy.id.insight())
                .and_then(|i| last_subscription(i.spec.value())?.get("controlPlaneInstanceId")?.as_str())
                .is_some_and(|instance| instance != self.options.instance_id);
            if elsewhere {
                return;
            }
            let op = Op::Delete { key: dataplane.key.clone(), expect: Expect::Version(dataplane.version) };
            match self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await {
                Ok(_) => tracing::info!(proxy = %proxy.id, "deregistered"),
                Err(error) => tracing::debug!(proxy = %proxy.id, %error, "not deregistered"),
            }
        });
    }

    /// Deletes dataplanes that have been offline for a long time.
    pub async fn run_cleanup(self: Arc<Self>, stop: CancellationToken) {
        let age = i64::try_from(self.options.insights.cleanup_age.as_nanos()).unwrap_or(i64::MAX);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CLEANUP_INTERVAL) => {}
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
                tracing::info!(%key, "deleted: offline for longer than runtime.universal.dataplaneCleanupAge");
                self.store.propose(Command { id: self.store.new_id(), ops: vec![op] }).await.ok();
            }
        }
    }
}
