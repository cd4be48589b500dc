//! What clients send, well-meaning and not.

use base64::{Engine, engine::general_purpose::STANDARD};
use crate::common::{App, LOCAL, REMOTE};
use ikada_api::ApiOptions;
use ikada_model::{Json, Key, Kind, Labels, Resource};
use ikada_world::{ProposeError, Replicator};
use serde_json::{Value, json};
use std::sync::Arc;

fn secret(name: &str) -> Value {
    json!({"type": "Secret", "mesh": "default", "name": name, "data": "dGVzdA=="})
}

#[tokio::test]
async fn unknown_paths_methods_and_types_get_the_texts_of_the_framework() {
    let app = App::started(ApiOptions::default()).await;
    let a = app.get("/nothing").await;
    assert_eq!((a.status, a.text.as_str(), a.header("content-type")), (404, "404: Page Not Found", "text/plain; charset=utf-8"));
    let a = app.send("POST", "/meshes/default", Some(b"{}")).await;
    assert_eq!((a.status, a.text.as_str(), a.header("allow")), (405, "405: Method Not Allowed", "GET, PUT, DELETE"));
    for content_type in ["text/plain", "application/x-yaml", "multipart/form-data; boundary=x", ""] {
        let a = app.request("PUT", "/meshes/default", &[("content-type", content_type)], b"{}".to_vec(), LOCAL).await;
        assert_eq!((a.status, a.text.as_str()), (415, "415: Unsupported Media Type"), "{content_type}");
    }
    let body = secret("s").to_string().into_bytes();
    let a = app.request("PUT", "/meshes/default/secrets/s", &[("content-type", "application/json; charset=utf-8")], body, LOCAL).await;
    assert_eq!((a.status, a.text.as_str(), a.header("content-type")), (201, "{}\n", "application/json"), "{}", a.text);
}

#[tokio::test]
async fn odd_paths() {
    let app = App::started(ApiOptions::default()).await;
    for (path, status) in [
        ("/meshes/default/", 200),
        ("/meshes/%64efault", 200),
        ("/meshes/default%2Fdataplanes", 404),
        ("/meshes/%ff%fe", 404),
        ("/meshes/%zz", 404),
        ("/meshes/%", 404),
        ("//meshes//default", 404),
        ("/meshes/../meshes/default", 404),
        ("/meshes/%E7%AD%8F", 404),
        ("/meshes/default/dataplanes/%F0%9F%90%8D", 404),
        ("/_kri/%00", 400),
        ("/_kri/kri_m____default_", 200),
        ("/meshes/default?format=universal", 200),
        ("/meshes/default?format=k8s", 501),
        ("/meshes/default?format=x", 400),
        ("/meshes/default/secrets?size=%ZZ", 400),
        ("/meshes?filter[", 400),
        ("/meshes?&&==&", 200),
        ("/meshes/default/dataplanes/d/_layout", 404),
        ("/meshes/default/zones/d/_hostnames", 400),
        ("/meshes/nope/meshservices/d/_hostnames", 404),
        ("/meshes/default/meshgateways/d/_rules", 501),
    ] {
        let a = app.get(path).await;
        assert_eq!(a.status, status, "{path}: {}", a.text);
    }
    let long = format!("/meshes/{}", "a".repeat(20_000));
    assert_eq!(app.get(&long).await.status, 404);
    let body = json!({"type": "Secret", "mesh": "default", "name": "筏", "data": ""});
    let a = app.put("/meshes/default/secrets/%E7%AD%8F", &body).await;
    assert_eq!(a.status, 400, "{}", a.text);
}

#[tokio::test]
async fn odd_bodies() {
    let app = App::started(ApiOptions::default()).await;
    let path = "/meshes/default/secrets/s";
    for body in [
        b"" as &[u8],
        b"{",
        b"null",
        b"[]",
        b"\"x\"",
        b"1",
        b"{\"type\":\"Secret\"",
        b"\xff\xfe{}",
        b"{\"type\":\"Secret\",\"mesh\":\"default\",\"name\":\"s\",\"data\":5}",
        b"{\"type\":\"Secret\",\"mesh\":\"default\",\"name\":\"s\",\"data\":\"***\"}",
        b"{\"type\":\"Secret\",\"mesh\":\"default\",\"name\":\"s\",\"labels\":[]}",
        b"{\"type\":\"Secret\",\"mesh\":\"default\",\"name\":\"s\",\"labels\":{\"a b\":\"c\"}}",
        b"{\"type\":\"Secret\",\"mesh\":\"default\",\"name\":\"s\",\"creationTime\":\"yesterday\"}",
        b"{}",
    ] {
        let a = app.send("PUT", path, Some(body)).await;
        let shown = String::from_utf8_lossy(body);
        // An empty body carries no content type here.
        let want = if body.is_empty() { [400, 415] } else { [400, 400] };
        assert!(want.contains(&a.status), "{shown}: {} {}", a.status, a.text);
        if a.status == 400 {
            assert_eq!(a.json()["type"], "/std-errors", "{shown}");
        }
    }
    let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
    assert_eq!(app.send("PUT", path, Some(&deep)).await.status, 400);
    let many = format!("{{\"type\":\"Secret\",\"mesh\":\"default\",\"name\":\"s\",\"x\":[{}1]}}", "1,".repeat(500_000));
    assert_eq!(app.send("PUT", path, Some(many.as_bytes())).await.status, 201, "unknown fields are ignored");
    assert!(!app.get(path).await.text.contains("\"x\""));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_named() {
    let app = App::started(ApiOptions::default()).await;
    let a = app.send("PUT", "/meshes/default/secrets/s", Some(&vec![b' '; 10 * 1024 * 1024])).await;
    assert_eq!(a.status, 413);
    assert_eq!(a.json()["detail"], "the body is larger than the limit of 8388608 bytes");
    let a = app.send("POST", "/tokens/dataplane", Some(&vec![b' '; 10 * 1024 * 1024])).await;
    assert_eq!(a.status, 413);
}

#[tokio::test]
async fn pages_of_thousands() {
    let app = App::started(ApiOptions::default()).await;
    let make = |i: usize| Resource::new(Key::new(Kind::Secret, "default", &format!("bulk-{i:05}")), Json::default()).with_labels(Labels::new());
    app.store.preload((0..5000).map(make).collect()).await;
    let mut path = "/meshes/default/secrets?name=bulk-&size=1000".to_owned();
    let mut names = Vec::new();
    for _ in 0..5 {
        let v = app.get(&path).await.json();
        assert_eq!(v["total"], 5000);
        names.extend(v["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()));
        match v["next"].as_str() {
            Some(next) => path = next.strip_prefix("http://localhost:5681").unwrap().to_owned(),
            None => path.clear(),
        }
    }
    assert_eq!((names.len(), path.as_str()), (5000, ""));
    assert!(names.is_sorted());
    let v = app.get("/meshes/default/secrets?name=bulk-&offset=6000").await.json();
    assert_eq!((v["items"].as_array().unwrap().len(), &v["next"]), (0, &Value::Null));
}

#[tokio::test]
async fn secrets_are_for_administrators() {
    let app = App::started(ApiOptions::default()).await;
    let anonymous = |method: &'static str, path: &'static str, body: Vec<u8>| app.request(method, path, &[("content-type", "application/json")], body, REMOTE);
    for path in ["/meshes/default/secrets", "/global-secrets", "/globalsecrets/admin-user-token"] {
        let a = anonymous("GET", path, vec![]).await;
        assert_eq!((a.status, a.json()["title"].as_str().unwrap()), (403, "Access Denied"), "{path}");
    }
    let a = anonymous("PUT", "/meshes/default/secrets/s", secret("s").to_string().into_bytes()).await;
    assert_eq!(a.status, 403);
    assert_eq!(anonymous("DELETE", "/meshes/default/secrets/nope", vec![]).await.status, 403);
    assert_eq!(anonymous("GET", "/meshes", vec![]).await.status, 200);

    let data = app.get("/global-secrets/admin-user-token").await.json();
    let token = String::from_utf8(STANDARD.decode(data["data"].as_str().unwrap()).unwrap()).unwrap();
    let bearer = format!("Bearer {token}");
    let a = app.request("GET", "/who-am-i", &[("authorization", &bearer)], vec![], REMOTE).await;
    assert_eq!(a.json(), json!({"name": "mesh-system:admin", "groups": ["mesh-system:admin", "mesh-system:authenticated"]}));
    let a = app.request("GET", "/meshes/default/secrets", &[("authorization", &bearer)], vec![], REMOTE).await;
    assert_eq!(a.status, 200);
    for bad in ["Bearer x", "Bearer a.b.c", &format!("{bearer}x")] {
        let a = app.request("GET", "/meshes", &[("authorization", bad)], vec![], REMOTE).await;
        assert_eq!((a.status, a.json()["title"].as_str().unwrap().to_owned()), (401, "Invalid authentication data".to_owned()), "{bad}");
        assert_eq!(app.request("GET", "/", &[("authorization", bad)], vec![], REMOTE).await.status, 200);
    }
    assert_eq!(app.request("GET", "/meshes", &[("authorization", "Basic eDp5")], vec![], REMOTE).await.status, 200);
    let proxied = app.request("GET", "/global-secrets", &[("x-forwarded-for", "203.0.113.9")], vec![], LOCAL).await;
    assert_eq!(proxied.status, 403, "a reverse proxy on this machine lends nobody its rights");
}

#[tokio::test]
async fn tokens() {
    let app = App::started(ApiOptions::default()).await;
    let post = |path: &'static str, body: Value| {
        let app = &app;
        async move { app.send("POST", path, Some(body.to_string().as_bytes())).await }
    };
    let ok = post("/tokens/dataplane", json!({"name": "d", "mesh": "default", "tags": {"kuma.io/service": ["web"]}, "validFor": "24h0m0s"})).await;
    assert_eq!((ok.status, ok.header("content-type"), ok.text.split('.').count()), (200, "text/plain", 3), "{}", ok.text);
    assert!(!ok.text.ends_with('\n'));
    let payload = |t: &str| -> Value {
        let part = t.split('.').nth(1).unwrap();
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let claims = payload(&ok.text);
    assert_eq!((&claims["Name"], &claims["Mesh"], &claims["Tags"]), (&json!("d"), &json!("default"), &json!({"kuma.io/service": ["web"]})));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 24 * 3600 + 5);

    let field = |a: &crate::common::Answer| (a.status, a.json()["title"].as_str().unwrap().to_owned(), a.json()["invalid_parameters"][0].clone());
    let want = |f: &str, r: &str| (400, "Invalid request".to_owned(), json!({"field": f, "reason": r}));
    assert_eq!(field(&post("/tokens/dataplane", json!({})).await), want("mesh", "cannot be empty"));
    assert_eq!(field(&post("/tokens/dataplane", json!({"mesh": "default", "type": "x"})).await), want("type", "x is not a valid proxy type"));
    let a = post("/tokens/dataplane", json!({"mesh": "default", "validFor": "x"})).await;
    assert_eq!(field(&a), want("validFor", "is invalid: time: invalid duration \"x\""));
    assert_eq!(field(&post("/tokens/zone", json!({"zone": "east"})).await), want("scope", "cannot be empty"));
    assert_eq!(field(&post("/tokens/user", json!({"validFor": "1h"})).await), want("name", "cannot be empty"));
    assert_eq!(field(&post("/tokens/user", json!({"name": "x"})).await), want("validFor", "cannot be empty"));
    assert_eq!(field(&post("/tokens/user", json!({"name": "x", "validFor": "0s"})).await), want("validFor", "cannot be empty or nil"));
    assert_eq!(post("/tokens/zone", json!({"zone": "east", "scope": []})).await.status, 200);
    let a = app.send("POST", "/tokens/user", Some(b"{,")).await;
    assert_eq!((a.status, a.text.as_str()), (400, ""));
    let a = post("/tokens/dataplane", json!({"mesh": "nope"})).await;
    assert_eq!((a.status, a.json()["title"].as_str().unwrap()), (404, "Signing Key not found"));
    let want_detail = "there is no signing key with KID 1. Secret of name \"dataplane-token-signing-key-nope-1\" in mesh \"nope\" is not found. \
                       If signing key was rotated, regenerate the token";
    assert_eq!(a.json()["detail"], want_detail);

    // The user of an issued token, until it is revoked.
    let user = post("/tokens/user", json!({"name": "jane", "groups": ["dev"], "validFor": "1h"})).await.text;
    let bearer = format!("Bearer {user}");
    let who = |bearer: String| {
        let app = &app;
        async move { app.request("GET", "/who-am-i", &[("authorization", &bearer)], vec![], REMOTE).await }
    };
    assert_eq!(who(bearer.clone()).await.json(), json!({"name": "jane", "groups": ["dev", "mesh-system:authenticated"]}));
    let a = app.request("POST", "/tokens/user", &[("authorization", &bearer), ("content-type", "application/json")], b"{}".to_vec(), REMOTE).await;
    assert_eq!((a.status, a.json()["detail"].as_str().unwrap()), (403, "action not allowed"));
    let data = STANDARD.encode(format!("{}\n", payload(&user)["jti"].as_str().unwrap()));
    app.store("/global-secrets/user-token-revocations", &json!({"type": "GlobalSecret", "name": "user-token-revocations", "data": data})).await;
    assert_eq!(who(bearer).await.status, 401);
}

#[tokio::test]
async fn a_repeated_write_is_one_write() {
    let app = App::started(ApiOptions::default()).await;
    let send = |method: &'static str, body: Vec<u8>, key: &'static str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let app = &app;
        async move { app.request(method, "/meshes/default/secrets/s", &headers, body, LOCAL).await.status }
    };
    let body = secret("s").to_string().into_bytes();
    assert_eq!(send("PUT", body.clone(), "k1").await, 201);
    let version = app.store.world().find(Kind::Secret, "default", "s").unwrap().version;
    assert_eq!(send("PUT", body.clone(), "k1").await, 201, "the answer of the first");
    assert_eq!(app.store.world().find(Kind::Secret, "default", "s").unwrap().version, version);
    assert_eq!(send("PUT", body.clone(), "k2").await, 200);
    // The same key for another write is a mistake, and it says so. For another resource or user it is another key.
    let other = json!({"type": "Secret", "mesh": "default", "name": "s", "data": "b3RoZXI="}).to_string().into_bytes();
    assert_eq!(send("PUT", other.clone(), "k2").await, 422);
    assert_ne!(app.store.world().find(Kind::Secret, "default", "s").unwrap().spec.value()["data"], "b3RoZXI=");
    let headers = [("content-type", "application/json"), ("idempotency-key", "k2")];
    let elsewhere = app.request("PUT", "/meshes/default/secrets/t", &headers, secret("t").to_string().into_bytes(), LOCAL).await;
    assert_eq!(elsewhere.status, 201);
    assert_eq!(send("DELETE", vec![], "k3").await, 200);
    assert_eq!(send("DELETE", vec![], "k3").await, 200);
    assert_eq!(send("DELETE", vec![], "k4").await, 404);
    assert_eq!(send("DELETE", vec![], "").await, 404);
    // The answer of the first also when everything around it is gone by now.
    let headers = [("content-type", "application/json"), ("idempotency-key", "m")];
    let retry = json!({"type": "MeshTimeout", "mesh": "gone", "name": "t", "spec": {"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s"}}]}});
    app.store("/meshes/gone", &json!({"type": "Mesh", "name": "gone"})).await;
    let put = || app.request("PUT", "/meshes/gone/meshtimeouts/t", &headers, retry.to_string().into_bytes(), LOCAL);
    let first = put().await;
    assert_eq!(first.status, 201, "{}", first.text);
    assert_eq!(app.send("DELETE", "/meshes/gone", None).await.status, 200);
    let again = put().await;
    assert_eq!((again.status, again.text.as_str(), again.header("ikada-revision")), (201, first.text.as_str(), first.header("ikada-revision")));
    assert!(app.store.world().find(Kind::MeshTimeout, "gone", "t").is_none(), "and it is not done again");
}

#[tokio::test]
async fn preconditions_are_checked_by_the_store() {
    let app = App::started(ApiOptions::default()).await;
    let path = "/meshes/default/secrets/s";
    let send = |method: &'static str, extra: Vec<(&'static str, String)>| {
        let app = &app;
        async move {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(extra.iter().map(|(k, v)| (*k, v.as_str())));
            let body = if method == "PUT" { secret("s").to_string().into_bytes() } else { Vec::new() };
            app.request(method, path, &headers, body, LOCAL).await
        }
    };
    let tag = |t: &str| vec![("if-match", t.to_owned())];
    let absent = || vec![("if-none-match", "*".to_owned())];
    assert_eq!(send("PUT", tag("*")).await.status, 412, "nothing to change yet");
    assert_eq!(send("PUT", tag("\"1\"")).await.status, 412);
    let created = send("PUT", absent()).await;
    assert_eq!(created.status, 201);
    let first = created.header("etag").to_owned();
    assert_eq!(app.get(path).await.header("etag"), first);
    assert_eq!(first, format!("\"{}\"", created.header("ikada-revision")));
    assert_eq!(send("PUT", absent()).await.status, 412);
    let second = send("PUT", tag(&first)).await;
    assert_eq!(second.status, 200);
    assert_eq!(send("PUT", tag(&first)).await.status, 412, "it was changed in between");
    assert_eq!(send("PUT", tag("*")).await.status, 200);
    let current = app.get(path).await.header("etag").to_owned();
    // Repeated with its key it is still the same write, although its own effect made the condition untrue.
    let keyed = |t: &str| vec![("if-match", t.to_owned()), ("idempotency-key", "k".to_owned())];
    let once = send("PUT", keyed(&current)).await;
    assert_eq!(once.status, 200);
    let again = send("PUT", keyed(&current)).await;
    assert_eq!((again.status, again.header("etag")), (200, once.header("etag")));
    assert_eq!(send("PUT", keyed(&first)).await.status, 412, "another condition is another request");
    assert_eq!(send("DELETE", tag(&first)).await.status, 412);
    for bad in ["W/\"1\"", "1", "\"1\", \"2\"", "\"x\""] {
        assert_eq!(send("PUT", tag(bad)).await.status, 400, "{bad}");
    }
    assert_eq!(send("PUT", vec![("if-none-match", "\"1\"".to_owned())]).await.status, 400);
    assert_eq!(send("DELETE", tag(again.header("etag"))).await.status, 200);
    assert_eq!(send("DELETE", tag("*")).await.status, 404);
}

#[tokio::test]
async fn what_the_store_says() {
    let app = App::started(ApiOptions::default()).await;
    let fail = |e: ProposeError| app.store.failures.lock().unwrap().push(e);
    for (e, status) in [
        (ProposeError::Unavailable("no leader".into()), 503),
        (ProposeError::Unknown, 504),
        (ProposeError::TooLarge { size: 9, limit: 8 }, 413),
    ] {
        let text = e.to_string();
        fail(e);
        let a = app.put("/meshes/default/secrets/s", &secret("s")).await;
        assert_eq!((a.status, a.json()["detail"].as_str().unwrap()), (status, text.as_str()));
        assert_eq!(a.json()["title"], "Failed to create a resource");
    }
    // Somebody else was faster, once: the write is built again. Always: 409.
    let conflict = || {
        let key = Key::new(Kind::Secret, "default", "s");
        ProposeError::Rejected(ikada_world::Rejection { key, reason: ikada_world::Reason::Conflict })
    };
    fail(conflict());
    assert_eq!(app.put("/meshes/default/secrets/s", &secret("s")).await.status, 201);
    (0..5).for_each(|_| fail(conflict()));
    let a = app.put("/meshes/default/secrets/s", &secret("s")).await;
    assert_eq!((a.status, a.json()["detail"].as_str().unwrap()), (409, "resource conflict: type=\"Secret\" name=\"s\" mesh=\"default\""));
}

#[tokio::test]
async fn revisions() {
    let app = App::started(ApiOptions::default()).await;
    let before: u64 = app.get("/meshes").await.header("ikada-revision").parse().unwrap();
    let a = app.put("/meshes/default/secrets/s", &secret("s")).await;
    let written: u64 = a.header("ikada-revision").parse().unwrap();
    assert!(written > before);
    assert_eq!(app.get("/meshes/default/secrets/s").await.header("ikada-revision"), written.to_string());
    assert!(!app.get("/nothing").await.header("ikada-revision").is_empty());
}

#[tokio::test]
async fn writes_of_this_kind_are_refused_here() {
    let app = App::started(ApiOptions::default()).await;
    let insight = json!({"type": "DataplaneInsight", "mesh": "default", "name": "d"});
    let a = app.put("/meshes/default/dataplane-insights/d", &insight).await;
    assert_eq!((a.status, a.json()["title"].as_str().unwrap()), (405, "Method not allowed"));
    assert!(a.json()["detail"].as_str().unwrap().starts_with("On zone control plane"));
    let body = json!({"type": "MeshGateway", "mesh": "default", "name": "g"});
    let a = app.put("/meshes/default/meshgateways/g", &body).await;
    assert_eq!(a.status, 501);
    assert!(a.json()["detail"].as_str().unwrap().contains("MeshGateway"), "{}", a.text);
    let a = app.get("/meshes/default/service-insights").await;
    assert_eq!(a.status, 501);
    assert!(a.json()["detail"].as_str().unwrap().contains("ServiceInsight"), "{}", a.text);
    let a = app.put("/meshes/nope/secrets/s", &secret("s")).await;
    assert_eq!((a.status, a.json()["title"].as_str().unwrap()), (404, "Failed to retrieve Mesh"));
    let read_only = App::new(ApiOptions { read_only: true, ..ApiOptions::default() });
    assert_eq!(read_only.put("/zones/z", &json!({"type": "Zone", "name": "z"})).await.status, 405);
}

#[tokio::test]
async fn deletions_that_are_refused() {
    let app = App::started(ApiOptions::default()).await;
    let a = app.send("DELETE", "/meshes/default/meshtimeouts/mesh-timeout-all-default", None).await;
    assert_eq!((a.status, a.text.as_str()), (200, "{}\n"));
    let dp = Resource::new(Key::new(Kind::Dataplane, "default", "d"), Json::from_value(&json!({"networking": {}})));
    app.store.preload(vec![dp]).await;
    let a = app.send("DELETE", "/meshes/default", None).await;
    assert_eq!(a.status, 400);
    let want = json!([{"field": "mesh", "reason": "unable to delete mesh, there are still some dataplanes attached"}]);
    assert_eq!(a.json()["invalid_parameters"], want);
    assert_eq!(app.send("DELETE", "/meshes/default/dataplanes/d", None).await.status, 200);
    assert_eq!(app.send("DELETE", "/meshes/default", None).await.status, 200);
    assert_eq!(app.get("/meshes/default/meshretries").await.status, 404);
    assert_eq!(app.store.world().list(Kind::Secret).count(), 0);
}

#[tokio::test]
async fn configuration_of_a_proxy() {
    let app = App::started(ApiOptions::default()).await;
    let a = app.get("/meshes/default/dataplanes/shown/_config?shadow=true&include=diff").await;
    assert_eq!(a.json(), json!({"mesh": "default", "shadow": true, "diff": true}));
    let a = app.get("/meshes/default/dataplanes/nobody/_config").await;
    assert_eq!((a.status, a.json()["title"].as_str().unwrap()), (404, "Could not retrieve a resource"));
    assert_eq!(app.get("/meshes/default/dataplanes/shown/_config?shadow=maybe").await.json()["detail"], "bad request: unsupported value for query parameter 'shadow'");
    assert_eq!(app.get("/meshes/default/dataplanes/shown/_config?include=all").await.json()["detail"], "bad request: unsupported value for query parameter 'include'");
    assert_eq!(app.get("/meshes/nope/dataplanes/shown/_config").await.status, 404);
    let a = app.get("/meshes/default/dataplanes/boom/_config").await;
    assert_eq!((a.status, a.json()["detail"].as_str().unwrap()), (500, "Internal Server Error"), "a panic is an answer");
}

#[tokio::test]
async fn base_path_and_links() {
    let app = App::new(ApiOptions { base_path: "/api".into(), ..ApiOptions::default() });
    let zone = |n: &str| Resource::new(Key::new(Kind::Zone, "", n), Json::default());
    app.store.preload(vec![zone("a"), zone("b")]).await;
    assert_eq!(app.get("/zones").await.status, 404);
    assert_eq!(app.get("/api/zones?size=1").await.json()["next"], "http://localhost:5681/api/zones?offset=1&size=1");
    assert_eq!(app.send("POST", "/tokens/user", Some(b"{}")).await.status, 400, "at the root whatever the base path is");
}

#[tokio::test]
async fn own_configuration() {
    let config = Arc::new(json!({"mode": "zone", "apiServer": {"http": {"port": 5681}}}));
    let open = App::new(ApiOptions { config: config.clone(), ..ApiOptions::default() });
    let a = open.get("/config").await;
    assert_eq!((a.status, a.header("content-type")), (200, "application/json"));
    assert_eq!(a.text, config.to_string());
    assert_eq!(open.put("/config", &json!({})).await.status, 405);
    let mut options = ApiOptions { config, localhost_is_admin: false, ..ApiOptions::default() };
    options.access.control_plane_metadata = options.access.admin_resources.clone();
    let a = App::new(options).get("/config").await;
    assert_eq!((a.status, a.json()["title"].as_str().unwrap()), (403, "Access Denied"));
}
