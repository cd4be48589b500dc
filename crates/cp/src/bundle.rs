//! `--load`: fills an empty store verbatim from a YAML stream.

use anyhow::{Context, Result, bail};
use ikada_model::{Key, Kind, Resource, rest};
use ikada_world::{Command, Expect, Op, ProposeError, Put, Replicator};
use std::{collections::BTreeMap, path::Path};

/// Operations of one command when the whole bundle does not fit into one entry.
const CHUNK: usize = 200;

/// The commands before have been applied.
const PARTLY: &str = "cannot store the whole bundle; the data directory holds a part of it now: remove it, or choose another one with --data-dir";

/// Reads a bundle: documents in REST form, in order; a later one of the same type, mesh and name replaces the earlier. Errors name the
/// document.
pub fn read(path: &Path) -> Result<Vec<Resource>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read bundle {}", path.display()))?;
    let documents = ikada_model::yaml::parse_documents(&text).map_err(|e| anyhow::anyhow!("bundle {}: {e}", path.display()))?;
    let mut order: Vec<Key> = Vec::new();
    let mut all: BTreeMap<Key, Resource> = BTreeMap::new();
    for (i, document) in documents.iter().enumerate() {
        // Comments only, or an empty mapping.
        if document.is_null() || document.as_object().is_some_and(serde_json::Map::is_empty) {
            continue;
        }
        let r = rest::from_value_verbatim(document).map_err(|e| anyhow::anyhow!("bundle {}, document {}: {e}", path.display(), i + 1))?;
        if all.insert(r.key.clone(), r.clone()).is_none() {
            order.push(r.key);
        }
    }
    Ok(order.iter().filter_map(|k| all.remove(k)).collect())
}

/// Stores the resources as they are: labels, status and times included, nothing computed. The store must be empty.
pub async fn load(store: &dyn Replicator, path: &Path) -> Result<usize> {
    let world = store.world();
    // What the cluster keeps about itself is there from the start.
    let own = |r: &Resource| r.kind() == Kind::Config && r.name().starts_with("ikada-cluster-");
    let found = world.iter().filter(|(_, r)| !own(r)).count();
    if found > 0 {
        bail!("--load needs an empty store, but the data directory holds {found} resources: choose another one with --data-dir");
    }
    let resources = read(path)?;
    let ops: Vec<Op> = resources
        .iter()
        .map(|r| {
            Op::Put(Put {
                status: Some(r.status.clone()),
                expect: Expect::Absent,
                times: Some((r.creation_time, r.modification_time)),
                ..Put::new(r.key.clone(), r.labels.clone(), r.spec.clone())
            })
        })
        .collect();
    let whole = store.propose(Command { id: store.new_id(), ops: ops.clone() }).await;
    match whole {
        Ok(_) => {}
        Err(ProposeError::TooLarge { .. }) => {
            for chunk in ops.chunks(CHUNK) {
                store.propose(Command { id: store.new_id(), ops: chunk.to_vec() }).await.context(PARTLY)?;
            }
        }
        Err(e) => return Err(e).context("cannot store the bundle"),
    }
    Ok(resources.len())
}
