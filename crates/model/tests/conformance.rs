//! The corpus suites `validation-legacy` and `label-validation` against this crate alone: bodies go through decoding and validation
//! in the order of a PUT, without a server. Cases of kinds that are not implemented are counted, not judged.

use ikada_model::{
    Kind, Labels, Mode, Violation,
    decode::{self, DecodeError},
    ident, labels,
    violation::Violations,
    yaml,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The corpus, or `None` with a printed reason. Its absence is a failure in CI.
fn corpus() -> Option<PathBuf> {
    let dir = std::env::var_os("IKADA_CONFORMANCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "no conformance corpus at {}", dir.display());
    println!("skipped: no conformance corpus at {}; set IKADA_CONFORMANCE_DIR", dir.display());
    None
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn cases(suite: &Path) -> Vec<(PathBuf, Value)> {
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(suite).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("case.yaml").is_file()).collect();
    dirs.sort();
    assert!(!dirs.is_empty(), "no cases in {}", suite.display());
    dirs.into_iter().map(|dir| (dir.clone(), yaml::parse(&read(&dir.join("case.yaml"))).unwrap())).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// Kind, mesh and name of `/meshes/{m}/{path}/{n}` or `/{path}/{n}`.
fn target(path: &str) -> (Kind, String, String) {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["meshes", mesh, segment, name] => (Kind::by_path(segment).unwrap(), (*mesh).to_owned(), (*name).to_owned()),
        [segment, name] => (Kind::by_path(segment).unwrap(), String::new(), (*name).to_owned()),
        _ => panic!("unexpected path {path}"),
    }
}

/// The statuses that a step allows.
fn statuses(step: &Value) -> Vec<u64> {
    match &step["status"] {
        Value::Array(all) => all.iter().filter_map(Value::as_u64).collect(),
        one => one.as_u64().into_iter().collect(),
    }
}

/// What a PUT of `body` by mode `rules` answers as far as this crate decides it: status and violations. `None` = kind not implemented.
fn put(rules: &labels::Rules<'_>, path: &str, body: &str) -> Option<(u64, Vec<Violation>)> {
    let (kind, mesh, name) = target(path);
    let answer = decode::parse(kind, body.as_bytes()).and_then(|body| decode::decode(kind, &body));
    let decoded = match answer {
        Err(DecodeError::NotImplemented(_)) => return None,
        Err(DecodeError::Malformed(detail)) => return Some((400, vec![Violation::new("", detail)])),
        Err(DecodeError::Invalid(violations)) => return Some((400, violations)),
        Ok(decoded) => decoded,
    };
    let mut out = Violations::new();
    if decoded.name != name {
        out.add("name", "name from the URL has to be the same as in body");
    }
    labels::validate(rules, kind, &mesh, &decoded.labels, &mut out);
    ident::validate(kind, &mesh, &name, &mut out);
    if out.is_empty() {
        let spec = decode::default_spec(kind, decoded.spec.value().clone());
        out.extend(decode::validate(kind, &mesh, &name, &decoded.labels, &spec));
    }
    Some(if out.is_empty() { (201, Vec::new()) } else { (400, out.into_vec()) })
}

fn sorted(mut violations: Vec<Violation>) -> Vec<Violation> {
    violations.sort();
    violations
}

fn expected_violations(dir: &Path, step: &Value, list: &str, message: &str) -> (Vec<Violation>, bool) {
    let Some(file) = step.get("expect").and_then(Value::as_str) else { return (Vec::new(), false) };
    let expected = yaml::parse(&read(&dir.join(file))).unwrap();
    let violations = expected[list].as_array().into_iter().flatten().map(|v| Violation::new(text(v, "field"), text(v, message))).collect();
    let schema_first = expected.get("schema_refuses_first").is_some_and(|v| *v != Value::Bool(false) && !v.is_null());
    (violations, schema_first)
}

#[test]
fn validation_legacy() {
    let Some(corpus) = corpus() else { return };
    let rules = labels::Rules { mode: Mode::Zone { federated: false }, zone: "default", disable_origin_validation: false };
    let mut counts: BTreeMap<Kind, (usize, usize)> = BTreeMap::new();
    let mut failures = Vec::new();
    for (dir, case) in cases(&corpus.join("validation-legacy")) {
        let id = text(&case, "id").to_owned();
        assert_eq!(text(&case, "drivable"), "rest", "{id}: the suite is read as plain REST");
        for step in case["steps"].as_array().unwrap().iter().filter(|s| text(s, "method") == "PUT") {
            let (kind, ..) = target(text(step, "path"));
            let Some((status, violations)) = put(&rules, text(step, "path"), &read(&dir.join(text(step, "body")))) else {
                counts.entry(kind).or_default().1 += 1;
                continue;
            };
            counts.entry(kind).or_default().0 += 1;
            let allowed = statuses(step);
            let (wanted, schema_first) = expected_violations(&dir, step, "violations", "message");
            // A valid body may be created or updated.
            let status_ok = allowed.contains(&status) || (status == 201 && allowed.contains(&200));
            let violations_ok =
                text(step, "compare") != "violations" || schema_first || sorted(violations.clone()) == sorted(wanted.clone());
            if !status_ok || !violations_ok {
                failures.push(format!("{id}: {status} {violations:#?}\n  instead of {allowed:?} {wanted:#?}"));
            }
        }
    }
    for (kind, (judged, left)) in &counts {
        println!("validation-legacy {kind}: {judged} judged, {left} left out");
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
    for kind in [Kind::Mesh, Kind::Dataplane] {
        assert!(counts.get(&kind).is_some_and(|c| c.0 > 0), "no case of {kind} was judged");
    }
}

#[test]
fn label_validation() {
    let Some(corpus) = corpus() else { return };
    let mut judged = 0;
    let mut failures = Vec::new();
    for (dir, case) in cases(&corpus.join("label-validation")) {
        let id = text(&case, "id").to_owned();
        let mode = match text(&case, "mode") {
            "global" => Mode::Global,
            "zone-federated" => Mode::Zone { federated: true },
            "zone" => Mode::Zone { federated: false },
            other => panic!("{id}: mode {other:?}"),
        };
        let rules = labels::Rules { mode, zone: text(&case, "zone"), disable_origin_validation: false };
        for step in case["steps"].as_array().unwrap().iter().filter(|s| text(s, "method") == "PUT") {
            let (kind, mesh, _) = target(text(step, "path"));
            let body: Value = serde_json::from_str(&read(&dir.join(text(step, "body")))).unwrap();
            let given: Labels = body.get("labels").map(|l| serde_json::from_value(l.clone()).unwrap()).unwrap_or_default();
            let mut out = Violations::new();
            labels::validate(&rules, kind, &mesh, &given, &mut out);
            let (wanted, _) = expected_violations(&dir, step, "invalid_parameters", "reason");
            let wanted: Vec<Violation> = wanted.into_iter().filter(|v| v.field.starts_with("labels[")).collect();
            assert!(!statuses(step).contains(&400) || !wanted.is_empty(), "{id}: refused for another reason than labels");
            judged += 1;
            // The order counts: the answer lists them as they are found.
            if out.as_slice() != wanted {
                failures.push(format!("{id}: {:#?}\n  instead of {wanted:#?}", out.as_slice()));
            }
        }
    }
    println!("label-validation: {judged} judged");
    assert!(judged > 0);
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}
