//! The door to the replicated store, as everything but the store sees it.

use crate::{
    change::ChangeSet,
    command::{Applied, Command, Rejection},
    world::World,
};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tokio::sync::{broadcast, watch};

/// Why a proposal has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// It was applied and had no effect.
    #[error("{0}")]
    Rejected(Rejection),
    /// It was certainly not accepted: no leader, shutting down, store read-only.
    #[error("the store does not accept writes: {0}")]
    Unavailable(String),
    /// It may or may not take effect; retry with the same idempotency key.
    #[error("no answer from the store within the deadline; the write may still take effect")]
    Unknown,
    /// Larger than an entry may be.
    #[error("the write has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Encoded size in bytes.
        size: usize,
        /// Limit in bytes.
        limit: usize,
    },
}

/// How well a node is in touch with the leader of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Who leads, as far as this node knows.
    pub leader: Option<u64>,
    /// How long ago the leader was certainly the leader: on the leader itself, since a majority answered it; elsewhere, since this node heard
    /// it. `None`: not since this node started.
    pub since: Option<Duration>,
    /// After so long without contact somebody else may lead.
    pub lease: Duration,
}

impl Contact {
    /// Of a store that lives in this process alone.
    pub const ALONE: Contact = Contact { leader: Some(1), since: Some(Duration::ZERO), lease: Duration::MAX };

    /// A leader is known and was heard within the lease: what this node has applied is recent.
    pub fn is_recent(&self) -> bool {
        self.leader.is_some() && self.since.is_some_and(|since| since <= self.lease)
    }
}

/// The replicated store.
///
/// To be correct an implementation must: answer `Ok` only when the entry is durable on a majority and visible in [`Replicator::world`]
/// of this node; publish worlds in log order; send every change set to subscribers in log order, or tell them that they lagged.
#[async_trait]
pub trait Replicator: Send + Sync + 'static {
    /// Replicates and applies a command.
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError>;
    /// The latest applied world of this node. Never blocks.
    fn world(&self) -> Arc<World>;
    /// A world that contains every write that was acknowledged before the call.
    async fn linearizable(&self) -> Result<Arc<World>, ProposeError>;
    /// Change sets from now on. A receiver that lagged gets `RecvError::Lagged` and must start over from [`Replicator::world`].
    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>>;
    /// Whether this node leads. Components of the leader start and stop with it.
    fn leadership(&self) -> watch::Receiver<bool>;
    /// How well this node is in touch with the leader. Never blocks.
    fn contact(&self) -> Contact {
        Contact::ALONE
    }
    /// A fresh idempotency key.
    fn new_id(&self) -> [u8; 16];
}
