//! MeshService as it is written (reference: Kuma 2.14.3 REST contract, §8.6); its typed view is [`crate::MeshService`].

use super::{KindSpec, ValidateContext, common};
use crate::{
    ident,
    kind::Kind,
    labels,
    mesh_service::MeshService,
    schema::{Int, Schema, field, int, int_or_text, list, object, required, text, text_map},
    violation::{Path, Violations},
};
use serde_json::Value;
use std::sync::LazyLock;

/// Longest name, in characters.
const MAX_NAME: usize = 63;

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    object(vec![
        field("state", text().one_of(&["Available", "Unavailable"]).or("Unavailable")),
        field(
            "selector",
            object(vec![
                field("dataplaneTags", text_map()),
                field("dataplaneRef", object(vec![field("name", text()).omit_empty()])),
                field("dataplaneLabels", object(vec![field("matchLabels", text_map())])),
            ]),
        )
        .always(),
        field(
            "ports",
            list(object(vec![
                field("name", text()),
                required("port", int(Int::I32)),
                field("targetPort", int_or_text()),
                field("appProtocol", text().or("tcp")),
            ])),
        ),
        field("identities", list(object(vec![required("type", text().one_of(&["ServiceTag", "SpiffeID"])), required("value", text())]))),
    ])
});

/// Registry entry.
pub static KIND: KindSpec = KindSpec { kind: Kind::MeshService, schema: || &SCHEMA, validate, warnings };

/// Label `kuma.io/display-name`, else the name.
fn display_name<'a>(ctx: &ValidateContext<'a>) -> &'a str {
    ctx.labels.and_then(|l| l.get(labels::DISPLAY_NAME)).filter(|s| !s.is_empty()).map_or(ctx.name, String::as_str)
}

fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let Some(spec) = common::read::<MeshService>(spec, out) else { return };
    if display_name(ctx).chars().count() > MAX_NAME {
        out.add("name", "must not be longer than 63 characters");
    }
    let s = &spec.selector;
    if [s.dataplane_tags.is_some(), s.dataplane_ref.is_some(), s.dataplane_labels.is_some()].iter().filter(|x| **x).count() > 1 {
        out.add(Path::of("spec.selector"), "must specify only one of: dataplaneTags, dataplaneRef, or dataplaneLabels");
    }
}

fn warnings(ctx: &ValidateContext<'_>, spec: &Value) -> Vec<String> {
    let name = display_name(ctx);
    if name.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<String> = ident::dns1035_warning(Kind::MeshService, name).into_iter().collect();
    let Some(spec) = common::read::<MeshService>(spec, &mut Violations::new()) else { return all };
    // Parts of an SNI are separated by dots, so a name with dots makes it ambiguous.
    if name.contains('.') {
        all.extend(spec.ports.iter().map(|p| {
            format!(
                "Invalid MeshService SNI (port \"{}\"): name \"{name}\" does not conform to RFC 1123: must not contain dots. \
                 This is deprecated.",
                p.section()
            )
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_that_are_no_dns_labels() {
        let ctx = ValidateContext { name: "http.bin", ..ValidateContext::default() };
        let spec = json!({"selector": {}, "ports": [{"port": 80, "appProtocol": "tcp"}, {"port": 81, "name": "http"}]});
        let w = warnings(&ctx, &spec);
        assert_eq!(w.len(), 3);
        assert!(w[0].starts_with("Invalid MeshService resource name: 'http.bin'. It does not conform to the DNS format (RFC 1035)."));
        assert_eq!(
            w[1],
            "Invalid MeshService SNI (port \"80\"): name \"http.bin\" does not conform to RFC 1123: must not contain dots. \
             This is deprecated."
        );
        assert_eq!(warnings(&ValidateContext { name: "ok-1", ..ctx }, &spec), Vec::<String>::new());
    }
}
