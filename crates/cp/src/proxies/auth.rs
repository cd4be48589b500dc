//! Whether a stream may speak for a dataplane (reference: data-plane contract §1.5).

use super::ProxyId;
use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_model::{Dataplane, Kind, Resource, labels};
use ikada_pki::token::{DataplaneClaims, DataplaneFacts, KeyScope, Revocations, VerificationKeys, check_dataplane, validate};
use ikada_world::World;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::SystemTime};

/// Names and versions of secrets.
type Print = Vec<(Arc<str>, u64)>;
type Keys = HashMap<Arc<str>, (Print, Arc<VerificationKeys>)>;

/// Parsed verification keys per mesh, kept while the secrets they come from stay the same.
#[derive(Default)]
pub struct KeyCache(Mutex<Keys>);

/// Decoded `data` of a secret.
pub fn secret_data(r: &Resource) -> Option<Vec<u8>> {
    STANDARD.decode(r.spec.value().get("data")?.as_str()?).ok()
}

fn scope(mesh: &str) -> KeyScope {
    KeyScope::Dataplane { mesh: mesh.to_owned() }
}

impl KeyCache {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
    fn keys(&self, world: &World, mesh: &Arc<str>) -> Arc<VerificationKeys> {
        let prefix = scope(mesh).prefix();
        let secrets: Vec<_> = world.list_in(Kind::Secret, mesh).filter(|s| s.name().starts_with(&prefix)).collect();
        let print: Print = secrets.iter().map(|s| (s.key.name.clone(), s.version)).collect();
        if print.is_empty() {
            // Anybody can name a mesh that does not exist.
            return Arc::new(VerificationKeys::from_secrets(scope(mesh), []));
        }
        let mut cache = self.0.lock();
        if let Some((known, keys)) = cache.get(mesh)
            && *known == print
        {
            return keys.clone();
        }
        let data: Vec<_> = secrets.iter().filter_map(|s| Some((s.name(), secret_data(s)?))).collect();
        let keys = Arc::new(VerificationKeys::from_secrets(scope(mesh), data.iter().map(|(n, d)| (*n, d.as_slice()))));
        cache.retain(|m, _| world.mesh(m).is_some());
        cache.insert(mesh.clone(), (print, keys.clone()));
        keys
    }

    /// Checks a credential against a dataplane. Errors are Kuma's texts.
    pub fn authenticate(&self, world: &World, id: &ProxyId, dataplane: &Resource, credential: Option<&str>) -> Result<(), String> {
        let keys = self.keys(world, &id.mesh);
        let name = scope(&id.mesh).revocations_name();
        let mut revoked = Revocations::default();
        // Kuma looks among GlobalSecrets, its documentation says Secret: both count.
        for r in [world.find(Kind::GlobalSecret, "", &name), world.find(Kind::Secret, &id.mesh, &name)].into_iter().flatten() {
            if let Some(data) = secret_data(r) {
                revoked.add(&String::from_utf8_lossy(&data));
            }
        }
        let token = validate::<DataplaneClaims>(credential.unwrap_or(""), &keys, &revoked, SystemTime::now()).map_err(|e| e.to_string())?;
        let tags = dataplane.view::<Dataplane>().map(Dataplane::tag_set).unwrap_or_default();
        let facts =
            DataplaneFacts { name: &id.name, mesh: &id.mesh, tags: &tags, workload: dataplane.label(labels::WORKLOAD), workload_identity: None };
        check_dataplane(&token.claims, &facts).map_err(|e| e.to_string())
    }
}
