//! Rules of deletion (reference: Kuma 2.14.3 REST contract, §6.4).

use super::Settings;
use crate::error::Parameter;
use ikada_model::{
    Kind, Mesh, Resource,
    mesh::{builtin_ca_cert_secret, builtin_ca_key_secret},
};
use ikada_world::{Expect, Op, World};
use serde_json::Value;

/// Operations that delete a resource; what it owns goes with it.
///
/// # Errors
/// A mesh with dataplanes, a zone that is connected, a secret in use (all not checked with `store.unsafeDelete`).
pub fn delete(settings: &Settings, world: &World, r: &Resource) -> Result<Vec<Op>, Vec<Parameter>> {
    let refusal = if settings.unsafe_delete {
        None
    } else {
        match r.kind() {
            Kind::Mesh if world.list_in(Kind::Dataplane, r.name()).next().is_some() => {
                Some(Parameter::new("mesh", "unable to delete mesh, there are still some dataplanes attached"))
            }
            Kind::Zone if zone_online(world, r.name()) => {
                Some(Parameter::new("zone", "unable to delete Zone, Zone CP is still connected, please shut it down first"))
            }
            Kind::Secret => secret_user(world, r).map(|backend| {
                let (s, m) = (r.name(), r.mesh());
                let reason = format!(
                    "The secret {s:?} that you are trying to remove is currently in use in Mesh {m:?} in mTLS backend {backend:?}. \
                     Please remove the reference from the {backend:?} backend before removing the secret."
                );
                Parameter::new("name", reason)
            }),
            _ => None,
        }
    };
    match refusal {
        Some(p) => Err(vec![p]),
        None => {
            let mut ops = vec![Op::Delete { key: r.key.clone(), expect: Expect::Version(r.version) }];
            if r.kind() == Kind::Mesh {
                ops.extend(strays(world, r.name()));
            }
            Ok(ops)
        }
    }
}

/// Deletions of what lies in a mesh and has no owner (it came from a bundle): nobody could reach it without its mesh.
fn strays(world: &World, mesh: &str) -> Vec<Op> {
    Kind::all()
        .filter(|k| k.is_mesh_scoped())
        .flat_map(|k| world.list_in(k, mesh))
        .filter(|r| r.owner.is_none())
        .map(|r| Op::Delete { key: r.key.clone(), expect: Expect::Any })
        .collect()
}

/// Some subscription of the zone's insight has begun and not ended.
fn zone_online(world: &World, zone: &str) -> bool {
    let set = |s: &Value, k: &str| s.get(k).is_some_and(|t| !t.is_null());
    world
        .find(Kind::ZoneInsight, "", zone)
        .and_then(|i| i.spec.value().get("subscriptions")?.as_array().cloned())
        .is_some_and(|all| all.iter().any(|s| set(s, "connectTime") && !set(s, "disconnectTime")))
}

/// Name of the mTLS backend that uses a secret.
fn secret_user(world: &World, secret: &Resource) -> Option<String> {
    let mesh = world.mesh(secret.mesh())?.view::<Mesh>()?;
    let name = secret.name();
    let uses = |source: Option<&Value>| source.and_then(|s| s.get("secret")).and_then(Value::as_str) == Some(name);
    mesh.mtls
        .iter()
        .flat_map(|m| &m.backends)
        .find(|b| match b.kind.as_str() {
            "builtin" => name == builtin_ca_cert_secret(secret.mesh(), &b.name) || name == builtin_ca_key_secret(secret.mesh(), &b.name),
            _ => b.conf.as_ref().is_some_and(|c| uses(c.get("cert")) || uses(c.get("key"))),
        })
        .map(|b| b.name.clone())
}
