//! The maps of a world and how to read them.

use crate::command::{Applied, CommandId, Rejection};
use ikada_model::{Dataplane, Json, Key, Kind, Resource};
use imbl::{OrdMap, OrdSet};
use serde_json::Value;
use std::sync::Arc;

/// Outcome remembered for an idempotency key.
pub(crate) type Remembered = Arc<(u64, Result<Applied, Rejection>)>;

/// All resources at one revision. Cloning is O(1).
#[derive(Clone, Default)]
pub struct World {
    pub(crate) index: u64,
    pub(crate) revision: u64,
    pub(crate) status_revision: u64,
    pub(crate) policy: OrdMap<Key, Arc<Resource>>,
    pub(crate) status: OrdMap<Key, Arc<Resource>>,
    /// (owner, owned).
    pub(crate) owned: OrdSet<(Key, Key)>,
    /// (mesh, `kuma.io/service` value, dataplane name) of inbounds and gateways.
    pub(crate) by_service: OrdSet<(Arc<str>, Arc<str>, Arc<str>)>,
    pub(crate) outcomes: OrdMap<CommandId, Remembered>,
    /// (index, id): oldest first, to forget in order.
    pub(crate) outcome_order: OrdSet<(u64, CommandId)>,
}

impl World {
    /// No resources, before the first entry.
    pub fn empty() -> Self {
        World::default()
    }
    /// Index of the last applied entry.
    pub fn index(&self) -> u64 {
        self.index
    }
    /// Index of the last entry that changed policy state.
    pub fn revision(&self) -> u64 {
        self.revision
    }
    /// Index of the last entry that changed status state.
    pub fn status_revision(&self) -> u64 {
        self.status_revision
    }
    pub(crate) fn map(&self, kind: Kind) -> &OrdMap<Key, Arc<Resource>> {
        if kind.descriptor().insight { &self.status } else { &self.policy }
    }
    /// By key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Resource>> {
        self.map(key.kind).get(key)
    }
    /// By kind, mesh ("" for global kinds) and name.
    pub fn find(&self, kind: Kind, mesh: &str, name: &str) -> Option<&Arc<Resource>> {
        self.get(&Key::new(kind, mesh, name))
    }
    /// A mesh by name.
    pub fn mesh(&self, name: &str) -> Option<&Arc<Resource>> {
        self.find(Kind::Mesh, "", name)
    }
    /// All resources of a kind, ordered by mesh, then name.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        let from = Key { kind, mesh: "".into(), name: "".into() };
        self.map(kind).range(from..).map(|(_, r)| r).take_while(move |r| r.kind() == kind)
    }
    /// All resources of a kind in one mesh, ordered by name. Global kinds: pass "".
    pub fn list_in<'a>(&'a self, kind: Kind, mesh: &str) -> impl Iterator<Item = &'a Arc<Resource>> {
        let mesh: Arc<str> = mesh.into();
        let from = Key { kind, mesh: mesh.clone(), name: "".into() };
        self.map(kind).range(from..).map(|(_, r)| r).take_while(move |r| r.kind() == kind && r.key.mesh == mesh)
    }
    /// Dataplanes of a mesh that have an inbound or gateway with this `kuma.io/service`, ordered by name.
    pub fn dataplanes_of_service<'a>(&'a self, mesh: &str, service: &str) -> impl Iterator<Item = &'a Arc<Resource>> {
        let (m, s): (Arc<str>, Arc<str>) = (mesh.into(), service.into());
        let from = (m.clone(), s.clone(), Arc::<str>::from(""));
        self.by_service
            .range(from..)
            .take_while(move |(a, b, _)| *a == m && *b == s)
            .filter_map(|(mesh, _, name)| self.policy.get(&Key { kind: Kind::Dataplane, mesh: mesh.clone(), name: name.clone() }))
    }
    /// Status of a resource as readers see it: the stored one with the fast-changing part laid over it.
    pub fn status_of(&self, r: &Resource) -> Value {
        let stored = r.status.value();
        let Some(over) = self.status.get(&r.key).filter(|_| !r.kind().descriptor().insight) else { return stored.clone() };
        match (stored, over.status.value()) {
            (Value::Object(a), Value::Object(b)) => {
                let mut all = a.clone();
                all.extend(b.iter().map(|(k, v)| (k.clone(), v.clone())));
                Value::Object(all)
            }
            (_, b) => b.clone(),
        }
    }
    /// Fast-changing part of the status alone.
    pub fn status_overlay(&self, key: &Key) -> Option<&Json> {
        self.status.get(key).map(|r| &r.status)
    }
    /// What a resource owns, directly.
    pub fn owned_by<'a>(&'a self, owner: &Key) -> impl Iterator<Item = &'a Key> {
        let owner = owner.clone();
        let least = Key { kind: Kind::Mesh, mesh: "".into(), name: "".into() };
        self.owned.range((owner.clone(), least)..).take_while(move |(o, _)| *o == owner).map(|(_, k)| k)
    }
    /// What the command with this idempotency key came to, if it was applied and is still remembered.
    pub fn outcome(&self, id: &CommandId) -> Option<&Result<Applied, Rejection>> {
        self.outcomes.get(id).map(|o| &o.1)
    }
    /// Remembered idempotency keys that begin with this, in order.
    pub fn remembered<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = &'a CommandId> {
        let mut from = CommandId::default();
        from.iter_mut().zip(prefix).for_each(|(a, b)| *a = *b);
        self.outcomes.range(from..).map(|(id, _)| id).take_while(move |id| id.starts_with(prefix))
    }
    /// Number of resources of both maps.
    pub fn len(&self) -> usize {
        self.policy.len() + self.status.len()
    }
    /// No resources at all.
    pub fn is_empty(&self) -> bool {
        self.policy.is_empty() && self.status.is_empty()
    }
    /// Every resource of policy state, then of status state (overlays included).
    pub fn iter(&self) -> impl Iterator<Item = (bool, &Arc<Resource>)> {
        self.policy.values().map(|r| (false, r)).chain(self.status.values().map(|r| (true, r)))
    }
}

/// Index keys of a dataplane.
pub(crate) fn service_keys(r: &Resource) -> Vec<(Arc<str>, Arc<str>, Arc<str>)> {
    r.view::<Dataplane>()
        .map(|dp| dp.services().into_iter().map(|s| (r.key.mesh.clone(), s.into(), r.key.name.clone())).collect())
        .unwrap_or_default()
}
