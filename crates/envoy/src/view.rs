//! Inspection: a configuration as JSON, and the difference of two of them (REST contract §4.3).

use crate::{
    context::Generated,
    json::{JsonError, to_value},
};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// `{"xds": {<type URL>: {<resource name>: <resource>}}}`; a type without resources is left out.
pub fn config_view(resources: &[Generated]) -> Result<Value, JsonError> {
    let mut types = Map::new();
    for r in resources {
        let of_type = types.entry(r.type_url).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(of_type) = of_type {
            of_type.insert(r.name.to_string(), to_value(r.type_url, &r.bytes)?);
        }
    }
    Ok(json!({ "xds": types }))
}

/// JSON Patch (RFC 6902) from `before` to `after`. Every removal is preceded by a `test` and says in `value` what it removes, as stock
/// does; a replaced value is a removal and an `add`. Keys go in byte order. Of lists the longest common part stays; between its elements
/// objects and lists are compared pairwise, and what is added at one place comes in reverse, each at the same index.
pub fn json_patch_diff(before: &Value, after: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    diff("", before, after, &mut out);
    out
}

fn diff(path: &str, before: &Value, after: &Value, out: &mut Vec<Value>) {
    match (before, after) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for k in keys {
                let at = format!("{path}/{}", escape(k));
                match (a.get(k), b.get(k)) {
                    (Some(v), Some(w)) => diff(&at, v, w, out),
                    (Some(v), None) => remove(&at, v, out),
                    (None, Some(w)) => add(&at, w, out),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => diff_lists(path, a, b, out),
        (a, b) => {
            remove(path, a, out);
            add(path, b, out);
        }
    }
}

fn diff_lists(path: &str, a: &[Value], b: &[Value], out: &mut Vec<Value>) {
    let (mut i, mut j, mut index) = (0, 0, 0);
    // The ends close the last gap.
    for (next_i, next_j) in common(a, b).into_iter().chain([(a.len(), b.len())]) {
        let (gap_a, gap_b) = (a.get(i..next_i).unwrap_or_default(), b.get(j..next_j).unwrap_or_default());
        let pairs = gap_a.iter().zip(gap_b).take_while(|(v, w)| alike(v, w)).count();
        for (v, w) in gap_a.iter().zip(gap_b).take(pairs) {
            diff(&format!("{path}/{index}"), v, w, out);
            index += 1;
        }
        let at = format!("{path}/{index}");
        gap_a.iter().skip(pairs).for_each(|v| remove(&at, v, out));
        gap_b.iter().skip(pairs).rev().for_each(|w| add(&at, w, out));
        index += gap_b.len() - pairs + 1;
        (i, j) = (next_i + 1, next_j + 1);
    }
}

/// Both objects or both lists.
fn alike(a: &Value, b: &Value) -> bool {
    a.is_object() && b.is_object() || a.is_array() && b.is_array()
}

/// Above this many pairs a list is compared element by element.
const MAX_PAIRS: usize = 1 << 20;

/// Indices of a longest common subsequence.
fn common(a: &[Value], b: &[Value]) -> Vec<(usize, usize)> {
    if a.len().saturating_mul(b.len()) > MAX_PAIRS {
        return (0..a.len().min(b.len())).filter(|i| a.get(*i) == b.get(*i)).map(|i| (i, i)).collect();
    }
    // longest[i][j]: length of a common subsequence of a[i..] and b[j..].
    let width = b.len() + 1;
    let mut longest = vec![0u32; (a.len() + 1) * width];
    for (i, v) in a.iter().enumerate().rev() {
        for (j, w) in b.iter().enumerate().rev() {
            longest[i * width + j] =
                if v == w { longest[(i + 1) * width + j + 1] + 1 } else { longest[(i + 1) * width + j].max(longest[i * width + j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            out.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    out
}

fn remove(path: &str, value: &Value, out: &mut Vec<Value>) {
    out.push(json!({"op": "test", "path": path, "value": value}));
    out.push(json!({"op": "remove", "path": path, "value": value}));
}

fn add(path: &str, value: &Value, out: &mut Vec<Value>) {
    out.push(json!({"op": "add", "path": path, "value": value}));
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(before: Value, after: Value) -> Vec<(String, String)> {
        let text = |op: &Value, k: &str| op.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        json_patch_diff(&before, &after).iter().map(|op| (text(op, "op"), text(op, "path"))).filter(|(op, _)| op != "test").collect()
    }
    fn op(op: &str, path: &str) -> (String, String) {
        (op.to_owned(), path.to_owned())
    }

    #[test]
    fn objects_by_key() {
        let got = ops(json!({"b": 1, "c": {"x/y": 1, "t~": 2}}), json!({"a": 1, "b": 2, "c": {"t~": 3}}));
        let want =
            [op("add", "/a"), op("remove", "/b"), op("add", "/b"), op("remove", "/c/t~0"), op("add", "/c/t~0"), op("remove", "/c/x~1y")];
        assert_eq!(got, want);
        assert!(json_patch_diff(&json!({"a": [1]}), &json!({"a": [1]})).is_empty());
    }

    #[test]
    fn lists_keep_what_is_common() {
        assert_eq!(ops(json!([{"rbac": 1}, {"tcp": 1}]), json!([{"tcp": 1}])), [op("remove", "/0")]);
        assert_eq!(ops(json!([{"r": 1}]), json!([{"a": 1}, {"b": 1}, {"r": 1}])), [op("add", "/0"), op("add", "/0")]);
        assert_eq!(
            ops(json!([{"n": 1}]), json!([{"n": 2}, {"m": 1}, {"o": 1}])),
            [op("remove", "/0/n"), op("add", "/0/n"), op("add", "/1"), op("add", "/1")]
        );
        assert_eq!(ops(json!([1, 2, 3]), json!([2, 4])), [op("remove", "/0"), op("remove", "/1"), op("add", "/1")]);
    }
}
