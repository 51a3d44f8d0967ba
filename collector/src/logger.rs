//! The log: lines on standard error, with the service manager's priority in front where it
//! reads them.

use std::io::Write;

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
