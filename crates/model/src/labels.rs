//! Well-known labels and tags, and the labels that the control plane computes on a REST write
//! (reference: Kuma 2.14.3 REST contract, §3.3).

use crate::{
    kind::{Kind, kds},
    resource::Labels,
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
}
