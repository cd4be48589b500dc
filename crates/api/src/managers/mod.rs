//! Writes with side effects: meshes with their CAs, signing keys and default policies, dataplanes, deletions
//! (reference: Kuma 2.14.3 REST contract, §6).
//!
//! Everything here reads a [`World`](ikada_world::World) and gives operations. They carry preconditions, so that a command built from an
//! older world is rejected as a whole and can be built again.

pub mod dataplane;
pub mod defaults;
mod delete;
pub mod mesh;

pub use dataplane::check_membership;
pub use defaults::{DefaultsOptions, Ensure, ensure_defaults};
pub use delete::delete;
pub use mesh::{create_mesh, update_mesh};

use crate::error::Parameter;
use ikada_model::{Json, Key, Kind, Labels, Mode, Timestamp, labels};
use ikada_world::{Expect, Op, Put};
use std::time::{Duration, SystemTime};

/// What managers need to know about the control plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mode of the control plane.
    pub mode: Mode,
    /// Zone name; empty on a global.
    pub zone: String,
    /// `store.unsafeDelete`: skip the checks before a deletion.
    pub unsafe_delete: bool,
    /// `defaults.createMeshRoutingResources`: new meshes get a TrafficPermission and a TrafficRoute.
    pub create_mesh_routing_resources: bool,
}

impl Settings {
    /// Labels of a resource that the control plane makes itself.
    fn labels(&self, kind: Kind, mesh: &str, spec: &Json) -> Labels {
        let mut all = Labels::new();
        labels::compute(self.mode, &self.zone, kind, mesh, spec.value(), &mut all);
        all
    }
}

/// Why operations cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManagerError {
    /// The request breaks these rules.
    #[error("not valid: {}", .0.iter().map(|p| format!("{}: {}", p.field, p.reason)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Parameter>),
    /// Keys or certificates cannot be made.
    #[error("{0}")]
    Failed(String),
}

impl From<ikada_pki::Error> for ManagerError {
    fn from(e: ikada_pki::Error) -> Self {
        ManagerError::Failed(e.to_string())
    }
}

/// A put of something that must not be there yet.
fn create(key: Key, labels: Labels, spec: Json, owner: Option<Key>) -> Op {
    Op::Put(Put { owner, expect: Expect::Absent, ..Put::new(key, labels, spec) })
}

/// Runs slow cryptography off the async threads.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> ikada_pki::Result<T> + Send + 'static) -> Result<T, ManagerError> {
    let done = tokio::task::spawn_blocking(f).await.map_err(|e| ManagerError::Failed(format!("a key could not be made: {e}")))?;
    Ok(done?)
}

/// As the standard library counts time.
pub(crate) fn system_time(t: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(t.0).unwrap_or(0))
}
