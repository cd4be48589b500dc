//! Host names of services from HostnameGenerators (reference: data-plane contract §5.11).

use ikada_model::{
    Kind, Resource,
    hostname::{expand, selects},
    labels,
};
use ikada_world::World;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// The generators in the order in which they are applied: those of the zone first, then by age, then by name.
pub fn generators(world: &World) -> Vec<&Arc<Resource>> {
    let mut all: Vec<_> = world.list(Kind::HostnameGenerator).collect();
    all.sort_by_key(|g| (g.label(labels::ORIGIN) != Some("zone"), g.creation_time, g.key.name.clone()));
    all
}

/// Host names that are taken already, by host name, with the name of the service that has it. One map per kind and mesh.
pub type Taken = BTreeMap<String, String>;

/// `status.addresses` and `status.hostnameGenerators` of a service. `selector_field` is `meshService`, `list_type` the name of its kind's
/// list in collision messages. Services must be passed in order of creation, then name: the first one keeps a name.
pub fn status(
    generators: &[&Arc<Resource>],
    (selector_field, list_type): (&str, &str),
    service: &Resource,
    service_labels: &BTreeMap<String, String>,
    taken: &mut Taken,
) -> (Vec<Value>, Vec<Value>) {
    let (mut addresses, mut conditions) = (Vec::new(), Vec::new());
    for generator in generators.iter().filter(|g| selects(g, selector_field, service_labels)) {
        let reference = json!({"coreName": generator.name()});
        let template = generator.spec.value().get("template").and_then(Value::as_str).unwrap_or("");
        let (status, reason, message) = match expand(template, service, service_labels) {
            Err(e) => ("False", "TemplateError", e),
            Ok(hostname) => match taken.get(&hostname) {
                Some(owner) if owner != service.name() => ("False", "Collision", format!("Hostname collision with {list_type}: {owner}")),
                _ => {
                    taken.insert(hostname.clone(), service.name().to_owned());
                    addresses.push(json!({"hostname": hostname, "origin": "HostnameGenerator", "hostnameGeneratorRef": reference}));
                    ("True", "Generated", String::new())
                }
            },
        };
        conditions.push(json!({
            "hostnameGeneratorRef": reference,
            "conditions": [{"type": "Generated", "status": status, "reason": reason, "message": message}],
        }));
    }
    (addresses, conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Labels};

    fn generator(name: &str, template: &str, wanted: Value) -> Arc<Resource> {
        let spec = json!({"selector": {"meshService": {"matchLabels": wanted}}, "template": template});
        Arc::new(Resource::new(Key::new(Kind::HostnameGenerator, "", name), Json::from_value(&spec)))
    }

    #[test]
    fn template_selector_and_collision() {
        let l: Labels = [(labels::ORIGIN.to_owned(), "zone".to_owned()), (labels::ZONE.to_owned(), "east".to_owned())].into();
        let a = Resource::new(Key::new(Kind::MeshService, "m", "web"), Json::default());
        let b = Resource::new(Key::new(Kind::MeshService, "m", "other"), Json::default());
        let g1 = generator("g1", "{{ .DisplayName }}.svc.{{ .Zone }}.local", json!({"kuma.io/origin": "zone"}));
        let g2 = generator("g2", "fixed", json!({}));
        let g3 = generator("g3", "{{ label \"nope\" }}", json!({}));
        let g4 = generator("g4", "never", json!({"kuma.io/origin": "global"}));
        let all = [&g1, &g2, &g3, &g4];
        let mut taken = Taken::new();
        let (addresses, conditions) = status(&all, ("meshService", "MeshServiceList"), &a, &l, &mut taken);
        assert_eq!(addresses.iter().map(|x| x["hostname"].clone()).collect::<Vec<_>>(), ["web.svc.east.local", "fixed"]);
        assert_eq!(conditions.len(), 3);
        assert_eq!(conditions[2]["conditions"][0]["reason"], "TemplateError");
        let (addresses, conditions) = status(&all, ("meshService", "MeshServiceList"), &b, &l, &mut taken);
        assert_eq!(addresses.len(), 1);
        assert_eq!(conditions[1]["conditions"][0]["reason"], "Collision");
    }
}
