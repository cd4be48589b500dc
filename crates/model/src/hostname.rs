//! Host names that a HostnameGenerator gives (reference: data-plane contract §5.11).

use crate::{Labels, Resource, labels};
use serde_json::Value;

/// Whether a generator's selector for this kind of service (`meshService`, `meshExternalService`, `meshMultiZoneService`) matches the labels.
pub fn selects(generator: &Resource, field: &str, service_labels: &Labels) -> bool {
    let Some(selector) = generator.spec.value().pointer(&format!("/selector/{field}")) else { return false };
    match selector.get("matchLabels") {
        Some(Value::Object(wanted)) => wanted.iter().all(|(k, v)| service_labels.get(k).map(String::as_str) == v.as_str()),
        _ => true,
    }
}

/// Expands `{{ .Field }}` and `{{ label "key" }}`. Errors are texts for people.
pub fn expand(template: &str, service: &Resource, service_labels: &Labels) -> Result<String, String> {
    let label = |k: &str| service_labels.get(k).cloned().unwrap_or_default();
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((expression, tail)) = after.split_once("}}") else { return Err(format!("unclosed action in template {template:?}")) };
        let display = || service_labels.get(labels::DISPLAY_NAME).cloned().unwrap_or_else(|| service.name().to_owned());
        match expression.trim() {
            ".DisplayName" => out.push_str(&display()),
            ".Name" => out.push_str(service.name()),
            ".Mesh" => out.push_str(service.mesh()),
            ".Zone" => out.push_str(&label(labels::ZONE)),
            ".Namespace" => out.push_str(&label(labels::NAMESPACE)),
            call => {
                let key = call.strip_prefix("label").map(str::trim).and_then(|q| q.strip_prefix('"')?.strip_suffix('"'));
                let Some(key) = key else { return Err(format!("unknown expression {call:?} in template {template:?}")) };
                match service_labels.get(key) {
                    Some(v) => out.push_str(v),
                    None => return Err(format!("label {key:?} is not set")),
                }
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Json, Key, Kind};
    use serde_json::json;

    #[test]
    fn selection_and_expansion() {
        let spec = json!({"selector": {"meshService": {"matchLabels": {"kuma.io/zone": "east"}}}});
        let generator = Resource::new(Key::new(Kind::HostnameGenerator, "", "g"), Json::from_value(&spec));
        let east: Labels = [(labels::ZONE.to_owned(), "east".to_owned()), (labels::DISPLAY_NAME.to_owned(), "web".to_owned())].into();
        assert!(selects(&generator, "meshService", &east));
        assert!(!selects(&generator, "meshService", &Labels::new()));
        assert!(!selects(&generator, "meshExternalService", &east));
        let service = Resource::new(Key::new(Kind::MeshService, "m", "web-x"), Json::default());
        let of = |t: &str| expand(t, &service, &east);
        assert_eq!(of("{{ .DisplayName }}.{{.Name}}.{{ .Mesh }}.{{ label \"kuma.io/zone\" }}"), Ok("web.web-x.m.east".into()));
        assert_eq!(of("{{ .Nope }}").unwrap_err(), "unknown expression \".Nope\" in template \"{{ .Nope }}\"");
        assert!(of("{{ .Name").unwrap_err().starts_with("unclosed action"));
        assert_eq!(of("{{ label \"x\" }}").unwrap_err(), "label \"x\" is not set");
    }
}
