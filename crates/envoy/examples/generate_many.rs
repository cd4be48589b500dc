//! How long generation takes: `cargo run --release -p ikada-envoy --example generate_many [services] [instances] [outbounds]`.
//!
//! Makes a mesh of `services` × `instances` dataplanes with `outbounds` outbounds each, the default policies, and generates every proxy
//! once, sharing endpoints; prints the rate.

use ikada_envoy::{ProxyContext, ProxyMetadata, ProxySecrets, Settings, Shared, generate_shared};
use ikada_model::{Key, Kind, rest};
use ikada_world::{Command, EntryMeta, Op, Put, World};
use serde_json::{Value, json};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let mut next = |default| args.next().unwrap_or(Ok(default));
    let (services, instances, outbounds) = (next(100)?, next(10)?, next(10)?);
    let mut ops = Vec::new();
    let mut put = |body: Value| -> Result<(), String> {
        let r = rest::from_value_verbatim(&body)?;
        let status = (!r.status.is_empty()).then(|| r.status.clone());
        ops.push(Op::Put(Put { status, ..Put::new(r.key, r.labels, r.spec) }));
        Ok(())
    };
    put(json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]}}))?;
    let any = json!({"kind": "Mesh"});
    for (kind, conf) in [
        (
            "MeshTimeout",
            json!({"connectionTimeout": "5s", "idleTimeout": "1h", "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m"}}),
        ),
        (
            "MeshRetry",
            json!({"http": {"numRetries": 5, "perTryTimeout": "16s", "backOff": {"baseInterval": "25ms", "maxInterval": "250ms"}}}),
        ),
        ("MeshCircuitBreaker", json!({"connectionLimits": {"maxConnections": 1024, "maxRetries": 3}})),
    ] {
        put(json!({"type": kind, "mesh": "default", "name": kind.to_lowercase(), "spec": {"to": [{"targetRef": any, "default": conf}]}}))?;
    }
    put(json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "p",
        "spec": {"from": [{"targetRef": any, "default": {"action": "Allow"}}]}}))?;
    let mut names = Vec::new();
    for s in 0..services {
        put(json!({"type": "MeshService", "mesh": "default", "name": format!("s{s}"), "spec": {
            "selector": {"dataplaneTags": {"kuma.io/service": format!("s{s}")}}, "identities": [{"type": "ServiceTag", "value": format!("s{s}")}],
            "ports": [{"port": 80, "targetPort": 80, "appProtocol": "http"}]}}))?;
        for i in 0..instances {
            let name = format!("s{s}-{i}");
            let to = |o: usize| json!({"port": 1000 + o, "backendRef": {"kind": "MeshService", "name": format!("s{}", (s + o) % services), "port": 80}});
            put(json!({"type": "Dataplane", "mesh": "default", "name": name, "labels": {"kuma.io/zone": "default"}, "networking": {
                "address": format!("10.{}.{}.{}", s / 250, s % 250, i % 250),
                "inbound": [{"port": 80, "servicePort": 8080, "protocol": "http", "tags": {"kuma.io/service": format!("s{s}"), "kuma.io/zone": "default"}}],
                "outbound": (0..outbounds).map(to).collect::<Vec<_>>()}}))?;
            names.push(name);
        }
    }
    let meta = EntryMeta { index: 1, time: ikada_model::Timestamp::from_millis(1) };
    let (world, _, outcome) = World::empty().apply(meta, &Command { id: [1; 16], ops });
    outcome.map_err(|e| e.to_string())?;
    let metadata = ProxyMetadata::from_json(&json!({"dataplane.admin.port": "9901", "dataplane.readinessReporter.port": "9902"}));
    let (settings, secrets, shared) = (Settings::default(), ProxySecrets::dummy(), Shared::default());
    let (mut resources, mut bytes) = (0, 0);
    let mut once = |shared: &Shared, names: &[String]| -> Result<f64, Box<dyn std::error::Error>> {
        let start = Instant::now();
        for name in names {
            let key = Key::new(Kind::Dataplane, "default", name);
            let dataplane = world.get(&key).ok_or("a dataplane is missing")?;
            let context = ProxyContext {
                world: &world,
                dataplane,
                metadata: &metadata,
                settings: &settings,
                secrets: &secrets,
                include_shadow: false,
            };
            let all = generate_shared(&context, shared)?;
            resources += all.len();
            bytes += all.iter().map(|g| g.bytes.len()).sum::<usize>();
        }
        Ok(start.elapsed().as_secs_f64())
    };
    // Descriptors are read once per process.
    once(&shared, names.get(..1).unwrap_or_default())?;
    let seconds = once(&shared, &names)?;
    println!(
        "{} proxies, {resources} resources, {:.1} MB in {seconds:.3} s: {:.0} proxies/s, {:.0} µs each",
        names.len(),
        bytes as f64 / 1e6,
        names.len() as f64 / seconds,
        seconds * 1e6 / names.len() as f64
    );
    Ok(())
}
