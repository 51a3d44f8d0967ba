//! Where kernel words become SysFlow words: events go in, records go into the batch, each
//! behind the entities that it refers to, ancestors first. Bounds: the tables of processes, flows,
//! files and containers. A flow that finds no place makes one by the export of the flow that was
//! idle longest, and so does a process; a file or container that finds none is written again each
//! time. All memory is
//! taken at start. The same events give the same records: it reads no clock, file or map except
//! through [`Counters`].

mod events;
mod flows;
mod object;
mod processes;
mod records;
mod summaries;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use bpf::{Event, FlowKey, Header, SocketState};
use codec::{CLASSES, Class, EndReason, FileId, Oid, Operation, Step, Subject, Term, op};

use crate::batch::Batch;
use crate::entity::{Process, Processes};
use crate::flow::{Flow, Object, Totals};
use crate::privacy::Privacy;
use crate::table::{Table, hash_map_bytes};
use events::Arguments;
pub use processes::container_id;
use summaries::{Meters, SUMMARIES_MAX, Scope, Sum};

/// Attempts to connect that are remembered until their flow begins: it is in the ring right behind.
const REFUSED_MAX: usize = 64;
/// How long after its beginning a flow may be unknown because its event is still in the ring, ns.
const UNKNOWN_AGE_MAX_NS: u64 = 1_000_000_000;
/// Containers that are known in one generation of a class.
const CONTAINERS_MAX: usize = 256;
/// Flows that may be taken out of the kernel's map before their start has come out of the ring.
const EARLY_MAX: usize = 64;
/// Room for the texts of one event, bytes: the kernel side sends at most 20,480, and masking a
/// secret can make a text half as long again.
const BUFFER_BYTES: usize = 32 * 1024;
/// Fields of [`Buffers`].
const BUFFERS: usize = 4;

/// The kernel's flow counters, as far as the engine needs them.
pub trait Counters {
    /// Removes a flow from the kernel's map.
    fn take(&self, key: &FlowKey, flow_ns: u64) -> Taken;
}

/// What the kernel's map had of a flow when it was taken out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    /// Its totals.
    pub totals: Totals,
    /// How it ended ([`bpf::flow`]), if that found no room in the ring, else 0.
    pub ended: u8,
}

/// What came of taking a flow out of the kernel's map.
#[derive(Clone, Copy, Debug)]
pub enum Taken {
    /// It, as it was.
    Flow(Last),
    /// It had given way to a younger one just then, which is taken out in its place: when that
    /// began names it, with the key.
    Younger(u64, Last),
    /// It is no longer there: the kernel side has ended it, and the event is in the ring.
    Ended,
}

/// Timeouts, ns.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A flow in which nothing happened for so long is told as idle.
    pub idle_ns: u64,
    /// A flow that goes on is told so often.
    pub active_ns: u64,
}

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Flows.
    pub flows_max: usize,
    /// Processes.
    pub processes_max: usize,
    /// Files of one generation.
    pub files_max: usize,
    /// Bytes of the texts of processes and flows.
    pub text_bytes: usize,
}

impl Bounds {
    /// Bytes that an engine takes.
    pub fn memory_bytes(&self) -> usize {
        Bounds::flows_bytes(self.flows_max)
            + Bounds::processes_bytes(self.processes_max)
            + self.text_bytes
            + Bounds::files_bytes(self.files_max)
            + Bounds::fixed_bytes()
    }

    /// Bytes that an engine takes for so many flows.
    pub fn flows_bytes(flows_max: usize) -> usize {
        Table::<FlowKey, Flow>::memory_bytes(flows_max) + flows_max * size_of::<(u64, FlowKey)>()
    }

    /// Bytes that an engine takes for so many processes, their texts apart.
    pub fn processes_bytes(processes_max: usize) -> usize {
        Processes::memory_bytes(processes_max) + processes_max * size_of::<Oid>()
    }

    /// Bytes that an engine takes for so many files of a generation.
    pub fn files_bytes(files_max: usize) -> usize {
        hash_map_bytes::<u64, FileId>(files_max)
    }

    /// Bytes that an engine takes with any bounds.
    pub fn fixed_bytes() -> usize {
        BUFFERS * BUFFER_BYTES
            + CLASSES * hash_map_bytes::<u64, u32>(CONTAINERS_MAX)
            + REFUSED_MAX * size_of::<SocketState>()
            + Meters::BYTES
            + Table::<(Scope, Subject), Sum>::memory_bytes(SUMMARIES_MAX)
    }
}

/// Where texts are put together. Each is taken for as long as it is in use, so that two uses at
/// one time would show as an allocation.
#[derive(Debug)]
struct Buffers {
    /// Paths of the event at hand.
    paths: Vec<u8>,
    /// Arguments of the event at hand.
    args: Vec<u8>,
    /// The same, their secrets masked.
    masked: Vec<u8>,
    /// Texts of an entity that is written.
    entity: Vec<u8>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    /// Processes.
    pub processes: Processes,
    /// Records and ledger.
    pub batch: Batch,
    /// Names of users and groups on this device.
    pub users: Users,
    flows: Table<FlowKey, Flow>,
    files: HashMap<u64, FileId>,
    files_max: usize,
    /// Files written in this generation of volumes.
    files_told: u32,
    containers: [Containers; CLASSES],
    hasher: RandomState,
    timeouts: Timeouts,
    privacy: Privacy,
    /// Attempts that failed and whose flow has not begun, oldest first.
    refused: VecDeque<SocketState>,
    /// Flows whose start is still in the ring and whose map entry is gone, oldest first.
    early: VecDeque<(FlowKey, u64, Last)>,
    buffers: Buffers,
    /// Room for [`Engine::keys_of`].
    keys: Vec<(u64, FlowKey)>,
    /// Room for lists of processes.
    oids: Vec<Oid>,
    /// Of the ladder.
    step: Step,
    meters: Meters,
    /// Whether the session of the event at hand is told in summaries.
    floods: bool,
    summaries: Table<(Scope, Subject), Sum>,
}

/// The containers that one generation of a class has.
#[derive(Debug)]
struct Containers {
    generation: u32,
    numbers: HashMap<u64, u32>,
    told: u32,
}

/// Names of users and groups.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// By user id.
    pub users: HashMap<u32, Vec<u8>>,
    /// By group id.
    pub groups: HashMap<u32, Vec<u8>>,
}

impl Engine {
    /// An engine without processes or flows.
    pub fn new(
        bounds: Bounds,
        timeouts: Timeouts,
        users: Users,
        privacy: Privacy,
        batch: Batch,
    ) -> Engine {
        let buffer = || Vec::with_capacity(BUFFER_BYTES);
        Engine {
            processes: Processes::new(bounds.processes_max, bounds.text_bytes),
            batch,
            users,
            flows: Table::new(bounds.flows_max),
            files: HashMap::with_capacity(bounds.files_max),
            files_max: bounds.files_max,
            files_told: 0,
            containers: Class::ALL.map(|_| Containers {
                generation: 0,
                numbers: HashMap::with_capacity(CONTAINERS_MAX),
                told: 0,
            }),
            hasher: RandomState::new(),
            timeouts,
            privacy,
            refused: VecDeque::with_capacity(REFUSED_MAX),
            early: VecDeque::with_capacity(EARLY_MAX),
            buffers: Buffers {
                paths: buffer(),
                args: buffer(),
                masked: buffer(),
                entity: buffer(),
            },
            keys: Vec::with_capacity(bounds.flows_max),
            oids: Vec::with_capacity(bounds.processes_max),
            step: Step::Everything,
            meters: Meters::new(),
            floods: false,
            summaries: Table::new(SUMMARIES_MAX),
        }
    }

    /// Takes in one event as it comes out of the ring. One that cannot be read is lost, and
    /// counted; of which kind it was nobody knows. Returns whether it was read.
    pub fn observe_bytes(&mut self, bytes: &[u8], counters: &dyn Counters) -> bool {
        match Event::decode(bytes) {
            Some(event) => self.observe(&event, counters),
            None => {
                self.batch.books.add_lost_records(Term::LostUnreadable, 1);
                return false;
            }
        }
        true
    }

    /// Takes in one event.
    pub fn observe(&mut self, event: &Event<'_>, counters: &dyn Counters) {
        self.batch.between();
        let header = event.header();
        self.meter(header.session, header.time_ns);
        match event {
            Event::Fork(fork) => self.fork(fork),
            Event::Exec(started) => self.exec(started),
            Event::Exit(exit) => self.exit(exit, counters),
            Event::Clone(clone) => {
                let Some(oid) = self.subject(&clone.header, Operation::Clone) else { return };
                if clone.thread == 0 {
                    let exe = self.exe_hash(oid);
                    let (header, kind) = (&clone.header, Operation::Clone);
                    if !self.fold_event(header, oid, kind, Subject::Processes, exe) {
                        self.process_event(oid, header, kind, &[], clone.ret);
                    }
                } else {
                    self.count(Operation::Clone, Term::Aggregated, 1);
                    if clone.ret < 0 {
                        self.threads(oid, clone.header.time_ns, |t| t.errors += 1);
                    }
                }
            }
            Event::ExecFailed { failed, path } => {
                let Some(oid) = self.subject(&failed.header, Operation::Exec) else { return };
                let mut args = Arguments::begin(&mut self.buffers.args);
                args.text(path);
                let args = args.end();
                let exe = self.hasher.hash_one(path);
                let (header, kind) = (&failed.header, Operation::Exec);
                if !self.fold_event(header, oid, kind, Subject::Processes, exe) {
                    self.process_event(oid, header, kind, &args, failed.ret);
                }
                self.buffers.args = args;
            }
            Event::Setuid(setuid) => {
                let Some(oid) = self.subject(&setuid.header, Operation::Setuid) else { return };
                let (header, kind) = (&setuid.header, Operation::Setuid);
                let changed = self.note_owner(oid, header.time_ns, setuid.uid, setuid.gid);
                let exe = self.exe_hash(oid);
                if !changed && self.fold_event(header, oid, kind, Subject::Processes, exe) {
                    return;
                }
                let mut args = Arguments::begin(&mut self.buffers.args);
                args.owner(&self.users.users, setuid.wanted);
                let args = args.end();
                self.process_event(oid, &setuid.header, Operation::Setuid, &args, setuid.ret);
                self.buffers.args = args;
            }
            Event::FlowStart { start, operation, path } => {
                self.flow_start(start, *operation, path, counters);
            }
            Event::FlowEnd(end) => self.flow_end(end, counters),
            Event::ClosedRange(range) => self.closed_range(range, counters),
            Event::Path { path, operation, first, second } => {
                self.file_event(&path.header, path.ret, *operation, first, second.as_ref());
            }
            Event::IoUring(event) => self.io_uring(&event.header),
            Event::Attribute { attribute, operation, name, source, text } => {
                self.attribute(attribute, *operation, name, source, text);
            }
            Event::Socket { socket, operation, path } => self.socket(socket, *operation, path),
            Event::Privilege { privilege, operation, path, text } => {
                self.privilege(privilege, *operation, path, text);
            }
            Event::SocketState(state) => {
                self.count(Operation::SocketState, Term::Aggregated, 1);
                let failed = self.flows.values_mut().find(|flow| {
                    flow.file == state.file && matches!(flow.object, Object::Network { .. })
                });
                if let Some(flow) = failed {
                    flow.error = state.error;
                    flow.ops |= op::CONNECT;
                } else {
                    // An attempt can fail before connect has returned, which begins the flow.
                    if self.refused.len() == REFUSED_MAX {
                        self.refused.pop_front();
                    }
                    self.refused.push_back(*state);
                }
            }
        }
    }

    /// Looks at one flow that goes on, as a sweep of the kernel's map finds it. All that was in
    /// the ring before must have been observed.
    pub fn sweep(&mut self, entry: &bpf::Entry, now_ns: u64, counters: &dyn Counters) {
        let known = self.flows.get_mut(&entry.key).filter(|f| f.flow_ns == entry.flow_ns);
        let Some(flow) = known else {
            // The start of a young one may be in the ring. An older one had no place here: where
            // it goes on, it begins anew.
            if now_ns.saturating_sub(entry.flow_ns) > UNKNOWN_AGE_MAX_NS
                && let Some(last) = self.take(&entry.key, entry.flow_ns, counters)
            {
                self.count_lost(&last.totals, last.ended);
            }
            return;
        };
        flow.note(Totals::new(&entry.volume, entry.shutdown, entry.mmaps), now_ns);
        // If it is no longer there, its end has found room in the ring.
        if entry.ended != 0
            && let Some(last) = self.take(&entry.key, entry.flow_ns, counters)
        {
            self.end_with(&entry.key, last, op::TRUNCATE, now_ns);
        }
    }

    /// Exports what the timeouts demand. Call it after a sweep.
    pub fn expire(&mut self, now_ns: u64) {
        let active_ns = self.timeouts.active_ns;
        let due = self.keys_of(|_, flow| {
            now_ns.saturating_sub(flow.since_ns) >= active_ns
                && (flow.ops != 0 || flow.seen != flow.exported)
        });
        for (_, key) in &due {
            let reason = match self.flows.get(key) {
                Some(flow) if now_ns.saturating_sub(flow.active_ns) >= self.timeouts.idle_ns => {
                    EndReason::IdleTimeout
                }
                _ => EndReason::ActiveTimeout,
            };
            self.batch.between();
            self.export(key, now_ns, 0, reason);
        }
        self.keys = due;
        let since_ns = now_ns.saturating_sub(active_ns);
        self.export_all_threads(since_ns, now_ns, EndReason::ActiveTimeout);
        self.export_summaries(since_ns, now_ns, EndReason::ActiveTimeout);
    }

    /// Exports everything at the end of the run.
    pub fn close(&mut self, now_ns: u64) {
        let open = self.keys_of(|_, _| true);
        for (_, key) in &open {
            self.batch.between();
            self.export(key, now_ns, op::TRUNCATE, EndReason::ForcedEnd);
        }
        self.keys = open;
        // Their starts were lost.
        while let Some((.., lost)) = self.early.pop_front() {
            self.count_lost(&lost.totals, lost.ended);
        }
        self.export_all_threads(u64::MAX, now_ns, EndReason::ForcedEnd);
        self.export_summaries(u64::MAX, now_ns, EndReason::ForcedEnd);
        self.batch.close(now_ns);
    }

    fn export_all_threads(&mut self, since_ns: u64, now_ns: u64, end: EndReason) {
        let mut oids = std::mem::take(&mut self.oids);
        self.processes.with_threads_since(since_ns, &mut oids);
        for oid in &oids {
            self.export_threads(*oid, now_ns, end);
        }
        self.oids = oids;
    }

    /// The boot-clock time, ns, until which everything that was observed is in records, as far
    /// as this engine knows at `now_ns`: the start of the oldest interval that has something to
    /// export. `swept_ns` is when the kernel's counters were read last.
    pub fn told_until(&self, swept_ns: u64, now_ns: u64) -> u64 {
        let flows = self
            .flows
            .iter()
            .map(|(_, flow)| flow)
            .filter(|flow| flow.ops != 0 || flow.seen != flow.exported)
            .map(|flow| flow.since_ns)
            .min();
        // What a flow without news has done since the last sweep is not known.
        let unknown = (!self.flows.is_empty()).then_some(swept_ns);
        let (threads, summaries) = (self.processes.threads_since(), self.summaries_since_ns());
        [flows, unknown, threads, summaries, self.batch.pending_since_ns()]
            .into_iter()
            .flatten()
            .fold(now_ns, u64::min)
    }

    /// The keys of these flows, oldest first: the order of a table must not reach the wire. The
    /// list is `self.keys`, which wants it back.
    fn keys_of(&mut self, wanted: impl Fn(&FlowKey, &Flow) -> bool) -> Vec<(u64, FlowKey)> {
        let mut found = std::mem::take(&mut self.keys);
        found.clear();
        let fitting = self.flows.iter().filter(|(key, flow)| wanted(key, flow));
        found.extend(fitting.map(|(key, flow)| (flow.flow_ns, *key)));
        found.sort_unstable_by_key(|(flow_ns, key)| (*flow_ns, key.tgid, key.fd, key.peer_port));
        found
    }

    fn count(&mut self, operation: Operation, term: Term, count: u64) {
        self.batch.books.add(operation, term, count);
    }

    /// The process that an event is about; one whose start was missed, or that had to go, gets a
    /// place without attributes. Where there is no place, the operation is lost, and counted.
    fn subject(&mut self, header: &Header, operation: Operation) -> Option<Oid> {
        let oid = self.known(header);
        if oid.is_none() {
            self.count(operation, Term::LostTable, 1);
        }
        oid
    }

    /// The process that an event is about, if it has a place, or gets one.
    fn known(&mut self, header: &Header) -> Option<Oid> {
        let oid = self.processes.resolve(header.tgid, header.start_ns);
        (self.processes.touch(oid) || self.know(oid, header.time_ns)).then_some(oid)
    }

    /// Makes a process of which nothing but its identity is known known; `false` if there is no
    /// place.
    fn know(&mut self, oid: Oid, now_ns: u64) -> bool {
        self.make_place(oid, now_ns);
        self.processes.insert(Process::unknown(oid))
    }

    /// Sees to it that another process finds place, at the cost of one that is not `but`.
    fn make_place(&mut self, but: Oid, now_ns: u64) {
        if let Some(oid) = self.processes.dispensable(but) {
            self.export_threads(oid, now_ns, EndReason::LackOfResources);
            self.export_process_summary(oid, now_ns, EndReason::LackOfResources);
            self.processes.remove(oid);
        }
    }
}
