//! The act of collecting records into frames. Owns the frame buffer, the sequence, the
//! generation and the ledger that travels in the header. Records come in, finished frames go
//! out through a callback. Bound: one frame. It reads no clock and knows no file.

use codec::{
    Capabilities, Clock, Counter, EncodeError, Farewell, FormerRun, FrameWriter, GenerationStart,
    Header, Interruption, Ledger, Operation, Record, StreamKey, Suspended, Term,
};

/// Room for prefix, header and checksum beside the records.
const HEADER_ROOM_BYTES: usize = 10 * 1024;

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

/// Totals of operations by kind and term, since the start of the run.
#[derive(Clone, Debug)]
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
    fn changes(&self, told: &Books) -> Ledger {
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
        self.frame_bytes_max + HEADER_ROOM_BYTES + 2 * size_of::<Books>()
    }
}

/// Where finished frames go, oldest first.
pub trait Sink {
    /// Takes a frame, whole and alone in `frame`.
    fn frame(&mut self, frame: &[u8]) -> Kept;
}

impl<S: Sink> Sink for std::rc::Rc<std::cell::RefCell<S>> {
    fn frame(&mut self, frame: &[u8]) -> Kept {
        self.borrow_mut().frame(frame)
    }
}

impl Sink for Vec<Vec<u8>> {
    fn frame(&mut self, frame: &[u8]) -> Kept {
        self.push(frame.to_vec());
        Kept::default()
    }
}

/// What became of a frame, and of others to make room for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept {
    /// Records lost, and why.
    pub lost: Option<(Term, u64)>,
    /// Whether frames of this generation may be missing: the next begins at the next chance,
    /// since a collector takes a generation only from its start.
    pub restart: bool,
}

/// Collects records into frames.
pub struct Batch {
    identity: Identity,
    limits: Limits,
    capabilities: Capabilities,
    buffer: Vec<u8>,
    state: Suspended,
    sequence: u64,
    generation: u32,
    generation_records: u32,
    generation_started: bool,
    clock: Clock,
    clock_told: Option<Clock>,
    interruption: Option<Interruption>,
    former: Option<FormerRun>,
    farewell: Option<Farewell>,
    /// The ledger.
    pub books: Books,
    books_told: Books,
    sink: Box<dyn Sink>,
    restart: bool,
    last_ns: u64,
    pending_since_ns: Option<u64>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Batch { generation, sequence, state, .. } = self;
        write!(f, "Batch at frame {sequence} of generation {generation}, {state:?}")
    }
}

impl Batch {
    /// An empty batch, at sequence 0 of generation 0.
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
            buffer: vec![0; limits.frame_bytes_max + HEADER_ROOM_BYTES],
            identity,
            limits,
            capabilities,
            state: Suspended::default(),
            sequence: 0,
            generation: 0,
            generation_records: 0,
            generation_started: false,
            clock,
            clock_told: None,
            interruption,
            former,
            farewell: None,
            books: Books::default(),
            books_told: Books::default(),
            sink,
            restart: false,
            last_ns: 0,
            pending_since_ns: None,
        }
    }

    /// The current generation: entities written in another one are written again.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// To be called between records that do not refer to each other: ends the generation if it
    /// is full, or frames of it are missing.
    pub fn between(&mut self) {
        if self.restart || self.generation_records >= self.limits.generation_records_max {
            self.restart_generation();
        }
    }

    /// Ends the generation: the next frame begins a new one.
    pub fn restart_generation(&mut self) {
        self.finish();
        self.restart = false;
        self.generation += 1;
        self.generation_records = 0;
        self.generation_started = false;
        self.books_told = Books::default();
        self.clock_told = None;
    }

    /// Tells how the boot clock maps to wall time now.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Appends a record; finishes the frame first if it has no room. Returns whether the record
    /// is in: one that fits into no frame is not, and the caller counts it.
    #[must_use]
    pub fn push(&mut self, record: &Record<'_>) -> bool {
        for _ in 0..2 {
            let Ok(mut writer) = FrameWriter::resume(&mut self.buffer, self.state) else {
                return false;
            };
            let result = writer.push(record);
            self.state = writer.suspend();
            match result {
                Ok(()) => {
                    self.generation_records += 1;
                    self.last_ns = self.last_ns.max(record.time_ns().unwrap_or(0));
                    if let Some(start_ns) = record.start_ns() {
                        let since_ns = self.pending_since_ns.unwrap_or(start_ns);
                        self.pending_since_ns = Some(since_ns.min(start_ns));
                    }
                    if self.state.body_bytes() >= self.limits.frame_bytes_max {
                        self.finish();
                    }
                    return true;
                }
                Err(EncodeError::Full) => self.finish(),
                Err(EncodeError::TooLarge) => return false,
            }
        }
        false
    }

    /// Start of the oldest thing that a record of the unfinished frame tells, boot clock, ns.
    pub fn pending_since_ns(&self) -> Option<u64> {
        self.pending_since_ns
    }

    /// Records in the unfinished frame.
    pub fn pending(&self) -> u32 {
        self.state.records()
    }

    /// Finishes the last frame of the run, which says that it is the last one. `now_ns` is on the
    /// boot clock.
    pub fn close(&mut self, now_ns: u64) {
        self.farewell = Some(Farewell { at_ns: now_ns });
        self.finish();
    }

    /// Finishes the frame, if there is anything to say: records, or counters that moved.
    pub fn finish(&mut self) {
        if self.farewell.is_some() {
            // Final totals do not hang on frames that may be lost on the way.
            self.books_told = Books::default();
        }
        let ledger = self.books.changes(&self.books_told);
        if self.state.records() == 0 && ledger.is_empty() && self.farewell.is_none() {
            return;
        }
        let identity = &self.identity;
        let mut run_tag = [0; 8];
        run_tag.copy_from_slice(&identity.run_id[..8]);
        let first = !self.generation_started;
        let header = Header {
            key: StreamKey { run_tag, class: 0, sequence: self.sequence },
            generation: self.generation,
            first_ns: self.last_ns,
            last_ns: self.last_ns,
            records: 0,
            start: first.then_some(GenerationStart {
                agent_id: &identity.agent_id,
                boot_id: identity.boot_id,
                run_id: identity.run_id,
                agent_version: env!("CARGO_PKG_VERSION"),
                kernel: &identity.kernel,
                machine: &identity.machine,
            }),
            clock: (self.clock_told != Some(self.clock)).then_some(self.clock),
            ledger,
            // In every generation, since a frame can be lost; receivers know it by its run.
            interruption: if first { self.interruption } else { None },
            capabilities: first.then_some(self.capabilities),
            farewell: self.farewell.take(),
            former: if first { self.former } else { None },
        };
        let Ok(writer) = FrameWriter::resume(&mut self.buffer, self.state) else {
            return;
        };
        if let Ok(frame) = writer.finish(&header) {
            let kept = self.sink.frame(frame);
            self.sequence += 1;
            self.generation_started = true;
            self.clock_told = Some(self.clock);
            self.books_told = self.books.clone();
            if let Some((term, records)) = kept.lost {
                self.books.add_lost_records(term, records);
            }
            self.restart |= kept.restart;
        }
        self.state = Suspended::default();
        self.pending_since_ns = None;
    }
}
