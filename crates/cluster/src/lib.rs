//! A cluster of nodes around the replicated store: identities, join, peer connections, and what keeps a cluster healthy.
//!
//! | part | what it is |
//! |---|---|
//! | `node` | [`start`] and [`ClusterNode`], the door |
//! | `identity`, `certificates`, `tls` | the cluster's CA, node certificates and mutual TLS |
//! | `listen`, `service`, `client` | the peer port: who may speak, and calls between nodes |
//! | `join`, `token` | how a node gets in |
//! | `admin`, `autopilot`, `standing` | changes of the cluster on the leader; a node's own place in it |
//! | `gather`, `tune` | what people see of it |
//! | `records` | what of this is replicated |

mod admin;
mod autopilot;
mod certificates;
mod client;
mod error;
mod gather;
mod identity;
mod join;
mod limit;
mod listen;
mod node;
mod options;
mod records;
mod service;
mod shared;
mod standing;
mod status;
mod tls;
mod token;
mod tune;
mod wire;

#[cfg(test)]
mod tests;

mod proto {
    #![allow(clippy::all, reason = "generated")]
    tonic::include_proto!("ikada.cluster.v1");
}

pub use error::{ClusterError, StartError};
pub use node::{ClusterNode, start};
pub use options::{CERTIFICATE_LIFE, DEFAULT_PEER_PORT, Join, Options};
pub use status::{ClusterStatus, Health, Measured, MemberInfo, NewToken, NodeRole, TokenInfo, TuneReport, TunedSetting};
pub use wire::{Accept, Tcp, Wire};
