//! Identities and positions that every part of the store shares.

use std::fmt;
use std::str::FromStr;

/// Version of the on-disk layout (directory, log, snapshots). A newer one is refused at open, an older one is upgraded.
///
/// 1: the first. 2: files may be sealed ([`crate::seal`]); membership records of version 2.
pub const FORMAT_VERSION: u16 = 2;

/// Random 128-bit identifier of a cluster, written as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a UUID");
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || text.len() != 36 {
            return Err(bad());
        }
        let mut id = [0u8; 16];
        for (slot, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *slot = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

/// Who wrote a record: the cluster and the node within it. Records of another identity are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster this data belongs to.
    pub cluster: ClusterId,
    /// The node this data belongs to; never reused within a cluster.
    pub node: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

/// Position of one log entry. At most one leader exists per term, so `(index, term)` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Position in the log, the first entry of a cluster is 0.
    pub index: u64,
    /// Term of the leader that wrote it.
    pub term: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// Raft's hard state: what must be durable before a vote is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// Current term.
    pub term: u64,
    /// Candidate that got the vote of this node in `term`.
    pub voted_for: u64,
    /// Whether a quorum granted the vote, i.e. `voted_for` is known to lead `term`.
    pub committed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_text_round_trips() {
        let id = ClusterId(*b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\xff");
        assert_eq!(id.to_string(), "01020304-0506-0708-090a-0b0c0d0e0fff");
        assert_eq!(id.to_string().parse::<ClusterId>(), Ok(id));
        assert!("0102".parse::<ClusterId>().is_err());
        assert!("zz020304-0506-0708-090a-0b0c0d0e0fff".parse::<ClusterId>().is_err());
    }
}
