//! Where kernel words become SysFlow words: events go in, records go into the batch, each
//! behind the entities that it refers to, ancestors first. Bounds: the tables of processes and
//! flows; a flow that finds no place is exported at once with the reason. The same events give
//! the same records: it reads no clock, file or map except through [`Counters`].

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use bpf::{Event, FlowEnd, FlowKey, FlowStart, Header, Named, Walked, flow as kernel_flow, path};
use codec::{
    Address, Container, EndReason, File, FileEvent, FileFlow, FileId, NetworkFlow, ObjectState,
    Oid, Operation, ProcessEvent, ProcessFlow, Record, Term, Volume, file, network, op, process,
};

use crate::batch::Batch;
use crate::entity::{Process, Processes};
use crate::flow::{Flow, Object, open_flags};
use crate::names;

const EINPROGRESS: i32 = 115;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
/// Ended processes with so much time behind them are no longer looked up.
const RESTYPE: [(u16, u8); 3] = [(0o040000, b'd'), (0o010000, b'p'), (0o140000, b'u')];

/// The kernel's flow counters, as far as the engine needs them.
pub trait Counters {
    /// Removes a flow and returns its totals, if it is still there.
    fn take(&self, key: &FlowKey, flow_ns: u64) -> Option<Volume>;
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
    files_generation: u32,
    containers: HashMap<Vec<u8>, (u32, u32)>,
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
        processes_max: usize,
        flows_max: usize,
        timeouts: Timeouts,
        users: Users,
        batch: Batch,
    ) -> Engine {
        Engine {
            processes: Processes::new(processes_max),
            batch,
            users,
            flows: HashMap::with_capacity(flows_max * 2),
            flows_max,
            files: HashMap::new(),
            files_generation: 0,
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
                let oid = self.subject(&clone.header);
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
                let oid = self.subject(&failed.header);
                let mut args = path.to_vec();
                args.push(0);
                self.process_event(oid, &failed.header, op::EXEC, &args, failed.ret);
            }
            Event::Setuid(setuid) => {
                let oid = self.subject(&setuid.header);
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
        let known = self.flows.get_mut(&entry.key).filter(|f| f.flow_ns == entry.flow_ns);
        if let Some(flow) = known {
            flow.note(volume(&entry.volume), now_ns);
        }
        if entry.ended != 0 {
            let _ = counters.take(&entry.key, entry.flow_ns);
            self.end_flow(&entry.key, entry.ended, entry.shutdown, now_ns);
        }
    }

    /// Exports what the timeouts demand. Call it after a sweep.
    pub fn expire(&mut self, now_ns: u64) {
        let due: Vec<FlowKey> = self
            .flows
            .iter()
            .filter(|(_, flow)| {
                now_ns.saturating_sub(flow.since_ns) >= self.timeouts.active_ns
                    && (flow.ops != 0 || flow.seen != flow.exported)
            })
            .map(|(key, _)| *key)
            .collect();
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
        let keys: Vec<FlowKey> = self.flows.keys().copied().collect();
        for key in keys {
            self.export(&key, now_ns, op::TRUNCATE, EndReason::ForcedEnd);
        }
        for oid in self.processes.with_threads_since(u64::MAX) {
            self.export_threads(oid, now_ns, EndReason::ForcedEnd);
        }
        self.batch.finish();
    }

    /// Flows that go on.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    fn count(&mut self, operation: Operation, term: Term, count: u64) {
        self.batch.books.add(operation, term, count);
    }

    /// The process that an event is about; one whose start was missed gets a place without
    /// attributes.
    fn subject(&mut self, header: &Header) -> Oid {
        let oid = self.processes.resolve(header.tgid, header.start_ns);
        if self.processes.get(oid).is_none() {
            self.processes.insert(Process::unknown(oid));
        }
        oid
    }

    fn fork(&mut self, fork: &bpf::Fork) {
        let creator = self.subject(&fork.header);
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
            self.processes.insert(child);
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
        let oid = self.subject(&exec.header);
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
                (exe.flags & path::DELETED != 0, process::EXE_DELETED),
                (exec.header.flags & bpf::EVENT_COMPAT != 0, process::COMPAT),
            ] {
                if set {
                    process.flags |= flag;
                }
            }
            process.written = None;
        }
        self.write_processes(oid, exec.header.time_ns, state);
        self.process_event(oid, &exec.header, op::EXEC, &[], 0);
    }

    fn exit(&mut self, exit: &bpf::Exit, counters: &dyn Counters) {
        let oid = self.subject(&exit.header);
        let now_ns = exit.header.time_ns;
        if exit.last == 0 {
            self.count(Operation::Exit, Term::Aggregated, 1);
            self.threads(oid, now_ns, |t| t.exited += 1);
            return;
        }
        // What the kernel side's own sweep does not reach: high descriptors, and peers.
        let left: Vec<FlowKey> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.process == oid)
            .map(|(key, _)| *key)
            .collect();
        for key in left {
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
        let oid = self.subject(&start.header);
        let (ops, kind) = match operation {
            bpf::Operation::Open => (op::OPEN, Some(Operation::Open)),
            bpf::Operation::Accept => (op::ACCEPT, Some(Operation::Accept)),
            bpf::Operation::Connect => (op::CONNECT, Some(Operation::Connect)),
            bpf::Operation::Shutdown => (op::SHUTDOWN, Some(Operation::Shutdown)),
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
        let object = self.object(start, operation, path);
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
        };
        if self.flows.contains_key(&start.key) {
            // Its end was not told, so its last counters are those of the last sweep.
            self.export(&start.key, now_ns, op::TRUNCATE, EndReason::EndDetected);
        }
        let untracked = start.flags & kernel_flow::UNTRACKED != 0;
        if !untracked && self.flows.len() >= self.flows_max {
            let oldest = self.flows.iter().min_by_key(|(_, f)| f.active_ns).map(|(key, _)| *key);
            if let Some(key) = oldest {
                self.export(&key, now_ns, op::TRUNCATE, EndReason::LackOfResources);
                self.flows.remove(&key);
            }
        }
        self.flows.insert(start.key, flow);
        if untracked {
            if let Some(flow) = self.flows.get_mut(&start.key) {
                flow.note(volume(&start.volume), now_ns);
            }
            self.export(&start.key, now_ns, op::TRUNCATE, EndReason::LackOfResources);
            self.flows.remove(&start.key);
        }
    }

    fn object(&self, start: &FlowStart, operation: bpf::Operation, path: &Walked<'_>) -> Object {
        if start.family > AF_UNIX {
            return self.network(start, operation);
        }
        let kind = RESTYPE
            .into_iter()
            .find(|(mode, _)| start.mode & 0o170000 == *mode)
            .map_or(b'f', |(_, kind)| kind);
        let (name, flags) = match kind {
            b'u' if path.names.is_empty() => {
                (format!("socket:[{}]", start.inode).into_bytes(), file::DETACHED)
            }
            b'u' => (unix_name(path.names), 0),
            b'p' if path.flags & path::DETACHED != 0 => {
                (format!("pipe:[{}]", start.inode).into_bytes(), file::DETACHED)
            }
            _ => (names::walked(path), names::file_flags(path.flags)),
        };
        Object::File { kind, path: name, device: start.device, inode: start.inode, flags }
    }

    fn network(&self, start: &FlowStart, operation: bpf::Operation) -> Object {
        let address = |bytes: &[u8; 16]| match (start.family, bytes) {
            (AF_INET, [a, b, c, d, ..]) => Address::V4([*a, *b, *c, *d]),
            _ => Address::V6(*bytes),
        };
        let local = (address(&start.local), start.local_port);
        let remote = (address(&start.remote), start.remote_port);
        let (is_client, assumed) = match operation {
            bpf::Operation::Connect => (true, false),
            bpf::Operation::Accept => (false, false),
            // Who speaks first on a datagram socket is taken for the client.
            bpf::Operation::Send | bpf::Operation::Write if start.key.peer_family != 0 => {
                (true, true)
            }
            bpf::Operation::Receive | bpf::Operation::Read if start.key.peer_family != 0 => {
                (false, true)
            }
            _ => (local.1 >= remote.1, true),
        };
        let mut flags = 0;
        if assumed {
            flags |= network::ROLE_ASSUMED;
        }
        if start.flags & kernel_flow::PEER_FROM_PROGRAM != 0 {
            flags |= network::PEER_FROM_PROGRAM;
        }
        let (source, destination) = if is_client { (local, remote) } else { (remote, local) };
        Object::Network { source, destination, protocol: start.protocol as u8, flags }
    }

    fn flow_end(&mut self, end: &FlowEnd, counters: &dyn Counters) {
        let known = self.flows.get_mut(&end.key).filter(|flow| flow.flow_ns == end.flow_ns);
        let Some(flow) = known else {
            let total = volume(&end.volume);
            let count = total.read_ops + total.write_ops;
            self.count(Operation::Read, Term::LostTable, count);
            return;
        };
        flow.note(volume(&end.volume), end.header.time_ns);
        let (file, process) = (flow.file, flow.process);
        self.end_flow(&end.key, end.reason, end.shutdown, end.header.time_ns);
        if end.key.peer_family == 0 {
            let peers: Vec<FlowKey> = self
                .flows
                .iter()
                .filter(|(key, flow)| {
                    key.fd == end.key.fd && flow.process == process && flow.file == file
                })
                .map(|(key, _)| *key)
                .collect();
            let bit = if end.reason == kernel_flow::CLOSED { op::CLOSE } else { op::TRUNCATE };
            for key in peers {
                self.take_and_end(&key, bit, end.header.time_ns, counters);
            }
        }
    }

    fn end_flow(&mut self, key: &FlowKey, reason: u8, shutdown: u8, now_ns: u64) {
        let mut bits = if reason == kernel_flow::CLOSED {
            self.count(Operation::Close, Term::Aggregated, 1);
            op::CLOSE
        } else {
            op::TRUNCATE
        };
        if shutdown > 0 {
            self.count(Operation::Shutdown, Term::Aggregated, u64::from(shutdown));
            bits |= op::SHUTDOWN;
        }
        self.export(key, now_ns, bits, EndReason::EndDetected);
        self.flows.remove(key);
    }

    /// Ends a flow whose map entry the kernel side has left to the agent.
    fn take_and_end(&mut self, key: &FlowKey, bits: u32, now_ns: u64, counters: &dyn Counters) {
        if let Some(flow) = self.flows.get_mut(key)
            && let Some(total) = counters.take(key, flow.flow_ns)
        {
            flow.note(total, now_ns);
        }
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

    fn file_event(
        &mut self,
        header: &Header,
        ret: i32,
        operation: bpf::Operation,
        first: &Named<'_>,
        second: Option<&Named<'_>>,
    ) {
        use bpf::Operation as Kernel;
        let (ops, kind) = match operation {
            Kernel::Mkdir => (op::MKDIR, Operation::Mkdir),
            Kernel::Rmdir => (op::RMDIR, Operation::Rmdir),
            Kernel::Unlink => (op::UNLINK, Operation::Unlink),
            Kernel::Rename => (op::RENAME, Operation::Rename),
            Kernel::Link => (op::LINK, Operation::Link),
            _ => (op::SYMLINK, Operation::Symlink),
        };
        let oid = self.subject(header);
        self.write_processes(oid, header.time_ns, ObjectState::Reup);
        let container = self.container_of(oid);
        let restype = if ops & (op::MKDIR | op::RMDIR) != 0 { b'd' } else { b'?' };
        let name = |engine: &mut Engine, named: &Named<'_>, is_content: bool, state| {
            let path = if is_content { named.name.to_vec() } else { names::named(named) };
            let flags = file::AS_NAMED | names::file_flags(named.base.flags & path::CHROOT);
            engine.file(
                FileWords { kind: restype, path: &path, device: 0, inode: 0, flags },
                container,
                header.time_ns,
                state,
            )
        };
        let created = if ops & (op::MKDIR | op::RMDIR | op::UNLINK) != 0 {
            ObjectState::Created
        } else {
            ObjectState::Reup
        };
        let file = name(self, first, ops == op::SYMLINK, created);
        let new_file = second.map(|second| name(self, second, false, ObjectState::Created));
        let record = Record::FileEvent(FileEvent {
            process: oid,
            time_ns: header.time_ns,
            tid: header.tid,
            ops,
            file,
            ret,
            new_file,
        });
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
    }

    fn process_event(&mut self, oid: Oid, header: &Header, ops: u32, args: &[u8], ret: i32) {
        self.write_processes(oid, header.time_ns, ObjectState::Reup);
        let kind = match ops {
            op::CLONE => Operation::Clone,
            op::EXEC => Operation::Exec,
            op::EXIT => Operation::Exit,
            _ => Operation::Setuid,
        };
        let record = Record::ProcessEvent(ProcessEvent {
            process: oid,
            time_ns: header.time_ns,
            tid: header.tid,
            ops,
            args,
            ret,
        });
        if self.write(&record, kind) {
            self.count(kind, Term::Stored, 1);
        }
    }

    fn write(&mut self, record: &Record<'_>, kind: Operation) -> bool {
        let written = self.batch.push(record);
        if !written {
            self.count(kind, Term::LostEncoding, 1);
        }
        written
    }

    /// Writes the process and those of its ancestors that this generation does not have yet,
    /// root first. `state` is the process's own; the others are re-emitted.
    fn write_processes(&mut self, oid: Oid, now_ns: u64, state: ObjectState) {
        let generation = self.batch.generation();
        for next in self.processes.unwritten(oid, generation) {
            let container = self.container_of(next);
            let Some(process) = self.processes.get_mut(next) else { continue };
            process.written = Some(generation);
            let process = process.clone();
            let name = |names: &HashMap<u32, Vec<u8>>, id| names.get(&id).cloned();
            let user = name(&self.users.users, process.uid).unwrap_or_default();
            let group = name(&self.users.groups, process.gid).unwrap_or_default();
            let state = if next == oid { state } else { ObjectState::Reup };
            let record = process.record(state, now_ns, container, &user, &group);
            self.write(&Record::Process(record), Operation::Exec);
        }
    }

    /// The number of the process's container in this generation, written if it is new.
    fn container_of(&mut self, oid: Oid) -> u32 {
        let Some(id) = self.processes.get(oid).map(|p| p.container.clone()) else { return 0 };
        if id.is_empty() {
            return 0;
        }
        let generation = self.batch.generation();
        let next = self.containers.len() as u32 + 1;
        let (number, written) = *self.containers.get(&id).unwrap_or(&(next, u32::MAX));
        if written != generation {
            self.containers.insert(id.clone(), (number, generation));
            let record = Record::Container(Container {
                id: number,
                full_id: &id,
                name: &[],
                image: &[],
                image_id: &[],
                kind: 5,
                privileged: false,
                pod_id: &[],
            });
            self.write(&record, Operation::Exec);
        }
        number
    }

    /// The number of a file in this generation, written if it is new.
    fn file(
        &mut self,
        words: FileWords<'_>,
        container: u32,
        now_ns: u64,
        state: ObjectState,
    ) -> FileId {
        if self.files_generation != self.batch.generation() {
            self.files_generation = self.batch.generation();
            self.files.clear();
        }
        let key = self.hasher.hash_one((
            words.kind,
            words.path,
            container,
            words.device,
            words.inode,
            words.flags,
        ));
        if let Some(id) = self.files.get(&key) {
            return *id;
        }
        let id = FileId(self.files.len() as u32);
        self.files.insert(key, id);
        let record = Record::File(File {
            state,
            id,
            time_ns: now_ns,
            kind: words.kind,
            path: words.path,
            container,
            device: words.device,
            inode: words.inode,
            flags: words.flags,
        });
        self.write(&record, Operation::Open);
        id
    }
}

#[derive(Clone, Copy)]
struct FileWords<'a> {
    kind: u8,
    path: &'a [u8],
    device: u32,
    inode: u64,
    flags: u32,
}

fn volume(kernel: &bpf::Volume) -> Volume {
    Volume {
        read_ops: kernel.read_ops,
        write_ops: kernel.write_ops,
        read_bytes: kernel.read_bytes,
        write_bytes: kernel.write_bytes,
    }
}

/// A unix socket's name: an abstract one begins with a NUL, which is written as `@`; a path
/// ends at its NUL.
fn unix_name(bytes: &[u8]) -> Vec<u8> {
    match bytes.split_first() {
        Some((0, rest)) => [b"@", rest].concat(),
        _ => bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec(),
    }
}

/// The container that a control group's name speaks of: runtimes put its 64 hexadecimal digits
/// there, with or without a prefix and a suffix.
pub fn container_id(cgroup: &[u8]) -> Option<&[u8]> {
    cgroup.split(|byte| !byte.is_ascii_hexdigit()).find(|part| part.len() == 64)
}
