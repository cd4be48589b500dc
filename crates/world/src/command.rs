//! Commands: the only way to change a world.

use ikada_model::{Json, Key, Labels, Timestamp, resource::Shown};
use std::fmt;

/// Idempotency key. The same key applied twice has the effect of once, and answers what it answered first.
pub type CommandId = [u8; 16];

/// Facts about the log entry that carries a command. `time` is the leader's clock when it proposed the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Log index; becomes the revision.
    pub index: u64,
    /// Leader's clock.
    pub time: Timestamp,
}

/// What must be true of a key before an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// It must not exist.
    Absent,
    /// It must exist.
    Exists,
    /// It must exist at this version (`Resource::version`).
    Version(u64),
}

/// Creates or replaces a resource.
#[derive(Clone, PartialEq)]
pub struct Put {
    /// Key.
    pub key: Key,
    /// All labels.
    pub labels: Labels,
    /// Canonical spec.
    pub spec: Json,
    /// New status; `None` keeps the stored one.
    pub status: Option<Json>,
    /// New owner; `None` keeps the stored one. An owner that does not exist rejects the command.
    pub owner: Option<Key>,
    /// Precondition.
    pub expect: Expect,
    /// Creation and modification time to store verbatim; `None` stamps the entry's time (and keeps the creation time on update).
    pub times: Option<(Timestamp, Timestamp)>,
}

impl fmt::Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = Some(self.key.kind);
        f.debug_struct("Put")
            .field("key", &self.key)
            .field("labels", &self.labels)
            .field("spec", &Shown(kind, self.spec.text()))
            .field("status", &self.status.as_ref().map(|s| Shown(kind, s.text())))
            .field("owner", &self.owner)
            .field("expect", &self.expect)
            .field("times", &self.times)
            .finish()
    }
}

impl Put {
    /// A put without status, owner and precondition.
    pub fn new(key: Key, labels: Labels, spec: Json) -> Self {
        Put { key, labels, spec, status: None, owner: None, expect: Expect::Any, times: None }
    }
}

/// One operation of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Create or replace. Insight kinds go to the status state.
    Put(Put),
    /// Delete, with everything it owns. Deleting what is absent succeeds unless `expect` says otherwise.
    Delete {
        /// Key.
        key: Key,
        /// Precondition.
        expect: Expect,
    },
    /// Only a precondition.
    Require {
        /// Key.
        key: Key,
        /// Precondition.
        expect: Expect,
    },
    /// Fast-changing part of the status of a resource of policy state; skipped when the resource is gone.
    Status {
        /// Key.
        key: Key,
        /// JSON object that is laid over the stored status.
        status: Json,
    },
}

/// An atomic batch of operations.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Idempotency key.
    pub id: CommandId,
    /// Operations, applied in order, all or none.
    pub ops: Vec<Op>,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// Did not exist before.
    Created,
    /// Existed before.
    Updated,
    /// Deleted.
    Deleted,
    /// Nothing to do.
    Unchanged,
}

/// A command that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Log index at which it did.
    pub index: u64,
    /// One per operation.
    pub results: Vec<OpResult>,
}

/// Why a command did not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Another version is stored.
    Conflict,
    /// It exists already.
    AlreadyExists,
    /// It does not exist.
    NotFound,
    /// The owner does not exist.
    OwnerNotFound,
}

/// A command that did not take effect: nothing of it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Key of the operation that failed (of the owner for [`Reason::OwnerNotFound`]).
    pub key: Key,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (k, m) = (&self.key, &self.key.mesh);
        match self.reason {
            Reason::Conflict => write!(f, "resource conflict: type=\"{}\" name=\"{}\" mesh=\"{m}\"", k.kind, k.name),
            Reason::AlreadyExists => write!(f, "resource already exists: type=\"{}\" name=\"{}\" mesh=\"{m}\"", k.kind, k.name),
            Reason::NotFound => write!(f, "resource not found: type=\"{}\" name=\"{}\" mesh=\"{m}\"", k.kind, k.name),
            Reason::OwnerNotFound => write!(f, "owner not found: type=\"{}\" name=\"{}\" mesh=\"{m}\"", k.kind, k.name),
        }
    }
}
