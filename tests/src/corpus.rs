//! The conformance corpus: folders `<suite>/<case>/` with a `case.yaml` each.

use anyhow::{Context, Result, bail};
use ikada_model::{Kind, Resource, rest::from_value_verbatim, yaml};
use ikada_world::{Command, EntryMeta, Op, Put, World};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Files of the corpus are a few kilobytes; more is not a case.
const MAX_FILE: u64 = 16 << 20;

/// `IKADA_CONFORMANCE_DIR`, else `../shared/conformance` beside the workspace. `None` when it is not there.
pub fn dir() -> Option<PathBuf> {
    let dir = std::env::var_os("IKADA_CONFORMANCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"), PathBuf::from);
    dir.is_dir().then_some(dir)
}

/// The corpus for a test. Without it the test is skipped with a printed reason, but fails where `CI=true`.
pub fn dir_for_test(test: &str) -> Option<PathBuf> {
    let found = dir();
    if found.is_none() {
        let why = "the conformance corpus is not there: set IKADA_CONFORMANCE_DIR";
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test}: {why}");
        eprintln!("{test} skipped: {why}");
    }
    found
}

fn read(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if size > MAX_FILE {
        bail!("{} has {size} bytes, more than {MAX_FILE}", path.display());
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its folder.
    pub dir: PathBuf,
    /// Its `case.yaml`.
    pub spec: Value,
}

impl Case {
    /// Reads a case's folder.
    pub fn load(dir: &Path) -> Result<Case> {
        let file = dir.join("case.yaml");
        let spec = yaml::parse(&read(&file)?).with_context(|| file.display().to_string())?;
        Ok(Case { dir: dir.to_owned(), spec })
    }
    /// A field of `case.yaml`, "" when unset.
    pub fn field(&self, name: &str) -> &str {
        self.spec.get(name).and_then(Value::as_str).unwrap_or("")
    }
    /// `params.<name>`, "" when unset.
    pub fn param(&self, name: &str) -> &str {
        self.spec.get("params").and_then(|p| p.get(name)).and_then(Value::as_str).unwrap_or("")
    }
    /// Text of the file that a field names.
    pub fn text(&self, field: &str) -> Result<String> {
        let name = self.field(field);
        if name.is_empty() {
            bail!("case.yaml of {} has no {field:?}", self.dir.display());
        }
        read(&self.dir.join(name))
    }
    /// Documents of the file that a field names; empty ones are left out.
    pub fn documents(&self, field: &str) -> Result<Vec<Value>> {
        let docs = yaml::parse_documents(&self.text(field)?).with_context(|| format!("{}/{}", self.dir.display(), self.field(field)))?;
        Ok(docs.into_iter().filter(|d| d.as_object().is_none_or(|o| !o.is_empty())).collect())
    }
    /// Resources of the file that a field names, in order and verbatim.
    pub fn resources(&self, field: &str) -> Result<Vec<Resource>> {
        let docs = self.documents(field)?;
        docs.iter().map(|d| from_value_verbatim(d).map_err(anyhow::Error::msg)).collect::<Result<_>>().context(self.field("id").to_owned())
    }
    /// What it expects.
    pub fn expected(&self) -> Result<Value> {
        let text = self.text("expect")?;
        let what = || format!("{}/{}", self.dir.display(), self.field("expect"));
        if self.field("expect").ends_with(".json") { serde_json::from_str(&text).with_context(what) } else { yaml::parse(&text).with_context(what) }
    }
}

/// Cases of a suite, by name.
pub fn suite(corpus: &Path, suite: &str) -> Result<Vec<Case>> {
    let dir = corpus.join(suite);
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(&dir).with_context(|| format!("no suite {}", dir.display()))?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    dirs.retain(|d| d.join("case.yaml").is_file());
    dirs.sort();
    dirs.iter().map(|d| Case::load(d)).collect()
}

/// Names of all suites.
pub fn suites(corpus: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for e in fs::read_dir(corpus).with_context(|| format!("cannot read {}", corpus.display()))? {
        let e = e?;
        if e.path().is_dir()
            && let Ok(name) = e.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A world of resources as they are; a later one with the same key replaces an earlier one.
pub fn world(resources: &[Resource]) -> Result<World> {
    let put = |r: &Resource| {
        let mut put = Put::new(r.key.clone(), r.labels.clone(), r.spec.clone());
        put.times = Some((r.creation_time, r.modification_time));
        put.status = (!r.status.is_empty()).then(|| r.status.clone());
        Op::Put(put)
    };
    let command = Command { id: [1; 16], ops: resources.iter().map(put).collect() };
    let (world, _, outcome) = World::empty().apply(EntryMeta { index: 1, time: Default::default() }, &command);
    outcome.map_err(|e| anyhow::anyhow!("{}: {:?}", e.key, e.reason))?;
    Ok(world)
}

/// A kind by the name in a case.
pub fn kind(name: &str) -> Result<Kind> {
    Kind::by_name(name).with_context(|| format!("unknown resource type {name:?}"))
}
