//! Start, stop, and everything that can be wrong with a start.

use ikada_tests::{
    process::{ControlPlane, Process, eventually, free_port, program},
    streams::{self, AdsStream},
};
use nix::sys::signal::Signal;
use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(20);

fn command(data: &Path, ports: [u16; 3]) -> Command {
    let mut c = Command::new(program("ikada-cp").unwrap());
    c.args(["run", "--data-dir"])
        .arg(data)
        .env("KUMA_API_SERVER_HTTP_PORT", ports[0].to_string())
        .env("KUMA_API_SERVER_HTTPS_ENABLED", "false")
        .env("KUMA_DP_SERVER_PORT", ports[1].to_string())
        .env("KUMA_DIAGNOSTICS_SERVER_PORT", ports[2].to_string())
        .env("IKADA_RAFT_LISTEN", format!("127.0.0.1:{}", free_port().unwrap()));
    c
}

fn ports() -> [u16; 3] {
    [free_port().unwrap(), free_port().unwrap(), free_port().unwrap()]
}

/// The last line that a failing start printed, and its exit code.
async fn refusal(dir: &Path, mut c: Command) -> (i32, String) {
    let log = dir.join("refused.log");
    fs::remove_file(&log).ok();
    let mut p = Process::start("ikada-cp", &mut c, &log).unwrap();
    let status = p.wait(LIMIT).await.unwrap();
    let output = p.output();
    let lines: Vec<_> = output.lines().filter(|l| l.starts_with("ikada-cp: ")).collect();
    assert_eq!(lines.len(), 1, "one line says what to do:\n{output}");
    assert!(!output.contains("panicked"), "{output}");
    (status.code().unwrap(), lines[0].to_owned())
}

/// Names and contents below a directory.
fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(d) = todo.pop() {
        for e in fs::read_dir(d).unwrap() {
            let path = e.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                all.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn first_start_makes_what_is_needed_and_a_second_one_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    for (path, wanted) in [
        ("/meshes/default/meshtimeouts", vec!["mesh-gateways-timeout-all-default", "mesh-timeout-all-default"]),
        ("/meshes/default/meshcircuitbreakers", vec!["mesh-circuit-breaker-all-default"]),
        ("/meshes/default/meshretries", vec!["mesh-retry-all-default"]),
        ("/meshes/default/secrets", vec!["dataplane-token-signing-key-default-1"]),
        ("/globalsecrets", vec!["admin-user-token", "envoy-admin-ca", "user-token-signing-key-1", "zone-token-signing-key-1"]),
        ("/zones", vec!["default"]),
        ("/meshes", vec!["default"]),
    ] {
        let list = cp.api.get(path).await.unwrap().json().unwrap();
        let names: Vec<_> = list["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, wanted, "{path}");
    }
    let index = cp.api.get("/").await.unwrap().json().unwrap();
    assert_eq!(index["clusterId"].as_str().unwrap().len(), 36);
    let ca = cp.api.get("/globalsecrets/envoy-admin-ca").await.unwrap().json().unwrap();
    cp.api.apply(&json!({"type": "Mesh", "name": "other"})).await.unwrap();

    cp.process.signal(Signal::SIGTERM).unwrap();
    assert!(cp.process.wait(LIMIT).await.unwrap().success(), "SIGTERM ends with 0");
    cp.restart().await.unwrap();
    assert_eq!(cp.api.get("/").await.unwrap().json().unwrap()["clusterId"], index["clusterId"]);
    assert_eq!(cp.api.get("/globalsecrets/envoy-admin-ca").await.unwrap().json().unwrap(), ca);
    assert_eq!(cp.api.get("/meshes/other").await.unwrap().status, 200);
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    let timeout = |n: usize| json!({"type": "MeshTimeout", "mesh": "default", "name": format!("t{n:04}"),
        "spec": {"targetRef": {"kind": "Mesh"}, "to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s"}}]}});
    let mut acknowledged = Vec::new();
    let api = cp.api.clone();
    let (progress, mut written) = tokio::sync::watch::channel(0);
    let writer = tokio::spawn(async move {
        for n in 0..1000 {
            if api.apply(&timeout(n)).await.is_err() {
                break;
            }
            acknowledged.push(n);
            progress.send_replace(n);
        }
        acknowledged
    });
    // In the middle, however fast the disk is.
    written.wait_for(|n| *n >= 300).await.unwrap();
    cp.process.kill();
    let acknowledged = writer.await.unwrap();
    assert!(!acknowledged.is_empty() && acknowledged.len() < 1000, "killed in the middle: {} of 1000", acknowledged.len());
    cp.restart().await.unwrap();
    for n in acknowledged {
        assert_eq!(cp.api.get(&format!("/meshes/default/meshtimeouts/t{n:04}")).await.unwrap().status, 200, "t{n:04} was acknowledged");
    }
}

#[tokio::test]
async fn a_start_that_cannot_work_says_so_in_one_line_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(dir.path(), &[], &[]).await.unwrap();
    let data = dir.path().join("data");

    // A port that is taken.
    let mine = ports();
    let (code, line) = refusal(dir.path(), command(&dir.path().join("new"), [cp.api.port, mine[1], mine[2]])).await;
    assert_ne!(code, 0);
    assert!(line.contains(&cp.api.port.to_string()) && line.contains("KUMA_API_SERVER_HTTP_PORT"), "{line}");
    assert!(!dir.path().join("new").exists(), "nothing is made before the ports are known to be free");

    // A directory in use.
    let (code, line) = refusal(dir.path(), command(&data, ports())).await;
    assert_ne!(code, 0);
    assert!(line.contains("in use by another process"), "{line}");
    drop(cp);

    // A damaged store.
    let before = tree(&data);
    let log = before.iter().find(|(name, content)| name.contains("log") && !content.is_empty()).expect("a log file").0.clone();
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.iter().rposition(|b| *b != 0).unwrap() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&log, &bytes).unwrap();
    let damaged = tree(&data);
    let (code, line) = refusal(dir.path(), command(&data, ports())).await;
    assert_ne!(code, 0);
    assert!(line.contains("damaged") && line.contains("Restore a backup"), "{line}");
    let logs = |t: Vec<(String, Vec<u8>)>| t.into_iter().filter(|(n, _)| n.contains("log") && !n.contains("sled")).collect::<Vec<_>>();
    assert_eq!(logs(tree(&data)), logs(damaged), "nothing was overwritten");

    // Somebody else's directory.
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let (code, line) = refusal(dir.path(), command(&foreign, ports())).await;
    assert_ne!(code, 0);
    assert!(line.contains("is not a data directory"), "{line}");
    assert_eq!(tree(&foreign).len(), 1);

    // A directory that cannot be read. Root reads everything, so a file in its place stands for it there.
    let locked = dir.path().join("locked");
    if nix::unistd::geteuid().is_root() {
        fs::write(&locked, "").unwrap();
    } else {
        fs::create_dir(&locked).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let (code, line) = refusal(dir.path(), command(&locked, ports())).await;
    assert_ne!(code, 0);
    assert!(line.contains("locked"), "{line}");

    // Settings.
    let mut c = command(&dir.path().join("new"), ports());
    c.env("KUMA_DP_SERVER_PORT", "many");
    let (_, line) = refusal(dir.path(), c).await;
    assert!(line.contains("KUMA_DP_SERVER_PORT") && line.contains("whole number"), "{line}");
}

#[tokio::test]
async fn bundle_is_stored_verbatim_and_only_into_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle.yaml");
    let text = "# nothing\n---\ntype: Mesh\nname: m\ncreationTime: 2020-01-02T03:04:05Z\nmodificationTime: 2021-01-02T03:04:05Z\n---\n\
        type: MeshService\nmesh: m\nname: web\nlabels: {a: b}\nspec: {ports: [{port: 80, targetPort: 8080, appProtocol: http}]}\nstatus: {vips: [{ip: 241.0.0.7}]}\n";
    fs::write(&bundle, text).unwrap();
    let load = bundle.display().to_string();
    let mut cp = ControlPlane::start(dir.path(), &[], &["--load", &load, "--api-only"]).await.unwrap();
    let mesh = cp.api.get("/meshes/m").await.unwrap().json().unwrap();
    assert_eq!((mesh["creationTime"].as_str(), mesh["modificationTime"].as_str()), (Some("2020-01-02T03:04:05Z"), Some("2021-01-02T03:04:05Z")));
    let service = cp.api.get("/meshes/m/meshservices/web").await.unwrap().json().unwrap();
    assert_eq!(service["labels"], json!({"a": "b"}));
    assert_eq!(service["status"]["vips"], json!([{"ip": "241.0.0.7"}]));
    assert_eq!(cp.api.get("/meshes").await.unwrap().json().unwrap()["total"], 1, "no defaults");
    assert_eq!(cp.api.get("/globalsecrets").await.unwrap().json().unwrap()["total"], 0);
    cp.process.signal(Signal::SIGTERM).unwrap();
    cp.process.wait(LIMIT).await.unwrap();

    let mut c = command(&dir.path().join("data"), ports());
    c.args(["--load", &load]);
    let (_, line) = refusal(dir.path(), c).await;
    assert!(line.contains("needs an empty store"), "{line}");
    fs::write(&bundle, "type: Nonsense\nname: x\n").unwrap();
    let mut c = command(&dir.path().join("new"), ports());
    c.args(["--load", &load]);
    let (_, line) = refusal(dir.path(), c).await;
    assert!(line.contains("document 1") && line.contains("Nonsense"), "{line}");
}

#[tokio::test]
async fn a_stop_with_many_streams_is_quick_and_tells_their_end() {
    const STREAMS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    // Proxies that were deregistered would be gone at once.
    let env = [("KUMA_DP_SERVER_AUTHN_DP_PROXY_TYPE", "none"), ("KUMA_XDS_DATAPLANE_DEREGISTRATION_DELAY", "0s")];
    let mut cp = ControlPlane::start(dir.path(), &env, &[]).await.unwrap();
    let mut open = Vec::new();
    let channels = [streams::connect(cp.dp_port).await.unwrap(), streams::connect(cp.dp_port).await.unwrap()];
    for n in 0..STREAMS {
        let dataplane = json!({"type": "Dataplane", "mesh": "default", "name": format!("dp-{n}"), "networking": {"address": "127.0.0.1",
            "inbound": [{"port": 1000 + n, "servicePort": 2, "tags": {"kuma.io/service": format!("s-{}", n % 10)}}]}});
        open.push(AdsStream::open(&channels[n % 2], &dataplane, None).await.unwrap());
    }
    for stream in &mut open {
        stream.next().await.unwrap().expect("a configuration");
    }
    let api = cp.api.clone();
    let online = |open: bool| {
        let api = api.clone();
        async move {
            let Ok(all) = api.get("/meshes/default/dataplane-insights?size=1000").await.and_then(|a| a.json()) else { return false };
            let closed = |i: &serde_json::Value| i["subscriptions"].as_array().is_some_and(|s| !s.is_empty() && s.iter().all(|s| s.get("disconnectTime").is_some()));
            all["items"].as_array().is_some_and(|i| i.len() == STREAMS && i.iter().all(|i| closed(i) != open))
        }
    };
    eventually("all insights", LIMIT, || online(true)).await.unwrap();

    let start = std::time::Instant::now();
    cp.process.signal(Signal::SIGTERM).unwrap();
    assert!(cp.process.wait(LIMIT).await.unwrap().success(), "{}", cp.process.output());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for stream in &mut open {
        assert!(!matches!(stream.next().await, Ok(Some(_))), "every stream ended");
    }
    drop((open, channels));
    cp.restart().await.unwrap();
    assert!(online(false).await, "closed in the insight, none deregistered: {}", cp.api.get("/meshes/default/dataplane-insights").await.unwrap().text);
}
