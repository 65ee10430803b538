//! All chance of a run, from its seed. Written out here, so that a scenario that was kept means the same in years.

/// Numbers that look random and follow from a seed (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Dice(u64);

fn mix(mut number: u64) -> u64 {
    number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

impl Dice {
    /// From a seed, for one purpose: purposes do not disturb each other.
    pub fn new(seed: u64, purpose: &str) -> Dice {
        Dice(purpose.bytes().fold(mix(seed ^ 0x5EED), |state, byte| mix(state ^ u64::from(byte))))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// A number of a range.
    pub fn from(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// Whether something happens that happens so often in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// One of several, each as often as its weight says.
    pub fn weighted<'a, T>(&mut self, of: &'a [(u64, T)]) -> &'a T {
        let mut at = self.below(of.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in of {
            if at < *weight {
                return value;
            }
            at -= weight;
        }
        &of[of.len() - 1].1
    }

    /// A number of which small ones are likelier: each power of two as likely as the next, up to `most`.
    pub fn skewed(&mut self, most: u64) -> u64 {
        let bits = self.below(u64::from(most.max(1).ilog2()) + 2);
        self.below((1 << bits).min(most + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_means_the_same_numbers() {
        let mut dice = Dice::new(42, "test");
        let first: Vec<u64> = (0..3).map(|_| dice.draw()).collect();
        assert_eq!(first, FIRST_OF_42);
        assert_ne!(Dice::new(42, "other").draw(), first[0]);
        assert_ne!(Dice::new(43, "test").draw(), first[0]);
        assert!((0..1000).all(|_| (5..9).contains(&dice.from(5..9))));
        assert!((0..1000).all(|_| dice.skewed(100) <= 100));
    }

    const FIRST_OF_42: [u64; 3] = [13825307615319599880, 9165575442578023833, 13857705215944994927];
}
