//! Linearizability after Wing, Gong and Lowe: is there an order of the operations that respects real time and that the model allows?
//!
//! The search takes operations one after another that may come first, and goes back when the end of one is reached that was not taken. A
//! configuration (set of taken operations, state) that was seen before is not searched again ("Testing for Linearizability", G. Lowe,
//! 2017).

use std::{
    collections::HashSet,
    hash::Hash,
    time::{Duration, Instant},
};

/// What one object does.
pub trait Model {
    /// An operation together with its result.
    type Call;
    /// State of the object.
    type State: Clone + Eq + Hash;
    /// The state after the call, `None` when the object would not have answered so.
    fn step(&self, state: &Self::State, call: &Self::Call) -> Option<Self::State>;
}

/// An operation in time.
#[derive(Clone, Debug)]
pub struct Interval<C> {
    /// What was called, and the answer.
    pub call: C,
    /// When it began. Of all begins and ends no two are the same.
    pub start: u64,
    /// When it ended; `None`: it may take effect at any time from its begin on, or never.
    pub end: Option<u64>,
}

/// Outcome of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// There is an order.
    Linearizable,
    /// There is none. At best `placed` operations have a place; then none of the orders found lets `stuck` (position in the input) answer
    /// as it did.
    Impossible {
        /// Operations with a place in the longest order found.
        placed: usize,
        /// The operation that has none.
        stuck: usize,
    },
    /// Bounds were reached first.
    GaveUp(&'static str),
}

/// Bounds of a search.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longest time.
    pub time: Duration,
    /// Most configurations that are remembered.
    pub configurations: usize,
}

impl Default for Bounds {
    /// 30 s, two million configurations (some hundred MiB for the longest histories).
    fn default() -> Self {
        Bounds { time: Duration::from_secs(30), configurations: 2_000_000 }
    }
}

const NONE: usize = usize::MAX;

/// Begins and ends in the order of time as a doubly linked list, from which taken operations are lifted out.
struct Entries {
    /// (operation, whether it is its begin).
    of: Vec<(usize, bool)>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// Entry of the end of an operation, `NONE` without.
    end_of: Vec<usize>,
    head: usize,
}

impl Entries {
    fn new<C>(ops: &[Interval<C>]) -> Entries {
        let mut all: Vec<(u64, usize, bool)> = Vec::new();
        for (i, op) in ops.iter().enumerate() {
            all.push((op.start, i, true));
            all.extend(op.end.map(|e| (e, i, false)));
        }
        // An end that is given the time of a begin comes after it: the more permissive reading.
        all.sort_by_key(|&(t, i, begin)| (t, !begin, i));
        let n = all.len();
        let mut end_of = vec![NONE; ops.len()];
        for (entry, &(_, op, begin)) in all.iter().enumerate() {
            if !begin {
                end_of[op] = entry;
            }
        }
        let link = |i: usize| if i < n { i } else { NONE };
        Entries {
            of: all.into_iter().map(|(_, op, begin)| (op, begin)).collect(),
            next: (0..n).map(|i| link(i + 1)).collect(),
            prev: (0..n).map(|i| i.checked_sub(1).unwrap_or(NONE)).collect(),
            end_of,
            head: link(0),
        }
    }
    fn unlink(&mut self, entry: usize) {
        let (p, n) = (self.prev[entry], self.next[entry]);
        if p == NONE { self.head = n } else { self.next[p] = n }
        if n != NONE {
            self.prev[n] = p;
        }
    }
    /// Undoes the latest [`Entries::unlink`] that is not undone yet, which must be of this entry.
    fn relink(&mut self, entry: usize) {
        let (p, n) = (self.prev[entry], self.next[entry]);
        if p == NONE { self.head = entry } else { self.next[p] = entry }
        if n != NONE {
            self.prev[n] = entry;
        }
    }
}

/// Looks for an order of `ops` from the state `initial`.
pub fn search<M: Model>(model: &M, initial: M::State, ops: &[Interval<M::Call>], bounds: Bounds) -> Search {
    let begun = Instant::now();
    let mut entries = Entries::new(ops);
    let mut missing = ops.iter().filter(|o| o.end.is_some()).count();
    let mut taken = vec![0u64; ops.len().div_ceil(64)];
    let mut state = initial;
    let mut seen: HashSet<(Box<[u64]>, M::State)> = HashSet::new();
    let mut stack: Vec<(usize, M::State)> = Vec::new();
    let mut cursor = entries.head;
    let (mut placed, mut stuck) = (0, 0);
    let mut steps = 0u32;
    while missing > 0 {
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(1024) && begun.elapsed() > bounds.time {
            return Search::GaveUp("the time for it is over");
        }
        // The end of the list is not reached while an end is in it.
        let (op, begin) = entries.of[cursor];
        if begin {
            if let Some(after) = model.step(&state, &ops[op].call) {
                taken[op / 64] |= 1 << (op % 64);
                if seen.insert((taken.clone().into_boxed_slice(), after.clone())) {
                    if seen.len() > bounds.configurations {
                        return Search::GaveUp("too many configurations");
                    }
                    stack.push((cursor, std::mem::replace(&mut state, after)));
                    entries.unlink(cursor);
                    let end = entries.end_of[op];
                    if end != NONE {
                        entries.unlink(end);
                        missing -= 1;
                    }
                    cursor = entries.head;
                    continue;
                }
                taken[op / 64] &= !(1 << (op % 64));
            }
            cursor = entries.next[cursor];
            continue;
        }
        if stack.len() >= placed {
            (placed, stuck) = (stack.len(), op);
        }
        let Some((entry, before)) = stack.pop() else { return Search::Impossible { placed, stuck } };
        let (op, _) = entries.of[entry];
        let end = entries.end_of[op];
        if end != NONE {
            entries.relink(end);
            missing += 1;
        }
        entries.relink(entry);
        taken[op / 64] &= !(1 << (op % 64));
        state = before;
        cursor = entries.next[entry];
    }
    Search::Linearizable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter that answers what it was before.
    struct Counter;
    impl Model for Counter {
        type Call = i64;
        type State = i64;
        fn step(&self, state: &i64, call: &i64) -> Option<i64> {
            (state == call).then_some(state + 1)
        }
    }

    fn ops(of: &[(i64, u64, Option<u64>)]) -> Vec<Interval<i64>> {
        of.iter().map(|&(call, start, end)| Interval { call, start, end }).collect()
    }

    #[test]
    fn order_in_time_is_respected() {
        let go = |v: &[(i64, u64, Option<u64>)]| search(&Counter, 0, &ops(v), Bounds::default());
        assert_eq!(go(&[]), Search::Linearizable);
        assert_eq!(go(&[(0, 0, Some(1)), (1, 2, Some(3))]), Search::Linearizable);
        assert_eq!(go(&[(1, 0, Some(2)), (0, 1, Some(3))]), Search::Linearizable, "they overlap");
        assert_eq!(go(&[(1, 0, Some(1)), (0, 2, Some(3))]), Search::Impossible { placed: 0, stuck: 0 });
        assert_eq!(go(&[(0, 0, Some(1)), (0, 2, Some(3))]), Search::Impossible { placed: 1, stuck: 1 });
        assert_eq!(go(&[(0, 0, None), (1, 2, Some(3))]), Search::Linearizable, "the open one took effect");
        assert_eq!(go(&[(0, 0, None), (0, 2, Some(3))]), Search::Linearizable, "the open one did not");
        assert_eq!(go(&[(1, 0, Some(1)), (0, 2, None)]), Search::Impossible { placed: 0, stuck: 0 });
    }

    #[test]
    fn a_hopeless_search_ends() {
        let mut all: Vec<_> = (0..40).map(|i| Interval { call: i % 3, start: i as u64, end: Some(1000 + i as u64) }).collect();
        all.push(Interval { call: 99, start: 500, end: Some(5000) });
        let wide = Wide;
        let tight = Bounds { time: Duration::from_secs(60), configurations: 10_000 };
        assert_eq!(search(&wide, 0, &all, tight), Search::GaveUp("too many configurations"));
        let short = Bounds { time: Duration::ZERO, configurations: usize::MAX };
        assert_eq!(search(&wide, 0, &all, short), Search::GaveUp("the time for it is over"));
    }

    /// Takes anything but 99, and remembers the order.
    struct Wide;
    impl Model for Wide {
        type Call = i64;
        type State = u64;
        fn step(&self, state: &u64, call: &i64) -> Option<u64> {
            (*call != 99).then(|| state.wrapping_mul(31).wrapping_add(u64::try_from(*call).unwrap() + 1))
        }
    }
}
