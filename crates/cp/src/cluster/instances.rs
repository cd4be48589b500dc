//! Which processes of the cluster live: insights name the process that serves a proxy, and only those of processes that are gone may be closed
//! by somebody else.
//!
//! Every node keeps the id of its process in the replicated state, in a resource of the internal kind `Config`. The leader knows which nodes
//! answer.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{RaftStatus, RaftStore};
use ikada_world::{Command, Op, ProposeError, Put, Replicator, World};
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const PREFIX: &str = "ikada-cluster-instance-";
/// Wait before the id is written again when the store did not take it.
const RETRY: Duration = Duration::from_secs(1);

fn key(node: u64) -> Key {
    Key::new(Kind::Config, "", &format!("{PREFIX}{node}"))
}

fn instance(world: &World, node: u64) -> Option<String> {
    Some(world.get(&key(node))?.spec.value().get("instance")?.as_str()?.to_owned())
}

/// Makes this process known; until the store has taken it.
pub async fn announce(store: Arc<RaftStore>, instance_id: String, stop: CancellationToken) {
    let node = store.node_id();
    while instance(&store.world(), node).as_deref() != Some(instance_id.as_str()) {
        let put = Put::new(key(node), Labels::new(), Json::from_value(&json!({"instance": instance_id})));
        match store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await {
            Ok(_) => return,
            Err(error @ (ProposeError::Rejected(_) | ProposeError::TooLarge { .. })) => return tracing::error!(%error, "this process cannot be announced"),
            Err(error) => tracing::debug!(%error, "this process is not announced yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Tells which processes live.
pub struct Instances(pub Arc<RaftStore>);

impl Instances {
    /// Ids of the processes that serve proxies, as far as this node can tell: the current one of every member that answered the leader within
    /// `patience`. On a node that does not lead everybody lives.
    pub fn living(&self, world: &World, patience: Duration) -> BTreeSet<String> {
        living(world, &self.0.status(), patience)
    }
}

fn living(world: &World, status: &RaftStatus, patience: Duration) -> BTreeSet<String> {
    let answers = |m: &&ikada_raft::MemberStatus| {
        m.member.id == status.node || m.progress.is_none_or(|p| p.last_ack.is_some_and(|ago| ago <= patience))
    };
    status.members.iter().filter(answers).filter_map(|m| instance(world, m.member.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_raft::{Member, MemberStatus, Options, Progress};

    #[tokio::test]
    async fn the_process_of_a_member_that_answers_lives() {
        let dir = tempfile::tempdir().unwrap();
        let store = RaftStore::open(Options::new(dir.path().join("data"))).await.unwrap();
        let stop = CancellationToken::new();
        announce(store.clone(), "first-1".into(), stop.clone()).await;
        announce(store.clone(), "first-2".into(), stop).await;
        for (node, id) in [(7, "second"), (8, "third"), (9, "removed")] {
            let put = Put::new(key(node), Labels::new(), Json::from_value(&json!({"instance": id})));
            store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await.unwrap();
        }
        let world = store.world();
        let mut status = store.status();
        let member = |id, seconds: Option<u64>| MemberStatus {
            member: Member { id, address: String::new(), name: String::new(), wants_vote: true, format: 2 },
            voter: true,
            progress: Some(Progress { matched: Some(1), last_ack: seconds.map(Duration::from_secs) }),
        };
        status.members.extend([member(7, Some(2)), member(8, Some(400))]);
        let living_within = |s| living(&world, &status, Duration::from_secs(s)).into_iter().collect::<Vec<_>>();
        assert_eq!(living_within(300), ["first-2", "second"]);
        assert_eq!(living_within(500), ["first-2", "second", "third"]);
        // A follower does not know who answers.
        status.members.iter_mut().for_each(|m| m.progress = None);
        assert_eq!(living(&world, &status, Duration::ZERO).len(), 3);
        store.shutdown().await.unwrap();
    }
}
