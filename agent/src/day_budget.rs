//! A number of bytes that one day has: for a metered link, for the wear of flash.
//!
//! A day is 24 hours of the boot clock, which no step of the wall clock moves and which goes on
//! while the device sleeps. Over a reboot it goes on from what was last written; for as long as the
//! device is off it stands still, so that a day is never shorter than one, and the budget never
//! exceeded. A small file beside the spool holds what was spent: it is written with each change, or
//! seldom and ahead of it, but not made durable, so that a power cut may forget the last half minute.
//!
//! Volumes leave a part of the budget to urgent frames. It reads no clock, and does not know what
//! its bytes are of.

use std::io;
use std::path::Path;

use codec::CLASSES;

use crate::slots::Slots;

const DAY_NS: u64 = 86_400 * 1_000_000_000;
/// Boot id, when it was written on the boot clock, time into the day, bytes spent.
const STATE_BYTES: usize = 16 + 8 + 8 + 8;
/// One in so many bytes is kept for urgent frames.
const URGENT_PART: u64 = 4;
/// Where the file is written seldom, it is one in so many bytes ahead.
const AHEAD_PART: u64 = 64;
const HOUR_NS: u64 = 3600 * 1_000_000_000;

/// The budget of the present day.
#[derive(Debug)]
pub struct DayBudget {
    bytes_per_day: u64,
    slots: Option<Slots<STATE_BYTES>>,
    boot_id: [u8; 16],
    /// When it was last looked at, boot clock, ns.
    seen_ns: u64,
    /// Time into the day, ns.
    elapsed_ns: u64,
    spent: u64,
    /// What the file says was spent, and when that was written, boot clock, ns.
    kept: u64,
    kept_ns: u64,
    /// How much more the file says, where it is written seldom.
    ahead: Option<u64>,
}

/// How the budget stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Bytes a day; 0: unlimited.
    pub bytes_per_day: u64,
    /// Bytes spent in the present day.
    pub spent: u64,
    /// Until the next day begins, s.
    pub next_day_s: u64,
    /// As [`DayBudget::pressure_percent`].
    pub pressure_percent: u32,
}

impl DayBudget {
    /// No limit; nothing is kept.
    pub fn unlimited() -> DayBudget {
        DayBudget {
            bytes_per_day: 0,
            slots: None,
            boot_id: [0; 16],
            seen_ns: 0,
            elapsed_ns: 0,
            spent: 0,
            kept: 0,
            kept_ns: 0,
            ahead: None,
        }
    }

    /// A budget whose state is kept in `file`; `now_ns` is on the clock of the boot `boot_id`. 0
    /// bytes are no limit.
    ///
    /// # Errors
    /// If the file cannot be opened: what was spent would be forgotten.
    pub fn open(
        file: &Path,
        bytes_per_day: u64,
        boot_id: [u8; 16],
        now_ns: u64,
    ) -> io::Result<DayBudget> {
        let mut budget = DayBudget { bytes_per_day, boot_id, seen_ns: now_ns, ..Self::unlimited() };
        if bytes_per_day == 0 {
            return Ok(budget);
        }
        let (slots, state) = Slots::open(file)?;
        budget.slots = Some(slots);
        if let Some(state) = &state {
            let (boot, numbers) = state.split_at(16);
            let mut numbers = numbers
                .chunks_exact(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
            let mut next = || numbers.next().unwrap_or(0);
            let (seen_ns, elapsed_ns, spent) = (next(), next(), next());
            // Another boot began after the state was written: at least so long ago.
            let since_ns = if boot == boot_id { now_ns.saturating_sub(seen_ns) } else { now_ns };
            budget.elapsed_ns = elapsed_ns.saturating_add(since_ns);
            budget.spent = spent;
            budget.kept = spent;
        }
        budget.kept_ns = now_ns;
        budget.look(now_ns);
        Ok(budget)
    }

    /// Goes on to `now_ns` (boot clock): a new day begins where the old one is over.
    pub fn look(&mut self, now_ns: u64) {
        self.elapsed_ns = self.elapsed_ns.saturating_add(now_ns.saturating_sub(self.seen_ns));
        self.seen_ns = self.seen_ns.max(now_ns);
        if self.elapsed_ns >= DAY_NS {
            self.elapsed_ns %= DAY_NS;
            self.spent = 0;
            // What the file says is of the day before.
            self.kept = 0;
        }
    }

    /// What each class may still spend; none has a limit without a budget.
    pub fn left(&self) -> [u64; CLASSES] {
        if self.bytes_per_day == 0 {
            return [u64::MAX; CLASSES];
        }
        let left = self.bytes_per_day.saturating_sub(self.spent);
        [left, left.saturating_sub(self.bytes_per_day / URGENT_PART)]
    }

    /// What is spent, in percent of what an even spending had spent by now; the first hour counts
    /// as a whole. 0 without a budget.
    pub fn pressure_percent(&self) -> u32 {
        if self.bytes_per_day == 0 {
            return 0;
        }
        let elapsed_ns = u128::from(self.elapsed_ns.max(HOUR_NS));
        let even = u128::from(self.bytes_per_day) * elapsed_ns / u128::from(DAY_NS);
        let percent = u128::from(self.spent) * 100 / even.max(1);
        u32::try_from(percent).unwrap_or(u32::MAX)
    }

    /// From now on the file is written seldom: it says more than was spent, a small part of the
    /// budget ahead, and is written again when that is spent, or each hour.
    pub fn spare(&mut self) {
        self.ahead = Some(self.bytes_per_day / AHEAD_PART);
    }

    /// Counts bytes as spent. Returns whether the file was written for it.
    ///
    /// # Errors
    /// If it cannot be written: it counts all the same until the agent ends.
    pub fn spend(&mut self, bytes: u64) -> io::Result<bool> {
        self.spent = self.spent.saturating_add(bytes);
        let since_ns = self.seen_ns.saturating_sub(self.kept_ns);
        let ahead = self.ahead.unwrap_or(0);
        let is_due = self.ahead.is_none() || self.spent > self.kept || since_ns >= HOUR_NS;
        if is_due {
            self.keep(self.spent.saturating_add(ahead))?;
        }
        Ok(is_due)
    }

    /// Counts less after all. Returns whether the file was written for it.
    ///
    /// # Errors
    /// As for [`DayBudget::spend`].
    pub fn give_back(&mut self, bytes: u64) -> io::Result<bool> {
        self.spent = self.spent.saturating_sub(bytes);
        if self.ahead.is_none() {
            self.keep(self.spent)?;
        }
        Ok(self.ahead.is_none())
    }

    /// Writes what was spent, and no more.
    ///
    /// # Errors
    /// If that fails: what was counted ahead stays counted.
    pub fn close(&mut self) -> io::Result<()> {
        self.keep(self.spent)
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        Standing {
            bytes_per_day: self.bytes_per_day,
            spent: self.spent,
            next_day_s: DAY_NS.saturating_sub(self.elapsed_ns) / 1_000_000_000,
            pressure_percent: self.pressure_percent(),
        }
    }

    fn keep(&mut self, spent: u64) -> io::Result<()> {
        (self.kept, self.kept_ns) = (spent, self.seen_ns);
        let Some(slots) = &mut self.slots else { return Ok(()) };
        let mut state = [0; STATE_BYTES];
        let (boot, numbers) = state.split_at_mut(16);
        boot.copy_from_slice(&self.boot_id);
        let values = [self.seen_ns, self.elapsed_ns, spent];
        for (place, value) in numbers.chunks_exact_mut(8).zip(values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        slots.write(&state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 1 << 20;

    fn open(directory: &Path, boot: u8, now_ns: u64) -> DayBudget {
        DayBudget::open(&directory.join("budget"), BUDGET, [boot; 16], now_ns).unwrap()
    }

    #[test]
    fn volumes_leave_a_part_to_urgent_frames_and_nothing_exceeds_the_budget() {
        let directory = tempfile::tempdir().unwrap();
        let mut budget = open(directory.path(), 1, 0);
        assert_eq!(budget.left(), [BUDGET, BUDGET / 4 * 3]);
        budget.spend(BUDGET / 4 * 3).unwrap();
        assert_eq!(budget.left(), [BUDGET / 4, 0]);
        budget.spend(BUDGET).unwrap();
        assert_eq!(budget.left(), [0, 0]);
        budget.give_back(BUDGET).unwrap();
        assert_eq!(budget.left(), [BUDGET / 4, 0]);
        budget.look(25 * HOUR_NS);
        let next_day_s = 23 * 3600;
        let fresh = Standing { bytes_per_day: BUDGET, spent: 0, next_day_s, pressure_percent: 0 };
        assert_eq!(budget.standing(), fresh);
        assert_eq!(DayBudget::unlimited().left(), [u64::MAX; CLASSES]);
    }

    #[test]
    fn pressure_is_what_is_spent_beside_an_even_spending() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("budget");
        let mut budget = DayBudget::open(&file, 24_000, [1; 16], 0).unwrap();
        assert_eq!(budget.pressure_percent(), 0);
        // Of the first hour's share, however early.
        budget.spend(1000).unwrap();
        assert_eq!(budget.pressure_percent(), 100);
        budget.look(2 * HOUR_NS);
        assert_eq!(budget.pressure_percent(), 50);
        budget.spend(3000).unwrap();
        assert_eq!(budget.pressure_percent(), 200);
        budget.look(24 * HOUR_NS);
        assert_eq!(budget.pressure_percent(), 0);
        let mut unlimited = DayBudget::unlimited();
        unlimited.spend(u64::MAX).unwrap();
        assert_eq!(unlimited.pressure_percent(), 0);
    }

    #[test]
    fn what_was_spent_survives_restarts_and_a_day_is_never_shorter_than_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut budget = open(directory.path(), 1, 100 * HOUR_NS);
        budget.look(110 * HOUR_NS);
        budget.spend(1000).unwrap();
        // The agent again, in the same boot: ten hours and five.
        let budget = open(directory.path(), 1, 115 * HOUR_NS);
        let of = |budget: &DayBudget| (budget.standing().spent, budget.standing().next_day_s);
        assert_eq!(of(&budget), (1000, 9 * 3600));
        // Another boot, whose clock stands at two hours: ten and two at least.
        let mut budget = open(directory.path(), 2, 2 * HOUR_NS);
        assert_eq!(of(&budget), (1000, 12 * 3600));
        budget.look(13 * HOUR_NS);
        budget.spend(1).unwrap();
        assert_eq!(of(&open(directory.path(), 2, 13 * HOUR_NS)), (1001, 3600));
        assert_eq!(of(&open(directory.path(), 2, 14 * HOUR_NS)), (0, 24 * 3600));
        // A clock that went backwards adds nothing.
        assert_eq!(of(&open(directory.path(), 2, 0)), (1001, 3600));
    }
}
