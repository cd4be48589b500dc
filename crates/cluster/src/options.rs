//! How a node is started.

use std::{net::SocketAddr, time::Duration};

/// Port of peers when nothing else is said.
pub const DEFAULT_PEER_PORT: u16 = 5690;

/// How a node is started.
#[derive(Clone)]
pub struct Options {
    /// The store. `start` and `net` are set by this crate.
    pub raft: ikada_raft::Options,
    /// Where the peer listener listens. Port 0: any free one; `advertise` then takes it over when its port is 0 too.
    pub listen: SocketAddr,
    /// `host:port` at which other members reach this node.
    pub advertise: String,
    /// Name of the machine, for people.
    pub name: String,
    /// The cluster to join when the data directory is new. Without it a new directory becomes a cluster of this node alone; for an
    /// existing directory it has no effect.
    pub join: Option<Join>,
    /// Life of node certificates; renewed after two thirds of it.
    pub certificate_life: Duration,
    /// Version of the program, shown in the status.
    pub version: String,
}

/// Life of node certificates.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

impl Options {
    /// Defaults for everything but the store, the address under which others reach this node and its name.
    pub fn new(raft: ikada_raft::Options, advertise: impl Into<String>, name: impl Into<String>) -> Self {
        Options {
            raft,
            listen: SocketAddr::from(([0, 0, 0, 0], DEFAULT_PEER_PORT)),
            advertise: advertise.into(),
            name: name.into(),
            join: None,
            certificate_life: CERTIFICATE_LIFE,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// How to get into a cluster.
#[derive(Clone)]
pub struct Join {
    /// `host:port` of peer listeners of members; one that answers is enough.
    pub addresses: Vec<String>,
    /// Token of [`create_join_token`](crate::ClusterNode::create_join_token).
    pub token: String,
    /// Stay without a vote for good, even if the token allows one.
    pub learner: bool,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("addresses", &self.addresses).field("learner", &self.learner).finish_non_exhaustive()
    }
}
