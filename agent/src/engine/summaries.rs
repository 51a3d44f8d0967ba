//! Summaries: what is told of many at once where the ladder demands it. Of sessions that flood
//! each kind of thing has one summary, and of each process the files that it only reads. Bounds:
//! so many sessions are metered, so many summaries are kept; one more takes the place of the one
//! that has rested longest, which is told.

use std::hash::BuildHasher as _;

use codec::{
    Class, EndReason, ObjectState, Oid, Operation, Record, Step, Subject, Summary, Term, Volume,
    op, open_flag,
};

use super::Engine;
use super::records::bit;
use crate::flow::{Flow, Object, Totals};
use crate::names;
use crate::sketch::Sketch;

/// A session floods that makes more events than this in one second, ...
const FLOOD_EVENTS: u32 = 800;
/// ... and more than one in so many of all events.
const FLOOD_PART: u32 = 8;
const SECOND_NS: u64 = 1_000_000_000;
/// Sessions that are metered: in sets of a few places, of which one has a place in one set.
const SETS_LOG: u32 = 8;
const WAYS: usize = 4;
/// Summaries that are kept at a time.
pub(super) const SUMMARIES_MAX: usize = 64;

/// How busy sessions are. Who comes new takes the place of the least busy one of its set, so that
/// no number of quiet sessions keeps one that floods from being metered.
#[derive(Debug)]
pub(super) struct Meters {
    sets: Box<[[Meter; WAYS]]>,
    /// All sessions together.
    all: Meter,
}

#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    session: u32,
    /// Of the boot clock.
    second: u32,
    /// In it.
    events: u32,
    /// In the one before.
    before: u32,
}

impl Meter {
    /// Events of this second or of the one before, whichever are more.
    fn busy(&self, second: u32) -> u32 {
        match second.saturating_sub(self.second) {
            0 => self.events.max(self.before),
            1 => self.events,
            _ => 0,
        }
    }

    /// Counts an event; returns the events of this second or of the one before, whichever are more.
    fn count(&mut self, second: u32) -> u32 {
        let past = second.saturating_sub(self.second);
        if past > 0 {
            self.before = if past == 1 { self.events } else { 0 };
            (self.second, self.events) = (second, 0);
        }
        self.events += 1;
        self.events.max(self.before)
    }
}

impl Meters {
    pub(super) const BYTES: usize = size_of::<[Meter; WAYS]>() << SETS_LOG;

    pub(super) fn new() -> Meters {
        Meters { sets: vec![[Meter::default(); WAYS]; 1 << SETS_LOG].into(), all: Meter::default() }
    }

    /// Counts an event of a session; returns whether it floods.
    pub(super) fn count(&mut self, session: u32, now_ns: u64) -> bool {
        let second = (now_ns / SECOND_NS) as u32;
        let all = self.all.count(second);
        // Digests are addresses, all of which have the same low bits.
        let set = session.wrapping_mul(0x9E37_79B1) >> (u32::BITS - SETS_LOG);
        let Some(set) = self.sets.get_mut(set as usize).filter(|_| session != 0) else {
            return false;
        };
        let known = set.iter().position(|meter| meter.session == session);
        let least_busy = (0..WAYS).min_by_key(|way| set[*way].busy(second));
        let Some(meter) = known.or(least_busy).and_then(|way| set.get_mut(way)) else {
            return false;
        };
        if known.is_none() {
            *meter = Meter { session, second, ..Meter::default() };
        }
        let events = meter.count(second);
        events > FLOOD_EVENTS && events > all / FLOOD_PART
    }
}

/// Whose doing a summary is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Session(u32),
    Process(Oid),
}

/// One summary in the making.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    process: Oid,
    since_ns: u64,
    active_ns: u64,
    ops: u64,
    records: u64,
    /// Operations that are counted as told when this is.
    operations: [u64; Operation::ALL.len()],
    volume: Volume,
    objects: Sketch,
    processes: Sketch,
}

/// What is not told by a record of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) subject: Subject,
    pub(super) process: Oid,
    /// Who is named, if it is the first: of a process that comes and goes its parent.
    pub(super) named: Oid,
    /// Hash of the object.
    pub(super) object: u64,
    pub(super) ops: u64,
    pub(super) done: Totals,
    /// Of an event: its kind.
    pub(super) kind: Option<Operation>,
    pub(super) since_ns: u64,
    pub(super) now_ns: u64,
}

impl Part {
    /// The operations in it, where they are not counted by themselves.
    fn operations(&self) -> impl Iterator<Item = (Operation, u64)> {
        let told = told(self.subject, &self.done);
        told.into_iter().chain(self.kind.map(|kind| (kind, 1)))
    }
}

/// What a flow's totals count as.
pub(super) fn told(subject: Subject, done: &Totals) -> [(Operation, u64); 4] {
    let (reading, writing) = match subject {
        Subject::Network => (Operation::Receive, Operation::Send),
        Subject::Files | Subject::Processes => (Operation::Read, Operation::Write),
    };
    [
        (reading, done.volume.read_ops),
        (writing, done.volume.write_ops),
        (Operation::Shutdown, done.shutdowns.into()),
        (Operation::Mmap, done.mmaps.into()),
    ]
}

impl Engine {
    /// Takes a step of the ladder: what it spared is told where it is not spared any more.
    pub fn set_step(&mut self, step: Step, now_ns: u64) {
        let before = std::mem::replace(&mut self.step, step);
        if step < Step::Summaries {
            self.export_summaries(u64::MAX, now_ns, EndReason::EndDetected);
        } else if step < Step::Totals && before >= Step::Totals {
            self.export_some(now_ns, EndReason::EndDetected, |(scope, _), _| {
                matches!(scope, Scope::Process(_))
            });
        }
    }

    /// Whether what a session does is told in summaries, as of the event at hand.
    pub(super) fn meter(&mut self, session: u32, now_ns: u64) {
        self.floods = self.step >= Step::Summaries && self.meters.count(session, now_ns);
    }

    /// Where a flow is summed up, if it is not told by itself.
    pub(super) fn scope_of(&self, flow: &Flow, ops: u64) -> Option<Scope> {
        if flow.floods && self.step >= Step::Summaries {
            return Some(Scope::Session(flow.session));
        }
        let is_file = matches!(flow.object, Object::File { .. });
        let may_change = open_flag::WRONLY | open_flag::CREAT | open_flag::TRUNC;
        let reads_only = ops & !(op::OPEN | op::READ_RECV | op::CLOSE | op::TRUNCATE) == 0
            && flow.open_flags & may_change == 0;
        (is_file && reads_only && self.step >= Step::Totals).then_some(Scope::Process(flow.process))
    }

    /// The hash of what a flow is on. `buffers.paths` must be free.
    pub(super) fn object_hash(&mut self, object: &Object) -> u64 {
        match object {
            Object::File { path, .. } => {
                let mut words = std::mem::take(&mut self.buffers.paths);
                words.clear();
                self.processes.append(*path, &mut words);
                let hash = self.hasher.hash_one(words.as_slice());
                self.buffers.paths = words;
                hash
            }
            // Not the client's port: each connection has another.
            Object::Network { source, destination, .. } => {
                self.hasher.hash_one((source.0, destination))
            }
        }
    }

    /// The hash of a process's program; of no use, and not made, unless its session floods.
    pub(super) fn exe_hash(&mut self, oid: Oid) -> u64 {
        let Some(process) = self.processes.get(oid).filter(|_| self.floods).copied() else {
            return 0;
        };
        let mut buffer = std::mem::take(&mut self.buffers.entity);
        let hash = self.hasher.hash_one(self.processes.words(&process, &mut buffer).exe);
        self.buffers.entity = buffer;
        hash
    }

    /// The hash of a name that an event has; of no use, and not made, unless its session floods.
    pub(super) fn name_hash(&mut self, named: &bpf::Named<'_>) -> u64 {
        if !self.floods {
            return 0;
        }
        let mut path = std::mem::take(&mut self.buffers.paths);
        path.clear();
        names::named(named, &mut path);
        let hash = self.hasher.hash_one(path.as_slice());
        self.buffers.paths = path;
        hash
    }

    /// Sums up what is not told by itself.
    pub(super) fn fold(&mut self, scope: Scope, part: &Part) {
        let key = (scope, part.subject);
        if self.summaries.is_full() && !self.summaries.contains(&key) {
            let rested = self.summaries.iter().min_by_key(|(_, sum)| sum.active_ns);
            if let Some(rested) = rested.map(|(key, _)| *key) {
                self.export_summary(rested, part.now_ns, EndReason::LackOfResources);
            }
        }
        let process = self.hasher.hash_one((part.process.pid, part.process.start_ns));
        if !self.summaries.contains(&key) {
            let sum = Sum {
                process: part.named,
                since_ns: part.since_ns,
                active_ns: part.now_ns,
                ops: 0,
                records: 0,
                operations: [0; Operation::ALL.len()],
                volume: Volume::default(),
                objects: Sketch::default(),
                processes: Sketch::default(),
            };
            // There is a place.
            let _ = self.summaries.insert(key, sum);
        }
        let Some(sum) = self.summaries.get_mut(&key) else { return };
        if self.processes.get(sum.process).is_none() {
            // One that is known tells more.
            sum.process = part.named;
        }
        for (kind, count) in part.operations() {
            sum.operations[kind as usize] += count;
        }
        sum.since_ns = sum.since_ns.min(part.since_ns);
        sum.active_ns = part.now_ns;
        sum.ops |= part.ops;
        sum.records += 1;
        let more = &part.done.volume;
        sum.volume.read_ops += more.read_ops;
        sum.volume.write_ops += more.write_ops;
        sum.volume.read_bytes += more.read_bytes;
        sum.volume.write_bytes += more.write_bytes;
        sum.objects.note(part.object);
        sum.processes.note(process);
    }

    /// An event of a session that floods becomes a part of its summary; `false` if it is to be
    /// told by itself.
    pub(super) fn fold_event(
        &mut self,
        header: &bpf::Header,
        process: Oid,
        kind: Operation,
        subject: Subject,
        object: u64,
    ) -> bool {
        if !self.floods {
            return false;
        }
        let parent = self.processes.get(process).and_then(|process| process.parent);
        let parent = parent.filter(|parent| {
            subject == Subject::Processes && self.processes.get(*parent).is_some()
        });
        let part = Part {
            subject,
            process,
            named: parent.unwrap_or(process),
            object,
            ops: bit(kind),
            done: Totals::default(),
            kind: Some(kind),
            since_ns: header.time_ns,
            now_ns: header.time_ns,
        };
        self.fold(Scope::Session(header.session), &part);
        true
    }

    /// Tells the summary of a process that ends, or goes.
    pub(super) fn export_process_summary(&mut self, oid: Oid, now_ns: u64, end: EndReason) {
        let key = (Scope::Process(oid), Subject::Files);
        self.export_summary(key, now_ns, end);
    }

    /// Tells all summaries that began before `since_ns`.
    pub(super) fn export_summaries(&mut self, since_ns: u64, now_ns: u64, end: EndReason) {
        self.export_some(now_ns, end, |_, sum| sum.since_ns <= since_ns);
    }

    fn export_some(
        &mut self,
        now_ns: u64,
        end: EndReason,
        wanted: impl Fn(&(Scope, Subject), &Sum) -> bool,
    ) {
        loop {
            let due = self.summaries.iter().find(|(key, sum)| wanted(key, sum));
            let Some(key) = due.map(|(key, _)| *key) else { return };
            self.batch.between();
            self.export_summary(key, now_ns, end);
        }
    }

    fn export_summary(&mut self, key: (Scope, Subject), now_ns: u64, end: EndReason) {
        let Some(sum) = self.summaries.remove(&key) else { return };
        let (scope, subject) = key;
        if self.processes.get(sum.process).is_none() {
            self.know(sum.process, now_ns);
        }
        self.write_processes(Class::of_subject(subject), sum.process, now_ns, ObjectState::Reup);
        let record = Record::Summary(Summary {
            process: sum.process,
            time_ns: sum.since_ns,
            end_ns: now_ns.max(sum.since_ns),
            subject,
            session: matches!(scope, Scope::Session(_)),
            ops: sum.ops,
            records: sum.records,
            objects: sum.objects.estimate(),
            processes: sum.processes.estimate(),
            volume: sum.volume,
            end,
        });
        for (kind, count) in Operation::ALL.into_iter().zip(sum.operations) {
            self.count(kind, Term::Aggregated, count);
        }
        self.write(&record, Operation::Close);
    }

    /// Start of the oldest summary in the making, boot clock, ns.
    pub(super) fn summaries_since_ns(&self) -> Option<u64> {
        self.summaries.iter().map(|(_, sum)| sum.since_ns).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_floods_while_it_is_busy_and_only_that_session() {
        let mut meters = Meters::new();
        let at = |second: u64, part: u64| second * SECOND_NS + part;
        for event in 0..u64::from(FLOOD_EVENTS) {
            assert!(!meters.count(7, at(5, event)));
        }
        assert!(meters.count(7, at(5, 999)));
        assert!(!meters.count(8, at(5, 999)));
        // The first event of the next second is still one of the flood, unless a second passed.
        assert!(meters.count(7, at(6, 0)));
        assert!(!meters.count(7, at(8, 0)));
        // Thousands of sessions that do little, at addresses as the kernel has them, hide no flood.
        let flooding = (0..u64::from(FLOOD_EVENTS) * 3).filter(|event| {
            for quiet in 0..3 {
                let address = 0x8100_0000 + 192 * ((event * 3 + quiet) % 5_000) as u32;
                assert!(!meters.count(address >> 4, at(20, *event)));
            }
            meters.count(0x8200_0000 >> 4, at(20, *event))
        });
        assert_eq!(flooding.count() as u64, u64::from(FLOOD_EVENTS) * 2);
        // Among many that do as much nobody floods.
        let mut meters = Meters::new();
        let busy = |event: u64| u32::try_from(1 + event % 20).unwrap();
        assert!((0..20_000).all(|event| !meters.count(busy(event), at(5, event))));
        // Those that are not known are never one.
        assert!((0..2000).all(|_| !meters.count(0, at(5, 0))));
    }
}
