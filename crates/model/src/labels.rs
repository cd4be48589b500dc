//! Well-known labels and tags, and the labels that the control plane computes on a REST write
//! (reference: Kuma 2.14.3 REST contract, §3.3).

use crate::{
    ident,
    kind::{Kind, kds},
    resource::Labels,
    violation::{Path, Violations},
};
use serde_json::Value;

/// `kuma.io/mesh`
pub const MESH: &str = "kuma.io/mesh";
/// `kuma.io/origin`: `zone` or `global`.
pub const ORIGIN: &str = "kuma.io/origin";
/// `kuma.io/zone`
pub const ZONE: &str = "kuma.io/zone";
/// `kuma.io/env`
pub const ENV: &str = "kuma.io/env";
/// `kuma.io/display-name`
pub const DISPLAY_NAME: &str = "kuma.io/display-name";
/// `k8s.kuma.io/namespace`
pub const NAMESPACE: &str = "k8s.kuma.io/namespace";
/// `kuma.io/proxy-type`
pub const PROXY_TYPE: &str = "kuma.io/proxy-type";
/// `kuma.io/listener-zoneingress`
pub const LISTENER_ZONE_INGRESS: &str = "kuma.io/listener-zoneingress";
/// `kuma.io/listener-zoneegress`
pub const LISTENER_ZONE_EGRESS: &str = "kuma.io/listener-zoneegress";
/// `kuma.io/managed-by`
pub const MANAGED_BY: &str = "kuma.io/managed-by";
/// `kuma.io/workload`
pub const WORKLOAD: &str = "kuma.io/workload";
/// `kuma.io/effect`
pub const EFFECT: &str = "kuma.io/effect";
/// `kuma.io/policy-role`
pub const POLICY_ROLE: &str = "kuma.io/policy-role";
/// `kuma.io/deletion-grace-period-started-at`
pub const GRACE_PERIOD: &str = "kuma.io/deletion-grace-period-started-at";

/// Tag `kuma.io/service`.
pub const TAG_SERVICE: &str = "kuma.io/service";
/// Tag `kuma.io/protocol`.
pub const TAG_PROTOCOL: &str = "kuma.io/protocol";

/// Mode of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A zone; `federated` when it has a global address.
    Zone {
        /// Connected to a global.
        federated: bool,
    },
    /// The global of a multi-zone deployment.
    Global,
}

impl Mode {
    /// `zone` or `global`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Zone { .. } => "zone",
            Mode::Global => "global",
        }
    }
    /// A zone with a global.
    pub fn is_federated(self) -> bool {
        matches!(self, Mode::Zone { federated: true })
    }
}

/// What the label rules depend on besides the resource.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Mode of this control plane.
    pub mode: Mode,
    /// Own zone; not looked at on a global.
    pub zone: &'a str,
    /// Setting `multizone.zone.disableOriginLabelValidation`; honoured on a global too.
    pub disable_origin_validation: bool,
}

const ORIGIN_GLOBAL: &str = "the origin label must be set to 'global'";
const ORIGIN_ZONE: &str = "the origin label must be set to 'zone'";

/// Checks the labels of a body (§3.4), under field `labels`. `mesh` is that of the path.
pub fn validate(rules: &Rules<'_>, kind: Kind, mesh: &str, labels: &Labels, out: &mut Violations) {
    let at = Path::of("labels");
    let get = |key: &str| labels.get(key).map(String::as_str);
    let origin = get(ORIGIN);
    if let Some(v) = origin.filter(|v| !matches!(*v, "global" | "zone")) {
        out.add(at.key(ORIGIN), format!("unknown resource origin {}", crate::go::quote(v)));
    }
    check_origin(rules, kind, origin, &at.key(ORIGIN), out);
    if matches!(rules.mode, Mode::Zone { .. }) && origin != Some("global") {
        if get(ZONE).is_some_and(|z| z != rules.zone) {
            out.add(at.key(ZONE), format!("{ZONE} label should have {} value", rules.zone));
        }
        if get(MESH).is_some_and(|m| m != mesh) {
            out.add(at.key(MESH), format!("{MESH} label must not differ from mesh set on resource"));
        }
    }
    for (key, value) in labels {
        for message in qualified_name_errors(key) {
            out.add(at.key(key), message);
        }
        for message in value_errors(value) {
            out.add(at.key(key), message);
        }
    }
}

/// The rule on DELETE: only the origin counts, taken from the stored labels. The field is `["kuma.io/origin"]` without prefix.
pub fn validate_delete(rules: &Rules<'_>, kind: Kind, stored: &Labels, out: &mut Violations) {
    check_origin(rules, kind, stored.get(ORIGIN).map(String::as_str), &Path::root().key(ORIGIN), out);
}

fn check_origin(rules: &Rules<'_>, kind: Kind, origin: Option<&str>, at: &Path, out: &mut Violations) {
    if rules.disable_origin_validation {
        return;
    }
    match rules.mode {
        Mode::Global if origin.is_some_and(|v| v != "global") => out.add(at, ORIGIN_GLOBAL),
        Mode::Zone { federated: true } if kind.descriptor().is_plugin() && origin != Some("zone") => out.add(at, ORIGIN_ZONE),
        _ => {}
    }
}

/// Labels that an update may add but neither change nor remove, on computed label sets (§3.4). Fields are `labels["…"]`.
pub fn check_immutable(before: &Labels, after: &Labels, out: &mut Violations) {
    for key in [ORIGIN, ZONE, DISPLAY_NAME] {
        let Some(old) = before.get(key) else { continue };
        let at = Path::of("labels").key(key);
        match after.get(key) {
            None => out.add(at, format!("is immutable, cannot be removed (was {})", crate::go::quote(old))),
            Some(new) if new != old => {
                out.add(at, format!("is immutable, cannot be changed from {} to {}", crate::go::quote(old), crate::go::quote(new)));
            }
            Some(_) => {}
        }
    }
}

/// Rule on `kuma.io/workload` of a Dataplane that is created (§3.5). The error is the detail of a 400 `Bad Request`.
pub fn check_workload(mode: Mode, labels: &Labels) -> Result<(), String> {
    let Some(workload) = labels.get(WORKLOAD).filter(|w| !w.is_empty()) else { return Ok(()) };
    let at = Path::of("labels").key(WORKLOAD);
    if mode == Mode::Global {
        return Err(format!("bad request: {at}: not allowed on Global control plane"));
    }
    let errors = ident::dns1035_errors(workload);
    if errors.is_empty() {
        return Ok(());
    }
    Err(format!(
        "bad request: {at}: must be a valid DNS-1035 label (at most 63 characters, matching regex [a-z]([-a-z0-9]*[a-z0-9])?): {}",
        errors.join("; ")
    ))
}

const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
    character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
    and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Kubernetes' messages for a label key; empty when it is valid.
pub fn qualified_name_errors(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let mut parts = key.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > ident::MAX_LEN {
                    errors.push("prefix part must be no more than 253 characters".to_owned());
                }
                if !ident::is_rfc1123_subdomain(prefix) {
                    errors.push(format!("prefix part {SUBDOMAIN}"));
                }
            }
            name
        }
        _ => {
            return vec![format!("a qualified name {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > ident::MAX_LABEL_LEN {
        errors.push("name part must be no more than 63 characters".to_owned());
    }
    if !is_label_name(name) {
        errors.push(format!("name part {NAME_PART}"));
    }
    errors
}

/// Kubernetes' messages for a label value; empty when it is valid.
pub fn value_errors(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > ident::MAX_LABEL_LEN {
        errors.push("must be no more than 63 characters".to_owned());
    }
    if !value.is_empty() && !is_label_name(value) {
        errors.push(LABEL_VALUE.to_owned());
    }
    errors
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Adds the labels that the control plane computes. `spec` is the canonical spec (for proxies it decides the proxy type).
pub fn compute(mode: Mode, zone: &str, kind: Kind, mesh: &str, spec: &Value, labels: &mut Labels) {
    let d = kind.descriptor();
    let mut absent = |key: &str, value: &str| {
        labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    };
    if kind.is_mesh_scoped() {
        absent(MESH, mesh);
    }
    if matches!(mode, Mode::Zone { .. }) && d.has(kds::PROVIDED_BY_ZONE) {
        absent(ORIGIN, "zone");
        if labels.get(ORIGIN).map(String::as_str) != Some("global") {
            for (key, value) in [(ZONE, zone), (ENV, "universal")] {
                labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
    }
    match kind {
        Kind::Dataplane => {
            let networking = spec.get("networking");
            let builtin = networking.and_then(|n| n.get("gateway")).and_then(|g| g.get("type")).and_then(Value::as_str) == Some("BUILTIN");
            labels.insert(PROXY_TYPE.to_owned(), if builtin { "gateway" } else { "sidecar" }.to_owned());
            let listeners = networking.and_then(|n| n.get("listeners")).and_then(Value::as_array);
            for (label, wanted) in [(LISTENER_ZONE_INGRESS, "ZoneIngress"), (LISTENER_ZONE_EGRESS, "ZoneEgress")] {
                let has = listeners.is_some_and(|l| l.iter().any(|x| x.get("type").and_then(Value::as_str) == Some(wanted)));
                if has {
                    labels.insert(label.to_owned(), "enabled".to_owned());
                } else {
                    labels.remove(label);
                }
            }
        }
        Kind::ZoneIngress => {
            labels.insert(PROXY_TYPE.to_owned(), "zoneingress".to_owned());
        }
        Kind::ZoneEgress => {
            labels.insert(PROXY_TYPE.to_owned(), "zoneegress".to_owned());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn standalone_zone() {
        let mut l = Labels::new();
        compute(Mode::Zone { federated: false }, "default", Kind::Dataplane, "m", &json!({"networking":{}}), &mut l);
        let want = [(ENV, "universal"), (MESH, "m"), (ORIGIN, "zone"), (PROXY_TYPE, "sidecar"), (ZONE, "default")];
        assert_eq!(l, want.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
        let mut l = Labels::new();
        compute(Mode::Zone { federated: false }, "default", Kind::Mesh, "", &json!({}), &mut l);
        assert!(l.is_empty());
        let mut l = Labels::from([(ORIGIN.to_owned(), "global".to_owned())]);
        compute(Mode::Zone { federated: true }, "z", Kind::MeshTimeout, "m", &json!({}), &mut l);
        assert_eq!(l.get(ZONE), None);
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }
    fn check(mode: Mode, kind: Kind, pairs: &[(&str, &str)]) -> Vec<String> {
        let rules = Rules { mode, zone: "z", disable_origin_validation: false };
        let mut out = Violations::new();
        validate(&rules, kind, "m", &labels(pairs), &mut out);
        out.into_iter().map(|v| v.to_string()).collect()
    }
    const ALONE: Mode = Mode::Zone { federated: false };
    const FEDERATED: Mode = Mode::Zone { federated: true };

    #[test]
    fn origin_and_place() {
        assert!(check(ALONE, Kind::MeshTimeout, &[]).is_empty());
        assert_eq!(check(FEDERATED, Kind::MeshTimeout, &[]), [r#"labels["kuma.io/origin"]: the origin label must be set to 'zone'"#]);
        assert!(check(FEDERATED, Kind::Dataplane, &[]).is_empty());
        assert!(check(Mode::Global, Kind::MeshTimeout, &[]).is_empty());
        assert_eq!(
            check(Mode::Global, Kind::Mesh, &[(ORIGIN, "zone")]),
            [r#"labels["kuma.io/origin"]: the origin label must be set to 'global'"#]
        );
        assert_eq!(
            check(ALONE, Kind::Dataplane, &[(ZONE, "other"), (MESH, "n")]),
            [
                r#"labels["kuma.io/zone"]: kuma.io/zone label should have z value"#,
                r#"labels["kuma.io/mesh"]: kuma.io/mesh label must not differ from mesh set on resource"#
            ]
        );
        assert!(check(ALONE, Kind::Dataplane, &[(ORIGIN, "global"), (ZONE, "other"), (MESH, "n")]).is_empty());
    }

    #[test]
    fn keys_and_values() {
        assert_eq!(check(ALONE, Kind::Dataplane, &[("", "")]).len(), 2);
        assert_eq!(check(ALONE, Kind::Dataplane, &[("a/b/c", "")]).len(), 1);
        assert_eq!(check(ALONE, Kind::Dataplane, &[("/b", "")]), [r#"labels["/b"]: prefix part must be non-empty"#]);
        assert_eq!(check(ALONE, Kind::Dataplane, &[("A_/b", "x")]).len(), 1);
        assert_eq!(check(ALONE, Kind::Dataplane, &[("a", &"x".repeat(64))]), [r#"labels["a"]: must be no more than 63 characters"#]);
        assert_eq!(check(ALONE, Kind::Dataplane, &[("a", "-x")]).len(), 1);
        assert!(check(ALONE, Kind::Dataplane, &[("example.com/My_Name.1", "v-1")]).is_empty());
    }

    #[test]
    fn immutable() {
        let mut out = Violations::new();
        check_immutable(&labels(&[(ORIGIN, "zone"), (ZONE, "a")]), &labels(&[(ZONE, "b"), (DISPLAY_NAME, "new")]), &mut out);
        let texts: Vec<String> = out.into_iter().map(|v| v.to_string()).collect();
        assert_eq!(
            texts,
            [
                r#"labels["kuma.io/origin"]: is immutable, cannot be removed (was "zone")"#,
                r#"labels["kuma.io/zone"]: is immutable, cannot be changed from "a" to "b""#
            ]
        );
    }

    #[test]
    fn deletion_and_workload() {
        let rules = Rules { mode: Mode::Global, zone: "", disable_origin_validation: false };
        let mut out = Violations::new();
        validate_delete(&rules, Kind::MeshTimeout, &labels(&[(ORIGIN, "zone")]), &mut out);
        assert_eq!(out.as_slice()[0].field, r#"["kuma.io/origin"]"#);
        let mut out = Violations::new();
        validate_delete(&Rules { disable_origin_validation: true, ..rules }, Kind::MeshTimeout, &labels(&[(ORIGIN, "zone")]), &mut out);
        assert!(out.is_empty());
        assert_eq!(check_workload(ALONE, &labels(&[(WORKLOAD, "")])), Ok(()));
        assert_eq!(check_workload(ALONE, &labels(&[(WORKLOAD, "a-1")])), Ok(()));
        assert!(
            check_workload(ALONE, &labels(&[(WORKLOAD, "1")])).is_err_and(|e| e.contains("must be a valid DNS-1035 label (at most 63"))
        );
        assert!(
            check_workload(Mode::Global, &labels(&[(WORKLOAD, "a")])).is_err_and(|e| e.ends_with("not allowed on Global control plane"))
        );
    }
}
