//! Administration of the cluster: `/cluster…` (not in Kuma, whose clusters are those of its database).
//!
//! [`ClusterAdmin`] is what the process has to bring; its answers are passed on as they are (shapes: `ikada_cluster::status`, and
//! `docs/replication.md`). People's forms of them are made by `ikadactl cluster`.

mod answer;
mod types;

pub(crate) use answer::answer;
pub use types::{ClusterError, Snapshot};

use async_trait::async_trait;
use serde_json::Value;
use std::time::Duration;

/// The cluster that this node is a member of. Every method works on every node: what only the leader can do is forwarded to it.
#[async_trait]
pub trait ClusterAdmin: Send + Sync + 'static {
    /// The cluster as this node sees it, and what every member that answers says of itself. An object; `members` is a list.
    ///
    /// # Errors
    /// None because of members that do not answer: those are shown as such.
    async fn status(&self) -> Result<Value, ClusterError>;
    /// Makes a join token for so many nodes. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// No leader, or a value out of range.
    async fn create_join_token(&self, valid_for: Duration, voter: bool, uses: u32) -> Result<Value, ClusterError>;
    /// Tokens that were made, without their secrets.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn join_tokens(&self) -> Result<Vec<Value>, ClusterError>;
    /// Makes a token worthless.
    ///
    /// # Errors
    /// There is no such token; no leader.
    async fn revoke_join_token(&self, id: &str) -> Result<(), ClusterError>;
    /// Gives a learner its vote.
    ///
    /// # Errors
    /// No such member; refused: it is behind, or the number of voters would be even.
    async fn promote(&self, node: u64, force: bool) -> Result<(), ClusterError>;
    /// Takes a member out for good; a leader hands over first.
    ///
    /// # Errors
    /// No such member; refused: too few voters would be left that answer.
    async fn remove(&self, node: u64, force: bool) -> Result<(), ClusterError>;
    /// Hands the leadership over, to a voter or to the one that is best prepared; gives the new leader.
    ///
    /// # Errors
    /// No such voter; the other one did not take over in time.
    async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, ClusterError>;
    /// A consistent copy of everything, as `ikadactl cluster snapshot restore` takes it.
    ///
    /// # Errors
    /// No majority answers.
    async fn snapshot(&self) -> Result<Snapshot, ClusterError>;
    /// Measures the live cluster and proposes settings.
    ///
    /// # Errors
    /// Too few members answer to measure.
    async fn tune(&self) -> Result<Value, ClusterError>;
}
