//! The corpus suites `validation-legacy` and `label-validation` against this crate alone: bodies go through decoding and validation
//! in the order of a PUT, without a server. Cases of kinds that are not implemented are counted, not judged.

use ikada_model::{
    Dataplane, Json, Key, Kind, Labels, Mesh, Mode, Resource, Violation,
    decode::{self, DecodeError},
    flat, ident, labels,
    rest::META_KEYS,
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

/// Files below `dir` with one of these endings, sorted.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|e| path.to_string_lossy().ends_with(e)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// All objects within `value` that are resources of an implemented flat kind.
fn flat_resources<'a>(value: &'a Value, found: &mut Vec<(Kind, &'a Value)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|v| flat_resources(v, found)),
        Value::Object(m) if text(value, "type").ends_with("Overview") => {
            let parts = [
                ("dataplane", Kind::Dataplane),
                ("dataplaneInsight", Kind::DataplaneInsight),
                ("zone", Kind::Zone),
                ("zoneInsight", Kind::ZoneInsight),
            ];
            found.extend(parts.into_iter().filter_map(|(key, kind)| Some((kind, m.get(key)?))));
        }
        Value::Object(m) => match m.get("type").and_then(Value::as_str).and_then(Kind::by_name) {
            Some(kind) if m.contains_key("name") && flat::flat_kind(kind).is_some() => found.push((kind, value)),
            _ => m.values().for_each(|v| flat_resources(v, found)),
        },
        _ => {}
    }
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
    assert_eq!(decode::is_implemented(kind), !matches!(decode::decode(kind, &Value::Null), Err(DecodeError::NotImplemented(_))));
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
    if decoded.type_name != kind.name() {
        out.add("type", "type from the URL has to be the same as in body");
    }
    if kind.is_mesh_scoped() && decoded.mesh.as_deref() != Some(mesh.as_str()) {
        out.add("mesh", "mesh from the URL has to be the same as in body");
    }
    labels::validate(rules, kind, &mesh, &decoded.labels, &mut out);
    // The identifiers of the body are judged, not those of the path.
    ident::validate(kind, decoded.mesh.as_deref().unwrap_or(""), &decoded.name, &mut out);
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

/// What a stock Kuma prints of flat kinds is canonical: reading it changes nothing. Answers of the corpus and recordings beside it.
#[test]
fn what_kuma_prints_is_canonical() {
    let Some(corpus) = corpus() else { return };
    let mut texts: Vec<(PathBuf, String)> = files(&corpus, &[".json"])
        .into_iter()
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("expected")))
        .map(|p| (p.clone(), read(&p)))
        .collect();
    let live = corpus.join("../live");
    if live.is_dir() {
        // The first line of a recording is the request.
        let recordings = files(&live, &[".txt"]).into_iter().map(|p| (p.clone(), read(&p)));
        texts.extend(recordings.map(|(p, t)| (p, t.split_once('\n').map_or(String::new(), |(_, body)| body.to_owned()))));
    }
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for (path, text) in &texts {
        let Ok(document) = serde_json::from_str::<Value>(text) else { continue };
        let mut found = Vec::new();
        flat_resources(&document, &mut found);
        for (kind, resource) in found {
            // Recordings have the data of secrets masked.
            if matches!(kind, Kind::Secret | Kind::GlobalSecret) && path.extension().is_some_and(|e| e == "txt") {
                continue;
            }
            let mut spec = resource.clone();
            spec.as_object_mut().unwrap().retain(|k, _| !META_KEYS.contains(&k.as_str()));
            let canonical = flat::flat_kind(kind).unwrap().canonicalize(resource).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(canonical, spec, "{kind} in {}", path.display());
            *counts.entry(kind).or_default() += 1;
        }
    }
    println!("canonical: {counts:?}");
    assert!(counts.get(&Kind::Dataplane).is_some_and(|n| *n > 0) && counts.get(&Kind::Mesh).is_some_and(|n| *n > 0));
}

/// Every resource of an implemented flat kind that the corpus stores decodes, and its canonical form is a fixed point.
#[test]
fn stored_resources_decode() {
    let Some(corpus) = corpus() else { return };
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for path in files(&corpus, &["resources.yaml"]) {
        let documents = yaml::parse_documents(&read(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let documents = Value::Array(documents);
        let mut found = Vec::new();
        flat_resources(&documents, &mut found);
        for (kind, resource) in found {
            let canonicalize =
                |v: &Value| flat::flat_kind(kind).unwrap().canonicalize(v).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let once = canonicalize(resource);
            assert_eq!(canonicalize(&once), once, "{kind} in {}", path.display());
            let stored = Resource::new(Key::new(kind, text(resource, "mesh"), text(resource, "name")), Json::from_value(&once));
            let readable = match kind {
                Kind::Mesh => stored.view::<Mesh>().is_some(),
                Kind::Dataplane => stored.view::<Dataplane>().is_some(),
                _ => true,
            };
            assert!(readable, "no view of {kind} in {}: {once}", path.display());
            *counts.entry(kind).or_default() += 1;
        }
    }
    println!("stored: {counts:?}");
    assert!(counts.values().sum::<usize>() > 0);
}
