//! The path of events: what the ring holds goes through the engine, and what the kernel counts is
//! read beside it. After its start it takes no memory; a test counts that.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bpf::{FlowKey, Probes, Ring};
use codec::{Operation, Term};

use super::Error;
use crate::engine::{Counters, Engine, Last, Taken};
use crate::flow::Totals;
use crate::logger::RateLimit;

/// That events cannot be read is said so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

const OPERATIONS: [(bpf::Operation, Operation); Operation::ALL.len()] = {
    let mut pairs = [(bpf::Operation::Clone, Operation::Clone); Operation::ALL.len()];
    let mut i = 0;
    while i < pairs.len() {
        pairs[i] = (bpf::Operation::ALL[i], Operation::ALL[i]);
        i += 1;
    }
    pairs
};

struct Kernel(Rc<Probes>);

impl Counters for Kernel {
    fn take(&self, key: &FlowKey, flow_ns: u64) -> Taken {
        if self.0.flow(key).is_none_or(|entry| entry.flow_ns != flow_ns) {
            return Taken::Ended;
        }
        let Some(entry) = self.0.take_flow(key) else { return Taken::Ended };
        let totals = Totals::new(&entry.volume, entry.shutdown, entry.mmaps);
        let last = Last { totals, ended: entry.ended };
        match entry.flow_ns {
            taken_ns if taken_ns == flow_ns => Taken::Flow(last),
            taken_ns => Taken::Younger(taken_ns, last),
        }
    }
}

/// Ring, engine and the kernel's counters, put together.
pub struct EventPath {
    /// Where events go; borrowed only between two drains.
    pub engine: Rc<RefCell<Engine>>,
    /// When the kernel's flows were read last, boot clock, ns.
    pub(super) swept_ns: Cell<u64>,
    pub(super) ring: Ring<'static>,
    probes: Rc<Probes>,
    kernel: Rc<Kernel>,
}

impl fmt::Debug for EventPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventPath").field("swept_ns", &self.swept_ns.get()).finish_non_exhaustive()
    }
}

impl EventPath {
    /// Maps the ring.
    ///
    /// # Errors
    /// [`Error::Probes`] if it cannot be mapped.
    pub fn new(probes: Rc<Probes>, engine: Engine) -> Result<EventPath, Error> {
        let kernel = Rc::new(Kernel(Rc::clone(&probes)));
        let engine = Rc::new(RefCell::new(engine));
        let (observer, counters) = (Rc::clone(&engine), Rc::clone(&kernel));
        let mut complaint = RateLimit::new(COMPLAINT_INTERVAL);
        let ring = probes
            .ring(move |bytes| {
                if !observer.borrow_mut().observe_bytes(bytes, counters.as_ref())
                    && let Some(repeated) = complaint.admit(Instant::now())
                {
                    log::error!(
                        "an event of the probes cannot be read, and is lost: agent and probes \
                         differ ({repeated} more since the last complaint)"
                    );
                }
            })
            .map_err(Error::Probes)?;
        Ok(EventPath { engine, swept_ns: Cell::new(super::boot_ns()), ring, probes, kernel })
    }

    /// Has the engine observe all that is in the ring.
    pub fn drain(&self) {
        self.ring.drain();
    }

    /// Reads the flows that the kernel counts, and exports what is due at `now_ns`, boot clock.
    ///
    /// # Errors
    /// [`Error::Probes`] if the kernel does not let them be read.
    pub fn sweep(&self, now_ns: u64) -> Result<(), Error> {
        self.swept_ns.set(now_ns);
        let mut engine = self.engine.borrow_mut();
        self.probes
            .each_flow(|entry| engine.sweep(&entry, now_ns, self.kernel.as_ref()))
            .map_err(Error::Probes)?;
        engine.expire(now_ns);
        tell_tallies(&mut engine, &self.probes);
        Ok(())
    }
}

/// Brings the kernel side's terms of the ledger up to date.
pub(super) fn tell_tallies(engine: &mut Engine, probes: &Probes) {
    for (kernel, operation) in OPERATIONS {
        let tally = probes.tally(kernel);
        for (term, total) in [
            (Term::Observed, tally.observed),
            (Term::Filtered, tally.filtered),
            (Term::Own, tally.own),
            (Term::LostRing, tally.lost_ring),
            (Term::LostMap, tally.lost_map),
            (Term::LostUnreadable, tally.lost_unreadable),
            (Term::LostShed, tally.lost_shed),
        ] {
            engine.batch.books.set(operation, term, total);
        }
    }
}
