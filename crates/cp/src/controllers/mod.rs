//! Components of the leader that keep derived resources as they should be.
//!
//! Each is a function from the world to operations; the loop here runs it when its inputs changed, or when a deadline that it named is
//! reached.

mod hostnames;
mod mesh_services;
mod vips;

use crate::proxies::now;
use ikada_model::{Kind, Timestamp};
use ikada_world::{ChangeSet, Command, ProposeError, Replicator};
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
/// Wait after a write that was not accepted.
const RETRY: Duration = Duration::from_millis(200);
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

/// Keeps the MeshServices of all meshes as they should be, while this node leads.
pub async fn run_mesh_services(store: Arc<dyn Replicator>, options: MeshServiceOptions, stop: CancellationToken) {
    let mut bus = store.subscribe();
    let mut leads = store.leadership();
    let mut vips = match Allocator::new(&options.cidr) {
        Ok(v) => v,
        Err(e) => return tracing::error!(error = e, "ipam.meshService.cidr is invalid: MeshServices are not generated"),
    };
    for ip in mesh_services::stored_vips(&store.world()) {
        vips.reserve(ip);
    }
    let (mut dirty, mut all) = (BTreeSet::new(), true);
    let mut deadlines: HashMap<Arc<str>, Timestamp> = HashMap::new();
    let mut noted: BTreeSet<String> = BTreeSet::new();
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
            if plan.ops.is_empty() {
                continue;
            }
            match store.propose(Command { id: store.new_id(), ops: plan.ops }).await {
                Ok(_) => {}
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
        if !failed.is_empty() {
            dirty = failed;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}
