//! What this machine is like.

use ikada_pki::tls::SYSTEM_CA_PATHS;
use std::{fs, path::Path};

/// Some interface has an IPv6 address.
pub fn has_ipv6() -> bool {
    fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| !text.trim().is_empty())
}

/// The operating system's CA bundle; empty when there is none.
pub fn system_ca_path() -> String {
    SYSTEM_CA_PATHS.iter().find(|p| Path::new(p).exists()).map_or_else(String::new, |p| (*p).to_owned())
}

/// Memory limit of this process's control group in bytes (v2, else v1); `None` without one.
pub fn memory_limit() -> Option<u64> {
    // v1 writes "no limit" as a number near 2^63.
    const NO_LIMIT: u64 = 1 << 62;
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.limit_in_bytes"]
        .iter()
        .find_map(|p| fs::read_to_string(p).ok())
        .and_then(|text| text.trim().parse().ok())
        .filter(|limit| *limit < NO_LIMIT)
}
