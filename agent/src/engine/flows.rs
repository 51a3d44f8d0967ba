//! Flows: their beginning, their records and their end.

use bpf::{FlowEnd, FlowKey, FlowStart, Walked, flow as kernel_flow};
use codec::{EndReason, FileFlow, NetworkFlow, ObjectState, Operation, Record, Term, Volume, op};

use super::records::FileWords;
use super::{Counters, Engine, object};
use crate::flow::{Flow, Object, open_flags};

const EINPROGRESS: i32 = 115;

impl Engine {
    pub(super) fn flow_start(
        &mut self,
        start: &FlowStart,
        operation: bpf::Operation,
        path: &Walked<'_>,
    ) {
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

    pub(super) fn flow_end(&mut self, end: &FlowEnd, counters: &dyn Counters) {
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

    pub(super) fn end_flow(&mut self, key: &FlowKey, reason: u8, shutdowns: u32, now_ns: u64) {
        if reason == kernel_flow::CLOSED {
            self.count(Operation::Close, Term::Aggregated, 1);
        }
        let bits = closing_bit(reason) | self.shutdown_bit(shutdowns);
        self.export(key, now_ns, bits, EndReason::EndDetected);
        self.flows.remove(key);
    }

    /// Counts a flow's calls of shutdown.
    pub(super) fn shutdown_bit(&mut self, shutdowns: u32) -> u32 {
        self.count(Operation::Shutdown, Term::Aggregated, shutdowns.into());
        if shutdowns > 0 { op::SHUTDOWN } else { 0 }
    }

    /// Ends a flow whose map entry the kernel side has left to the agent.
    pub(super) fn take_and_end(
        &mut self,
        key: &FlowKey,
        bits: u32,
        now_ns: u64,
        counters: &dyn Counters,
    ) {
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
    pub(super) fn export(&mut self, key: &FlowKey, now_ns: u64, bits: u32, end: EndReason) {
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
        kernel_flow::CLOSED | kernel_flow::CLOSED_RANGE | kernel_flow::CLOSED_LATE => op::CLOSE,
        _ => op::TRUNCATE,
    }
}

/// The kernel's counters in the wire's words.
pub(super) fn volume(kernel: &bpf::Volume) -> Volume {
    Volume {
        read_ops: kernel.read_ops,
        write_ops: kernel.write_ops,
        read_bytes: kernel.read_bytes,
        write_bytes: kernel.write_bytes,
    }
}
