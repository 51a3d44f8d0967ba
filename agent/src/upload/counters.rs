//! What the upload thread counts, for the ledger and the status file.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use codec::{CLASSES, Class};
use serde::{Deserialize, Serialize};

use super::answer::Refusal;
use crate::day_budget::Standing;
use crate::spool::Settled;

/// Counters since the start of the thread. Each is read on its own.
#[derive(Debug, Default)]
pub struct Counters {
    uploads: AtomicU64,
    frames: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    refused_records: [AtomicU64; Refusal::ALL.len()],
    damaged_records: AtomicU64,
    generations_lost: [AtomicU64; CLASSES],
    last_success_unix_s: AtomicU64,
    failures: AtomicU32,
    certificate_days_left: AtomicI64,
    link_bytes: AtomicU64,
    budget: Mutex<Standing>,
    last_error: Mutex<String>,
}

/// The counters at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Bodies that the collector took.
    pub uploads: u64,
    /// Frames delivered.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records in frames that the collector refused for good, by reason.
    pub refused_records: BTreeMap<String, u64>,
    /// Records that were in the spool and could not be read back.
    pub damaged_records: u64,
    /// When the collector took something last (Unix time, s); 0: never.
    pub last_success_unix_s: u64,
    /// Failures in a row.
    pub failures: u32,
    /// The last failure; empty while all is well.
    pub last_error: String,
    /// Days until the device's certificate is over; negative afterwards.
    pub certificate_days_left: i64,
    /// Bytes that went over the link, both ways, handshakes and repeats included.
    pub link_bytes: u64,
    /// What the link may carry a day, bytes; 0: unlimited.
    pub bytes_per_day: u64,
    /// What it has carried in the present day, bytes.
    pub day_spent_bytes: u64,
    /// Until the next day begins, s.
    pub next_day_s: u64,
}

impl Counters {
    /// Records that the collector refused for good: `Term::LostRefused`.
    pub fn refused_records(&self) -> u64 {
        self.refused_records.iter().map(|records| records.load(Ordering::Relaxed)).sum()
    }

    /// Records that were in the spool and could not be read back: `Term::LostSpoolError`.
    pub fn damaged_records(&self) -> u64 {
        self.damaged_records.load(Ordering::Relaxed)
    }

    /// Generations of a class of which the collector does not hold the start. Whenever this has
    /// grown, the event thread begins a new one.
    pub fn generations_lost(&self, class: Class) -> u64 {
        self.generations_lost[class as usize].load(Ordering::Relaxed)
    }

    /// What the link carried today, in percent of an even spending of its budget.
    pub fn link_pressure_percent(&self) -> u32 {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).pressure_percent
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        let records = self.records.load(Ordering::Acquire);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let budget = *self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = Refusal::ALL.iter().zip(&self.refused_records);
        Snapshot {
            uploads: read(&self.uploads),
            frames: read(&self.frames),
            records,
            bytes: read(&self.bytes),
            refused_records: refused
                .map(|(refusal, records)| (refusal.name().to_string(), read(records)))
                .filter(|(_, records)| *records > 0)
                .collect(),
            damaged_records: read(&self.damaged_records),
            last_success_unix_s: read(&self.last_success_unix_s),
            failures: self.failures.load(Ordering::Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            certificate_days_left: self.certificate_days_left.load(Ordering::Relaxed),
            link_bytes: read(&self.link_bytes),
            bytes_per_day: budget.bytes_per_day,
            day_spent_bytes: budget.spent,
            next_day_s: budget.next_day_s,
        }
    }

    pub(super) fn succeed(&self, settled: &Settled, now_s: u64) {
        self.fail(0, String::new());
        // The records last: who sees them sees the rest.
        self.uploads.fetch_add(1, Ordering::Relaxed);
        self.frames.fetch_add(settled.frames, Ordering::Relaxed);
        self.bytes.fetch_add(settled.bytes, Ordering::Relaxed);
        self.last_success_unix_s.store(now_s, Ordering::Relaxed);
        self.records.fetch_add(settled.records, Ordering::Release);
    }

    pub(super) fn fail(&self, failures: u32, text: String) {
        self.failures.store(failures, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub(super) fn refuse(&self, refusal: Refusal, records: u64) {
        let index = Refusal::ALL.iter().position(|one| *one == refusal);
        if let Some(counter) = index.and_then(|index| self.refused_records.get(index)) {
            counter.fetch_add(records, Ordering::Relaxed);
        }
    }

    pub(super) fn lose_generation(&self, class: u8) {
        if let Some(lost) = self.generations_lost.get(usize::from(class)) {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn damage(&self, total: u64) {
        self.damaged_records.store(total, Ordering::Relaxed);
    }

    pub(super) fn link(&self, bytes: u64, standing: Standing) {
        self.link_bytes.store(bytes, Ordering::Relaxed);
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    pub(super) fn certificate(&self, days_left: i64) {
        self.certificate_days_left.store(days_left, Ordering::Relaxed);
    }
}
