//! How much the agent writes to flash in a day: a [`DayBudget`] of bytes that all who write share.
//!
//! Counted are the blocks that a write changes, [`BLOCK_BYTES`] each, as often as they can be
//! written back: frames, the names of segments, state files. It is an estimate. Not known are the
//! file system's journal, what the flash's own translation writes again and again (its pages are
//! larger), and whether the kernel writes a block back more often than each [`WRITE_BACK_NS`]. The
//! time that a collector told is written once an hour and not counted.
//!
//! Frames stop where the budget does. State files go on, since they name what is lost, but seldom:
//! [`STATE_BYTES_PER_DAY`] in all.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codec::CLASSES;

use crate::day_budget::{DayBudget, Standing};

/// Name of the state file, in the state folder.
pub const FILE: &str = "wear";
/// What is counted for a write, however small: a block of the file system.
pub const BLOCK_BYTES: u64 = 4096;
/// The kernel writes a changed block back after so long, ns, unless it is told to sooner
/// (`vm.dirty_expire_centisecs`).
pub const WRITE_BACK_NS: u64 = 30 * 1_000_000_000;
/// A state file that may be old is written so often, ns.
pub const STATE_INTERVAL_NS: u64 = 300 * 1_000_000_000;
/// What state files may take in a day, also beyond a budget that is spent: in each
/// [`STATE_INTERVAL_NS`] the position and the state of the run once, what is untold twice; the states
/// of the two budgets some 90 times each; and some 80 starts and ends of the agent.
pub const STATE_BYTES_PER_DAY: u64 = 2048 * BLOCK_BYTES;

/// Bytes that may be written, shared by all who write.
pub struct Wear {
    budget: Mutex<DayBudget>,
    /// Boot clock, ns.
    now_ns: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Wear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wear").field(&self.standing()).finish()
    }
}

/// What a change of the bytes from `from` to `to` of a file writes back: whole blocks.
pub fn blocks_bytes(from: u64, to: u64) -> u64 {
    let first = from / BLOCK_BYTES;
    to.div_ceil(BLOCK_BYTES).saturating_sub(first) * BLOCK_BYTES
}

impl Wear {
    /// A budget whose state is kept in `directory`. `now_ns` reads the clock of the boot `boot_id`.
    ///
    /// # Errors
    /// If the state cannot be opened: what was written would be forgotten.
    pub fn open(
        directory: &Path,
        bytes_per_day: u64,
        boot_id: [u8; 16],
        now_ns: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> io::Result<Wear> {
        let mut budget = DayBudget::open(&directory.join(FILE), bytes_per_day, boot_id, now_ns())?;
        budget.spare();
        Ok(Wear { budget: Mutex::new(budget), now_ns: Box::new(now_ns) })
    }

    /// The boot clock, ns.
    pub fn now_ns(&self) -> u64 {
        (self.now_ns)()
    }

    fn budget(&self) -> MutexGuard<'_, DayBudget> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.look(self.now_ns());
        budget
    }

    /// What each class may still write today, bytes.
    pub fn left(&self) -> [u64; CLASSES] {
        self.budget().left()
    }

    /// Takes so many bytes for frames of a class, if they are left.
    pub fn take(&self, lane: usize, bytes: u64) -> bool {
        let mut budget = self.budget();
        let is_left = budget.left().get(lane).is_some_and(|left| *left >= bytes);
        if is_left {
            Self::spend(&mut budget, bytes);
        }
        is_left
    }

    /// Counts bytes that are written whatever is left.
    pub fn count(&self, bytes: u64) {
        Self::spend(&mut self.budget(), bytes);
    }

    /// A state that cannot be kept counts all the same until the agent ends.
    fn spend(budget: &mut DayBudget, bytes: u64) {
        if let Ok(true) = budget.spend(bytes) {
            // The state's own write.
            let _ = budget.spend(BLOCK_BYTES);
        }
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        self.budget().standing()
    }

    /// Keeps what was spent, at the end of a run: nothing that was counted ahead.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn close(&self) -> io::Result<()> {
        let mut budget = self.budget();
        let _ = budget.spend(BLOCK_BYTES);
        budget.close()
    }
}

/// Counts the writes of one state file, and says when the next is due.
#[derive(Debug, Default)]
pub struct Meter {
    wear: Option<Arc<Wear>>,
    written_ns: Option<u64>,
}

impl Meter {
    /// Counts for `wear`; without one nothing, and every write is due.
    pub fn new(wear: Option<Arc<Wear>>) -> Meter {
        Meter { wear, written_ns: None }
    }

    /// Whether the file may be written again now, which it then is.
    pub fn is_due(&mut self) -> bool {
        let Some(wear) = &self.wear else { return true };
        let now_ns = wear.now_ns();
        let past_ns = self.written_ns.map(|then| now_ns.saturating_sub(then));
        let is_due = past_ns.is_none_or(|past_ns| past_ns >= STATE_INTERVAL_NS);
        if is_due {
            self.count();
        }
        is_due
    }

    /// Counts a write that does not wait.
    pub fn count(&mut self) {
        if let Some(wear) = &self.wear {
            wear.count(BLOCK_BYTES);
            self.written_ns = Some(wear.now_ns());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const BUDGET: u64 = 64 * 16 * BLOCK_BYTES;
    const HOUR_NS: u64 = 3600 * 1_000_000_000;

    fn open(directory: &Path, now: &Arc<AtomicU64>) -> Wear {
        let now = Arc::clone(now);
        Wear::open(directory, BUDGET, [1; 16], move || now.load(Ordering::Relaxed)).unwrap()
    }

    #[test]
    fn a_change_costs_the_blocks_it_touches() {
        let costs = [(0, 1), (0, 4096), (4095, 4097), (4096, 4097), (1, 12289)];
        let blocks = costs.map(|(from, to)| blocks_bytes(from, to) / BLOCK_BYTES);
        assert_eq!(blocks, [1, 1, 2, 1, 4]);
    }

    #[test]
    fn what_was_written_survives_a_kill_and_is_not_kept_more_often_than_it_must() {
        let directory = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(0));
        let wear = open(directory.path(), &now);
        for _ in 0..160 {
            assert!(wear.take(0, BLOCK_BYTES));
        }
        // Its own state is among it: one block for some sixteen.
        let spent = wear.standing().spent;
        assert!((165..=171).contains(&(spent / BLOCK_BYTES)), "{spent}");
        drop(wear);
        let wear = open(directory.path(), &now);
        let kept = wear.standing().spent;
        assert!(kept >= spent && kept <= spent + BUDGET / 64, "{kept} of {spent}");
        wear.close().unwrap();
        assert_eq!(open(directory.path(), &now).standing().spent, kept + BLOCK_BYTES);
        now.store(25 * HOUR_NS, Ordering::Relaxed);
        assert_eq!(open(directory.path(), &now).standing().spent, 0);
    }

    #[test]
    fn frames_stop_where_the_budget_does_and_state_files_go_on_seldom() {
        let directory = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(0));
        let wear = Arc::new(open(directory.path(), &now));
        assert!(!wear.take(1, BUDGET / 4 * 3 + 1));
        assert!(wear.take(1, BUDGET / 4 * 3));
        assert!(!wear.take(1, 1));
        assert!(wear.take(0, BUDGET / 8));
        assert!(!wear.take(0, BUDGET / 4));
        wear.count(BUDGET);
        assert_eq!(wear.left(), [0, 0]);
        let mut meter = Meter::new(Some(Arc::clone(&wear)));
        let due = (0..600).filter(|second| {
            now.store(second * 1_000_000_000, Ordering::Relaxed);
            meter.is_due()
        });
        assert_eq!(due.collect::<Vec<_>>(), [0, 300]);
        let mut free = Meter::default();
        assert!(free.is_due() && free.is_due());
    }
}
