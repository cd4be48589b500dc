//! What one entry changed.

use ikada_model::{Key, Resource};
use std::sync::Arc;

/// One resource before and after.
#[derive(Clone, Debug)]
pub struct Change {
    /// Before; `None` when created.
    pub before: Option<Arc<Resource>>,
    /// After; `None` when deleted.
    pub after: Option<Arc<Resource>>,
}

impl Change {
    /// Key of the resource.
    pub fn key(&self) -> Option<&Key> {
        self.after.as_ref().or(self.before.as_ref()).map(|r| &r.key)
    }
    /// Spec, labels or status differ; false for a rewrite with equal content.
    pub fn is_material(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(b), Some(a)) => b.spec != a.spec || b.labels != a.labels || b.status != a.status,
            _ => true,
        }
    }
}

/// Everything that one entry changed, in the order of its operations (a delete is followed by what it cascaded to).
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    /// Log index.
    pub index: u64,
    /// Changes of policy state.
    pub policy: Vec<Change>,
    /// Changes of status state.
    pub status: Vec<Change>,
}

impl ChangeSet {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.policy.is_empty() && self.status.is_empty()
    }
}
