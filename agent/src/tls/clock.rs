//! What time it is, on a device that may not know.
//!
//! A gateway without a battery starts in 1970, and certificates are then not yet valid. The
//! clock here takes the latest of the system's clock, the time of the build, and the last
//! time that an authenticated collector told, which it keeps over restarts. Once a collector
//! has told the time in this run, the boot clock carries it on, and the system's clock, which
//! may be stepped at any time and in either direction, is not asked any more.
//!
//! No wild step of a clock, here or there, locks a device out:
//!
//! - A told time is believed only within the validity of the collector's own certificate, and
//!   never if it is before the build: a collector that would not pass its own check is wrong.
//! - The system's clock is not believed where the device's own certificate would be over: were
//!   it right, the collector would refuse the device anyway.
//! - A clock that is behind refuses nobody: the check of certificates (`verifier`) takes it for
//!   the earliest that it may be.
//! - Where the collector's certificate is over by the clock ([`Clock::doubt`]), the next
//!   handshake goes by the system's clock alone, whatever a collector told in this run or before,
//!   if that clock is plausible: not before the build, not ten years behind it, and within the
//!   device's own certificate. So a certificate that is over is refused where the system's clock
//!   is right, or told time is and the system's is not plausible.
//!
//! What is left: a system's clock that is ahead by less than that, where the collector never told
//! the time, and told time that was ahead, where the system's clock is not plausible, keep a
//! device out until the clock is set, or the collector's certificate is renewed beyond it.

use std::ops::RangeInclusive;
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
const BUILD_UNIX_S: u64 = match u64::from_str_radix(env!("SYSFLOW_BUILD_UNIX_S"), 10) {
    Ok(unix_s) => unix_s,
    Err(_) => 0,
};

/// A system's clock that is so far behind the build may be doubted, s: ten years, longer than a
/// build is in use as a rule.
const DOUBTFUL_S: u64 = 10 * 365 * 86_400;

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
    /// When the device's own certificate is over, Unix time, s.
    own_not_after: u64,
    /// Whether the collector's certificate was over by the clock that is asked first.
    is_doubted: bool,
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
        let (offset_s, own_not_after, is_doubted) = (None, u64::MAX, false);
        let state = State { slots, written_s, offset_s, own_not_after, is_doubted };
        Clock { state: Mutex::new(state) }
    }

    /// Unix time, s: the likeliest, for what people read.
    pub fn now_s(&self) -> u64 {
        let state = self.state();
        state.carried_s(boot_s()).unwrap_or_else(|| state.started_s(system_s()))
    }

    /// A collector whose certificate is valid at the times `valid` says that it is `unix_s`.
    pub fn told(&self, unix_s: u64, valid: &RangeInclusive<u64>) {
        self.state().told(unix_s, valid, boot_s());
    }

    /// The certificate that this device shows is over at `not_after`, Unix time, s.
    pub fn own_certificate(&self, not_after: u64) {
        self.state().own_not_after = not_after;
    }

    /// By the time given last, the collector's certificate is over, or the clock is ahead.
    pub fn doubt(&self) {
        let mut state = self.state();
        state.is_doubted = !state.is_doubted;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let checked_s = self.state().checked_s(boot_s(), system_s());
        Some(UnixTime::since_unix_epoch(Duration::from_secs(checked_s)))
    }
}

impl State {
    /// What was told in this run, carried on by the boot clock.
    fn carried_s(&self, boot_s: u64) -> Option<u64> {
        self.offset_s.map(|offset_s| boot_s.saturating_add(offset_s).max(BUILD_UNIX_S))
    }

    /// What is known at a start.
    fn started_s(&self, system_s: u64) -> u64 {
        system_s.max(self.written_s).max(BUILD_UNIX_S)
    }

    /// The time by which certificates are checked.
    fn checked_s(&self, boot_s: u64, system_s: u64) -> u64 {
        let carried_s = self.carried_s(boot_s);
        if let Some(carried_s) = carried_s
            && !self.is_doubted
        {
            return carried_s;
        }
        let is_ours = system_s <= self.own_not_after;
        if self.is_doubted {
            let plausible = BUILD_UNIX_S..=BUILD_UNIX_S.saturating_add(DOUBTFUL_S);
            return match carried_s {
                _ if is_ours && plausible.contains(&system_s) => system_s,
                Some(carried_s) => carried_s,
                None => self.started_s(0),
            };
        }
        self.started_s(if is_ours { system_s } else { 0 })
    }

    fn told(&mut self, unix_s: u64, valid: &RangeInclusive<u64>, boot_s: u64) {
        if unix_s < BUILD_UNIX_S || !valid.contains(&unix_s) {
            return;
        }
        self.offset_s = Some(unix_s.saturating_sub(boot_s));
        self.is_doubted = false;
        // Also back: what a collector with a wrong clock told is not kept longer than that.
        if unix_s.abs_diff(self.written_s) >= WRITE_INTERVAL_S
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

    const BUILD: u64 = BUILD_UNIX_S;
    const FAR: u64 = 5_000_000_000;
    const VALID: RangeInclusive<u64> = BUILD - 1000..=FAR;

    fn state(directory: &Path) -> State {
        Clock::open(directory).0.state.into_inner().unwrap()
    }

    #[test]
    fn without_a_clock_it_is_the_time_of_the_build_or_what_was_told_before() {
        let directory = tempfile::tempdir().unwrap();
        let mut clock = state(directory.path());
        assert_eq!(clock.checked_s(10, 0), BUILD);
        assert_eq!(clock.checked_s(10, BUILD + 5), BUILD + 5);
        clock.told(BUILD + 100_000, &VALID, 20);
        assert_eq!(clock.checked_s(30, 0), BUILD + 100_010);
        // Not written again within the hour.
        clock.told(BUILD + 100_000 + WRITE_INTERVAL_S - 1, &VALID, 20);
        assert_eq!(state(directory.path()).checked_s(5, 0), BUILD + 100_000);
        // What was told last counts, also if it is earlier.
        clock.told(BUILD + 50_000, &VALID, 30);
        assert_eq!(state(directory.path()).checked_s(5, 0), BUILD + 50_000);
    }

    #[test]
    fn once_told_a_step_of_the_system_clock_does_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut clock = state(directory.path());
        clock.told(FAR - 100, &VALID, 50);
        assert_eq!(clock.checked_s(60, FAR * 2), FAR - 90);
        assert_eq!(clock.checked_s(60, 0), FAR - 90);
    }

    #[test]
    fn a_collector_outside_its_own_certificate_or_before_the_build_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let mut clock = state(directory.path());
        for (unix_s, valid) in
            [(FAR + 1, VALID), (BUILD + 9, BUILD + 10..=FAR), (BUILD - 1, VALID), (0, 0..=0)]
        {
            clock.told(unix_s, &valid, 50);
            assert_eq!(clock.checked_s(60, FAR / 2), FAR / 2, "{unix_s}");
            assert_eq!(state(directory.path()).written_s, 0);
        }
        // Nor does it take away what was told before.
        clock.told(FAR - 100, &VALID, 50);
        clock.told(BUILD - 1, &VALID, 60);
        assert_eq!(clock.checked_s(60, 0), FAR - 90);
    }

    #[test]
    fn a_system_clock_that_is_ahead_of_our_own_certificate_is_not_asked() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::open(directory.path()).0;
        clock.own_certificate(BUILD + 1000);
        let mut state = clock.state();
        assert_eq!(state.checked_s(10, BUILD + 1000), BUILD + 1000);
        assert_eq!(state.checked_s(10, BUILD + 1001), BUILD);
        state.told(BUILD + 500, &VALID, 10);
        assert_eq!(state.checked_s(20, FAR), BUILD + 510);
        drop(state);
        // People see what the system says, since it may be the certificate that is over.
        assert!(Clock::open(directory.path()).0.now_s() >= system_s());
    }

    #[test]
    fn a_clock_that_is_doubted_gives_way_to_a_plausible_system_clock_until_time_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::open(directory.path()).0;
        clock.own_certificate(FAR);
        let checked = |system_s| clock.state().checked_s(10, system_s);
        clock.doubt();
        // A certificate that is over by a plausible clock stays over, ...
        assert_eq!(checked(BUILD + 1000), BUILD + 1000);
        // ... but a clock of the far future is wrong, whatever our own certificate says.
        assert_eq!(checked(BUILD + 2 * DOUBTFUL_S), BUILD);
        // A collector whose clock was ahead told this, which a restart remembers.
        clock.state().told(BUILD + 900_000, &VALID, 10);
        for _ in 0..2 {
            assert_eq!(checked(BUILD + 1000), BUILD + 900_000);
            clock.doubt();
            assert_eq!(checked(BUILD + 1000), BUILD + 1000);
            // One that is no clock at all says nothing against what was told.
            assert_eq!(checked(0), BUILD + 900_000);
            assert_eq!(checked(BUILD + 2 * DOUBTFUL_S), BUILD + 900_000);
            clock.doubt();
        }
        let started = Clock::open(directory.path()).0;
        assert_eq!(started.state().checked_s(10, BUILD + 1000), BUILD + 900_000);
        started.doubt();
        assert_eq!(started.state().checked_s(10, BUILD + 1000), BUILD + 1000);
        assert_eq!(started.state().checked_s(10, 0), BUILD + 900_000);
    }

    #[test]
    fn a_folder_that_is_missing_costs_the_memory_only() {
        let (clock, error) = Clock::open(Path::new("/nonexistent"));
        assert!(error.is_some() && clock.now_s() > 0);
    }
}
