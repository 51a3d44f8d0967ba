//! What the agent tells whoever supervises it (systemd, or anything that speaks its notify
//! protocol): that it watches, that it is alive, what it does, that it stops. Without
//! `NOTIFY_SOCKET` all of it is nothing. Messages that cannot be sent are logged once: the
//! supervisor then acts on its own timeout.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The supervisor's watchdog: it wants to hear from the agent within an interval.
#[derive(Debug)]
pub struct Supervisor {
    /// Half of what the supervisor waits: one lost message does no harm.
    interval: Option<Duration>,
    last: Instant,
    has_failed: bool,
}

impl Supervisor {
    /// As the environment (`WATCHDOG_USEC`, `WATCHDOG_PID`) asks.
    pub fn from_environment(now: Instant) -> Supervisor {
        let interval = sd_notify::watchdog_enabled().map(|wait| wait / 2);
        Supervisor { interval, last: now, has_failed: false }
    }

    /// Whether it is time to say that the agent is alive. To be asked by the thread whose life
    /// is meant, at least as often as the interval.
    pub fn alive(&mut self, now: Instant) {
        let Some(interval) = self.interval else { return };
        if now.duration_since(self.last) >= interval {
            self.last = now;
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The probes are attached: nothing is missed from here on.
    pub fn ready(&mut self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// One line for `systemctl status`.
    pub fn status(&mut self, status: &str) {
        self.tell(&[NotifyState::Status(status)]);
    }

    /// The agent drains what it holds and ends.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(what)
            && !self.has_failed
        {
            self.has_failed = true;
            log::warn!("NOTIFY_SOCKET: the supervisor cannot be told: {error}");
        }
    }
}
