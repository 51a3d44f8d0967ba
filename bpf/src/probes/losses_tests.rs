//! What the kernel side loses it counts, place by place: where a program is missing among those
//! that others hand over to, and where tables and ring are full. What other programs of the machine
//! do meanwhile is met with the same, and is in the same books. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the unexpected")]

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Bounds, Error, MapCore as _, Probes, map_handle};
use crate::{Event, Operation};

/// `enum program` of syscall.bpf.h.
const FLOW_START: u32 = 0;
const DATAGRAM: u32 = 1;
const NAMES: u32 = 2;
const ATTRIBUTE: u32 = 8;

/// What is told of descriptors, with what they lead to.
const ON_DESCRIPTORS: [Operation; 8] = [
    Operation::Open,
    Operation::Read,
    Operation::Write,
    Operation::Receive,
    Operation::Send,
    Operation::Connect,
    Operation::Shutdown,
    Operation::Mmap,
];

/// Files, a copy between two of them, datagrams one by one and two in one call.
const ON_FILES_AND_SOCKETS: &str = "
import ctypes, os, socket, tempfile
with tempfile.TemporaryFile() as a, tempfile.TemporaryFile() as b:
    a.write(b'x' * 100)
    a.flush()
    os.sendfile(b.fileno(), a.fileno(), 0, 100)
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.send(b'x')
libc = ctypes.CDLL(None, use_errno=True)
byte = ctypes.create_string_buffer(b'x')
class Iovec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
class Header(ctypes.Structure):
    _fields_ = [('name', ctypes.c_void_p), ('name_length', ctypes.c_uint32),
        ('iovec', ctypes.POINTER(Iovec)), ('iovecs', ctypes.c_size_t),
        ('control', ctypes.c_void_p), ('control_length', ctypes.c_size_t),
        ('flags', ctypes.c_int)]
class Message(ctypes.Structure):
    _fields_ = [('header', Header), ('length', ctypes.c_uint)]
iovec = Iovec(ctypes.cast(byte, ctypes.c_void_p), 1)
headers = [Header(None, 0, ctypes.pointer(iovec), 1) for _ in range(2)]
messages = (Message * 2)(*[Message(header) for header in headers])
assert libc.sendmmsg(one.fileno(), messages, 2, 0) == 2
";

/// A folder, a program that runs and is opened for writing, a datagram to a peer that it names.
const BY_NAME: &str = "
import os, socket, sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    os.mkdir(folder + '/made')
try:
    os.open(os.path.realpath(sys.executable), os.O_WRONLY)
    sys.exit('a program that runs was opened for writing')
except OSError:
    pass
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))
";

/// More open files than a table of one has room for, then datagrams to peers that they name.
const MORE_THAN_ONE: &str = "
import os, socket
files = [os.open('/dev/null', os.O_RDONLY) for _ in range(600)]
for _ in range(50):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))
";

/// Probes that watch, without some of the programs; none where the kernel permits none.
fn watching(test: &str, ring_bytes: u32, flow_entries: u32, without: &[u32]) -> Option<Probes> {
    let bounds = Bounds {
        ring_bytes,
        flow_entries,
        peers_max: 64,
        args_bytes_max: 2048,
        env_bytes_max: 0,
        btf: None,
    };
    let mut probes = match Probes::prepare(&bounds) {
        Ok(probes) => probes,
        Err(Error::NotPermitted) => {
            // Not by println!, which the test runner swallows.
            let said = format!("\nskipped: {test}: needs root\n");
            std::io::stdout().write_all(said.as_bytes()).unwrap();
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let programs = map_handle(&probes.object, "programs").unwrap();
    for program in without {
        programs.delete(&program.to_ne_bytes()).unwrap();
    }
    probes.attach().unwrap();
    Some(probes)
}

/// What the script does, and nothing after it.
fn watch(probes: &Probes, script: &str) {
    let output = Command::new("/usr/bin/python3").args(["-I", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    probes.detach();
}

/// The operation that an event on a descriptor tells of.
fn operation(event: &Event<'_>) -> Option<Operation> {
    match event {
        Event::FlowStart { operation, .. } | Event::Attribute { operation, .. } => Some(*operation),
        _ => None,
    }
}

/// How many operations of a kind the events in the ring tell of.
fn told(probes: &Probes, kind: Operation) -> u64 {
    let mut told = 0;
    let ring = probes.ring(|bytes| {
        let event = Event::decode(bytes).unwrap();
        told += u64::from(operation(&event) == Some(kind));
    });
    let ring = ring.unwrap();
    while ring.waiting_bytes() > 0 {
        ring.drain();
    }
    drop(ring);
    told
}

/// Holds what was observed against what became of it. A probe may still be at it.
fn assert_balanced(probes: &Probes, kind: Operation, told: u64) {
    let start = Instant::now();
    loop {
        let tally = probes.tally(kind);
        let lost = tally.lost_ring + tally.lost_map + tally.lost_unreadable + tally.lost_shed;
        let terms = told + tally.filtered + tally.own + lost;
        if tally.observed == terms {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{kind:?}: {told} told, {tally:?}");
        std::thread::yield_now();
    }
}

#[test]
fn what_nobody_begins_a_flow_for_is_counted() {
    let test = "what_nobody_begins_a_flow_for_is_counted";
    let Some(probes) = watching(test, 4 << 20, 4096, &[FLOW_START]) else { return };
    watch(&probes, ON_FILES_AND_SOCKETS);
    let failed_opens = told(&probes, Operation::Open);
    for kind in ON_DESCRIPTORS {
        let told = if kind == Operation::Open { failed_opens } else { 0 };
        assert_balanced(&probes, kind, told);
    }
    for kind in [Operation::Open, Operation::Read, Operation::Write, Operation::Send] {
        assert!(probes.tally(kind).lost_unreadable > 0, "{kind:?}");
    }
    // Messages without a flow, after some attempts to begin it.
    assert!(probes.tally(Operation::Send).lost_map > 0);
}

#[test]
fn what_no_program_is_there_for_is_counted() {
    let test = "what_no_program_is_there_for_is_counted";
    let without = [NAMES, ATTRIBUTE, DATAGRAM];
    let Some(probes) = watching(test, 4 << 20, 4096, &without) else { return };
    watch(&probes, BY_NAME);
    for kind in [Operation::Mkdir, Operation::Open, Operation::Send] {
        assert!(probes.tally(kind).lost_unreadable > 0, "{kind:?}");
    }
}

#[test]
fn what_finds_no_room_in_the_table_is_counted() {
    let test = "what_finds_no_room_in_the_table_is_counted";
    let Some(probes) = watching(test, 4 << 20, 1, &[]) else { return };
    watch(&probes, MORE_THAN_ONE);
    // The event of a datagram's flow found room, and leaves the datagram to the table.
    let sent = probes.tally(Operation::Send);
    assert!(sent.lost_map > 0 && sent.lost_ring == 0, "{sent:?}");
    assert_balanced(&probes, Operation::Open, told(&probes, Operation::Open));
}

#[test]
fn what_finds_no_room_in_table_and_ring_is_counted() {
    let test = "what_finds_no_room_in_table_and_ring_is_counted";
    let Some(probes) = watching(test, 64 << 10, 1, &[]) else { return };
    watch(&probes, MORE_THAN_ONE);
    assert!(probes.tally(Operation::Open).lost_map > 0);
    assert_balanced(&probes, Operation::Open, told(&probes, Operation::Open));
}
