//! Decoding of arbitrary bodies: never a panic, and a canonical spec stays what it is.

use ikada_model::{
    Dataplane, Json, Key, Kind, Labels, Mesh, MeshService, Resource,
    decode::{self, DecodeError},
    flat::{
        flat_kind,
        proto::{Message, Type},
    },
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

fn implemented() -> Vec<Kind> {
    Kind::all().filter(|k| decode::is_implemented(*k)).collect()
}

/// Names of all fields of a message and of the messages in it.
fn names(message: &Message, all: &mut BTreeSet<String>) {
    fn of_type(ty: &Type, all: &mut BTreeSet<String>) {
        match ty {
            Type::Message(m) => names(m, all),
            Type::List(t) | Type::Map(t) => of_type(t, all),
            _ => {}
        }
    }
    for f in message.fields {
        all.insert(f.json.to_owned());
        of_type(&f.ty, all);
    }
}

/// JSON whose keys are mostly field names of flat kinds or of policies, and whose texts are mostly meaningful somewhere.
fn body() -> impl Strategy<Value = Value> {
    let mut keys: BTreeSet<String> = BTreeSet::new();
    for kind in implemented() {
        if let Some(flat) = flat_kind(kind) {
            names(flat.message, &mut keys);
        }
    }
    keys.extend(
        [
            "spec",
            "targetRef",
            "to",
            "from",
            "rules",
            "default",
            "kind",
            "name",
            "mesh",
            "labels",
            "type",
            "creationTime",
            "http",
            "tcp",
            "cert",
        ]
        .map(str::to_owned),
    );
    let keys: Vec<String> = keys.into_iter().collect();
    let texts = [
        "",
        "a",
        "prometheus",
        "builtin",
        "provided",
        "zipkin",
        "datadog",
        "file",
        "tcp",
        "STRICT",
        "BUILTIN",
        "ZoneIngress",
        "Mesh",
        "MeshService",
        "10.0.0.1",
        "::",
        "1s",
        "-1h",
        "1d",
        "YWJj",
        "http://a:1",
        "a:b",
        "kuma.io/service",
        "%zz",
        "/",
        "é\u{0}",
        "2026-01-01T00:00:00Z",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0u64), Just(80), Just(65536), any::<u64>()].prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        proptest::sample::select(texts.to_vec()).prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let key = prop_oneof![9 => proptest::sample::select(keys.clone()), 1 => "\\PC{0,8}"];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::btree_map(key, inner, 0..6).prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Values of a type, now and then one that does not fit.
fn typed(ty: &'static Type) -> BoxedStrategy<Value> {
    let texts = ["", "a", "prometheus", "builtin", "10.0.0.1", "kuma.io/service", "MeshService"];
    let fitting = match ty {
        Type::String | Type::StringValue => proptest::sample::select(texts.to_vec()).prop_map(Value::from).boxed(),
        Type::Bool | Type::BoolValue => any::<bool>().prop_map(Value::from).boxed(),
        Type::U32 | Type::U32Value => prop_oneof![Just(0u32), Just(80), any::<u32>()].prop_map(Value::from).boxed(),
        Type::U64 => any::<u64>().prop_map(|n| Value::from(n.to_string())).boxed(),
        Type::Double | Type::DoubleValue => any::<f32>().prop_map(|n| json!(n)).boxed(),
        Type::Bytes | Type::BytesValue => Just(json!("YWJj")).boxed(),
        Type::Duration => Just(json!("1m")).boxed(),
        Type::Timestamp => Just(json!("2026-01-01T00:00:00.5Z")).boxed(),
        Type::Enum(e) => {
            (0..e.values.len(), any::<bool>()).prop_map(|(i, name)| if name { json!(e.values[i].0) } else { json!(e.values[i].1) }).boxed()
        }
        Type::Struct => prop_oneof![Just(json!({})), Just(json!({"port": 1.0, "caCert": {"RSAbits": 2048}}))].boxed(),
        Type::Message(m) => message(m),
        Type::List(t) => proptest::collection::vec(typed(t), 0..3).prop_map(Value::Array).boxed(),
        Type::Map(t) => proptest::collection::btree_map("[a-z/]{0,3}", typed(t), 0..3).prop_map(|m| json!(m)).boxed(),
    };
    let odd = proptest::sample::select(vec![Value::Null, json!(1), json!("x"), json!([]), json!({})]);
    prop_oneof![60 => fitting, 1 => odd].boxed()
}

/// A message with about half of its fields.
fn message(message: &'static Message) -> BoxedStrategy<Value> {
    let fields: Vec<_> = message.fields.iter().map(|f| proptest::option::of(typed(&f.ty))).collect();
    let names: Vec<&str> = message.fields.iter().map(|f| f.json).collect();
    let present = move |values: Vec<Option<Value>>| {
        Value::Object(names.iter().zip(values).filter_map(|(n, v)| Some(((*n).to_owned(), v?))).collect::<Map<_, _>>())
    };
    fields.prop_map(present).boxed()
}

/// A spec of some flat kind, mostly well-formed.
fn flat_spec() -> impl Strategy<Value = (Kind, Value)> {
    let kinds: Vec<Kind> = Kind::all().filter(|k| flat_kind(*k).is_some()).collect();
    proptest::sample::select(kinds).prop_flat_map(|kind| {
        let spec = flat_kind(kind).map_or_else(|| Just(Value::Null).boxed(), |f| message(f.message));
        spec.prop_map(move |spec| (kind, spec))
    })
}

/// Whatever is stored can be read by every consumer.
fn has_view(kind: Kind, spec: &Value) -> bool {
    let stored = Resource::new(Key::new(kind, "m", "x"), Json::from_value(spec));
    match kind {
        Kind::Mesh => stored.view::<Mesh>().is_some(),
        Kind::Dataplane => stored.view::<Dataplane>().is_some(),
        Kind::MeshService => stored.view::<MeshService>().is_some(),
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decoding_never_panics(body in body(), name in "\\PC{0,8}") {
        for kind in implemented() {
            match decode::decode(kind, &body) {
                Ok(decoded) => {
                    prop_assert!(has_view(kind, decoded.spec.value()), "{} {:?}", kind, decoded.spec);
                    let spec = decode::default_spec(kind, decoded.spec.value().clone());
                    decode::validate(kind, "m", &name, &decoded.labels, &spec);
                    decode::warnings(kind, "m", &name, &decoded.labels, &spec);
                }
                Err(DecodeError::NotImplemented(k)) => prop_assert!(false, "{} is said to be implemented", k),
                Err(_) => {}
            }
            // Validators must bear a spec that bypassed decoding.
            decode::validate(kind, "m", &name, &Labels::new(), &body);
            decode::default_spec(kind, body.clone());
        }
    }

    #[test]
    fn canonical_form_is_a_fixed_point((kind, body) in flat_spec()) {
        if let Some(flat) = flat_kind(kind) && let Ok(once) = flat.canonicalize(&body) {
            prop_assert_eq!(flat.canonicalize(&once), Ok(once.clone()), "{}", kind);
            prop_assert!(has_view(kind, &once), "{} {}", kind, once);
            decode::validate(kind, "m", "x", &Labels::new(), &once);
            if let Some(fill) = flat.default {
                let filled = fill(once);
                prop_assert_eq!(flat.canonicalize(&filled), Ok(filled.clone()));
                prop_assert_eq!(fill(filled.clone()), filled);
            }
        }
    }

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode::parse(Kind::Dataplane, &bytes);
    }
}
