//! Which sequences of a stream are held, as ranges without gaps between their ends.
//!
//! Memory is one entry a range, of [`RANGES_MAX`] at most. An agent sends in order, so holes are few,
//! and those of long ago are of frames that it dropped: where there are more, the oldest hole behind
//! the first range is told no more. The files say what is held, and the books what is missing.

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
    #[cfg(test)]
    fn contains(&self, sequence: u64) -> bool {
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
        if self.by_first.len() > RANGES_MAX {
            self.forget_a_hole();
        }
    }

    /// Makes one of the second and the third range, so that how far the stream is held without a gap
    /// stays what it is.
    fn forget_a_hole(&mut self) {
        let mut ranges = self.by_first.iter().skip(1).map(|(first, last)| (*first, *last));
        if let (Some((first, _)), Some((next, last))) = (ranges.next(), ranges.next()) {
            self.by_first.remove(&next);
            self.by_first.insert(first, last);
        }
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
    #[cfg(test)]
    fn count(&self) -> usize {
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
    fn of_too_many_holes_the_oldest_is_told_no_more() {
        let mut ranges = Ranges::default();
        let most = 2 * RANGES_MAX as u64;
        for sequence in (0..most + 20).step_by(2) {
            ranges.insert(sequence);
        }
        assert_eq!((ranges.count(), ranges.contiguous()), (RANGES_MAX, 1));
        let holes: Vec<_> = ranges.holes().collect();
        // The first stays: nobody may think that more is held from the beginning on.
        assert_eq!((holes[0], holes[1]), ([1, 1], [23, 23]));
        assert_eq!(ranges.highest(), Some(most + 18));
    }

    #[test]
    fn the_ends_of_the_number_range_do_not_overflow() {
        let ranges: Ranges = [u64::MAX, u64::MAX - 1].into_iter().collect();
        assert_eq!(ranges.count(), 1);
        assert_eq!(ranges.contiguous(), 0);
        assert_eq!(ranges.holes().collect::<Vec<_>>(), [[0, u64::MAX - 2]]);
    }
}
