//! Rules shared by flat kinds (reference: Kuma 2.14.3 REST contract, §8 "Shared rules and texts").

use crate::{
    labels::{TAG_PROTOCOL, TAG_SERVICE},
    violation::{Path, Violations},
};
use serde_json::{Map, Value};
use std::net::IpAddr;

/// Names already used and the like.
pub const EMPTY: &str = "cannot be empty";
const PORT: &str = "port must be in the range [1, 65535]";
const POSITIVE: &str = "must have a positive value";
const PROTOCOLS: &str = "Allowed values: grpc, http, http2, kafka, tcp";

/// Text of a canonical field, "" when absent.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}
/// Number of a canonical field, 0 when absent.
pub fn number(value: &Value, field: &str) -> u64 {
    value.get(field).and_then(Value::as_u64).unwrap_or(0)
}
/// Flag of a canonical field, false when absent.
pub fn flag(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}
/// List of a canonical field, empty when absent.
pub fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
/// Tags or another map of texts, empty when absent; keys in byte order.
pub fn text_map<'a>(value: &'a Value, field: &str) -> Vec<(&'a str, &'a str)> {
    let map = value.get(field).and_then(Value::as_object).into_iter().flat_map(Map::iter);
    let mut pairs: Vec<_> = map.map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))).collect();
    pairs.sort_unstable();
    pairs
}

/// 1…65535.
pub fn port(at: &Path, port: u64, out: &mut Violations) {
    if !(1..=65535).contains(&port) {
        out.add(at, PORT);
    }
}

/// An IP address as Go's `net.ParseIP` reads it.
pub fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// Address of a proxy or service: an IP address or a DNS name. The field is `<at>.address`.
pub fn address(at: &Path, address: &str, out: &mut Violations) {
    let at = at.field("address");
    if address.is_empty() {
        out.add(at, "address can't be empty");
    } else if matches!(address, "0.0.0.0" | "::") {
        out.add(at, "must not be 0.0.0.0 or ::");
    } else if ip(address).is_none() && !is_dns_name(address) {
        out.add(at, "address has to be valid IP address or domain name");
    }
}

/// Dot-separated labels of letters, digits, `_` and inner or final `-`, at most 255 bytes without the dots; a final `.` or `_` is fine.
pub fn is_dns_name(text: &str) -> bool {
    let body = text.strip_suffix(['.', '_']).unwrap_or(text);
    if text.bytes().filter(|b| *b != b'.').count() > 255 {
        return false;
    }
    body.split('.').all(|label| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.first().is_some_and(|b| *b != b'-')
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    })
}

/// Which values a tag may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TagValues {
    /// Those of a proxy or service.
    Real,
    /// Those of a selector: `/` is legal, and `*` means any value.
    Selector,
}

/// Characters and emptiness of tags.
pub fn tags(at: &Path, tags: &[(&str, &str)], values: TagValues, out: &mut Violations) {
    let common = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    for (key, value) in tags {
        if key.is_empty() {
            out.add(at, "tag name must be non-empty");
        }
        if !key.bytes().all(|b| common(b) || b == b'/') {
            out.add(at.key(key), "tag name must consist of alphanumeric characters, dots, dashes, slashes and underscores");
        }
        if value.is_empty() {
            out.add(at.key(key), "tag value must be non-empty");
        }
        match values {
            TagValues::Real if !value.bytes().all(common) => {
                out.add(at.key(key), "tag value must consist of alphanumeric characters, dots, dashes and underscores");
            }
            TagValues::Selector if *value != "*" && !value.bytes().all(|b| common(b) || b == b'/') => {
                out.add(at.key(key), "tag value must consist of alphanumeric characters, dots, dashes, slashes and underscores or be \"*\"")
            }
            _ => {}
        }
    }
}

/// A selector that needs at least one tag.
pub fn selector(at: &Path, pairs: &[(&str, &str)], out: &mut Violations) {
    if pairs.is_empty() {
        out.add(at, "must have at least one tag");
    }
    tags(at, pairs, TagValues::Selector, out);
}

/// Tag `kuma.io/service` is there.
pub fn has_service(pairs: &[(&str, &str)]) -> bool {
    pairs.iter().any(|(k, _)| *k == TAG_SERVICE)
}

/// Tag `kuma.io/protocol` holds a protocol that the control plane knows.
pub fn protocol_tag(at: &Path, pairs: &[(&str, &str)], out: &mut Violations) {
    if let Some((_, value)) = pairs.iter().find(|(k, _)| *k == TAG_PROTOCOL)
        && !is_protocol(value)
    {
        let quoted = crate::go::quote(value);
        out.add(at.key(TAG_PROTOCOL), format!("tag \"{TAG_PROTOCOL}\" has an invalid value {quoted}. {PROTOCOLS}"));
    }
}

/// A field that holds a protocol.
pub fn protocol(at: &Path, value: &str, out: &mut Violations) {
    if !is_protocol(value) {
        out.add(at, format!("has an invalid value {}. {PROTOCOLS}", crate::go::quote(value)));
    }
}

/// Known protocols; the hint names fewer than are accepted, as Kuma's does.
pub fn is_protocol(value: &str) -> bool {
    ["http", "http2", "tcp", "tls", "grpc", "kafka", "mysql"].iter().any(|p| value.eq_ignore_ascii_case(p))
}

/// A canonical protobuf duration that must be there and positive.
pub fn positive_duration(at: &Path, value: Option<&Value>, out: &mut Violations) {
    let nanos = value.and_then(Value::as_str).and_then(|s| crate::go::parse_duration(s).ok()).unwrap_or(0);
    if nanos == 0 {
        out.add(at, POSITIVE);
    } else if nanos < 0 {
        out.add(at, "must have a valid value");
    }
}

/// A number that must not be 0.
pub fn threshold(at: &Path, value: u64, out: &mut Violations) {
    if value == 0 {
        out.add(at, POSITIVE);
    }
}

/// A path of a URL: starts with `/`, no control characters, sound percent-escapes.
pub fn is_url_path(text: &str) -> bool {
    text.starts_with('/') && has_sound_escapes(text)
}

/// No control characters or blanks, and every `%` is followed by two hexadecimal digits.
pub fn has_sound_escapes(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.iter().any(|b| *b <= b' ' || *b == 0x7f)
        && bytes.iter().enumerate().filter(|(_, b)| **b == b'%').all(|(i, _)| {
            let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
            hex(i + 1) && hex(i + 2)
        })
}

/// Splits `host:port` or `[v6]:port`; `None` when it is not of that form.
pub fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains([':', '[', ']']) => return None,
        None => host,
    };
    if port.contains(['[', ']']) { None } else { Some((host, port)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names() {
        for ok in ["a", "kuma.io", "a.b.", "a_b.c", "kibana", "1.2.3", "a-"] {
            assert!(is_dns_name(ok), "{ok}");
        }
        for bad in ["", "..>_<..", "-a", "a..b", "a b", &"a".repeat(64), "a.b.."] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }

    #[test]
    fn host_and_port() {
        assert_eq!(split_host_port("kibana:1234"), Some(("kibana", "1234")));
        assert_eq!(split_host_port("[::1]:80"), Some(("::1", "80")));
        assert_eq!(split_host_port("a:b:c"), None);
        assert_eq!(split_host_port("kibana"), None);
        assert!(is_url_path("/a%20b") && !is_url_path("a") && !is_url_path("/%2") && !is_url_path("/a b"));
    }
}
