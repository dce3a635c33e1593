//! The one source of randomness of a simulated world.

/// SplitMix64 (Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014). The same seed gives
/// the same draws on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random(seed ^ 0x6b76_6f72_756d_5349);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from `low` up to and including `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in so many draws; never for 0.
    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        bound > 0 && self.below(bound) == 0
    }

    /// True so many times in a thousand draws.
    pub(crate) fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    /// One of them; there is at least one.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// A duration around `mean`, mostly below it and seldom up to eight times as long.
    pub(crate) fn about(&mut self, mean: u64) -> u64 {
        let shift = self.next().trailing_zeros().min(3);
        self.below(mean.max(1)) + (self.below(mean.max(1)) << shift) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_from_the_seed_and_stay_in_bounds() {
        let (mut one, mut two, mut other) = (Random::new(7), Random::new(7), Random::new(8));
        let draws: Vec<u64> = (0..100).map(|_| one.next()).collect();
        assert!(draws.iter().all(|draw| *draw == two.next()));
        assert!(draws.iter().any(|draw| *draw != other.next()));
        for _ in 0..1000 {
            assert!((3..=5).contains(&one.between(3, 5)));
            assert!(one.about(100) < 100 + 400);
            assert!(!one.one_in(0));
        }
    }
}
