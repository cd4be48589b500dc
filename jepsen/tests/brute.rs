//! The linearizability checker against one that tries every order of every choice.

use ikada_jepsen::{
    check::{
        linear::{Bounds, Interval, Model, Search, search},
        register::{self, Call, Register},
    },
    edn::Edn,
    history::{Event, Op, Process, Type},
};
use proptest::{prelude::*, strategy::ValueTree};

/// Whether some subset of the open operations together with all others, in some order that respects time, is what a register does.
fn brute(ops: &[Interval<Call>]) -> bool {
    let open: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].end.is_none()).collect();
    (0..1u32 << open.len()).any(|choice| {
        let takes = |i: &usize| open.iter().position(|o| o == i).is_none_or(|bit| choice & (1 << bit) != 0);
        let chosen: Vec<usize> = (0..ops.len()).filter(takes).collect();
        permutations(&chosen, &mut |order| {
            let before = |a: usize, b: usize| ops[a].end.is_some_and(|e| e < ops[b].start);
            let in_time = (0..order.len()).all(|i| (i + 1..order.len()).all(|j| !before(order[j], order[i])));
            let done = order.iter().try_fold(None, |state, &i| Register.step(&state, &ops[i].call));
            in_time && done.is_some()
        })
    })
}

/// Whether `test` accepts a permutation (Heap's algorithm).
fn permutations(of: &[usize], test: &mut dyn FnMut(&[usize]) -> bool) -> bool {
    fn go(k: usize, order: &mut Vec<usize>, test: &mut dyn FnMut(&[usize]) -> bool) -> bool {
        if k <= 1 {
            return test(order);
        }
        for i in 0..k {
            if go(k - 1, order, test) {
                return true;
            }
            order.swap(if k.is_multiple_of(2) { i } else { 0 }, k - 1);
        }
        false
    }
    go(of.len(), &mut of.to_vec(), test)
}

fn any_call() -> impl Strategy<Value = Call> {
    let value = || prop_oneof![Just(None), (1i64..4).prop_map(Some)];
    prop_oneof![
        3 => value().prop_map(Call::Read),
        2 => (1i64..4).prop_map(Call::Write),
        1 => (value(), 1i64..4).prop_map(|(a, b)| Call::Cas(a, b)),
    ]
}

/// Up to six operations with random begins and ends; about one in four stays open.
fn any_ops() -> impl Strategy<Value = Vec<Interval<Call>>> {
    prop::collection::vec((any_call(), 0u64..12, 0u64..5, 0u8..4), 1..7).prop_map(|all| {
        // Times are spread so that no two are the same.
        let n = all.len() as u64;
        let spread = |t: u64, i: usize, end: bool| (t * n + i as u64) * 2 + u64::from(end);
        let one = |(i, (call, start, length, open)): (usize, (Call, u64, u64, u8))| Interval {
            call,
            start: spread(start, i, false),
            end: (open > 0).then(|| spread(start + length, i, true)),
        };
        all.into_iter().enumerate().map(one).collect()
    })
}

/// The same as a history of events, each operation a process of its own.
fn as_ops(intervals: &[Interval<Call>]) -> Vec<Op> {
    let event = |i: usize, kind, f: &str, value, index| Event {
        process: Process::Client(i as u64),
        kind,
        f: f.to_owned(),
        value: Edn::Vector(vec![Edn::Int(0), value]),
        index,
        time: index,
        extra: Vec::new(),
    };
    let one = |(i, o): (usize, &Interval<Call>)| {
        let (f, value) = match o.call {
            Call::Read(v) => ("read", Edn::option(v)),
            Call::Write(v) => ("write", Edn::Int(v)),
            Call::Cas(a, b) => ("cas", Edn::Vector(vec![Edn::option(a), Edn::Int(b)])),
        };
        Op { invoke: event(i, Type::Invoke, f, value.clone(), o.start), end: o.end.map(|e| event(i, Type::Ok, f, value, e)) }
    };
    intervals.iter().enumerate().map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_say_the_same(ops in any_ops()) {
        let expected = brute(&ops);
        prop_assert_eq!(search(&Register, None, &ops, Bounds::default()) == Search::Linearizable, expected, "the search");
        // And what is left out before the search changes nothing.
        let history = as_ops(&ops);
        let refs: Vec<&Op> = history.iter().collect();
        let kept: Vec<_> = register::intervals(&refs).unwrap().into_iter().map(|(_, i)| i).collect();
        prop_assert_eq!(search(&Register, None, &kept, Bounds::default()) == Search::Linearizable, expected, "without what nobody saw");
    }
}

#[test]
fn both_verdicts_are_common_among_the_generated() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let ops = any_ops();
    let good = (0..500).filter(|_| brute(&ops.new_tree(&mut runner).unwrap().current())).count();
    assert!((50..450).contains(&good), "{good} of 500 are linearizable");
}

#[test]
fn a_long_history_of_a_real_register_is_quick() {
    // 8 clients on one register, 400 operations; every tenth has no answer.
    let (mut state, mut ops) = (None, Vec::new());
    for i in 0..400i64 {
        let call = match i % 3 {
            0 => Call::Write(i),
            1 => Call::Read(state),
            _ => Call::Cas(state, i),
        };
        state = Register.step(&state, &call).unwrap();
        let at = u64::try_from(i).unwrap() * 20;
        ops.push(Interval { call, start: at.saturating_sub(70) + u64::try_from(i % 7).unwrap(), end: (i % 10 != 9).then_some(at + 71) });
    }
    let judged = |ops: &[Interval<Call>]| {
        let history = as_ops(ops);
        let kept: Vec<_> = register::intervals(&history.iter().collect::<Vec<_>>()).unwrap().into_iter().map(|(_, i)| i).collect();
        search(&Register, None, &kept, Bounds::default())
    };
    assert_eq!(judged(&ops), Search::Linearizable);
    // One read of a value that was overwritten long ago.
    ops.push(Interval { call: Call::Read(Some(0)), start: 8100, end: Some(8101) });
    assert!(matches!(judged(&ops), Search::Impossible { .. }), "{:?}", judged(&ops));
}
