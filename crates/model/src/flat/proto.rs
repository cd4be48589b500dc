//! Protobuf JSON by table: reading a body into its canonical form (reference: Kuma 2.14.3 REST contract, §2.2; the error texts are those
//! of golang/protobuf's `jsonpb`).

use crate::go;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Number, Value};

/// A message type.
pub struct Message {
    /// Full protobuf name.
    pub name: &'static str,
    /// Fields in the order of the `.proto` file.
    pub fields: &'static [Field],
}

/// A field of a message.
pub struct Field {
    /// JSON name. The protobuf name is its snake_case form and is accepted on input.
    pub json: &'static str,
    /// Type.
    pub ty: Type,
    /// Fields of one message with the same non-empty name exclude each other: the one that stands last in the table wins.
    pub oneof: &'static str,
}

/// A field.
pub const fn field(json: &'static str, ty: Type) -> Field {
    Field { json, ty, oneof: "" }
}

/// A field that belongs to a oneof.
pub const fn one_of(oneof: &'static str, json: &'static str, ty: Type) -> Field {
    Field { json, ty, oneof }
}

/// An enum type.
pub struct Enum {
    /// Full protobuf name.
    pub name: &'static str,
    /// Names and numbers; the one with number 0 is the default.
    pub values: &'static [(&'static str, i32)],
}

/// Type of a field.
pub enum Type {
    /// `string`
    String,
    /// `bool`
    Bool,
    /// `uint32`
    U32,
    /// `uint64`, a string in JSON.
    U64,
    /// `double`
    Double,
    /// An enum, its name in JSON.
    Enum(&'static Enum),
    /// A message.
    Message(&'static Message),
    /// `google.protobuf.BoolValue`; unset differs from false. The same for the other wrappers.
    BoolValue,
    /// `google.protobuf.UInt32Value`
    U32Value,
    /// `google.protobuf.DoubleValue`
    DoubleValue,
    /// `google.protobuf.StringValue`
    StringValue,
    /// `google.protobuf.BytesValue`, base64 in JSON.
    BytesValue,
    /// `bytes`
    Bytes,
    /// `google.protobuf.Duration`: any Go duration in, seconds out.
    Duration,
    /// `google.protobuf.Timestamp`
    Timestamp,
    /// `google.protobuf.Struct`: any object.
    Struct,
    /// A list.
    List(&'static Type),
    /// A map with string keys.
    Map(&'static Type),
}

/// The canonical form of `value` read as `message`: JSON names only, unknown fields and `null`s gone, default scalars, empty lists and
/// empty maps left out, present messages kept (even as `{}`), enums by name, 64-bit integers as text, durations in seconds.
///
/// Canonical form is a fixed point. Errors are the texts of Go's decoder, without the resource they belong to.
pub fn canonicalize(message: &Message, value: &Value) -> Result<Value, String> {
    let map = match value {
        Value::Object(m) => m,
        Value::Null => return Ok(Value::Object(Map::new())),
        other => return Err(unmarshal_error(other, "map[string]json.RawMessage")),
    };
    let mut out = Map::new();
    for f in message.fields {
        // The JSON name wins when both spellings are there.
        let raw = match map.get(f.json).or_else(|| map.iter().find(|(k, _)| is_snake_of(k, f.json)).map(|(_, v)| v)) {
            None | Some(Value::Null) => continue,
            Some(raw) => raw,
        };
        let value = convert(&f.ty, raw)?;
        if !f.oneof.is_empty() {
            for other in message.fields.iter().filter(|o| o.oneof == f.oneof) {
                out.remove(other.json);
            }
        } else if is_default(&f.ty, &value) {
            continue;
        }
        out.insert(f.json.to_owned(), value);
    }
    Ok(Value::Object(out))
}

fn convert(ty: &Type, raw: &Value) -> Result<Value, String> {
    Ok(match ty {
        Type::String | Type::StringValue => match raw {
            Value::String(_) => raw.clone(),
            Value::Null => Value::String(String::new()),
            other => return Err(unmarshal_error(other, "string")),
        },
        Type::Bool | Type::BoolValue => match raw {
            Value::Bool(_) => raw.clone(),
            Value::Null => Value::Bool(false),
            other => return Err(unmarshal_error(other, "bool")),
        },
        Type::U32 | Type::U32Value => {
            u32::try_from(unsigned(raw, "uint32")?).map(Value::from).map_err(|_| unmarshal_error(raw, "uint32"))?
        }
        Type::U64 => Value::String(unsigned(raw, "uint64")?.to_string()),
        Type::Double | Type::DoubleValue => double(raw)?,
        Type::Bytes | Type::BytesValue => match raw {
            Value::String(s) => {
                // Go's decoder skips line breaks.
                let text: String = s.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
                let bytes = BASE64.decode(&text).map_err(|e| base64_error(&e, text.len()))?;
                Value::String(BASE64.encode(bytes))
            }
            Value::Null => Value::String(String::new()),
            other => return Err(unmarshal_error(other, "[]uint8")),
        },
        Type::Enum(e) => enumeration(e, raw)?,
        Type::Message(m) => canonicalize(m, raw)?,
        Type::Duration => {
            let Value::String(s) = raw else {
                return Err(unmarshal_error(raw, "string"));
            };
            let nanos = go::parse_duration(s).map_err(|e| format!("bad Duration: {e}"))?;
            Value::String(go::format_proto_duration(nanos))
        }
        Type::Timestamp => {
            let Value::String(s) = raw else {
                return Err(unmarshal_error(raw, "string"));
            };
            Value::String(timestamp(s).ok_or_else(|| format!("bad Timestamp: parsing time {}", go::quote(s)))?)
        }
        Type::Struct => match raw {
            Value::Object(_) => free(raw),
            Value::Null => Value::Object(Map::new()),
            other => {
                return Err(format!("bad StructValue: {}", unmarshal_error(other, "map[string]json.RawMessage")));
            }
        },
        Type::List(item) => match raw {
            Value::Array(items) => Value::Array(items.iter().map(|v| convert(item, v)).collect::<Result<_, _>>()?),
            other => return Err(unmarshal_error(other, "[]json.RawMessage")),
        },
        Type::Map(item) => match raw {
            Value::Object(m) => Value::Object(m.iter().map(|(k, v)| Ok((k.clone(), convert(item, v)?))).collect::<Result<_, String>>()?),
            other => return Err(unmarshal_error(other, "map[string]json.RawMessage")),
        },
    })
}

/// Whether a singular field of this type is left out of canonical JSON.
fn is_default(ty: &Type, value: &Value) -> bool {
    match ty {
        Type::String | Type::Bytes => value.as_str() == Some(""),
        Type::Bool => value.as_bool() == Some(false),
        Type::U32 => value.as_u64() == Some(0),
        Type::U64 => value.as_str() == Some("0"),
        Type::Double => value.as_f64() == Some(0.0),
        Type::Enum(e) => e.values.iter().any(|(name, number)| *number == 0 && value.as_str() == Some(name)),
        Type::List(_) => value.as_array().is_some_and(Vec::is_empty),
        Type::Map(_) => value.as_object().is_some_and(Map::is_empty),
        Type::Message(_)
        | Type::BoolValue
        | Type::U32Value
        | Type::DoubleValue
        | Type::StringValue
        | Type::BytesValue
        | Type::Duration
        | Type::Timestamp
        | Type::Struct => false,
    }
}

/// An unsigned number, bare or quoted.
fn unsigned(raw: &Value, go_type: &str) -> Result<u64, String> {
    match raw {
        Value::Null => Ok(0),
        Value::Number(n) => n.as_u64().ok_or_else(|| format!("json: cannot unmarshal number {n} into Go value of type {go_type}")),
        Value::String(s) => s.parse().map_err(|_| unmarshal_error(raw, go_type)),
        other => Err(unmarshal_error(other, go_type)),
    }
}

fn double(raw: &Value) -> Result<Value, String> {
    match raw {
        Value::Null => Ok(Value::from(0)),
        Value::Number(n) => Ok(Value::Number(shortest(n))),
        // Not numbers in JSON; protobuf JSON writes them as these texts.
        Value::String(s) if matches!(s.as_str(), "NaN" | "Infinity" | "-Infinity") => Ok(raw.clone()),
        Value::String(s) => {
            let n = s.parse::<f64>().ok().filter(|n| n.is_finite()).and_then(Number::from_f64);
            n.map(|n| Value::Number(shortest(&n))).ok_or_else(|| unmarshal_error(raw, "float64"))
        }
        other => Err(unmarshal_error(other, "float64")),
    }
}

/// Whole doubles print without a fraction.
fn shortest(n: &Number) -> Number {
    /// Every whole number below is exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match n.as_f64() {
        Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < EXACT => Number::from(f as i64),
        _ => n.clone(),
    }
}

/// Free JSON: kept, numbers in their shortest form.
fn free(value: &Value) -> Value {
    match value {
        Value::Number(n) => Value::Number(shortest(n)),
        Value::Array(items) => Value::Array(items.iter().map(free).collect()),
        Value::Object(m) => Value::Object(m.iter().map(|(k, v)| (k.clone(), free(v))).collect()),
        other => other.clone(),
    }
}

fn enumeration(e: &Enum, raw: &Value) -> Result<Value, String> {
    let number = match raw {
        Value::String(s) if e.values.iter().any(|(name, _)| name == s) => return Ok(raw.clone()),
        Value::String(s) => return Err(format!("unknown value {} for enum {}", go::quote(&go::quote(s)), e.name)),
        Value::Null => 0,
        Value::Number(n) => n
            .as_i64()
            .and_then(|n| i32::try_from(n).ok())
            .ok_or_else(|| format!("json: cannot unmarshal number {n} into Go value of type protoreflect.EnumNumber"))?,
        other => return Err(unmarshal_error(other, "protoreflect.EnumNumber")),
    };
    // Kuma keeps numbers that it does not know. Refused here: whatever is stored must be readable for every consumer.
    let known = e.values.iter().find(|(_, n)| *n == number).map(|(name, _)| Value::from(*name));
    known.ok_or_else(|| format!("unknown value {number} for enum {}", e.name))
}

/// RFC 3339 in UTC with 0, 3, 6 or 9 fraction digits.
fn timestamp(text: &str) -> Option<String> {
    use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
    let t = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    let nanos = t.nanosecond();
    let whole = t.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()?;
    let whole = whole.strip_suffix('Z')?;
    Some(match nanos {
        0 => format!("{whole}Z"),
        n if n % 1_000_000 == 0 => format!("{whole}.{:03}Z", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{whole}.{:06}Z", n / 1_000),
        n => format!("{whole}.{n:09}Z"),
    })
}

fn unmarshal_error(value: &Value, go_type: &str) -> String {
    match value {
        Value::Number(n) if go_type.starts_with("uint") => {
            format!("json: cannot unmarshal number {n} into Go value of type {go_type}")
        }
        other => format!("json: cannot unmarshal {} into Go value of type {go_type}", go::json_type(other)),
    }
}

fn base64_error(error: &base64::DecodeError, len: usize) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => len,
    };
    format!("illegal base64 data at input byte {at}")
}

/// Whether `key` is the snake_case form of the lowerCamel name `json`.
fn is_snake_of(key: &str, json: &str) -> bool {
    let mut rest = key.bytes();
    for b in json.bytes() {
        let matches = if b.is_ascii_uppercase() {
            rest.next() == Some(b'_') && rest.next() == Some(b.to_ascii_lowercase())
        } else {
            rest.next() == Some(b)
        };
        if !matches {
            return false;
        }
    }
    rest.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    static COLOR: Enum = Enum { name: "test.Color", values: &[("RED", 0), ("BLUE", 1)] };
    static INNER: Message = Message { name: "test.Inner", fields: &[field("a", Type::String)] };
    static ALL: Message = Message {
        name: "test.All",
        fields: &[
            field("someText", Type::String),
            field("flag", Type::Bool),
            field("u32", Type::U32),
            field("u64", Type::U64),
            field("ratio", Type::DoubleValue),
            field("color", Type::Enum(&COLOR)),
            field("inner", Type::Message(&INNER)),
            field("maybe", Type::BoolValue),
            field("data", Type::BytesValue),
            field("wait", Type::Duration),
            field("at", Type::Timestamp),
            field("conf", Type::Struct),
            field("list", Type::List(&Type::Message(&INNER))),
            field("map", Type::Map(&Type::String)),
            one_of("x", "left", Type::String),
            one_of("x", "right", Type::Message(&INNER)),
        ],
    };

    fn ok(input: Value, want: Value) {
        let got = canonicalize(&ALL, &input).unwrap();
        assert_eq!(got, want);
        assert_eq!(canonicalize(&ALL, &got).unwrap(), want, "canonical form must be a fixed point");
    }

    #[test]
    fn canonical() {
        ok(json!({"some_text": "a", "unknown": 1}), json!({"someText": "a"}));
        ok(json!({"some_text": "a", "someText": "b"}), json!({"someText": "b"}));
        ok(json!({"someText": "", "flag": false, "u32": 0, "u64": "0", "color": "RED", "list": [], "map": {}}), json!({}));
        ok(json!({"u32": "7", "u64": 9, "color": 1, "ratio": 80.0}), json!({"u32": 7, "u64": "9", "color": "BLUE", "ratio": 80}));
        ok(json!({"inner": {}, "maybe": false, "conf": {}}), json!({"inner": {}, "maybe": false, "conf": {}}));
        ok(json!({"inner": null, "maybe": null, "flag": null}), json!({}));
        ok(json!({"list": [null, {"a": "", "b": 1}], "map": {"k": ""}}), json!({"list": [{}, {}], "map": {"k": ""}}));
        ok(json!({"wait": "1h", "at": "2026-01-01T01:00:00.5+01:00"}), json!({"wait": "3600s", "at": "2026-01-01T00:00:00.500Z"}));
        ok(json!({"data": "YWJj\n"}), json!({"data": "YWJj"}));
        ok(json!({"conf": {"port": 5670.0, "f": 1.5, "n": null}}), json!({"conf": {"port": 5670, "f": 1.5, "n": null}}));
        ok(json!({"left": "", "right": null}), json!({"left": ""}));
        ok(json!({"left": "l", "right": {}}), json!({"right": {}}));
    }

    #[test]
    fn refused() {
        for (input, error) in [
            (json!({"someText": 1}), "json: cannot unmarshal number into Go value of type string"),
            (json!({"flag": "true"}), "json: cannot unmarshal string into Go value of type bool"),
            (json!({"u32": -1}), "json: cannot unmarshal number -1 into Go value of type uint32"),
            (json!({"u32": 1.5}), "json: cannot unmarshal number 1.5 into Go value of type uint32"),
            (json!({"u32": 4294967296u64}), "json: cannot unmarshal number 4294967296 into Go value of type uint32"),
            (json!({"color": "GREEN"}), r#"unknown value "\"GREEN\"" for enum test.Color"#),
            (json!({"color": 5}), "unknown value 5 for enum test.Color"),
            (json!({"inner": []}), "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
            (json!({"list": {}}), "json: cannot unmarshal object into Go value of type []json.RawMessage"),
            (json!({"wait": "1d"}), "bad Duration: time: unknown unit \"d\" in duration \"1d\""),
            (json!({"data": "a-b="}), "illegal base64 data at input byte 1"),
        ] {
            assert_eq!(canonicalize(&ALL, &input), Err(error.to_owned()), "{input}");
        }
    }
}
