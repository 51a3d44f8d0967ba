//! When to try next. Pure: the dice are thrown by the caller.
//!
//! A fleet that lost its collector must not come back as one: waits are drawn from the whole
//! range up to a bound that doubles ("full jitter"), and devices spread over the upload
//! interval by their ids.

use std::time::Duration;

/// Bound of the first wait: a collector that restarts is back by then.
const FIRST: Duration = Duration::from_secs(2);
/// Bound of the longest: an outage of hours is over at most so long before we notice.
const LONGEST: Duration = Duration::from_secs(600);
/// No wait is shorter: the dice must not make a busy loop.
const SHORTEST: Duration = Duration::from_millis(200);

/// Failures in a row, and the wait that follows from them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure. `asked` is what the collector asked for; `random` any number.
    pub(super) fn fail(&mut self, asked: Option<Duration>, random: u32) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let bound = FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST);
        let drawn = fraction(bound, random).max(SHORTEST);
        // All that were sent away at once were told the same time.
        asked.map_or(drawn, |asked| asked + fraction(bound, random))
    }

    pub(super) fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

/// The wait before the first upload: a place in the interval that is the device's own.
pub(super) fn phase(agent_id: &str, interval: Duration) -> Duration {
    fraction(interval, crc32fast::hash(agent_id.as_bytes()))
}

/// The wait before the next upload: the interval, up to a tenth more or less.
pub(super) fn next(interval: Duration, random: u32) -> Duration {
    interval - interval / 10 + fraction(interval / 5, random)
}

/// `random` of 2^32 parts of `whole`.
fn fraction(whole: Duration, random: u32) -> Duration {
    whole.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound() {
        let mut backoff = Backoff::default();
        let bounds: Vec<u64> =
            (0..12).map(|_| backoff.fail(None, u32::MAX).as_secs_f64().ceil() as u64).collect();
        assert_eq!(bounds, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]);
        assert_eq!(backoff.failures(), 12);
        assert_eq!(backoff.fail(None, 0), SHORTEST);
        backoff.succeed();
        let asked = Duration::from_secs(30);
        assert_eq!(backoff.fail(Some(asked), 0), asked);
        assert_eq!(backoff.fail(Some(asked), 1 << 31), asked + Duration::from_secs(2));
    }

    #[test]
    fn devices_spread_over_the_interval() {
        let interval = Duration::from_secs(60);
        let mut quarters = [0; 4];
        for device in 0..400 {
            let phase = phase(&format!("gw-{device:04}"), interval);
            assert!(phase < interval);
            quarters[phase.as_secs() as usize / 15] += 1;
        }
        assert!(quarters.iter().all(|count| *count > 60), "{quarters:?}");
        assert_eq!(next(interval, 0).as_secs(), 54);
        assert_eq!(next(interval, u32::MAX).as_secs(), 65);
    }
}
