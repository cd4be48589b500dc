//! A configuration that uses every corner of what is generated, judged by Envoy itself (`envoy --mode validate`).

use crate::common::Filler;
use ikada_envoy::{ProxyContext, ProxyMetadata, ProxySecrets, Settings, config_view, generate, type_urls};
use ikada_model::Kind;
use serde_json::{Value, json};
use std::{path::PathBuf, process::Command};

/// `IKADA_ENVOY`, else `envoy` of the path.
fn envoy() -> Option<PathBuf> {
    let in_path = || std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("envoy")).find(|p| p.is_file());
    let found = std::env::var_os("IKADA_ENVOY").map(PathBuf::from).or_else(in_path);
    if found.is_none() {
        println!("skipped: no Envoy (set IKADA_ENVOY to its binary)");
    }
    found
}

fn world(mode: &str) -> Filler {
    let mut w = Filler::default();
    w.put(&json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Everywhere"},
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin", "mode": mode}]}}));
    let inbound = |port: u32, protocol: &str| {
        json!({"port": port, "servicePort": port + 1000, "name": protocol, "protocol": protocol,
            "tags": {"kuma.io/service": "web", "kuma.io/protocol": protocol, "version": "v1"}})
    };
    let to = |port: u32, section: u32| json!({"port": port, "backendRef": {"kind": "MeshService", "name": "web", "port": section}});
    w.put(&json!({"type": "Dataplane", "mesh": "default", "name": "web", "networking": {"address": "10.0.0.1",
        "inbound": [inbound(80, "http"), inbound(81, "http2"), inbound(82, "grpc"), inbound(83, "tcp"), inbound(84, "tls")],
        "outbound": [to(1080, 80), to(1081, 81), to(1082, 82), to(1083, 83),
            {"port": 1090, "tags": {"kuma.io/service": "web"}}, {"port": 1091, "tags": {"kuma.io/service": "web", "version": "v1"}},
            {"port": 1092, "tags": {"kuma.io/service": "nobody"}}]}}));
    let port = |n: u32, p: &str| json!({"port": n, "targetPort": p, "name": p, "appProtocol": p});
    w.put(&json!({"type": "MeshService", "mesh": "default", "name": "web",
        "spec": {"selector": {"dataplaneTags": {"kuma.io/service": "web"}}, "identities": [{"type": "ServiceTag", "value": "web"}],
            "ports": [port(80, "http"), port(81, "http2"), port(82, "grpc"), port(83, "tcp")]},
        "status": {"vips": [{"ip": "241.0.0.0"}], "addresses": [{"hostname": "web.svc.mesh.local"}], "tls": {"status": "Ready"}}}));
    let mut policy = |kind: &str, spec: Value| w.put(&json!({"type": kind, "mesh": "default", "name": kind.to_lowercase(), "spec": spec}));
    let web = json!({"kind": "MeshService", "name": "web"});
    policy(
        "MeshHTTPRoute",
        json!({"to": [{"targetRef": web, "rules": [
        {"matches": [{"path": {"type": "Exact", "value": "/exact"}, "method": "POST",
            "queryParams": [{"type": "Exact", "name": "q", "value": "1"}, {"type": "RegularExpression", "name": "r", "value": "a.*"}],
            "headers": [{"name": "a", "type": "Present"}, {"name": "b", "type": "Absent"}, {"name": "c", "type": "Prefix", "value": "p"},
                {"name": "d", "type": "RegularExpression", "value": ".*"}]}],
            "default": {"filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "1"}],
                    "add": [{"name": "y", "value": "2"}], "remove": ["z"]}},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "y", "value": "2"}]}},
                {"type": "RequestMirror", "requestMirror": {"percentage": "12.5", "backendRef": {"kind": "MeshService", "name": "web"}}},
                {"type": "URLRewrite", "urlRewrite": {"hostname": "other", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/n"}}}]}},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/old"}}],
            "default": {"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "h", "port": 8443,
                "statusCode": 308, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}]}},
        {"matches": [{"path": {"type": "RegularExpression", "value": "/re/.*"}}],
            "default": {"backendRefs": [{"kind": "MeshService", "name": "web", "port": 80, "weight": 3},
                {"kind": "MeshServiceSubset", "name": "web", "tags": {"version": "v1"}, "weight": 1}]}}]}]}),
    );
    policy(
        "MeshTimeout",
        json!({
        "to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s", "idleTimeout": "0s",
            "http": {"requestTimeout": "2s", "streamIdleTimeout": "3s", "maxStreamDuration": "4s", "maxConnectionDuration": "5s"}}}],
        "rules": [{"default": {"idleTimeout": "9s", "http": {"requestHeadersTimeout": "500ms", "requestTimeout": "8s"}}},
            {"matches": [{"spiffeID": {"type": "Prefix", "value": "spiffe://default/"}}], "default": {"http": {"requestTimeout": "7s"}}},
            {"matches": [{"spiffeID": {"type": "Exact", "value": "spiffe://default/web"}, "sni": {"type": "Exact", "value": "s"}}],
                "default": {"http": {"streamIdleTimeout": "6s"}}}]}),
    );
    policy(
        "MeshRetry",
        json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {
        "tcp": {"maxConnectAttempt": 3},
        "http": {"numRetries": 2, "perTryTimeout": "1s", "retryOn": ["5xx", "GatewayError", "503", "HttpMethodGet"],
            "backOff": {"baseInterval": "1s", "maxInterval": "2s"},
            "rateLimitedBackOff": {"resetHeaders": [{"name": "retry-after", "format": "UnixTimestamp"}], "maxInterval": "3s"},
            "retriableResponseHeaders": [{"name": "r", "type": "Exact", "value": "1"}],
            "hostSelection": [{"predicate": "OmitPreviousHosts"}, {"predicate": "OmitHostsWithTags", "tags": {"version": "v1"}},
                {"predicate": "OmitPreviousPriorities", "updateFrequency": 3}], "hostSelectionMaxAttempts": 4},
        "grpc": {"numRetries": 2, "retryOn": ["Canceled", "Unavailable"], "backOff": {"maxInterval": "2s"}}}}]}),
    );
    policy(
        "MeshCircuitBreaker",
        json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {
        "connectionLimits": {"maxConnections": 1}, "outlierDetection": {"healthyPanicThreshold": "12.5", "interval": "1s",
            "detectors": {"successRate": {"standardDeviationFactor": "1.9"}}}}}],
        "rules": [{"default": {"connectionLimits": {"maxRequests": 2}, "outlierDetection": {"interval": "1s"}}}]}),
    );
    w
}

const BY_TAGS: &str = "tags";

fn permission(w: &mut Filler, language: &str) {
    let spec = if language == BY_TAGS {
        json!({"from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": "Deny"}},
            {"targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "web", "version": "v1"}}, "default": {"action": "Allow"}},
            {"targetRef": {"kind": "MeshSubset", "tags": {"version": "v2"}}, "default": {"action": "AllowWithShadowDeny"}},
            {"targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "bad"}}, "default": {"action": "Deny"}},
            {"targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "worse"}}, "default": {"action": "Deny"}}]})
    } else {
        let id = |t: &str, v: &str| json!({"type": t, "value": v});
        json!({"rules": [{"default": {"deny": [{"spiffeID": id("Exact", "spiffe://a/b")}],
            "allow": [{"spiffeID": id("Prefix", "spiffe://a"), "sni": id("Exact", "s")}, {"sni": id("Exact", "t")}],
            "allowWithShadowDeny": [{"spiffeID": id("Exact", "spiffe://a/c")}]}}]})
    };
    w.put(&json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "p", "spec": spec}));
}

/// A bootstrap with these resources as static ones; endpoints and secrets would come over ADS.
fn bootstrap(xds: &Value) -> Value {
    let all = |t: &str| xds[t].as_object().map(|m| m.values().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut clusters = all(type_urls::CLUSTER);
    clusters.push(json!({"name": "ads", "type": "STATIC", "loadAssignment": {"clusterName": "ads", "endpoints": [{"lbEndpoints": [
        {"endpoint": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 5678}}}}]}]}}));
    json!({
        "node": {"id": "default.web", "cluster": "web"},
        "dynamicResources": {"adsConfig": {"apiType": "GRPC", "transportApiVersion": "V3",
            "grpcServices": [{"envoyGrpc": {"clusterName": "ads"}}]}},
        "staticResources": {"clusters": clusters, "listeners": all(type_urls::LISTENER)},
    })
}

#[test]
fn envoy_accepts_everything() {
    let Some(envoy) = envoy() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (i, (mode, language, features, dns)) in [
        ("STRICT", BY_TAGS, json!(["feature-strict-inbound-ports", "feature-reuse-port"]), 0),
        ("PERMISSIVE", "rules", json!(["feature-unified-resource-naming"]), 0),
        ("STRICT", "rules", json!(["feature-transparent-proxy-in-dataplane-metadata", "feature-strict-inbound-ports"]), 15054),
        ("STRICT", BY_TAGS, json!(["feature-transparent-proxy-in-dataplane-metadata", "feature-embedded-dns"]), 15054),
    ]
    .into_iter()
    .enumerate()
    {
        let mut w = world(mode);
        permission(&mut w, language);
        let world = w.world();
        let dp = world.find(Kind::Dataplane, "default", "web").unwrap();
        let metadata = ProxyMetadata::from_json(&json!({"features": features, "dataplane.dns.port": dns.to_string(), "workdir": "/tmp"}));
        let (settings, secrets) = (Settings::default(), ProxySecrets::dummy());
        let context = ProxyContext {
            world: &world,
            dataplane: dp,
            metadata: &metadata,
            settings: &settings,
            secrets: &secrets,
            include_shadow: false,
        };
        let view = config_view(&generate(&context).unwrap()).unwrap();
        assert!(view["xds"][type_urls::LISTENER].as_object().is_some_and(|l| l.len() >= 9), "variant {i}");
        let file = dir.path().join(format!("{i}.json"));
        std::fs::write(&file, bootstrap(&view["xds"]).to_string()).unwrap();
        let out = Command::new(&envoy).args(["--mode", "validate", "-l", "error", "-c"]).arg(&file).output().unwrap();
        assert!(out.status.success(), "variant {i}: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    }
}
