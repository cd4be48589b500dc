//! The protocol between nodes.

/// Messages, client and server, generated from `proto/ikada/peer/v1/peer.proto`.
mod proto {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("ikada.peer.v1");
}
