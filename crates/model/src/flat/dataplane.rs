//! Dataplane: what a write changes in it (reference: Kuma 2.14.3 REST contract, §6.5).

use crate::{labels, mesh::MeshServicesMode};
use serde_json::{Map, Value, json};

/// What the control plane changes in a canonical Dataplane spec before it validates and stores it.
///
/// The zone tag of every inbound and of the gateway is overwritten. An inbound without tags stays without when the mesh runs in mode
/// Exclusive. When the proxy is created, inbounds with a `serviceProbe` start as not ready, because nothing has probed them yet.
pub fn prepare_dataplane(zone: &str, mesh_mode: MeshServicesMode, create: bool, mut spec: Value) -> Value {
    let Some(networking) = spec.get_mut("networking").and_then(Value::as_object_mut) else { return spec };
    for inbound in networking.get_mut("inbound").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let has_tags = inbound.get("tags").and_then(Value::as_object).is_some_and(|t| !t.is_empty());
        if has_tags || mesh_mode != MeshServicesMode::Exclusive {
            set_zone(inbound, zone);
        }
        if create && inbound.contains_key("serviceProbe") {
            inbound.insert("state".to_owned(), json!("NotReady"));
            // `ready: false` is the default and therefore not written.
            inbound.insert("health".to_owned(), json!({}));
        }
    }
    if let Some(gateway) = networking.get_mut("gateway").and_then(Value::as_object_mut) {
        set_zone(gateway, zone);
    }
    spec
}

fn set_zone(owner: &mut Map<String, Value>, zone: &str) {
    let tags = owner.entry("tags").or_insert_with(|| json!({}));
    if let Some(tags) = tags.as_object_mut() {
        tags.insert(labels::ZONE.to_owned(), json!(zone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared() {
        let spec = json!({"networking": {
            "inbound": [{"port": 1}, {"port": 2, "tags": {"kuma.io/zone": "x"}, "serviceProbe": {"tcp": {}}}],
            "gateway": {"tags": {"kuma.io/service": "g"}},
        }});
        let out = prepare_dataplane("z", MeshServicesMode::Exclusive, true, spec.clone());
        assert_eq!(
            out,
            json!({"networking": {
                "inbound": [
                    {"port": 1},
                    {"port": 2, "tags": {"kuma.io/zone": "z"}, "serviceProbe": {"tcp": {}}, "state": "NotReady", "health": {}},
                ],
                "gateway": {"tags": {"kuma.io/service": "g", "kuma.io/zone": "z"}},
            }})
        );
        let out = prepare_dataplane("z", MeshServicesMode::Disabled, false, spec);
        assert_eq!(out["networking"]["inbound"][0], json!({"port": 1, "tags": {"kuma.io/zone": "z"}}));
        assert_eq!(out["networking"]["inbound"][1].get("state"), None);
        assert_eq!(prepare_dataplane("z", MeshServicesMode::Disabled, true, json!({})), json!({}));
    }
}
