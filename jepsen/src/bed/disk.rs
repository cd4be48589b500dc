//! A disk for each node: an ext4 file system in a file, so that its power can be cut and its space can end.

use super::{run, sys};
use anyhow::{Context, Result};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Size of a disk in bytes; only what is written takes space.
pub const SIZE: u64 = 512 * 1024 * 1024;

/// A mounted disk.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts one: `dir/NAME.img` on `dir/NAME`.
    pub fn create(dir: &Path, name: &str) -> Result<Disk> {
        let disk = Disk { image: dir.join(format!("{name}.img")), mount: dir.join(name) };
        fs::File::create(&disk.image)?.set_len(SIZE)?;
        fs::create_dir_all(&disk.mount)?;
        // Nothing is set aside for root, which the nodes are: full is full.
        run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), "-m".as_ref(), "0".as_ref(), disk.image.as_os_str()])?;
        disk.mount()?;
        Ok(disk)
    }
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
    fn mount(&self) -> Result<()> {
        run("mount", ["-o".as_ref(), "loop".as_ref(), self.image.as_os_str(), self.mount.as_os_str()])
    }
    /// The power goes: unsynced writes are lost. The processes that use the disk have to be stopped before, and killed after.
    pub fn cut_power(&self) -> Result<()> {
        sys::shut_down_ext4(&self.mount)
    }
    /// The power is back: mounts what is left, the journal is replayed.
    pub fn power_on(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        // The kernel holds on to files of a process that was just killed for a moment.
        while let Err(e) = run("umount", [&self.mount]) {
            if Instant::now() > end {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // A loop device that is still there would give back the old, dead file system.
        while self.attached()? {
            if Instant::now() > end {
                anyhow::bail!("the loop device of {} stays attached", self.image.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.mount()
    }
    fn attached(&self) -> Result<bool> {
        let out = Command::new("losetup").arg("-j").arg(&self.image).output().context("losetup")?;
        Ok(!out.stdout.trim_ascii().is_empty())
    }
    /// Takes all space that is left.
    pub fn fill(&self) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.mount).context("statvfs")?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let file = self.mount.join("balloon");
        if file.exists() {
            return Ok(());
        }
        // Nearly all of it at once, and the rest, which the file system divides up as it likes, until it says that there is no more.
        let size = free.saturating_sub(4 << 20).max(4096).to_string();
        run("fallocate", ["-l".as_ref(), size.as_ref(), file.as_os_str()])?;
        let mut rest = fs::File::options().append(true).open(&file)?;
        loop {
            match rest.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e).context("balloon"),
            }
        }
    }
    /// Gives the space back.
    pub fn unfill(&self) -> Result<()> {
        match fs::remove_file(self.mount.join("balloon")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("balloon"),
            _ => Ok(()),
        }
    }
    /// Empties it, as when a node gets a new disk.
    pub fn wipe(&self) -> Result<()> {
        for entry in fs::read_dir(&self.mount)? {
            let path = entry?.path();
            if path.file_name() != Some("lost+found".as_ref()) {
                if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
            }
        }
        Ok(())
    }
    /// Unmounts it and deletes its file.
    pub fn remove(&self) {
        run("umount", ["-l".as_ref(), self.mount.as_os_str()]).ok();
        fs::remove_file(&self.image).ok();
        fs::remove_dir(&self.mount).ok();
    }
}
