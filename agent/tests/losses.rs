//! What cannot be written or read is counted where it is lost: records that fit into no frame, a
//! frame whose header has no room, events that cannot be decoded.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the unexpected")]

#[allow(dead_code, reason = "other tests ask it for more")]
mod stage;

use std::cell::RefCell;
use std::rc::Rc;

use agent::batch::{Batch, Identity};
use agent::engine::Engine;
use bpf::{Event, ExecFailed, Header};
use codec::{Capabilities, Class, Clock, K8sEvent, Operation, Record, Term};
use stage::{NoMaps, ROOMY, WIDE, events, replay_behind};

/// More than a frame of any class has room for.
static LONG: [u8; 400_000] = [b'x'; 400_000];

/// The scene's first event of a kind.
fn first<T>(wanted: impl FnMut(Event<'static>) -> Option<T>) -> T {
    events().find_map(wanted).unwrap()
}

/// An engine behind the scene and one more event.
fn behind(event: Event<'static>) -> Engine {
    replay_behind(|_| (), WIDE, ROOMY, events().chain([event]), &NoMaps).1
}

/// An engine behind the scene alone.
fn behind_the_scene() -> Engine {
    replay_behind(|_| (), WIDE, ROOMY, events(), &NoMaps).1
}

/// Operations and records that fitted into no frame.
fn unencoded(engine: &Engine) -> (Vec<(Operation, u64)>, u64) {
    let books = &engine.batch.books;
    let of_kind = |kind| (kind, books.total(kind, Term::LostEncoding));
    let kinds: Vec<_> =
        Operation::ALL.into_iter().map(of_kind).filter(|(_, count)| *count > 0).collect();
    let operations: u64 = kinds.iter().map(|(_, count)| count).sum();
    (kinds, books.sum(Term::LostEncoding) - operations)
}

#[test]
fn an_event_that_fits_into_no_frame_is_an_operation_lost() {
    let header = *first(|event| matches!(event, Event::Exec(_)).then_some(event)).header();
    let failed = ExecFailed { header: Header { ..header }, ret: -2, path_bytes: 0, zero: 0 };
    let engine = behind(Event::ExecFailed { failed, path: &LONG });
    assert_eq!(unencoded(&engine), (vec![(Operation::Exec, 1)], 0));
    let stored = |engine: &Engine| engine.batch.books.total(Operation::Exec, Term::Stored);
    assert_eq!(stored(&engine), stored(&behind_the_scene()));
}

#[test]
fn a_file_that_fits_into_no_frame_is_a_record_lost() {
    let mut named = first(|event| match event {
        Event::Path { path, operation: bpf::Operation::Mkdir, first, second } => {
            Some((path, first, second))
        }
        _ => None,
    });
    named.1.name = &LONG;
    let (path, first, second) = named;
    let operation = bpf::Operation::Mkdir;
    let engine = behind(Event::Path { path, operation, first, second });
    assert_eq!(unencoded(&engine), (Vec::new(), 1));
    // The operation is told, of a file without a name.
    let stored = |engine: &Engine| engine.batch.books.total(Operation::Mkdir, Term::Stored);
    assert_eq!(stored(&engine), stored(&behind_the_scene()) + 1);
}

#[test]
fn a_process_that_fits_into_no_frame_is_a_record_lost() {
    let mut started = first(|event| match event {
        Event::Exec(started) => Some(started),
        _ => None,
    });
    started.args = &LONG;
    let engine = behind(Event::Exec(started));
    let (operations, records) = unencoded(&engine);
    assert!(operations.is_empty() && records > 0, "{operations:?}, {records}");
}

#[test]
fn an_event_that_cannot_be_read_is_counted() {
    let mut engine = behind_the_scene();
    let before = engine.batch.books.sum(Term::LostUnreadable);
    for bytes in [&[][..], &[0xff; 20], &[0xff; 200]] {
        assert!(!engine.observe_bytes(bytes, &NoMaps));
    }
    assert_eq!(engine.batch.books.sum(Term::LostUnreadable), before + 3);
}

#[test]
fn the_records_of_a_frame_whose_header_has_no_room_are_counted() {
    let frames = Rc::new(RefCell::new(Vec::<Vec<u8>>::new()));
    let identity = Identity {
        agent_id: "x".repeat(100_000),
        boot_id: [1; 16],
        run_id: [2; 16],
        kernel: "6.18".into(),
        machine: "x86_64".into(),
    };
    let capabilities = Capabilities { attached: 31, missing: 0, jit: true };
    let clock = Clock { offset_ns: 0, uncertainty_ns: 0, synchronized: false };
    let sink = Box::new(Rc::clone(&frames));
    let mut batch = Batch::new(identity, WIDE, capabilities, clock, None, None, sink);
    for class in Class::ALL {
        for time_ns in 0..3 {
            let event = K8sEvent { kind: 0, action: 0, time_ns, message: b"event" };
            assert!(batch.push(class, &Record::K8sEvent(event)));
        }
        batch.finish(class);
    }
    assert_eq!(batch.books.sum(Term::LostEncoding), 6);
    assert!(frames.borrow().is_empty());
}
