//! What can go wrong, in one line that says what to do.

/// Why an administrative call has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// An argument is wrong.
    #[error("{0}")]
    Invalid(String),
    /// There is no such member or token.
    #[error("{0}")]
    NotFound(String),
    /// It would harm the cluster, or it does not fit its state.
    #[error("{message}")]
    Refused {
        /// Why, and what to do instead.
        message: String,
        /// Whether the same call with `force` is carried out.
        forcible: bool,
    },
    /// Certainly not done: no leader, no majority, shutting down.
    #[error("{0}")]
    Unavailable(String),
    /// It may or may not have been done; look at the status before a second try.
    #[error("{0}")]
    Unknown(String),
}

impl ClusterError {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        ClusterError::Refused { message: message.into(), forcible: false }
    }
    pub(crate) fn forcible(message: impl Into<String>) -> Self {
        ClusterError::Refused { message: message.into(), forcible: true }
    }
}

/// Why a node cannot start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// Data directory, settings or Raft.
    #[error(transparent)]
    Open(#[from] ikada_raft::OpenError),
    /// A setting of the cluster.
    #[error("{0}")]
    Settings(String),
    /// The peer port.
    #[error("{0}")]
    Listen(String),
    /// Certificates or keys of this node.
    #[error("{0}")]
    Identity(String),
    /// The cluster does not take this node in.
    #[error("cannot join the cluster: {0}")]
    Join(String),
    /// This node was removed from its cluster.
    #[error("{0}")]
    Removed(String),
}
