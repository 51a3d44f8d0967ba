//! Processes: creation, programs, ends, and the threads that come and go between.

use bpf::{Header, Named, Started, Walked, path};
use codec::{
    CLASSES, Class, EndReason, ObjectState, Oid, Operation, ProcessFlow, Record, Subject, Term, op,
    process,
};

use super::{Counters, Engine};
use crate::entity::{Process, Words, split_arguments};
use crate::names;

impl Engine {
    pub(super) fn fork(&mut self, fork: &bpf::Fork) {
        let Some(creator) = self.subject(&fork.header, Operation::Clone) else { return };
        if fork.child_tgid == fork.header.tgid {
            self.count(Operation::Clone, Term::Aggregated, 1);
            self.threads(creator, fork.header.time_ns, |t| t.cloned += 1);
            return;
        }
        let oid = Oid { start_ns: fork.child_start_ns, pid: fork.child_tgid };
        let parent = self.processes.resolve(fork.parent_tgid, fork.parent_start_ns);
        if let Some(process) = self.processes.get_mut(oid) {
            // The first look at the system met it, too.
            process.flags &= !process::PRE_EXISTING;
            process.parent = Some(parent);
        } else {
            self.make_place(creator, fork.header.time_ns);
            let known = self.processes.child_of(creator);
            let mut child = known.unwrap_or_else(|| Process::unknown(oid));
            child.flags &= !(process::START_COARSE | process::PRE_EXISTING);
            child.oid = oid;
            child.parent = Some(parent);
            child.entry = fork.child_namespace_pid == 1;
            child.written = [None; CLASSES];
            child.ended_ns = None;
            child.threads = Default::default();
            child.flows = 0;
            if !self.processes.insert(child) {
                self.count(Operation::Clone, Term::LostTable, 1);
                return;
            }
        }
        let header = Header { tid: fork.child_tid, ..fork.header };
        let exe = self.exe_hash(oid);
        if self.fold_event(&header, oid, Operation::Clone, Subject::Processes, exe) {
            return;
        }
        self.write_processes(Class::Urgent, oid, header.time_ns, ObjectState::Created);
        self.process_event(oid, &header, Operation::Clone, &[], 0);
    }

    pub(super) fn exec(&mut self, started: &Started<'_>) {
        let exec = &started.exec;
        let oid = self.processes.resolve(exec.header.tgid, exec.header.start_ns);
        let state = match self.processes.get(oid) {
            Some(_) => ObjectState::Modified,
            None => ObjectState::Created,
        };
        let Some(oid) = self.subject(&exec.header, Operation::Exec) else { return };
        // Exec ends all threads but one: they were the old program's.
        self.export_threads(oid, exec.header.time_ns, EndReason::EndDetected);
        let parent = (exec.parent_tgid != 0)
            .then(|| self.processes.resolve(exec.parent_tgid, exec.parent_start_ns));
        let (mut paths, mut masked) =
            (std::mem::take(&mut self.buffers.paths), std::mem::take(&mut self.buffers.masked));
        paths.clear();
        masked.clear();
        names::walked(&started.exe, &mut paths);
        let exe_end = paths.len();
        names::walked(&started.cwd, &mut paths);
        let cwd_end = paths.len();
        script(started, &mut paths);
        let exe = &paths[..exe_end];
        let (argv0, args) = split_arguments(exe, started.args);
        let mut hidden = self.privacy.arguments(exe, args, &mut masked);
        let args_end = masked.len();
        hidden |= self.privacy.arguments(b"", argv0, &mut masked);
        let argv0_end = masked.len();
        hidden |= self.privacy.environment(started.env, &mut masked);
        let words = Words {
            exe,
            cwd: &paths[exe_end..cwd_end],
            script: &paths[cwd_end..],
            args: &masked[..args_end],
            argv0: &masked[args_end..argv0_end],
            env: &masked[argv0_end..],
            container: container_id(started.cgroup).unwrap_or_default(),
        };
        if let Some(process) = self.processes.get_mut(oid) {
            process.parent = process.parent.or(parent);
            process.uid = exec.uid;
            process.gid = exec.gid;
            process.tty = exec.tty != 0;
            process.entry = exec.namespace_pid == 1;
            process.mount_namespace = exec.mount_namespace;
            let walks = started.exe.flags | started.cwd.flags;
            process.flags = [
                (exec.args_total > started.args.len() as u32, process::ARGS_TRUNCATED),
                (exec.env_total > started.env.len() as u32, process::ENV_TRUNCATED),
                (walks & path::TRUNCATED != 0, process::PATH_TRUNCATED),
                (started.exe.flags & path::DELETED != 0, process::EXE_DELETED),
                (started.exe.flags & path::DETACHED != 0, process::EXE_DETACHED),
                (exec.header.flags & bpf::EVENT_COMPAT != 0, process::COMPAT),
                (hidden, process::REDACTED),
            ]
            .into_iter()
            .filter(|(is_set, _)| *is_set)
            // It keeps the identity that the first look at the system gave it.
            .fold(process.flags & process::START_COARSE, |flags, (_, flag)| flags | flag);
            process.written = [None; CLASSES];
        }
        self.processes.set_words(oid, words);
        (self.buffers.paths, self.buffers.masked) = (paths, masked);
        let exe = self.exe_hash(oid);
        if self.fold_event(&exec.header, oid, Operation::Exec, Subject::Processes, exe) {
            return;
        }
        self.write_processes(Class::Urgent, oid, exec.header.time_ns, state);
        self.process_event(oid, &exec.header, Operation::Exec, &[], 0);
    }

    pub(super) fn exit(&mut self, exit: &bpf::Exit, counters: &dyn Counters) {
        let Some(oid) = self.subject(&exit.header, Operation::Exit) else { return };
        let now_ns = exit.header.time_ns;
        if exit.last == 0 {
            self.count(Operation::Exit, Term::Aggregated, 1);
            self.threads(oid, now_ns, |t| t.exited += 1);
            return;
        }
        // Where the last two threads end at once, each finds nobody left.
        if self.processes.get(oid).is_some_and(|process| process.ended_ns.is_some()) {
            self.count(Operation::Exit, Term::Aggregated, 1);
            self.threads(oid, now_ns, |t| t.exited += 1);
            self.export_threads(oid, now_ns, EndReason::EndDetected);
            return;
        }
        // What the kernel side's own sweep does not reach: high descriptors, and peers.
        // Of one that was forgotten meanwhile the flows are not counted.
        let may_have_flows =
            |process: &Process| process.flows > 0 || process.flags & process::INCOMPLETE != 0;
        if self.processes.get(oid).is_some_and(may_have_flows) {
            let open = self.keys_of(|_, flow| flow.process == oid);
            for (_, key) in &open {
                self.take_and_end_last(key, now_ns, counters);
            }
            self.keys = open;
        }
        self.export_threads(oid, now_ns, EndReason::EndDetected);
        self.export_process_summary(oid, now_ns, EndReason::EndDetected);
        let exe = self.exe_hash(oid);
        // The end is the process's, whichever of its threads came last.
        let header = Header { tid: exit.header.tgid, ..exit.header };
        if !self.fold_event(&header, oid, Operation::Exit, Subject::Processes, exe) {
            self.process_event(oid, &header, Operation::Exit, &[], exit.status);
        }
        self.processes.end(oid, now_ns);
    }

    /// Marks a process of whose doing a part is not seen.
    pub(super) fn io_uring(&mut self, header: &Header) {
        let Some(oid) = self.subject(header, Operation::IoUring) else { return };
        self.count(Operation::IoUring, Term::Aggregated, 1);
        let Some(process) = self.processes.get_mut(oid) else { return };
        if process.flags & process::IO_URING == 0 {
            process.flags |= process::IO_URING;
            process.written = [None; CLASSES];
            self.write_processes(Class::Urgent, oid, header.time_ns, ObjectState::Modified);
        }
    }

    pub(super) fn threads(
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

    pub(super) fn export_threads(&mut self, oid: Oid, now_ns: u64, end: EndReason) {
        let Some(process) = self.processes.get_mut(oid) else { return };
        let threads = std::mem::take(&mut process.threads);
        if threads.cloned + threads.exited + threads.errors == 0 {
            return;
        }
        self.write_processes(Class::Volume, oid, now_ns, ObjectState::Reup);
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
}

/// The container that a control group's name speaks of: runtimes put its 64 hexadecimal digits
/// there, with or without a prefix and a suffix.
pub fn container_id(cgroup: &[u8]) -> Option<&[u8]> {
    cgroup.split(|byte| !byte.is_ascii_hexdigit()).find(|part| part.len() == 64)
}

/// Appends the absolute path of the script that was started; nothing if none was.
fn script(started: &Started<'_>, out: &mut Vec<u8>) {
    let base = if started.script.starts_with(b"/") {
        Walked { names: b"", flags: 0 }
    } else {
        started.cwd
    };
    if !started.script.is_empty() {
        names::named(&Named { base, root_bytes: 0, name: started.script }, out);
    }
}
