//! What time it is, on a device that may not know.
//!
//! A gateway without a battery starts in 1970, and certificates are then not yet valid. The
//! clock here takes the latest of the system's clock, the time of the build, and the last
//! time that an authenticated collector told, which it keeps over restarts. Once a collector
//! has told the time in this run, the boot clock carries it on, and the system's clock, which
//! may be stepped at any time and in either direction, is not asked any more.
//!
//! A told time is not believed if the collector's own certificate would be over by then: so a
//! collector with a wrong clock cannot lock its devices out for good.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::slots::Slots;

/// Name of the file, in the state folder.
pub const FILE: &str = "clock";

/// How far told time may move on before it is written again, s: spares the flash.
const WRITE_INTERVAL_S: u64 = 3600;

/// Unix time of the build, s.
const BUILD_UNIX_S: &str = env!("SYSFLOW_BUILD_UNIX_S");

/// The time for checking certificates.
#[derive(Debug)]
pub struct Clock {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Absent where the file cannot be kept.
    slots: Option<Slots<8>>,
    /// The newest told time that the file has, s.
    written_s: u64,
    /// Unix time minus boot time, told in this run, s.
    offset_s: Option<u64>,
}

impl Clock {
    /// Opens the clock with its memory in `directory`. If that cannot be opened, the clock
    /// goes without, and the error comes beside it.
    pub fn open(directory: &Path) -> (Clock, Option<std::io::Error>) {
        let (slots, written, error) = match Slots::open(&directory.join(FILE)) {
            Ok((slots, written)) => (Some(slots), written, None),
            Err(error) => (None, None, Some(error)),
        };
        (Clock::new(slots, written), error)
    }

    /// The clock as [`open`](Clock::open) would find it, without a memory of its own: for
    /// those who only look.
    pub fn peek(directory: &Path) -> Clock {
        Clock::new(None, Slots::peek(&directory.join(FILE)))
    }

    fn new(slots: Option<Slots<8>>, written: Option<[u8; 8]>) -> Clock {
        let written_s = written.map_or(0, u64::from_le_bytes);
        Clock { state: Mutex::new(State { slots, written_s, offset_s: None }) }
    }

    /// Unix time, s.
    pub fn now_s(&self) -> u64 {
        let state = self.state();
        state.now_s(boot_s(), system_s())
    }

    /// A collector whose certificate is valid until `not_after` says that it is `unix_s`.
    pub fn told(&self, unix_s: u64, not_after: u64) {
        self.state().told(unix_s, not_after, boot_s());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now_s())))
    }
}

impl State {
    fn now_s(&self, boot_s: u64, system_s: u64) -> u64 {
        match self.offset_s {
            Some(offset_s) => boot_s + offset_s,
            None => system_s.max(self.written_s).max(BUILD_UNIX_S.parse().unwrap_or(0)),
        }
    }

    fn told(&mut self, unix_s: u64, not_after: u64, boot_s: u64) {
        if unix_s > not_after {
            return;
        }
        self.offset_s = Some(unix_s.saturating_sub(boot_s));
        if unix_s >= self.written_s + WRITE_INTERVAL_S
            && let Some(slots) = &mut self.slots
            // A failure costs the memory of one hour; the next answer tries again.
            && slots.write(&unix_s.to_le_bytes()).is_ok()
        {
            self.written_s = unix_s;
        }
    }
}

/// Since the boot, suspended time included, s.
fn boot_s() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

fn system_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = 5_000_000_000;

    fn state(directory: &Path) -> State {
        Clock::open(directory).0.state.into_inner().unwrap()
    }

    #[test]
    fn without_a_clock_it_is_the_time_of_the_build_or_what_was_told_before() {
        let directory = tempfile::tempdir().unwrap();
        let build: u64 = BUILD_UNIX_S.parse().unwrap();
        let mut clock = state(directory.path());
        assert_eq!(clock.now_s(10, 0), build);
        assert_eq!(clock.now_s(10, build + 5), build + 5);
        clock.told(build + 100_000, FAR, 20);
        assert_eq!(clock.now_s(30, 0), build + 100_010);
        // Not written again within the hour.
        clock.told(build + 100_000 + WRITE_INTERVAL_S - 1, FAR, 20);
        let clock = state(directory.path());
        assert_eq!(clock.now_s(5, 0), build + 100_000);
    }

    #[test]
    fn once_told_a_step_of_the_system_clock_does_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut clock = state(directory.path());
        clock.told(FAR - 100, FAR, 50);
        assert_eq!(clock.now_s(60, FAR * 2), FAR - 90);
        assert_eq!(clock.now_s(60, 0), FAR - 90);
    }

    #[test]
    fn a_collector_that_is_past_its_own_certificate_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let mut clock = state(directory.path());
        clock.told(FAR + 1, FAR, 50);
        assert_eq!(clock.now_s(60, FAR / 2), FAR / 2);
        assert_eq!(state(directory.path()).written_s, 0);
    }

    #[test]
    fn a_folder_that_is_missing_costs_the_memory_only() {
        let (clock, error) = Clock::open(Path::new("/nonexistent"));
        assert!(error.is_some() && clock.now_s() > 0);
    }
}
