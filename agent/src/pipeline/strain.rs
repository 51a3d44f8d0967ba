//! What strains the agent, measured each second: the ring as full as it was at its fullest, the
//! processor, and what the outlet tells. The ladder decides what follows.

use std::time::{Duration, Instant};

use codec::{StepChange, Strain};
use rustix::time::{ClockId, clock_gettime};

use super::Settings;
use crate::ladder::{Ladder, Measures};

/// How often the ladder is asked.
const LOOK: Duration = Duration::from_secs(1);
/// Over so long the use of the processor is measured.
const PROCESSOR_WINDOW: Duration = Duration::from_secs(5);

/// The ladder with what it goes by.
pub(super) struct Watch {
    ladder: Ladder,
    measures: Measures,
    ring_bytes: u64,
    looked: Instant,
    /// When the use of the processor was measured last, what it was then, and the share since the
    /// time before, percent.
    processor: (Instant, Duration, u32),
}

/// What the processor has done for this process, all threads.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// `part` of `whole` in percent.
pub(super) fn percent(part: u64, whole: u64) -> u32 {
    u32::try_from(part.saturating_mul(100) / whole.max(1)).unwrap_or(u32::MAX)
}

impl Watch {
    pub(super) fn new(settings: &Settings, now: Instant) -> Watch {
        Watch {
            ladder: Ladder::new(settings.ladder),
            measures: Measures::default(),
            ring_bytes: settings.bounds.ring_bytes.into(),
            looked: now,
            processor: (now, processor_time(), 0),
        }
    }

    /// Notes how many bytes wait in the ring.
    pub(super) fn note_ring(&mut self, waiting_bytes: usize) {
        self.measures.note(Strain::Ring, percent(waiting_bytes as u64, self.ring_bytes));
    }

    /// Asks the ladder, once a second. `tell` adds what the outlet measures; `now_ns` is on the
    /// boot clock.
    pub(super) fn look(
        &mut self,
        now: Instant,
        now_ns: u64,
        tell: impl FnOnce(&mut Measures),
    ) -> Option<StepChange> {
        if now.duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        let mut measures = std::mem::take(&mut self.measures);
        let (measured, before, _) = self.processor;
        let past = now.duration_since(measured);
        if past >= PROCESSOR_WINDOW {
            let used = processor_time();
            let since = used.saturating_sub(before);
            let share = percent(since.as_micros() as u64, past.as_micros() as u64);
            self.processor = (now, used, share);
        }
        measures.note(Strain::Processor, self.processor.2);
        tell(&mut measures);
        self.ladder.observe(&measures, now_ns)
    }
}
