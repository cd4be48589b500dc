//! The REST suites of the conformance corpus, without a process: resources preloaded as they are, requests through the router, answers
//! compared by the corpus' rules.

use crate::common::{App, HOST, bundle, diff, mask, read, shared, yaml};
use ikada_api::ApiOptions;
use ikada_model::{Kind, Mode, decode::is_implemented};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fs, path::Path};

enum Outcome {
    Passed,
    /// Writes a kind that is not implemented, and was told so; or reads what such a kind says.
    Left,
    /// For the semantic check alone, or about generated configuration.
    Elsewhere,
    Failed(String),
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or("")
}

/// Of an API server alone, which the corpus was recorded from: nothing completes dataplanes.
fn options(case: &Value) -> ApiOptions {
    let mode = match text(case, "mode") {
        "global" => Mode::Global,
        "zone-federated" => Mode::Zone { federated: true },
        _ => Mode::Zone { federated: false },
    };
    let mut o = ApiOptions { mode, zone: text(case, "zone").to_owned(), complete_dataplanes: false, ..ApiOptions::default() };
    for (k, v) in case.get("env").and_then(Value::as_object).into_iter().flatten() {
        match k.as_str() {
            "KUMA_MULTIZONE_ZONE_DISABLE_ORIGIN_LABEL_VALIDATION" => o.disable_origin_label_validation = v.as_str() == Some("true"),
            other => panic!("setting {other} is not known to this test"),
        }
    }
    o
}

/// Kind that a step writes.
fn written_kind(step: &Value) -> Option<Kind> {
    let path = text(step, "path").trim_matches('/');
    let parts: Vec<_> = path.split('/').collect();
    (text(step, "method") == "PUT").then(|| Kind::by_path(if parts.len() == 4 { parts[2] } else { parts[0] })).flatten()
}

fn compare(dir: &Path, step: &Value, body: &str) -> Option<String> {
    let how = text(step, "compare");
    if how == "status" {
        return None;
    }
    let file = step.get("expect").and_then(Value::as_str)?;
    let want = read(&dir.join(file));
    let json = |t: &str| serde_json::from_str::<Value>(t).map_err(|e| format!("{e}: {t:?}"));
    match how {
        "violations" => {
            let have = match json(body) {
                Ok(v) => v,
                Err(e) => return Some(e),
            };
            let list = |v: &Value, key: &str, message: &str| {
                let items = v.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                let mut all: Vec<_> = items.iter().map(|p| (text(p, "field").to_owned(), text(p, message).to_owned())).collect();
                all.sort();
                all
            };
            let want = list(&yaml(&want)[0], "violations", "message");
            let have = list(&have, "invalid_parameters", "reason");
            (want != have).then(|| format!("violations: want {want:?}\n       got {have:?}"))
        }
        "labels" => {
            let labels = |v: Value| v.get("labels").cloned().unwrap_or(Value::Object(Map::new()));
            diff(&labels(json(&want).unwrap()), &labels(json(body).ok()?), "$.labels")
        }
        "" => {
            let have = match json(&mask(&body.replace(HOST, "{{address}}"))) {
                Ok(v) => v,
                Err(e) => return Some(e),
            };
            diff(&json(&mask(&want)).unwrap(), &have, "$")
        }
        other => Some(format!("comparison {other} is not known to this test")),
    }
}

async fn run(dir: &Path) -> Outcome {
    let case = yaml(&read(&dir.join("case.yaml"))).remove(0);
    let generated = |s: &Value| text(s, "path").contains("/_config") && s["status"] == 200;
    if text(&case, "drivable") == "function" || case["steps"].as_array().is_some_and(|s| s.iter().any(generated)) {
        return Outcome::Elsewhere;
    }
    let app = App::new(options(&case));
    let loaded = case.get("resources").and_then(Value::as_str).map(|f| bundle(&read(&dir.join(f)))).unwrap_or_default();
    let policies = loaded.iter().map(|r| r.kind()).filter(|k| k.descriptor().policy.is_some());
    let unknown_policy = policies.into_iter().any(|k| !is_implemented(k));
    app.store.preload(loaded).await;
    match steps(dir, &case, &app).await {
        Outcome::Failed(_) if unknown_policy => Outcome::Left,
        outcome => outcome,
    }
}

async fn steps(dir: &Path, case: &Value, app: &App) -> Outcome {
    for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let (method, path) = (text(step, "method"), text(step, "path").replace(' ', "%20"));
        let body = step.get("body").and_then(Value::as_str).map(|f| read(&dir.join(f)));
        let mut headers: Vec<(String, String)> = step
            .get("headers")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.to_lowercase(), v.as_str().unwrap_or("").to_owned()))
            .collect();
        if body.is_some() && !headers.iter().any(|(k, _)| k == "content-type") {
            headers.push(("content-type".into(), "application/json".into()));
        }
        let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let answer = app.request(method, &path, &headers, body.unwrap_or_default().into_bytes(), crate::common::LOCAL).await;
        let at = format!("step {i} {method} {path}: ");
        let want: Vec<u64> = match &step["status"] {
            Value::Array(a) => a.iter().filter_map(Value::as_u64).collect(),
            v => v.as_u64().into_iter().collect(),
        };
        let kind = written_kind(step);
        // 405 comes before everything else, also for kinds that are not implemented.
        if kind.is_some_and(|k| !is_implemented(k)) && !want.contains(&405) {
            return if answer.status == 501 { Outcome::Left } else { Outcome::Failed(format!("{at}want status 501 got {} {}", answer.status, answer.text)) };
        }
        if !want.contains(&u64::from(answer.status)) {
            return Outcome::Failed(format!("{at}want status {want:?} got {} {}", answer.status, answer.text.replace('\n', " ")));
        }
        if let Some(d) = compare(dir, step, &answer.text) {
            return Outcome::Failed(format!("{at}{d}"));
        }
    }
    Outcome::Passed
}

const SUITES: &[&str] = &[
    "api-base",
    "api-crud",
    "api-single",
    "api-dataplane-overview",
    "api-dataplane-policies",
    "api-inbound-policies",
    "api-outbound-policies",
    "api-outbound-routes",
    "api-route-policies",
    "api-dataplane-rules",
    "api-dataplane-layout",
    "api-hostnames-global",
    "api-hostnames-zone",
    "api-meshservice-dataplanes",
    "api-policy-dataplanes",
    "label-validation",
    "validation-legacy",
    "validation-policies",
];

#[tokio::test(flavor = "multi_thread")]
async fn rest_suites() {
    let Some(corpus) = shared("IKADA_CONFORMANCE_DIR", "conformance") else { return };
    let mut failures = Vec::new();
    let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for suite in SUITES {
        let mut dirs: Vec<_> = fs::read_dir(corpus.join(suite)).unwrap().map(|d| d.unwrap().path()).filter(|d| d.is_dir()).collect();
        dirs.sort();
        for dir in dirs {
            let n = counts.entry(suite).or_default();
            match run(&dir).await {
                Outcome::Passed => n[0] += 1,
                Outcome::Left => n[1] += 1,
                Outcome::Elsewhere => n[2] += 1,
                Outcome::Failed(why) => {
                    n[3] += 1;
                    failures.push(format!("{suite}/{}\n     {why}", dir.file_name().unwrap().to_string_lossy()));
                }
            }
        }
    }
    println!("{:<28} {:>7} {:>7} {:>9} {:>7}", "suite", "passed", "left", "elsewhere", "failed");
    for (suite, n) in &counts {
        println!("{suite:<28} {:>7} {:>7} {:>9} {:>7}", n[0], n[1], n[2], n[3]);
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}
