//! Which sequences of a stream are held, as ranges without gaps between their ends.
//!
//! Memory is one entry a range, and a stream with more than [`RANGES_MAX`] ranges takes no
//! frame that would add one: an agent sends in order, so holes are few.

use std::collections::BTreeMap;

/// Most ranges of one stream.
pub(crate) const RANGES_MAX: usize = 4096;

/// A set of sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// First and last sequence of each range. Ranges neither overlap nor touch.
    by_first: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Whether `sequence` is in the set.
    pub(crate) fn contains(&self, sequence: u64) -> bool {
        self.by_first.range(..=sequence).next_back().is_some_and(|(_, last)| *last >= sequence)
    }

    /// Adds a sequence.
    pub(crate) fn insert(&mut self, sequence: u64) {
        let (mut first, mut last) = (sequence, sequence);
        if let Some((&before, &end)) = self.by_first.range(..=sequence).next_back() {
            if end >= sequence {
                return;
            }
            if end + 1 == sequence {
                first = before;
            }
        }
        if let Some(next) = sequence.checked_add(1)
            && let Some(end) = self.by_first.remove(&next)
        {
            last = end;
        }
        self.by_first.insert(first, last);
    }

    /// How many sequences from 0 on are held without a gap.
    pub(crate) fn contiguous(&self) -> u64 {
        self.by_first.get(&0).map_or(0, |last| last.saturating_add(1))
    }

    /// The highest sequence held.
    pub(crate) fn highest(&self) -> Option<u64> {
        self.by_first.last_key_value().map(|(_, last)| *last)
    }

    /// The number of ranges.
    pub(crate) fn count(&self) -> usize {
        self.by_first.len()
    }

    /// What is missing below the highest sequence held: inclusive ranges, in order.
    pub(crate) fn holes(&self) -> impl Iterator<Item = [u64; 2]> {
        let mut next = 0_u64;
        self.by_first.iter().filter_map(move |(&first, &last)| {
            let hole = (first > next).then(|| [next, first - 1]);
            next = last.saturating_add(1);
            hole
        })
    }
}

impl FromIterator<u64> for Ranges {
    fn from_iter<I: IntoIterator<Item = u64>>(sequences: I) -> Self {
        let mut ranges = Ranges::default();
        for sequence in sequences {
            ranges.insert(sequence);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_contiguity_agree_with_a_plain_set() {
        // A small generator, so that the order differs from run to run of the loop only.
        let mut state = 1_u64;
        for _ in 0..200 {
            let mut plain = std::collections::BTreeSet::new();
            let mut ranges = Ranges::default();
            for _ in 0..40 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let sequence = (state >> 33) % 50;
                plain.insert(sequence);
                ranges.insert(sequence);
            }
            let top = *plain.last().unwrap();
            let missing: Vec<u64> = (0..top).filter(|s| !plain.contains(s)).collect();
            let holes: Vec<u64> = ranges.holes().flat_map(|[a, b]| a..=b).collect();
            assert_eq!(holes, missing);
            assert_eq!(ranges.contiguous(), *missing.first().unwrap_or(&(top + 1)));
            assert_eq!(ranges.highest(), Some(top));
            assert!((0..60).all(|s| ranges.contains(s) == plain.contains(&s)));
            assert_eq!(ranges, plain.into_iter().rev().collect());
        }
    }

    #[test]
    fn the_ends_of_the_number_range_do_not_overflow() {
        let ranges: Ranges = [u64::MAX, u64::MAX - 1].into_iter().collect();
        assert_eq!(ranges.count(), 1);
        assert_eq!(ranges.contiguous(), 0);
        assert_eq!(ranges.holes().collect::<Vec<_>>(), [[0, u64::MAX - 2]]);
    }
}
