//! Suite `validation-policies` of the conformance corpus, for the kinds that are built: bodies go the way of a PUT
//! (decode, then the validator with the real meta).

use ikada_model::{
    Kind, Labels, Violation,
    decode::{self, DecodeError},
    policy::{ValidateContext, kind_spec},
    violation::Violations,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Kinds that must not fail a case.
const BUILT: [Kind; 6] =
    [Kind::MeshTrafficPermission, Kind::MeshTimeout, Kind::MeshHTTPRoute, Kind::MeshCircuitBreaker, Kind::MeshRetry, Kind::MeshService];

fn corpus() -> Option<PathBuf> {
    let dir = std::env::var_os("IKADA_CONFORMANCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"), PathBuf::from)
        .join("validation-policies");
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "the conformance corpus is missing at {}", dir.display());
    println!("skipped: no conformance corpus at {} (set IKADA_CONFORMANCE_DIR)", dir.display());
    None
}

fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a PUT of `body` finds.
fn put(kind: Kind, body: &Value) -> Result<Vec<Violation>, String> {
    let decoded = match decode::decode(kind, body) {
        Ok(d) => d,
        Err(DecodeError::Invalid(v)) => return Ok(v),
        Err(e) => return Err(e.to_string()),
    };
    let mesh = decoded.mesh.as_deref().unwrap_or_default();
    Ok(decode::validate(kind, mesh, &decoded.name, &decoded.labels, decoded.spec.value()))
}

/// The kind's validator alone, on the body as written.
fn semantic(kind: Kind, body: &Value) -> Result<Vec<Violation>, String> {
    let spec = kind_spec(kind).ok_or("not a kind with spec")?;
    let labels = Labels::new();
    let name = body["name"].as_str().unwrap_or_default();
    let mut out = Violations::new();
    (spec.validate)(&ValidateContext { mesh: "default", name, labels: Some(&labels) }, &body["spec"], &mut out);
    Ok(out.into_vec())
}

fn check(kind: Kind, dir: &Path, case: &Value) -> Result<(), String> {
    let body: Value = serde_json::from_slice(&fs::read(dir.join("request.json")).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    let found = if case["drivable"] == "function" { semantic(kind, &body)? } else { put(kind, &body)? };
    let expected = dir.join("expected.yaml");
    if !expected.exists() {
        return if found.is_empty() { Ok(()) } else { Err(format!("refused: {found:?}")) };
    }
    let expected = yaml(&expected);
    if expected.get("schema_refuses_first").is_some() {
        // Over REST the schema speaks first: only the refusal is comparable. Its fields are, though.
        let fields: Vec<&str> =
            expected["schema_refuses_first"].as_array().into_iter().flatten().filter_map(|v| v["field"].as_str()).collect();
        return match fields.iter().find(|f| !found.iter().any(|v| v.field == **f)) {
            None => Ok(()),
            Some(f) => Err(format!("{f} is not refused: {found:?}")),
        };
    }
    let mut wanted: Vec<Violation> = Vec::new();
    for v in expected["violations"].as_array().into_iter().flatten() {
        let text = |key: &str| v[key].as_str().map(str::to_owned).ok_or_else(|| format!("expected.yaml: no {key}"));
        wanted.push(Violation::new(text("field")?, text("message")?));
    }
    let mut found = found;
    wanted.sort();
    found.sort();
    if found == wanted && !wanted.is_empty() { Ok(()) } else { Err(format!("\n  found  {found:?}\n  wanted {wanted:?}")) }
}

#[test]
fn validation_policies() {
    let Some(dir) = corpus() else { return };
    let mut cases: Vec<PathBuf> = fs::read_dir(&dir).unwrap().filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.is_dir()).collect();
    cases.sort();
    let mut passed: BTreeMap<&str, usize> = BTreeMap::new();
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    let mut failed = Vec::new();
    for dir in &cases {
        let case = yaml(&dir.join("case.yaml"));
        let path = case["steps"][0]["path"].as_str().unwrap_or_default();
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let plural = if segments.first() == Some(&"meshes") { segments.get(2) } else { segments.first() };
        let Some(kind) = plural.and_then(|p| Kind::by_path(p)) else { panic!("{}: no kind in path {path}", dir.display()) };
        if kind_spec(kind).is_none() {
            *left.entry(kind.name().to_owned()).or_default() += 1;
            continue;
        }
        match check(kind, dir, &case) {
            Ok(()) => *passed.entry(kind.name()).or_default() += 1,
            Err(e) => failed.push(format!("{}: {e}", dir.file_name().unwrap_or_default().to_string_lossy())),
        }
    }
    println!("validation-policies: {} cases", cases.len());
    println!("passed {}: {passed:?}", passed.values().sum::<usize>());
    println!("left (kind not built) {}: {left:?}", left.values().sum::<usize>());
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    for kind in BUILT {
        assert!(passed.get(kind.name()).is_some_and(|n| *n > 0), "no case of {kind} was found");
    }
}
