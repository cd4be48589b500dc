//! Arbitrary requests: nothing panics, and the invariants of the stream hold.

use super::*;
use crate::snapshot::{Encoded, SnapshotBuilder};
use crate::type_url::{ORDER, SECRET};
use proptest::prelude::*;
use std::collections::HashMap;

const LIMITS: Limits = Limits {
    max_names: 6,
    nack_backoff: Duration::from_secs(5),
    endpoint_grace: Duration::from_secs(1),
    ack_timeout: Duration::from_secs(60),
};

#[derive(Debug, Clone)]
enum Nonce {
    None,
    Outstanding,
    Other(u8),
}

#[derive(Debug, Clone)]
enum Op {
    /// Presence and content of each name, per type.
    Publish(Vec<Vec<Option<u8>>>),
    Request { kind: usize, nonce: Nonce, error: Option<Vec<usize>>, add: Vec<usize>, drop: Vec<usize>, initial: Vec<(usize, bool)> },
    Wait(u8),
}

/// Names a client may use: five resources, the wildcard, one that never exists, the empty one.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "*", "never", ""];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let names = || prop::collection::vec(0..NAMES.len(), 0..4);
    let nonce = prop_oneof![Just(Nonce::None), Just(Nonce::Outstanding), Just(Nonce::Outstanding), any::<u8>().prop_map(Nonce::Other)];
    let error = prop::option::weighted(0.3, names());
    let request = (0..ORDER.len() + 1, nonce, error, names(), names(), prop::collection::vec((0..NAMES.len(), any::<bool>()), 0..4))
        .prop_map(|(kind, nonce, error, add, drop, initial)| Op::Request { kind, nonce, error, add, drop, initial });
    let publish = prop::collection::vec(prop::collection::vec(prop::option::of(0..3u8), 5), ORDER.len()).prop_map(Op::Publish);
    prop::collection::vec(prop_oneof![2 => publish, 6 => request, 1 => (0..10u8).prop_map(Op::Wait)], 1..60)
}

fn snapshot(content: &[Vec<Option<u8>>]) -> Snapshot {
    let mut b = SnapshotBuilder::new();
    for (url, resources) in ORDER.iter().zip(content) {
        for (name, c) in NAMES.iter().zip(resources) {
            if let Some(c) = c {
                b.insert(Arc::new(Encoded::new((*name).into(), url, u64::from(*c) + 1, vec![*c].into())));
            }
        }
    }
    b.build().unwrap()
}

fn names(picked: &[usize]) -> Vec<String> {
    picked.iter().map(|i| NAMES[*i].to_owned()).collect()
}

fn run(variant: Variant, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut m = Machine::new(variant, LIMITS);
    let mut now = Instant::now();
    let mut outstanding: HashMap<Arc<str>, String> = HashMap::new();
    let mut used = BTreeSet::new();
    for op in ops {
        match op {
            Op::Publish(content) => m.on_snapshot(Arc::new(snapshot(&content))),
            Op::Wait(s) => now += Duration::from_secs(u64::from(s)),
            Op::Request { kind, nonce, error, add, drop, initial } => {
                let type_url: Arc<str> = ORDER.get(kind).copied().unwrap_or("type.googleapis.com/unknown").into();
                let current = outstanding.get(&type_url).cloned();
                let response_nonce = match nonce {
                    Nonce::None => String::new(),
                    Nonce::Outstanding => current.clone().unwrap_or_else(|| "none".into()),
                    Nonce::Other(n) => n.to_string(),
                };
                let update = match variant {
                    Variant::Delta => Update::Difference {
                        subscribe: names(&add),
                        unsubscribe: names(&drop),
                        initial: initial.iter().map(|(n, v)| (NAMES[*n].to_owned(), if *v { format!("{:016x}", 1) } else { "x".into() })).collect(),
                    },
                    Variant::StateOfTheWorld => Update::Full { names: names(&add), version_info: drop.len().to_string() },
                };
                let error = error.map(|e| names(&e).join(" "));
                let request = Request { type_url: type_url.clone(), response_nonce: response_nonce.clone(), error: error.clone(), update };
                match m.on_request(request, now) {
                    Err(_) => return Ok(()),
                    Ok(None) => prop_assert!(current.is_none() || current != Some(response_nonce), "an answer was overlooked"),
                    Ok(Some(verdict)) => {
                        let (nonce, rejected) = match verdict {
                            Verdict::Ack { nonce } => (nonce, false),
                            Verdict::Nack { nonce, .. } => (nonce, true),
                        };
                        prop_assert_eq!(rejected, error.is_some());
                        prop_assert_eq!(Some(nonce), outstanding.remove(&type_url));
                    }
                }
            }
        }
        // A response per type at most can come, so this ends.
        while let Some(out) = m.next(now) {
            prop_assert!(outstanding.insert(out.type_url.clone(), out.nonce.clone()).is_none(), "two unanswered responses of {}", out.type_url);
            prop_assert!(used.insert(out.nonce.clone()), "nonce {} twice", out.nonce);
            let sent: BTreeSet<&str> = out.resources.iter().map(|e| &*e.encoded.name).collect();
            prop_assert_eq!(sent.len(), out.resources.len(), "a resource twice");
            prop_assert!(out.removed.iter().all(|n| !sent.contains(&**n)), "sent and removed");
            prop_assert!(out.resources.iter().all(|e| *e.encoded.type_url == *out.type_url));
            if variant == Variant::StateOfTheWorld {
                prop_assert!(out.removed.is_empty());
            }
            let mut removed = out.removed.clone();
            removed.sort();
            removed.dedup();
            prop_assert_eq!(removed.len(), out.removed.len(), "removed twice");
        }
        // Nothing waits for a time that nobody wakes it at.
        match m.wake_at(now) {
            Some(at) => prop_assert!(at > now),
            None => prop_assert!(m.next(now + Duration::from_secs(3600)).is_none(), "comes with time, but nothing wakes the stream"),
        }
        for t in m.types.values() {
            prop_assert!(t.pending.is_some() == outstanding.contains_key(t.type_url()), "pending of {}", t.type_url());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn delta(ops in ops()) {
        run(Variant::Delta, ops)?;
    }
    #[test]
    fn state_of_the_world(ops in ops()) {
        run(Variant::StateOfTheWorld, ops)?;
    }
}

#[test]
fn too_many_types() {
    let mut m = Machine::new(Variant::Delta, LIMITS);
    let update = Update::Difference { subscribe: vec![], unsubscribe: vec![], initial: HashMap::new() };
    let ask = |m: &mut Machine, url: &str| {
        m.on_request(Request { type_url: url.into(), response_nonce: String::new(), error: None, update: update.clone() }, Instant::now())
    };
    for i in 0..MAX_TYPES {
        assert_eq!(ask(&mut m, &format!("t{i}")), Ok(None));
    }
    assert_eq!(ask(&mut m, SECRET), Err(Refusal::TooManyTypes(MAX_TYPES)));
}
