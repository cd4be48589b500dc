//! Checkers: from a history to a verdict.

pub mod linear;
pub mod order;
pub mod register;
pub mod set;
pub mod watch;

use std::fmt;

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The promise was kept.
    Valid,
    /// It was broken; one line per finding, at most [`MAX_FINDINGS`].
    Invalid(Vec<String>),
    /// It could not be told, and why.
    Unknown(String),
}

/// Findings that are kept of a checker; further ones are counted.
pub const MAX_FINDINGS: usize = 8;

impl Verdict {
    /// Valid when nothing was found.
    pub fn of(mut findings: Vec<String>) -> Verdict {
        if findings.is_empty() {
            return Verdict::Valid;
        }
        let more = findings.len().saturating_sub(MAX_FINDINGS);
        findings.truncate(MAX_FINDINGS);
        if more > 0 {
            findings.push(format!("… and {more} more"));
        }
        Verdict::Invalid(findings)
    }
    /// `true`, `false`, `:unknown`, as Jepsen's `:valid?`.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Valid => "true",
            Verdict::Invalid(_) => "false",
            Verdict::Unknown(_) => ":unknown",
        }
    }
    /// The worse of two: what is broken stays broken, what is unknown is not valid.
    pub fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Invalid(mut a), Verdict::Invalid(b)) => {
                a.extend(b);
                Verdict::of(a)
            }
            (v @ Verdict::Invalid(_), _) | (_, v @ Verdict::Invalid(_)) => v,
            (v @ Verdict::Unknown(_), _) | (_, v) => v,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Valid => f.write_str("valid"),
            Verdict::Invalid(findings) => write!(f, "INVALID: {}", findings.join("; ")),
            Verdict::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}
