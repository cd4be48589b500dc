//! Writes with side effects: meshes with their CAs, signing keys and default policies, dataplanes, deletions
//! (reference: Kuma 2.14.3 REST contract, §6).

use ikada_model::Mode;

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
