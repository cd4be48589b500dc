//! The seam between the store and a file system.
//!
//! The store reaches files only through [`Disk`] and [`DiskFile`], so that recovery code can be run
//! against a disk that loses power at any operation ([`ScriptedDisk`]). The one exception is sled,
//! whose files are a cache that can be deleted ([`crate::state`]).

mod real;
mod scripted;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use real::RealDisk;
pub use scripted::ScriptedDisk;

/// How [`Disk::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, read only.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new empty file; an existing one of that name is emptied.
    Create,
}

/// An exclusive lock; dropping it releases the lock.
pub trait DiskLock: Send + Sync {}

/// A file system.
///
/// A file or directory operation is durable only after the matching sync: file contents after
/// [`DiskFile::sync_data`], names (create, rename, remove) after [`Disk::sync_dir`] of the directory.
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Names of the entries of a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes an exclusive advisory lock on a file (created if missing), `None` if another holder has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>>;
    /// Bytes that can still be written to the file system of `path`.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
    /// How long the caller of a sync has to wait before it, because nothing blocks in a simulation. Zero on every other disk.
    fn sync_delay(&self) -> Duration {
        Duration::ZERO
    }
}

/// An open file. Positions are explicit, so one handle serves a writer and many readers.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data` at `offset`, growing the file if needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves space so that the file has `len` bytes, new ones reading as zero.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Sets the length.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the contents and the length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
}

/// Reads a whole file of at most `limit` bytes.
pub fn read_all(disk: &dyn Disk, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    if len > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("file of {len} bytes is larger than {limit}")));
    }
    let mut bytes = vec![0; len];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Replaces `dir/name` by a file with `data`: temporary file, sync, rename, directory sync.
pub fn replace_file(disk: &dyn Disk, dir: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let tmp = dir.join(format!("{name}.tmp"));
    let file = disk.open(&tmp, OpenMode::Create)?;
    file.write_at(data, 0)?;
    file.sync_data()?;
    disk.rename(&tmp, &dir.join(name))?;
    disk.sync_dir(dir)
}
