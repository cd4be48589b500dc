//! Short forms of the Envoy messages that generators use.

use crate::encode::pack;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, CidrRange, ConfigSource, DataSource, Metadata, Pipe, SocketAddress, TransportSocket, address, config_source,
            data_source, socket_address, transport_socket,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{self, BoolValue, Duration, Struct, UInt32Value},
};
use ikada_model::go::parse_duration;
use prost::{Message, Name};
use std::collections::BTreeMap;

/// `google.protobuf.UInt32Value`.
pub(crate) fn u32v(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}
/// `google.protobuf.BoolValue`.
pub(crate) fn boolv(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}
/// A duration of whole seconds.
pub(crate) fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}
/// TCP address.
pub(crate) fn socket(address: &str, port: u32) -> Option<Address> {
    Some(Address { address: Some(address::Address::SocketAddress(socket_address(address, port))) })
}
/// TCP socket address.
pub(crate) fn socket_address(address: &str, port: u32) -> SocketAddress {
    SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}
/// Unix socket.
pub(crate) fn pipe(path: &str) -> Option<Address> {
    Some(Address { address: Some(address::Address::Pipe(Pipe { path: path.to_owned(), mode: 0 })) })
}
/// Inline bytes.
pub(crate) fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(text.as_bytes().to_vec())), ..Default::default() })
}
/// "Over the same ADS stream".
pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: envoy_types::pb::envoy::config::core::v3::ApiVersion::V3 as i32,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    }
}
/// A transport socket with its typed config.
pub(crate) fn transport_socket<M: Message + Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket { name: name.to_owned(), config_type: Some(transport_socket::ConfigType::TypedConfig(pack(config))) }
}
/// Exact string.
pub(crate) fn exact(value: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(value.to_owned())), ..Default::default() }
}
/// String prefix.
pub(crate) fn prefix(value: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Prefix(value.to_owned())), ..Default::default() }
}
/// Flat struct of strings.
pub(crate) fn string_struct(tags: &BTreeMap<String, String>) -> Struct {
    let value = |v: &String| protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(v.clone())) };
    Struct { fields: tags.iter().map(|(k, v)| (k.clone(), value(v))).collect() }
}
/// Metadata `io.kuma.tags`.
pub(crate) fn tags_metadata(tags: &BTreeMap<String, String>) -> Metadata {
    Metadata { filter_metadata: [("io.kuma.tags".to_owned(), string_struct(tags))].into(), ..Default::default() }
}
/// Metadata `io.kuma.tags` of resources that have no tags of their own.
pub(crate) fn unified_name_metadata(name: &str) -> Metadata {
    tags_metadata(&BTreeMap::from([("kuma.io/unified-name".to_owned(), name.to_owned())]))
}
/// `address/length`; a length that is missing or no number makes it the whole address.
pub(crate) fn cidr(text: &str) -> CidrRange {
    let (address, len) = text.rsplit_once('/').unwrap_or((text, ""));
    let full = if address.contains(':') { 128 } else { 32 };
    CidrRange { address_prefix: address.to_owned(), prefix_len: u32v(len.parse().unwrap_or(full)) }
}
/// Text of an address and port as names use it: `10.0.0.1:80`, `[::1]:80`.
pub(crate) fn host_port(address: &str, port: u32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
/// A name as stat prefix: every character outside of `[A-Za-z0-9_-]` becomes `_`.
pub(crate) fn sanitize(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

/// Go's duration text (`1h0m0s`, `25ms`, `1.5s`). `None` for anything else.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    let nanos = parse_duration(text).ok()?;
    Some(Duration { seconds: nanos / 1_000_000_000, nanos: i32::try_from(nanos % 1_000_000_000).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let d = |s: &str| go_duration(s).map(|d| (d.seconds, d.nanos));
        assert_eq!(d("1h0m0s"), Some((3600, 0)));
        assert_eq!(d("25ms"), Some((0, 25_000_000)));
        assert_eq!(d("1.5s"), Some((1, 500_000_000)));
        assert_eq!(d("-1s"), Some((-1, 0)));
        assert_eq!(d("0"), Some((0, 0)));
        assert_eq!(d("5"), None);
    }

    #[test]
    fn names() {
        assert_eq!(sanitize("inbound:[::1]:80"), "inbound____1__80");
        assert_eq!(host_port("::1", 80), "[::1]:80");
        assert_eq!(cidr("::1/128").prefix_len, u32v(128));
        assert_eq!(cidr("10.0.0.1").prefix_len, u32v(32));
    }
}
