//! protobuf `Struct` as JSON.

use envoy_types::pb::google::protobuf::{Struct, Value as Pb, value::Kind};
use serde_json::{Map, Number, Value};

/// Deepest nesting that is read; what lies below is left out.
const MAX_DEPTH: usize = 32;

/// A struct as a JSON object. Whole numbers become integers.
pub fn struct_to_json(s: &Struct) -> Value {
    object(s, MAX_DEPTH)
}

fn object(s: &Struct, depth: usize) -> Value {
    Value::Object(s.fields.iter().map(|(k, v)| (k.clone(), value(v, depth))).collect::<Map<_, _>>())
}

fn value(v: &Pb, depth: usize) -> Value {
    let Some(below) = depth.checked_sub(1) else { return Value::Null };
    match &v.kind {
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::StructValue(s)) => object(s, below),
        Some(Kind::ListValue(l)) => Value::Array(l.values.iter().map(|v| value(v, below)).collect()),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

fn number(n: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() < EXACT {
        // In range by the check above.
        Value::Number(Number::from(n as i64))
    } else {
        Number::from_f64(n).map_or(Value::Null, Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_and_numbers() {
        let of = |kind| Pb { kind: Some(kind) };
        let list = envoy_types::pb::google::protobuf::ListValue { values: vec![of(Kind::NumberValue(1.0)), of(Kind::NumberValue(0.5)), Pb { kind: None }] };
        let inner = Struct { fields: [("l".to_owned(), of(Kind::ListValue(list)))].into() };
        let s = Struct { fields: [("s".to_owned(), of(Kind::StructValue(inner))), ("b".to_owned(), of(Kind::BoolValue(true)))].into() };
        assert_eq!(struct_to_json(&s), serde_json::json!({"b": true, "s": {"l": [1, 0.5, null]}}));
        let mut deep = of(Kind::BoolValue(true));
        for _ in 0..200 {
            deep = of(Kind::StructValue(Struct { fields: [("x".to_owned(), deep)].into() }));
        }
        let s = Struct { fields: [("d".to_owned(), deep)].into() };
        assert!(struct_to_json(&s).to_string().len() < 1000, "bounded");
    }
}
