//! What a stream reports.

use super::{Proxies, Proxy, insight::Event};
use ikada_xds::{CloseReason, Nack, Sent, Session, Snapshot, Unacknowledged};
use std::sync::Arc;
use tokio::sync::watch;

/// One stream of one proxy.
pub struct ProxySession {
    proxies: Arc<Proxies>,
    proxy: Arc<Proxy>,
}

impl ProxySession {
    pub(super) fn new(proxies: Arc<Proxies>, proxy: Arc<Proxy>) -> Self {
        ProxySession { proxies, proxy }
    }
    fn count(&self, url: &str, event: Event) {
        let mut state = self.proxy.state.lock();
        state.subscription.count(url, event);
        state.insight_dirty = true;
    }
}

impl Session for ProxySession {
    fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.proxy.snapshot.subscribe()
    }
    fn on_sent(&self, sent: &Sent<'_>) {
        self.count(sent.type_url, Event::Sent);
        self.proxies.metrics.sent(sent.type_url, sent.bytes);
    }
    fn on_ack(&self, type_url: &str, _nonce: &str) {
        self.count(type_url, Event::Acknowledged);
        self.proxies.metrics.answered(type_url, true);
    }
    fn on_nack(&self, nack: &Nack<'_>) {
        self.count(nack.type_url, Event::Rejected);
        self.proxies.metrics.answered(nack.type_url, false);
        let names: Vec<_> = nack.rejected.iter().map(|(n, _)| &**n).collect();
        tracing::warn!(proxy = %self.proxy.id, type_url = nack.type_url, resources = ?names, reason = nack.message, "the proxy rejected a configuration and keeps the one before");
        self.proxy.state.lock().subscription.rejected(format!("{} {names:?} rejected: {}", nack.type_url, nack.message));
        self.proxies.insight_wake.notify_one();
    }
    fn on_synced(&self, digest: u64) {
        self.proxies.synced(&self.proxy, digest);
    }
    fn on_unacknowledged(&self, late: &Unacknowledged<'_>) {
        tracing::warn!(proxy = %self.proxy.id, type_url = late.type_url, seconds = late.age.as_secs(), "the proxy does not answer a configuration");
    }
    fn closed(&self, reason: &CloseReason) {
        tracing::debug!(proxy = %self.proxy.id, %reason, "disconnected");
        self.proxies.clone().depart(self.proxy.clone());
    }
}
