//! A stored resource: key, metadata, spec and status.

use crate::{kind::Kind, labels, time::Timestamp};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{any::Any, collections::BTreeMap, fmt, sync::Arc, sync::OnceLock};

/// Labels of a resource, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// Identity of a resource. Ordered by kind, then mesh, then name (byte order), which is the order of lists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Mesh; empty for global kinds.
    pub mesh: Arc<str>,
    /// Name in the store (the hashed name for synced resources).
    pub name: Arc<str>,
}

impl Key {
    /// A key; `mesh` is dropped for global kinds.
    pub fn new(kind: Kind, mesh: &str, name: &str) -> Self {
        Key { kind, mesh: if kind.is_mesh_scoped() { mesh.into() } else { "".into() }, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mesh.is_empty() { write!(f, "{} {:?}", self.kind, self.name) } else { write!(f, "{} {:?} in mesh {:?}", self.kind, self.name, self.mesh) }
    }
}
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.mesh, self.name)
    }
}

/// JSON that is kept as canonical text (keys sorted, no blanks) and parsed when first looked at.
///
/// Text takes a fraction of a parsed tree's memory; most resources are only ever read through their typed view.
pub struct Json {
    text: Arc<str>,
    value: OnceLock<Value>,
}

impl Json {
    /// From a tree.
    pub fn from_value(value: &Value) -> Self {
        Json { text: value.to_string().into(), value: OnceLock::new() }
    }
    /// From text that must be JSON. Errors when it is not.
    pub fn from_text(text: &str) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_str(text)?;
        Ok(Json::from_value(&value))
    }
    /// Canonical text.
    pub fn text(&self) -> &str {
        &self.text
    }
    /// The tree, parsed once.
    pub fn value(&self) -> &Value {
        self.value.get_or_init(|| serde_json::from_str(&self.text).unwrap_or(Value::Null))
    }
    /// `{}` or `null`.
    pub fn is_empty(&self) -> bool {
        matches!(&*self.text, "{}" | "null")
    }
}
impl Clone for Json {
    fn clone(&self) -> Self {
        Json { text: self.text.clone(), value: OnceLock::new() }
    }
}
impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Default for Json {
    fn default() -> Self {
        Json { text: "{}".into(), value: OnceLock::new() }
    }
}
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A typed reading of a spec, see [`Resource::view`].
pub trait View: DeserializeOwned + Send + Sync + 'static {
    /// The kind it reads.
    const KIND: Kind;
    /// Which kinds it reads, for views that serve several (the policies). A kind must have one view type only: the first
    /// reading is cached with the resource.
    fn reads(kind: Kind) -> bool {
        kind == Self::KIND
    }
}

/// Spec or status text for `Debug`: that of kinds for administrators alone (secrets) and of the internal `Config` (the CA of a cluster) is
/// left out, so that no log line shows a key.
pub struct Shown<'a>(pub Option<Kind>, pub &'a str);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A kind that is not known might be one of those.
        if self.0.is_none_or(|k| k.descriptor().admin_only || k == Kind::Config) { f.write_str("<redacted>") } else { f.write_str(self.1) }
    }
}

/// One resource at one version. Immutable; a change makes a new one.
pub struct Resource {
    /// Identity.
    pub key: Key,
    /// Labels as stored (user's and computed ones).
    pub labels: Labels,
    /// When it was created.
    pub creation_time: Timestamp,
    /// When it was last changed.
    pub modification_time: Timestamp,
    /// The revision of the world that wrote it last; optimistic versions compare it. 0 before it is stored.
    pub version: u64,
    /// Deleted together with its owner.
    pub owner: Option<Key>,
    /// Canonical spec.
    pub spec: Json,
    /// Canonical status; `{}` for kinds without.
    pub status: Json,
    view: OnceLock<Option<Box<dyn Any + Send + Sync>>>,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("key", &self.key)
            .field("labels", &self.labels)
            .field("version", &self.version)
            .field("owner", &self.owner)
            .field("spec", &Shown(Some(self.key.kind), self.spec.text()))
            .field("status", &Shown(Some(self.key.kind), self.status.text()))
            .finish_non_exhaustive()
    }
}

impl Clone for Resource {
    fn clone(&self) -> Self {
        Resource {
            key: self.key.clone(),
            labels: self.labels.clone(),
            creation_time: self.creation_time,
            modification_time: self.modification_time,
            version: self.version,
            owner: self.owner.clone(),
            spec: self.spec.clone(),
            status: self.status.clone(),
            view: OnceLock::new(),
        }
    }
}

impl Resource {
    /// A resource with empty labels, status and times.
    pub fn new(key: Key, spec: Json) -> Self {
        Resource {
            key,
            labels: Labels::new(),
            creation_time: Timestamp::ZERO,
            modification_time: Timestamp::ZERO,
            version: 0,
            owner: None,
            spec,
            status: Json::default(),
            view: OnceLock::new(),
        }
    }
    /// The same with these labels.
    pub fn with_labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }
    /// Kind.
    pub fn kind(&self) -> Kind {
        self.key.kind
    }
    /// Mesh; empty for global kinds.
    pub fn mesh(&self) -> &str {
        &self.key.mesh
    }
    /// Name in the store.
    pub fn name(&self) -> &str {
        &self.key.name
    }
    /// A label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }
    /// Label `kuma.io/display-name`, else the name.
    pub fn display_name(&self) -> &str {
        self.label(labels::DISPLAY_NAME).filter(|s| !s.is_empty()).unwrap_or(self.name())
    }
    /// Label `kuma.io/zone` or "".
    pub fn zone(&self) -> &str {
        self.label(labels::ZONE).unwrap_or("")
    }
    /// Label `k8s.kuma.io/namespace` or "".
    pub fn namespace(&self) -> &str {
        self.label(labels::NAMESPACE).unwrap_or("")
    }
    /// The spec read as `V`, parsed once per stored version. `None` when the kind is another one or the spec does not parse
    /// (only possible for data that bypassed validation).
    pub fn view<V: View>(&self) -> Option<&V> {
        if !V::reads(self.key.kind) {
            return None;
        }
        self.view.get_or_init(|| serde_json::from_str::<V>(self.spec.text()).ok().map(|v| Box::new(v) as Box<dyn Any + Send + Sync>)).as_ref()?.downcast_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text() {
        let j = Json::from_text(r#"{ "b":1, "a": [ 2 ] }"#).unwrap();
        assert_eq!(j.text(), r#"{"a":[2],"b":1}"#);
        assert!(Json::from_text("{").is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let show = |kind| format!("{:?}", Resource::new(Key::new(kind, "m", "n"), Json::from_text(r#"{"data":"a2V5"}"#).unwrap()));
        assert!(!show(Kind::Secret).contains("a2V5") && !show(Kind::GlobalSecret).contains("a2V5"));
        assert!(!show(Kind::Config).contains("a2V5"));
        assert!(show(Kind::MeshTimeout).contains("a2V5"));
    }
}
