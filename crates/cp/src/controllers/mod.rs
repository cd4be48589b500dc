//! Components of the leader that keep derived resources as they should be.
//!
//! Each is a function from the world to operations; the loop here runs it when its inputs changed, or when a deadline that it named is
//! reached.

mod hostnames;
mod mesh_services;
mod vips;

use crate::proxies::now;
use ikada_model::{Kind, Timestamp};
use ikada_world::{ChangeSet, Command, Op, ProposeError, Replicator};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use vips::Allocator;

/// Changes within this time are worked on together.
const GATHER: Duration = Duration::from_millis(20);
/// Operations in one command.
const CHUNK: usize = 500;
/// Wait after a write that was not accepted; doubled with every further one up to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Longest sleep without changes.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Settings of the MeshService controller.
pub struct MeshServiceOptions {
    /// Own zone.
    pub zone: String,
    /// How long an empty MeshService stays.
    pub grace: Duration,
    /// CIDR of virtual IPs.
    pub cidr: String,
}

fn touched(changes: &ChangeSet, dirty: &mut BTreeSet<Arc<str>>, all: &mut bool) {
    for change in changes.policy.iter().chain(&changes.status) {
        let Some(key) = change.key() else { continue };
        match key.kind {
            k if !mesh_services::is_input(k) => {}
            // Counts that the controller itself wrote.
            Kind::MeshService if change.after.as_ref().is_some_and(|a| a.spec.is_empty()) => {}
            Kind::HostnameGenerator => *all = true,
            Kind::Mesh => drop(dirty.insert(key.name.clone())),
            _ => drop(dirty.insert(key.mesh.clone())),
        }
    }
}

/// Writes in few commands: each is small enough for an entry. Operations of different services do not depend on each other; the first failure
/// ends it, and the next plan has what is left.
async fn write(store: &dyn Replicator, ops: Vec<Op>) -> Result<(), ProposeError> {
    let mut todo: Vec<Vec<Op>> = ops.chunks(CHUNK).rev().map(<[Op]>::to_vec).collect();
    while let Some(mut ops) = todo.pop() {
        match store.propose(Command { id: store.new_id(), ops: ops.clone() }).await {
            Ok(_) => {}
            Err(ProposeError::TooLarge { .. }) if ops.len() > 1 => {
                let rest = ops.split_off(ops.len() / 2);
                todo.extend([rest, ops]);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Keeps the MeshServices of all meshes as they should be, while this node leads.
pub async fn run_mesh_services(store: Arc<dyn Replicator>, options: MeshServiceOptions, stop: CancellationToken) {
    let mut bus = store.subscribe();
    let mut leads = store.leadership();
    let mut vips = match Allocator::new(&options.cidr) {
        Ok(v) => v,
        Err(e) => return tracing::error!(error = e, "ipam.meshService.cidr is invalid: MeshServices are not generated"),
    };
    let (mut dirty, mut all) = (BTreeSet::new(), true);
    let mut deadlines: HashMap<Arc<str>, Timestamp> = HashMap::new();
    let mut noted: BTreeSet<String> = BTreeSet::new();
    let mut retry = RETRY;
    loop {
        if stop.is_cancelled() {
            return;
        }
        if !*leads.borrow_and_update() {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = leads.changed() => { all = true; continue }
            }
        }
        if dirty.is_empty() && !all {
            let next = deadlines.values().min().map_or(LONGEST_SLEEP, |at| Duration::from_nanos(u64::try_from(at.0 - now().0).unwrap_or(0)).min(LONGEST_SLEEP));
            tokio::select! {
                () = stop.cancelled() => return,
                _ = leads.changed() => continue,
                () = tokio::time::sleep(next) => {
                    let due = now();
                    dirty.extend(deadlines.iter().filter(|(_, at)| **at <= due).map(|(m, _)| m.clone()));
                    continue;
                }
                change = bus.recv() => match change {
                    Ok(c) => touched(&c, &mut dirty, &mut all),
                    Err(RecvError::Lagged(_)) => all = true,
                    Err(RecvError::Closed) => return,
                },
            }
            if dirty.is_empty() && !all {
                continue;
            }
            tokio::time::sleep(GATHER).await;
        }
        loop {
            match bus.try_recv() {
                Ok(c) => touched(&c, &mut dirty, &mut all),
                Err(tokio::sync::broadcast::error::TryRecvError::Lagged(_)) => all = true,
                Err(_) => break,
            }
        }
        let world = store.world();
        if std::mem::take(&mut all) {
            vips.start_over(mesh_services::stored_vips(&world));
            dirty.extend(world.list(Kind::Mesh).map(|m| m.key.name.clone()));
        }
        let mut failed = BTreeSet::new();
        for mesh in std::mem::take(&mut dirty) {
            let cx = mesh_services::Context { zone: &options.zone, now: now(), grace: options.grace };
            let plan = mesh_services::plan(&world, &mesh, &cx, &mut vips);
            for note in plan.notes {
                // Once per text: the same conflict is found with every change.
                if noted.len() < 10_000 && noted.insert(note.clone()) {
                    tracing::warn!(mesh = &*mesh, "{note}");
                }
            }
            match plan.next {
                Some(at) => drop(deadlines.insert(mesh.clone(), at)),
                None => drop(deadlines.remove(&mesh)),
            }
            match write(&*store, plan.ops).await {
                Ok(()) => {}
                Err(ProposeError::Rejected(r)) => {
                    tracing::debug!(mesh = &*mesh, reason = %r, "MeshServices changed meanwhile, planning again");
                    failed.insert(mesh);
                }
                Err(error) => {
                    tracing::warn!(mesh = &*mesh, %error, "MeshServices are not written, trying again");
                    failed.insert(mesh);
                }
            }
        }
        if failed.is_empty() {
            retry = RETRY;
        } else {
            dirty = failed;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(retry) => retry = (retry * 2).min(LONGEST_RETRY),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Labels};
    use ikada_raft::{Options, RaftStore};
    use ikada_world::Put;

    #[tokio::test]
    async fn more_than_fits_into_one_entry_is_written_in_several() {
        let dir = tempfile::tempdir().unwrap();
        let store = RaftStore::open(Options::new(dir.path().join("data"))).await.unwrap();
        let spec = Json::from_value(&serde_json::json!({"note": "x".repeat(100_000)}));
        let put = |n: usize| Op::Put(Put::new(Key::new(Kind::MeshService, "m", &format!("s{n}")), Labels::new(), spec.clone()));
        write(&*store, (0..40).map(put).collect()).await.unwrap();
        assert_eq!(store.world().list(Kind::MeshService).count(), 40);
        let huge = Json::from_value(&serde_json::json!({"note": "x".repeat(3_000_000)}));
        let one = Op::Put(Put::new(Key::new(Kind::MeshService, "m", "huge"), Labels::new(), huge));
        assert!(matches!(write(&*store, vec![one]).await, Err(ProposeError::TooLarge { .. })), "an end");
    }
}
