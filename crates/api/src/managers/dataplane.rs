//! Dataplanes (reference: Kuma 2.14.3 REST contract, §6.5, §8.1).

use super::Settings;
use ikada_model::{
    Dataplane, Mesh, Mode,
    dataplane::Tags,
    mesh::MeshServicesMode,
};
use serde_json::{Map, Value, json};

/// Tag with the zone of a proxy.
const TAG_ZONE: &str = "kuma.io/zone";

/// What the control plane writes into the canonical spec of a dataplane: the zone tag of inbounds and gateway (overwritten), and on creation
/// `NotReady` for inbounds that are probed.
pub fn prepare_dataplane(settings: &Settings, mesh: &Mesh, spec: &mut Value, creation: bool) {
    let Some(networking) = spec.get_mut("networking").and_then(Value::as_object_mut) else { return };
    let tag = |owner: &mut Map<String, Value>| {
        if let Some(tags) = owner.entry("tags").or_insert_with(|| json!({})).as_object_mut() {
            tags.insert(TAG_ZONE.to_owned(), settings.zone.clone().into());
        }
    };
    let in_zone = matches!(settings.mode, Mode::Zone { .. }) && !settings.zone.is_empty();
    let exclusive = mesh.mesh_services.mode == MeshServicesMode::Exclusive;
    for inbound in networking.get_mut("inbound").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let tagged = inbound.get("tags").and_then(Value::as_object).is_some_and(|t| !t.is_empty());
        if in_zone && (tagged || !exclusive) {
            tag(inbound);
        }
        if creation && inbound.contains_key("serviceProbe") {
            inbound.insert("state".into(), "NotReady".into());
            // Canonical protobuf JSON leaves `ready: false` out.
            inbound.insert("health".into(), json!({}));
        }
    }
    if in_zone && let Some(gateway) = networking.get_mut("gateway").and_then(Value::as_object_mut) {
        tag(gateway);
    }
}

/// Whether the mesh's constraints let a dataplane (by its canonical, prepared spec) in. Errors with Kuma's text.
pub fn check_membership(name: &str, mesh: &Mesh, spec: &Value) -> Result<(), String> {
    let Some(rules) = mesh.constraints.as_ref().and_then(|c| c.get("dataplaneProxy")) else { return Ok(()) };
    let Ok(dp) = serde_json::from_value::<Dataplane>(spec.clone()) else { return Ok(()) };
    let list = |key: &str| -> Vec<Tags> {
        let rules = rules.get(key).and_then(Value::as_array);
        rules.into_iter().flatten().map(|r| r.get("tags").and_then(|t| serde_json::from_value(t.clone()).ok()).unwrap_or_default()).collect()
    };
    let (requirements, restrictions) = (list("requirements"), list("restrictions"));
    let text = |tags: &Tags| tags.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    let gateway = dp.networking.gateway.as_ref().map(|g| &g.tags);
    for tags in dp.networking.inbound.iter().map(|i| &i.tags).chain(gateway) {
        if !requirements.is_empty() && !requirements.iter().any(|r| matches(r, tags)) {
            let has = text(tags);
            return Err(format!("dataplane cannot be a member of mesh {name:?} because its tags {has:?} does not fulfill any requirements defined on the Mesh"));
        }
        if let Some(r) = restrictions.iter().find(|r| matches(r, tags)) {
            let (has, not) = (text(tags), text(r));
            return Err(format!("dataplane cannot be a member of mesh {name:?} because its tags {has:?} matches restricted tags {not:?} defined on the Mesh"));
        }
    }
    Ok(())
}

/// `*` stands for any non-empty value.
fn matches(rule: &Tags, tags: &Tags) -> bool {
    rule.iter().all(|(k, want)| tags.get(k).is_some_and(|have| if want == "*" { !have.is_empty() } else { have == want }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { mode: Mode::Zone { federated: false }, zone: "east".into(), unsafe_delete: false, create_mesh_routing_resources: false }
    }
    fn mesh(v: Value) -> Mesh {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn zone_tags_and_probes() {
        let spec = json!({"networking": {"inbound": [
            {"port": 1, "tags": {"kuma.io/service": "a", "kuma.io/zone": "other"}, "serviceProbe": {"tcp": {}}},
            {"port": 2},
        ]}});
        let mut normal = spec.clone();
        prepare_dataplane(&settings(), &mesh(json!({})), &mut normal, true);
        let inbound = &normal["networking"]["inbound"];
        assert_eq!(inbound[0]["tags"], json!({"kuma.io/service": "a", "kuma.io/zone": "east"}));
        assert_eq!((&inbound[0]["state"], &inbound[0]["health"]), (&json!("NotReady"), &json!({})));
        assert_eq!(inbound[1]["tags"], json!({"kuma.io/zone": "east"}));
        let mut exclusive = spec;
        prepare_dataplane(&settings(), &mesh(json!({"meshServices": {"mode": "Exclusive"}})), &mut exclusive, false);
        assert_eq!(exclusive["networking"]["inbound"][1].get("tags"), None);
        assert_eq!(exclusive["networking"]["inbound"][0].get("state"), None);
    }

    #[test]
    fn membership() {
        let dp = json!({"networking": {"inbound": [{"tags": {"kuma.io/service": "a", "env": "dev"}}]}});
        let rules = |req: Value, res: Value| mesh(json!({"constraints": {"dataplaneProxy": {"requirements": req, "restrictions": res}}}));
        assert_eq!(check_membership("m", &rules(json!([{"tags": {"env": "*"}}]), json!([])), &dp), Ok(()));
        let e = check_membership("m", &rules(json!([{"tags": {"env": "prod"}}]), json!([])), &dp).unwrap_err();
        assert!(e.ends_with("does not fulfill any requirements defined on the Mesh"), "{e}");
        let e = check_membership("m", &rules(json!([]), json!([{"tags": {"env": "dev"}}])), &dp).unwrap_err();
        assert!(e.contains("matches restricted tags \"env=dev\""), "{e}");
    }
}
