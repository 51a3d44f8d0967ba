//! The table of processes. Events and the first look at the system go in; identities and
//! entity records come out, ancestors first. Bound: `processes_max`; when full, the process
//! that ended longest ago goes, and an operation of a process that finds no place is counted
//! as lost. Pure: no clock, no file.

use std::collections::HashMap;

use codec::{ObjectState, Oid, Process as Record, process};

/// procfs tells starts in ticks of 10 ms.
pub const START_TICK_NS: u64 = 10_000_000;
/// Generations a chain of parents at most; a longer one is a fault in the table.
const ANCESTORS_MAX: usize = 64;

/// Threads of a process that came and went since the last record of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threads {
    /// First of them, boot clock, ns.
    pub since_ns: u64,
    /// Started.
    pub cloned: u64,
    /// Ended.
    pub exited: u64,
    /// Failed to start.
    pub errors: u64,
}

/// A process as the agent knows it.
#[derive(Clone, Debug)]
pub struct Process {
    /// Identity.
    pub oid: Oid,
    /// Parent at creation.
    pub parent: Option<Oid>,
    /// Absolute path of the executable.
    pub exe: Vec<u8>,
    /// argv\[1..\], a NUL after each.
    pub args: Vec<u8>,
    /// Working directory when last looked up.
    pub cwd: Vec<u8>,
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Whether it has a controlling terminal.
    pub tty: bool,
    /// Whether it is pid 1 of its namespace.
    pub entry: bool,
    /// Its container's full id, empty for the host.
    pub container: Vec<u8>,
    /// Bits of [`codec::process`].
    pub flags: u32,
    /// argv\[0\] as [`codec::Process::argv0`] shortens it.
    pub argv0: Vec<u8>,
    /// The script that `exe` interprets, if any.
    pub script: Vec<u8>,
    /// Allowed variables, `K=V`, a NUL after each.
    pub env: Vec<u8>,
    /// Inode number of its mount namespace, 0 if unknown.
    pub mount_namespace: u32,
    /// Generation in which it was last written.
    pub written: Option<u32>,
    /// When it ended, boot clock, ns.
    pub ended_ns: Option<u64>,
    /// Threads not yet told.
    pub threads: Threads,
    /// Bytes of its texts, as the table has counted them.
    counted_bytes: usize,
}

impl Process {
    /// A process of which nothing but its identity is known.
    pub fn unknown(oid: Oid) -> Process {
        Process {
            oid,
            parent: None,
            exe: Vec::new(),
            args: Vec::new(),
            cwd: Vec::new(),
            uid: u32::MAX,
            gid: u32::MAX,
            tty: false,
            entry: false,
            container: Vec::new(),
            flags: process::INCOMPLETE,
            argv0: Vec::new(),
            script: Vec::new(),
            env: Vec::new(),
            mount_namespace: 0,
            written: None,
            ended_ns: None,
            threads: Threads::default(),
            counted_bytes: 0,
        }
    }

    /// Takes its arguments, argv\[0\] first, a NUL after each. `exe` is known already.
    pub fn set_arguments(&mut self, argv: &[u8]) {
        let end = argv.iter().position(|byte| *byte == 0);
        let (first, rest) = match end {
            Some(end) => (&argv[..end], &argv[end + 1..]),
            None => (argv, &[][..]),
        };
        let last_part = self.exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.argv0 = if first == last_part {
            Vec::new()
        } else if first == self.exe {
            b"/".to_vec()
        } else {
            first.to_vec()
        };
        self.args = rest.to_vec();
    }

    fn text_bytes(&self) -> usize {
        let texts = [
            &self.exe,
            &self.args,
            &self.cwd,
            &self.container,
            &self.argv0,
            &self.script,
            &self.env,
        ];
        texts.into_iter().map(Vec::len).sum()
    }

    /// The entity record.
    pub fn record<'a>(
        &'a self,
        state: ObjectState,
        time_ns: u64,
        container: u32,
        user: &'a [u8],
        group: &'a [u8],
    ) -> Record<'a> {
        Record {
            state,
            oid: self.oid,
            parent: self.parent,
            time_ns,
            exe: &self.exe,
            args: &self.args,
            uid: self.uid,
            gid: self.gid,
            user,
            group,
            tty: self.tty,
            container,
            entry: self.entry,
            cwd: &self.cwd,
            env: &self.env,
            flags: self.flags,
            argv0: &self.argv0,
            script: &self.script,
            mount_namespace: self.mount_namespace,
        }
    }
}

/// All processes that records may refer to.
#[derive(Debug)]
pub struct Processes {
    table: HashMap<Oid, Process>,
    by_pid: HashMap<u32, Oid>,
    processes_max: usize,
    text_bytes: usize,
    text_bytes_max: usize,
}

impl Processes {
    /// An empty table for at most `processes_max` processes and `text_bytes_max` bytes of their
    /// paths and arguments.
    pub fn new(processes_max: usize, text_bytes_max: usize) -> Processes {
        Processes {
            table: HashMap::with_capacity(processes_max * 2),
            by_pid: HashMap::with_capacity(processes_max * 2),
            processes_max,
            text_bytes: 0,
            text_bytes_max,
        }
    }

    /// Adds a process; `false` if there is no place even after the ended ones have gone.
    pub fn insert(&mut self, process: Process) -> bool {
        if self.table.len() >= self.processes_max && !self.table.contains_key(&process.oid) {
            let oldest =
                self.table.values().filter_map(|p| p.ended_ns.map(|ended| (ended, p.oid))).min();
            match oldest {
                Some((_, oid)) => self.remove(oid),
                None => return false,
            }
        }
        let oid = process.oid;
        self.remove(oid);
        self.by_pid.insert(oid.pid, oid);
        self.table.insert(oid, Process { counted_bytes: 0, ..process });
        self.settle(oid);
        true
    }

    /// Counts the texts of a process that changed. Where they are too many, its arguments go,
    /// and it says so.
    pub fn settle(&mut self, oid: Oid) {
        let Some(process) = self.table.get_mut(&oid) else { return };
        let others = self.text_bytes - process.counted_bytes;
        if others + process.text_bytes() > self.text_bytes_max && !process.args.is_empty() {
            process.args = Vec::new();
            process.flags |= process::ARGS_TRUNCATED;
        }
        if others + process.text_bytes() > self.text_bytes_max && !process.env.is_empty() {
            process.env = Vec::new();
            process.flags |= process::ENV_TRUNCATED;
        }
        process.counted_bytes = process.text_bytes();
        self.text_bytes = others + process.counted_bytes;
    }

    fn remove(&mut self, oid: Oid) {
        if let Some(process) = self.table.remove(&oid) {
            self.text_bytes -= process.counted_bytes;
        }
        if self.by_pid.get(&oid.pid) == Some(&oid) {
            self.by_pid.remove(&oid.pid);
        }
    }

    /// The identity in this table of a process that the kernel names by pid and exact start: a
    /// process from procfs is known by its start's tick only, and keeps that identity.
    pub fn resolve(&self, pid: u32, start_ns: u64) -> Oid {
        let exact = Oid { start_ns, pid };
        match self.by_pid.get(&pid).and_then(|oid| self.table.get(oid)) {
            Some(known)
                if known.flags & process::START_COARSE != 0
                    && known.oid.start_ns / START_TICK_NS == start_ns / START_TICK_NS =>
            {
                known.oid
            }
            _ => exact,
        }
    }

    /// A process.
    pub fn get(&self, oid: Oid) -> Option<&Process> {
        self.table.get(&oid)
    }

    /// A process.
    pub fn get_mut(&mut self, oid: Oid) -> Option<&mut Process> {
        self.table.get_mut(&oid)
    }

    /// The process and its ancestors that have not been written in `generation`, root first.
    pub fn unwritten(&self, oid: Oid, generation: u32) -> Vec<Oid> {
        let mut chain = Vec::new();
        let mut next = Some(oid);
        while let Some(process) = next.and_then(|oid| self.table.get(&oid)) {
            if chain.len() >= ANCESTORS_MAX || chain.contains(&process.oid) {
                break;
            }
            if process.written != Some(generation) {
                chain.push(process.oid);
            }
            next = process.parent;
        }
        chain.reverse();
        chain
    }

    /// Since when there are threads to tell, boot clock, ns.
    pub fn threads_since(&self) -> Option<u64> {
        let untold = self.table.values().map(|p| &p.threads);
        untold.filter(|t| t.cloned + t.exited + t.errors > 0).map(|t| t.since_ns).min()
    }

    /// Processes with threads to tell since before `time_ns`.
    pub fn with_threads_since(&self, time_ns: u64) -> Vec<Oid> {
        let mut found: Vec<Oid> = self
            .table
            .values()
            .filter(|p| {
                let t = &p.threads;
                t.cloned + t.exited + t.errors > 0 && t.since_ns <= time_ns
            })
            .map(|p| p.oid)
            .collect();
        // The order of the table must not reach the wire.
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_args(pid: u32, bytes: usize) -> Process {
        let mut process = Process::unknown(Oid { start_ns: u64::from(pid), pid });
        process.args = vec![b'a'; bytes];
        process
    }

    #[test]
    fn arguments_go_where_texts_are_too_many() {
        let mut processes = Processes::new(8, 100);
        let oids = [1, 2, 3].map(|pid| Oid { start_ns: u64::from(pid), pid });
        for pid in 1..=3 {
            assert!(processes.insert(with_args(pid, 60)));
        }
        let args = oids.map(|oid| processes.get(oid).unwrap().args.len());
        assert_eq!(args, [60, 0, 0]);
        assert_ne!(processes.get(oids[1]).unwrap().flags & process::ARGS_TRUNCATED, 0);
        // The same process again counts once, and what has gone does not count.
        assert!(processes.insert(with_args(1, 20)));
        assert!(processes.insert(with_args(2, 60)));
        assert_eq!(processes.get(oids[1]).unwrap().args.len(), 60);
    }

    #[test]
    fn a_full_table_lets_the_ended_go_first_and_then_refuses() {
        let mut processes = Processes::new(2, 1000);
        assert!(processes.insert(with_args(1, 1)) && processes.insert(with_args(2, 1)));
        assert!(!processes.insert(with_args(3, 1)));
        processes.get_mut(Oid { start_ns: 1, pid: 1 }).unwrap().ended_ns = Some(5);
        assert!(processes.insert(with_args(3, 1)));
        assert!(processes.get(Oid { start_ns: 1, pid: 1 }).is_none());
    }
}
