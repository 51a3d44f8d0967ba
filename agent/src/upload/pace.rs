//! How much is sent at a time. Pure: what became of bodies goes in, bounds come out.
//!
//! A body must be over before the collector, or something on the way, ends it for its length in
//! time (the collector as it is installed after 30 s), and an urgent frame waits for the end of
//! the body that is under way. So the link is measured, and what it did not carry in time is
//! not tried again at once.

use std::time::Duration;

use codec::CLASSES;

/// Smallest bound that we come down to, bytes. Below it frames are counted instead.
const BODY_BYTES_MIN: usize = 16 * 1024;
/// A body of urgent frames takes the link for about so long, s: a third of what it has ...
const URGENT_TIME_S: usize = 10;
/// ... and one of volumes for so long, ...
const VOLUME_TIME_S: usize = 5;
/// ... with so many bytes at most before the link has been measured.
const VOLUME_BYTES_FIRST: usize = 128 * 1024;
/// After so many bodies in time twice as much is tried: one in vain costs an eighth of them.
const BODIES_BEFORE_MORE: u32 = 16;

#[derive(Debug)]
pub(super) struct Pace {
    /// Largest body: what the settings say, or less if the collector takes less.
    bytes_max: usize,
    /// What is carried in time, as far as it is known.
    in_time_max: usize,
    /// Bodies that were carried since this was set.
    bodies: u32,
    /// What the link carried in the last body that arrived, bytes a second; none before the first.
    rate: Option<usize>,
}

impl Pace {
    pub(super) fn new(bytes_max: usize) -> Pace {
        Pace { bytes_max, in_time_max: bytes_max, bodies: 0, rate: None }
    }

    /// A body of so many bytes arrived within this time.
    pub(super) fn arrived(&mut self, bytes: usize, time: Duration) {
        let taken_ms = usize::try_from(time.as_millis()).unwrap_or(usize::MAX);
        self.rate = Some(bytes.saturating_mul(1000) / taken_ms.max(1));
        self.bodies = self.bodies.saturating_add(1);
        if self.bodies >= BODIES_BEFORE_MORE {
            self.bodies = 0;
            self.in_time_max = self.in_time_max.saturating_mul(2).min(self.bytes_max);
        }
    }

    /// A body of so many bytes is larger than is taken.
    pub(super) fn too_large(&mut self, bytes: usize) {
        if self.bytes_max > BODY_BYTES_MIN {
            self.bytes_max = (bytes / 2).max(BODY_BYTES_MIN);
        }
    }

    /// A body of so many bytes was not carried in time, or not to its end.
    pub(super) fn too_slow(&mut self, bytes: usize) {
        self.in_time_max = (bytes / 2).max(BODY_BYTES_MIN);
        self.bodies = 0;
    }

    /// How large the next body of each class may be.
    pub(super) fn body_bytes_max(&self) -> [usize; CLASSES] {
        let most = self.bytes_max.min(self.in_time_max);
        let within = |seconds: usize, first: usize| {
            let quick = self.rate.map_or(first, |rate| rate.saturating_mul(seconds));
            most.min(quick.max(BODY_BYTES_MIN))
        };
        [within(URGENT_TIME_S, usize::MAX), within(VOLUME_TIME_S, VOLUME_BYTES_FIRST)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_body_takes_the_link_for_some_seconds() {
        let mut pace = Pace::new(MIB);
        assert_eq!(pace.body_bytes_max(), [MIB, VOLUME_BYTES_FIRST]);
        pace.arrived(40_000, Duration::from_secs(10));
        assert_eq!(pace.body_bytes_max(), [40_000, 20_000]);
        pace.arrived(20_000, Duration::from_secs(40));
        assert_eq!(pace.body_bytes_max(), [BODY_BYTES_MIN; CLASSES]);
        pace.arrived(20_000, Duration::ZERO);
        assert_eq!(pace.body_bytes_max(), [MIB; CLASSES]);
    }

    #[test]
    fn what_was_not_carried_in_time_is_tried_again_later() {
        let mut pace = Pace::new(MIB);
        let mut bounds = Vec::new();
        for _ in 0..8 {
            pace.too_slow(pace.body_bytes_max()[0]);
            bounds.push(pace.body_bytes_max()[0]);
        }
        let expected = [512, 256, 128, 64, 32, 16, 16, 16].map(|kib| kib * 1024);
        assert_eq!(bounds, expected);
        let mut bodies = 0;
        while pace.body_bytes_max()[0] < MIB {
            pace.arrived(BODY_BYTES_MIN, Duration::ZERO);
            bodies += 1;
        }
        assert_eq!(bodies, 6 * BODIES_BEFORE_MORE);
    }

    #[test]
    fn what_was_too_large_is_not_tried_again() {
        let mut pace = Pace::new(MIB);
        pace.too_large(400_000);
        for _ in 0..10 * BODIES_BEFORE_MORE {
            pace.arrived(200_000, Duration::ZERO);
        }
        assert_eq!(pace.body_bytes_max(), [200_000; CLASSES]);
        pace.too_large(1000);
        assert_eq!(pace.body_bytes_max(), [BODY_BYTES_MIN; CLASSES]);
    }
}
