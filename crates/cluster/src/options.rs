//! How a node is started.

use crate::wire::{Tcp, Wire};
use std::{net::SocketAddr, sync::Arc, time::Duration};

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
    /// The network.
    pub wire: Arc<dyn Wire>,
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
            wire: Arc::new(Tcp),
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

/// What is wrong with an address at which others are to reach a node; `None` when nothing is.
pub(crate) fn address_fault(address: &str) -> Option<String> {
    let fine = || {
        let (host, port) = address.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let nowhere = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        let printable = !address.chars().any(|c| c.is_control() || c.is_whitespace());
        (!host.is_empty() && !nowhere && printable && address.len() <= ikada_raft::MAX_MEMBER_TEXT).then_some(())
    };
    let text = || format!("must be \"host:port\" as the other nodes reach this one, e.g. 10.0.0.1:{DEFAULT_PEER_PORT}; it is {address:?}");
    fine().is_none().then(text)
}

/// The same for a name.
pub(crate) fn name_fault(name: &str) -> Option<String> {
    let max = ikada_raft::MAX_MEMBER_TEXT;
    let bad = name.len() > max || name.chars().any(|c| c.is_control() || c.is_whitespace());
    bad.then(|| format!("must have at most {max} characters and no spaces, it is {name:?}"))
}
