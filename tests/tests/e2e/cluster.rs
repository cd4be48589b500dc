//! Several control planes, administered with `ikadactl` as a user would.

use ikada_tests::{
    process::{Api, ControlPlane, eventually, program},
    streams::{self, AdsStream},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(40);
/// Longest pause of writes that a failover may make here, on a busy machine and without optimisation.
const FAILOVER: Duration = Duration::from_secs(20);

/// `ikadactl --address … ARGS`, away from the threads of the test.
async fn ctl(cp: Option<&ControlPlane>, args: &[&str]) -> Output {
    let mut command = Command::new(program("ikadactl").unwrap());
    command.arg("--no-config").args(args);
    if let Some(cp) = cp {
        command.arg("--address").arg(format!("http://127.0.0.1:{}", cp.api.port));
    }
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that has to work.
async fn done(cp: Option<&ControlPlane>, args: &[&str]) -> String {
    let out = ctl(cp, args).await;
    assert!(out.status.success(), "ikadactl {args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

async fn status(cp: &ControlPlane) -> Value {
    serde_json::from_str(&done(Some(cp), &["cluster", "status", "-o", "json"]).await).unwrap()
}

/// Slower than `lan`: many of these run at a time, not optimised.
const TIMES: [(&str, &str); 4] = [
    ("IKADA_RAFT_PROFILE", "custom"),
    ("IKADA_RAFT_HEARTBEAT", "250ms"),
    ("IKADA_RAFT_ELECTION_MIN", "1s"),
    ("IKADA_RAFT_ELECTION_MAX", "1500ms"),
];

struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<ControlPlane>,
}

impl Cluster {
    fn home(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
    /// Starts a node that joins.
    fn launch(&self, name: &str, token: &str) -> ControlPlane {
        let addresses: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.peer_port)).collect();
        let home = self.home(name);
        let file = home.join("token");
        fs::write(&file, token).unwrap();
        let mut env = TIMES.to_vec();
        env.extend([("IKADA_RAFT_NAME", name), ("KUMA_DP_SERVER_AUTHN_DP_PROXY_TYPE", "none")]);
        ControlPlane::launch(&home, &env, &["--join", &addresses.join(","), "--join-token-file", &file.display().to_string()]).unwrap()
    }
    /// One node, and others that join it.
    async fn start(size: usize) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster { dir, nodes: Vec::new() };
        let mut env = TIMES.to_vec();
        env.extend([("IKADA_RAFT_NAME", "cp-1"), ("KUMA_DP_SERVER_AUTHN_DP_PROXY_TYPE", "none")]);
        let home = cluster.home("cp-1");
        cluster.nodes.push(ControlPlane::start(&home, &env, &[]).await.unwrap());
        if size > 1 {
            let uses = (size - 1).to_string();
            let token = done(Some(&cluster.nodes[0]), &["cluster", "join-token", "create", "--uses", &uses]).await;
            assert!(token.starts_with("ikada-join-") && token.lines().count() == 1, "{token}");
            let others: Vec<_> = (2..=size).map(|n| cluster.launch(&format!("cp-{n}"), &token)).collect();
            cluster.nodes.extend(others);
            for node in &mut cluster.nodes[1..] {
                node.ready().await.unwrap();
            }
            cluster.healthy(size).await;
        }
        cluster
    }
    /// Waits until every node is a voter and well, as scripts do.
    async fn healthy(&self, voters: usize) {
        let first = &self.nodes[0];
        let well = || async {
            let out = ctl(Some(first), &["cluster", "status", "--check", "-o", "json"]).await;
            out.status.success() && serde_json::from_slice::<Value>(&out.stdout).is_ok_and(|s| s["health"]["voters"] == voters)
        };
        if let Err(e) = eventually("a healthy cluster", LIMIT, well).await {
            panic!("{e}\n{}", done(Some(first), &["cluster", "status"]).await);
        }
    }
    /// Position of the leader among the nodes, as a node knows it.
    async fn leader(&self) -> usize {
        for _ in 0..200 {
            for node in &self.nodes {
                let Ok(answer) = node.api.get("/cluster").await else { continue };
                let Ok(s) = answer.json() else { continue };
                let name = s["members"].as_array().into_iter().flatten().find(|m| m["id"] == s["leader"] && m["reachable"] == true);
                let name = name.and_then(|m| m["name"].as_str()).unwrap_or("");
                if let Some(at) = name.strip_prefix("cp-").and_then(|n| n.parse::<usize>().ok()) {
                    return at - 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no leader");
    }
}

fn timeout(name: &str) -> Value {
    json!({"type": "MeshTimeout", "mesh": "default", "name": name,
        "spec": {"targetRef": {"kind": "Mesh"}, "to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s"}}]}})
}

fn path(name: &str) -> String {
    format!("/meshes/default/meshtimeouts/{name}")
}

/// A write as a careful client does it: under one key, repeated at any node while the answer is not known or nobody takes it. Gives how
/// often it was repeated. Any other answer is a failure.
async fn write(nodes: &[Api], name: &str) -> usize {
    let end = tokio::time::Instant::now() + FAILOVER;
    for attempt in 0.. {
        let api = &nodes[attempt % nodes.len()];
        match api.request_with("PUT", &path(name), Some(&timeout(name)), &[("idempotency-key", name)]).await {
            Ok(answer) if matches!(answer.status, 200 | 201) => return attempt,
            Ok(answer) if !matches!(answer.status, 503 | 504) => panic!("{name}: {} {}", answer.status, answer.text),
            _ => assert!(tokio::time::Instant::now() < end, "{name} was not taken within {FAILOVER:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!()
}

async fn names(api: &Api) -> Vec<String> {
    let list = api.get("/meshes/default/meshtimeouts?size=1000").await.unwrap().json().unwrap();
    list["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect()
}

fn proxy(name: &str) -> Value {
    json!({"type": "Dataplane", "mesh": "default", "name": name, "networking": {"address": "127.0.0.1",
        "inbound": [{"port": 8080, "servicePort": 80, "tags": {"kuma.io/service": name}}]}})
}

/// Its next configuration comes within a while.
async fn next(stream: &mut AdsStream) {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("in time").unwrap().expect("a configuration");
}

#[tokio::test]
async fn any_node_takes_writes_and_the_leader_may_be_killed() {
    let mut c = Cluster::start(3).await;
    let table = done(Some(&c.nodes[1]), &["cluster", "members"]).await;
    assert!(table.starts_with("ID") && ["cp-1", "cp-2", "cp-3"].iter().all(|n| table.contains(n)) && table.lines().count() == 4, "{table}");
    for n in 0..3 {
        c.nodes[n].api.apply(&timeout(&format!("from-{n}"))).await.unwrap();
        for node in &c.nodes {
            assert!(names(&node.api).await.contains(&format!("from-{n}")), "a read sees every write that was acknowledged");
        }
    }
    let leader = c.leader().await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    let channels = [streams::connect(c.nodes[others[0]].dp_port).await.unwrap(), streams::connect(c.nodes[others[1]].dp_port).await.unwrap()];
    let mut open = Vec::new();
    for (n, channel) in channels.iter().enumerate() {
        let mut stream = AdsStream::open(channel, &proxy(&format!("dp-{n}")), None).await.unwrap();
        next(&mut stream).await;
        open.push(stream);
    }

    c.nodes[leader].process.kill();
    let left: Vec<Api> = others.iter().map(|n| c.nodes[*n].api.clone()).collect();
    write(&left, "after-the-kill").await;
    for api in &left {
        assert!(names(api).await.contains(&"after-the-kill".to_owned()));
    }
    // The streams are the same ones: a change that concerns them arrives.
    left[0].apply(&json!({"type": "MeshTimeout", "mesh": "default", "name": "inbound", "spec": {"targetRef": {"kind": "Mesh"},
        "from": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "7s"}}]}})).await.unwrap();
    for stream in &mut open {
        next(stream).await;
    }
    let seen = status(&c.nodes[others[0]]).await;
    assert_eq!((&seen["health"]["healthy"], &seen["health"]["writable"], &seen["health"]["tolerates"]), (&json!(false), &json!(true), &json!(0)), "{seen}");
    assert_eq!(ctl(Some(&c.nodes[others[0]]), &["cluster", "status", "--check"]).await.status.code(), Some(3));

    c.nodes[leader].restart().await.unwrap();
    assert!(names(&c.nodes[leader].api).await.contains(&"after-the-kill".to_owned()), "ready means caught up");
    c.healthy(3).await;
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", c.nodes[leader].diagnostics_port)).await.unwrap().text().await.unwrap();
    for wanted in ["raft_voters 3", "raft_role{role=\"follower\"} 1", "raft_fsync_seconds{quantile=\"0.99\"}"] {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }
}

#[tokio::test]
async fn a_rolling_restart_loses_no_write() {
    let mut c = Cluster::start(3).await;
    let nodes: Vec<Api> = c.nodes.iter().map(|n| n.api.clone()).collect();
    let stop = tokio_util::sync::CancellationToken::new();
    let writer = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut written = Vec::new();
            while !stop.is_cancelled() {
                let name = format!("w-{}", written.len());
                // Each begins at another node.
                let from = written.len() % nodes.len();
                write(&[&nodes[from..], &nodes[..from]].concat(), &name).await;
                written.push(name);
            }
            written
        }
    });
    for n in 0..3 {
        let led = c.leader().await == n;
        c.nodes[n].process.signal(Signal::SIGTERM).unwrap();
        assert!(c.nodes[n].process.wait(LIMIT).await.unwrap().success(), "{}", c.nodes[n].process.output());
        if led {
            assert!(c.nodes[n].process.output().contains("handed the leadership over"), "{}", c.nodes[n].process.output());
        }
        c.nodes[n].restart().await.unwrap();
        c.healthy(3).await;
    }
    stop.cancel();
    let written = writer.await.unwrap();
    assert!(written.len() > 20, "{}", written.len());
    for node in &c.nodes {
        for name in &written {
            assert_eq!(node.api.get(&path(name)).await.unwrap().status, 200, "{name}");
        }
    }
}

#[tokio::test]
async fn a_copy_becomes_a_new_cluster_with_the_same_resources() {
    let c = Cluster::start(1).await;
    let cp = &c.nodes[0];
    for n in 0..20 {
        cp.api.apply(&timeout(&format!("t-{n}"))).await.unwrap();
    }
    let file = c.dir.path().join("copy.ikada");
    let name = file.display().to_string();
    let saved: Value = serde_json::from_str(&done(Some(cp), &["cluster", "snapshot", "save", &name, "-o", "json"]).await).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(saved["bytes"], fs::metadata(&file).unwrap().len());
    let again = ctl(Some(cp), &["cluster", "snapshot", "save", &name]).await;
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("--overwrite"), "{}", text(&again.stderr));

    // Where it cannot be: a directory that is not empty; and a file that is not whole.
    let other = c.home("restored").join("data").display().to_string();
    let refused = ctl(None, &["cluster", "snapshot", "restore", &name, "--data-dir", &cp.data().display().to_string()]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = c.dir.path().join("damaged");
    fs::write(&damaged, &bytes).unwrap();
    let refused = ctl(None, &["cluster", "snapshot", "restore", &damaged.display().to_string(), "--data-dir", &other]).await;
    assert!(refused.status.code() == Some(1) && !Path::new(&other).exists(), "{}", text(&refused.stderr));

    let said = done(None, &["cluster", "snapshot", "restore", &name, "--data-dir", &other]).await;
    assert!(said.contains("Next: start ikada-cp"), "{said}");
    let restored = ControlPlane::start(&c.home("restored"), &TIMES, &[]).await.unwrap();
    let lists = ["/meshes", "/meshes/default/meshtimeouts?size=1000", "/meshes/default/meshretries", "/globalsecrets", "/meshes/default/secrets", "/zones"];
    for list in lists {
        let (before, after) = (cp.api.get(list).await.unwrap().json().unwrap(), restored.api.get(list).await.unwrap().json().unwrap());
        assert_eq!(before["items"], after["items"], "{list}");
    }
    let (old, new) = (status(cp).await, status(&restored).await);
    assert_ne!(old["cluster"], new["cluster"], "it is another cluster");
    assert_eq!((&new["health"]["healthy"], &new["health"]["voters"]), (&json!(true), &json!(1)), "{new}");
    restored.api.apply(&timeout("later")).await.unwrap();
    // The old token opens the new cluster's API, the keys being the same; a node that joins it gets everything.
    let token = done(Some(&restored), &["cluster", "join-token", "create"]).await;
    let grown = Cluster { dir: tempfile::tempdir().unwrap(), nodes: vec![restored] };
    let mut joined = grown.launch("cp-2", &token);
    joined.ready().await.unwrap();
    assert_eq!(names(&joined.api).await, names(&grown.nodes[0].api).await);
}

#[tokio::test]
async fn out_of_a_lost_majority() {
    let mut c = Cluster::start(3).await;
    c.nodes[0].api.apply(&timeout("kept")).await.unwrap();
    let leader = c.leader().await;
    let last = (leader + 1) % 3;
    // What the leader acknowledged is soon known to the others, too.
    let api = c.nodes[last].api.clone();
    eventually("it is there", LIMIT, || async { names(&api).await.contains(&"kept".to_owned()) }).await.unwrap();
    for n in (0..3).filter(|n| *n != last) {
        c.nodes[n].process.kill();
    }
    let url = format!("http://127.0.0.1:{}/ready", c.nodes[last].diagnostics_port);
    let not_ready = || async { reqwest::get(&url).await.is_ok_and(|r| r.status() == 503) };
    eventually("not ready without a majority", LIMIT, not_ready).await.unwrap();
    assert!(reqwest::get(&url).await.unwrap().text().await.unwrap().contains("2 of 3 voters have to reach each other"));
    let seen = done(Some(&c.nodes[last]), &["cluster", "status"]).await;
    assert!(seen.contains("Writes:   not accepted") && seen.contains("unreachable"), "{seen}");

    let data = c.nodes[last].data().display().to_string();
    let running = ctl(None, &["cluster", "recover", "--data-dir", &data, "--yes"]).await;
    assert!(running.status.code() == Some(1) && text(&running.stderr).contains("in use by another process"), "{}", text(&running.stderr));
    c.nodes[last].process.kill();
    let asked = ctl(None, &["cluster", "recover", "--data-dir", &data]).await;
    assert!(asked.status.code() == Some(1) && text(&asked.stderr).contains("--yes"), "{}", text(&asked.stderr));
    let said = done(None, &["cluster", "recover", "--data-dir", &data, "--yes"]).await;
    assert!(said.contains("this node alone") && said.contains("Next:"), "{said}");
    c.nodes[last].restart().await.unwrap();
    assert!(names(&c.nodes[last].api).await.contains(&"kept".to_owned()));
    c.nodes[last].api.apply(&timeout("later")).await.unwrap();

    // The others come back with empty directories, under new ids; their old ones are strangers.
    let token = done(Some(&c.nodes[last]), &["cluster", "join-token", "create", "--uses", "2"]).await;
    let alone = Cluster { dir: tempfile::tempdir().unwrap(), nodes: vec![c.nodes.remove(last)] };
    let mut two = alone.launch("cp-2", &token);
    let mut three = alone.launch("cp-3", &token);
    two.ready().await.unwrap();
    three.ready().await.unwrap();
    alone.healthy(3).await;
    assert_eq!(names(&three.api).await, names(&alone.nodes[0].api).await);
}

#[tokio::test]
async fn learners_promotion_transfer_and_removal() {
    let mut c = Cluster::start(1).await;
    let token = done(Some(&c.nodes[0]), &["cluster", "join-token", "create", "--learner"]).await;
    let mut learner = c.launch("cp-2", &token);
    learner.ready().await.unwrap();
    c.nodes.push(learner);
    c.nodes[1].api.apply(&timeout("through-a-learner")).await.unwrap();
    assert!(names(&c.nodes[1].api).await.contains(&"through-a-learner".to_owned()));
    let table = done(Some(&c.nodes[1]), &["cluster", "members"]).await;
    assert!(table.lines().any(|l| l.contains("cp-2") && l.contains("learner") && l.contains("never")), "{table}");
    let list = done(Some(&c.nodes[0]), &["cluster", "join-token", "list"]).await;
    assert!(list.contains("spent") && !list.contains(token.trim()), "{list}");
    let spent = c.launch("cp-9", &token);
    let mut spent = spent.process;
    assert!(!spent.wait(LIMIT).await.unwrap().success());
    assert!(spent.output().contains("cannot join the cluster"), "{}", spent.output());

    // Two voters are no better than one.
    let refused = ctl(Some(&c.nodes[0]), &["cluster", "promote", "cp-2"]).await;
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("--force"), "{}", text(&refused.stderr));
    done(Some(&c.nodes[0]), &["cluster", "promote", "cp-2", "--force"]).await;
    let said = done(Some(&c.nodes[0]), &["cluster", "transfer-leader", "cp-2"]).await;
    assert!(said.contains("leads"), "{said}");
    assert_eq!(c.leader().await, 1);
    let tuned: Value = serde_json::from_str(&done(Some(&c.nodes[0]), &["cluster", "tune", "-o", "json"]).await).unwrap();
    assert_eq!(tuned["measured"].as_array().map(Vec::len), Some(2), "{tuned}");

    // The leader is removed: the other one leads, and the removed process ends and says why.
    done(Some(&c.nodes[0]), &["cluster", "remove", "cp-2", "--force"]).await;
    let mut removed = c.nodes.pop().unwrap();
    assert_eq!(removed.process.wait(LIMIT).await.unwrap().code(), Some(3), "{}", removed.process.output());
    removed.relaunch().unwrap();
    assert_eq!(removed.process.wait(LIMIT).await.unwrap().code(), Some(3), "{}", removed.process.output());
    c.nodes[0].api.apply(&timeout("after-the-removal")).await.unwrap();
    assert_eq!(ctl(Some(&c.nodes[0]), &["cluster", "remove", "7"]).await.status.code(), Some(1));
}
