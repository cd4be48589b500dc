//! Merging of confs (reference: Kuma 2.14.3 policy contract, §1.7 and §4.5).

use serde_json::{Map, Value};
use std::sync::Arc;

/// Merges confs, weakest first: JSON merge patch (RFC 7396), but arrays under keys that start with `append` are concatenated.
/// One conf is shared, not copied. No confs: `null`.
pub fn merge(confs: &[Arc<Value>]) -> Arc<Value> {
    match confs {
        [] => Arc::new(Value::Null),
        [one] => one.clone(),
        many => {
            let mut all = Value::Object(Map::new());
            for c in many {
                patch(&mut all, c);
            }
            Arc::new(all)
        }
    }
}

/// Lays `weak` under `strong`, in place.
fn patch(target: &mut Value, patch_with: &Value) {
    let Value::Object(p) = patch_with else {
        *target = patch_with.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(t) = target else { return };
    for (k, v) in p {
        match v {
            Value::Null => {
                t.remove(k);
            }
            Value::Array(more) if k.starts_with("append") => match t.get_mut(k) {
                Some(Value::Array(have)) => have.extend(more.iter().cloned()),
                _ => {
                    t.insert(k.clone(), v.clone());
                }
            },
            _ => patch(t.entry(k.clone()).or_insert(Value::Null), v),
        }
    }
}
