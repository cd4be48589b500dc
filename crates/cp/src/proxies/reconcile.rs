//! Change sets → dirty proxies → generation → snapshots.
//!
//! Proxies are regenerated because something changed, never by a timer; the one clock here is the end of a certificate's life. What a change
//! concerns is decided per mesh for now; what is sent is only the difference, since equal resources have equal versions.

use super::{Proxies, Proxy, ProxyId};
use ikada_envoy::{GenerateError, Generated, ProxyContext, Settings, Shared, generate_shared};
use ikada_model::{Kind, Mesh};
use ikada_world::{Change, ChangeSet, World};
use ikada_xds::{Encoded, Snapshot, SnapshotBuilder};
use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

/// After a round that concerned many proxies, what follows within this time is merged into the next one.
const MERGE: Duration = Duration::from_millis(100);
/// A round of more proxies than this is a large one.
const LARGE: usize = 64;
/// Longest sleep until certificates are looked at again.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// What all proxies of one round are generated from.
struct Inputs {
    world: Arc<World>,
    settings: Arc<Settings>,
    /// What they have in common is made once.
    shared: Shared,
}

/// Meshes whose proxies a change concerns.
enum Concerned<'a> {
    None,
    Mesh(&'a str),
    All,
}

fn concerned(change: &Change) -> Concerned<'_> {
    let Some(key) = change.key() else { return Concerned::None };
    if !change.is_material() {
        return Concerned::None;
    }
    match key.kind {
        Kind::Mesh => Concerned::Mesh(&key.name),
        Kind::Secret if key.name.contains(".ca-") => Concerned::Mesh(&key.mesh),
        Kind::GlobalSecret if &*key.name == "envoy-admin-ca" => Concerned::All,
        Kind::Secret | Kind::GlobalSecret | Kind::Config | Kind::HostnameGenerator | Kind::Zone => Concerned::None,
        k if k.descriptor().insight => Concerned::None,
        k if k.is_mesh_scoped() => Concerned::Mesh(&key.mesh),
        _ => Concerned::All,
    }
}

impl Proxies {
    /// Marks proxies for regeneration.
    pub(super) fn mark(&self, ids: impl IntoIterator<Item = ProxyId>) {
        self.dirty.lock().extend(ids);
        self.wake.notify_one();
    }

    fn mark_changed(&self, changes: &ChangeSet) {
        for change in &changes.policy {
            match concerned(change) {
                Concerned::None => {}
                Concerned::Mesh(mesh) => self.dirty.lock().extend(self.ids_in(mesh)),
                Concerned::All => self.dirty.lock().extend(self.all().iter().map(|p| p.id.clone())),
            }
            self.renew_insight(change);
        }
        for change in &changes.status {
            self.defend_insight(change);
        }
    }

    /// Regenerates what changed until `stop`.
    pub async fn run_reconcile(self: Arc<Self>, stop: CancellationToken) {
        let mut bus = self.store.subscribe();
        // Up to here all changes have been taken from the bus. The world may be ahead of it.
        let mut taken = self.store.world().index();
        let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
        while !stop.is_cancelled() {
            let due = self.mark_due_certificates();
            let sleep = due.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or(LONGEST_SLEEP).clamp(Duration::from_millis(10), LONGEST_SLEEP);
            if self.dirty.lock().is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(sleep) => continue,
                    change = bus.recv() => taken = self.take(change, taken),
                }
            }
            loop {
                match bus.try_recv() {
                    Ok(change) => taken = self.take(Ok(change), taken),
                    Err(TryRecvError::Lagged(n)) => taken = self.take(Err(RecvError::Lagged(n)), taken),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            let round: Vec<_> = std::mem::take(&mut *self.dirty.lock()).into_iter().filter_map(|id| self.connected(&id)).collect();
            let world = self.store.world();
            if round.is_empty() {
                self.settled(taken);
                continue;
            }
            let size = round.len();
            let share = size.div_ceil(workers).max(1);
            let inputs = Arc::new(Inputs { world: world.clone(), settings: self.settings.load_full(), shared: Shared::default() });
            let tasks: Vec<_> = round
                .chunks(share)
                .map(|part| {
                    let (me, inputs, part) = (self.clone(), inputs.clone(), part.to_vec());
                    tokio::task::spawn_blocking(move || part.iter().for_each(|p| me.regenerate(&inputs, p)))
                })
                .collect();
            for task in tasks {
                task.await.ok();
            }
            self.settled(taken);
            if size > LARGE {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(MERGE) => {}
                }
            }
        }
    }

    /// Marks whom a change concerns; gives the index up to which changes have been taken.
    fn take(&self, change: Result<Arc<ChangeSet>, RecvError>, taken: u64) -> u64 {
        match change {
            Ok(changes) => {
                self.commits.committed(changes.index);
                self.mark_changed(&changes);
                changes.index.max(taken)
            }
            // Behind the bus: everything may have changed.
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "behind the store's changes: all proxies are regenerated");
                self.mark(self.all().iter().map(|p| p.id.clone()));
                for proxy in self.all() {
                    proxy.state.lock().insight_dirty = true;
                }
                taken
            }
            Err(RecvError::Closed) => taken,
        }
    }

    /// One proxy in one world. Errors and panics concern this proxy alone, which keeps what it has.
    fn regenerate(&self, inputs: &Inputs, proxy: &Proxy) {
        let start = Instant::now();
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.snapshot_of(inputs, proxy)))
            .unwrap_or_else(|_| Err("generation panicked; this is a defect, please report it with the log".to_owned()));
        self.metrics.generated(start.elapsed(), result.is_ok());
        self.postpone_failed_renewal(proxy);
        let digest = match result {
            Ok(None) => None,
            Ok(Some(snapshot)) => {
                let digest = snapshot.digest();
                proxy.snapshot.send_if_modified(|current| {
                    let new = current.as_ref().is_none_or(|c| c.digest() != digest);
                    if new {
                        *current = Some(Arc::new(snapshot));
                    }
                    new
                });
                self.set_error(proxy, None);
                Some(digest)
            }
            Err(error) => {
                self.set_error(proxy, Some(error));
                return self.not_generated(proxy);
            }
        };
        self.generated(proxy, inputs.world.index(), digest);
    }

    fn set_error(&self, proxy: &Proxy, error: Option<String>) {
        let mut state = proxy.state.lock();
        if state.error == error {
            return;
        }
        if let Some(text) = &error {
            tracing::warn!(proxy = %proxy.id, error = text, "no configuration can be generated; the proxy keeps what it has");
        }
        state.error = error;
        state.insight_dirty = true;
        self.insight_wake.notify_one();
    }

    fn snapshot_of(&self, inputs: &Inputs, proxy: &Proxy) -> Result<Option<Snapshot>, String> {
        let world = &*inputs.world;
        // Deleted: nothing that is configured is torn down because of that.
        let Some(dataplane) = world.get(&proxy.id.dataplane()) else { return Ok(None) };
        let Some(mesh) = world.mesh(&proxy.id.mesh).and_then(|m| m.view::<Mesh>()) else {
            return Err(GenerateError::NoMesh(proxy.id.mesh.to_string()).to_string());
        };
        let secrets = self.secrets(world, proxy, mesh, dataplane)?;
        let context =
            ProxyContext { world, dataplane, metadata: &proxy.metadata, settings: &inputs.settings, secrets: &secrets, include_shadow: false };
        let resources = generate_shared(&context, &inputs.shared).map_err(|e| e.to_string())?;
        let mut builder = SnapshotBuilder::new();
        for Generated { name, type_url, version, bytes } in resources {
            builder.insert(Arc::new(Encoded::new(name, type_url, version, bytes)));
        }
        builder.build().map(Some).map_err(|e| e.to_string())
    }
}
