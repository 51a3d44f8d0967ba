//! What the collector counts about itself since it started: the content of `GET /v1/health`.
//!
//! Counters only grow. Names of reasons are part of the program, so the maps are bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// Counts by name.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// Everything that is counted.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Counters {
    /// Frames made durable.
    pub(crate) frames_stored: u64,
    /// Frames that were sent again.
    pub(crate) frames_duplicate: u64,
    /// Uploads taken.
    pub(crate) uploads: u64,
    /// Requests answered with an error, by its kind.
    pub(crate) refused: Counts,
    /// Connections that ended in the TLS handshake, by reason.
    pub(crate) handshakes_refused: Counts,
    /// Agents heard since the start.
    pub(crate) agents: usize,
    /// What became of the frames.
    pub(crate) sysflow: SysflowCounters,
}

/// What the compactor counts.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SysflowCounters {
    /// `.sf` files written, rewritten ones included.
    pub(crate) files_written: u64,
    /// Generations whose frames go on behind a gap; they wait for the missing ones.
    pub(crate) generations_waiting: usize,
    /// Generations that cannot be turned into a `.sf` file; the log says why.
    pub(crate) generations_broken: usize,
    /// Records of finished generations that a `.sf` file cannot say, by reason.
    pub(crate) left_out: Counts,
}

/// The counters, shared.
#[derive(Default)]
pub(crate) struct Health(Mutex<Counters>);

impl Health {
    /// Changes counters.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Counters)) {
        // Numbers stay numbers, whatever happened to the thread that held the lock.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The counters as they are now.
    pub(crate) fn snapshot(&self) -> Counters {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Adds one to the count of `name`.
pub(crate) fn count(counts: &mut Counts, name: &'static str) {
    *counts.entry(name).or_default() += 1;
}
