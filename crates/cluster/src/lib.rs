//! A cluster of nodes around the replicated store: identities, join, peer connections, and what keeps a cluster healthy.

mod error;
mod node;
mod options;
mod status;

pub use error::{ClusterError, StartError};
pub use node::{ClusterNode, start};
pub use options::{CERTIFICATE_LIFE, DEFAULT_PEER_PORT, Join, Options};
pub use status::{ClusterStatus, Health, Measured, MemberInfo, NewToken, NodeRole, TokenInfo, TuneReport, TunedSetting};
