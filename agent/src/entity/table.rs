//! The table of processes. Events and the first look at the system go in; identities and
//! entities come out, ancestors first. Bounds: `processes_max` and a pool of texts. When full,
//! the process that ended longest ago goes; where none has ended, one that has long done nothing,
//! and when that acts again, it is known by its identity alone.

use std::collections::{HashMap, VecDeque};

use codec::{Class, Oid, process};

use super::{Process, START_TICK_NS, Words};
use crate::table::{Table, hash_map_bytes};
use crate::texts::{Text, Texts};

/// Ancestors that are written at a time.
pub const ANCESTORS_MAX: usize = 64;
/// One in so many bytes of the pool of texts is kept for paths.
const RESERVE_PART: usize = 8;

/// All processes that records may refer to, and the pool of texts, which flows use too.
#[derive(Debug)]
pub struct Processes {
    table: Table<Oid, Process>,
    by_pid: HashMap<u32, Oid>,
    /// Those that have ended, in that order; some of them may have gone.
    ended: VecDeque<Oid>,
    /// Place at which the search for one that could go continues.
    hand: usize,
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
            ended: VecDeque::with_capacity(processes_max),
            hand: 0,
            texts: Texts::new(text_bytes_max),
            reserve_bytes: text_bytes_max / RESERVE_PART,
        }
    }

    /// Bytes that a table with these bounds takes, the pool of texts apart.
    pub fn memory_bytes(processes_max: usize) -> usize {
        Table::<Oid, Process>::memory_bytes(processes_max)
            + hash_map_bytes::<u32, Oid>(processes_max * 2)
            + processes_max * size_of::<Oid>()
    }

    /// Adds a process in place of what was known of its identity; whoever had its number before
    /// has ended, though that may have been missed. `false` if there is no place even after the
    /// ended ones have gone.
    pub fn insert(&mut self, mut process: Process) -> bool {
        let oid = process.oid;
        self.remove(oid);
        // The first look at the system may have met it, and not known its exact start.
        let coarse = self.resolve(oid.pid, oid.start_ns);
        if coarse != oid {
            self.remove(coarse);
        }
        let is_newest = match self.by_pid.get(&oid.pid).copied() {
            Some(other) if other.start_ns > oid.start_ns => {
                process.ended_ns = process.ended_ns.or(Some(other.start_ns));
                false
            }
            Some(other) => {
                self.end(other, oid.start_ns);
                true
            }
            None => true,
        };
        if self.table.is_full() && !self.remove_ended() {
            release(&mut self.texts, process.words);
            return false;
        }
        if is_newest {
            self.by_pid.insert(oid.pid, oid);
        }
        // There is a place.
        let is_in = self.table.insert(oid, process).is_ok();
        if process.ended_ns.is_some() {
            self.note_end(oid);
        }
        is_in
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
        let words = Words { exe, args, cwd, container, argv0, script, env };
        match self.table.get_mut(&oid) {
            Some(process) => {
                process.words = words;
                process.flags |= flags;
            }
            // It has ended, and went to make room for its own words.
            None => release(&mut self.texts, words),
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
            if !self.remove_ended() && !self.shorten_idle() {
                return None;
            }
        }
        self.texts.store(text)
    }

    /// Takes arguments and environment from a process that has done nothing while the search went
    /// once around; `false` if none has any. That one may have ended without a word, as those do
    /// whose ends found no room in the ring.
    fn shorten_idle(&mut self) -> bool {
        let places = self.table.places();
        for _ in 0..2 * places {
            self.hand = (self.hand + 1) % places;
            let Some((_, process)) = self.table.at_mut(self.hand) else { continue };
            if std::mem::take(&mut process.active) {
                continue;
            }
            let Words { args, env, .. } = process.words;
            for (text, flag) in [(args, process::ARGS_TRUNCATED), (env, process::ENV_TRUNCATED)] {
                if !text.is_empty() {
                    process.flags |= flag;
                    self.texts.release(text);
                }
            }
            process.words.args = Text::EMPTY;
            process.words.env = Text::EMPTY;
            if !args.is_empty() || !env.is_empty() {
                return true;
            }
        }
        false
    }

    /// Lets go of a text from [`store`](Processes::store).
    pub fn release(&mut self, text: Text) {
        self.texts.release(text);
    }

    /// Appends a text from [`store`](Processes::store) to `out`.
    pub fn append(&self, text: Text, out: &mut Vec<u8>) {
        self.texts.append(text, out);
    }

    /// Notes the end of a process: it makes room for others when room is scarce.
    pub fn end(&mut self, oid: Oid, now_ns: u64) {
        let Some(process) = self.table.get_mut(&oid) else { return };
        if process.ended_ns.is_none() {
            process.ended_ns = Some(now_ns);
            self.note_end(oid);
        }
    }

    fn note_end(&mut self, oid: Oid) {
        if self.ended.len() == self.ended.capacity() {
            let table = &self.table;
            self.ended.retain(|oid| table.get(oid).is_some_and(|p| p.ended_ns.is_some()));
            // One may be there twice, if it has come back. Who loses its turn goes as an idle one.
            if self.ended.len() == self.ended.capacity() {
                self.ended.pop_front();
            }
        }
        self.ended.push_back(oid);
    }

    /// Notes that a process does something; `false` if it is not known.
    pub fn touch(&mut self, oid: Oid) -> bool {
        self.table.get_mut(&oid).map(|process| process.active = true).is_some()
    }

    /// One that could go, if the table is full and none has ended: it has done nothing while the
    /// search went once around, and rather has no flow that goes on. It is not `but`.
    pub fn dispensable(&mut self, but: Oid) -> Option<Oid> {
        while let Some(oid) = self.ended.front() {
            if self.table.get(oid).is_some_and(|process| process.ended_ns.is_some()) {
                return None;
            }
            self.ended.pop_front();
        }
        if !self.table.is_full() {
            return None;
        }
        let places = self.table.places();
        for step in 0..3 * places {
            self.hand = (self.hand + 1) % places;
            let Some((oid, process)) = self.table.at_mut(self.hand) else { continue };
            let is_idle = !std::mem::take(&mut process.active);
            if is_idle && *oid != but && (process.flows == 0 || step >= 2 * places) {
                return Some(*oid);
            }
        }
        None
    }

    /// Removes the process that ended longest ago; `false` if none has ended.
    fn remove_ended(&mut self) -> bool {
        while let Some(oid) = self.ended.pop_front() {
            if self.table.get(&oid).is_some_and(|process| process.ended_ns.is_some()) {
                self.remove(oid);
                return true;
            }
        }
        false
    }

    /// Forgets a process.
    pub fn remove(&mut self, oid: Oid) {
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

    /// Of the process and its ancestors those that have not been written in `generation` of a
    /// class, root first: at most as many as fit, those nearest to the root.
    pub fn unwritten(
        &self,
        oid: Oid,
        class: Class,
        generation: u32,
    ) -> heapless::Vec<Oid, ANCESTORS_MAX> {
        let mut chain = heapless::Deque::<Oid, ANCESTORS_MAX>::new();
        let mut next = Some(oid);
        // No chain is longer than the table, unless it is a circle.
        for _ in 0..self.table.len() {
            let Some(process) = next.and_then(|oid| self.table.get(&oid)) else { break };
            if process.written[class as usize] != Some(generation) {
                if chain.is_full() {
                    chain.pop_back();
                }
                // There is a place.
                let _ = chain.push_front(process.oid);
            }
            next = process.parent;
        }
        chain.into_iter().collect()
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
        // Those that do nothing any more lose theirs.
        assert_eq!([1, 2, 3].map(|pid| args_of(&processes, pid)), [0, 0, args.len()]);
        assert_ne!(processes.get(oid(2)).unwrap().flags & process::ARGS_TRUNCATED, 0);
        assert_eq!(processes.get(oid(3)).unwrap().flags & process::ARGS_TRUNCATED, 0);
        // What has gone makes room, and so do those that have ended, before all others.
        processes.set_words(oid(3), Words { args: &b"b\0"[..], ..words });
        processes.set_words(oid(2), words);
        assert_eq!([2, 3].map(|pid| args_of(&processes, pid)), [args.len(), 2]);
        processes.end(oid(2), 7);
        processes.set_words(oid(1), words);
        assert!(processes.get(oid(2)).is_none());
        assert_eq!([1, 3].map(|pid| args_of(&processes, pid)), [args.len(), 2]);
    }

    #[test]
    fn a_child_keeps_its_words_when_its_parent_has_gone() {
        let mut processes = Processes::new(1, 64 * 64);
        assert!(processes.insert(Process::unknown(oid(1))));
        let words = Words { exe: &b"/bin/x"[..], container: &b"c"[..], ..Words::default() };
        processes.set_words(oid(1), words);
        let child = Process { oid: oid(2), ..processes.child_of(oid(1)).unwrap() };
        processes.end(oid(1), 5);
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
    fn where_none_has_ended_one_that_does_nothing_can_go() {
        let mut processes = Processes::new(3, 1000);
        for pid in 1..=3 {
            assert_eq!(processes.dispensable(oid(9)), None);
            assert!(processes.insert(Process::unknown(oid(pid))));
        }
        processes.get_mut(oid(2)).unwrap().flows = 1;
        // All have just begun: one search finds that none has done anything since.
        assert!([1, 3].map(|pid| Some(oid(pid))).contains(&processes.dispensable(oid(9))));
        for _ in 0..10 {
            assert!(processes.touch(oid(1)));
            assert_eq!(processes.dispensable(oid(9)), Some(oid(3)));
            assert_ne!(processes.dispensable(oid(3)), Some(oid(3)));
        }
        processes.end(oid(1), 5);
        assert_eq!(processes.dispensable(oid(9)), None);
        processes.remove(oid(1));
        assert!(processes.insert(Process::unknown(oid(4))) && !processes.touch(oid(1)));
        assert!(processes.dispensable(oid(9)).is_some());
    }

    #[test]
    fn a_full_table_lets_the_ended_go_first_and_then_refuses() {
        let mut processes = Processes::new(2, 1000);
        let process = |pid| Process::unknown(oid(pid));
        assert!(processes.insert(process(1)) && processes.insert(process(2)));
        assert!(!processes.insert(process(3)));
        processes.end(oid(1), 5);
        assert!(processes.insert(process(3)));
        assert!(processes.get(oid(1)).is_none());
    }
}
