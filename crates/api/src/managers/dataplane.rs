//! Dataplanes (reference: Kuma 2.14.3 REST contract, §6.5, §8.1).

use ikada_model::{Dataplane, Mesh, dataplane::Tags};
use serde_json::Value;

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
    use serde_json::json;

    fn mesh(v: Value) -> Mesh {
        serde_json::from_value(v).unwrap()
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
