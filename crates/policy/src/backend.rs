//! References to destinations in confs (reference: Kuma 2.14.3 policy contract, §1.14).

use crate::{
    select::{kri_of_ref, labels_match},
    spec::{BackendRef, RefKind, Tags},
};
use ikada_model::{Kri, Resource, labels::TAG_SERVICE};
use ikada_world::World;

/// What a backendRef means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A resource. By name it is not looked up: it may be missing. The section is the reference's sectionName or port as text, see
    /// [`resolve_port`].
    Real(Kri),
    /// A destination known by tags, `kuma.io/service` among them.
    Legacy(Tags),
}

/// The reference names a resource and not just a `kuma.io/service`.
pub fn is_real(r: &BackendRef) -> bool {
    match r.target.kind {
        RefKind::MeshService => r.port.is_some() || !r.target.section_name.is_empty(),
        RefKind::MeshExternalService | RefKind::MeshMultiZoneService => true,
        _ => false,
    }
}

/// Resolves a reference in a conf that `origin` contributed. `None`: nothing has the labels, or the kind is no destination.
pub fn resolve_backend_ref(world: &World, origin: &Resource, r: &BackendRef) -> Option<Backend> {
    let t = &r.target;
    if !is_real(r) {
        let mut tags = t.tags.clone();
        tags.insert(TAG_SERVICE.to_owned(), t.name.clone());
        return matches!(t.kind, RefKind::MeshService | RefKind::MeshServiceSubset).then_some(Backend::Legacy(tags));
    }
    let kind = t.kind.destination()?;
    let section = match r.port {
        _ if !t.section_name.is_empty() => t.section_name.clone(),
        Some(port) => port.to_string(),
        None => String::new(),
    };
    let kri = if t.labels.is_empty() {
        kri_of_ref(origin, kind, &t.name, &t.namespace)
    } else {
        // `min_by_key` keeps the first of equals, which is the first name.
        Kri::of(world.list_in(kind, origin.mesh()).filter(|s| labels_match(&t.labels, &s.labels)).min_by_key(|s| s.creation_time)?)
    };
    Some(Backend::Real(kri.with_section(section)))
}

/// Port (number, section name) of a destination that a section means: a port name or a decimal number.
pub fn resolve_port(destination: &Resource, section: &str) -> Option<(u32, String)> {
    let ports = crate::resource::ports(destination);
    let by_name = ports.iter().position(|(_, name)| name == section);
    let at = by_name.or_else(|| ports.iter().position(|(n, _)| n.to_string() == section))?;
    ports.into_iter().nth(at)
}
