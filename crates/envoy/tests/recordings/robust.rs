//! Whatever is stored, generation answers; and it answers the same everywhere.

use crate::common::Filler;
use ikada_envoy::{Generated, ProxyContext, ProxyMetadata, ProxySecrets, Settings, Shared, config_view, generate, generate_shared};
use ikada_model::Kind;
use ikada_world::World;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use std::process::Command;

fn run(world: &World, name: &str, metadata: &ProxyMetadata, shared: &Shared) -> Result<Vec<Generated>, ikada_envoy::GenerateError> {
    let dp = world.find(Kind::Dataplane, "default", name).unwrap();
    let (settings, secrets) = (Settings::default(), ProxySecrets::dummy());
    let context = ProxyContext { world, dataplane: dp, metadata, settings: &settings, secrets: &secrets, include_shadow: true };
    generate_shared(&context, shared)
}

/// Texts that are, or are not, what their place asks for.
fn word() -> impl Strategy<Value = Value> {
    select(vec![
        json!("web"),
        json!("db"),
        json!(""),
        json!("*"),
        json!("1h0m0s"),
        json!("-1s"),
        json!("99999999999h"),
        json!("127.0.0.1"),
        json!("::1"),
        json!("no such host"),
        json!("http"),
        json!("grpc"),
        json!("kafka"),
        json!("tcp"),
        json!("ü_;{}\u{0}"),
        json!("5xx"),
        json!("/a/"),
        json!("kri_mhttpr_default___r_"),
        json!(0),
        json!(1),
        json!(49151),
        json!(80),
        json!(4294967295u64),
        json!(18446744073709551615u64),
        json!(-1),
        json!(1.5),
        json!("200%"),
        json!(null),
        json!(true),
        json!([]),
        json!({}),
    ])
}

const FIELDS: [&str; 40] = [
    "connectionTimeout",
    "idleTimeout",
    "http",
    "requestTimeout",
    "streamIdleTimeout",
    "maxStreamDuration",
    "requestHeadersTimeout",
    "action",
    "allow",
    "deny",
    "spiffeID",
    "sni",
    "type",
    "value",
    "tcp",
    "maxConnectAttempt",
    "grpc",
    "numRetries",
    "retryOn",
    "backOff",
    "baseInterval",
    "rateLimitedBackOff",
    "resetHeaders",
    "hostSelection",
    "predicate",
    "connectionLimits",
    "maxConnections",
    "outlierDetection",
    "detectors",
    "totalFailures",
    "consecutive",
    "successRate",
    "standardDeviationFactor",
    "rules",
    "matches",
    "path",
    "default",
    "backendRefs",
    "filters",
    "name",
];

fn odd() -> impl Strategy<Value = Value> {
    word().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::vec((select(&FIELDS[..]), inner), 0..4)
                .prop_map(|f| Value::Object(f.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

fn address() -> impl Strategy<Value = &'static str> {
    select(vec!["127.0.0.1", "10.0.0.1", "::1", "", "no such host", "host.known"])
}

fn port() -> impl Strategy<Value = u64> {
    select(vec![0u64, 1, 80, 8080, 49151, 65535, 65536, 4294967295])
}

fn tags() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(
        select(vec!["kuma.io/service", "kuma.io/protocol", "kuma.io/zone", "version"]),
        select(vec!["web", "db", "http", "grpc", "kafka", "", "*", "west"]),
        0..4,
    )
    .prop_map(|t| json!(t))
}

fn dataplane(name: &'static str) -> impl Strategy<Value = Value> {
    let inbound = (port(), port(), address(), address(), tags(), select(vec!["", "http", "in"]), select(vec!["", "http", "tcp", "odd"]))
        .prop_map(|(port, service_port, address, service_address, tags, name, protocol)| {
            json!({"port": port, "servicePort": service_port, "address": address, "serviceAddress": service_address, "tags": tags,
                "name": name, "protocol": protocol})
        });
    let outbound = (address(), port(), tags(), prop::option::of((select(vec!["MeshService", "MeshExternalService", "Nothing"]), port())))
        .prop_map(|(address, port, tags, backend)| match backend {
            None => json!({"address": address, "port": port, "tags": tags}),
            Some((kind, p)) => json!({"address": address, "port": port, "backendRef": {"kind": kind, "name": "web", "port": p}}),
        });
    let transparent = prop::option::of((port(), port(), select(vec!["", "IPv4", "DualStack"]), prop::option::of(tags())));
    (address(), prop::collection::vec(inbound, 0..4), prop::collection::vec(outbound, 0..4), transparent).prop_map(
        move |(address, inbound, outbound, transparent)| {
            let mut n = json!({"address": address, "inbound": inbound, "outbound": outbound});
            if let Some((i, o, family, labels)) = transparent {
                n["transparentProxying"] = json!({"redirectPortInbound": i, "redirectPortOutbound": o, "ipFamilyMode": family});
                if let Some(labels) = labels {
                    n["transparentProxying"]["reachableBackends"] = json!({"refs": [{"kind": "MeshService", "labels": labels}]});
                }
            }
            json!({"type": "Dataplane", "mesh": "default", "name": name, "networking": n})
        },
    )
}

fn policy() -> impl Strategy<Value = Value> {
    let kinds = vec!["MeshTimeout", "MeshRetry", "MeshCircuitBreaker", "MeshTrafficPermission", "MeshHTTPRoute"];
    let target = select(vec![json!({"kind": "Mesh"}), json!({"kind": "MeshService", "name": "web"}), json!({"kind": "MeshSubset"})]);
    (select(kinds), target, odd(), odd(), 0..100u8).prop_map(|(kind, target, conf, second, n)| {
        let mut item = json!({"targetRef": target, "default": conf});
        if kind == "MeshHTTPRoute" {
            item = json!({"targetRef": target, "rules": [{"matches": [conf], "default": second}, {"matches": [], "default": conf}]});
        }
        json!({"type": kind, "mesh": "default", "name": format!("p{n}"),
            "spec": {"targetRef": {"kind": "Mesh"}, "to": [item], "from": [item], "rules": [{"default": second, "matches": [conf]}]}})
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// No panic; the same twice, with and without sharing; and everything that comes out has a JSON form.
    #[test]
    fn anything_stored_is_answered(
        web in dataplane("web"), db in dataplane("db"), policies in prop::collection::vec(policy(), 0..6),
        mode in select(vec!["Exclusive", "Everywhere", "Disabled", "ReachableBackends"]),
        tls in select(vec![json!(null), json!("STRICT"), json!("PERMISSIVE")]),
        features in prop::sample::subsequence(vec!["feature-unified-resource-naming", "feature-embedded-dns", "feature-strict-inbound-ports",
            "feature-readiness-unix-socket", "feature-transparent-proxy-in-dataplane-metadata"], 0..5),
        target in select(vec![json!(80), json!("http"), json!(null), json!("in")]), dns in select(vec![0, 15054]),
    ) {
        let mut w = Filler::default();
        let mut mesh = json!({"type": "Mesh", "name": "default", "meshServices": {"mode": mode}});
        if tls.is_string() {
            mesh["mtls"] = json!({"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin", "mode": tls}]});
        }
        w.put(&mesh);
        for body in [&web, &db].into_iter().chain(&policies) {
            w.put_raw(body);
        }
        w.put(&json!({"type": "MeshService", "mesh": "default", "name": "web",
            "spec": {"selector": {"dataplaneTags": {"kuma.io/service": "web"}},
                "ports": [{"port": 80, "targetPort": target, "appProtocol": "http"}, {"port": 8080, "name": "odd", "appProtocol": "kafka"}]},
            "status": {"vips": [{"ip": "241.0.0.1"}, {"ip": "not an ip"}], "addresses": [{"hostname": "web.mesh.local"}]}}));
        let world = w.world();
        let metadata = ProxyMetadata::from_json(&json!({"features": features, "dataplane.admin.port": "9901",
            "dataplane.readinessReporter.port": 9902.0, "dataplane.dns.port": dns.to_string(), "workdir": "/w/"}));
        let shared = Shared::default();
        for name in ["web", "db"] {
            let first = run(&world, name, &metadata, &Shared::default());
            prop_assert_eq!(&first, &run(&world, name, &metadata, &shared));
            if let Ok(resources) = first {
                prop_assert!(config_view(&resources).is_ok());
            }
        }
    }
}

#[test]
fn the_same_in_another_process() {
    let mut w = Filler::default();
    w.put(&json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]}}));
    let many: serde_json::Map<String, Value> = (0..30).map(|i| (format!("tag-{i}"), format!("v{i}").into())).collect();
    let mut tags = many.clone();
    tags.insert("kuma.io/service".into(), "web".into());
    w.put(&json!({"type": "Dataplane", "mesh": "default", "name": "web", "labels": many, "networking": {"address": "10.0.0.1",
        "inbound": [{"port": 80, "tags": tags, "protocol": "http"}],
        "outbound": [{"port": 81, "backendRef": {"kind": "MeshService", "name": "web", "port": 80}}, {"port": 82, "tags": tags}]}}));
    w.put(&json!({"type": "MeshService", "mesh": "default", "name": "web", "spec": {
        "selector": {"dataplaneTags": {"kuma.io/service": "web"}}, "ports": [{"port": 80, "targetPort": 80, "appProtocol": "http"}]}}));
    let world = w.world();
    let dp = world.find(Kind::Dataplane, "default", "web").unwrap();
    let metadata = ProxyMetadata::from_json(&json!({"dataplane.admin.port": "9901", "dataplane.readinessReporter.port": "9902"}));
    let (settings, secrets) = (Settings::default(), ProxySecrets::dummy());
    let context =
        ProxyContext { world: &world, dataplane: dp, metadata: &metadata, settings: &settings, secrets: &secrets, include_shadow: false };
    let all = generate(&context).unwrap();
    assert!(all.len() >= 9, "{}", all.len());
    let versions: Vec<String> = all.iter().map(|g| format!("{} {} {:016x}", g.type_url, g.name, g.version)).collect();
    const CHILD: &str = "IKADA_TEST_PRINT_VERSIONS";
    if std::env::var_os(CHILD).is_some() {
        println!("versions: {}", versions.join(";"));
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "robust::the_same_in_another_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    let line = text.lines().find_map(|l| l.split_once("versions: ").map(|(_, v)| v.to_owned()));
    assert_eq!(line.as_deref(), Some(versions.join(";").as_str()), "{text}");
}

/// What restricts and cannot be read or found stops generation: to leave it out would open what it closes.
#[test]
fn nothing_is_generated_without_what_restricts() {
    let answer = |enabled: &str, permission: &Value| {
        let mut w = Filler::default();
        w.put_raw(&json!({"type": "Mesh", "name": "default",
            "mtls": {"enabledBackend": enabled, "backends": [{"name": "ca", "type": "builtin"}]}}));
        w.put(&json!({"type": "Dataplane", "mesh": "default", "name": "web", "networking": {"address": "127.0.0.1",
            "inbound": [{"port": 80, "servicePort": 8080, "tags": {"kuma.io/service": "web"}}]}}));
        w.put_raw(permission);
        run(&w.world(), "web", &ProxyMetadata::from_json(&json!({})), &Shared::default()).map(drop).map_err(|e| e.to_string())
    };
    let permission = |deny: &str| {
        json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "p",
            "spec": {"rules": [{"default": {}, "matches": [{"spiffeID": {"type": deny, "value": "spiffe://default/db"}}]}]}})
    };
    assert_eq!(answer("ca", &permission("Exact")), Ok(()));
    assert!(answer("ca", &permission("Suffix")).unwrap_err().contains("its spec cannot be read"));
    assert_eq!(answer("", &permission("Suffix")), Ok(()), "without mTLS permissions say nothing");
    assert!(answer("gone", &permission("Exact")).unwrap_err().contains("mtls.enabledBackend \"gone\" is none of mtls.backends"));
}
