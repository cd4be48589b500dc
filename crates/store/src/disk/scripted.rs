//! [`Disk`] in memory, which fails as told.

use super::{Disk, DiskFile, DiskLock, OpenMode};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Unit in which an unsynced write may reach the platter or not, in bytes.
const SECTOR: usize = 512;

/// A disk in memory. What was not synced is lost at [`ScriptedDisk::power_cycle`], in part: of every file written since its last sync each
/// sector is the old or the new one, of every directory changed since its last sync each name is the old or the new one, decided by a
/// seeded generator. So a run is repeated by its seed. Clones are the same disk.
#[derive(Clone)]
pub struct ScriptedDisk(Arc<Mutex<State>>);

struct State {
    random: u64,
    files: BTreeMap<u64, FileState>,
    next_file: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Counts power cycles; handles of an earlier one are dead.
    life: u64,
    operations: u64,
    off_at: Option<u64>,
    capacity: Option<u64>,
    fail_syncs: bool,
    sync_delay: Duration,
}

#[derive(Clone, Default)]
struct FileState {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: bool,
}

struct Handle {
    disk: ScriptedDisk,
    id: u64,
    life: u64,
}

struct Lock {
    disk: ScriptedDisk,
    path: PathBuf,
    life: u64,
}

impl DiskLock for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

impl State {
    /// Xorshift: good enough to choose sectors, and the same everywhere.
    fn coin(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random & 0x100 != 0
    }

    /// Counts a changing operation; an error when the power is off.
    fn step(&mut self) -> io::Result<()> {
        self.alive()?;
        self.operations += 1;
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        match self.off_at {
            Some(at) if self.operations > at => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(id)).map(|f| f.live.len() as u64).sum()
    }

    fn room_for(&self, more: usize) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used() + more as u64 > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn file(&mut self, id: u64) -> io::Result<&mut FileState> {
        self.files.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl ScriptedDisk {
    /// An empty disk of unlimited size.
    pub fn new(seed: u64) -> Self {
        ScriptedDisk(Arc::new(Mutex::new(State {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::from([PathBuf::from("/")]),
            locks: BTreeSet::new(),
            life: 0,
            operations: 0,
            off_at: None,
            capacity: None,
            fail_syncs: false,
            sync_delay: Duration::ZERO,
        })))
    }

    /// The power goes off after so many more operations that change something; that one and all later ones fail.
    pub fn lose_power_after(&self, operations: u64) {
        let mut state = self.0.lock();
        state.off_at = Some(state.operations + operations);
    }

    /// Loses what was not synced (see the type), drops all locks and handles, and turns the power on.
    pub fn power_cycle(&self) {
        let mut state = self.0.lock();
        let state = &mut *state;
        let paths: BTreeSet<PathBuf> = state.names.keys().chain(state.durable_names.keys()).cloned().collect();
        let mut names = BTreeMap::new();
        for path in paths {
            let (new, old) = (state.names.get(&path).copied(), state.durable_names.get(&path).copied());
            if let Some(id) = if new == old || state.coin() { new } else { old } {
                names.insert(path, id);
            }
        }
        let ids: Vec<u64> = state.files.iter().filter(|(_, f)| f.dirty).map(|(id, _)| *id).collect();
        for id in ids {
            let (live, durable) = state.files.get(&id).map(|f| (f.live.clone(), f.durable.clone())).unwrap_or_default();
            let len = if state.coin() { live.len() } else { durable.len() };
            let mut after = vec![0; len];
            for (i, sector) in after.chunks_mut(SECTOR).enumerate() {
                let from = if state.coin() { &live } else { &durable };
                let source = from.get(i * SECTOR..).unwrap_or_default();
                for (to, from) in sector.iter_mut().zip(source) {
                    *to = *from;
                }
            }
            state.files.insert(id, FileState { live: after.clone(), durable: after, dirty: false });
        }
        state.durable_names = names.clone();
        state.names = names;
        state.locks.clear();
        state.life += 1;
        state.off_at = None;
    }

    /// The process dies and the machine lives: locks and handles are gone, all data stays.
    pub fn process_exit(&self) {
        let mut state = self.0.lock();
        state.locks.clear();
        state.life += 1;
        state.off_at = None;
    }

    /// Limits the sum of all file lengths, in bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Lets every sync of a file fail.
    pub fn fail_syncs(&self, fail: bool) {
        self.0.lock().fail_syncs = fail;
    }

    /// Lets every sync of the log take so long, see [`Disk::sync_delay`].
    pub fn set_sync_delay(&self, delay: Duration) {
        self.0.lock().sync_delay = delay;
    }

    /// Whether the power went off, see [`ScriptedDisk::lose_power_after`].
    pub fn is_off(&self) -> bool {
        self.0.lock().alive().is_err()
    }

    /// Another disk with what this one would show after the process died, without faults.
    pub fn copy(&self) -> ScriptedDisk {
        let copy = ScriptedDisk::new(0);
        let from = self.0.lock();
        let mut to = copy.0.lock();
        to.files = from.files.clone();
        to.next_file = from.next_file;
        to.names = from.names.clone();
        to.durable_names = from.durable_names.clone();
        to.dirs = from.dirs.clone();
        drop(to);
        copy
    }

    /// See [`ScriptedDisk::fail_syncs`].
    pub fn fails_syncs(&self) -> bool {
        self.0.lock().fail_syncs
    }

    /// See [`ScriptedDisk::set_capacity`].
    pub fn capacity(&self) -> Option<u64> {
        self.0.lock().capacity
    }

    /// Operations that changed something so far.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Sum of all file lengths in bytes.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Flips bits of one byte of a file, durably.
    pub fn corrupt(&self, path: &Path, offset: usize, bits: u8) -> io::Result<()> {
        let mut state = self.0.lock();
        let id = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let file = state.file(id)?;
        for bytes in [&mut file.live, &mut file.durable] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= bits;
            }
        }
        Ok(())
    }

    /// Names and contents of all files.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.0.lock();
        state.names.iter().filter_map(|(path, id)| Some((path.clone(), state.files.get(id)?.live.clone()))).collect()
    }
}

impl Disk for ScriptedDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.dirs.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.alive()?;
        let id = match (mode, state.names.get(path).copied()) {
            (OpenMode::Create, Some(id)) => {
                state.step()?;
                let file = state.file(id)?;
                file.live.clear();
                file.dirty = true;
                id
            }
            (OpenMode::Create, None) => {
                state.step()?;
                if !path.parent().is_some_and(|p| state.dirs.contains(p)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let id = state.next_file;
                state.next_file += 1;
                state.files.insert(id, FileState::default());
                state.names.insert(path.to_path_buf(), id);
                id
            }
            (_, Some(id)) => id,
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Handle { disk: self.clone(), id, life: state.life }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_path_buf(), id);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        state.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        state.alive()?;
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let entries = state.names.keys().chain(state.dirs.iter()).filter(|p| p.parent() == Some(dir));
        let names: BTreeSet<String> = entries.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
        Ok(names.into_iter().collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        let state = &mut *state;
        state.durable_names.retain(|p, _| p.parent() != Some(dir));
        let synced = state.names.iter().filter(|(p, _)| p.parent() == Some(dir)).map(|(p, id)| (p.clone(), *id));
        state.durable_names.extend(synced);
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        if !self.0.lock().names.contains_key(path) {
            self.open(path, OpenMode::Create)?;
        }
        let mut state = self.0.lock();
        state.alive()?;
        let free = state.locks.insert(path.to_path_buf());
        Ok(free.then(|| Box::new(Lock { disk: self.clone(), path: path.to_path_buf(), life: state.life }) as Box<dyn DiskLock>))
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        let state = self.0.lock();
        Ok(state.capacity.map_or(u64::MAX, |c| c.saturating_sub(state.used())))
    }

    fn sync_delay(&self) -> Duration {
        self.0.lock().sync_delay
    }
}

impl Handle {
    fn change<T>(&self, f: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.life != self.life {
            return Err(io::Error::other("the file was open before the power went off"));
        }
        // A write that meets the end of power may be on the platter in part: it is done, then reported as failed.
        let was_on = state.alive().is_ok();
        let off = state.step();
        let done = if was_on { f(&mut state, self.id) } else { Err(io::Error::other("the power is off")) };
        off.and(done)
    }
}

impl DiskFile for Handle {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.0.lock();
        state.alive()?;
        Ok(state.file(self.id)?.live.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        state.alive()?;
        let file = state.file(self.id)?;
        let source = usize::try_from(offset).ok().and_then(|o| file.live.get(o..)).unwrap_or_default();
        let n = source.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(source) {
            *to = *from;
        }
        Ok(n)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(|state, id| {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let more = (start + data.len()).saturating_sub(state.file(id)?.live.len());
            if more > 0 {
                state.room_for(more)?;
            }
            let file = state.file(id)?;
            if file.live.len() < start + data.len() {
                file.live.resize(start + data.len(), 0);
            }
            for (to, from) in file.live.iter_mut().skip(start).zip(data) {
                *to = *from;
            }
            file.dirty = true;
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(|state, id| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let more = len.saturating_sub(state.file(id)?.live.len());
            if more > 0 {
                state.room_for(more)?;
                let file = state.file(id)?;
                file.live.resize(len, 0);
                file.dirty = true;
            }
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change(|state, id| {
            let file = state.file(id)?;
            file.live.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
            file.dirty = true;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|state, id| {
            if state.fail_syncs {
                return Err(io::Error::other("the device reports an error"));
            }
            let file = state.file(id)?;
            file.durable = file.live.clone();
            file.dirty = false;
            Ok(())
        })
    }
}
