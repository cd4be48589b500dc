//! What of the world a request is about: which changes concern it.

use crate::route::Route;
use http::Method;
use ikada_model::{Key, Kind, kind::Body};
use ikada_world::{Change, ChangeSet, Happened, World};
use std::sync::Arc;

/// Kinds, and perhaps one mesh and one name.
#[derive(Clone, Debug)]
pub struct Interest {
    kinds: u128,
    mesh: Option<Arc<str>>,
    name: Option<Arc<str>>,
    /// Also whether the mesh exists.
    with_mesh: bool,
    /// Policy state is looked at.
    pub policy: bool,
    /// Status state is looked at.
    pub status: bool,
}

fn bit(kind: Kind) -> u128 {
    1u128.checked_shl(kind as u32).unwrap_or(0)
}

/// Status state has something of the kind that readers see: the kind itself, or the fast-changing part of its status.
fn has_status(kind: Kind) -> bool {
    let d = kind.descriptor();
    d.insight || d.body == Body::SpecStatus
}

impl Interest {
    /// Kinds in all meshes, or in one: then of the kinds outside of meshes only Mesh and MeshInsight are restricted.
    pub fn new(kinds: impl IntoIterator<Item = Kind>, mesh: Option<&str>) -> Self {
        let mut i = Interest { kinds: 0, mesh: mesh.map(Into::into), name: None, with_mesh: false, policy: false, status: false };
        for kind in kinds {
            i.kinds |= bit(kind);
            i.policy |= !kind.descriptor().insight;
            i.status |= has_status(kind);
        }
        i
    }
    fn named(self, name: &str) -> Self {
        Interest { name: Some(name.into()), ..self }
    }
    /// The answer also depends on whether the mesh exists. Insights go with their mesh anyway.
    fn in_existing_mesh(self) -> Self {
        Interest { with_mesh: self.policy && self.mesh.is_some(), ..self }
    }
    /// Of a request that reads the world; `None` for the others.
    pub fn of(route: &Route, method: &Method) -> Option<Interest> {
        let scope = |kind: Kind, mesh: &str| kind.is_mesh_scoped().then(|| mesh.to_owned());
        // With its insight, when it has one.
        let joined = |kind: Kind| std::iter::once(kind).chain(if kind.descriptor().overview { Kind::by_name(&format!("{kind}Insight")) } else { None });
        Some(match route {
            Route::One { kind, mesh, name } if method == Method::GET => {
                Interest::new([*kind], scope(*kind, mesh).as_deref()).in_existing_mesh().named(name)
            }
            Route::Overview { kind, mesh, name } => Interest::new(joined(*kind), scope(*kind, mesh).as_deref()).in_existing_mesh().named(name),
            Route::List { kind, mesh, overview: false, .. } => Interest::new([*kind], mesh.as_deref()).in_existing_mesh(),
            Route::List { kind, mesh, overview: true, .. } => Interest::new(joined(*kind), mesh.as_deref()).in_existing_mesh(),
            // Matching looks at most kinds; insights do not matter to it.
            Route::Kri(_) => Interest::new(Kind::all().filter(|k| !k.descriptor().insight), None),
            Route::Dataplanes { mesh, .. }
            | Route::Rules { mesh, .. }
            | Route::DataplanePolicies { mesh, .. }
            | Route::Layout { mesh, .. }
            | Route::Hostnames { mesh, .. }
            | Route::Config { mesh, .. } => Interest::new(Kind::all().filter(|k| !k.descriptor().insight), Some(mesh)).in_existing_mesh(),
            _ => return None,
        })
    }

    /// Whether it is about resources of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds & bit(kind) != 0
    }
    /// Its kinds, in the order of the registry.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::all().filter(|k| self.has(*k))
    }
    /// The mesh that it is about.
    pub fn mesh(&self) -> Option<&str> {
        self.mesh.as_deref()
    }
    /// Whether it is about this resource.
    pub fn wants(&self, key: &Key) -> bool {
        let in_mesh = |mesh: &Arc<str>| match key.kind {
            Kind::Mesh | Kind::MeshInsight => key.name == *mesh,
            kind => !kind.is_mesh_scoped() || key.mesh == *mesh,
        };
        let wanted = self.has(key.kind) && self.mesh.as_ref().is_none_or(in_mesh) && self.name.as_ref().is_none_or(|n| *n == key.name);
        wanted || (self.with_mesh && key.kind == Kind::Mesh && self.mesh.as_ref() == Some(&key.name))
    }
    /// Whether it is about this change.
    pub fn wants_past(&self, happened: &Happened) -> bool {
        (if happened.status { self.status } else { self.policy }) && self.wants(&happened.key)
    }
    /// Whether it is about some change of an entry.
    pub fn wants_any(&self, set: &ChangeSet) -> bool {
        let any = |changes: &[Change]| changes.iter().filter_map(Change::key).any(|k| self.wants(k));
        (self.policy && any(&set.policy)) || (self.status && any(&set.status))
    }
    /// Revision of the states that it is about: no change that concerns it came later.
    pub fn revision(&self, world: &World) -> u64 {
        let of = |looked_at: bool, revision: u64| if looked_at { revision } else { 0 };
        of(self.policy, world.revision()).max(of(self.status, world.status_revision()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route;

    fn of(path: &str) -> Interest {
        Interest::of(&route::parse(path, "/", true).unwrap(), &Method::GET).unwrap()
    }
    fn key(kind: Kind, mesh: &str, name: &str) -> Key {
        Key::new(kind, mesh, name)
    }

    #[test]
    fn every_kind_has_a_bit() {
        assert!(Kind::all().all(|k| bit(k) != 0));
        assert!(Interest::of(&Route::WhoAmI, &Method::GET).is_none());
    }

    #[test]
    fn what_requests_are_about() {
        let list = of("/meshes/m/dataplanes");
        assert!(list.wants(&key(Kind::Dataplane, "m", "a")) && list.wants(&key(Kind::Mesh, "", "m")));
        assert!(!list.wants(&key(Kind::Dataplane, "n", "a")) && !list.wants(&key(Kind::Mesh, "", "n")) && !list.wants(&key(Kind::MeshRetry, "m", "a")));
        assert_eq!((list.policy, list.status), (true, false));
        let overview = of("/meshes/m/dataplanes/a/_overview");
        assert!(overview.wants(&key(Kind::DataplaneInsight, "m", "a")) && !overview.wants(&key(Kind::DataplaneInsight, "m", "b")));
        assert!(overview.status);
        let insights = of("/meshes/m/dataplane-insights");
        assert_eq!((insights.policy, insights.status), (false, true));
        assert!(!insights.wants(&key(Kind::Mesh, "", "m")));
        assert!(of("/meshes/m/meshservices").status, "their status is shown");
        let mesh = of("/meshes/m");
        assert!(mesh.wants(&key(Kind::Mesh, "", "m")) && !mesh.wants(&key(Kind::Mesh, "", "n")));
        assert!(of("/zones").wants(&key(Kind::Zone, "", "z")));
        assert!(of("/meshes/m/dataplanes/d/_rules").wants(&key(Kind::MeshRetry, "m", "r")));
    }
}
