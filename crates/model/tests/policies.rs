//! Rules of the policy kinds that the conformance corpus does not reach, their warnings, and the stored form of what a stock control
//! plane was recorded with.

use ikada_model::{
    Kind, Labels,
    decode::{self, DecodeError},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a PUT of `spec` finds, as `field: message` lines, sorted.
fn found(kind: Kind, spec: Value) -> Vec<String> {
    let body = json!({"type": kind.name(), "mesh": "default", "name": "x", "spec": spec});
    let mut all = match decode::decode(kind, &body) {
        Ok(d) => decode::validate(kind, "default", "x", &Labels::new(), d.spec.value()),
        Err(DecodeError::Invalid(v)) => v,
        Err(e) => panic!("{spec}: {e}"),
    };
    all.sort();
    all.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check(kind: Kind, spec: Value, expected: &[&str]) {
    assert_eq!(found(kind, spec.clone()), expected, "{spec}");
}

fn warnings(kind: Kind, spec: Value) -> Vec<String> {
    decode::warnings(kind, "default", "x", &Labels::new(), &spec)
}

fn mesh() -> Value {
    json!({"kind": "Mesh"})
}

#[test]
fn timeout() {
    let to = |conf: Value| json!({"to": [{"targetRef": mesh(), "default": conf}]});
    check(
        Kind::MeshTimeout,
        to(json!({"connectionTimeout": "0s", "idleTimeout": "-1s", "http": {"requestTimeout": "-1s", "requestHeadersTimeout": "-1s"}})),
        &[
            "spec.to[0].default.connectionTimeout: must be greater than zero when defined",
            "spec.to[0].default.http.requestHeadersTimeout: must not be negative when defined",
            "spec.to[0].default.http.requestTimeout: must not be negative when defined",
            "spec.to[0].default.idleTimeout: must not be negative when defined",
        ],
    );
    check(
        Kind::MeshTimeout,
        to(json!({"http": {"requestHeadersTimeout": "1s"}})),
        &["spec.to[0].default.http: at least one timeout in this section should be configured"],
    );
    check(Kind::MeshTimeout, to(json!({"idleTimeout": "0s"})), &[]);
    check(Kind::MeshTimeout, json!({}), &["spec: at least one of 'from', 'to' or 'rules' has to be defined"]);
    check(
        Kind::MeshTimeout,
        json!({"rules": [{"matches": [{"spiffeID": {"type": "Prefix", "value": "spiffe://a/"}}], "default": {"idleTimeout": "1s"}}]}),
        &[
            "spec.rules[0].default.idleTimeout: can't be specified when matches contain spiffeID because this field cannot be \
             conditioned on source identity",
            "spec.rules[0].matches[0].spiffeID: must be a valid Spiffe ID: path cannot have a trailing slash",
        ],
    );
    let sni = json!([{"sni": {"type": "Exact", "value": "a.b"}}]);
    check(Kind::MeshTimeout, json!({"rules": [{"matches": sni, "default": {"idleTimeout": "1s"}}]}), &[]);
}

#[test]
fn traffic_permission() {
    let all = json!([{"targetRef": mesh(), "default": {"action": "Allow"}}]);
    check(Kind::MeshTrafficPermission, json!({"from": [{"targetRef": mesh()}]}), &["spec.from[0].default.action: must be defined"]);
    check(
        Kind::MeshTrafficPermission,
        json!({"from": all, "rules": [{"default": {"allow": []}}]}),
        &[
            "spec: field 'from' must be empty when 'rules' is defined",
            "spec.rules[0]: at least one of 'allow', 'allowWithShadowDeny', 'deny' has to be defined",
        ],
    );
    check(
        Kind::MeshTrafficPermission,
        json!({"targetRef": {"kind": "MeshGateway", "name": "g"}, "from": all}),
        &["spec.targetRef.kind: value 'MeshGateway' is not supported"],
    );
    check(
        Kind::MeshTrafficPermission,
        json!({"from": [{"targetRef": mesh(), "default": {"action": "ALLOW"}}]}),
        &["spec.from[0].default.action: in body should be one of [Allow Deny AllowWithShadowDeny]"],
    );
}

#[test]
fn circuit_breaker() {
    let to = |conf: Value| json!({"to": [{"targetRef": mesh(), "default": conf}]});
    check(
        Kind::MeshCircuitBreaker,
        json!({"rules": [{"default": {}}]}),
        &["spec.from[0].default: at least one of: 'connectionLimits' or 'outlierDetection' should be configured"],
    );
    let detectors = json!({"failurePercentage": {"threshold": 101}, "successRate": {"standardDeviationFactor": "0"}});
    check(
        Kind::MeshCircuitBreaker,
        to(json!({"outlierDetection": {"maxEjectionPercent": 101, "healthyPanicThreshold": "100.5", "detectors": detectors}})),
        &[
            "spec.to[0].default.outlierDetection.detectors.failurePercentage.threshold: must be in inclusive range [0, 100]",
            "spec.to[0].default.outlierDetection.detectors.successRate.standardDeviationFactor: must be greater than 0",
            "spec.to[0].default.outlierDetection.healthyPanicThreshold: must be in inclusive range [0.0, 100.0]",
            "spec.to[0].default.outlierDetection.maxEjectionPercent: must be in inclusive range [0, 100]",
        ],
    );
    check(
        Kind::MeshCircuitBreaker,
        to(json!({"outlierDetection": {"healthyPanicThreshold": "x", "detectors": {"totalFailures": {}}}})),
        &["spec.to[0].default.outlierDetection.healthyPanicThreshold: string must be a valid number"],
    );
    let body = json!({"type": "MeshCircuitBreaker", "name": "x", "spec": to(json!({"connectionLimits": {"maxRetries": -1}}))});
    let error = decode::decode(Kind::MeshCircuitBreaker, &body).unwrap_err();
    let text = r#"invalid MeshCircuitBreaker object: "json: cannot unmarshal number -1 into Go value of type uint32""#;
    assert_eq!(error, DecodeError::Malformed(text.to_owned()));
}

#[test]
fn retry() {
    let to = |conf: Value| json!({"to": [{"targetRef": mesh(), "default": conf}]});
    check(Kind::MeshRetry, to(json!({"http": {"hostSelectionMaxAttempts": 3}})), &["spec.to[0].default.conf.http: must not be empty"]);
    let reset = json!([{"name": "x-reset", "format": "Seconds"}]);
    check(
        Kind::MeshRetry,
        to(json!({"grpc": {
            "perTryTimeout": "-1s",
            "backOff": {"baseInterval": "0s"},
            "rateLimitedBackOff": {"resetHeaders": reset, "maxInterval": "0s"},
        }})),
        &[
            "spec.to[0].default.conf.grpc.backOff.baseInterval: must be greater than zero when defined",
            "spec.to[0].default.conf.grpc.perTryTimeout: must not be negative when defined",
            "spec.to[0].default.conf.grpc.rateLimitedBackOff.maxInterval: must be defined and greater than zero",
        ],
    );
    check(
        Kind::MeshRetry,
        to(json!({"http": {"retryOn": ["5xx", "HttpMethodGet", "503", "306", "5XX"]}})),
        &["spec.to[0].default.conf.http.retryOn[3]: unknown item '306'", "spec.to[0].default.conf.http.retryOn[4]: unknown item '5XX'"],
    );
    check(
        Kind::MeshRetry,
        to(json!({"http": {"retriableRequestHeaders": [{"name": "X-Upper"}], "numRetries": 1}})),
        &[r"spec.to[0].default.http.retriableRequestHeaders[0].name: in body should match '^[a-z0-9!#$%&'*+\-.^_\x60|~]+$'"],
    );
    check(Kind::MeshRetry, json!({"targetRef": {"kind": "MeshHTTPRoute", "name": "r"}, "to": []}), &[]);
}

/// A MeshHTTPRoute with one rule.
fn route(top: Value, target: Value, rule: Value) -> Value {
    json!({"targetRef": top, "to": [{"targetRef": target, "rules": [rule]}]})
}

#[test]
fn http_route() {
    let service = || json!({"kind": "MeshService", "name": "backend"});
    let prefix = || json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
    let filters = |filters: Value| route(mesh(), service(), json!({"matches": prefix(), "default": {"filters": filters}}));
    let at = "spec.to[0].rules[0].default.filters";
    for (kind, object) in [
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("RequestRedirect", "requestRedirect"),
        ("URLRewrite", "urlRewrite"),
        ("RequestMirror", "requestMirror"),
    ] {
        check(Kind::MeshHTTPRoute, filters(json!([{"type": kind}])), &[&format!("{at}[0].{object}: must be defined")]);
    }
    check(
        Kind::MeshHTTPRoute,
        filters(json!([
            {"type": "RequestRedirect", "requestRedirect": {"hostname": "10.0.0.1", "path": {"type": "ReplaceFullPath"}}},
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch"}}},
            {"type": "RequestMirror", "requestMirror": {"percentage": "x", "backendRef": {"kind": "MeshExternalService", "name": "e"}}},
        ])),
        &[
            &format!("{at}[0].requestRedirect.hostname: cannot be an IP address"),
            &format!("{at}[0].requestRedirect.path.replaceFullPath: must be defined"),
            &format!("{at}[1].urlRewrite.path.replacePrefixMatch: must be defined"),
            &format!("{at}[2].requestMirror.backendRef.kind: value 'MeshExternalService' is not supported"),
            &format!("{at}[2].requestMirror.percentage: string must be a valid number"),
        ],
    );
    check(
        Kind::MeshHTTPRoute,
        filters(json!([{"type": "RequestRedirect", "requestRedirect": {"hostname": "A", "port": 0, "scheme": "ftp", "statusCode": 304}}])),
        &[
            &format!(
                "{at}[0].requestRedirect.hostname: in body should match \
                 '^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'"
            ),
            &format!("{at}[0].requestRedirect.port: in body should be greater than or equal to 1"),
            &format!("{at}[0].requestRedirect.scheme: in body should be one of [http https]"),
            &format!("{at}[0].requestRedirect.statusCode: in body should be one of [301 302 303 307 308]"),
        ],
    );
    let gateway = || json!({"kind": "MeshGateway", "name": "edge", "tags": {"port": "http/8080"}});
    let rewrite = json!([{"type": "URLRewrite", "urlRewrite": {"hostname": "a.b", "hostToBackendHostname": true}}]);
    check(
        Kind::MeshHTTPRoute,
        route(gateway(), mesh(), json!({"matches": prefix(), "default": {"filters": rewrite}})),
        &[
            "spec.to[0].rules[0].default.backendRefs: must not be empty",
            &format!("{at}[0].urlRewrite.hostToBackendHostname: cannot be set together with hostname"),
        ],
    );
    let redirect = json!([{"type": "RequestRedirect", "requestRedirect": {}}]);
    check(Kind::MeshHTTPRoute, route(gateway(), mesh(), json!({"matches": prefix(), "default": {"filters": redirect}})), &[]);
    check(
        Kind::MeshHTTPRoute,
        route(
            mesh(),
            service(),
            json!({"matches": [{"headers": [{"name": "a", "type": "Present", "value": "x"}, {"name": "b", "type": "Absent"}]}],
            "default": {"backendRefs": [
                {"kind": "MeshService", "name": "kuma.io/unresolved-backend"},
                {"kind": "MeshService", "name": "a/b"},
            ]}}),
        ),
        &[
            "spec.to[0].rules[0].default.backendRefs[1].name: invalid characters: must consist of lower case alphanumeric \
             characters, '-', '.' and '_'.",
            "spec.to[0].rules[0].matches[0].headers[0].value: must not be defined",
        ],
    );
    check(
        Kind::MeshHTTPRoute,
        route(mesh(), service(), json!({"matches": [], "default": {}})),
        &["spec.to[0].rules[0].matches: in body should have at least 1 items"],
    );
}

#[test]
fn defaults_are_stored() {
    let rule = json!({
        "matches": [{"headers": [{"name": "a", "value": "x"}]}],
        "default": {
            "filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 80.0}}],
            "backendRefs": [{"kind": "MeshService", "name": "b"}],
        },
    });
    let spec = route(mesh(), json!({"kind": "MeshService", "name": "backend"}), rule);
    let decoded = decode::decode(Kind::MeshHTTPRoute, &json!({"type": "MeshHTTPRoute", "name": "x", "spec": spec})).unwrap();
    let rule = &decoded.spec.value()["to"][0]["rules"][0];
    assert_eq!(rule["matches"][0]["headers"], json!([{"type": "Exact", "name": "a", "value": "x"}]));
    assert_eq!(rule["default"]["filters"][0]["requestRedirect"], json!({"port": 80, "statusCode": 302}));
    assert_eq!(rule["default"]["backendRefs"], json!([{"kind": "MeshService", "name": "b", "weight": 1}]));
    assert_eq!(decoded.mesh.as_deref(), Some("default"));

    let spec = json!({"ports": [{"port": 80, "targetPort": "http"}]});
    let decoded =
        decode::decode(Kind::MeshService, &json!({"type": "MeshService", "name": "x", "spec": spec, "status": {"vips": 1}})).unwrap();
    assert_eq!(
        decoded.spec.value(),
        &json!({"state": "Unavailable", "selector": {}, "ports": [{"port": 80, "targetPort": "http", "appProtocol": "tcp"}]})
    );
}

#[test]
fn roles_narrow_the_top_level() {
    let spec = json!({"targetRef": {"kind": "MeshGateway", "name": "g"}, "to": [{"targetRef": mesh(), "default": {"idleTimeout": "1s"}}]});
    let count = |role: &str| {
        let labels = [("kuma.io/policy-role".to_owned(), role.to_owned())].into_iter().collect();
        decode::validate(Kind::MeshTimeout, "default", "x", &labels, &spec).len()
    };
    assert_eq!((count("system"), count("consumer")), (0, 1));
}

#[test]
fn deprecations() {
    let conf = json!({"idleTimeout": "1s"});
    let spec = json!({"targetRef": {"kind": "MeshSubset"}, "from": [{"targetRef": mesh(), "default": conf}]});
    assert_eq!(
        warnings(Kind::MeshTimeout, spec),
        [
            "MeshSubset value for 'targetRef.kind' is deprecated, use Dataplane with labels instead",
            "'from' field is deprecated, use 'rules' instead",
        ]
    );
    assert_eq!(
        warnings(Kind::MeshRetry, json!({"targetRef": {"kind": "MeshHTTPRoute", "name": "r"}, "to": []})),
        ["MeshHTTPRoute value for 'targetRef.kind' is deprecated, use MeshHTTPRoute in spec.to[].targetRef"]
    );
    let from = json!([{"targetRef": {"kind": "MeshService", "name": "a"}, "default": {"action": "Allow"}}]);
    assert_eq!(
        warnings(Kind::MeshTrafficPermission, json!({"from": from})),
        [
            "'from' field is deprecated and will be removed in 3.0, use 'rules' with MeshIdentity (spiffeId) instead",
            "MeshService value for 'from[].targetRef.kind' is deprecated, use MeshSubset with 'kuma.io/service' instead",
        ]
    );
    assert_eq!(warnings(Kind::MeshHTTPRoute, json!({"targetRef": {"kind": "Dataplane"}, "to": []})), Vec::<String>::new());
}

fn live() -> Option<PathBuf> {
    let dir = std::env::var_os("IKADA_LIVE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/live"), PathBuf::from)
        .join("01-defaults/rest");
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "the recordings are missing at {}", dir.display());
    println!("skipped: no recordings at {} (set IKADA_LIVE_DIR)", dir.display());
    None
}

/// What a stock control plane stores is valid here and already canonical.
#[test]
fn recorded_resources_are_canonical() {
    let Some(dir) = live() else { return };
    let mut count = 0;
    for list in ["meshtimeouts", "meshcircuitbreakers", "meshretries", "meshtrafficpermissions", "meshservices"] {
        let text = fs::read_to_string(dir.join(list).with_extension("txt")).unwrap();
        let json = text.split_once('\n').map_or("", |(_, rest)| rest);
        let list: Value = serde_json::from_str(json).unwrap();
        for item in list["items"].as_array().unwrap() {
            let kind = Kind::by_name(item["type"].as_str().unwrap()).unwrap();
            let decoded = decode::decode(kind, item).unwrap();
            assert_eq!(decoded.spec.value(), &item["spec"]);
            assert_eq!(decode::validate(kind, "default", &decoded.name, &decoded.labels, decoded.spec.value()), []);
            count += 1;
        }
    }
    println!("{count} recorded resources");
    assert!(count >= 7, "only {count} recorded resources");
}
