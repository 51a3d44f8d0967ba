//! Where kernel words become SysFlow words: events go in, records go into the batch, each
//! behind the entities that it refers to, ancestors first. Bounds: the tables of processes and
//! flows; a flow that finds no place is exported at once with the reason. The same events give
//! the same records: it reads no clock, file or map except through [`Counters`].

mod object;
mod records;

use std::collections::HashMap;
use std::hash::RandomState;

use bpf::{Event, FlowEnd, FlowKey, FlowStart, Header, Walked, flow as kernel_flow, path};
use codec::{
    EndReason, FileFlow, FileId, NetworkFlow, ObjectState, Oid, Operation, ProcessFlow, Record,
    Term, Volume, op, process,
};

use crate::batch::Batch;
use crate::entity::{Process, Processes};
use crate::flow::{Flow, Object, open_flags};
use crate::names;
use records::FileWords;

const EINPROGRESS: i32 = 115;
/// The kernel's flow counters, as far as the engine needs them.
pub trait Counters {
    /// Removes a flow and returns its totals and its calls of shutdown, if it is still there.
    fn take(&self, key: &FlowKey, flow_ns: u64) -> Option<(Volume, u32)>;
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
        }
    }

    /// Takes in one event.
    pub fn observe(&mut self, event: &Event<'_>, counters: &dyn Counters) {
        self.batch.between();
        match event {
            Event::Fork(fork) => self.fork(fork),
            Event::Exec { exec, exe, cwd, args, cgroup } => {
                self.exec(exec, exe, cwd, args, cgroup);
            }
            Event::Exit(exit) => self.exit(exit, counters),
            Event::Clone(clone) => {
                let Some(oid) = self.subject(&clone.header, Operation::Clone) else { return };
                if clone.thread == 0 {
                    self.process_event(oid, &clone.header, op::CLONE, &[], clone.ret);
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
                self.process_event(oid, &failed.header, op::EXEC, &args, failed.ret);
            }
            Event::Setuid(setuid) => {
                let Some(oid) = self.subject(&setuid.header, Operation::Setuid) else { return };
                if let Some(process) = self.processes.get_mut(oid) {
                    process.uid = setuid.uid;
                    process.gid = setuid.gid;
                    process.written = None;
                }
                let mut args = match self.users.users.get(&setuid.wanted) {
                    Some(name) => name.clone(),
                    None if setuid.wanted == u32::MAX => Vec::new(),
                    None => setuid.wanted.to_string().into_bytes(),
                };
                args.push(0);
                self.write_processes(oid, setuid.header.time_ns, ObjectState::Modified);
                self.process_event(oid, &setuid.header, op::SETUID, &args, setuid.ret);
            }
            Event::FlowStart { start, operation, path } => {
                self.flow_start(start, *operation, path);
            }
            Event::FlowEnd(end) => self.flow_end(end, counters),
            Event::Path { path, operation, first, second } => {
                self.file_event(&path.header, path.ret, *operation, first, second.as_ref());
            }
            Event::SocketState(state) => {
                self.count(Operation::SocketState, Term::Aggregated, 1);
                let failed = self.flows.values_mut().find(|flow| {
                    flow.file == state.file && matches!(flow.object, Object::Network { .. })
                });
                if let Some(flow) = failed {
                    flow.error = state.error;
                    flow.ops |= op::CONNECT;
                }
            }
        }
    }

    /// Looks at one flow that goes on, as a sweep of the kernel's map finds it.
    pub fn sweep(&mut self, entry: &bpf::Entry, now_ns: u64, counters: &dyn Counters) {
        // An entry whose start is still in the ring is looked at when it has been told.
        let known = self.flows.get_mut(&entry.key).filter(|f| f.flow_ns == entry.flow_ns);
        let Some(flow) = known else { return };
        flow.note(volume(&entry.volume), now_ns);
        flow.shutdowns = entry.shutdown;
        if entry.ended != 0 {
            let _ = counters.take(&entry.key, entry.flow_ns);
            self.end_flow(&entry.key, entry.ended, entry.shutdown, now_ns);
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
            let shutdowns = self.flows.get(&key).map_or(0, |flow| flow.shutdowns);
            let bits = op::TRUNCATE | self.shutdown_bit(shutdowns);
            self.export(&key, now_ns, bits, EndReason::ForcedEnd);
        }
        for oid in self.processes.with_threads_since(u64::MAX) {
            self.export_threads(oid, now_ns, EndReason::ForcedEnd);
        }
        self.batch.finish();
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

    fn fork(&mut self, fork: &bpf::Fork) {
        let Some(creator) = self.subject(&fork.header, Operation::Clone) else { return };
        if fork.child_tgid == fork.header.tgid {
            self.count(Operation::Clone, Term::Aggregated, 1);
            self.threads(creator, fork.header.time_ns, |t| t.cloned += 1);
            return;
        }
        let oid = Oid { start_ns: fork.child_start_ns, pid: fork.child_tgid };
        let parent = self.processes.resolve(fork.parent_tgid, fork.parent_start_ns);
        if self.processes.get(oid).is_none() {
            let mut child = match self.processes.get(creator) {
                Some(process) => process.clone(),
                None => Process::unknown(oid),
            };
            child.flags &= !(process::START_COARSE | process::PRE_EXISTING);
            child.oid = oid;
            child.parent = Some(parent);
            child.entry = fork.child_namespace_pid == 1;
            child.written = None;
            child.ended_ns = None;
            child.threads = Default::default();
            if !self.processes.insert(child) {
                self.count(Operation::Clone, Term::LostTable, 1);
                return;
            }
        }
        let header = Header { tid: fork.child_tid, ..fork.header };
        self.write_processes(oid, header.time_ns, ObjectState::Created);
        self.process_event(oid, &header, op::CLONE, &[], 0);
    }

    fn exec(
        &mut self,
        exec: &bpf::Exec,
        exe: &Walked<'_>,
        cwd: &Walked<'_>,
        args: &[u8],
        cgroup: &[u8],
    ) {
        let oid = self.processes.resolve(exec.header.tgid, exec.header.start_ns);
        let state = match self.processes.get(oid) {
            Some(_) => ObjectState::Modified,
            None => ObjectState::Created,
        };
        let Some(oid) = self.subject(&exec.header, Operation::Exec) else { return };
        let parent = (exec.parent_tgid != 0)
            .then(|| self.processes.resolve(exec.parent_tgid, exec.parent_start_ns));
        if let Some(process) = self.processes.get_mut(oid) {
            process.parent = process.parent.or(parent);
            process.exe = names::walked(exe);
            process.cwd = names::walked(cwd);
            let rest = args.iter().position(|b| *b == 0).map_or(args.len(), |end| end + 1);
            process.args = args.get(rest..).unwrap_or_default().to_vec();
            process.uid = exec.uid;
            process.gid = exec.gid;
            process.tty = exec.tty != 0;
            process.entry = exec.namespace_pid == 1;
            if let Some(id) = container_id(cgroup) {
                process.container = id.to_vec();
            }
            process.flags = 0;
            for (set, flag) in [
                (exec.args_total > args.len() as u32, process::ARGS_TRUNCATED),
                ((exe.flags | cwd.flags) & path::TRUNCATED != 0, process::PATH_TRUNCATED),
                (exe.flags & (path::DELETED | path::DETACHED) != 0, process::EXE_DELETED),
                (exec.header.flags & bpf::EVENT_COMPAT != 0, process::COMPAT),
            ] {
                if set {
                    process.flags |= flag;
                }
            }
            process.written = None;
        }
        self.processes.settle(oid);
        self.write_processes(oid, exec.header.time_ns, state);
        self.process_event(oid, &exec.header, op::EXEC, &[], 0);
    }

    fn exit(&mut self, exit: &bpf::Exit, counters: &dyn Counters) {
        let Some(oid) = self.subject(&exit.header, Operation::Exit) else { return };
        let now_ns = exit.header.time_ns;
        if exit.last == 0 {
            self.count(Operation::Exit, Term::Aggregated, 1);
            self.threads(oid, now_ns, |t| t.exited += 1);
            return;
        }
        // What the kernel side's own sweep does not reach: high descriptors, and peers.
        for key in self.keys_of(|_, flow| flow.process == oid) {
            self.take_and_end(&key, op::TRUNCATE, now_ns, counters);
        }
        self.export_threads(oid, now_ns, EndReason::EndDetected);
        self.process_event(oid, &exit.header, op::EXIT, &[], exit.status);
        if let Some(process) = self.processes.get_mut(oid) {
            process.ended_ns = Some(now_ns);
        }
    }

    fn threads(
        &mut self,
        oid: Oid,
        time_ns: u64,
        change: impl FnOnce(&mut crate::entity::Threads),
    ) {
        if let Some(process) = self.processes.get_mut(oid) {
            let threads = &mut process.threads;
            if threads.cloned + threads.exited + threads.errors == 0 {
                threads.since_ns = time_ns;
            }
            change(threads);
        }
    }

    fn export_threads(&mut self, oid: Oid, now_ns: u64, end: EndReason) {
        let Some(process) = self.processes.get_mut(oid) else { return };
        let threads = std::mem::take(&mut process.threads);
        if threads.cloned + threads.exited + threads.errors == 0 {
            return;
        }
        self.write_processes(oid, now_ns, ObjectState::Reup);
        let mut ops = 0;
        if threads.cloned + threads.errors > 0 {
            ops |= op::CLONE;
        }
        if threads.exited > 0 {
            ops |= op::EXIT;
        }
        self.write(
            &Record::ProcessFlow(ProcessFlow {
                process: oid,
                time_ns: threads.since_ns,
                ops,
                end_ns: now_ns,
                threads_cloned: threads.cloned,
                threads_exited: threads.exited,
                clone_errors: threads.errors,
                end,
            }),
            Operation::Clone,
        );
    }

    fn flow_start(&mut self, start: &FlowStart, operation: bpf::Operation, path: &Walked<'_>) {
        let kind = Operation::ALL[operation as usize];
        let Some(oid) = self.subject(&start.header, kind) else { return };
        let (ops, kind) = match operation {
            bpf::Operation::Open => (op::OPEN, Some(Operation::Open)),
            bpf::Operation::Accept => (op::ACCEPT, Some(Operation::Accept)),
            bpf::Operation::Connect => (op::CONNECT, Some(Operation::Connect)),
            // Counted at the flow's end, with those that follow.
            bpf::Operation::Shutdown => (op::SHUTDOWN, None),
            _ => (0, None),
        };
        if let Some(kind) = kind {
            self.count(kind, Term::Aggregated, 1);
        }
        let error = if ops == op::CONNECT && start.ret < 0 && start.ret != -EINPROGRESS {
            start.ret
        } else {
            0
        };
        if start.flags & kernel_flow::CONTINUED != 0 {
            if let Some(flow) = self.flows.get_mut(&start.key) {
                flow.ops |= ops;
                flow.error = error;
            }
            return;
        }
        let now_ns = start.header.time_ns;
        let object = object::of(start, operation, path);
        let flow = Flow {
            process: oid,
            tid: start.header.tid,
            object,
            file: start.file,
            flow_ns: start.flow_ns,
            open_flags: if ops == op::OPEN { open_flags(start.open_flags) } else { 0 },
            ops,
            error,
            since_ns: now_ns,
            active_ns: now_ns,
            seen: Volume::default(),
            exported: Volume::default(),
            shutdowns: 0,
        };
        let untracked = start.flags & kernel_flow::UNTRACKED != 0;
        let same_file = self.flows.get(&start.key).map(|known| known.file == start.file);
        let goes_on = untracked && same_file == Some(true);
        if same_file.is_some() && !goes_on {
            // Its end was not told, so its last counters are those of the last sweep.
            self.export(&start.key, now_ns, op::TRUNCATE, EndReason::EndDetected);
        }
        if !untracked && self.flows.len() >= self.flows_max {
            let oldest = self.flows.iter().min_by_key(|(_, f)| f.active_ns).map(|(key, _)| *key);
            if let Some(key) = oldest {
                self.export(&key, now_ns, op::TRUNCATE, EndReason::LackOfResources);
                self.flows.remove(&key);
            }
        }
        let known = self.flows.insert(start.key, flow);
        if untracked {
            if let Some(flow) = self.flows.get_mut(&start.key) {
                flow.note(volume(&start.volume), now_ns);
            }
            self.export(&start.key, now_ns, op::TRUNCATE, EndReason::LackOfResources);
            self.flows.remove(&start.key);
            if let Some(known) = known.filter(|_| goes_on) {
                self.flows.insert(start.key, known);
            }
        }
    }

    fn flow_end(&mut self, end: &FlowEnd, counters: &dyn Counters) {
        let known = self.flows.get_mut(&end.key).filter(|flow| flow.flow_ns == end.flow_ns);
        let Some(flow) = known else {
            // The flow had no place here, or was exported to make room.
            self.count(Operation::Read, Term::LostTable, end.volume.read_ops);
            self.count(Operation::Write, Term::LostTable, end.volume.write_ops);
            if end.reason == kernel_flow::CLOSED {
                self.count(Operation::Close, Term::LostTable, 1);
            }
            self.count(Operation::Shutdown, Term::LostTable, end.shutdown.into());
            return;
        };
        flow.note(volume(&end.volume), end.header.time_ns);
        let (file, process) = (flow.file, flow.process);
        self.end_flow(&end.key, end.reason, end.shutdown, end.header.time_ns);
        if end.key.peer_family == 0 {
            let peers = self.keys_of(|key, flow| {
                key.fd == end.key.fd && flow.process == process && flow.file == file
            });
            for key in peers {
                self.take_and_end(&key, closing_bit(end.reason), end.header.time_ns, counters);
            }
        }
    }

    fn end_flow(&mut self, key: &FlowKey, reason: u8, shutdowns: u32, now_ns: u64) {
        if reason == kernel_flow::CLOSED {
            self.count(Operation::Close, Term::Aggregated, 1);
        }
        let bits = closing_bit(reason) | self.shutdown_bit(shutdowns);
        self.export(key, now_ns, bits, EndReason::EndDetected);
        self.flows.remove(key);
    }

    /// Counts a flow's calls of shutdown.
    fn shutdown_bit(&mut self, shutdowns: u32) -> u32 {
        self.count(Operation::Shutdown, Term::Aggregated, shutdowns.into());
        if shutdowns > 0 { op::SHUTDOWN } else { 0 }
    }

    /// Ends a flow whose map entry the kernel side has left to the agent.
    fn take_and_end(&mut self, key: &FlowKey, bits: u32, now_ns: u64, counters: &dyn Counters) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if let Some((total, shutdowns)) = counters.take(key, flow.flow_ns) {
            flow.note(total, now_ns);
            flow.shutdowns = shutdowns;
        }
        let shutdowns = flow.shutdowns;
        let bits = bits | self.shutdown_bit(shutdowns);
        self.export(key, now_ns, bits, EndReason::EndDetected);
        self.flows.remove(key);
    }

    /// Writes what a flow did since its last record, if anything. `bits` are added; a flow that
    /// only ends with TRUNCATE has nothing to say.
    fn export(&mut self, key: &FlowKey, now_ns: u64, bits: u32, end: EndReason) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let taken = flow.take();
        let (moved, ops) = match taken {
            Some((moved, ops)) => (moved, ops | bits),
            None if bits & !op::TRUNCATE != 0 => (Volume::default(), bits),
            None => return,
        };
        let since_ns = std::mem::replace(&mut flow.since_ns, now_ns);
        let flow = flow.clone();
        self.write_processes(flow.process, now_ns, ObjectState::Reup);
        let (reading, writing, record) = match &flow.object {
            Object::File { kind, path, device, inode, flags } => {
                let container = self.container_of(flow.process);
                let file = self.file(
                    FileWords { kind: *kind, path, device: *device, inode: *inode, flags: *flags },
                    container,
                    now_ns,
                    ObjectState::Reup,
                );
                (
                    Operation::Read,
                    Operation::Write,
                    Record::FileFlow(FileFlow {
                        process: flow.process,
                        time_ns: since_ns,
                        tid: flow.tid,
                        ops,
                        open_flags: flow.open_flags,
                        end_ns: now_ns,
                        file,
                        fd: key.fd,
                        volume: moved,
                        end,
                    }),
                )
            }
            Object::Network { source, destination, protocol, flags } => (
                Operation::Receive,
                Operation::Send,
                Record::NetworkFlow(NetworkFlow {
                    process: flow.process,
                    time_ns: since_ns,
                    tid: flow.tid,
                    ops,
                    end_ns: now_ns,
                    source: source.0,
                    source_port: source.1,
                    destination: destination.0,
                    destination_port: destination.1,
                    protocol: *protocol,
                    fd: key.fd,
                    volume: moved,
                    end,
                    error: flow.error,
                    flags: *flags,
                }),
            ),
        };
        self.count(reading, Term::Aggregated, moved.read_ops);
        self.count(writing, Term::Aggregated, moved.write_ops);
        self.write(&record, Operation::Close);
    }
}

/// How the end of a flow shows in its operations.
fn closing_bit(reason: u8) -> u32 {
    match reason {
        kernel_flow::CLOSED | kernel_flow::CLOSED_RANGE => op::CLOSE,
        _ => op::TRUNCATE,
    }
}

fn volume(kernel: &bpf::Volume) -> Volume {
    Volume {
        read_ops: kernel.read_ops,
        write_ops: kernel.write_ops,
        read_bytes: kernel.read_bytes,
        write_bytes: kernel.write_bytes,
    }
}

/// The container that a control group's name speaks of: runtimes put its 64 hexadecimal digits
/// there, with or without a prefix and a suffix.
pub fn container_id(cgroup: &[u8]) -> Option<&[u8]> {
    cgroup.split(|byte| !byte.is_ascii_hexdigit()).find(|part| part.len() == 64)
}
