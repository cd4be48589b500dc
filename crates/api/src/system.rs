//! Endpoints about the control plane itself (reference: Kuma 2.14.3 REST contract, §1.3, §4.8).

use crate::{auth::User, state::ApiState};
use ikada_model::{Kind, access, kind::Descriptor, kind::Scope, kind::kds};
use ikada_world::World;
use serde_json::{Value, json};

/// Name of the Config with the id of the cluster.
pub const CLUSTER_ID: &str = "kuma-cluster-id";

/// `GET /`
pub fn index(state: &ApiState, world: &World) -> Value {
    let i = &state.options.index;
    let cluster_id = world.find(Kind::Config, "", CLUSTER_ID).and_then(|r| r.spec.value().get("config")?.as_str().map(str::to_owned));
    let mut v = json!({
        "hostname": i.hostname,
        "product": i.product,
        "version": i.version,
        "instanceId": i.instance_id,
        "clusterId": cluster_id.unwrap_or_default(),
        "gui": if state.options.gui.enabled { state.options.gui.base_path.as_str() } else { "" },
    });
    if !i.based_on_kuma.is_empty() {
        v["basedOnKuma"] = json!(i.based_on_kuma);
    }
    v
}

/// `GET /who-am-i`
pub fn who_am_i(user: &User) -> Value {
    json!({"name": user.name, "groups": user.groups})
}

fn named() -> Vec<&'static Descriptor> {
    let mut all: Vec<_> = Kind::all().map(Kind::descriptor).filter(|d| !d.path.is_empty()).collect();
    all.sort_by_key(|d| d.name);
    all
}

/// `GET /_resources`. `readOnly` is not the true rule: on a federated zone everything is reported read-only and a global reports Dataplane
/// writable, because kumactl export and the GUI read it so.
pub fn resources(state: &ApiState) -> Value {
    let o = &state.options;
    let items: Vec<Value> = named()
        .into_iter()
        .map(|d| {
            let mut v = json!({
                "name": d.name,
                "scope": if d.scope == Scope::Mesh { "Mesh" } else { "Global" },
                "readOnly": access::is_listed_read_only(o.mode, d.kind, o.read_only),
                "path": d.path,
                "singularDisplayName": d.display,
                "pluralDisplayName": d.display_plural,
                "shortName": d.short,
                "includeInFederation": d.has(kds::PROVIDED_BY_GLOBAL) && d.has(kds::CONSUMED_BY_ZONE) && !d.read_only,
            });
            if let Some(p) = d.policy {
                v["policy"] = json!({
                    "isTargetRef": p.target_ref,
                    "hasToTargetRef": p.to,
                    "hasFromTargetRef": p.from,
                    "hasRulesTargetRef": p.rules,
                    "isFromAsRules": p.from_as_rules,
                });
            }
            v
        })
        .collect();
    json!({"resources": items})
}

/// `GET /policies`
pub fn policies(state: &ApiState) -> Value {
    let items: Vec<Value> = named()
        .into_iter()
        .filter_map(|d| {
            let p = d.policy?;
            Some(json!({
                "name": d.name,
                "readOnly": access::is_read_only(state.options.mode, d.kind, state.options.read_only),
                "path": d.path,
                "singularDisplayName": d.display,
                "pluralDisplayName": d.display_plural,
                "isExperimental": false,
                "isTargetRefBased": p.target_ref,
                "isInbound": p.from,
                "isOutbound": p.to,
            }))
        })
        .collect();
    json!({"policies": items})
}
