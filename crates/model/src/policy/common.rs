//! Values and checks that many policy kinds share (reference: Kuma 2.14.3 policy contract, §3.4, 3.5).

use crate::{
    duration::GoDuration,
    violation::{Path, Violations},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An integer, or a decimal number as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// Integer.
    Int(i64),
    /// Text as given.
    Text(String),
}

impl IntOrString {
    /// The number; `None` when the text is none.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            IntOrString::Int(n) => Some(*n as f64),
            IntOrString::Text(s) => s.parse::<f64>().ok().filter(|f| f.is_finite()),
        }
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IntOrString::Int(n) => n.fmt(f),
            IntOrString::Text(s) => f.write_str(s),
        }
    }
}

/// `must be greater than zero when defined`.
pub fn duration_positive(d: Option<GoDuration>, path: &Path, out: &mut Violations) {
    if d.is_some_and(|d| d <= GoDuration::ZERO) {
        out.add(path, "must be greater than zero when defined");
    }
}

/// `must not be negative when defined`.
pub fn duration_not_negative(d: Option<GoDuration>, path: &Path, out: &mut Violations) {
    if d.is_some_and(|d| d < GoDuration::ZERO) {
        out.add(path, "must not be negative when defined");
    }
}

/// `must be greater than 0`.
pub fn uint_positive(n: Option<u32>, path: &Path, out: &mut Violations) {
    if n == Some(0) {
        out.add(path, "must be greater than 0");
    }
}

/// `must be in inclusive range [0.0, 100.0]`, or `string must be a valid number`.
pub fn percentage(value: Option<&IntOrString>, path: &Path, out: &mut Violations) {
    match value.map(IntOrString::as_f64) {
        None => {}
        Some(None) => out.add(path, "string must be a valid number"),
        Some(Some(p)) if (0.0..=100.0).contains(&p) => {}
        Some(Some(_)) => out.add(path, "must be in inclusive range [0.0, 100.0]"),
    }
}

/// `must be in inclusive range [0, 100]`.
pub fn percentage_int(value: Option<i64>, path: &Path, out: &mut Violations) {
    if value.is_some_and(|p| !(0..=100).contains(&p)) {
        out.add(path, "must be in inclusive range [0, 100]");
    }
}

/// `must have at least one defined: a, b`; `fields` says of each whether it is.
pub fn at_least_one(fields: &[(&str, bool)], path: &Path, out: &mut Violations) {
    if fields.iter().all(|(_, defined)| !defined) {
        let names: Vec<&str> = fields.iter().map(|(n, _)| *n).collect();
        out.add(path, format!("must have at least one defined: {}", names.join(", ")));
    }
}

/// The two rules of kinds with `to`, `from` and `rules`, on `spec`.
pub fn to_from_rules(to: usize, from: usize, rules: usize, out: &mut Violations) {
    let spec = Path::of("spec");
    if rules > 0 && to + from > 0 {
        out.add(&spec, "fields 'to' and 'from' must be empty when 'rules' is defined");
    }
    if to + from + rules == 0 {
        out.add(&spec, "at least one of 'from', 'to' or 'rules' has to be defined");
    }
}

/// The standard warning about `from`.
pub const FROM_DEPRECATED: &str = "'from' field is deprecated, use 'rules' instead";
