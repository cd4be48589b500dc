//! Protobuf JSON ⇄ encoded Envoy messages.
//!
//! envoy-types has no JSON form of its messages, but ships their `FileDescriptorSet`; a compressed copy of it (`assets/`, named after the
//! envoy-types version it comes from) drives prost-reflect, which prints what Go's protojson prints: camelCase, enums by name, 64-bit
//! numbers as strings, wrappers bare, durations with 0, 3, 6 or 9 decimals.

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions, prost::Message};
use serde_json::Value;
use std::sync::OnceLock;

/// Version of envoy-types that the descriptor set comes from.
pub const ENVOY_TYPES_VERSION: &str = "0.7.7";

static COMPRESSED: &[u8] = include_bytes!("../assets/envoy-types-0.7.7.bin.zst");

/// Uncompressed size bound of the descriptor set, bytes.
const MAX_DESCRIPTORS: usize = 64 << 20;

/// A message could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The type is not an Envoy message.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// Bytes or JSON do not fit the type.
    #[error("cannot read {type_url}: {message}")]
    Malformed {
        /// Type.
        type_url: String,
        /// Cause.
        message: String,
    },
}

/// All message types of envoy-types, built once (a fraction of a second in a debug build). Empty only if the copied asset is damaged, which
/// a test excludes.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let mut pool = zstd::bulk::decompress(COMPRESSED, MAX_DESCRIPTORS)
            .ok()
            .and_then(|bytes| DescriptorPool::decode(bytes.as_slice()).ok())
            .unwrap_or_default();
        // Cannot collide: envoy-types has no contrib extensions. Were it refused, only the JSON form of Kafka listeners would be missing.
        let _ = pool.add_file_descriptor_proto(crate::contrib::descriptors());
        pool
    })
}

/// The descriptor behind a type URL, whatever stands before the last `/`.
pub fn descriptor(type_url: &str) -> Result<MessageDescriptor, JsonError> {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    pool().get_message_by_name(name).ok_or_else(|| JsonError::UnknownType(type_url.to_owned()))
}

/// Protobuf JSON of an encoded message.
pub fn to_value(type_url: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    let malformed = |message: String| JsonError::Malformed { type_url: type_url.to_owned(), message };
    let message = DynamicMessage::decode(descriptor(type_url)?, bytes).map_err(|e| malformed(e.to_string()))?;
    message.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).map_err(|e| malformed(e.to_string()))
}

/// An encoded message from its protobuf JSON; unknown fields are an error. The encoding is not canonical, see
/// [`crate::encode::canonical`].
pub fn from_value(type_url: &str, value: &Value) -> Result<Vec<u8>, JsonError> {
    let malformed = |message: String| JsonError::Malformed { type_url: type_url.to_owned(), message };
    let message =
        DynamicMessage::deserialize_with_options(descriptor(type_url)?, value, &DeserializeOptions::new().deny_unknown_fields(true))
            .map_err(|e| malformed(e.to_string()))?;
    Ok(message.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn descriptors_are_those_of_the_locked_envoy_types() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).unwrap();
        let at = lock.find("name = \"envoy-types\"").unwrap();
        let version = lock[at..].lines().nth(1).unwrap();
        assert_eq!(version, format!("version = \"{ENVOY_TYPES_VERSION}\""), "copy the new types.bin into assets/");
        assert!(pool().all_messages().count() > 1000);
    }

    #[test]
    fn protobuf_json_as_go_prints_it() {
        let t = crate::type_urls::CLUSTER;
        let v = json!({
            "name": "a", "type": "EDS", "connectTimeout": "0.250s", "edsClusterConfig": {"edsConfig": {"ads": {}, "resourceApiVersion": "V3"}},
            "typedExtensionProtocolOptions": {"x": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "commonHttpProtocolOptions": {"idleTimeout": "0s"}, "explicitHttpConfig": {"http2ProtocolOptions": {}}}},
            "circuitBreakers": {"thresholds": [{"maxRetries": 3}]},
        });
        let bytes = from_value(t, &v).unwrap();
        assert_eq!(to_value(t, &bytes).unwrap(), v);
        assert!(matches!(from_value(t, &json!({"nmae": "a"})), Err(JsonError::Malformed { .. })));
        assert_eq!(to_value("x/no.Such", &[]), Err(JsonError::UnknownType("x/no.Such".into())));
        assert!(matches!(to_value(t, &[0xff]), Err(JsonError::Malformed { .. })));
    }
}
