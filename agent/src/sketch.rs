//! About how many different things there were, in 128 bytes: HyperLogLog with 128 registers
//! (Flajolet and others, 2007), whose standard error is 9 %. Pure.

/// Registers; two to the power of [`INDEX_BITS`].
const REGISTERS: usize = 128;
const INDEX_BITS: u32 = 7;
/// Bias of the harmonic mean for so many registers.
const ALPHA: f64 = 0.7213 / (1.0 + 1.079 / REGISTERS as f64);

/// The sketch.
#[derive(Clone, Copy, Debug)]
pub struct Sketch([u8; REGISTERS]);

impl Default for Sketch {
    fn default() -> Sketch {
        Sketch([0; REGISTERS])
    }
}

impl Sketch {
    /// Notes a thing by its hash, all of whose bits must depend on all of the thing.
    pub fn note(&mut self, hash: u64) {
        let rank = (hash << INDEX_BITS).leading_zeros().min(u64::BITS - INDEX_BITS) as u8 + 1;
        let register = &mut self.0[(hash >> (u64::BITS - INDEX_BITS)) as usize];
        *register = rank.max(*register);
    }

    /// About how many different hashes were noted.
    pub fn estimate(&self) -> u64 {
        let registers = REGISTERS as f64;
        let sum: f64 = self.0.iter().map(|rank| f64::from(*rank).exp2().recip()).sum();
        let estimate = ALPHA * registers * registers / sum;
        let empty = self.0.iter().filter(|rank| **rank == 0).count();
        // Few things are counted better by how many registers they have missed.
        let few = estimate <= 2.5 * registers && empty > 0;
        let estimate = if few { registers * (registers / empty as f64).ln() } else { estimate };
        estimate.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;

    fn of(things: impl Iterator<Item = u64>) -> u64 {
        let (hasher, mut sketch) = (RandomState::new(), Sketch::default());
        things.for_each(|thing| sketch.note(hasher.hash_one(thing)));
        sketch.estimate()
    }

    #[test]
    fn estimates_are_near() {
        assert_eq!(of(0..0), 0);
        assert_eq!(of([7; 1000].into_iter()), 1);
        for count in [10, 100, 300, 1_000, 30_000, 1_000_000] {
            // Five standard errors: one test in a million fails.
            let error = of((0..2 * count).map(|n| n % count)).abs_diff(count);
            assert!(error <= count * 46 / 100 + 1, "{count}: wrong by {error}");
        }
    }
}
