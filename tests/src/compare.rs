//! Comparison of results as the corpus's own runner does it.

use serde_json::{Map, Value};

/// Drops null, empty lists and empty objects inside objects: languages differ there, the data does not.
pub fn bare(v: &Value) -> Value {
    let is_bare = |v: &Value| match v {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    match v {
        Value::Object(o) => Value::Object(o.iter().map(|(k, v)| (k.clone(), bare(v))).filter(|(_, v)| !is_bare(v)).collect()),
        Value::Array(a) => Value::Array(a.iter().map(bare).collect()),
        other => other.clone(),
    }
}

/// A discovery response `{resources: [{name, resource}]}` is compared by type and name.
pub fn by_name(v: Value) -> Value {
    let Value::Object(mut o) = v else { return v };
    let Some(Value::Array(list)) = o.get("resources") else { return Value::Object(o) };
    let key = |r: &Value| {
        let name = r.get("name").and_then(Value::as_str)?;
        let ty = r.get("resource").and_then(|r| r.get("@type")).and_then(Value::as_str).unwrap_or("");
        Some(format!("{ty} {name}"))
    };
    let keyed: Option<Map<String, Value>> = list.iter().map(|r| Some((key(r)?, r.clone()))).collect();
    if let Some(keyed) = keyed {
        o.insert("resources".to_owned(), Value::Object(keyed));
    }
    Value::Object(o)
}

/// First difference between what is expected and what came, with its path. `None` when they are equal.
pub fn difference(want: &Value, got: &Value) -> Option<String> {
    diff(&by_name(bare(want)), &by_name(bare(got)), "$".to_owned())
}

fn short(v: &Value) -> String {
    let text = v.to_string();
    if text.chars().count() <= 160 { text } else { text.chars().take(157).collect::<String>() + "..." }
}

fn diff(want: &Value, got: &Value, path: String) -> Option<String> {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for (k, v) in w {
                let Some(other) = g.get(k) else { return Some(format!("{path}.{k}: missing, want {}", short(v))) };
                if let Some(d) = diff(v, other, format!("{path}.{k}")) {
                    return Some(d);
                }
            }
            g.iter().find(|(k, _)| !w.contains_key(*k)).map(|(k, v)| format!("{path}.{k}: unexpected {}", short(v)))
        }
        (Value::Array(w), Value::Array(g)) => {
            for (i, (a, b)) in w.iter().zip(g).enumerate() {
                if let Some(d) = diff(a, b, format!("{path}[{i}]")) {
                    return Some(d);
                }
            }
            (w.len() != g.len()).then(|| format!("{path}: want {} elements, got {}", w.len(), g.len()))
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        _ if want == got => None,
        _ => Some(format!("{path}: want {} got {}", short(want), short(got))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn empty_values_of_objects_are_absent() {
        assert_eq!(difference(&json!({"a": null, "b": {"c": []}}), &json!({})), None);
        assert_eq!(difference(&json!([[]]), &json!([])).unwrap(), "$: want 1 elements, got 0");
    }

    #[test]
    fn differences_have_a_path() {
        assert_eq!(difference(&json!({"a": [1, {"b": 2}]}), &json!({"a": [1, {"b": 3}]})).unwrap(), "$.a[1].b: want 2 got 3");
        assert_eq!(difference(&json!({"a": true}), &json!({"a": 1})).unwrap(), "$.a: want true got 1");
        assert_eq!(difference(&json!({}), &json!({"x": 1})).unwrap(), "$.x: unexpected 1");
        assert_eq!(difference(&json!({"a": 1}), &json!({"a": 1.0})), None);
    }

    #[test]
    fn discovery_responses_have_no_order() {
        let a = json!({"resources": [{"name": "x", "resource": {"@type": "t"}}, {"name": "y"}]});
        let b = json!({"resources": [{"name": "y"}, {"name": "x", "resource": {"@type": "t"}}]});
        assert_eq!(difference(&a, &b), None);
    }
}
