//! The protocol between nodes: connections (`client`), what a node answers (`service`), snapshots on their way (`snapshot`), and how
//! messages become openraft's types and back (`convert`).
//!
//! Only our own messages are on the wire, and errors of a peer are text, so that a new version of openraft does not change the protocol.

pub(crate) mod client;
pub(crate) mod convert;
pub(crate) mod service;
pub(crate) mod snapshot;

/// Messages, client and server, generated from `proto/ikada/peer/v1/peer.proto`.
pub(crate) mod proto {
    #![allow(clippy::all, missing_docs)]
    use std::fmt;

    tonic::include_proto!("ikada.peer.v1");

    // Never the contents: secrets are among them.
    impl fmt::Debug for Entry {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "entry of term {} with {} bytes", self.term, self.payload.len())
        }
    }
    impl fmt::Debug for SnapshotRecords {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} records", self.records.len())
        }
    }
    impl fmt::Debug for ProposeRequest {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} commands for {:?}", self.commands.len(), self.target)
        }
    }
}

/// Largest message in bytes: a batch of entries or records at its limit of 1 MiB, or one record at the limit of the log.
pub(crate) const MAX_MESSAGE: usize = 6 << 20;
