//! Merging of confs (reference: Kuma 2.14.3 policy contract, §1.7 and §4.5).

use crate::http_route;
use ikada_model::Kind;
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

/// Merged confs of a kind: one, but for MeshHTTPRoute one per hostname. No confs: nothing.
pub(crate) fn conf_list(kind: Kind, confs: &[Arc<Value>]) -> Vec<Arc<Value>> {
    match kind {
        _ if confs.is_empty() => Vec::new(),
        Kind::MeshHTTPRoute => http_route::merge_confs(confs),
        _ => vec![merge(confs)],
    }
}

/// RFC 7396 in place, with the rule of `append` keys.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn merged(confs: &[Value]) -> Value {
        let confs: Vec<_> = confs.iter().cloned().map(Arc::new).collect();
        (*merge(&confs)).clone()
    }

    #[test]
    fn examples_of_the_reference() {
        let weak = json!({"http": {"requestTimeout": "15s", "streamIdleTimeout": "30m0s"}});
        let want = json!({"http": {"requestTimeout": "3s", "streamIdleTimeout": "30m0s"}});
        assert_eq!(merged(&[weak, json!({"http": {"requestTimeout": "3s"}})]), want);
        assert_eq!(merged(&[json!({"backends": ["A"]}), json!({"backends": ["B"]})]), json!({"backends": ["B"]}));
        let append = merged(&[json!({"a": {"appendMatch": ["A"]}}), json!({"a": {"appendMatch": ["B"]}})]);
        assert_eq!(append, json!({"a": {"appendMatch": ["A", "B"]}}));
    }

    #[test]
    fn one_conf_is_shared() {
        let conf = Arc::new(json!({"a": 1}));
        assert!(Arc::ptr_eq(&merge(std::slice::from_ref(&conf)), &conf));
    }

    /// Objects as confs are: no nulls, every key with one type in all of them (a schema sees to that).
    fn conf() -> impl Strategy<Value = Value> {
        let scalar = |k: &'static str| prop::option::of(0u8..4).prop_map(move |v| v.map(|v| (k, json!(v))));
        let list = |k: &'static str| prop::option::of(prop::collection::vec(0u8..4, 0..3)).prop_map(move |v| v.map(|v| (k, json!(v))));
        let leaf = (scalar("a"), scalar("b"), list("list"), list("appendMatch"))
            .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>());
        (leaf.clone(), prop::option::of(leaf)).prop_map(|(mut top, inner)| {
            top.extend(inner.map(|i| ("inner".to_owned(), Value::Object(i))));
            Value::Object(top)
        })
    }

    proptest! {
        #[test]
        fn merging_is_associative(a in conf(), b in conf(), c in conf()) {
            let left = merged(&[merged(&[a.clone(), b.clone()]), c.clone()]);
            let right = merged(&[a.clone(), merged(&[b.clone(), c.clone()])]);
            prop_assert_eq!(&left, &right);
            prop_assert_eq!(&left, &merged(&[a, b, c]));
        }
    }
}
