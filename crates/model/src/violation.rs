//! Findings of a validator and the paths they point to (reference: Kuma 2.14.3 REST contract, §2.5).

use crate::go;
use std::fmt::{self, Display};

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Violation {
    /// Path: dot-separated, `[i]` for list elements, `["key"]` for map keys. Empty = the whole body.
    pub field: String,
    /// What is wrong; part of the contract, clients compare it.
    pub message: String,
}

impl Violation {
    /// A violation.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Violation { field: field.into(), message: message.into() }
    }
}

impl Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// Path of a field. Immutable: every step returns a longer path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The body itself, path "".
    pub fn root() -> Self {
        Path::default()
    }
    /// A path as written.
    pub fn of(path: impl Into<String>) -> Self {
        Path(path.into())
    }
    /// `<path>.name`, or `name` below the root.
    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }
    /// `<path>[index]`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }
    /// `<path>["key"]`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{}]", self.0, go::quote(key)))
    }
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl From<&str> for Path {
    fn from(path: &str) -> Self {
        Path(path.to_owned())
    }
}

/// Most violations that are listed. A body of a megabyte can hold a hundred thousand faults; nobody reads the answer to it.
pub const MAX_VIOLATIONS: usize = 1000;

/// Collects violations in the order in which they are found: the first [`MAX_VIOLATIONS`], then one that tells how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    listed: Vec<Violation>,
    /// Found but not listed.
    more: usize,
}

impl Violations {
    /// None yet.
    pub fn new() -> Self {
        Violations::default()
    }
    /// Adds one.
    pub fn add(&mut self, path: impl Display, message: impl Into<String>) {
        if self.listed.len() < MAX_VIOLATIONS {
            self.listed.push(Violation { field: path.to_string(), message: message.into() });
        } else {
            self.more += 1;
        }
    }
    /// Adds all of `other`, their paths taken relative to `prefix`.
    pub fn add_under(&mut self, prefix: &Path, other: Violations) {
        self.more += other.more;
        for v in other.listed {
            let field = if v.field.is_empty() {
                prefix.as_str().to_owned()
            } else if prefix.as_str().is_empty() || v.field.starts_with('[') {
                format!("{prefix}{}", v.field)
            } else {
                format!("{prefix}.{}", v.field)
            };
            self.add(field, v.message);
        }
    }
    /// Adds all of `other` as they are.
    pub fn extend(&mut self, other: impl IntoIterator<Item = Violation>) {
        for v in other {
            self.add(v.field, v.message);
        }
    }
    /// None found.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
    /// What was found, without the note on those that are not listed.
    pub fn as_slice(&self) -> &[Violation] {
        &self.listed
    }
    /// What was found.
    pub fn into_vec(mut self) -> Vec<Violation> {
        if self.more > 0 {
            self.listed.push(Violation::new("", format!("{} more violations are not listed", self.more)));
        }
        self.listed
    }
}

impl IntoIterator for Violations {
    type Item = Violation;
    type IntoIter = std::vec::IntoIter<Violation>;
    fn into_iter(self) -> Self::IntoIter {
        self.into_vec().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let p = Path::root().field("networking").field("inbound").index(0).field("tags").key("kuma.io/service");
        assert_eq!(p.as_str(), r#"networking.inbound[0].tags["kuma.io/service"]"#);
        let mut inner = Violations::new();
        inner.add(Path::root().index(1).field("a"), "x");
        inner.add("b", "y");
        inner.add("", "z");
        let mut all = Violations::new();
        all.add_under(&Path::of("top"), inner);
        let fields: Vec<_> = all.as_slice().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["top[1].a", "top.b", "top"]);
    }

    #[test]
    fn bounded() {
        let mut all = Violations::new();
        for i in 0..MAX_VIOLATIONS + 5 {
            all.add(Path::root().index(i), "x");
        }
        let mut outer = Violations::new();
        outer.add("y", "z");
        outer.add_under(&Path::of("a"), all);
        let list = outer.into_vec();
        assert_eq!(list.len(), MAX_VIOLATIONS + 1);
        assert_eq!(list.last().map(|v| v.message.as_str()), Some("6 more violations are not listed"));
    }
}
