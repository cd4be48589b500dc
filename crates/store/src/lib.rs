//! Durable storage of one node.

pub mod disk;
mod error;
mod types;

pub use error::{Result, StoreError};
pub use types::{ClusterId, FORMAT_VERSION, HardState, Identity, Mark};
