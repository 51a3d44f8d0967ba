//! A bounded list of tombstones: which frames the device dropped. Ranges that follow each other
//! become one; where there is no room for another range, the two of one stream that are nearest
//! become one, and its numbers still say how many of it were dropped. Pure.

use codec::{Tombstone, Tombstones};

/// The list.
#[derive(Clone, Debug, Default)]
pub struct Graveyard(Tombstones);

impl Graveyard {
    /// What was dropped.
    pub fn stones(&self) -> &Tombstones {
        &self.0
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds all of a list.
    pub fn extend(&mut self, stones: &[Tombstone]) {
        for stone in stones {
            self.add(stone);
        }
    }

    /// Adds frames that were dropped. Where there are more streams than places, the stream that
    /// was added first is forgotten: its frames are then missing without a reason.
    pub fn add(&mut self, stone: &Tombstone) {
        if stone.frames == 0 {
            return;
        }
        if let Some(known) = self.0.iter_mut().find(|known| {
            is_of_one_stream(known, stone) && known.last.checked_add(1) == Some(stone.first)
        }) {
            join(known, stone);
            return;
        }
        if self.0.push(*stone).is_ok() {
            return;
        }
        if let Some(at) = self.nearest(stone)
            && let Some(known) = self.0.get_mut(at)
        {
            join(known, stone);
            return;
        }
        if !self.join_two() {
            self.0.remove(0);
        }
        // There is a place now.
        let _ = self.0.push(*stone);
    }

    /// Where the range of the same stream is that is nearest to this one.
    fn nearest(&self, stone: &Tombstone) -> Option<usize> {
        let of_stream = self.0.iter().enumerate().filter(|(_, k)| is_of_one_stream(k, stone));
        of_stream.min_by_key(|(_, known)| distance(known, stone)).map(|(at, _)| at)
    }

    /// Makes one range of the first two of one stream.
    fn join_two(&mut self) -> bool {
        for at in 0..self.0.len() {
            let Some(stone) = self.0.get(at).copied() else { return false };
            let later = self.0.iter_mut().skip(at + 1).find(|k| is_of_one_stream(k, &stone));
            if let Some(later) = later {
                join(later, &stone);
                self.0.remove(at);
                return true;
            }
        }
        false
    }
}

fn is_of_one_stream(a: &Tombstone, b: &Tombstone) -> bool {
    (a.run_tag, a.class, a.reason) == (b.run_tag, b.class, b.reason)
}

fn distance(a: &Tombstone, b: &Tombstone) -> u64 {
    a.first.max(b.first).saturating_sub(a.last.min(b.last))
}

fn join(known: &mut Tombstone, stone: &Tombstone) {
    known.first = known.first.min(stone.first);
    known.last = known.last.max(stone.last);
    known.frames += stone.frames;
    known.records += stone.records;
}

#[cfg(test)]
mod tests {
    use codec::{DropReason, TOMBSTONES_MAX};

    use super::*;

    fn stone(run: u8, first: u64, last: u64) -> Tombstone {
        let reason = DropReason::SpoolFull;
        let frames = last - first + 1;
        Tombstone { run_tag: [run; 8], class: 1, reason, first, last, frames, records: 2 * frames }
    }

    fn ranges(graveyard: &Graveyard) -> Vec<(u8, u64, u64, u64)> {
        let told = |s: &Tombstone| (s.run_tag[0], s.first, s.last, s.frames);
        graveyard.stones().iter().map(told).collect()
    }

    #[test]
    fn ranges_that_follow_each_other_are_one() {
        let mut graveyard = Graveyard::default();
        graveyard.extend(&[stone(1, 0, 3), stone(2, 4, 4), stone(1, 4, 9), stone(1, 11, 12)]);
        assert_eq!(ranges(&graveyard), [(1, 0, 9, 10), (2, 4, 4, 1), (1, 11, 12, 2)]);
        let purged = Tombstone { reason: DropReason::Purged, ..stone(1, 10, 10) };
        graveyard.add(&purged);
        graveyard.add(&Tombstone { frames: 0, ..stone(9, 0, 0) });
        assert_eq!(graveyard.stones().len(), 4);
    }

    #[test]
    fn a_full_list_keeps_the_count_of_every_stream_it_can() {
        let mut graveyard = Graveyard::default();
        let many = 3 * TOMBSTONES_MAX as u64;
        for at in 0..many {
            graveyard.add(&stone(1, 10 * at, 10 * at + 1));
        }
        assert_eq!(graveyard.stones().len(), TOMBSTONES_MAX);
        // Another stream finds a place, and nothing of the first is forgotten.
        graveyard.add(&stone(2, 5, 5));
        let sum = |run| ranges(&graveyard).iter().filter(|r| r.0 == run).map(|r| r.3).sum::<u64>();
        assert_eq!((sum(1), sum(2)), (2 * many, 1));
        let last = ranges(&graveyard).iter().filter(|r| r.0 == 1).map(|r| r.2).max();
        assert_eq!(last, Some(10 * (many - 1) + 1));
        // More streams than places: the first are forgotten.
        let mut graveyard = Graveyard::default();
        for run in 0..=TOMBSTONES_MAX as u8 {
            graveyard.add(&stone(run, 1, 2));
        }
        assert_eq!(ranges(&graveyard)[0], (1, 1, 2, 2));
    }
}
