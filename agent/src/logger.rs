//! Where messages go: standard error, one line each.
//!
//! Under a service manager that reads the stream (`JOURNAL_STREAM` is set) each line begins
//! with its syslog priority, `<4>`. Control characters are escaped, since texts come from
//! the network and from file names too. [`RateLimit`] keeps a repeated complaint from filling
//! a gateway's log.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr {
    priorities: OnceLock<bool>,
}

static STDERR: Stderr = Stderr { priorities: OnceLock::new() };

/// Starts logging. A second call changes nothing.
pub fn start() {
    STDERR.priorities.get_or_init(|| std::env::var_os("JOURNAL_STREAM").is_some());
    // Fails only where a logger is set already.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let priorities = self.priorities.get().copied().unwrap_or_default();
            let line = line(priorities, record.level(), &record.args().to_string());
            // There is no other place to complain to.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn line(priorities: bool, level: Level, text: &str) -> String {
    let mut line = String::with_capacity(text.len() + 16);
    let (priority, word) = match level {
        Level::Error => ("<3>", "error: "),
        Level::Warn => ("<4>", "warning: "),
        Level::Info => ("<6>", ""),
        Level::Debug | Level::Trace => ("<7>", ""),
    };
    line.push_str(if priorities { priority } else { word });
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

/// Lets one message through in each interval and counts the others.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    last: Option<Instant>,
    held_back: u64,
}

impl RateLimit {
    /// One message for each `interval`.
    pub const fn new(interval: Duration) -> Self {
        RateLimit { interval, last: None, held_back: 0 }
    }

    /// Whether a message at `now` goes out, and how many were held back since the last that
    /// did.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }

    /// Lets the next message through whatever the time is: what there is to say has changed.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_has_a_priority_in_the_journal() {
        assert_eq!(line(true, Level::Warn, "a\nb\x1b[1m"), "<4>a\\nb\\u{1b}[1m\n");
        assert_eq!(line(false, Level::Error, "no spool"), "error: no spool\n");
    }

    #[test]
    fn one_message_for_each_interval_and_the_others_are_counted() {
        let start = Instant::now();
        let mut limit = RateLimit::new(Duration::from_secs(60));
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start + Duration::from_secs(1)), None);
        assert_eq!(limit.admit(start + Duration::from_secs(59)), None);
        assert_eq!(limit.admit(start + Duration::from_secs(60)), Some(2));
        limit.reset();
        assert_eq!(limit.admit(start + Duration::from_secs(61)), Some(0));
    }
}
