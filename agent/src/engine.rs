//! Where kernel words become SysFlow words: events go in, records go into the batch, each
//! behind the entities that it refers to, ancestors first. Bounds: the tables of processes and
//! flows; a flow that finds no place is exported at once with the reason. The same events give
//! the same records: it reads no clock, file or map except through [`Counters`].

mod events;
mod flows;
mod object;
mod processes;
mod records;

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;

use bpf::{Event, FlowKey, Header, SocketState};
use codec::{EndReason, FileId, Oid, Operation, Term, op};

use crate::batch::Batch;
use crate::entity::{Process, Processes};
use crate::flow::{Flow, Object, Totals};
use crate::privacy::Privacy;
use events::{args, owner};
pub use processes::container_id;

/// Attempts to connect that are remembered until their flow begins: it is in the ring right behind.
const REFUSED_MAX: usize = 64;

/// The kernel's flow counters, as far as the engine needs them.
pub trait Counters {
    /// Removes a flow and returns its totals, if it is still there.
    fn take(&self, key: &FlowKey, flow_ns: u64) -> Option<Totals>;
}

/// Timeouts, ns.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A flow in which nothing happened for so long is told as idle.
    pub idle_ns: u64,
    /// A flow that goes on is told so often.
    pub active_ns: u64,
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
    flows: HashMap<FlowKey, Flow>,
    flows_max: usize,
    files: HashMap<u64, FileId>,
    numbers_generation: u32,
    containers: HashMap<Vec<u8>, u32>,
    hasher: RandomState,
    timeouts: Timeouts,
    privacy: Privacy,
    /// Attempts that failed and whose flow has not begun, oldest first.
    refused: VecDeque<SocketState>,
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
        processes: Processes,
        flows_max: usize,
        timeouts: Timeouts,
        users: Users,
        privacy: Privacy,
        batch: Batch,
    ) -> Engine {
        Engine {
            processes,
            batch,
            users,
            flows: HashMap::with_capacity(flows_max * 2),
            flows_max,
            files: HashMap::new(),
            numbers_generation: 0,
            containers: HashMap::new(),
            hasher: RandomState::new(),
            timeouts,
            privacy,
            refused: VecDeque::with_capacity(REFUSED_MAX),
        }
    }

    /// Takes in one event.
    pub fn observe(&mut self, event: &Event<'_>, counters: &dyn Counters) {
        self.batch.between();
        match event {
            Event::Fork(fork) => self.fork(fork),
            Event::Exec(started) => self.exec(started),
            Event::Exit(exit) => self.exit(exit, counters),
            Event::Clone(clone) => {
                let Some(oid) = self.subject(&clone.header, Operation::Clone) else { return };
                if clone.thread == 0 {
                    self.process_event(oid, &clone.header, Operation::Clone, &[], clone.ret);
                } else {
                    self.count(Operation::Clone, Term::Aggregated, 1);
                    if clone.ret < 0 {
                        self.threads(oid, clone.header.time_ns, |t| t.errors += 1);
                    }
                }
            }
            Event::ExecFailed { failed, path } => {
                let Some(oid) = self.subject(&failed.header, Operation::Exec) else { return };
                let mut args = path.to_vec();
                args.push(0);
                self.process_event(oid, &failed.header, Operation::Exec, &args, failed.ret);
            }
            Event::Setuid(setuid) => {
                let Some(oid) = self.subject(&setuid.header, Operation::Setuid) else { return };
                self.note_owner(oid, setuid.header.time_ns, setuid.uid, setuid.gid);
                let args = args(&[&owner(&self.users.users, setuid.wanted)]);
                self.process_event(oid, &setuid.header, Operation::Setuid, &args, setuid.ret);
            }
            Event::FlowStart { start, operation, path } => {
                self.flow_start(start, *operation, path);
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

    /// Looks at one flow that goes on, as a sweep of the kernel's map finds it.
    pub fn sweep(&mut self, entry: &bpf::Entry, now_ns: u64, counters: &dyn Counters) {
        // An entry whose start is still in the ring is looked at when it has been told.
        let known = self.flows.get_mut(&entry.key).filter(|f| f.flow_ns == entry.flow_ns);
        let Some(flow) = known else { return };
        flow.note(Totals::new(&entry.volume, entry.shutdown, entry.mmaps), now_ns);
        if entry.ended != 0 {
            let _ = counters.take(&entry.key, entry.flow_ns);
            self.end_flow(&entry.key, entry.ended, now_ns);
        }
    }

    /// Exports what the timeouts demand. Call it after a sweep.
    pub fn expire(&mut self, now_ns: u64) {
        let active_ns = self.timeouts.active_ns;
        let due = self.keys_of(|_, flow| {
            now_ns.saturating_sub(flow.since_ns) >= active_ns
                && (flow.ops != 0 || flow.seen != flow.exported)
        });
        for key in due {
            let reason = match self.flows.get(&key) {
                Some(flow) if now_ns.saturating_sub(flow.active_ns) >= self.timeouts.idle_ns => {
                    EndReason::IdleTimeout
                }
                _ => EndReason::ActiveTimeout,
            };
            self.export(&key, now_ns, 0, reason);
        }
        for oid in self.processes.with_threads_since(now_ns.saturating_sub(self.timeouts.active_ns))
        {
            self.export_threads(oid, now_ns, EndReason::ActiveTimeout);
        }
    }

    /// Exports everything at the end of the run.
    pub fn close(&mut self, now_ns: u64) {
        for key in self.keys_of(|_, _| true) {
            self.export(&key, now_ns, op::TRUNCATE, EndReason::ForcedEnd);
        }
        for oid in self.processes.with_threads_since(u64::MAX) {
            self.export_threads(oid, now_ns, EndReason::ForcedEnd);
        }
        self.batch.close(now_ns);
    }

    /// The boot-clock time, ns, until which everything that was observed is in records, as far
    /// as this engine knows at `now_ns`: the start of the oldest interval that has something to
    /// export. `swept_ns` is when the kernel's counters were read last.
    pub fn told_until(&self, swept_ns: u64, now_ns: u64) -> u64 {
        let flows = self
            .flows
            .values()
            .filter(|flow| flow.ops != 0 || flow.seen != flow.exported)
            .map(|flow| flow.since_ns)
            .min();
        // What a flow without news has done since the last sweep is not known.
        let unknown = (!self.flows.is_empty()).then_some(swept_ns);
        [flows, unknown, self.processes.threads_since(), self.batch.pending_since_ns()]
            .into_iter()
            .flatten()
            .fold(now_ns, u64::min)
    }

    /// The keys of these flows, oldest first: the order of a table must not reach the wire.
    fn keys_of(&self, wanted: impl Fn(&FlowKey, &Flow) -> bool) -> Vec<FlowKey> {
        let mut found: Vec<(u64, FlowKey)> = self
            .flows
            .iter()
            .filter(|(key, flow)| wanted(key, flow))
            .map(|(key, flow)| (flow.flow_ns, *key))
            .collect();
        found.sort_unstable_by_key(|(flow_ns, key)| (*flow_ns, key.tgid, key.fd, key.peer_port));
        found.into_iter().map(|(_, key)| key).collect()
    }

    fn count(&mut self, operation: Operation, term: Term, count: u64) {
        self.batch.books.add(operation, term, count);
    }

    /// The process that an event is about; one whose start was missed gets a place without
    /// attributes. Where there is no place, the operation is lost, and counted.
    fn subject(&mut self, header: &Header, operation: Operation) -> Option<Oid> {
        let oid = self.processes.resolve(header.tgid, header.start_ns);
        if self.processes.get(oid).is_none() && !self.processes.insert(Process::unknown(oid)) {
            self.count(operation, Term::LostTable, 1);
            return None;
        }
        Some(oid)
    }
}
