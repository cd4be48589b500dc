//! The state cache: the applied state of some recent position, as keys and values.
//!
//! It only makes a restart faster. Snapshot and log are authoritative, so whoever opens a cache compares its mark with them, and clears
//! it when it does not fit or cannot be read.

mod parts;
mod sled;

pub use self::sled::SledState;

use crate::{
    error::{Result, StoreError},
    types::Mark,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Largest key in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// Position that a cache is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateMark {
    /// Last entry in it.
    pub mark: Mark,
    /// Opaque: what the writer needs to read it again.
    pub meta: Vec<u8>,
}

/// Changes of a cache.
#[derive(Clone, Debug)]
pub struct StateBatch {
    /// The position that it is at afterwards. `None`: more of these changes is to come, and until then the cache counts as empty.
    pub mark: Option<StateMark>,
    /// New and changed values.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys to remove; absent ones are skipped.
    pub deletes: Vec<Vec<u8>>,
}

/// Everything in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateImage {
    /// Its position.
    pub mark: StateMark,
    /// Its keys and values.
    pub values: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A cache of the applied state.
pub trait StateStore: Send + Sync + 'static {
    /// Applies a batch. One with a mark is durable, with all before it, when this returns.
    fn apply(&self, batch: StateBatch) -> Result<()>;
    /// The position and every key and value; `None` when it is empty. An error when anything is missing or changed.
    fn load(&self) -> Result<Option<StateImage>>;
    /// Removes everything.
    fn clear(&self) -> Result<()>;
    /// Bytes on disk and bytes of live keys and values.
    fn usage(&self) -> Result<(u64, u64)>;
}

/// A cache in memory, for simulations.
#[derive(Default)]
pub struct MemoryState(Mutex<(Option<StateMark>, BTreeMap<Vec<u8>, Vec<u8>>)>);

impl StateStore for MemoryState {
    fn apply(&self, batch: StateBatch) -> Result<()> {
        check(&batch)?;
        let mut state = self.0.lock();
        for key in &batch.deletes {
            state.1.remove(key);
        }
        state.1.extend(batch.puts);
        state.0 = batch.mark;
        Ok(())
    }
    fn load(&self) -> Result<Option<StateImage>> {
        let state = self.0.lock();
        Ok(state.0.clone().map(|mark| StateImage { mark, values: state.1.clone() }))
    }
    fn clear(&self) -> Result<()> {
        *self.0.lock() = Default::default();
        Ok(())
    }
    fn usage(&self) -> Result<(u64, u64)> {
        let bytes = self.0.lock().1.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum();
        Ok((bytes, bytes))
    }
}

fn check(batch: &StateBatch) -> Result<()> {
    match batch.puts.iter().map(|(k, _)| k).chain(&batch.deletes).find(|k| k.len() > MAX_KEY_BYTES) {
        Some(key) => Err(StoreError::TooLarge { what: "key", size: key.len(), limit: MAX_KEY_BYTES }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::testing::keyring;

    fn batch(index: u64, puts: &[(&str, usize)], deletes: &[&str]) -> StateBatch {
        StateBatch {
            mark: Some(StateMark { mark: Mark { index, term: 1 }, meta: vec![index as u8] }),
            puts: puts.iter().map(|(k, n)| (k.as_bytes().to_vec(), vec![*n as u8; *n])).collect(),
            deletes: deletes.iter().map(|k| k.as_bytes().to_vec()).collect(),
        }
    }
    fn sizes(s: &dyn StateStore) -> (u64, Vec<(String, usize)>) {
        let image = s.load().unwrap().unwrap();
        (image.mark.mark.index, image.values.iter().map(|(k, v)| (String::from_utf8(k.clone()).unwrap(), v.len())).collect())
    }

    fn conformance(reopen: &dyn Fn() -> Box<dyn StateStore>, durable: bool) {
        let s = reopen();
        assert_eq!(s.load().unwrap(), None);
        s.apply(batch(1, &[("a", 10), ("ab", 0), ("big", 300_000), ("", 3)], &[])).unwrap();
        assert_eq!(sizes(&*s), (1, vec![("".into(), 3), ("a".into(), 10), ("ab".into(), 0), ("big".into(), 300_000)]));
        s.apply(batch(2, &[("big", 70_000), ("a", 11)], &["ab", "never"])).unwrap();
        let expected = (2, vec![("".into(), 3), ("a".into(), 11), ("big".into(), 70_000)]);
        assert_eq!(sizes(&*s), expected);
        assert!(matches!(
            s.apply(StateBatch { deletes: vec![vec![0; MAX_KEY_BYTES + 1]], ..batch(3, &[], &[]) }),
            Err(StoreError::TooLarge { .. })
        ));
        let s = if durable {
            drop(s);
            let s = reopen();
            assert_eq!(sizes(&*s), expected);
            s
        } else {
            s
        };
        s.apply(batch(4, &[("z", 1)], &["big", ""])).unwrap();
        assert_eq!(sizes(&*s), (4, vec![("a".into(), 11), ("z".into(), 1)]));
        assert_eq!(s.usage().unwrap().1, 14);
        s.clear().unwrap();
        assert_eq!(s.load().unwrap(), None);
        s.apply(batch(5, &[("y", 2)], &[])).unwrap();
        assert_eq!(sizes(&*s), (5, vec![("y".into(), 2)]));
    }

    #[test]
    fn memory() {
        conformance(&|| Box::new(MemoryState::default()), false);
    }

    #[test]
    fn sled() {
        for keyring in [None, Some(keyring(&["a"]))] {
            let tmp = tempfile::tempdir().unwrap();
            conformance(&|| Box::new(SledState::open(&tmp.path().join("state"), keyring.clone()).unwrap()), true);
        }
    }

    #[test]
    fn a_sealed_cache_shows_no_value_and_opens_under_its_key_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("state");
        let open = |ids: &[&str]| SledState::open(&path, (!ids.is_empty()).then(|| keyring(ids)));
        let s = open(&["b", "a"]).unwrap();
        let puts = vec![(b"k1".to_vec(), b"a clear text".repeat(1000)), (b"k2".to_vec(), b"another text".to_vec())];
        s.apply(StateBatch { puts, ..batch(1, &[], &[]) }).unwrap();
        drop(s);
        let found = |text: &[u8]| std::fs::read(path.join("db")).unwrap().windows(text.len()).any(|w| w == text);
        assert!(!found(b"clear text") && !found(b"another text"), "a value can be read in the file");
        assert_eq!(open(&["b"]).unwrap().load().unwrap().unwrap().values.get(b"k2".as_slice()).unwrap(), b"another text");
        for (ids, expected) in [(&[][..], "no keys are configured"), (&["a", "b"], "the first one is \"a\""), (&["a"], "with the key \"b\"")] {
            let message = open(ids).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains(expected), "{ids:?}: {message}");
        }
        SledState::wipe(&path).unwrap();
        let s = open(&[]).unwrap();
        s.apply(batch(1, &[("a", 10)], &[])).unwrap();
        drop(s);
        assert!(open(&["a"]).err().is_some_and(|e| e.to_string().contains("it is not encrypted")));
    }

    /// sled never syncs files in `blobs`.
    #[test]
    fn large_values_stay_in_the_file_that_is_synced() {
        let tmp = tempfile::tempdir().unwrap();
        let s = SledState::open(tmp.path(), None).unwrap();
        for n in 1..12 {
            let names: Vec<String> = (0..n).map(|i| format!("{}{i}-{n}", "k".repeat(60))).collect();
            let puts: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 150_000 * n)).collect();
            s.apply(batch(n as u64, &puts, &[])).unwrap();
        }
        let blobs: Vec<u64> = std::fs::read_dir(tmp.path().join("blobs")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(blobs, []);
        drop(s);
        assert_eq!(sizes(&SledState::open(tmp.path(), None).unwrap()).1.len(), 66);
    }

    #[test]
    fn a_cache_that_cannot_be_read_is_an_error_not_a_panic() {
        let tmp = tempfile::tempdir().unwrap();
        let s = SledState::open(tmp.path(), None).unwrap();
        s.apply(batch(1, &[("a", 50_000), ("b", 50_000)], &[])).unwrap();
        drop(s);
        let path = tmp.path().join("db");
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 40 + 1) {
            let mut bad = good.clone();
            for byte in bad.iter_mut().skip(at).take(64) {
                *byte ^= 0x5a;
            }
            std::fs::write(&path, &bad).unwrap();
            // sled may not notice, notice, or panic. What it gives back is right or nothing.
            if let Ok(Some(StateImage { mark, values: map })) = SledState::open(tmp.path(), None).and_then(|s| s.load()) {
                assert_eq!((mark.mark.index, map.len()), (1, 2), "byte {at}");
                assert!(map.values().all(|v| v.len() == 50_000));
            }
        }
        std::fs::write(&path, vec![7; 1000]).unwrap();
        let _ = SledState::open(tmp.path(), None).and_then(|s| s.load());
        SledState::wipe(tmp.path()).unwrap();
        assert_eq!(SledState::open(tmp.path(), None).unwrap().load().unwrap(), None);
    }
}
