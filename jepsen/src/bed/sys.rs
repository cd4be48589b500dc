//! The two system calls that no safe library has.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use nix::libc;
use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// `EXT4_IOC_SHUTDOWN` (Linux, fs/ext4/ext4.h).
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is in the journal's memory is lost.
const NO_LOG_FLUSH: u32 = 2;

/// Cuts the power of a mounted ext4 file system: what was not synced is lost, everything else fails with EIO until it is mounted anew.
pub fn shut_down_ext4(mount: &Path) -> Result<()> {
    let dir = File::open(mount).with_context(|| mount.display().to_string())?;
    // SAFETY: the request reads one u32 through the pointer, which is valid for the call; the descriptor is open.
    let r = unsafe { libc::ioctl(dir.as_raw_fd(), EXT4_IOC_SHUTDOWN, &NO_LOG_FLUSH) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()).with_context(|| format!("cannot shut down {}", mount.display())) }
}

/// A network namespace that threads can visit.
pub struct NetNs {
    inside: File,
    outside: File,
}

impl NetNs {
    /// Of a file below `/run/netns`. The thread that calls this says where visits come back to.
    pub fn open(path: &Path) -> Result<NetNs> {
        let open = |p: &Path| File::open(p).with_context(|| p.display().to_string());
        Ok(NetNs { inside: open(path)?, outside: open(Path::new("/proc/thread-self/ns/net"))? })
    }
    /// Runs `f` with this thread in the namespace. Sockets made by it stay there for good. It must not wait for anything.
    pub fn visit<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        set(&self.inside)?;
        let result = f();
        set(&self.outside)?;
        Ok(result)
    }
}

fn set(ns: &File) -> io::Result<()> {
    // SAFETY: setns changes only the namespace of the calling thread; the descriptor is open.
    if unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
