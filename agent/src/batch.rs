//! The act of collecting records into frames. Owns of each class a frame buffer, the sequence and
//! the generation, and the ledger that travels in the header. Records come in, finished frames go
//! out through a callback. Bound: one frame a class. It reads no clock and knows no file.
//!
//! All that is said of the run itself travels in urgent frames: the ledger, former runs,
//! tombstones, the farewell. So the books do not wait for what can wait, are not lost with what
//! the quota takes first, and no counter is in two streams, whose sums would then be wrong.

mod books;
mod lane;

use codec::{
    CLASSES, Capabilities, Class, Clock, Farewell, FormerRun, GenerationStart, Header,
    Interruption, Ledger, Record, Signature, StepChange, Steps, StreamKey, Term, Tombstones,
};

use crate::tombstones::Graveyard;
pub use books::Books;
use lane::{Lane, Pushed};

/// Who this agent is, for the first frame of each generation.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The device's name.
    pub agent_id: String,
    /// The kernel's boot id.
    pub boot_id: [u8; 16],
    /// Random, one for each start of the agent.
    pub run_id: [u8; 16],
    /// Kernel release.
    pub kernel: String,
    /// Machine.
    pub machine: String,
}

/// Bounds of frames and generations.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a frame.
    pub frame_bytes_max: usize,
    /// Records after which a generation ends at the next chance.
    pub generation_records_max: u32,
}

impl Limits {
    /// Bytes that a batch takes.
    pub fn memory_bytes(&self) -> usize {
        let lanes = Class::ALL.map(|class| Lane::memory_bytes(class, self.frame_bytes_max));
        lanes.iter().sum::<usize>() + 2 * size_of::<Books>()
    }
}

/// Where finished frames go, oldest first.
pub trait Sink {
    /// Takes a frame of a class, whole and alone in `frame`.
    fn frame(&mut self, class: Class, frame: &[u8]) -> Kept;
}

impl<S: Sink> Sink for std::rc::Rc<std::cell::RefCell<S>> {
    fn frame(&mut self, class: Class, frame: &[u8]) -> Kept {
        self.borrow_mut().frame(class, frame)
    }
}

impl Sink for Vec<Vec<u8>> {
    fn frame(&mut self, _: Class, frame: &[u8]) -> Kept {
        self.push(frame.to_vec());
        Kept::default()
    }
}

/// Signs what generations were.
pub trait Signer {
    /// The signature of a message; none if there is no key for it.
    fn sign(&mut self, message: &[u8]) -> Option<Signature>;
}

/// What became of a frame, and of others to make room for it.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Records lost, and why.
    pub lost: [Option<(Term, u64)>; 2],
    /// By class, whether frames of its generation may be missing, or it should end here: the next
    /// begins at the next chance, since a collector takes a generation only from its start.
    pub restart: [bool; CLASSES],
    /// Which frames were dropped: the next urgent frame tells of them.
    pub dropped: Graveyard,
}

/// Collects records into frames.
pub struct Batch {
    identity: Identity,
    limits: Limits,
    capabilities: Capabilities,
    lanes: [Lane; CLASSES],
    clock: Clock,
    interruption: Option<Interruption>,
    former: Option<FormerRun>,
    farewell: Option<Farewell>,
    /// The ledger.
    pub books: Books,
    books_told: Books,
    /// Frames that the device dropped, in this run or before it.
    dropped: Graveyard,
    dropped_told: bool,
    /// The step of the ladder that holds, once one was taken.
    step: Option<StepChange>,
    /// Changes that no frame has told.
    steps: Steps,
    signer: Option<Box<dyn Signer>>,
    sink: Box<dyn Sink>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Lane { class, generation, sequence, .. } in &self.lanes {
            write!(f, "{} frame {sequence} of generation {generation}; ", class.name())?;
        }
        Ok(())
    }
}

impl Batch {
    /// An empty batch, at sequence 0 of generation 0 of each class.
    pub fn new(
        identity: Identity,
        limits: Limits,
        capabilities: Capabilities,
        clock: Clock,
        interruption: Option<Interruption>,
        former: Option<FormerRun>,
        sink: Box<dyn Sink>,
    ) -> Batch {
        Batch {
            lanes: Class::ALL.map(|class| Lane::new(class, limits.frame_bytes_max)),
            identity,
            limits,
            capabilities,
            clock,
            interruption,
            former,
            farewell: None,
            books: Books::default(),
            books_told: Books::default(),
            dropped: Graveyard::default(),
            dropped_told: true,
            step: None,
            steps: Steps::new(),
            signer: None,
            sink,
        }
    }

    /// Has the seals of generations signed.
    pub fn sign_with(&mut self, signer: Box<dyn Signer>) {
        self.signer = Some(signer);
    }

    fn lane(&self, class: Class) -> &Lane {
        &self.lanes[class as usize]
    }

    fn lane_mut(&mut self, class: Class) -> &mut Lane {
        &mut self.lanes[class as usize]
    }

    /// The current generation of a class: entities written in another one are written again.
    pub fn generation(&self, class: Class) -> u32 {
        self.lane(class).generation
    }

    /// To be called between records that do not refer to each other: ends a generation if it
    /// is full, or frames of it are missing.
    pub fn between(&mut self) {
        for class in Class::ALL {
            let lane = self.lane(class);
            if lane.restart || lane.generation_records >= self.limits.generation_records_max {
                self.restart_generation(class);
            }
        }
    }

    /// Ends the generation of a class: the next frame begins a new one.
    pub fn restart_generation(&mut self, class: Class) {
        self.finish(class);
        let Identity { agent_id, boot_id, run_id, .. } = &self.identity;
        let signer = &mut self.signer;
        self.lanes[class as usize].restart(|seal| {
            let message = seal.message(agent_id, boot_id, run_id, class as u8)?;
            signer.as_mut()?.sign(&message)
        });
        if class == Class::Urgent {
            self.books_told = Books::default();
        }
    }

    /// Frames that were dropped and that no frame has told of.
    pub fn tell_dropped(&mut self, dropped: &Graveyard) {
        self.dropped.extend(dropped.stones());
        self.dropped_told &= dropped.is_empty();
    }

    /// Tells that a step of the ladder is taken, in a frame of its own if there is none to finish.
    pub fn tell_step(&mut self, change: StepChange) {
        self.step = Some(change);
        if self.steps.push(change).is_err() {
            // The frame that has them makes room.
            self.finish(Class::Urgent);
            let _ = self.steps.push(change);
        }
        self.finish(Class::Urgent);
    }

    /// Tells how the boot clock maps to wall time now.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Appends a record to the frame of a class; finishes the frame first if it has no room.
    /// Returns whether the record is in: one that fits into no frame is not, and the caller
    /// counts it.
    #[must_use]
    pub fn push(&mut self, class: Class, record: &Record<'_>) -> bool {
        for _ in 0..2 {
            match self.lane_mut(class).push(record) {
                Pushed::In => return true,
                Pushed::Full => {
                    self.finish(class);
                    return true;
                }
                Pushed::NoRoom => self.finish(class),
                Pushed::TooLarge => return false,
            }
        }
        false
    }

    /// Start of the oldest thing that a record of an unfinished frame tells, boot clock, ns.
    pub fn pending_since_ns(&self) -> Option<u64> {
        self.lanes.iter().filter_map(|lane| lane.pending_since_ns).min()
    }

    /// Records in the unfinished frame of a class.
    pub fn pending(&self, class: Class) -> u32 {
        self.lane(class).pending()
    }

    /// Makes the first urgent frame of the run, of what is known at its beginning: what a run tells of
    /// those before it is not to wait for something to happen, since the run may be cut short, too.
    /// `begins_ns` is when the run began to watch, boot clock: runs are in order by it.
    pub fn open(&mut self, begins_ns: u64) {
        self.lane_mut(Class::Urgent).last_ns = begins_ns;
        self.make(Class::Urgent);
    }

    /// Finishes the last frames of the run: of each class one that has the seal of all before it,
    /// the urgent one of which says that the run ends, and how many frames there are. `now_ns` is on
    /// the boot clock.
    pub fn close(&mut self, now_ns: u64) {
        for class in Class::ALL {
            self.restart_generation(class);
        }
        if self.lane(Class::Volume).seal.is_some() {
            self.make(Class::Volume);
        }
        let mut frames = self.lanes.each_ref().map(|lane| lane.sequence);
        // This one included.
        frames[Class::Urgent as usize] += 1;
        self.farewell = Some(Farewell { at_ns: now_ns, frames });
        self.finish(Class::Urgent);
    }

    /// Finishes the frame of a class, if there is anything to say: records, or counters that
    /// moved.
    pub fn finish(&mut self, class: Class) {
        let has_news = || {
            self.farewell.is_some()
                || !self.dropped_told
                || !self.steps.is_empty()
                || self.books != self.books_told
        };
        if self.pending(class) > 0 || (class == Class::Urgent && has_news()) {
            self.make(class);
        }
    }

    /// Makes the frame of a class, also of no records.
    fn make(&mut self, class: Class) {
        let is_urgent = class == Class::Urgent;
        let farewell = if is_urgent { self.farewell.take() } else { None };
        if farewell.is_some() {
            // Final totals do not hang on frames that may be lost on the way.
            self.books_told = Books::default();
        }
        let ledger =
            if is_urgent { self.books.changes(&self.books_told) } else { Ledger::default() };
        let lane = &mut self.lanes[class as usize];
        let has_dropped = is_urgent && !self.dropped_told;
        let identity = &self.identity;
        let mut run_tag = [0; 8];
        run_tag.copy_from_slice(&identity.run_id[..8]);
        let first = !lane.generation_started;
        // In every urgent generation, since a frame can be lost; receivers know it by its run.
        let tells_of_runs = first && is_urgent;
        let mut steps = Steps::new();
        if is_urgent {
            let is_told = |change: &StepChange| self.steps.contains(change);
            // The last one again, also the one back to everything: its frame may be lost. Where
            // the new ones take all the room, it is among them.
            let again = self.step.filter(|change| tells_of_runs && !is_told(change));
            steps.extend(again.into_iter().chain(self.steps.iter().copied()));
            self.steps.clear();
        }
        let header = Header {
            key: StreamKey { run_tag, class: class as u8, sequence: lane.sequence },
            generation: lane.generation,
            first_ns: lane.last_ns,
            last_ns: lane.last_ns,
            records: 0,
            start: first.then_some(GenerationStart {
                agent_id: &identity.agent_id,
                boot_id: identity.boot_id,
                run_id: identity.run_id,
                agent_version: env!("CARGO_PKG_VERSION"),
                kernel: &identity.kernel,
                machine: &identity.machine,
            }),
            clock: (lane.clock_told != Some(self.clock)).then_some(self.clock),
            ledger,
            interruption: if tells_of_runs { self.interruption } else { None },
            capabilities: first.then_some(self.capabilities),
            farewell,
            former: if tells_of_runs { self.former } else { None },
            tombstones: if tells_of_runs || has_dropped {
                self.dropped.stones().clone()
            } else {
                Tombstones::new()
            },
            seal: if first { lane.seal } else { None },
            signature: if first { lane.signature.clone() } else { None },
            steps,
        };
        let records = u64::from(lane.pending());
        let clock_told = lane.clock_told.replace(self.clock);
        let Some(frame) = lane.finish(&header) else {
            // Its header has no room for what it says.
            lane.clock_told = clock_told;
            self.books.add_lost_records(Term::LostEncoding, records);
            return;
        };
        let kept = self.sink.frame(class, frame);
        if is_urgent {
            self.books_told = self.books.clone();
            self.dropped_told = true;
        }
        self.tell_dropped(&kept.dropped);
        for (term, records) in kept.lost.into_iter().flatten() {
            self.books.add_lost_records(term, records);
        }
        for (lane, restart) in self.lanes.iter_mut().zip(kept.restart) {
            lane.restart |= restart;
        }
    }
}
