//! Meshes (reference: Kuma 2.14.3 REST contract, §6.2, §6.3; data plane contract §6.1).

use super::{ManagerError, Settings, blocking, create, system_time};
use crate::{error::Parameter, secrets};
use base64::Engine;
use ikada_model::{
    Json, Key, Kind, Labels, Mesh, Resource, Timestamp,
    mesh::{CaBackend, builtin_ca_cert_secret, builtin_ca_key_secret, parse_lifetime},
};
use ikada_pki::token::{KeyScope, generate_signing_key};
use ikada_world::{Op, Put, World};
use serde_json::{Value, json};

/// Operations that create a mesh with everything that belongs to it: CA secrets of builtin backends, the signing key of dataplane tokens and
/// default policies, all owned by the mesh. `put` is the mesh itself (defaulted, validated, labelled, with its precondition) and comes first.
///
/// # Errors
/// The CA of a backend cannot be used or made.
pub async fn create_mesh(settings: &Settings, world: &World, put: Put, now: Timestamp) -> Result<Vec<Op>, ManagerError> {
    let name = put.key.name.to_string();
    let mesh = view(&put.spec);
    check_backends(world, &name, &mesh)?;
    let owner = put.key.clone();
    let mut ops = vec![Op::Put(put)];
    ops.extend(ca_secrets(world, &name, &mesh, now).await?);
    let key_name = KeyScope::Dataplane { mesh: name.clone() }.default_secret_name();
    let key = Key::new(Kind::Secret, &name, &key_name);
    if world.get(&key).is_none() {
        let pem = blocking(generate_signing_key).await?;
        ops.push(create(key, Labels::new(), secrets::spec(pem.as_bytes()), Some(owner.clone())));
    }
    let skip = &mesh.skip_creating_initial_policies;
    for (kind, policy, spec) in default_policies(&name, settings.create_mesh_routing_resources) {
        let key = Key::new(kind, &name, &policy);
        if skip.iter().any(|s| s == "*" || s == kind.name()) || world.get(&key).is_some() {
            continue;
        }
        let spec = Json::from_value(&spec);
        let labels = settings.labels(kind, &name, &spec);
        ops.push(create(key, labels, spec, Some(owner.clone())));
    }
    Ok(ops)
}

/// Operations that update a mesh: the mesh and the CA secrets of new builtin backends.
///
/// # Errors
/// Another CA while mTLS is on; the CA of a backend cannot be used or made.
pub async fn update_mesh(world: &World, before: &Resource, put: Put, now: Timestamp) -> Result<Vec<Op>, ManagerError> {
    let name = put.key.name.to_string();
    let (old, new) = (view(&before.spec), view(&put.spec));
    if let (Some(a), Some(b)) = (old.enabled_backend(), new.enabled_backend())
        && a.name != b.name
    {
        let reason = "Changing CA when mTLS is enabled is forbidden. Disable mTLS first and then change the CA";
        return Err(ManagerError::Invalid(vec![Parameter::new("mtls.enabledBackend", reason)]));
    }
    check_backends(world, &name, &new)?;
    let mut ops = vec![Op::Put(put)];
    ops.extend(ca_secrets(world, &name, &new, now).await?);
    Ok(ops)
}

fn view(spec: &Json) -> Mesh {
    serde_json::from_value(spec.value().clone()).unwrap_or_default()
}

fn backends(mesh: &Mesh) -> &[CaBackend] {
    mesh.mtls.as_ref().map_or(&[], |m| m.backends.as_slice())
}

/// Puts of the CA secrets of builtin backends that are missing. The CA is made anew when either half is.
async fn ca_secrets(world: &World, name: &str, mesh: &Mesh, now: Timestamp) -> Result<Vec<Op>, ManagerError> {
    let mut ops = Vec::new();
    for (i, backend) in backends(mesh).iter().enumerate().filter(|(_, b)| b.kind == "builtin") {
        let cert = Key::new(Kind::Secret, name, &builtin_ca_cert_secret(name, &backend.name));
        let key = Key::new(Kind::Secret, name, &builtin_ca_key_secret(name, &backend.name));
        let (has_cert, has_key) = (world.get(&cert), world.get(&key));
        if has_cert.is_some() && has_key.is_some() {
            continue;
        }
        let conf = backend.conf.as_ref().and_then(|c| c.get("caCert"));
        let bits = conf.and_then(|c| c.get("RSAbits")).and_then(Value::as_f64).map_or(0, |b| b as u32);
        let expiry = conf
            .and_then(|c| c.get("expiration"))
            .and_then(Value::as_str)
            .and_then(parse_lifetime)
            .filter(|d| !d.is_zero())
            .unwrap_or(ikada_pki::DEFAULT_CA_EXPIRY);
        let mesh_name = name.to_owned();
        let pair = blocking(move || match ikada_pki::builtin_ca(&mesh_name, bits, expiry, system_time(now)) {
            // What only making it shows to be wrong with the request.
            Err(e @ ikada_pki::Error::Time) => Ok(Err(("expiration", e.to_string()))),
            Err(e @ ikada_pki::Error::RsaBits(_)) => Ok(Err(("RSAbits", e.to_string()))),
            made => made.map(Ok),
        })
        .await?
        .map_err(|(field, reason)| ManagerError::Invalid(vec![Parameter::new(format!("mtls.backends[{i}].conf.caCert.{field}"), reason)]))?;
        let owner = Key::new(Kind::Mesh, "", name);
        for (k, stored, pem) in [(cert, has_cert, pair.cert_pem), (key, has_key, pair.key_pem)] {
            let expect = stored.map_or(ikada_world::Expect::Absent, |r| ikada_world::Expect::Version(r.version));
            let put = Put { owner: Some(owner.clone()), expect, ..Put::new(k, Labels::new(), secrets::spec(pem.as_bytes())) };
            ops.push(Op::Put(put));
        }
    }
    Ok(ops)
}

/// The CA of `provided` backends must be a usable pair.
fn check_backends(world: &World, name: &str, mesh: &Mesh) -> Result<(), ManagerError> {
    if mesh.mtls.as_ref().is_some_and(|m| m.skip_validation) {
        return Ok(());
    }
    let mut found = Vec::new();
    for (i, backend) in backends(mesh).iter().enumerate().filter(|(_, b)| b.kind == "provided") {
        let conf = backend.conf.as_ref();
        let at = |field: &str| format!("mtls.backends[{i}].conf.{field}");
        let mut texts = Vec::new();
        for field in ["cert", "key"] {
            match conf.and_then(|c| c.get(field)) {
                None => found.push(Parameter::new(at(field), "has to be defined")),
                Some(source) => match load(world, name, source) {
                    Ok(text) => texts.push(text),
                    Err((suffix, reason)) => found.push(Parameter::new(format!("{}{suffix}", at(field)), reason)),
                },
            }
        }
        if let [cert, key] = texts.as_slice() {
            found.extend(ikada_pki::validate_provided(cert, key).into_iter().map(|v| Parameter::new(at(&v.field), v.message)));
        }
    }
    if found.is_empty() { Ok(()) } else { Err(ManagerError::Invalid(found)) }
}

/// Text of a data source. Errors are (suffix of the field, reason).
fn load(world: &World, mesh: &str, source: &Value) -> Result<String, (&'static str, String)> {
    let text = |field: &str| source.get(field).and_then(Value::as_str);
    if let Some(secret) = text("secret") {
        if secret.is_empty() {
            return Err((".secret", "cannot be empty".into()));
        }
        let found = world.find(Kind::Secret, mesh, secret).and_then(|r| secrets::data(r));
        let bytes = found.ok_or(("", format!("could not load data: secret {secret:?} does not exist in mesh {mesh:?}")))?;
        return String::from_utf8(bytes).map_err(|_| ("", format!("could not load data: secret {secret:?} is not text")));
    }
    if let Some(inline) = text("inline") {
        if inline.is_empty() {
            return Err((".inline", "cannot be empty".into()));
        }
        let bytes = base64::engine::general_purpose::STANDARD.decode(inline).ok();
        return bytes.and_then(|b| String::from_utf8(b).ok()).ok_or(("", "could not load data: inline data is not base64 of a text".into()));
    }
    if let Some(inline) = text("inlineString") {
        return Ok(inline.to_owned());
    }
    if let Some(file) = text("file") {
        if file.is_empty() {
            return Err((".file", "cannot be empty".into()));
        }
        const REASON: &str = "files of the control plane cannot be read: every node of the cluster needs the same data; use a secret";
        return Err((".file", REASON.into()));
    }
    Err(("", "data source has to be chosen. Available sources: secret, file, inline".into()))
}

/// Kind, name and canonical spec of the policies that a new mesh gets.
pub fn default_policies(mesh: &str, routing: bool) -> Vec<(Kind, String, Value)> {
    let any = json!({"kind": "Mesh"});
    let proxies = |types: &[&str]| json!({"kind": "Mesh", "proxyTypes": types});
    let item = |default: Value| json!([{"targetRef": any, "default": default}]);
    let back_off = json!({"baseInterval": "25ms", "maxInterval": "250ms"});
    let retries = json!({"numRetries": 5, "perTryTimeout": "16s", "backOff": back_off});
    let mut all = vec![
        (
            Kind::MeshTimeout,
            format!("mesh-timeout-all-{mesh}"),
            json!({
                "targetRef": proxies(&["Sidecar"]),
                "from": item(json!({
                    "connectionTimeout": "10s",
                    "idleTimeout": "2h0m0s",
                    "http": {"requestTimeout": "0s", "streamIdleTimeout": "1h0m0s", "maxStreamDuration": "0s"},
                })),
                "to": item(json!({
                    "connectionTimeout": "5s",
                    "idleTimeout": "1h0m0s",
                    "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m0s"},
                })),
            }),
        ),
        (
            Kind::MeshTimeout,
            format!("mesh-gateways-timeout-all-{mesh}"),
            json!({
                "targetRef": proxies(&["Gateway"]),
                "from": item(json!({"idleTimeout": "5m0s", "http": {"streamIdleTimeout": "5s", "requestHeadersTimeout": "500ms"}})),
                "to": item(json!({"idleTimeout": "1h0m0s", "http": {"streamIdleTimeout": "5s"}})),
            }),
        ),
        (
            Kind::MeshCircuitBreaker,
            format!("mesh-circuit-breaker-all-{mesh}"),
            json!({
                "targetRef": any,
                "to": item(json!({"connectionLimits": {
                    "maxConnections": 1024, "maxPendingRequests": 1024, "maxRequests": 1024, "maxRetries": 3,
                }})),
            }),
        ),
        (
            Kind::MeshRetry,
            format!("mesh-retry-all-{mesh}"),
            json!({"targetRef": any, "to": item(json!({"tcp": {"maxConnectAttempt": 5}, "http": retries, "grpc": retries}))}),
        ),
    ];
    if routing {
        let every = json!([{"match": {"kuma.io/service": "*"}}]);
        all.push((Kind::TrafficPermission, format!("allow-all-{mesh}"), json!({"sources": every, "destinations": every})));
        let conf = json!({"loadBalancer": {"roundRobin": {}}, "destination": {"kuma.io/service": "*"}});
        all.push((Kind::TrafficRoute, format!("route-all-{mesh}"), json!({"sources": every, "destinations": every, "conf": conf})));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::Mode;
    use ikada_world::{Command, EntryMeta, Expect};

    const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);

    fn settings() -> Settings {
        Settings {
            mode: Mode::Zone { federated: false },
            zone: "default".into(),
            unsafe_delete: false,
            create_mesh_routing_resources: false,
        }
    }
    fn mesh_put(spec: Value, expect: Expect) -> Put {
        Put { expect, ..Put::new(Key::new(Kind::Mesh, "", "m"), Labels::new(), Json::from_value(&spec)) }
    }
    fn apply(world: &World, ops: Vec<Op>) -> World {
        let index = world.index() + 1;
        let mut id = [0; 16];
        id[0] = index as u8;
        let (next, _, outcome) = world.apply(EntryMeta { index, time: NOW }, &Command { id, ops });
        outcome.unwrap();
        next
    }

    #[tokio::test]
    async fn a_mesh_comes_with_everything_and_takes_it_along() {
        let spec = json!({"mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]}});
        let ops = create_mesh(&settings(), &World::empty(), mesh_put(spec, Expect::Absent), NOW).await.unwrap();
        let world = apply(&World::empty(), ops);
        let names: Vec<_> = world.iter().map(|(_, r)| r.name().to_owned()).collect();
        assert_eq!(names.len(), 8, "{names:?}");
        let cert = world.find(Kind::Secret, "m", "m.ca-builtin-cert-ca").unwrap();
        let key = world.find(Kind::Secret, "m", "m.ca-builtin-key-ca").unwrap();
        let text = |r: &Resource| String::from_utf8(secrets::data(r).unwrap()).unwrap();
        ikada_pki::Ca::from_pem(&text(cert), &text(key)).unwrap();
        assert!(cert.labels.is_empty());
        let policy = world.find(Kind::MeshRetry, "m", "mesh-retry-all-m").unwrap();
        assert_eq!(policy.label("kuma.io/origin"), Some("zone"));
        let gone = apply(&world, vec![Op::Delete { key: Key::new(Kind::Mesh, "", "m"), expect: Expect::Exists }]);
        assert!(gone.is_empty());
    }

    #[tokio::test]
    async fn a_ca_that_cannot_be_made_is_the_requests_fault() {
        for (field, cert) in [("RSAbits", json!({"RSAbits": 16384})), ("expiration", json!({"expiration": "99999999h"}))] {
            let spec = json!({"mtls": {"backends": [{"name": "ca", "type": "builtin", "conf": {"caCert": cert}}]}});
            let e = create_mesh(&settings(), &World::empty(), mesh_put(spec, Expect::Absent), NOW).await.unwrap_err();
            assert!(matches!(&e, ManagerError::Invalid(p) if p[0].field == format!("mtls.backends[0].conf.caCert.{field}")), "{e:?}");
        }
    }

    #[tokio::test]
    async fn skipping_policies_keeps_the_signing_key() {
        let put = mesh_put(json!({"skipCreatingInitialPolicies": ["*"]}), Expect::Absent);
        let ops = create_mesh(&settings(), &World::empty(), put, NOW).await.unwrap();
        let world = apply(&World::empty(), ops);
        assert_eq!(world.len(), 2);
        assert!(world.find(Kind::Secret, "m", "dataplane-token-signing-key-m-1").is_some());
    }

    #[tokio::test]
    async fn the_ca_cannot_change_under_mtls() {
        let spec = |b: &str| json!({"mtls": {"enabledBackend": b, "backends": [{"name": b, "type": "builtin"}]}});
        let before = Resource::new(Key::new(Kind::Mesh, "", "m"), Json::from_value(&spec("a")));
        let e = update_mesh(&World::empty(), &before, mesh_put(spec("b"), Expect::Any), NOW).await.unwrap_err();
        assert!(matches!(e, ManagerError::Invalid(p) if p[0].field == "mtls.enabledBackend"));
        let off = Resource::new(Key::new(Kind::Mesh, "", "m"), Json::default());
        assert_eq!(update_mesh(&World::empty(), &off, mesh_put(spec("b"), Expect::Any), NOW).await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn provided_backends_are_checked() {
        let spec = json!({"mtls": {"backends": [{"name": "a", "type": "provided", "conf": {"cert": {"secret": "nope"}}}]}});
        let e = create_mesh(&settings(), &World::empty(), mesh_put(spec, Expect::Absent), NOW).await.unwrap_err();
        let ManagerError::Invalid(p) = e else { panic!("{e}") };
        let fields: Vec<_> = p.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, ["mtls.backends[0].conf.cert", "mtls.backends[0].conf.key"]);
    }
}
