//! `ikadactl` as a process against the real API over a store in memory: the corpus' `kumactl-get` and `kumactl-apply` cases, and a tour
//! through the other commands.

mod support;

use ikada_api::ApiOptions;
use ikada_model::{Kind, Resource, rest};
use regex::Regex;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};
use support::{App, bundle, diff, read, shared, yaml};

/// An API on a port of its own.
struct Server {
    app: Arc<App>,
    url: String,
}

async fn serve(app: App) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = app.router.clone();
    tokio::spawn(async move { axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await });
    Server { app: Arc::new(app), url }
}

/// Runs the program away from the test's threads, which serve its requests.
async fn ikadactl(dir: &Path, args: &[String]) -> Output {
    let (dir, args) = (dir.to_owned(), args.to_vec());
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ikadactl"));
        command.args(args).current_dir(dir).env_clear().env("HOME", "/nonexistent").output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn mesh(name: &str) -> Resource {
    rest::from_value_verbatim(&json!({"type": "Mesh", "name": name, "skipCreatingInitialPolicies": ["*"]})).unwrap()
}

/// kumactl's own test data lack the meshes that REST asks for.
fn with_meshes(mut resources: Vec<Resource>, argv: &[String]) -> Vec<Resource> {
    let have: BTreeSet<String> = resources.iter().filter(|r| r.key.kind == Kind::Mesh).map(|r| r.key.name.to_string()).collect();
    let mut want: BTreeSet<String> = resources.iter().map(|r| r.key.mesh.to_string()).filter(|m| !m.is_empty()).collect();
    want.insert("default".to_owned());
    if !matches!(argv.get(1).map(String::as_str), Some("mesh" | "meshes")) {
        resources.extend(want.difference(&have).map(|m| mesh(m)));
    }
    resources
}

/// Lines with single spaces and without ages; rows of lists in one order.
fn table(text: &str, list: bool) -> Vec<String> {
    let (spaces, ages) = (Regex::new(r"\s+").unwrap(), Regex::new(r"\b(never|\d+[smhdy])\b").unwrap());
    let mut lines: Vec<String> = text.trim().lines().map(|l| spaces.replace_all(&ages.replace_all(l, "AGE"), " ").trim().to_owned()).collect();
    if list && lines.len() > 1 {
        lines[1..].sort();
    }
    lines
}

/// Times blanked, KRIs left out, items in one order.
fn value(text: &str, is_json: bool, list: bool) -> Value {
    let times = Regex::new(r#""?\d{4}-\d{2}-\d{2}T[^"\s]+"?"#).unwrap();
    let text = times.replace_all(text, "\"0001-01-01T00:00:00Z\"");
    let mut value = if is_json { serde_json::from_str(&text).unwrap() } else { yaml(&text).remove(0) };
    fn drop_kris(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("kri");
                fields.values_mut().for_each(drop_kris);
            }
            Value::Array(items) => items.iter_mut().for_each(drop_kris),
            _ => {}
        }
    }
    drop_kris(&mut value);
    if let (true, Some(items)) = (list, value.get_mut("items").and_then(Value::as_array_mut)) {
        items.sort_by_key(|i| (i["mesh"].as_str().map(str::to_owned), i["name"].as_str().map(str::to_owned)));
    }
    value
}

/// The recorded stores have every `version` blanked, and no tag `kuma.io/zone`, which a control plane adds.
fn blank_versions(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.remove("kuma.io/zone");
    }
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(k, v)| if k == "version" { *v = Value::Null } else { blank_versions(v) }),
        Value::Array(items) => items.iter_mut().for_each(blank_versions),
        _ => {}
    }
}

fn cases(suite: &str) -> Vec<(String, std::path::PathBuf, Value)> {
    let Some(corpus) = shared("IKADA_CONFORMANCE_DIR", "conformance") else { return Vec::new() };
    let mut all: Vec<_> = fs::read_dir(corpus.join(suite)).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all.into_iter()
        .map(|dir| {
            let case = yaml(&read(&dir.join("case.yaml"))).remove(0);
            (dir.file_name().unwrap().to_str().unwrap().to_owned(), dir, case)
        })
        .collect()
}

fn argv(case: &Value, server: &Server) -> Vec<String> {
    let given = case["argv"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned());
    given.chain(["--address".to_owned(), server.url.clone()]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corpus_get() {
    let (mut passed, mut unsupported, mut failed) = (0, 0, Vec::new());
    for (name, dir, case) in cases("kumactl-get") {
        let server = serve(App::new(ApiOptions::default())).await;
        let args = argv(&case, &server);
        let resources = bundle(&read(&dir.join(case["resources"].as_str().unwrap())));
        server.app.store.preload(with_meshes(resources, &args)).await;
        let output = ikadactl(&dir, &args).await;
        let stderr = text(&output.stderr);
        if stderr.contains("not supported by this version") {
            unsupported += 1;
            continue;
        }
        let expect = case["expect"].as_str().unwrap();
        let (want, have, list) = (read(&dir.join(expect)), text(&output.stdout), name.starts_with("list-"));
        let difference = if !output.status.success() {
            Some(stderr)
        } else if expect.ends_with(".txt") {
            let (want, have) = (table(&want, list), table(&have, list));
            (want != have).then(|| format!("want {want:#?} got {have:#?}"))
        } else {
            let json = expect.ends_with(".json");
            diff(&value(&want, json, list), &value(&have, json, list), "")
        };
        match difference {
            None => passed += 1,
            Some(d) => failed.push(format!("{name}: {d}")),
        }
    }
    println!("kumactl-get: {passed} passed, {} failed, {unsupported} of kinds that are not implemented", failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corpus_apply() {
    for (name, dir, case) in cases("kumactl-apply") {
        let server = serve(App::new(ApiOptions::default())).await;
        server.app.store.preload(vec![mesh("default")]).await;
        let output = ikadactl(&dir, &argv(&case, &server)).await;
        assert_eq!(i64::from(output.status.code().unwrap()), case["exit"].as_i64().unwrap(), "{name}: {}", text(&output.stderr));
        if let Some(expect) = case["expect"].as_str() {
            assert_eq!(text(&output.stdout).trim(), read(&dir.join(expect)).trim(), "{name}");
        }
        if let Some(expect) = case["expect_stderr"].as_str() {
            // The YAML parser words its errors in its own way; everything before that is the contract.
            let lines = |t: &str| t.lines().map(|l| l.split("YAML to JSON: ").next().unwrap().to_owned()).collect::<Vec<_>>();
            assert_eq!(lines(&text(&output.stderr)), lines(&read(&dir.join(expect))), "{name}");
        }
        let Some(stored) = case["expect_store"].as_str() else { continue };
        for want in yaml(&read(&dir.join(stored))) {
            let kind = Kind::by_name(want["type"].as_str().unwrap()).unwrap();
            let read = ikadactl(&dir, &["get", kind.descriptor().singular, want["name"].as_str().unwrap(), "-ojson", "--address", &server.url].map(str::to_owned)).await;
            let mut have: Value = serde_json::from_slice(&read.stdout).unwrap_or_else(|e| panic!("{name}: {e}: {}", text(&read.stderr)));
            let mut want = want;
            for side in [&mut have, &mut want] {
                blank_versions(side);
                for computed in ["labels", "kri", "creationTime", "modificationTime"] {
                    side.as_object_mut().unwrap().remove(computed);
                }
            }
            assert_eq!(diff(&want, &have, ""), None, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tour() {
    let server = serve(App::started(ApiOptions::default()).await).await;
    let dir = tempfile::tempdir().unwrap();
    let url = server.url.clone();
    let config = dir.path().join("deep/config").display().to_string();
    let run = async |line: &str| {
        let args: Vec<String> = line.split(' ').map(str::to_owned).chain(["--config-file".to_owned(), config.clone()]).collect();
        let output = ikadactl(dir.path(), &args).await;
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };

    // Configuration: the added control plane is the current one from then on.
    let (ok, out, err) = run(&format!("config control-planes add --name test --address {url}")).await;
    assert!(ok, "{err}");
    assert_eq!(out, "added Control Plane \"test\"\nswitched active Control Plane to \"test\"\n");
    assert_eq!(fs::metadata(&config).map(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o777).unwrap(), 0o600);
    let (ok, _, err) = run(&format!("config control-planes add --name test --address {url}")).await;
    assert!(!ok && err.contains("already exists"), "{err}");
    let (_, out, _) = run("config control-planes list").await;
    assert_eq!(table(&out, false), ["ACTIVE NAME ADDRESS", "local http://localhost:5681", &format!("* test {url}")]);
    assert!(run("config view").await.1.contains("currentContext: test"));
    assert!(run("version").await.1.contains("Server: Kuma 2.14.3"));

    // Apply with variables, twice; then read, list in pages of a thousand, and delete.
    let many: String = (0..1100).map(|i| format!("---\ntype: Secret\nname: many-{i:04}\nmesh: default\ndata: {{{{ data }}}}\n")).collect();
    fs::write(dir.path().join("many.yaml"), many).unwrap();
    let (ok, out, err) = run("apply -f many.yaml -v data=dGVzdA==").await;
    assert!(ok && out.lines().count() == 1100 && out.lines().all(|l| l.ends_with("Created")), "{err}");
    let (_, out, _) = run("get secrets -o json").await;
    let list: Value = serde_json::from_str(&out).unwrap();
    let total = list["total"].as_u64().unwrap();
    assert!(total >= 1100 && list["items"].as_array().unwrap().len() as u64 == total && list["next"].is_null());
    let (_, out, _) = run("get secrets --size 2 --offset 5").await;
    assert!(out.ends_with("\n\nRerun command with --offset=7 argument to retrieve more resources\n"), "{out}");
    fs::write(dir.path().join("one.yaml"), "type: MeshTimeout\nname: t\nspec:\n  to:\n  - targetRef: {kind: Mesh}\n    default: {idleTimeout: 1h}\n").unwrap();
    assert_eq!(run("apply -f one.yaml").await.1, "resource type=\"MeshTimeout\" mesh=\"default\" name=\"t\" Created\n");
    assert_eq!(run("apply -f one.yaml").await.1, "resource type=\"MeshTimeout\" mesh=\"default\" name=\"t\" Updated\n");
    assert!(run("apply -f one.yaml --dry-run").await.1.starts_with("mesh: default\nname: t\ntype: MeshTimeout\nspec:\n"));
    assert!(run("get meshtimeout t -o yaml").await.1.contains("idleTimeout: 1h"));
    assert_eq!(run("delete meshtimeout t").await.1, "deleted MeshTimeout \"t\"\n");
    let (ok, _, err) = run("delete meshtimeout t").await;
    assert!(!ok && err == "Error: there is no MeshTimeout with name \"t\"\n", "{err}");
    let (ok, _, err) = run("get meshtimeout t").await;
    assert!(!ok && err == "Error: No resources found in default mesh\n", "{err}");
    let (ok, _, err) = run("apply -f one.yaml -m nowhere").await;
    assert!(!ok && err.contains("failed server side: ") && err.contains("Not found"), "{err}");

    // Tokens that the API itself believes.
    let (ok, out, err) = run("generate dataplane-token --name web-1 --tag kuma.io/service=a,b --valid-for 1h").await;
    assert!(ok && out.split('.').count() == 3 && !out.ends_with('\n'), "{err}");
    let (ok, out, err) = run("generate user-token --name jane --group team --valid-for 1h").await;
    assert!(ok, "{err}");
    assert!(run(&format!("get meshes --token {out}")).await.0);
    let (ok, _, err) = run("get meshes --token a.b.c --address http://127.0.0.1:1").await;
    assert!(!ok && err.starts_with("Error: cannot reach the control plane at http://127.0.0.1:1: "), "{err}");
    let (ok, _, err) = run(&format!("get mesh default --address {url}/nothing/here")).await;
    assert!(!ok && err.contains("404: Page Not Found"), "{err}");
    let tls = url.replace("http://", "https://");
    let (ok, _, err) = run(&format!("get meshes --address {tls}")).await;
    assert!(!ok && err.contains("use http://"), "{err}");
    let (_, pem, _) = run("generate signing-key --format pem").await;
    assert!(pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    fs::write(dir.path().join("key.pem"), pem).unwrap();
    let (ok, out, err) = run("generate zone-token --zone east --valid-for 1h --signing-key-path key.pem --kid 7").await;
    assert!(ok && out.split('.').count() == 3, "{err}");
    let (ok, _, err) = run("get nonsense").await;
    assert!(!ok && err.starts_with("Error: there is no resource type \"nonsense\""), "{err}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&format!("completion {shell}")).await.1.contains("ikadactl"));
    }
}
