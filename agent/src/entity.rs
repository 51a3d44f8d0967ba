//! The table of processes. Events and the first look at the system go in; identities and
//! entity records come out, ancestors first. Bounds: `processes_max` and a pool of texts; when full, the process
//! that ended longest ago goes, and an operation of a process that finds no place is counted
//! as lost. Pure: no clock, no file.

use std::collections::HashMap;

use codec::{CLASSES, Class, ObjectState, Oid, Process as Record, process};

use crate::table::Table;
use crate::texts::{Text, Texts};

/// procfs tells starts in ticks of 10 ms.
pub const START_TICK_NS: u64 = 10_000_000;
/// Generations a chain of parents at most; a longer one is a fault in the table.
pub const ANCESTORS_MAX: usize = 64;
/// One in so many bytes of the pool of texts is kept for paths.
const RESERVE_PART: usize = 8;

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

/// What is told of a process in words: each as `T`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words<T> {
    /// Absolute path of the executable.
    pub exe: T,
    /// argv\[1..\], a NUL after each.
    pub args: T,
    /// Working directory when last looked up.
    pub cwd: T,
    /// Its container's full id, empty for the host.
    pub container: T,
    /// argv\[0\] as [`codec::Process::argv0`] shortens it.
    pub argv0: T,
    /// The script that `exe` interprets, if any.
    pub script: T,
    /// Allowed variables, `K=V`, a NUL after each.
    pub env: T,
}

impl<T: Copy> Words<T> {
    /// Makes something else of each.
    fn map<U>(self, mut make: impl FnMut(T) -> U) -> Words<U> {
        Words {
            exe: make(self.exe),
            args: make(self.args),
            cwd: make(self.cwd),
            container: make(self.container),
            argv0: make(self.argv0),
            script: make(self.script),
            env: make(self.env),
        }
    }
}

impl Words<Vec<u8>> {
    /// Borrowed.
    pub fn slices(&self) -> Words<&[u8]> {
        Words {
            exe: &self.exe,
            args: &self.args,
            cwd: &self.cwd,
            container: &self.container,
            argv0: &self.argv0,
            script: &self.script,
            env: &self.env,
        }
    }
}

/// argv\[0\] as [`codec::Process::argv0`] shortens it, and the arguments after it, of an `argv`
/// with a NUL after each.
pub fn split_arguments<'a>(exe: &[u8], argv: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let (first, rest) = match argv.iter().position(|byte| *byte == 0) {
        Some(end) => (&argv[..end], &argv[end + 1..]),
        None => (argv, &[][..]),
    };
    let last_part = exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let argv0: &[u8] = if first == last_part {
        b""
    } else if first == exe {
        b"/"
    } else {
        first
    };
    (argv0, rest)
}

/// A process as the agent knows it.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Identity.
    pub oid: Oid,
    /// Parent at creation.
    pub parent: Option<Oid>,
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Whether it has a controlling terminal.
    pub tty: bool,
    /// Whether it is pid 1 of its namespace.
    pub entry: bool,
    /// Bits of [`codec::process`].
    pub flags: u32,
    /// Inode number of its mount namespace, 0 if unknown.
    pub mount_namespace: u32,
    /// By class, the generation in which it was last written.
    pub written: [Option<u32>; CLASSES],
    /// When it ended, boot clock, ns.
    pub ended_ns: Option<u64>,
    /// Threads not yet told.
    pub threads: Threads,
    /// Its words, in the pool of the table.
    words: Words<Text>,
}

impl Process {
    /// A process of which nothing but its identity is known.
    pub fn unknown(oid: Oid) -> Process {
        Process {
            oid,
            parent: None,
            uid: u32::MAX,
            gid: u32::MAX,
            tty: false,
            entry: false,
            flags: process::INCOMPLETE,
            mount_namespace: 0,
            written: [None; CLASSES],
            ended_ns: None,
            threads: Threads::default(),
            words: Words {
                exe: Text::EMPTY,
                args: Text::EMPTY,
                cwd: Text::EMPTY,
                container: Text::EMPTY,
                argv0: Text::EMPTY,
                script: Text::EMPTY,
                env: Text::EMPTY,
            },
        }
    }

    /// The entity record.
    pub fn record<'a>(
        &self,
        words: &Words<&'a [u8]>,
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
            exe: words.exe,
            args: words.args,
            uid: self.uid,
            gid: self.gid,
            user,
            group,
            tty: self.tty,
            container,
            entry: self.entry,
            cwd: words.cwd,
            env: words.env,
            flags: self.flags,
            argv0: words.argv0,
            script: words.script,
            mount_namespace: self.mount_namespace,
        }
    }
}

/// All processes that records may refer to, and the pool of texts, which flows use too.
#[derive(Debug)]
pub struct Processes {
    table: Table<Oid, Process>,
    by_pid: HashMap<u32, Oid>,
    texts: Texts,
    /// Of the pool arguments and environments leave so many bytes free for paths.
    reserve_bytes: usize,
}

impl Processes {
    /// An empty table for at most `processes_max` processes and `text_bytes_max` bytes of texts.
    pub fn new(processes_max: usize, text_bytes_max: usize) -> Processes {
        Processes {
            table: Table::new(processes_max),
            by_pid: HashMap::with_capacity(processes_max * 2),
            texts: Texts::new(text_bytes_max),
            reserve_bytes: text_bytes_max / RESERVE_PART,
        }
    }

    /// Adds a process in place of what was known of its identity; `false` if there is no place
    /// even after the ended ones have gone.
    pub fn insert(&mut self, process: Process) -> bool {
        self.remove(process.oid);
        if self.table.is_full() && !self.remove_ended() {
            release(&mut self.texts, process.words);
            return false;
        }
        self.by_pid.insert(process.oid.pid, process.oid);
        // There is a place.
        self.table.insert(process.oid, process).is_ok()
    }

    /// A process that is as `oid` is, words included; it must be inserted.
    pub fn child_of(&mut self, oid: Oid) -> Option<Process> {
        let process = *self.table.get(&oid)?;
        Some(Process { words: process.words.map(|text| self.texts.share(text)), ..process })
    }

    /// Gives a process other words; its container stays if `words` has none. Where there is no
    /// room for them, its environment, arguments or paths are left out, and it says so.
    pub fn set_words(&mut self, oid: Oid, words: Words<&[u8]>) {
        let Some(process) = self.table.get_mut(&oid) else { return };
        let container = std::mem::replace(&mut process.words.container, Text::EMPTY);
        let old = std::mem::replace(&mut process.words, Process::unknown(oid).words);
        release(&mut self.texts, old);
        let mut flags = 0;
        let mut keep = |processes: &mut Processes, text: &[u8], reserve, flag| {
            processes.store_beside(text, reserve).unwrap_or_else(|| {
                flags |= flag;
                Text::EMPTY
            })
        };
        let path = process::PATH_TRUNCATED;
        let exe = keep(self, words.exe, 0, path);
        let cwd = keep(self, words.cwd, 0, path);
        let script = keep(self, words.script, 0, path);
        let container = match words.container {
            b"" => container,
            id => {
                self.texts.release(container);
                keep(self, id, 0, path)
            }
        };
        let reserve = self.reserve_bytes;
        let argv0 = keep(self, words.argv0, reserve, process::ARGS_TRUNCATED);
        let args = keep(self, words.args, reserve, process::ARGS_TRUNCATED);
        let env = keep(self, words.env, reserve, process::ENV_TRUNCATED);
        if let Some(process) = self.table.get_mut(&oid) {
            process.words = Words { exe, args, cwd, container, argv0, script, env };
            process.flags |= flags;
        }
    }

    /// The words of a process, put into `buffer`.
    pub fn words<'b>(&self, process: &Process, buffer: &'b mut Vec<u8>) -> Words<&'b [u8]> {
        buffer.clear();
        let ends = process.words.map(|text| {
            self.texts.append(text, buffer);
            buffer.len()
        });
        let mut start = 0;
        ends.map(|end| buffer.get(std::mem::replace(&mut start, end)..end).unwrap_or_default())
    }

    /// The id of a process's container, put into `buffer`; empty for the host.
    pub fn container<'b>(&self, oid: Oid, buffer: &'b mut Vec<u8>) -> &'b [u8] {
        buffer.clear();
        if let Some(process) = self.table.get(&oid) {
            self.texts.append(process.words.container, buffer);
        }
        buffer
    }

    /// Keeps a text; the processes that ended longest ago make room for it. None if there is no
    /// room even then.
    pub fn store(&mut self, text: &[u8]) -> Option<Text> {
        self.store_beside(text, 0)
    }

    fn store_beside(&mut self, text: &[u8], reserve: usize) -> Option<Text> {
        if text.is_empty() {
            return Some(Text::EMPTY);
        }
        while !self.texts.has_room(text.len() + reserve) {
            if !self.remove_ended() {
                return None;
            }
        }
        self.texts.store(text)
    }

    /// Lets go of a text from [`store`](Processes::store).
    pub fn release(&mut self, text: Text) {
        self.texts.release(text);
    }

    /// Appends a text from [`store`](Processes::store) to `out`.
    pub fn append(&self, text: Text, out: &mut Vec<u8>) {
        self.texts.append(text, out);
    }

    /// Removes the process that ended longest ago; `false` if none has ended.
    fn remove_ended(&mut self) -> bool {
        let ended = self.table.iter().filter_map(|(oid, p)| p.ended_ns.map(|ended| (ended, *oid)));
        let Some((_, oid)) = ended.min() else { return false };
        self.remove(oid);
        true
    }

    fn remove(&mut self, oid: Oid) {
        if let Some(process) = self.table.remove(&oid) {
            release(&mut self.texts, process.words);
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

    /// The process and its ancestors that have not been written in `generation` of a class, root
    /// first.
    pub fn unwritten(
        &self,
        oid: Oid,
        class: Class,
        generation: u32,
    ) -> heapless::Vec<Oid, ANCESTORS_MAX> {
        let mut chain = heapless::Vec::new();
        let mut next = Some(oid);
        while let Some(process) = next.and_then(|oid| self.table.get(&oid)) {
            if chain.contains(&process.oid) {
                break;
            }
            if process.written[class as usize] != Some(generation)
                && chain.push(process.oid).is_err()
            {
                break;
            }
            next = process.parent;
        }
        chain.reverse();
        chain
    }

    /// Since when there are threads to tell, boot clock, ns.
    pub fn threads_since(&self) -> Option<u64> {
        let untold = self.table.iter().map(|(_, p)| &p.threads);
        untold.filter(|t| t.cloned + t.exited + t.errors > 0).map(|t| t.since_ns).min()
    }

    /// Puts into `found` the processes with threads to tell since before `time_ns`.
    pub fn with_threads_since(&self, time_ns: u64, found: &mut Vec<Oid>) {
        found.clear();
        found.extend(self.table.iter().filter_map(|(oid, process)| {
            let t = &process.threads;
            (t.cloned + t.exited + t.errors > 0 && t.since_ns <= time_ns).then_some(*oid)
        }));
        // The order of the table must not reach the wire.
        found.sort_unstable();
    }
}

fn release(texts: &mut Texts, words: Words<Text>) {
    words.map(|text| texts.release(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(pid: u32) -> Oid {
        Oid { start_ns: u64::from(pid), pid }
    }

    fn args_of(processes: &Processes, pid: u32) -> usize {
        let process = *processes.get(oid(pid)).unwrap();
        processes.words(&process, &mut Vec::new()).args.len()
    }

    #[test]
    fn arguments_go_where_texts_are_too_many() {
        // 64 blocks, of which 8 are kept for paths.
        let mut processes = Processes::new(8, 64 * 64);
        let args = [b'a'; 30 * 56];
        let words = Words { exe: &b"/bin/x"[..], args: &args[..], ..Words::default() };
        for pid in 1..=3 {
            assert!(processes.insert(Process::unknown(oid(pid))));
            processes.set_words(oid(pid), words);
        }
        assert_eq!([1, 2, 3].map(|pid| args_of(&processes, pid)), [args.len(), 0, 0]);
        assert_ne!(processes.get(oid(2)).unwrap().flags & process::ARGS_TRUNCATED, 0);
        // What has gone makes room, and so do those that have ended.
        processes.set_words(oid(1), Words { args: &b"b\0"[..], ..words });
        processes.set_words(oid(2), words);
        assert_eq!([1, 2].map(|pid| args_of(&processes, pid)), [2, args.len()]);
        processes.get_mut(oid(2)).unwrap().ended_ns = Some(7);
        processes.set_words(oid(3), words);
        assert!(processes.get(oid(2)).is_none());
        assert_eq!(args_of(&processes, 3), args.len());
    }

    #[test]
    fn a_child_keeps_its_words_when_its_parent_has_gone() {
        let mut processes = Processes::new(1, 64 * 64);
        assert!(processes.insert(Process::unknown(oid(1))));
        let words = Words { exe: &b"/bin/x"[..], container: &b"c"[..], ..Words::default() };
        processes.set_words(oid(1), words);
        let child = Process { oid: oid(2), ..processes.child_of(oid(1)).unwrap() };
        processes.get_mut(oid(1)).unwrap().ended_ns = Some(5);
        assert!(processes.insert(child) && processes.get(oid(1)).is_none());
        // Its container stays where the new words name none.
        let other = Words { exe: &b"/bin/y"[..], ..Words::default() };
        assert_eq!(processes.words(&child, &mut Vec::new()), words);
        processes.set_words(oid(2), other);
        let child = *processes.get(oid(2)).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(processes.words(&child, &mut buffer), Words { container: &b"c"[..], ..other });
    }

    #[test]
    fn a_full_table_lets_the_ended_go_first_and_then_refuses() {
        let mut processes = Processes::new(2, 1000);
        let process = |pid| Process::unknown(oid(pid));
        assert!(processes.insert(process(1)) && processes.insert(process(2)));
        assert!(!processes.insert(process(3)));
        processes.get_mut(oid(1)).unwrap().ended_ns = Some(5);
        assert!(processes.insert(process(3)));
        assert!(processes.get(oid(1)).is_none());
    }
}
