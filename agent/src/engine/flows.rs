//! Flows: their beginning, their records and their end.

use bpf::{ClosedRange, FlowEnd, FlowKey, FlowStart, Walked, flow as kernel_flow};
use codec::{
    Class, EndReason, FileFlow, NetworkFlow, ObjectState, Operation, Record, Subject, Term, file,
    op,
};

use super::records::FileWords;
use super::summaries::{Part, told};
use super::{Counters, EARLY_MAX, Engine, Last, Taken, object};
use crate::flow::{Flow, Object, Totals, open_flags};

const IPPROTO_TCP: u8 = 6;
/// Answers of connect (negative errno) that tell of no failure.
const EISCONN: i32 = -106;
const EALREADY: i32 = -114;
const EINPROGRESS: i32 = -115;
/// Flows that are tried when one must make room.
const FREEING_TRIES: usize = 16;
/// A socket that failed so long before a connect, ns, was another one at the same address.
const REFUSAL_AGE_MAX_NS: u64 = 1_000_000_000;

impl Engine {
    /// How an attempt failed before the call that began it had returned; 0 if it did not.
    fn refusal(&mut self, start: &FlowStart) -> i32 {
        let found = self.refused.iter().position(|state| state.file == start.file);
        let state = found.and_then(|at| self.refused.remove(at));
        let recent = state.filter(|state| {
            start.header.time_ns.saturating_sub(state.header.time_ns) < REFUSAL_AGE_MAX_NS
        });
        recent.map_or(0, |state| state.error)
    }

    pub(super) fn flow_start(
        &mut self,
        start: &FlowStart,
        operation: bpf::Operation,
        path: &Walked<'_>,
        counters: &dyn Counters,
    ) {
        let (ops, kind) = match operation {
            bpf::Operation::Open => (op::OPEN, Some(Operation::Open)),
            bpf::Operation::Accept => (op::ACCEPT, Some(Operation::Accept)),
            bpf::Operation::Connect => (op::CONNECT, Some(Operation::Connect)),
            // A connection made through io_uring.
            bpf::Operation::SocketState => (op::CONNECT, Some(Operation::SocketState)),
            bpf::Operation::Setns => (op::SETNS, Some(Operation::Setns)),
            // What the flow's counters tell.
            _ => (0, None),
        };
        let untracked = (start.flags & kernel_flow::UNTRACKED != 0).then(|| {
            let once = |wanted| u32::from(operation == wanted);
            let (shutdowns, mmaps) = (once(bpf::Operation::Shutdown), once(bpf::Operation::Mmap));
            Totals::new(&start.volume, shutdowns, mmaps)
        });
        let Some(oid) = self.known(&start.header) else {
            if let Some(kind) = kind {
                self.count(kind, Term::LostTable, 1);
            }
            if let Some(totals) = &untracked {
                self.count_lost(totals, 0);
            }
            if let Some(last) = self.claim_early(start) {
                self.count_lost(&last.totals, last.ended);
            }
            return;
        };
        if let Some(kind) = kind {
            self.count(kind, Term::Aggregated, 1);
        }
        let error = match start.ret {
            _ if ops != op::CONNECT => 0,
            EINPROGRESS => self.refusal(start),
            error => error.min(0),
        };
        if start.flags & kernel_flow::CONTINUED != 0 {
            if let Some(flow) = self.flows.get_mut(&start.key) {
                flow.ops |= ops;
                // That it is connected, or still being, is no failure of the connection.
                if ops == op::CONNECT && !matches!(error, EISCONN | EALREADY) {
                    flow.error = error;
                }
            }
            return;
        }
        let now_ns = start.header.time_ns;
        let object = self.object(start, operation, path);
        let mut flow = Flow {
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
            seen: Totals::default(),
            exported: Totals::default(),
            session: start.header.session,
            floods: self.floods,
            is_taken: false,
        };
        let early = self.claim_early(start);
        if let Some(last) = &early {
            flow.note(last.totals, now_ns);
            flow.is_taken = true;
        }
        if let Some(totals) = untracked {
            // One that the kernel does not track displaces nothing: the end of what is known
            // under its number, if it has one, is still on its way.
            flow.note(totals, now_ns);
            let end = EndReason::LackOfResources;
            self.tell(&start.key, &mut flow, now_ns, op::TRUNCATE, end);
            self.release(&flow);
            return;
        }
        if self.flows.contains(&start.key) {
            // Its end was not told, so its last counters are those of the last sweep.
            self.export(&start.key, now_ns, op::TRUNCATE, EndReason::EndDetected);
            self.remove(&start.key);
        }
        if self.flows.is_full() && !self.free_flow(now_ns, counters) {
            // Its beginning is told; what follows is counted as lost when it ends.
            self.tell(&start.key, &mut flow, now_ns, op::TRUNCATE, EndReason::LackOfResources);
            self.release(&flow);
            return;
        }
        if let Some(process) = self.processes.get_mut(oid) {
            process.flows += 1;
        }
        // There is a place.
        let _ = self.flows.insert(start.key, flow);
        if let Some(Last { ended, .. }) = early
            && ended != 0
        {
            self.end_flow(&start.key, ended, now_ns);
        }
    }

    /// Exports the least recently active flow to make room for another; `false` if there is
    /// none. Its counters must still be the kernel's: of one that has ended the ring tells the
    /// totals yet, which could not be told from what has been exported.
    fn free_flow(&mut self, now_ns: u64, counters: &dyn Counters) -> bool {
        let mut after_ns = 0;
        for _ in 0..FREEING_TRIES {
            let later = self.flows.iter().filter(|(_, flow)| flow.active_ns > after_ns);
            let oldest = later.min_by_key(|(_, flow)| flow.active_ns);
            let Some((key, flow)) = oldest.map(|(key, flow)| (*key, *flow)) else { break };
            if let Some(last) = self.take(&key, flow.flow_ns, counters) {
                if let Some(flow) = self.flows.get_mut(&key) {
                    flow.note(last.totals, now_ns);
                }
                match last.ended {
                    0 => {
                        self.export(&key, now_ns, op::TRUNCATE, EndReason::LackOfResources);
                        self.remove(&key);
                    }
                    reason => self.end_flow(&key, reason, now_ns),
                }
                return true;
            }
            after_ns = flow.active_ns;
        }
        false
    }

    /// The object of a flow that begins, its path in the pool.
    fn object(
        &mut self,
        start: &FlowStart,
        operation: bpf::Operation,
        path: &Walked<'_>,
    ) -> Object {
        let mut words = std::mem::take(&mut self.buffers.paths);
        words.clear();
        let mut object = object::of(start, operation, path, &mut words);
        if let Object::File { path, flags, .. } = &mut object {
            match self.processes.store(&words) {
                Some(text) => *path = text,
                None => *flags |= file::PATH_TRUNCATED,
            }
        }
        self.buffers.paths = words;
        object
    }

    fn remove(&mut self, key: &FlowKey) {
        if let Some(flow) = self.flows.remove(key) {
            self.release(&flow);
            if let Some(process) = self.processes.get_mut(flow.process) {
                process.flows = process.flows.saturating_sub(1);
            }
        }
    }

    fn release(&mut self, flow: &Flow) {
        if let Object::File { path, .. } = flow.object {
            self.processes.release(path);
        }
    }

    pub(super) fn flow_end(&mut self, end: &FlowEnd, counters: &dyn Counters) {
        let known = self.flows.get_mut(&end.key).filter(|flow| flow.flow_ns == end.flow_ns);
        let Some(flow) = known else {
            // The flow had no place here.
            self.count_lost(&Totals::new(&end.volume, end.shutdown, end.mmaps), end.reason);
            return;
        };
        flow.note(Totals::new(&end.volume, end.shutdown, end.mmaps), end.header.time_ns);
        let (file, process) = (flow.file, flow.process);
        let may_have_peers = match flow.object {
            Object::Network { protocol, .. } => protocol != IPPROTO_TCP,
            Object::File { .. } => false,
        };
        self.end_flow(&end.key, end.reason, end.header.time_ns);
        if may_have_peers && end.key.peer_family == 0 {
            let peers = self.keys_of(|key, flow| {
                key.fd == end.key.fd && flow.process == process && flow.file == file
            });
            for (_, key) in &peers {
                self.take_and_end(key, closing_bit(end.reason), end.header.time_ns, counters);
            }
            self.keys = peers;
        }
    }

    /// Ends the flows of descriptors that close_range has closed and the kernel side has not
    /// looked at.
    pub(super) fn closed_range(&mut self, range: &ClosedRange, counters: &dyn Counters) {
        let oid = self.processes.resolve(range.header.tgid, range.header.start_ns);
        let closed = range.first..=range.last;
        let keys = self.keys_of(|key, flow| {
            flow.process == oid && u32::try_from(key.fd).is_ok_and(|fd| closed.contains(&fd))
        });
        for (_, key) in &keys {
            self.take_and_end(key, op::CLOSE, range.header.time_ns, counters);
        }
        self.keys = keys;
    }

    pub(super) fn end_flow(&mut self, key: &FlowKey, reason: u8, now_ns: u64) {
        if reason == kernel_flow::CLOSED {
            self.count(Operation::Close, Term::Aggregated, 1);
        }
        self.export(key, now_ns, closing_bit(reason), EndReason::EndDetected);
        self.remove(key);
    }

    /// Ends a flow whose map entry the kernel side has left to the agent, unless it has ended it
    /// by itself meanwhile: then the event is still to come.
    fn take_and_end(&mut self, key: &FlowKey, bits: u64, now_ns: u64, counters: &dyn Counters) {
        let Some(flow) = self.flows.get(key) else { return };
        let (flow_ns, is_taken) = (flow.flow_ns, flow.is_taken);
        match self.take(key, flow_ns, counters) {
            Some(last) => self.end_with(key, last, bits, now_ns),
            None if is_taken => self.end_last(key, bits, now_ns),
            None => {}
        }
    }

    /// Ends a flow of a process that has ended: no event is to come.
    pub(super) fn take_and_end_last(
        &mut self,
        key: &FlowKey,
        now_ns: u64,
        counters: &dyn Counters,
    ) {
        let Some(flow_ns) = self.flows.get(key).map(|flow| flow.flow_ns) else { return };
        match self.take(key, flow_ns, counters) {
            Some(last) => self.end_with(key, last, op::TRUNCATE, now_ns),
            None => self.end_last(key, op::TRUNCATE, now_ns),
        }
    }

    /// Ends a flow that was taken out of the kernel's map; `bits` are added unless the kernel side
    /// says how it ended.
    pub(super) fn end_with(&mut self, key: &FlowKey, last: Last, bits: u64, now_ns: u64) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.note(last.totals, now_ns);
        }
        match last.ended {
            0 => self.end_last(key, bits, now_ns),
            reason => self.end_flow(key, reason, now_ns),
        }
    }

    fn end_last(&mut self, key: &FlowKey, bits: u64, now_ns: u64) {
        self.export(key, now_ns, bits, EndReason::EndDetected);
        self.remove(key);
    }

    /// Takes a flow out of the kernel's map; none if it is not there.
    pub(super) fn take(
        &mut self,
        key: &FlowKey,
        flow_ns: u64,
        counters: &dyn Counters,
    ) -> Option<Last> {
        match counters.take(key, flow_ns) {
            Taken::Flow(last) => Some(last),
            Taken::Ended => None,
            Taken::Younger(flow_ns, last) => {
                if self.early.len() == EARLY_MAX
                    && let Some((.., lost)) = self.early.pop_front()
                {
                    self.count_lost(&lost.totals, lost.ended);
                }
                self.early.push_back((*key, flow_ns, last));
                None
            }
        }
    }

    /// What was taken out of the kernel's map of a flow before its start was told.
    fn claim_early(&mut self, start: &FlowStart) -> Option<Last> {
        let is_it = |(key, flow_ns, _): &(FlowKey, u64, Last)| {
            (*key, *flow_ns) == (start.key, start.flow_ns)
        };
        let found = self.early.iter().position(is_it);
        found.and_then(|at| self.early.remove(at)).map(|(.., last)| last)
    }

    /// Counts what a flow did that has no place here.
    pub(super) fn count_lost(&mut self, lost: &Totals, ended: u8) {
        if ended == kernel_flow::CLOSED {
            self.count(Operation::Close, Term::LostTable, 1);
        }
        self.count(Operation::Read, Term::LostTable, lost.volume.read_ops);
        self.count(Operation::Write, Term::LostTable, lost.volume.write_ops);
        self.count(Operation::Shutdown, Term::LostTable, lost.shutdowns.into());
        self.count(Operation::Mmap, Term::LostTable, lost.mmaps.into());
    }

    /// Writes what a flow did since its last record, if anything. `bits` are added; a flow that
    /// only ends with TRUNCATE has nothing to say.
    pub(super) fn export(&mut self, key: &FlowKey, now_ns: u64, bits: u64, end: EndReason) {
        let Some(mut flow) = self.flows.get(key).copied() else { return };
        self.tell(key, &mut flow, now_ns, bits, end);
        if let Some(known) = self.flows.get_mut(key) {
            *known = flow;
        }
    }

    fn tell(&mut self, key: &FlowKey, flow: &mut Flow, now_ns: u64, bits: u64, end: EndReason) {
        let taken = flow.take();
        let (done, ops) = match taken {
            Some((done, ops)) => (done, ops | bits),
            None if bits & !op::TRUNCATE != 0 => (Totals::default(), bits),
            None => return,
        };
        let since_ns = std::mem::replace(&mut flow.since_ns, now_ns);
        let subject = match flow.object {
            Object::File { .. } => Subject::Files,
            Object::Network { .. } => Subject::Network,
        };
        if let Some(scope) = self.scope_of(flow, ops) {
            let object = self.object_hash(&flow.object);
            let (process, kind) = (flow.process, None);
            let named = process;
            let part = Part { subject, process, named, object, ops, done, kind, since_ns, now_ns };
            self.fold(scope, &part);
            return;
        }
        if self.processes.get(flow.process).is_none() {
            // It had to make room. Where there is none, the record has its identity alone.
            self.know(flow.process, now_ns);
        }
        let class = Class::of_subject(subject);
        self.write_processes(class, flow.process, now_ns, ObjectState::Reup);
        let record = match &flow.object {
            Object::File { kind, path, device, inode, flags } => {
                let container = self.container_of(class, flow.process);
                let mut words = std::mem::take(&mut self.buffers.paths);
                words.clear();
                self.processes.append(*path, &mut words);
                let path = words.as_slice();
                let file = self.file(
                    FileWords { kind: *kind, path, device: *device, inode: *inode, flags: *flags },
                    container,
                    now_ns,
                    ObjectState::Reup,
                );
                self.buffers.paths = words;
                Record::FileFlow(FileFlow {
                    process: flow.process,
                    time_ns: since_ns,
                    tid: flow.tid,
                    ops,
                    open_flags: flow.open_flags,
                    end_ns: now_ns,
                    file,
                    fd: key.fd,
                    volume: done.volume,
                    end,
                })
            }
            Object::Network { source, destination, protocol, flags } => {
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
                    volume: done.volume,
                    end,
                    error: flow.error,
                    flags: *flags,
                })
            }
        };
        for (kind, count) in told(subject, &done) {
            self.count(kind, Term::Aggregated, count);
        }
        self.write(&record, Operation::Close);
    }
}

/// How the end of a flow shows in its operations.
fn closing_bit(reason: u8) -> u64 {
    match reason {
        kernel_flow::CLOSED
        | kernel_flow::CLOSED_RANGE
        | kernel_flow::CLOSED_DUP
        | kernel_flow::CLOSED_LATE => op::CLOSE,
        _ => op::TRUNCATE,
    }
}
