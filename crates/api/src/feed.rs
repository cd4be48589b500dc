//! Follows the store for everybody who waits: one subscriber of its changes, the recent past, and a bounded number of waiters.

use crate::{error::ApiError, interest::Interest};
use http::StatusCode;
use ikada_world::{ChangeSet, Happened, History, HistoryLimits, Replicator};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast},
    task::JoinHandle,
};

/// What is kept of each state for clients that come back: minutes of people's changes, several rounds of a thousand insights.
const PAST: HistoryLimits = HistoryLimits { changes: 16_384, bytes: 32 << 20 };

struct Waiter {
    interest: Arc<Interest>,
    after: u64,
    wake: Arc<Notify>,
}

struct Inner {
    past: History,
    waiters: BTreeMap<u64, Waiter>,
    next: u64,
}

impl Inner {
    fn push(&mut self, set: &ChangeSet) {
        self.past.push(set);
        for w in self.waiters.values() {
            if set.index > w.after && w.interest.wants_any(set) {
                w.wake.notify_one();
            }
        }
    }
    fn restart(&mut self, index: u64) {
        self.past.restart(index);
        self.waiters.values().for_each(|w| w.wake.notify_one());
    }
}

/// The changes of a store. Ends with its last owner.
pub struct Feed {
    inner: Arc<Mutex<Inner>>,
    task: JoinHandle<()>,
    slots: Arc<Semaphore>,
    limit: usize,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Unregisters a waiter, however its wait ends.
struct Registered<'a>(&'a Mutex<Inner>, u64);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters.remove(&self.1);
    }
}

async fn follow(replicator: Arc<dyn Replicator>, inner: Arc<Mutex<Inner>>, mut changes: broadcast::Receiver<Arc<ChangeSet>>) {
    loop {
        match changes.recv().await {
            Ok(set) => inner.lock().push(&set),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // The world that is read afterwards has everything that is not received any more.
                changes = changes.resubscribe();
                inner.lock().restart(replicator.world().index());
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

impl Feed {
    /// Follows a store for so many waiters at a time. Needs a tokio runtime.
    pub fn start(replicator: Arc<dyn Replicator>, limit: usize) -> Arc<Feed> {
        let changes = replicator.subscribe();
        let past = History::new(PAST, replicator.world().index());
        let inner = Arc::new(Mutex::new(Inner { past, waiters: BTreeMap::new(), next: 0 }));
        let task = tokio::spawn(follow(replicator, inner.clone(), changes));
        Arc::new(Feed { inner, task, slots: Arc::new(Semaphore::new(limit)), limit })
    }
    /// A place to wait, until it is dropped.
    ///
    /// # Errors
    /// 429 when all are taken.
    pub fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.slots.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("{} requests wait for changes already, which is the limit of this node: try again later, or ask another node", self.limit);
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests wait", detail)
        })
    }
    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiters.len()
    }
    /// Returns when something of interest happened after entry `after`, or when that is not known any more.
    pub async fn changed(&self, after: u64, interest: &Arc<Interest>) {
        let wake = Arc::new(Notify::new());
        let _registered = {
            let mut inner = self.inner.lock();
            // Looked up and registered in one go: nothing slips through in between.
            let known = inner.past.after(after, interest.policy, interest.status).map(|mut all| all.any(|h| interest.wants_past(h)));
            if known != Some(false) {
                return;
            }
            let id = inner.next;
            inner.next += 1;
            inner.waiters.insert(id, Waiter { interest: interest.clone(), after, wake: wake.clone() });
            Registered(&self.inner, id)
        };
        wake.notified().await;
    }
    /// What happened after entry `after`, whole entries, until there are `most`; and the entry up to which that is everything. `None` when it
    /// is not all known any more.
    pub fn after(&self, after: u64, interest: &Interest, most: usize) -> Option<(Vec<Happened>, u64)> {
        let inner = self.inner.lock();
        let mut found: Vec<Happened> = Vec::new();
        for h in inner.past.after(after, interest.policy, interest.status)? {
            if let Some(last) = found.last()
                && found.len() >= most
                && last.index != h.index
            {
                let up_to = last.index;
                return Some((found, up_to));
            }
            if interest.wants_past(h) {
                found.push(h.clone());
            }
        }
        let up_to = inner.past.head().max(after);
        Some((found, up_to))
    }
}
