//! Matches of inbound rules: who the client is and what it asked for (reference: Kuma 2.14.3 policy contract, §1.3).

use crate::{
    policy::common::dns1123_subdomain,
    schema::{Schema, field, list, object, required, text},
    violation::{Path, Violations},
};
use serde::{Deserialize, Serialize};

/// How a SPIFFE ID is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SpiffeIdMatchType {
    /// The whole ID.
    Exact,
    /// Its beginning.
    Prefix,
}

/// How an SNI is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SniMatchType {
    /// The whole name.
    Exact,
}

/// SPIFFE ID of the client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpiffeIdMatch {
    /// How.
    #[serde(rename = "type")]
    pub match_type: SpiffeIdMatchType,
    /// `spiffe://…`
    pub value: String,
}

/// Server name that the client asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SniMatch {
    /// How.
    #[serde(rename = "type")]
    pub match_type: SniMatchType,
    /// DNS name.
    pub value: String,
}

/// Both parts must match when both are given. Several matches are alternatives.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Match {
    /// Client.
    #[serde(default, rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeIdMatch>,
    /// Server name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<SniMatch>,
}

/// Schema of a list of matches.
pub fn schema() -> Schema {
    list(object(vec![
        field("spiffeID", object(vec![required("type", text().one_of(&["Exact", "Prefix"])), required("value", text())])),
        field("sni", object(vec![required("type", text().one_of(&["Exact"])), required("value", text())])),
    ]))
}

/// Checks the values of a match found at `path`.
pub fn validate(m: &Match, path: &Path, out: &mut Violations) {
    if let Some(id) = &m.spiffe_id
        && let Err(error) = spiffe_id(&id.value)
    {
        out.add(path.field("spiffeID"), format!("must be a valid Spiffe ID: {error}"));
    }
    if let Some(sni) = &m.sni {
        let at = path.field("sni").field("value");
        if sni.value.is_empty() {
            out.add(at, "must be set");
        } else if let Err(error) = dns1123_subdomain(&sni.value) {
            out.add(at, error);
        }
    }
}

/// Whether `id` is a SPIFFE ID; errors are the texts of go-spiffe.
pub fn spiffe_id(id: &str) -> Result<(), &'static str> {
    if id.is_empty() {
        return Err("cannot be empty");
    }
    let rest = id.strip_prefix("spiffe://").ok_or("scheme is missing or invalid")?;
    let (domain, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
    let common = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !domain.bytes().all(|b| common(b) || b.is_ascii_lowercase()) {
        return Err("trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores");
    }
    if domain.is_empty() {
        return Err("trust domain is missing");
    }
    let Some(path) = path.strip_prefix('/') else { return Ok(()) };
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        if !segment.bytes().all(|b| common(b) || b.is_ascii_alphabetic()) {
            return Err("path segment characters are limited to letters, numbers, dots, dashes, and underscores");
        }
        match segment {
            "" if segments.peek().is_none() => return Err("path cannot have a trailing slash"),
            "" => return Err("path cannot contain empty segments"),
            "." | ".." => return Err("path cannot contain dot segments"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids() {
        for good in ["spiffe://trust.domain", "spiffe://default/ns/backend-ns/sa/back_End"] {
            assert_eq!(spiffe_id(good), Ok(()), "{good}");
        }
        for (bad, error) in [
            ("", "cannot be empty"),
            ("wrong", "scheme is missing or invalid"),
            ("spiffe://", "trust domain is missing"),
            ("spiffe:///a", "trust domain is missing"),
            ("spiffe://A", "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"),
            ("spiffe://a/", "path cannot have a trailing slash"),
            ("spiffe://a//b", "path cannot contain empty segments"),
            ("spiffe://a/./b", "path cannot contain dot segments"),
            ("spiffe://a/b%", "path segment characters are limited to letters, numbers, dots, dashes, and underscores"),
        ] {
            assert_eq!(spiffe_id(bad), Err(error), "{bad}");
        }
    }
}
