//! How far each proxy is: when it had acknowledged everything that a revision of the store changed for it.

use super::{Proxies, Proxy};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Revisions whose commit time is remembered.
const REMEMBERED: usize = 256;
/// Longest pause between two looks of somebody who waits. Times do not depend on it: they were taken when the acknowledgement came.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// When the latest revisions were committed, as seen on this node.
#[derive(Default)]
pub struct Commits(Mutex<BTreeMap<u64, Instant>>);

impl Commits {
    /// An entry was applied.
    pub fn committed(&self, index: u64) {
        let mut commits = self.0.lock();
        commits.entry(index).or_insert_with(Instant::now);
        while commits.len() > REMEMBERED {
            commits.pop_first();
        }
    }
    fn at(&self, index: u64) -> Option<Instant> {
        self.0.lock().get(&index).copied()
    }
}

/// Progress of one proxy.
#[derive(Default)]
pub struct State {
    /// Last world it was generated from.
    generated: u64,
    /// Digest of what it should have.
    wanted: Option<u64>,
    /// Digest of what it has acknowledged.
    acknowledged: Option<u64>,
    /// Revisions up to which it has everything, with the moment it had; oldest first, bounded.
    reached: BTreeMap<u64, Instant>,
}

impl State {
    fn update(&mut self) {
        if self.wanted.is_some() && self.wanted == self.acknowledged && self.reached.last_key_value().is_none_or(|(r, _)| *r < self.generated) {
            self.reached.insert(self.generated, Instant::now());
            while self.reached.len() > REMEMBERED {
                self.reached.pop_first();
            }
        }
    }
}

/// One proxy in a [`SyncReport`].
#[derive(Debug, Serialize)]
pub struct ProxySync {
    /// Mesh.
    pub mesh: String,
    /// Name.
    pub name: String,
    /// It has acknowledged everything up to the revision.
    pub synced: bool,
    /// Milliseconds from the commit on this node until then; absent when unknown.
    pub ms: Option<f64>,
}

/// Which proxies have what a revision changed for them.
#[derive(Debug, Serialize)]
pub struct SyncReport {
    /// Revision asked for.
    pub revision: u64,
    /// All connected proxies have it.
    pub synced: bool,
    /// Proxies of this node.
    pub proxies: Vec<ProxySync>,
}

impl Proxies {
    /// A proxy was generated from the world at `index`; `digest` is what it should have now, `None` when that stays as it was.
    pub(super) fn generated(&self, proxy: &Proxy, index: u64, digest: Option<u64>) {
        let mut s = proxy.sync.lock();
        s.generated = index;
        if digest.is_some() {
            s.wanted = digest;
        }
        s.update();
    }
    /// What a proxy should have cannot be generated: it has no revision until it can.
    pub(super) fn not_generated(&self, proxy: &Proxy) {
        proxy.sync.lock().wanted = None;
    }
    /// A proxy acknowledged everything of the snapshot with this digest.
    pub(super) fn synced(&self, proxy: &Proxy, digest: u64) {
        let mut s = proxy.sync.lock();
        s.acknowledged = Some(digest);
        s.update();
    }
    /// All proxies that the changes up to `index` concern have been regenerated; for the others nothing changed.
    pub(super) fn settled(&self, index: u64) {
        for proxy in self.all() {
            let mut s = proxy.sync.lock();
            if s.generated > 0 && s.generated < index {
                s.generated = index;
                s.update();
            }
        }
    }
    /// Progress of all connected proxies towards a revision.
    pub fn sync_report(&self, revision: u64) -> SyncReport {
        let committed = self.commits.at(revision);
        let mut proxies: Vec<_> = self
            .all()
            .iter()
            .map(|p| {
                let at = p.sync.lock().reached.range(revision..).next().map(|(_, at)| *at);
                let ms = at.zip(committed).map(|(a, c)| a.saturating_duration_since(c).as_secs_f64() * 1e3);
                ProxySync { mesh: p.id.mesh.to_string(), name: p.id.name.to_string(), synced: at.is_some(), ms }
            })
            .collect();
        proxies.sort_by(|a, b| (&a.mesh, &a.name).cmp(&(&b.mesh, &b.name)));
        SyncReport { revision, synced: proxies.iter().all(|p| p.synced), proxies }
    }
    /// Waits until all connected proxies have a revision, at most `wait`.
    pub async fn wait_synced(&self, revision: u64, wait: Duration) -> SyncReport {
        let end = Instant::now() + wait;
        let mut pause = Duration::from_millis(1);
        loop {
            let report = self.sync_report(revision);
            if report.synced || Instant::now() >= end {
                return report;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
