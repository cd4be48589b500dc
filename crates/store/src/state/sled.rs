//! [`StateStore`] in sled, which is not trusted.
//!
//! All calls run on one thread behind a panic boundary. sled's `flush` does not make data durable on Linux, so a second descriptor on its
//! file is synced after it. Values are split into parts below the size at which sled writes files that it never syncs. The mark carries
//! count and digest of everything stored: a cache that lost or kept part of a batch is found out at load.
//!
//! With a keyring, values and mark are sealed ([`crate::seal`]) with a key that the cache gets when it is made. A cache under another key, or
//! under none, is an error: it is deleted and made anew, so that nothing of it stays in sled's files.

use super::{
    StateBatch, StateImage, StateMark, StateStore, check,
    parts::{digest, open_bytes, part_key, place, read_part, seal_bytes, split, split_key},
};
use crate::{
    codec::{self, Tag},
    error::{Result, StoreError},
    seal::{BLOCK_BYTES, Keyring, Nonces, Seal, unlock},
    types::Mark,
};
use serde::{Deserialize, Serialize};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

const TREE: &str = "state";
const META_TREE: &str = "meta";
const MARK_KEY: &[u8] = b"mark";
/// The block of [`crate::seal`] of a sealed cache.
const SEAL_KEY: &[u8] = b"seal";
const CONTEXT: &[u8] = b"ikada state cache 1";
const CACHE_BYTES: u64 = 64 << 20;
/// How often, and after which pauses, the lock of an earlier handle is tried again.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const MARK_TAG: Tag = Tag { kind: 0x40, version: 1 };

#[derive(Serialize, Deserialize)]
struct MarkRecordV1 {
    index: u64,
    term: u64,
    meta: Vec<u8>,
    count: u64,
    bytes: u64,
    digest: u64,
}

type Job = Box<dyn FnOnce(&mut Db) + Send>;

/// A cache of the applied state in sled.
pub struct SledState {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

fn cache(e: impl std::fmt::Display) -> StoreError {
    StoreError::Cache(e.to_string())
}

fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(cache(format!("sled panicked: {}", text.unwrap_or_default())))
    })
}

impl SledState {
    /// Opens or makes a cache in a directory of its own. With a keyring it is sealed with the first key; one that is not is an error.
    pub fn open(dir: &Path, keyring: Option<Arc<Keyring>>) -> Result<SledState> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (opened, result) = mpsc::sync_channel(1);
        let dir = dir.to_path_buf();
        let work = move || {
            let mut db = match guarded(|| Db::open(&dir, keyring.as_deref())) {
                Ok(db) => db,
                Err(e) => {
                    opened.send(Err(e)).ok();
                    return;
                }
            };
            opened.send(Ok(())).ok();
            while let Ok(job) = todo.recv() {
                job(&mut db);
            }
            // sled flushes when it is dropped, and may panic in that.
            guarded(|| {
                drop(db);
                Ok(())
            })
            .ok();
        };
        let thread = thread::Builder::new().name("ikada-state".to_owned()).spawn(work).map_err(cache)?;
        result.recv().map_err(|_| cache("its thread ended"))??;
        Ok(SledState { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Deletes a cache that is not open, readable or not.
    pub fn wipe(dir: &Path) -> Result<()> {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", dir, e)),
            _ => fs::create_dir_all(dir).map_err(|e| StoreError::io("create", dir, e)),
        }
    }

    fn call<T: Send + 'static>(&self, f: impl FnOnce(&mut Db) -> Result<T> + Send + 'static) -> Result<T> {
        let (answer, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |db| {
            let out = match &db.broken {
                Some(reason) => Err(cache(reason)),
                None => guarded(|| f(db)),
            };
            if let Err(e) = &out {
                db.broken.get_or_insert(e.to_string());
            }
            answer.send(out).ok();
        });
        let gone = || cache("its thread ended");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

impl Drop for SledState {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Db {
    dir: PathBuf,
    db: sled::Db,
    state: sled::Tree,
    meta: sled::Tree,
    /// Kept open, so that errors of write-back are reported to it.
    file: File,
    mark: Option<MarkRecordV1>,
    totals: Totals,
    sealer: Option<Sealer>,
    /// First failure; afterwards nothing is tried, since what sled holds is unknown.
    broken: Option<String>,
    /// Blob files were noticed.
    warned: Cell<bool>,
}

/// What is stored, while it has no mark too.
#[derive(Clone, Copy, Default)]
struct Totals {
    count: u64,
    bytes: u64,
    digest: u64,
}

struct Sealer {
    seal: Seal,
    block: [u8; BLOCK_BYTES],
    nonces: Nonces,
}

impl Sealer {
    /// The sealer of a cache that holds `stored`, or of a new one.
    fn new(keyring: &Keyring, path: &Path, stored: Option<&[u8]>) -> Result<Sealer> {
        let (seal, block) = match stored.map(<[u8; BLOCK_BYTES]>::try_from) {
            None => keyring.seal(CONTEXT)?,
            Some(Ok(block)) => (unlock(Some(keyring), path, CONTEXT, &block)?, block),
            Some(Err(_)) => return Err(cache("the description of its encryption is cut")),
        };
        if seal.id() != keyring.sealing_id() {
            return Err(cache(format!("it is encrypted with the key {:?}, the first one is {:?} now", seal.id(), keyring.sealing_id())));
        }
        Ok(Sealer { seal, block, nonces: Nonces::new(keyring) })
    }
}

impl Db {
    fn open(dir: &Path, keyring: Option<&Keyring>) -> Result<Db> {
        fs::create_dir_all(dir).map_err(|e| StoreError::io("create", dir, e))?;
        let config =
            sled::Config::default().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None).mode(sled::Mode::LowSpace).temporary(false);
        let mut tries = LOCK_TRIES;
        let db = loop {
            match config.open() {
                // Only this process may be in the directory; a handle that it dropped lives on until sled's own threads are done with it.
                Err(e) if tries > 0 && e.to_string().contains("could not acquire lock") => thread::sleep(LOCK_PAUSE),
                opened => break opened.map_err(cache)?,
            }
            tries -= 1;
        };
        let state = db.open_tree(TREE).map_err(cache)?;
        let meta = db.open_tree(META_TREE).map_err(cache)?;
        let path = dir.join("db");
        let file = File::options().read(true).write(true).open(&path).map_err(|e| StoreError::io("open", &path, e))?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io("sync", dir, e))?;
        let block = meta.get(SEAL_KEY).map_err(cache)?;
        let sealer = match (keyring, &block) {
            (None, None) => None,
            (None, Some(_)) => return Err(cache("it is encrypted, and no keys are configured")),
            (Some(_), None) if !state.is_empty() || !meta.is_empty() => return Err(cache("it is not encrypted")),
            (Some(keyring), block) => {
                let sealer = Sealer::new(keyring, &path, block.as_deref())?;
                if block.is_none() {
                    meta.insert(SEAL_KEY, sealer.block.as_slice()).map_err(cache)?;
                }
                Some(sealer)
            }
        };
        let mark = match (meta.get(MARK_KEY).map_err(cache)?, &sealer) {
            (Some(bytes), Some(s)) => Some(codec::decode(MARK_TAG, &open_bytes(&s.seal, MARK_KEY, &bytes).map_err(cache)?).map_err(cache)?),
            (Some(bytes), None) => Some(codec::decode(MARK_TAG, &bytes).map_err(cache)?),
            (None, _) => None,
        };
        let totals = mark.as_ref().map_or(Totals::default(), |m: &MarkRecordV1| Totals { count: m.count, bytes: m.bytes, digest: m.digest });
        Ok(Db { dir: dir.to_path_buf(), db, state, meta, file, mark, totals, sealer, broken: None, warned: Cell::new(false) })
    }

    fn sync(&self) -> Result<()> {
        self.db.flush().map_err(cache)?;
        self.file.sync_data().map_err(|e| StoreError::io("sync", &self.dir, e))?;
        let blobs = || fs::read_dir(self.dir.join("blobs")).is_ok_and(|mut entries| entries.next().is_some());
        if !self.warned.get() && blobs() {
            self.warned.set(true);
            tracing::warn!(
                "{}: sled wrote a blob file, which it never syncs: after a power loss the next start reads snapshot and log",
                self.dir.display()
            );
        }
        Ok(())
    }

    fn apply(&mut self, batch: StateBatch) -> Result<()> {
        // What follows is not whole before the next mark. sled recovers a prefix of its writes, so this one comes first.
        if self.mark.take().is_some() && batch.mark.is_none() {
            self.meta.remove(MARK_KEY).map_err(cache)?;
        }
        let Totals { mut count, mut bytes, digest: mut sum } = self.totals;
        // The last change of a key counts.
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = batch.deletes.into_iter().map(|k| (k, None)).collect();
        changes.extend(batch.puts.into_iter().map(|(k, v)| (k, Some(v))));
        let mut writes = sled::Batch::default();
        for (key, value) in changes {
            let mut part = 0;
            let mut parts = 1;
            while part < parts {
                let stored_key = part_key(&key, part);
                let Some(stored) = self.state.get(&stored_key).map_err(cache)? else { break };
                let found = read_part(&stored_key, &stored).map_err(cache)?;
                if part == 0 {
                    count = count.saturating_sub(1);
                    bytes = bytes.saturating_sub(key.len() as u64);
                }
                parts = found.parts;
                bytes = bytes.saturating_sub(found.len() as u64);
                sum ^= digest(&stored_key, &stored);
                writes.remove(stored_key);
                part += 1;
            }
            if let Some(value) = value {
                count += 1;
                bytes += (key.len() + value.len()) as u64;
                let sealer = self.sealer.as_mut().map(|s| (&s.seal, &mut s.nonces));
                for (stored_key, stored) in split(&key, &value, sealer).map_err(cache)? {
                    sum ^= digest(&stored_key, &stored);
                    writes.insert(stored_key, stored);
                }
            }
        }
        self.state.apply_batch(writes).map_err(cache)?;
        self.totals = Totals { count, bytes, digest: sum };
        let Some(StateMark { mark, meta }) = batch.mark else { return Ok(()) };
        let record = MarkRecordV1 { index: mark.index, term: mark.term, meta, count, bytes, digest: sum };
        let mut encoded = codec::encode(MARK_TAG, &record).map_err(cache)?;
        if let Some(s) = &mut self.sealer {
            encoded = seal_bytes(&s.seal, &mut s.nonces, MARK_KEY, &encoded).map_err(cache)?;
        }
        self.meta.insert(MARK_KEY, encoded).map_err(cache)?;
        self.sync()?;
        self.mark = Some(record);
        Ok(())
    }

    fn load(&self) -> Result<Option<StateImage>> {
        let Some(mark) = &self.mark else { return Ok(None) };
        let mut map: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut open: Option<(Vec<u8>, u16, u16)> = None;
        let mut sum = 0;
        for pair in self.state.iter() {
            let (stored_key, stored) = pair.map_err(cache)?;
            sum ^= digest(&stored_key, &stored);
            let (key, part) = split_key(&stored_key).map_err(cache)?;
            let found = read_part(&stored_key, &stored).map_err(cache)?;
            let parts = found.parts;
            let follows = match &open {
                Some((k, next, all)) if next < all => k == key && part == *next && parts == *all,
                _ => part == 0,
            };
            if !follows || parts == 0 {
                return Err(cache("a part of a value is missing"));
            }
            let value = map.entry(key.to_vec()).or_default();
            match (&self.sealer, found.sealed) {
                (None, false) => value.extend(found.bytes),
                (Some(s), true) => value.extend(open_bytes(&s.seal, &place(&stored_key, parts), found.bytes).map_err(cache)?),
                _ => return Err(cache("some of its values are encrypted, some are not")),
            }
            open = Some((key.to_vec(), part + 1, parts));
        }
        if open.is_some_and(|(_, next, all)| next != all) || map.len() as u64 != mark.count || sum != mark.digest {
            return Err(cache("its contents are not those of its mark"));
        }
        let mark = StateMark { mark: Mark { index: mark.index, term: mark.term }, meta: mark.meta.clone() };
        Ok(Some(StateImage { mark, values: map }))
    }

    fn clear(&mut self) -> Result<()> {
        self.mark = None;
        self.totals = Totals::default();
        self.meta.clear().map_err(cache)?;
        self.state.clear().map_err(cache)?;
        if let Some(s) = &self.sealer {
            self.meta.insert(SEAL_KEY, s.block.as_slice()).map_err(cache)?;
        }
        self.sync()
    }
}

impl StateStore for SledState {
    fn apply(&self, batch: StateBatch) -> Result<()> {
        check(&batch)?;
        self.call(move |db| db.apply(batch))
    }
    fn load(&self) -> Result<Option<StateImage>> {
        self.call(|db| db.load())
    }
    fn clear(&self) -> Result<()> {
        self.call(Db::clear)
    }
    fn usage(&self) -> Result<(u64, u64)> {
        self.call(|db| Ok((db.db.size_on_disk().map_err(cache)?, db.mark.as_ref().map_or(0, |m| m.bytes))))
    }
}
