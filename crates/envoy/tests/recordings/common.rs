//! Finding and reading the recordings and conformance cases.

use ikada_model::{Json, Key, Kind, Labels, Resource, labels, rest};
use ikada_world::{Command, EntryMeta, Op, Put, World};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A corpus by its environment variable or its place beside the workspace. `None` (with the reason printed) when it is absent; in CI
/// that is a failure.
pub fn corpus(variable: &str, name: &str) -> Option<PathBuf> {
    let beside = |dir: &Path| dir.ancestors().map(|a| a.join("shared").join(name)).find(|p| p.is_dir());
    let found =
        std::env::var_os(variable).map(PathBuf::from).or_else(|| beside(Path::new(env!("CARGO_MANIFEST_DIR")))).filter(|p| p.is_dir());
    if found.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "the corpus {name} is missing, set {variable}");
        println!("skipped: the corpus {name} is not here (set {variable})");
    }
    found
}

/// A recorded reply: one line of request, then JSON.
pub fn recorded(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let body = text.strip_prefix('#').and_then(|t| t.split_once('\n')).map_or(text.as_str(), |(_, b)| b);
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Documents of a YAML stream.
pub fn yaml(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A world being filled.
#[derive(Default)]
pub struct Filler {
    world: World,
    index: u64,
}

impl Filler {
    /// Stores a resource in REST form as it is; a later one replaces an earlier one.
    pub fn put(&mut self, body: &Value) {
        let r = rest::from_value_verbatim(body).unwrap();
        self.put_resource(r);
    }
    /// Stores a resource as a PUT in zone `default` would: computed labels, and the zone tag on inbounds.
    pub fn put_in_zone(&mut self, body: &Value, zone: &str) {
        let mut body = body.clone();
        let kind = body["type"].as_str().and_then(Kind::by_name).unwrap();
        if kind == Kind::Dataplane {
            for inbound in body["networking"]["inbound"].as_array_mut().into_iter().flatten() {
                if let Some(tags) = inbound["tags"].as_object_mut() {
                    tags.insert("kuma.io/zone".into(), zone.into());
                }
            }
        }
        let mut r = rest::from_value_verbatim(&body).unwrap();
        let mut all: Labels = r.labels.clone();
        if kind != Kind::Mesh {
            labels::compute(labels::Mode::Zone { federated: false }, zone, kind, r.mesh(), r.spec.value(), &mut all);
        }
        r = r.with_labels(all);
        self.put_resource(r);
    }
    /// Stores a resource in REST form unread, as data would be that got around every check.
    pub fn put_raw(&mut self, body: &Value) {
        let kind = body["type"].as_str().and_then(Kind::by_name).unwrap();
        let spec = if kind.descriptor().body == ikada_model::kind::Body::Flat { body } else { &body["spec"] };
        self.put_resource(Resource::new(Key::new(kind, "default", body["name"].as_str().unwrap()), Json::from_value(spec)));
    }
    fn put_resource(&mut self, r: Resource) {
        self.index += 1;
        let status = (!r.status.is_empty()).then(|| r.status.clone());
        let put = Put { status, times: Some((r.creation_time, r.modification_time)), ..Put::new(r.key, r.labels, r.spec) };
        self.apply(Op::Put(put));
    }
    /// Removes a resource of mesh `default`.
    pub fn delete(&mut self, kind: Kind, name: &str) {
        self.index += 1;
        self.apply(Op::Delete { key: Key::new(kind, "default", name), expect: ikada_world::Expect::Any });
    }
    fn apply(&mut self, op: Op) {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.index.to_be_bytes());
        let meta = EntryMeta { index: self.index, time: ikada_model::Timestamp::from_millis(self.index) };
        let (world, _, outcome) = self.world.apply(meta, &Command { id, ops: vec![op] });
        self.world = world;
        outcome.unwrap();
    }
    /// The world.
    pub fn world(self) -> World {
        self.world
    }
}

/// Where two documents differ, as paths with both values.
pub fn differences(path: &str, got: &Value, want: &Value, out: &mut Vec<String>) {
    match (got, want) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            for k in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let null = Value::Null;
                differences(&format!("{path}/{k}"), a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (v, w)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{i}"), v, w, out);
            }
        }
        (a, b) => out.push(format!("{path}\n    got  {a}\n    want {b}")),
    }
}
