//! What a proxy should have: immutable, shared, cheap to compare.

use crate::type_url;
use bytes::Bytes;
use prost::Message;
use std::{collections::BTreeMap, sync::Arc};

/// One encoded resource. Equal resources of many proxies should be one `Arc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Name of the resource.
    pub name: Arc<str>,
    /// Type URL.
    pub type_url: &'static str,
    /// Hash of the content, the same on every node (see [`content_hash`]).
    pub version: u64,
    /// The encoded message (`Any.value`).
    pub body: Bytes,
    /// Name of the assignment of a cluster that takes its endpoints from EDS.
    pub endpoints: Option<Arc<str>>,
}

/// The one field of a Cluster that this crate reads.
#[derive(Clone, PartialEq, Message)]
struct ClusterEds {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    eds_cluster_config: Option<EdsClusterConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct EdsClusterConfig {
    #[prost(string, tag = "2")]
    service_name: String,
}

impl Encoded {
    /// An encoded resource. Reads from a cluster's body which assignment it needs; a body that does not decode needs none.
    pub fn new(name: Arc<str>, type_url: &'static str, version: u64, body: Bytes) -> Self {
        let endpoints = if type_url == type_url::CLUSTER { assignment_of(&name, &body) } else { None };
        Encoded { name, type_url, version, body, endpoints }
    }
}

fn assignment_of(name: &Arc<str>, body: &Bytes) -> Option<Arc<str>> {
    let eds = ClusterEds::decode(body.clone()).ok()?.eds_cluster_config?;
    Some(if eds.service_name.is_empty() { name.clone() } else { eds.service_name.into() })
}

/// 64-bit FNV-1a: the hash of versions. Equal on all nodes and builds, never 0 (0 means "unknown version").
pub fn content_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for b in (part.len() as u64).to_le_bytes().iter().chain(part) {
            h = (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    }
    h.max(1)
}

/// A resource in a snapshot with the version it is sent under.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The resource.
    pub encoded: Arc<Encoded>,
    /// Version on the wire: the resource's own, but for assignments mixed with the version of their cluster. So endpoints are sent again whenever
    /// their cluster changed (Envoy keeps a changed cluster warming until it hears from EDS), also over reconnects and moves to another node.
    pub version: u64,
}

/// All resources of one type.
#[derive(Debug, Default)]
pub struct Typed {
    entries: BTreeMap<Arc<str>, Entry>,
    digest: u64,
}

impl Typed {
    /// By name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }
    /// In order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter()
    }
    /// Number of resources.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// No resources.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// Hash over names and versions; equal digests mean equal content.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// Everything one proxy should have, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    types: BTreeMap<&'static str, Typed>,
}

impl Snapshot {
    /// Resources of a type; `None` when there are none.
    pub fn typed(&self, type_url: &str) -> Option<&Typed> {
        self.types.get(type_url)
    }
    /// Hash over all names and versions.
    pub fn digest(&self) -> u64 {
        content_hash(self.types.iter().flat_map(|(url, t)| [url.as_bytes().to_vec(), t.digest.to_le_bytes().to_vec()]).collect::<Vec<_>>().iter().map(Vec::as_slice))
    }
    /// Number of resources of all types.
    pub fn len(&self) -> usize {
        self.types.values().map(Typed::len).sum()
    }
    /// No resources at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Builds a [`Snapshot`].
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    types: BTreeMap<&'static str, BTreeMap<Arc<str>, Arc<Encoded>>>,
}

impl SnapshotBuilder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a resource; a second one of the same type and name replaces the first.
    pub fn insert(&mut self, encoded: Arc<Encoded>) -> &mut Self {
        self.types.entry(encoded.type_url).or_default().insert(encoded.name.clone(), encoded);
        self
    }
    /// The snapshot. Errors name a cluster whose assignment is missing: such a snapshot must not be published, the cluster would never warm up.
    pub fn build(self) -> Result<Snapshot, MissingEndpoints> {
        let none = BTreeMap::new();
        let clusters = self.types.get(type_url::CLUSTER).unwrap_or(&none);
        let assignments = self.types.get(type_url::ENDPOINTS).unwrap_or(&none);
        let mut owners: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for cluster in clusters.values() {
            let Some(endpoints) = &cluster.endpoints else { continue };
            if !assignments.contains_key(endpoints) {
                return Err(MissingEndpoints { cluster: cluster.name.clone(), endpoints: endpoints.clone() });
            }
            owners.entry(endpoints).or_default().push(cluster.version);
        }
        let mut types = BTreeMap::new();
        for (url, resources) in &self.types {
            let entries: BTreeMap<Arc<str>, Entry> = resources
                .iter()
                .map(|(name, e)| {
                    let owners = if *url == type_url::ENDPOINTS { owners.get(&**name) } else { None };
                    (name.clone(), Entry { encoded: e.clone(), version: wire_version(e.version, owners.map_or(&[], Vec::as_slice)) })
                })
                .collect();
            types.insert(*url, Typed { digest: digest(entries.iter().map(|(n, e)| (&**n, e.version))), entries });
        }
        Ok(Snapshot { types })
    }
}

fn wire_version(own: u64, owners: &[u64]) -> u64 {
    if owners.is_empty() {
        return own.max(1);
    }
    let words: Vec<[u8; 8]> = std::iter::once(&own).chain(owners).map(|v| v.to_le_bytes()).collect();
    content_hash(words.iter().map(|w| w.as_slice()))
}

/// Hash over names and versions, in the given order.
pub(crate) fn digest<'a>(items: impl Iterator<Item = (&'a str, u64)>) -> u64 {
    let words: Vec<(&str, [u8; 8])> = items.map(|(n, v)| (n, v.to_le_bytes())).collect();
    content_hash(words.iter().flat_map(|(n, v)| [n.as_bytes(), v.as_slice()]))
}

/// A cluster takes its endpoints from EDS, but there is no such assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster {cluster:?} takes its endpoints from the assignment {endpoints:?}, which is missing")]
pub struct MissingEndpoints {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The missing assignment.
    pub endpoints: Arc<str>,
}
