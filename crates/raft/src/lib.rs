//! The replicated store: openraft over `ikada_store` behind [`ikada_world::Replicator`].
//!
//! The only crate that names openraft; no type of it is public. The way of a write:
//!
//! 1. [`RaftStore`] encodes the command with the clock's time and hands it to openraft.
//! 2. `log`: one writer appends entries and votes in one order, syncs once for all that queued up, and only then reports.
//! 3. `machine`: applies the entry to the world, publishes it and its change set, answers the proposer.
//! 4. `cache`: writes the changed records to the state cache, later and off this path. Snapshots are written by `machine`.
//!
//! A node that does not lead forwards writes (`forward`) and asks the leader how far a linearizable read must be (`reads`); nodes talk
//! over `peer` and [`net`], openraft through `network`. Who is in the cluster: `membership`. Copies and the way out of a lost majority:
//! `archive`. What times follow from which settings: `settings`.

mod archive;
mod cache;
mod encryption;
mod forward;
mod log;
mod machine;
mod membership;
pub mod net;
mod network;
mod open;
mod options;
mod peer;
mod reads;
mod record;
mod seam;
mod settings;
mod store;
mod timings;
mod types;

pub use archive::{Archive, ArchiveError, Contents, Recovered, Restored, Saved, inspect, recover, restore};
pub use encryption::Encryption;
pub use ikada_store::{ClusterId, Keyring, Keys, KeysError};
pub use membership::{MAX_MEMBER_TEXT, MAX_PROMOTION_LAG, Member, MemberStatus, MembershipError, Progress, RaftStatus, Role};
pub use options::{Fatal, OpenError, Options, Start};
pub use seam::{Clock, OsRandomness, Randomness, SystemClock};
pub use settings::{Derived, Profile, Settings, SettingsError};
pub use store::RaftStore;
pub use timings::{Percentiles, Timings};
