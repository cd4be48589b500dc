//! `make demo`: a control plane on its own store, a client and two versions of a server with real Envoys and mTLS, and what policies do
//! to their traffic. Everything runs on free ports of this machine and ends with the demo.

use anyhow::{Context, Result, bail};
use ikada_tests::{
    apps::{self, App},
    process::{self, ControlPlane, Dataplane, free_port},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Requests that show a split.
const SPLIT_REQUESTS: usize = 200;
/// Requests in a row that have to behave as a policy wants before it counts as settled: Envoy serves connections that were open before a
/// change by the old rules until it has drained them.
const SETTLED_REQUESTS: usize = 100;
/// Requests while the control plane is down.
const OUTAGE: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    process::init();
    let Some(envoy) = process::envoy() else { bail!("Envoy is not installed: run `make setup`, or set IKADA_ENVOY to its binary") };
    let dir = tempfile::Builder::new().prefix("ikada-demo-").tempdir().context("cannot make a temporary directory")?;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // Either way the processes and the directory go when this function returns.
    tokio::select! {
        result = demo(dir.path(), &envoy) => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; all processes of the demo are stopped"),
        _ = term.recv() => bail!("terminated; all processes of the demo are stopped"),
    }
}

fn step(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}
fn fact(text: &str) {
    println!("   {text}");
}

fn dataplane(name: &str, port: u16, app: u16, outbound: Option<(u16, &str, u16)>) -> String {
    let outbound = outbound.map_or_else(String::new, |(local, service, port)| {
        format!("  outbound:\n  - port: {local}\n    backendRef: {{kind: MeshService, name: {service}, port: {port}}}\n")
    });
    format!(
        "type: Dataplane\nmesh: default\nname: {name}\nnetworking:\n  address: 127.0.0.1\n  inbound:\n  - port: {port}\n    servicePort: {app}\n    serviceAddress: 127.0.0.1\n    \
         tags: {{kuma.io/service: {name}, kuma.io/protocol: http}}\n{outbound}"
    )
}

/// Applies a policy, prints how long it took to reach the proxies and the traffic, and waits until all requests follow it.
async fn apply(cp: &ControlPlane, resource: &Value, port: u16, expectation: &str, holds: impl Fn(&Result<apps::Answer>) -> bool) -> Result<()> {
    let start = Instant::now();
    let revision = cp.api.apply(resource).await?;
    let written = start.elapsed();
    let seen = async {
        loop {
            if holds(&apps::get(port, "/").await) {
                return Ok::<_, anyhow::Error>(start.elapsed());
            }
            if start.elapsed() > Duration::from_secs(15) {
                bail!("{expectation}: not seen within 15 s");
            }
        }
    };
    let (propagation, seen) = tokio::join!(cp.propagation_ms(revision), seen);
    fact(&format!(
        "written in {:.1} ms; acknowledged by every Envoy {:.1} ms after the commit; {expectation} {:.1} ms after the write began",
        written.as_secs_f64() * 1e3,
        propagation?,
        seen?.as_secs_f64() * 1e3
    ));
    Ok(())
}

/// Waits until requests follow a policy without exception.
async fn settle(port: u16, holds: impl Fn(&Result<apps::Answer>) -> bool) -> Result<()> {
    let start = Instant::now();
    let mut good = 0;
    while good < SETTLED_REQUESTS {
        good = if holds(&apps::get(port, "/").await) { good + 1 } else { 0 };
        if start.elapsed() > Duration::from_secs(15) {
            bail!("requests do not follow the policy 15 s after it was applied");
        }
    }
    Ok(())
}

fn allowed_answer(answer: &Result<apps::Answer>) -> bool {
    answer.as_ref().is_ok_and(|a| a.status == 200)
}
fn denied_answer(answer: &Result<apps::Answer>) -> bool {
    answer.as_ref().is_ok_and(|a| a.status == 403)
}

fn permission(action: &str) -> Value {
    json!({"type": "MeshTrafficPermission", "mesh": "default", "name": "demo", "spec": {
        "targetRef": {"kind": "Mesh"},
        "from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": action}}],
    }})
}

async fn demo(dir: &Path, envoy: &Path) -> Result<()> {
    step("1. A control plane on its embedded store, from nothing");
    let start = Instant::now();
    let mut cp = ControlPlane::start(dir, &[], &[]).await?;
    fact(&format!("serving after {} ms: REST on port {}, proxies on {}, data in {}/data", start.elapsed().as_millis(), cp.api.port, cp.dp_port, dir.display()));
    let mesh = json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]}});
    cp.api.apply(&mesh).await?;
    cp.api.apply(&permission("Allow")).await?;
    fact("mesh \"default\": mTLS with a built-in CA, MeshServices generated from dataplanes; traffic allowed");

    step("2. A client and two versions of a server, each beside a real Envoy");
    let (v1, v2, own) = (App::start("server-v1").await?, App::start("server-v2").await?, App::start("client").await?);
    let (p1, p2, pc, out) = (free_port()?, free_port()?, free_port()?, free_port()?);
    let start = Instant::now();
    let _server1 = Dataplane::start(&cp, envoy, dir, "default", "server-v1", &dataplane("server-v1", p1, v1.port, None)).await?;
    let _server2 = Dataplane::start(&cp, envoy, dir, "default", "server-v2", &dataplane("server-v2", p2, v2.port, None)).await?;
    let mut client = Dataplane::start(&cp, envoy, dir, "default", "client", &dataplane("client", pc, own.port, Some((out, "server-v1", p1)))).await?;
    let first = process::eventually("a request through the mesh", Duration::from_secs(60), || async {
        apps::get(out, "/").await.is_ok_and(|a| a.status == 200 && a.app == "server-v1")
    })
    .await;
    if let Err(error) = first {
        bail!("{error}\n--- control plane ---\n{}\n--- client ---\n{}", cp.process.output(), client.process.output());
    }
    fact(&format!("first request client → Envoy → mTLS → Envoy → server-v1 answered {} ms after the first process started", start.elapsed().as_millis()));

    step("3. A MeshHTTPRoute splits traffic 80/20 between the versions");
    let route = json!({"type": "MeshHTTPRoute", "mesh": "default", "name": "split", "spec": {
        "targetRef": {"kind": "Mesh"},
        "to": [{"targetRef": {"kind": "MeshService", "name": "server-v1"}, "rules": [{
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "default": {"backendRefs": [
                {"kind": "MeshService", "name": "server-v1", "port": p1, "weight": 80},
                {"kind": "MeshService", "name": "server-v2", "port": p2, "weight": 20},
            ]},
        }]}],
    }});
    apply(&cp, &route, out, "first answer of server-v2", |a| a.as_ref().is_ok_and(|a| a.app == "server-v2")).await?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..SPLIT_REQUESTS {
        *counts.entry(apps::get(out, "/").await?.app).or_default() += 1;
    }
    fact(&format!("{SPLIT_REQUESTS} requests: {}", counts.iter().map(|(k, n)| format!("{k} {n}")).collect::<Vec<_>>().join(", ")));

    step("4. A MeshTrafficPermission denies, another allows again");
    apply(&cp, &permission("Deny"), out, "first denied request", denied_answer).await?;
    settle(out, denied_answer).await?;
    let denied = apps::get(out, "/").await?;
    fact(&format!("a request now gets {} {:?}", denied.status, denied.body.lines().next().unwrap_or("")));
    apply(&cp, &permission("Allow"), out, "first allowed request", allowed_answer).await?;
    settle(out, allowed_answer).await?;

    step("5. The control plane is killed with -9 while requests go on");
    cp.process.kill();
    let (mut sent, mut failed) = (0u32, 0u32);
    let end = Instant::now() + OUTAGE;
    while Instant::now() < end {
        sent += 1;
        match apps::get(out, "/").await {
            Ok(a) if a.status == 200 => {}
            other => {
                failed += 1;
                fact(&format!("failed: {other:?}"));
            }
        }
    }
    fact(&format!("{sent} requests without a control plane, {failed} failed"));
    if failed > 0 {
        bail!("requests failed while the control plane was away");
    }

    step("6. It starts again and finds everything");
    let start = Instant::now();
    cp.restart().await?;
    let ms = start.elapsed().as_millis();
    let routes = cp.api.get("/meshes/default/meshhttproutes").await?.json()?;
    let dataplanes = cp.api.get("/meshes/default/dataplanes").await?.json()?;
    fact(&format!("serving again after {ms} ms with {} route and {} dataplanes", routes["total"], dataplanes["total"]));
    if routes["total"] != 1 || dataplanes["total"] != 3 {
        bail!("something was lost");
    }
    let back = process::eventually("Envoys reconnect", Duration::from_secs(60), || async {
        cp.propagation(1).await.is_ok_and(|r| r["proxies"].as_array().is_some_and(|p| p.len() == 3) && r["synced"] == true)
    })
    .await?;
    fact(&format!("all three Envoys reconnected and in step {} ms later", back.as_millis()));
    apply(&cp, &permission("Deny"), out, "first denied request", denied_answer).await?;
    client.process.is_running().then_some(()).context("the client's launcher ended")?;

    println!("\nDone. Everything the demo started is being stopped.");
    Ok(())
}
