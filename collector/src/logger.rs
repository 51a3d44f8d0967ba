//! The log: lines on standard error, with the service manager's priority in front where it
//! reads them. What strangers can bring about at will is logged through [`seldom`], so that
//! they cannot fill the disk with it; the counters of `health` have all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger {
    journal: bool,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The libraries' own lines repeat what is said here with the address beside it.
        metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (priority, name) = match record.level() {
            Level::Error => (3, "error"),
            Level::Warn => (4, "warning"),
            Level::Info => (6, "info"),
            Level::Debug | Level::Trace => (7, "debug"),
        };
        let mut out = std::io::stderr().lock();
        // Nobody is left to tell if this fails.
        let _ = if self.journal {
            writeln!(out, "<{priority}>{}", record.args())
        } else {
            writeln!(out, "{name}: {}", record.args())
        };
    }

    fn flush(&self) {}
}

/// Starts logging.
pub(crate) fn start() {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    if log::set_boxed_logger(Box::new(Logger { journal })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Lines of one kind that are logged at once, ...
const BURST: u32 = 20;
/// ... and how long it takes until one more is.
const REFILL: Duration = Duration::from_secs(1);

struct Budget {
    left: u32,
    refilled: Instant,
    passed_over: u64,
}

/// One budget for each kind; kinds are part of the program.
static BUDGETS: Mutex<BTreeMap<&'static str, Budget>> = Mutex::new(BTreeMap::new());

/// Logs a line of a kind that others decide about: at most [`BURST`] at once and one each
/// [`REFILL`]; the next line says how many were passed over.
pub(crate) fn seldom(level: Level, kind: &'static str, text: fmt::Arguments<'_>) {
    match admit(kind, Instant::now()) {
        Some(0) => log::log!(level, "{text}"),
        Some(more) => log::log!(level, "{text} ({more} more of this kind before)"),
        None => {}
    }
}

/// How many lines were passed over since the last one, if this one may be logged.
fn admit(kind: &'static str, now: Instant) -> Option<u64> {
    let mut budgets = BUDGETS.lock().unwrap_or_else(PoisonError::into_inner);
    let full = Budget { left: BURST, refilled: now, passed_over: 0 };
    let budget = budgets.entry(kind).or_insert(full);
    let refills = now.saturating_duration_since(budget.refilled).as_secs() / REFILL.as_secs();
    if refills > 0 {
        let refills = u32::try_from(refills).unwrap_or(BURST);
        budget.left = budget.left.saturating_add(refills).min(BURST);
        budget.refilled = now;
    }
    if budget.left == 0 {
        budget.passed_over += 1;
        return None;
    }
    budget.left -= 1;
    Some(std::mem::take(&mut budget.passed_over))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_in_part_and_counted() {
        let start = Instant::now();
        let logged = (0..1000).filter(|_| admit("flood", start).is_some()).count();
        assert_eq!(logged, BURST as usize);
        assert_eq!(admit("another kind", start), Some(0));
        assert_eq!(admit("flood", start + REFILL), Some(1000 - u64::from(BURST)));
        assert_eq!(admit("flood", start + REFILL), None);
    }
}
