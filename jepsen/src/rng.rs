//! Randomness of a run: everything follows from the seed that was printed.

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for the same seed on every machine and in every version.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }
    /// A generator of its own for a part of the run, so that parts do not disturb each other's numbers.
    pub fn fork(&self, part: u64) -> Rng {
        let mut r = Rng(self.0 ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        r.next_u64();
        Rng(r.next_u64())
    }
    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }
    /// An index of a slice with `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }
    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }
    /// True `percent` times out of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    /// Shuffles (Fisher–Yates).
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            let j = self.index(i + 1);
            all.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let mut r = Rng::new(0);
        assert_eq!([r.next_u64(), r.next_u64()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4], "reference values of SplitMix64");
        let numbers = |mut r: Rng| (0..50).map(|_| r.between(3, 9)).collect::<Vec<_>>();
        let root = Rng::new(7);
        assert_eq!(numbers(root.fork(1)), numbers(Rng::new(7).fork(1)));
        assert_ne!(numbers(root.fork(1)), numbers(root.fork(2)));
        assert!(numbers(root).iter().all(|n| (3..=9).contains(n)));
        let mut all: Vec<u32> = (0..20).collect();
        Rng::new(1).shuffle(&mut all);
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        assert_ne!(all, sorted);
    }
}
