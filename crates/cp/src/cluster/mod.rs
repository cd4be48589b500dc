//! The node's part in its cluster: how it is started, when it serves, what operators see and may do.

mod admin;
mod instances;
mod readiness;

pub use admin::Admin;
pub use instances::{Instances, announce};
pub use readiness::{Readiness, reason, watch};

use crate::{config::Config, listen};
use anyhow::Result;
use ikada_cluster::ClusterNode;
use std::{sync::Arc, time::Duration};

/// Longest time that a stop waits for another node to take over the leadership.
const HANDOVER: Duration = Duration::from_secs(3);
/// systemd is asked for so much more time, and again before it is over, while a node waits for its cluster.
const MORE_TIME: Duration = Duration::from_secs(60);

/// How the node is started. Errors: a token file that cannot be read, only where the node has to join.
fn options(c: &Config, hostname: &str) -> Result<ikada_cluster::Options> {
    let r = &c.raft;
    let mut raft = ikada_raft::Options::new(&c.data_dir);
    raft.profile = r.raft_profile();
    raft.encryption.clone_from(&c.encryption);
    let name = if r.name.is_empty() { hostname } else { &r.name };
    let mut o = ikada_cluster::Options::new(raft, &r.advertise, name);
    o.listen = r.listen;
    env!("CARGO_PKG_VERSION").clone_into(&mut o.version);
    // Only a new directory joins; later the token is spent, and its file may be gone.
    if let Some(join) = r.join.as_ref().filter(|_| is_new(c)) {
        o.join = Some(ikada_cluster::Join { addresses: join.addresses.clone(), token: join.token.read()?, learner: r.learner });
    }
    Ok(o)
}

/// Whether the data directory has no store yet.
fn is_new(c: &Config) -> bool {
    !c.data_dir.join("IDENTITY").exists()
}

/// Starts the node: makes a cluster, joins one, or goes on. Tells systemd that it lives while that takes.
pub async fn start(c: &Config, hostname: &str) -> Result<Arc<ClusterNode>> {
    tracing::info!(profile = c.raft.profile, "replication: {}", c.raft.settings.derived());
    // Before anything is made. The store binds it again.
    drop(listen::bind(c.raft.listen, "peers of the cluster", "IKADA_RAFT_LISTEN")?);
    let options = options(c, hostname)?;
    let patience = match &options.join {
        Some(join) => format!("joining the cluster at {}", join.addresses.join(", ")),
        None => "starting the store".to_owned(),
    };
    if options.join.is_some() {
        tracing::info!(advertise = options.advertise, "{patience}");
    }
    let node = waiting(&patience, ikada_cluster::start(options)).await?;
    let store = node.store();
    tracing::info!(cluster = %store.cluster_id(), node = store.node_id(), peers = %c.raft.listen, advertise = c.raft.advertise, "member of the cluster");
    Ok(node)
}

/// Waits for something that may take as long as a cluster takes: systemd gets to know what for, and that the process lives.
pub async fn waiting<T>(what: &str, done: impl Future<Output = T>) -> T {
    let micros = u32::try_from(MORE_TIME.as_micros()).unwrap_or(u32::MAX);
    let mut done = std::pin::pin!(done);
    let mut rest = tokio::time::interval(MORE_TIME / 3);
    loop {
        tokio::select! {
            result = done.as_mut() => return result,
            _ = rest.tick() => {
                sd_notify::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(micros), sd_notify::NotifyState::Status(what)]).ok();
            }
        }
    }
}

/// Before a stop: another node takes over, so that nobody waits for an election.
pub async fn hand_over(node: &ClusterNode) {
    let store = node.store();
    let others = store.status().members.iter().filter(|m| m.voter && m.member.id != store.node_id()).count();
    if others == 0 || !*ikada_world::Replicator::leadership(&*store).borrow() {
        return;
    }
    match tokio::time::timeout(HANDOVER, node.transfer_leader(None)).await {
        Ok(Ok(leader)) => tracing::info!(leader, "handed the leadership over"),
        Ok(Err(error)) => tracing::warn!(%error, "the leadership was not handed over: the others elect a leader"),
        Err(_) => tracing::warn!("the leadership was not handed over in time: the others elect a leader"),
    }
}
