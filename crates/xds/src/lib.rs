//! Aggregated discovery service (delta and state-of-the-world), generic over where resources come from.
//!
//! A [`Source`] authenticates a stream and hands out a [`Session`]; the session publishes [`Snapshot`]s on a watch channel and hears what was
//! sent, acknowledged and rejected. One task per stream owns all state of the stream; at most one response per type is unacknowledged, so a slow
//! proxy costs one response of memory, never a queue.
//!
//! Not here: any knowledge of Kuma, of meshes, or of how resources are made. Not here: TLS and listeners; the service is a tower service.
#![forbid(unsafe_code)]

mod frame;
mod machine;
mod service;
mod snapshot;
mod source;
mod stream;
pub mod type_url;

pub use service::{Ads, Options, PeerAddr, service};
pub use snapshot::{Encoded, Entry, MissingEndpoints, Snapshot, SnapshotBuilder, Typed, content_hash};
pub use source::{CloseReason, Nack, Sent, Session, Source, StreamHandle, StreamOpen, Unacknowledged};
