//! [`ClusterNode`]: one member of a cluster.

use crate::{ClusterError, ClusterStatus, NewToken, Options, StartError, TokenInfo, TuneReport};
use ikada_raft::RaftStore;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// A node that takes part in a cluster: its store, its peer listener, and what keeps it a member. All calls work on any node; those that
/// change the cluster are carried out by the leader.
pub struct ClusterNode {
    store: Arc<RaftStore>,
    ended: watch::Sender<Option<String>>,
}

/// Starts a node: creates a cluster, joins one, or goes on, as options and data directory say. Returns when this node is a member and has
/// recovered what its own disk holds; [`RaftStore`]'s readiness says when it has caught up.
///
/// # Errors
/// One line that says what to do.
pub async fn start(options: Options) -> Result<Arc<ClusterNode>, StartError> {
    let store = RaftStore::open(options.raft).await?;
    Ok(Arc::new(ClusterNode { store, ended: watch::channel(None).0 }))
}

fn not_built<T>() -> Result<T, ClusterError> {
    Err(ClusterError::Unavailable("this node has no peers".to_owned()))
}

impl ClusterNode {
    /// The replicated store.
    pub fn store(&self) -> Arc<RaftStore> {
        self.store.clone()
    }

    /// Becomes `Some` when this node was removed from the cluster: one line with the way out. The process should say so and end.
    pub fn ended(&self) -> watch::Receiver<Option<String>> {
        self.ended.subscribe()
    }

    /// The state of the cluster. Asks every member, each for at most a second; those that do not answer are in it as unreachable.
    pub async fn status(&self) -> Result<ClusterStatus, ClusterError> {
        not_built()
    }

    /// Makes a join token for `uses` nodes (1 to 100), valid for one minute to 30 days from now.
    pub async fn create_join_token(&self, _valid_for: Duration, _voter: bool, _uses: u32) -> Result<NewToken, ClusterError> {
        not_built()
    }

    /// Join tokens, newest first.
    pub async fn join_tokens(&self) -> Result<Vec<TokenInfo>, ClusterError> {
        not_built()
    }

    /// Takes a join token back.
    pub async fn revoke_join_token(&self, _id: &str) -> Result<(), ClusterError> {
        not_built()
    }

    /// Gives a member a vote. `force`: even if the number of voters becomes even.
    pub async fn promote(&self, _id: u64, _force: bool) -> Result<(), ClusterError> {
        not_built()
    }

    /// Removes a member. `force`: even if the number of voters becomes even, or too few of the rest are known to live.
    pub async fn remove(&self, _id: u64, _force: bool) -> Result<(), ClusterError> {
        not_built()
    }

    /// Hands leadership to a voter, or to the most suitable one; returns the new leader.
    pub async fn transfer_leader(&self, _to: Option<u64>) -> Result<u64, ClusterError> {
        not_built()
    }

    /// Measures round trips and disks of all members and proposes settings of replication.
    pub async fn tune(&self) -> Result<TuneReport, ClusterError> {
        not_built()
    }

    /// Ends the listener and the store; what was accepted is durable afterwards.
    pub async fn shutdown(&self) -> Result<(), ikada_raft::Fatal> {
        self.store.shutdown().await
    }
}
