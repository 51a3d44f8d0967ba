//! The books against the events: whatever room there is, each operation is in them once.

#![allow(clippy::expect_used, reason = "a test may stop at what it does not expect")]

#[allow(dead_code, reason = "other tests ask it for more")]
mod stage;

use std::cell::Cell;
use std::collections::BTreeMap;

use agent::engine::{Bounds, Counters, Engine, Last, Taken};
use agent::flow::Totals;
use bpf::{ClosedRange, Event, FlowKey, FlowStart, IoUring, SocketState, Volume, flow};
use codec::{Operation, Term};
use stage::{ROOMY, WIDE, events, replay_behind, replay_events};

/// The operations that an event tells of; a flow's are those of its counters, once it ends.
fn operations(event: &Event<'_>) -> Vec<(Operation, u64)> {
    let one = match event {
        Event::Fork(_) | Event::Clone(_) => Operation::Clone,
        Event::Exec(_) | Event::ExecFailed { .. } => Operation::Exec,
        Event::Exit(_) => Operation::Exit,
        Event::Setuid(_) => Operation::Setuid,
        Event::SocketState(_) => Operation::SocketState,
        Event::IoUring(_) => Operation::IoUring,
        Event::Path { operation, .. }
        | Event::Attribute { operation, .. }
        | Event::Socket { operation, .. }
        | Event::Privilege { operation, .. } => Operation::ALL[*operation as usize],
        Event::FlowStart { start, operation, .. } => {
            let (once, volume) = (Operation::ALL[*operation as usize], &start.volume);
            let is_counted = match operation {
                bpf::Operation::Open
                | bpf::Operation::Connect
                | bpf::Operation::Accept
                | bpf::Operation::SocketState
                | bpf::Operation::Setns => true,
                bpf::Operation::Shutdown | bpf::Operation::Mmap => is_alone(start),
                _ => false,
            };
            let [reads, writes] = match is_alone(start) {
                true => [volume.read_ops, volume.write_ops],
                false => [0, 0],
            };
            return vec![
                (once, is_counted.into()),
                (Operation::Read, reads),
                (Operation::Write, writes),
            ];
        }
        Event::FlowEnd(end) => {
            return vec![
                (Operation::Read, end.volume.read_ops),
                (Operation::Write, end.volume.write_ops),
                (Operation::Shutdown, end.shutdown.into()),
                (Operation::Mmap, end.mmaps.into()),
                (Operation::Close, (end.reason == flow::CLOSED).into()),
            ];
        }
        Event::ClosedRange(_) => return vec![],
    };
    vec![(one, 1)]
}

/// Whether one operation is all that the kernel tells of a flow.
fn is_alone(start: &FlowStart) -> bool {
    start.flags & flow::UNTRACKED != 0
}

/// The scene, with operations that it has no need of.
fn scene() -> Vec<Event<'static>> {
    let mut all: Vec<Event<'static>> = events().collect();
    let middle = all.len() / 2;
    let mut added = Vec::new();
    for event in &all[..middle] {
        match event {
            Event::Exec(started) => {
                added.push(Event::IoUring(IoUring { header: started.exec.header }));
            }
            Event::FlowStart { start, path, .. } if start.header.time_ns % 7 == 0 => {
                let (header, file) = (start.header, start.file);
                added.push(Event::SocketState(SocketState { header, file, error: -111, zero: 0 }));
                let volume = Volume { read_ops: 3, ..start.volume };
                let start = FlowStart { flags: flow::UNTRACKED, volume, ..*start };
                added.push(Event::FlowStart {
                    start,
                    operation: bpf::Operation::Read,
                    path: *path,
                });
            }
            _ => {}
        }
    }
    for event in &mut all {
        if let Event::FlowEnd(end) = event {
            (end.shutdown, end.mmaps) = (1, 2);
        }
    }
    all.splice(middle..middle, added);
    all
}

/// By kind; reads and receives are one there, and writes and sends.
fn totals(count: impl Fn(Operation) -> u64) -> BTreeMap<Operation, u64> {
    let mut totals = BTreeMap::new();
    for kind in Operation::ALL {
        let of = match kind {
            Operation::Receive => Operation::Read,
            Operation::Send => Operation::Write,
            kind => kind,
        };
        *totals.entry(of).or_insert(0) += count(kind);
    }
    totals
}

#[test]
fn each_operation_is_in_the_books_once_whatever_room_there_is() {
    let scene = scene();
    let told: Vec<(Operation, u64)> = scene.iter().flat_map(operations).collect();
    let expected = totals(|kind| told.iter().filter(|one| one.0 == kind).map(|one| one.1).sum());
    let lost = |bounds: Bounds| {
        let (_, engine): (_, Engine) = replay_events(WIDE, bounds, scene.iter().copied());
        let books = &engine.batch.books;
        let all = totals(|kind| Term::ALL.map(|term| books.total(kind, term)).iter().sum());
        assert_eq!(all, expected, "{bounds:?}");
        totals(|kind| books.total(kind, Term::LostTable))
    };
    let none = totals(|_| 0);
    assert_eq!(lost(ROOMY), none);
    assert_eq!(lost(Bounds { processes_max: 2, files_max: 1, text_bytes: 4096, ..ROOMY }), none);
    // One flow's place, and then one process's, are not enough; what has none is lost.
    let flows = lost(Bounds { flows_max: 1, ..ROOMY });
    let processes = lost(Bounds { processes_max: 1, files_max: 1, text_bytes: 4096, ..ROOMY });
    for kind in [Operation::Read, Operation::Write, Operation::Close] {
        assert!(flows[&kind] > 0, "{kind:?}");
    }
    assert!(processes[&Operation::Clone] > 0, "{processes:?}");
    // Without any place for processes all of it is.
    let all = lost(Bounds { processes_max: 0, ..ROOMY });
    // But for the state of a socket, which needs no process.
    let kept = |(kind, _): &(&Operation, &u64)| **kind != Operation::SocketState;
    assert!(all.iter().filter(kept).eq(expected.iter().filter(kept)), "{all:?}");
}

/// Has of each flow that it is asked for a younger one, whose start nobody has told.
struct Younger {
    asked: Cell<u64>,
}

impl Counters for Younger {
    fn take(&self, _: &FlowKey, flow_ns: u64) -> Taken {
        self.asked.set(self.asked.get() + 1);
        let volume = codec::Volume { read_ops: 5, ..codec::Volume::default() };
        Taken::Younger(
            flow_ns + 1,
            Last { totals: Totals { volume, ..Totals::default() }, ended: 0 },
        )
    }
}

#[test]
fn what_a_flow_did_whose_start_is_lost_is_in_the_books_at_the_end() {
    let mut scene: Vec<Event<'static>> = events().collect();
    let first = scene.iter().position(|event| matches!(event, Event::FlowStart { .. }));
    let first = first.expect("a flow");
    let header = *scene[first].header();
    scene.insert(first + 1, Event::ClosedRange(ClosedRange { header, first: 0, last: 1000 }));
    let counters = Younger { asked: Cell::new(0) };
    let (_, engine) = replay_behind(|_| (), WIDE, ROOMY, scene.into_iter(), &counters);
    let lost = engine.batch.books.total(Operation::Read, Term::LostTable);
    assert!(lost > 0 && lost == 5 * counters.asked.get(), "{lost}, {}", counters.asked.get());
}
