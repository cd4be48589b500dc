//! Hosts `n1`, `n2`, … and a switch `sw`, all in network namespaces. Cuts are made at the switch, so that the hosts notice nothing but
//! silence.

use super::{run, sys::NetNs};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

/// The network.
pub struct Net {
    hosts: Vec<NetNs>,
}

/// Address of a host in the network; hosts are numbered from 0.
pub fn address(host: usize) -> String {
    format!("10.77.0.{}", 11 + host)
}

/// Name of a host: `n1` is the first.
pub fn name(host: usize) -> String {
    format!("n{}", host + 1)
}

/// File of a host's namespace.
pub fn namespace(host: usize) -> PathBuf {
    PathBuf::from("/run/netns").join(name(host))
}

fn ip(line: &str) -> Result<()> {
    run("ip", line.split_whitespace())
}

impl Net {
    /// Builds it.
    pub fn build(hosts: usize) -> Result<Net> {
        ip("netns add sw")?;
        ip("-n sw link add br0 type bridge")?;
        ip("-n sw link set br0 up")?;
        for host in 0..hosts {
            let (n, a) = (name(host), address(host));
            ip(&format!("netns add {n}"))?;
            ip(&format!("-n {n} link set lo up"))?;
            ip(&format!("-n sw link add sw-{n} type veth peer name eth0 netns {n}"))?;
            ip(&format!("-n sw link set sw-{n} master br0 up"))?;
            ip(&format!("-n {n} addr add {a}/24 dev eth0"))?;
            ip(&format!("-n {n} link set eth0 up"))?;
        }
        let hosts = (0..hosts).map(|h| NetNs::open(&namespace(h))).collect::<Result<_>>()?;
        Ok(Net { hosts })
    }
    /// Namespace of a host.
    pub fn host(&self, host: usize) -> Result<&NetNs> {
        self.hosts.get(host).context("no such host")
    }
    /// From now on these and only these (from, to) are cut: frames are dropped at the switch, one direction only.
    pub fn cut(&self, cuts: &BTreeSet<(usize, usize)>) -> Result<()> {
        let rules: String =
            cuts.iter().map(|&(a, b)| format!("  iifname \"sw-{}\" oifname \"sw-{}\" drop\n", name(a), name(b))).collect();
        // The first line makes the second possible when the table is not there; the whole is one transaction.
        let script = format!(
            "table bridge chaos {{\n}}\ndelete table bridge chaos\ntable bridge chaos {{\n chain forward {{\n  \
             type filter hook forward priority 0;\n{rules} }}\n}}\n"
        );
        let mut nft = Command::new("nsenter")
            .args(["--net=/run/netns/sw", "--", "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("nsenter")?;
        nft.stdin.take().context("nft's input")?.write_all(script.as_bytes())?;
        let out = nft.wait_with_output()?;
        if !out.status.success() {
            bail!("nft: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }
}
