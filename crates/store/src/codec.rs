//! The frame of every bincode record: `magic u8 | kind u8 | version u16 (little endian)`, then the body.
//!
//! bincode is used for a fixed set of flat, non-recursive records only. A new layout is a new version with a struct of its own; a
//! frozen struct never changes. Which records exist is the business of the caller ([`Tag`]), this module only guards the frame, the
//! size and the end.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// First byte of every record.
const MAGIC: u8 = 0xA7;
/// Bytes before the body.
const FRAME: usize = 4;
/// Largest body in bytes, both ways.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which record.
    pub kind: u8,
    /// Which layout of it, from 1.
    pub version: u16,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record of kind {} version {}", self.kind, self.version)
    }
}

/// Why a record cannot be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not a record.
    #[error("not a record")]
    NotARecord,
    /// Another record or version.
    #[error("{found} found where {expected} was expected")]
    Unexpected {
        /// In the bytes.
        found: Tag,
        /// Asked for.
        expected: Tag,
    },
    /// The body is not what its tag says.
    #[error("malformed record: {0}")]
    Malformed(String),
    /// Larger than [`MAX_BODY_BYTES`].
    #[error("record of {0} bytes exceeds the limit of {MAX_BODY_BYTES} bytes")]
    TooLarge(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BODY_BYTES>()
}

/// Encodes a record.
pub fn encode<T: Serialize>(tag: Tag, record: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend([MAGIC, tag.kind]);
    bytes.extend(tag.version.to_le_bytes());
    bincode::serde::encode_into_std_write(record, &mut bytes, config()).map_err(|e| CodecError::Malformed(e.to_string()))?;
    let body = bytes.len() - FRAME;
    if body > MAX_BODY_BYTES { Err(CodecError::TooLarge(body)) } else { Ok(bytes) }
}

/// What the bytes claim to be.
pub fn tag(bytes: &[u8]) -> Result<Tag, CodecError> {
    match bytes {
        [MAGIC, kind, v0, v1, ..] => Ok(Tag { kind: *kind, version: u16::from_le_bytes([*v0, *v1]) }),
        _ => Err(CodecError::NotARecord),
    }
}

/// Decodes a record: exactly this tag, and nothing after its end.
pub fn decode<T: DeserializeOwned>(expected: Tag, bytes: &[u8]) -> Result<T, CodecError> {
    let found = tag(bytes)?;
    if found != expected {
        return Err(CodecError::Unexpected { found, expected });
    }
    let body = bytes.get(FRAME..).unwrap_or_default();
    if body.len() > MAX_BODY_BYTES {
        return Err(CodecError::TooLarge(body.len()));
    }
    let (record, used) = bincode::serde::decode_from_slice(body, config()).map_err(|e| CodecError::Malformed(e.to_string()))?;
    if used != body.len() {
        return Err(CodecError::Malformed(format!("{} bytes after its end", body.len() - used)));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        id: [u8; 16],
        text: String,
        pairs: Vec<(String, String)>,
        owner: Option<(String, u64)>,
        bytes: Vec<u8>,
    }

    const TAG: Tag = Tag { kind: 1, version: 1 };

    fn sample() -> Sample {
        Sample { id: [7; 16], text: "ab".into(), pairs: vec![("k".into(), "v".into())], owner: Some(("o".into(), 300)), bytes: vec![1, 2] }
    }

    #[test]
    fn the_layout_is_frozen() {
        let bytes = encode(TAG, &sample()).unwrap();
        let mut expected = vec![0xA7, 1, 1, 0];
        expected.extend([7; 16]);
        expected.extend([2, b'a', b'b', 1, 1, b'k', 1, b'v', 1, 1, b'o', 251, 44, 1, 2, 1, 2]);
        assert_eq!(bytes, expected);
        assert_eq!(decode::<Sample>(TAG, &bytes).unwrap(), sample());
    }

    #[test]
    fn trailing_bytes_other_tags_and_sizes_are_refused() {
        let mut bytes = encode(TAG, &sample()).unwrap();
        assert!(matches!(decode::<Sample>(Tag { kind: 2, version: 1 }, &bytes), Err(CodecError::Unexpected { .. })));
        assert!(matches!(decode::<Sample>(Tag { kind: 1, version: 2 }, &bytes), Err(CodecError::Unexpected { .. })));
        bytes.push(0);
        assert!(matches!(decode::<Sample>(TAG, &bytes), Err(CodecError::Malformed(_))));
        assert_eq!(decode::<Sample>(TAG, b"x"), Err(CodecError::NotARecord));
        assert!(encode(TAG, &vec![0u8; MAX_BODY_BYTES + 1]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), framed in any::<bool>()) {
            if framed && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&[0xA7, 1, 1, 0]);
            }
            let _ = decode::<Sample>(TAG, &bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..40, to in any::<u8>()) {
            let mut bytes = encode(TAG, &sample()).unwrap();
            if let Some(b) = bytes.get_mut(at) { *b = to; }
            let _ = decode::<Sample>(TAG, &bytes);
        }
    }
}
