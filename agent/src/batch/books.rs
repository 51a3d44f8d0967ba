//! The ledger of a run: totals of operations by kind and term. Fixed in size; it counts what it is
//! told, and knows nothing of frames but which counters they have not told.

use codec::{Counter, Ledger, Operation, Term};

/// Totals of operations by kind and term, since the start of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    totals: [[u64; Term::ALL.len()]; Operation::ALL.len()],
    /// Losses of whole records, which have no kind.
    records_lost: [u64; Term::ALL.len()],
}

impl Default for Books {
    fn default() -> Self {
        Books {
            totals: [[0; Term::ALL.len()]; Operation::ALL.len()],
            records_lost: [0; Term::ALL.len()],
        }
    }
}

impl Books {
    /// Adds operations to a term.
    pub fn add(&mut self, operation: Operation, term: Term, count: u64) {
        self.totals[operation as usize][term as usize] += count;
    }

    /// Sets a term that is counted elsewhere (in the kernel) to its total.
    pub fn set(&mut self, operation: Operation, term: Term, total: u64) {
        self.totals[operation as usize][term as usize] = total;
    }

    /// Adds lost records.
    pub fn add_lost_records(&mut self, term: Term, count: u64) {
        self.records_lost[term as usize] += count;
    }

    /// Sets lost records that are counted elsewhere to their total.
    pub fn set_lost_records(&mut self, term: Term, total: u64) {
        self.records_lost[term as usize] = total;
    }

    /// The total of a term over all kinds; for losses of records their number.
    pub fn sum(&self, term: Term) -> u64 {
        let operations: u64 = self.totals.iter().map(|terms| terms[term as usize]).sum();
        operations + self.records_lost[term as usize]
    }

    /// The total of a term.
    pub fn total(&self, operation: Operation, term: Term) -> u64 {
        self.totals[operation as usize][term as usize]
    }

    /// The counters that differ from `told`.
    pub(super) fn changes(&self, told: &Books) -> Ledger {
        let mut ledger = Ledger::new();
        for operation in Operation::ALL {
            for term in Term::ALL {
                let total = self.total(operation, term);
                if total != told.total(operation, term) {
                    // The ledger has room for all.
                    let _ = ledger.push(Counter { operation: Some(operation), term, total });
                }
            }
        }
        for term in Term::ALL {
            let total = self.records_lost[term as usize];
            if total != told.records_lost[term as usize] {
                let _ = ledger.push(Counter { operation: None, term, total });
            }
        }
        ledger
    }
}
