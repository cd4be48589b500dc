//! The replicated store: openraft over `ikada_store` behind [`ikada_world::Replicator`].
//!
//! The only crate that names openraft; no type of it is public.

mod options;
mod seam;
mod store;

pub use ikada_store::ClusterId;
pub use options::{Fatal, OpenError, Options, Profile};
pub use seam::{Clock, OsRandomness, Randomness, SystemClock};
pub use store::RaftStore;
