//! Canonical encoding: the same content has the same bytes in every process.
//!
//! prost writes fields in the order of their numbers, but map fields (`filter_metadata`, `Struct.fields`, `policies`, …) in the order of a
//! randomly seeded `HashMap`. So every encoded message is walked once with a table of its type, and the entries of map fields are put into
//! the order of their encoded bytes. Messages that reach no map are not walked. `Any` is opaque here: [`pack`] makes its value canonical
//! when it is built. The walk is linear in the size of the message and allocates only for messages with maps.
//!
//! A version is the first 64 bits of SHA-256 over these bytes, thus the same on every node.

use crate::json;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use prost_reflect::Kind;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::OnceLock};

/// What the walk needs of a message type.
#[derive(Default)]
struct Shape {
    /// Field number → (message type, is a map), for message fields from which a map can be reached.
    fields: HashMap<u32, (usize, bool)>,
    reaches_map: bool,
}

struct Shapes {
    by_name: HashMap<String, usize>,
    shapes: Vec<Shape>,
}

fn shapes() -> &'static Shapes {
    static SHAPES: OnceLock<Shapes> = OnceLock::new();
    SHAPES.get_or_init(|| {
        let messages: Vec<_> = json::pool().all_messages().collect();
        let by_name: HashMap<String, usize> = messages.iter().enumerate().map(|(i, m)| (m.full_name().to_owned(), i)).collect();
        let mut shapes: Vec<Shape> = messages
            .iter()
            .map(|m| Shape {
                fields: m
                    .fields()
                    .filter_map(|f| match f.kind() {
                        Kind::Message(child) => Some((f.number(), (*by_name.get(child.full_name())?, f.is_map()))),
                        _ => None,
                    })
                    .collect(),
                reaches_map: m.fields().any(|f| f.is_map()),
            })
            .collect();
        // Fixed point: a message reaches a map when a message field of it does.
        loop {
            let reached: Vec<usize> = (0..shapes.len())
                .filter(|i| !shapes[*i].reaches_map && shapes[*i].fields.values().any(|(c, _)| shapes[*c].reaches_map))
                .collect();
            if reached.is_empty() {
                break;
            }
            for i in reached {
                shapes[i].reaches_map = true;
            }
        }
        let keep: Vec<bool> = shapes.iter().map(|s| s.reaches_map).collect();
        for s in &mut shapes {
            s.fields.retain(|_, (child, is_map)| *is_map || keep[*child]);
        }
        Shapes { by_name, shapes }
    })
}

/// Reads a varint at `*at`.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let b = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(b & 0x7f).checked_shl(shift)?;
        if b & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Deepest nesting that is walked; Envoy's own limit is 100.
const MAX_DEPTH: usize = 100;

/// Appends the canonical form of `bytes` to `out`. `None` when they are not a message of the type.
fn walk(shape: &Shape, bytes: &[u8], out: &mut Vec<u8>, depth: usize) -> Option<()> {
    if !shape.reaches_map || depth > MAX_DEPTH {
        out.extend_from_slice(bytes);
        return Some(());
    }
    let all = &shapes().shapes;
    let mut at = 0;
    // Entries of the map field that is being read; they are adjacent in prost's output.
    let mut entries: (u32, Vec<Vec<u8>>) = (0, Vec::new());
    let flush = |entries: &mut (u32, Vec<Vec<u8>>), out: &mut Vec<u8>| {
        entries.1.sort_unstable();
        for e in entries.1.drain(..) {
            prost::encoding::encode_varint(u64::from(entries.0) << 3 | 2, out);
            prost::encoding::encode_varint(e.len() as u64, out);
            out.extend_from_slice(&e);
        }
    };
    while at < bytes.len() {
        let start = at;
        let tag = varint(bytes, &mut at)?;
        let number = u32::try_from(tag >> 3).ok()?;
        match tag & 7 {
            0 => {
                varint(bytes, &mut at)?;
            }
            1 => at = at.checked_add(8)?,
            5 => at = at.checked_add(4)?,
            2 => {
                let len = usize::try_from(varint(bytes, &mut at)?).ok()?;
                let end = at.checked_add(len)?;
                let body = bytes.get(at..end)?;
                at = end;
                if let Some((child, is_map)) = shape.fields.get(&number) {
                    if entries.0 != number {
                        flush(&mut entries, out);
                        entries.0 = number;
                    }
                    let mut inner = Vec::with_capacity(body.len());
                    walk(all.get(*child)?, body, &mut inner, depth + 1)?;
                    if *is_map {
                        entries.1.push(inner);
                    } else {
                        prost::encoding::encode_varint(tag, out);
                        prost::encoding::encode_varint(inner.len() as u64, out);
                        out.append(&mut inner);
                    }
                    continue;
                }
            }
            _ => return None,
        }
        flush(&mut entries, out);
        out.extend_from_slice(bytes.get(start..at)?);
    }
    flush(&mut entries, out);
    Some(())
}

/// The canonical form of an encoded message of the type with this full name. Bytes that are not such a message come back as they are.
pub fn canonical(full_name: &str, bytes: Vec<u8>) -> Vec<u8> {
    let all = shapes();
    let Some(shape) = all.by_name.get(full_name).and_then(|i| all.shapes.get(*i)).filter(|s| s.reaches_map) else { return bytes };
    let mut out = Vec::with_capacity(bytes.len());
    match walk(shape, &bytes, &mut out, 0) {
        Some(()) => out,
        None => bytes,
    }
}

/// Canonical bytes of a message.
pub fn encode<M: Message + Name>(message: &M) -> Vec<u8> {
    canonical(&M::full_name(), message.encode_to_vec())
}

/// A message as `Any` with the type URL `type.googleapis.com/…` and a canonical value.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: encode(message) }
}

/// The message inside an `Any`, if it is of this type and can be read.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Option<M> {
    if any.type_url.rsplit('/').next() != Some(M::full_name().as_str()) {
        return None;
    }
    M::decode(any.value.as_slice()).ok()
}

/// Content version: the first 64 bits of SHA-256.
pub fn version(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0, |v, b| v << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::{
        envoy::config::core::v3::Metadata,
        google::protobuf::{Struct, Value, value::Kind as V},
    };

    fn text(s: &str) -> Value {
        Value { kind: Some(V::StringValue(s.into())) }
    }

    #[test]
    fn map_order_does_not_show() {
        let make = |reverse: bool| {
            let mut keys: Vec<String> = (0..40).map(|i| format!("key-{i}")).collect();
            if reverse {
                keys.reverse();
            }
            let mut m = Metadata::default();
            for outer in &keys {
                let fields = keys.iter().map(|k| (k.clone(), text(k))).collect();
                m.filter_metadata.insert(outer.clone(), Struct { fields });
            }
            m
        };
        // Each HashMap has its own seed, so raw encodings of equal maps differ.
        let (a, b) = (make(false), make(true));
        assert_ne!(a.encode_to_vec(), b.encode_to_vec());
        assert_eq!(encode(&a), encode(&b));
        assert_eq!(Metadata::decode(encode(&a).as_slice()).unwrap(), a);
    }

    #[test]
    fn foreign_bytes_come_back() {
        assert_eq!(canonical("envoy.config.core.v3.Metadata", vec![0xff, 1, 2]), vec![0xff, 1, 2]);
        assert_eq!(canonical("no.Such", vec![1]), vec![1]);
    }

    #[test]
    fn versions_are_stable() {
        assert_eq!(version(b"abc"), 0xba78_16bf_8f01_cfea);
    }
}
