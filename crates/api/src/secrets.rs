//! Data of Secrets and GlobalSecrets.

use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_model::{Json, Kind, Resource};
use ikada_world::World;
use serde_json::json;

/// Spec of a secret with this data.
pub fn spec(data: &[u8]) -> Json {
    Json::from_value(&json!({"data": STANDARD.encode(data)}))
}

/// Data of a secret; `None` when it is not base64.
pub fn data(r: &Resource) -> Option<Vec<u8>> {
    match r.spec.value().get("data") {
        None => Some(Vec::new()),
        Some(v) => STANDARD.decode(v.as_str()?).ok(),
    }
}

/// Names and data of all Secrets of a mesh, or of all GlobalSecrets when `mesh` is "".
pub fn all(world: &World, mesh: &str) -> Vec<(String, Vec<u8>)> {
    let kind = if mesh.is_empty() { Kind::GlobalSecret } else { Kind::Secret };
    world.list_in(kind, mesh).filter_map(|r| Some((r.name().to_owned(), data(r)?))).collect()
}
