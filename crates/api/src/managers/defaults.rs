//! Resources that have to exist (reference: Kuma 2.14.3 REST contract, §5.5, §6.1).

use super::{ManagerError, Settings, blocking, create, mesh::create_mesh, mesh::default_policies, system_time};
use crate::{CLUSTER_ID, auth::ADMIN, secrets};
use ikada_model::{Json, Key, Kind, Labels, Mode, Timestamp, labels};
use ikada_pki::token::{KeyScope, SigningKey, UserClaims, generate_signing_key, issue};
use ikada_world::{Expect, Op, Put, World};
use serde_json::{Value, json};
use std::time::Duration;

/// GlobalSecret with the CA of Envoy admin listeners: PEM certificate, then PEM key.
pub const ENVOY_ADMIN_CA: &str = "envoy-admin-ca";
/// GlobalSecret with the first administrator's token.
pub const ADMIN_USER_TOKEN: &str = "admin-user-token";
/// Life of that token: ten years.
const ADMIN_TOKEN_LIFE: Duration = Duration::from_secs(24 * 365 * 10 * 3600);

/// What is wanted at start.
#[derive(Clone, Debug)]
pub struct DefaultsOptions {
    /// The control plane.
    pub settings: Settings,
    /// `defaults.skipTenantResources`: nothing of §6.1.
    pub skip_tenant_resources: bool,
    /// `defaults.skipMeshCreation`.
    pub skip_mesh_creation: bool,
    /// `defaults.SkipHostnameGenerators`.
    pub skip_hostname_generators: bool,
    /// `apiServer.authn.type` is `tokens`.
    pub user_tokens: bool,
    /// `apiServer.authn.tokens.bootstrapAdminToken` and the issuer is enabled.
    pub bootstrap_admin_token: bool,
}

/// Operations that make something exist; to be proposed as one command. A rejection with `AlreadyExists` or `Conflict` means that somebody
/// else was faster: look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensure {
    /// For the log.
    pub what: String,
    /// Operations.
    pub ops: Vec<Op>,
}

/// What is missing in `world`, in the order in which it has to be made. Only the leader runs it; empty when nothing is missing.
///
/// # Errors
/// Keys cannot be made.
pub async fn ensure_defaults(o: &DefaultsOptions, world: &World, now: Timestamp) -> Result<Vec<Ensure>, ManagerError> {
    let mut all = Vec::new();
    let mut add = |what: &str, ops: Vec<Op>| {
        if !ops.is_empty() {
            all.push(Ensure { what: what.to_owned(), ops });
        }
    };
    let s = &o.settings;
    let zone = matches!(s.mode, Mode::Zone { .. });
    let federated = s.mode.is_federated();
    let missing = |kind: Kind, name: &str| world.find(kind, "", name).is_none();
    if !federated && missing(Kind::Config, CLUSTER_ID) {
        let spec = Json::from_value(&json!({"config": uuid::Uuid::new_v4().to_string()}));
        add("cluster id", vec![create(Key::new(Kind::Config, "", CLUSTER_ID), Labels::new(), spec, None)]);
    }
    if !o.skip_tenant_resources {
        if zone && missing(Kind::GlobalSecret, ENVOY_ADMIN_CA) {
            let pair = blocking(move || ikada_pki::envoy_admin_ca(system_time(now))).await?;
            add("Envoy admin CA", vec![global_secret(ENVOY_ADMIN_CA, pair.bundle().as_bytes())]);
        }
        if zone {
            add("zone", ensure_zone(world, &s.zone));
        }
        if !federated && !o.skip_mesh_creation {
            let key = Key::new(Kind::Mesh, "", "default");
            if world.get(&key).is_none() {
                let put = Put { expect: Expect::Absent, ..Put::new(key, Labels::new(), Json::default()) };
                add("mesh \"default\"", create_mesh(s, world, put, now).await?);
            }
            add("labels of default policies", heal_labels(s, world));
        }
        if !federated && !has_key(world, &KeyScope::Zone) {
            let name = KeyScope::Zone.default_secret_name();
            add("zone token signing key", vec![global_secret(&name, blocking(generate_signing_key).await?.as_bytes())]);
        }
        if !o.skip_hostname_generators {
            add("hostname generators", hostname_generators(zone, world));
        }
    }
    if o.user_tokens {
        add("user token signing key and admin token", admin_token(o, world, now).await?);
    }
    Ok(all)
}

fn global_secret(name: &str, data: &[u8]) -> Op {
    create(Key::new(Kind::GlobalSecret, "", name), Labels::new(), secrets::spec(data), None)
}

fn has_key(world: &World, scope: &KeyScope) -> bool {
    world.list(Kind::GlobalSecret).any(|r| scope.serial_of(r.name()).is_some())
}

/// The zone exists and is the only one.
fn ensure_zone(world: &World, name: &str) -> Vec<Op> {
    let others = world.list(Kind::Zone).filter(|z| z.name() != name);
    let mut ops: Vec<Op> = others.map(|z| Op::Delete { key: z.key.clone(), expect: Expect::Any }).collect();
    if world.find(Kind::Zone, "", name).is_none() {
        ops.insert(0, create(Key::new(Kind::Zone, "", name), Labels::new(), Json::default(), None));
    }
    ops
}

/// Default policies of all meshes that miss labels a new one would get. Deleted ones stay deleted.
fn heal_labels(s: &Settings, world: &World) -> Vec<Op> {
    let mut ops = Vec::new();
    for mesh in world.list(Kind::Mesh) {
        for (kind, name, _) in default_policies(mesh.name(), true) {
            let Some(r) = world.find(kind, mesh.name(), &name) else { continue };
            let mut wanted = r.labels.clone();
            labels::compute(s.mode, &s.zone, kind, mesh.name(), r.spec.value(), &mut wanted);
            if wanted != r.labels {
                ops.push(Op::Put(Put { expect: Expect::Version(r.version), ..Put::new(r.key.clone(), wanted, r.spec.clone()) }));
            }
        }
    }
    ops
}

fn hostname_generators(zone: bool, world: &World) -> Vec<Op> {
    let origin = |o: &str| json!({"kuma.io/origin": o});
    let kube = |headless: &str| json!({"kuma.io/origin": "global", "k8s.kuma.io/is-headless-service": headless, "kuma.io/env": "kubernetes"});
    let all: Vec<(&str, &str, Value, &str)> = if zone {
        vec![
            ("local-mesh-external-service", "meshExternalService", origin("zone"), "{{ .DisplayName }}.extsvc.mesh.local"),
            ("local-universal-mesh-service", "meshService", origin("zone"), "{{ .DisplayName }}.svc.mesh.local"),
        ]
    } else {
        vec![
            ("synced-mesh-multi-zone-service", "meshMultiZoneService", origin("global"), "{{ .DisplayName }}.mzsvc.mesh.local"),
            ("synced-kube-mesh-service", "meshService", kube("false"), "{{ .DisplayName }}.{{ .Namespace }}.svc.{{ .Zone }}.mesh.local"),
            (
                "synced-headless-kube-mesh-service",
                "meshService",
                kube("true"),
                "{{ label \"statefulset.kubernetes.io/pod-name\" }}.{{ label \"k8s.kuma.io/service-name\" }}.{{ .Namespace }}.svc.{{ .Zone }}.mesh.local",
            ),
            (
                "synced-universal-mesh-service",
                "meshService",
                json!({"kuma.io/origin": "global", "kuma.io/env": "universal"}),
                "{{ .DisplayName }}.svc.{{ .Zone }}.mesh.local",
            ),
            ("synced-mesh-external-service", "meshExternalService", origin("global"), "{{ .DisplayName }}.extsvc.mesh.local"),
        ]
    };
    let own = if zone { Labels::from([(labels::ORIGIN.to_owned(), "zone".to_owned())]) } else { Labels::new() };
    all.into_iter()
        .filter(|(name, ..)| world.find(Kind::HostnameGenerator, "", name).is_none())
        .map(|(name, selector, match_labels, template)| {
            let spec = json!({"selector": {selector: {"matchLabels": match_labels}}, "template": template});
            create(Key::new(Kind::HostnameGenerator, "", name), own.clone(), Json::from_value(&spec), None)
        })
        .collect()
}

/// The signing key of user tokens and, signed with it, the first administrator's token; in one command, so that the token is never signed
/// with a key that lost a race.
async fn admin_token(o: &DefaultsOptions, world: &World, now: Timestamp) -> Result<Vec<Op>, ManagerError> {
    let mut ops = Vec::new();
    let mut keys = secrets::all(world, "");
    if !has_key(world, &KeyScope::User) && !o.skip_tenant_resources {
        let name = KeyScope::User.default_secret_name();
        let pem = blocking(generate_signing_key).await?;
        ops.push(global_secret(&name, pem.as_bytes()));
        keys.push((name, pem.into_bytes()));
    }
    if o.bootstrap_admin_token && world.find(Kind::GlobalSecret, "", ADMIN_USER_TOKEN).is_none() {
        let key = SigningKey::latest(&KeyScope::User, keys.iter().map(|(n, d)| (n.as_str(), d.as_slice())))?;
        if let Some(key) = key {
            let claims = UserClaims { name: ADMIN.to_owned(), groups: vec![ADMIN.to_owned()] };
            let token = issue(&claims, &key, ADMIN_TOKEN_LIFE, system_time(now))?;
            ops.push(global_secret(ADMIN_USER_TOKEN, token.as_bytes()));
        }
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_world::{Command, EntryMeta};

    fn options(mode: Mode) -> DefaultsOptions {
        DefaultsOptions {
            settings: Settings { mode, zone: "east".into(), unsafe_delete: false, create_mesh_routing_resources: false },
            skip_tenant_resources: false,
            skip_mesh_creation: false,
            skip_hostname_generators: false,
            user_tokens: true,
            bootstrap_admin_token: true,
        }
    }
    const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);

    fn run(mut world: World, all: Vec<Ensure>) -> World {
        for (i, e) in all.into_iter().enumerate() {
            let index = world.index() + 1;
            let (next, _, outcome) = world.apply(EntryMeta { index, time: NOW }, &Command { id: [i as u8 + 1; 16], ops: e.ops });
            outcome.unwrap_or_else(|r| panic!("{}: {r}", e.what));
            world = next;
        }
        world
    }

    #[tokio::test]
    async fn a_zone_starts_from_nothing_and_then_misses_nothing() {
        let o = options(Mode::Zone { federated: false });
        let stale = Put::new(Key::new(Kind::Zone, "", "old"), Labels::new(), Json::default());
        let (start, _, _) = World::empty().apply(EntryMeta { index: 1, time: NOW }, &Command { id: [99; 16], ops: vec![Op::Put(stale)] });
        let world = run(start.clone(), ensure_defaults(&o, &start, NOW).await.unwrap());
        assert_eq!(ensure_defaults(&o, &world, NOW).await.unwrap(), []);
        let zones: Vec<_> = world.list(Kind::Zone).map(|z| z.name().to_owned()).collect();
        assert_eq!(zones, ["east"]);
        assert_eq!(world.list(Kind::HostnameGenerator).count(), 2);
        assert!(world.mesh("default").is_some());
        let names: Vec<_> = world.list(Kind::GlobalSecret).map(|s| s.name().to_owned()).collect();
        assert_eq!(names, ["admin-user-token", "envoy-admin-ca", "user-token-signing-key-1", "zone-token-signing-key-1"]);
    }

    #[tokio::test]
    async fn skipping() {
        let mut o = options(Mode::Zone { federated: true });
        o.skip_tenant_resources = true;
        assert_eq!(ensure_defaults(&o, &World::empty(), NOW).await.unwrap(), []);
    }

    #[test]
    fn a_global_has_five_generators() {
        assert_eq!(hostname_generators(false, &World::empty()).len(), 5);
    }
}
