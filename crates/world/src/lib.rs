//! All resources at one revision, and how a command changes them.
//!
//! Pure: [`World::apply`] reads no clock, no randomness and no environment; the leader's clock comes in with the entry. A world is
//! immutable and shares structure with the one before, so a reader holds it as long as it likes and takes no lock.
//!
//! Two maps: *policy state* (what people and generators write; moves [`World::revision`]) and *status state* (insights and counters,
//! which change all the time and move only [`World::status_revision`]).

mod apply;
mod change;
mod command;
mod history;
pub mod record;
mod replicator;
mod world;

pub use apply::REMEMBERED_OUTCOMES;
pub use change::{Change, ChangeSet};
pub use command::{Applied, Command, CommandId, EntryMeta, Expect, Op, OpResult, Put, Reason, Rejection};
pub use history::{Happened, History, HistoryLimits};
pub use replicator::{Contact, ProposeError, Replicator};
pub use world::World;
