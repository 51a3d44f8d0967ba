//! The second thread: takes frames from the spool and brings them to the collector.
//!
//! In: a spool [`Reader`], wake-ups and the order to stop. Out: frames over mutual TLS, and
//! [`Counters`]. Urgent frames go before volumes, and a body is small enough for the link that it
//! arrives in time, and that an urgent frame does not wait long behind it. Bound: one batch in
//! memory, one request at a time, every wait limited.
//! A frame leaves the spool when the collector holds it durably; a failure of any kind leaves
//! it there. A batch that the collector refuses is cut in half until the one bad frame stands
//! alone: that one is dropped and counted, so that it cannot block the others. What concerns
//! the device and not a frame (identity, TLS, a proxy's error) never drops anything.

mod answer;
mod backoff;
mod budget;
mod client;
mod counters;
mod pace;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config;
use crate::day_budget::DayBudget;
use crate::spool::Reader;
use crate::tls::Credentials;
use crate::tls::clock::Clock;
use crate::tls::seal_key::Sealer;
use crate::wear::Meter;

pub use answer::{Held, Less, Outcome, Refusal, decide};
pub use budget::FILE as BUDGET_FILE;
pub use client::Timeouts;
pub use counters::{Counters, Snapshot};

use client::Client;
use worker::Worker;

/// How long the thread has to notice that it was interrupted.
const GRACE: Duration = Duration::from_secs(1);

/// What the thread needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where to, how often, how much at a time.
    pub collector: config::Collector,
    /// Who we are, as read at the start.
    pub credentials: Credentials,
    /// The time for certificates.
    pub clock: Arc<Clock>,
    /// What signs seals with the key of the credentials.
    pub sealer: Sealer,
    /// Bounds of one request.
    pub timeouts: Timeouts,
    /// What the link may carry.
    pub budget: DayBudget,
    /// How often its state may be written.
    pub meter: Meter,
}

/// The upload thread, seen from the event thread.
#[derive(Debug)]
pub struct Upload {
    shared: Arc<Shared>,
}

/// What was achieved when the thread stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether the last upload came to its end in time, whatever that was.
    pub finished: bool,
    /// Whether it delivered all that the spool held.
    pub emptied: bool,
}

#[derive(Debug)]
struct Shared {
    signals: Mutex<Signals>,
    changed: Condvar,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Signals {
    wake: bool,
    /// Read the certificate files anew, and upload.
    reload: bool,
    /// Stop, and be finished by then.
    deadline: Option<Instant>,
    done: Option<Report>,
    /// The HTTP client in use, for interrupting it.
    agent: Option<ureq::Agent>,
}

impl Shared {
    fn signals(&self) -> MutexGuard<'_, Signals> {
        // Each change is one assignment: there is nothing half done.
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread. It owns `reader` from now on.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn(settings: Settings, reader: Reader) -> std::io::Result<Upload> {
    let shared = Arc::new(Shared {
        signals: Mutex::default(),
        changed: Condvar::new(),
        counters: Counters::default(),
    });
    let Settings { collector, credentials, clock, sealer, timeouts, budget, meter } = settings;
    let client = Client::new(&collector, credentials, clock, sealer, timeouts);
    // Whoever looks before the thread does finds no zeros.
    shared.counters.certificate(client.days_left());
    shared.counters.link(client.traffic(), budget.standing());
    let mut worker = Worker::new(Arc::clone(&shared), &collector, client, reader, budget, meter);
    thread::Builder::new().name("upload".into()).spawn(move || worker.run())?;
    Ok(Upload { shared })
}

impl Upload {
    /// Much is spooled: upload now. During a back-off this changes nothing.
    pub fn wake(&self) {
        self.shared.signals().wake = true;
        self.shared.changed.notify_all();
    }

    /// Read the certificate files anew, and upload with them now, also during a back-off.
    pub fn reload(&self) {
        self.shared.signals().reload = true;
        self.shared.changed.notify_all();
    }

    /// Counters of the thread, at any time.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Lets the thread try to empty the spool once more, and stops it, by `deadline` and
    /// a second at most.
    pub fn shutdown(&self, deadline: Instant) -> Report {
        self.shared.signals().deadline = Some(deadline);
        self.shared.changed.notify_all();
        if let Some(report) = self.done_by(deadline) {
            return report;
        }
        let agent = self.shared.signals().agent.take();
        if let Some(agent) = agent {
            agent.shutdown();
        }
        self.done_by(deadline + GRACE).unwrap_or_default()
    }

    fn done_by(&self, deadline: Instant) -> Option<Report> {
        let mut signals = self.shared.signals();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if signals.done.is_some() || left.is_zero() {
                return signals.done;
            }
            let waited = self.shared.changed.wait_timeout(signals, left);
            signals = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
