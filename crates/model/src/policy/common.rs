//! Values and checks that many policy kinds share (reference: Kuma 2.14.3 policy contract, §3.4, 3.5).

use super::{
    matches::{self, Match},
    target_ref::{self, TargetRef},
};
use crate::{
    duration::GoDuration,
    ident::is_rfc1123_subdomain,
    schema::{Pattern, Property, Schema, field, list, object, required, text},
    violation::{Path, Violations},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
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
pub fn percentage_int(value: Option<u32>, path: &Path, out: &mut Violations) {
    if value.is_some_and(|p| p > 100) {
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

/// Spec of a policy with `to`, `from` or `rules`; `C` is the conf of `to` and `from` items, `R` that of rules. A kind uses the lists
/// that its schema has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "C: Deserialize<'de> + Default, R: Deserialize<'de> + Default"))]
pub struct PolicySpec<C, R = C> {
    /// Proxies; absent = all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Outgoing traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Item<C>>>,
    /// Incoming traffic by client (deprecated).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Item<C>>>,
    /// Incoming traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule<R>>>,
}

impl<C, R> PolicySpec<C, R> {
    /// `to` or nothing.
    pub fn to(&self) -> &[Item<C>] {
        self.to.as_deref().unwrap_or_default()
    }
    /// `from` or nothing.
    pub fn from(&self) -> &[Item<C>] {
        self.from.as_deref().unwrap_or_default()
    }
    /// `rules` or nothing.
    pub fn rules(&self) -> &[Rule<R>] {
        self.rules.as_deref().unwrap_or_default()
    }
    /// It configures inbounds.
    pub fn is_inbound(&self) -> bool {
        !self.from().is_empty() || !self.rules().is_empty()
    }
}

/// An element of `to` or `from`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "C: Deserialize<'de> + Default"))]
pub struct Item<C> {
    /// Destinations or clients.
    pub target_ref: TargetRef,
    /// Conf.
    #[serde(default)]
    pub default: C,
}

/// An element of `rules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "C: Deserialize<'de> + Default"))]
pub struct Rule<C> {
    /// Alternatives; none = all traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<Match>>,
    /// Conf.
    #[serde(default)]
    pub default: C,
}

/// `targetRef`, the field that all policies start with.
pub fn target_ref_field() -> Property {
    field("targetRef", target_ref::schema())
}

/// Schema of a list of `to` or `from` items.
pub fn items(conf: Schema) -> Schema {
    list(object(vec![required("targetRef", target_ref::schema()), field("default", conf).always()]))
}

/// Schema of a list of rules, with `matches` or without.
pub fn rules(conf: Schema, with_matches: bool) -> Schema {
    let mut fields = vec![field("default", conf).always()];
    if with_matches {
        fields.insert(0, field("matches", matches::schema()));
    }
    list(object(fields))
}

/// The typed form of a canonical spec. A spec that does not parse (one that bypassed the schema) is a violation on `spec`.
pub fn read<T: DeserializeOwned>(spec: &Value, out: &mut Violations) -> Option<T> {
    match T::deserialize(spec) {
        Ok(t) => Some(t),
        Err(e) => {
            out.add("spec", format!("cannot be read: {e}"));
            None
        }
    }
}

/// Message of Kubernetes about texts that are no DNS-1123 subdomain.
pub const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Whether `s` is a DNS-1123 subdomain; errors are the messages of Kubernetes.
pub fn dns1123_subdomain(s: &str) -> Result<(), &'static str> {
    if s.len() > 253 {
        return Err("must be no more than 253 characters");
    }
    if is_rfc1123_subdomain(s) { Ok(()) } else { Err(DNS1123_SUBDOMAIN) }
}

/// Schema of a host name: 1 to 253 characters, DNS labels.
pub fn hostname() -> Schema {
    const PATTERN: Pattern =
        Pattern { text: r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", matches: is_rfc1123_subdomain };
    text().at_least(1).at_most(253).matching(PATTERN)
}

/// Schema of a header name: 1 to 256 characters of an HTTP token, lower case.
pub fn header_name() -> Schema {
    fn is_token(s: &str) -> bool {
        !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b))
    }
    text().at_least(1).at_most(256).matching(Pattern { text: r"^[a-z0-9!#$%&'*+\-.^_\x60|~]+$", matches: is_token })
}

/// How a header is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HeaderMatchType {
    #[default]
    Exact,
    Present,
    RegularExpression,
    Absent,
    Prefix,
}

/// A condition on a header. Field order is that of the JSON that route hashes are made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// How; the schema writes the default `Exact`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub match_type: Option<HeaderMatchType>,
    /// Header, lower case.
    pub name: String,
    /// Value; empty with Present and Absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}

impl HeaderMatch {
    /// How, default Exact.
    pub fn match_type(&self) -> HeaderMatchType {
        self.match_type.unwrap_or_default()
    }
}

/// Schema of a header match.
pub fn header_match() -> Schema {
    object(vec![
        field("type", text().one_of(&["Exact", "Present", "RegularExpression", "Absent", "Prefix"]).or("Exact")),
        required("name", header_name()),
        field("value", text()).omit_empty(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;
    use serde_json::json;

    #[test]
    fn percentages() {
        let check = |v: Value| {
            let v: IntOrString = serde_json::from_value(v).unwrap();
            let mut out = Violations::new();
            percentage(Some(&v), &Path::of("p"), &mut out);
            out.into_vec().pop().map(|v| v.message)
        };
        for good in [json!(0), json!(100), json!("0.5"), json!("100")] {
            assert_eq!(check(good.clone()), None, "{good}");
        }
        for bad in [json!(-1), json!(101), json!("100.1")] {
            assert_eq!(check(bad.clone()).as_deref(), Some("must be in inclusive range [0.0, 100.0]"), "{bad}");
        }
        assert_eq!(check(json!("x")).as_deref(), Some("string must be a valid number"));
    }

    proptest! {
        // The patterns of the schemas are functions; the regular expressions that messages quote must mean the same.
        #[test]
        fn patterns_mean_their_regex(s in "[a-z0-9.A|`~/_-]{0,6}") {
            let host = Regex::new(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$").unwrap();
            let header = Regex::new(r"^[a-z0-9!#$%&'*+\-.^_\x60|~]+$").unwrap();
            let fits = |schema: Schema| {
                let mut errors = Vec::new();
                schema.check(&Value::from(s.as_str()), "x", &mut errors);
                !errors.iter().any(|e| e.contains("should match"))
            };
            prop_assert_eq!(fits(hostname()), host.is_match(&s));
            prop_assert_eq!(fits(header_name()), header.is_match(&s));
        }
    }
}
