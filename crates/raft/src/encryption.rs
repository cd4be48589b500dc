//! Encryption at rest as the store does it: what is on the disk under which key.

use crate::store::RaftStore;
use ikada_store::{DataDir, FileLog, SnapshotStore, StoreError};
use std::{collections::BTreeSet, sync::Arc};

/// How the data of a node is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encryption {
    /// Id of the key that seals what is written; `None` when nothing is encrypted.
    pub sealing: Option<String>,
    /// Ids of the keys that are configured, the one that seals first.
    pub configured: Vec<String>,
    /// Ids of the keys that log and snapshots on the disk need. A key that is not among them may be removed from the file.
    pub in_use: Vec<String>,
    /// Some of it is not encrypted.
    pub plain: bool,
}

/// The files that have a key.
pub(crate) struct Sealed {
    pub log: Arc<FileLog>,
    pub snapshots: Arc<SnapshotStore>,
    /// Ids of the configured keys.
    pub keys: Vec<String>,
    /// Something was left under another key, or none, when the store was opened. What is written later is under the first.
    pub unfinished: bool,
}

impl Sealed {
    pub(crate) fn new(log: Arc<FileLog>, snapshots: Arc<SnapshotStore>, keys: Vec<String>) -> Result<Sealed, StoreError> {
        let mut sealed = Sealed { log, snapshots, keys, unfinished: false };
        let Encryption { sealing, in_use, plain, .. } = sealed.state()?;
        sealed.unfinished = sealing.is_some_and(|first| plain || in_use.iter().any(|id| *id != first));
        Ok(sealed)
    }

    fn state(&self) -> Result<Encryption, StoreError> {
        let mut ids: BTreeSet<Option<String>> = self.log.key_ids();
        ids.extend(self.snapshots.key_ids()?);
        let configured = self.keys.clone();
        let plain = ids.remove(&None);
        Ok(Encryption { sealing: configured.first().cloned(), configured, in_use: ids.into_iter().flatten().collect(), plain })
    }
}

/// Seals everything with the first key. A disk without the space for a copy is no reason not to start.
pub(crate) fn reseal(dir: &DataDir, log: &FileLog, snapshots: &SnapshotStore) -> Result<(), StoreError> {
    match dir.reseal(log, snapshots) {
        Err(e @ StoreError::Full { .. }) => {
            tracing::warn!("some data is not encrypted with the first key yet, the next start goes on with it: {e}");
            Ok(())
        }
        Err(e) => Err(e),
        Ok(0) => Ok(()),
        Ok(count) => {
            let id = dir.keyring().map(|k| k.sealing_id().to_owned()).unwrap_or_default();
            tracing::info!("encrypted {count} files of {} with the key {id:?}; other keys are not needed any more", dir.path().display());
            Ok(())
        }
    }
}

impl RaftStore {
    /// How the data of this node is encrypted at the moment. Reads the headers of the snapshots.
    ///
    /// # Errors
    /// A snapshot cannot be read.
    pub fn encryption(&self) -> Result<Encryption, StoreError> {
        self.sealed.state()
    }

    /// Set while something is not under the first key, although it should be since the start. Looks at files only then.
    pub(crate) fn encryption_alarm(&self) -> Option<String> {
        if !self.sealed.unfinished {
            return None;
        }
        let first = self.sealed.keys.first()?;
        let Encryption { in_use, plain, .. } = self.encryption().ok()?;
        let mut needed: Vec<String> = in_use.into_iter().filter(|id| id != first).map(|id| format!("encrypted with the key {id:?}")).collect();
        if plain {
            needed.push("not encrypted".to_owned());
        }
        let what = needed.join(", some is ");
        (!needed.is_empty()).then(|| format!("some data is {what}: make space on the disk and restart this node, keep all keys until then"))
    }
}
