//! Recorded events in, records out: a scene that the probes once saw (`bpf/examples/record.rs`)
//! is run through the engine, and what comes out is held against the committed text. The scene:
//! a shell that makes, reads, renames and removes files, drops privileges, fails to start a
//! program, and a Python that talks over TCP, UDP, IPv4 and IPv6.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it does not expect"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use agent::batch::{Batch, Identity, Limits};
use agent::engine::{Bounds, Counters, Engine, Timeouts, Users};
use agent::flow::Totals;
use agent::privacy::Privacy;
use bpf::{Event, FlowKey};
use codec::{Capabilities, Class, Clock, FileId, Frame, Operation, Record, Term, Volume};

const SCENE: &[u8] = include_bytes!("replay/scene.events");
const RECORDS: &str = include_str!("replay/scene.records");

/// The recorded ends of the flows carry all counters, so that no map is asked.
struct NoMaps;

impl Counters for NoMaps {
    fn take(&self, _: &FlowKey, _: u64) -> Option<Totals> {
        None
    }
}

fn events() -> impl Iterator<Item = Event<'static>> {
    let mut rest = SCENE;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let (event, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        Some(Event::decode(event).expect("a recorded event"))
    })
}

fn replay(limits: Limits) -> Vec<Vec<u8>> {
    replay_events(limits, events()).0
}

/// The frames that events become, and the engine after them.
fn replay_events(
    limits: Limits,
    events: impl Iterator<Item = Event<'static>>,
) -> (Vec<Vec<u8>>, Engine) {
    let identity = Identity {
        agent_id: "replay".into(),
        boot_id: [1; 16],
        run_id: [2; 16],
        kernel: "6.18".into(),
        machine: "x86_64".into(),
    };
    let capabilities = Capabilities { attached: 31, missing: 0, jit: true };
    let clock = Clock { offset_ns: 0, uncertainty_ns: 0, synchronized: false };
    let frames = Rc::new(RefCell::new(Vec::new()));
    let sink = Box::new(Rc::clone(&frames));
    let batch = Batch::new(identity, limits, capabilities, clock, None, None, sink);
    let timeouts = Timeouts { idle_ns: 60_000_000_000, active_ns: 30_000_000_000 };
    let mut engine = Engine::new(
        Bounds { flows_max: 256, processes_max: 256, files_max: 1024, text_bytes: 1 << 20 },
        timeouts,
        Users::default(),
        Privacy::default(),
        batch,
    );
    let mut last_ns = 0;
    for event in events {
        if let Event::Exit(exit) = &event {
            last_ns = exit.header.time_ns;
        }
        engine.observe(&event, &NoMaps);
    }
    engine.close(last_ns);
    (frames.take(), engine)
}

/// Even if every frame but the last is lost, the totals are known.
#[test]
fn the_last_frame_has_the_whole_ledger() {
    let frames = replay(Limits { frame_bytes_max: 4096, generation_records_max: 100_000 });
    assert!(frames.len() > 1);
    let mut totals = BTreeMap::new();
    let mut last = BTreeMap::new();
    for frame in &frames {
        let header = Frame::decode(frame).unwrap().0.header;
        last = header.ledger.iter().map(|c| ((c.operation, c.term), c.total)).collect();
        totals.extend(last.iter().map(|(counter, total)| (*counter, *total)));
    }
    assert_eq!(last, totals);
}

const WIDE: Limits = Limits { frame_bytes_max: 128 * 1024, generation_records_max: 100_000 };

/// One line a record, class by class, with process ids and times counted from the scene's first.
fn told(frames: &[Vec<u8>]) -> String {
    let mut first = None;
    Class::ALL.map(|class| told_in(class, frames, &mut first)).concat()
}

fn told_in(class: Class, frames: &[Vec<u8>], first: &mut Option<u32>) -> String {
    let mut out = format!("class {}\n", class.name());
    let mut files: Vec<(FileId, String)> = Vec::new();
    for bytes in frames {
        let (frame, _) = Frame::decode(bytes).unwrap();
        if frame.header.key.class != class as u8 {
            continue;
        }
        if frame.header.start.is_some() {
            files.clear();
        }
        for record in frame.records() {
            let text = |bytes: &[u8]| {
                String::from_utf8_lossy(bytes).trim_end_matches('\0').replace('\0', " ")
            };
            let name = |files: &[(FileId, String)], id| {
                files.iter().find(|(known, _)| *known == id).unwrap().1.clone()
            };
            let mut pid = |pid: u32| i64::from(pid) - i64::from(*first.get_or_insert(pid));
            match record.unwrap() {
                Record::Process(p) => {
                    let (exe, args, cwd) = (text(p.exe), text(p.args), text(p.cwd));
                    let args = args.lines().next().unwrap_or_default();
                    writeln!(
                        out,
                        "P  {:+} {:?} of {:?}: {exe} {args} in {cwd} uid {}",
                        pid(p.oid.pid),
                        p.state,
                        p.parent.map(|parent| pid(parent.pid)),
                        p.uid
                    )
                }
                Record::File(f) => {
                    files.push((f.id, text(f.path)));
                    Ok(())
                }
                Record::ProcessEvent(e) => {
                    let (args, ret) = (text(e.args), i64::from(e.ret));
                    let ret =
                        if e.ops == codec::op::CLONE && ret > 0 { pid(e.ret as u32) } else { ret };
                    writeln!(out, "PE {:+} {:#x} {args} = {ret}", pid(e.process.pid), e.ops)
                }
                Record::FileEvent(e) => writeln!(
                    out,
                    "FE {:+} {:#x} {} {} = {}",
                    pid(e.process.pid),
                    e.ops,
                    name(&files, e.file),
                    e.new_file.map(|id| name(&files, id)).unwrap_or_default(),
                    e.ret
                ),
                Record::FileFlow(f) => writeln!(
                    out,
                    "FF {:+} {:#x} {} open {:#x} {:?} {:?}",
                    pid(f.process.pid),
                    f.ops,
                    without_inode(&name(&files, f.file)),
                    f.open_flags,
                    numbers(&f.volume),
                    f.end
                ),
                Record::NetworkFlow(f) => writeln!(
                    out,
                    "NF {:+} {:#x} {:?} to {:?} protocol {} flags {} {:?} {:?}",
                    pid(f.process.pid),
                    f.ops,
                    f.source,
                    f.destination,
                    f.protocol,
                    f.flags,
                    numbers(&f.volume),
                    f.end
                ),
                Record::ProcessFlow(f) => writeln!(
                    out,
                    "PF {:+} {:#x} {} started {} ended {} failed",
                    pid(f.process.pid),
                    f.ops,
                    f.threads_cloned,
                    f.threads_exited,
                    f.clone_errors
                ),
                other => writeln!(out, "{other:?}"),
            }
            .unwrap();
        }
    }
    out
}

fn numbers(volume: &Volume) -> [u64; 4] {
    [volume.read_ops, volume.read_bytes, volume.write_ops, volume.write_bytes]
}

fn without_inode(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

#[test]
fn the_scene_is_told_as_committed() {
    let told = told(&replay(WIDE));
    assert!(told == RECORDS, "told now:\n{told}");
}

#[test]
fn the_same_events_give_the_same_bytes() {
    assert_eq!(replay(WIDE), replay(WIDE));
}

#[test]
fn small_frames_and_generations_tell_the_same() {
    let limits = Limits { frame_bytes_max: 1024, generation_records_max: 20 };
    let frames = replay(limits);
    assert!(frames.len() > 10);
    let flat = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("P  "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(flat(&told(&frames)), flat(RECORDS));
    // Each generation stands alone: every name that a record uses is in it (`told` looks it up
    // among those of the generation), and every process.
    let mut known_in = Class::ALL.map(|_| Vec::new());
    for bytes in &frames {
        let (frame, _) = Frame::decode(bytes).unwrap();
        let known = &mut known_in[usize::from(frame.header.key.class)];
        if frame.header.start.is_some() {
            known.clear();
        }
        for record in frame.records().map(Result::unwrap) {
            match record {
                Record::Process(p) => known.push(p.oid),
                Record::ProcessEvent(e) => assert!(known.contains(&e.process)),
                Record::FileFlow(f) => assert!(known.contains(&f.process)),
                Record::FileEvent(e) => assert!(known.contains(&e.process)),
                Record::NetworkFlow(f) => assert!(known.contains(&f.process)),
                _ => {}
            }
        }
    }
}

/// Each generation says what the one before it was, class by class.
#[test]
fn generations_are_a_chain() {
    let frames = replay(Limits { frame_bytes_max: 1024, generation_records_max: 20 });
    let mut links = 0;
    for class in Class::ALL {
        let mut generation: Option<(u32, Vec<u8>)> = None;
        for bytes in &frames {
            let header = Frame::decode(bytes).unwrap().0.header;
            if header.key.class != class as u8 {
                continue;
            }
            if header.start.is_some() {
                let before = generation.take();
                let expected = before.map(|(number, frames)| {
                    let digest = ring::digest::digest(&ring::digest::SHA256, &frames);
                    (number, digest.as_ref().to_vec())
                });
                let seal = header.seal.map(|seal| (seal.generation, seal.digest.to_vec()));
                assert_eq!(seal, expected);
                links += usize::from(seal.is_some());
                generation = Some((header.generation, Vec::new()));
            }
            generation.as_mut().unwrap().1.extend_from_slice(bytes);
        }
    }
    assert!(links > 4, "{links} links");
}

/// Two threads that end at the same moment may each find itself the last: their process ends once.
#[test]
fn a_process_whose_last_threads_end_at_once_ends_once() {
    let is_last = |event: &Event<'_>| matches!(event, Event::Exit(exit) if exit.last != 0);
    let doubled = events().flat_map(|event| {
        let again = is_last(&event).then_some(event);
        [Some(event), again].into_iter().flatten()
    });
    let exits = events().filter(is_last).count() as u64;
    let (frames, engine) = replay_events(WIDE, doubled);
    let (_, single) = replay_events(WIDE, events());
    let exit = |engine: &Engine, term| engine.batch.books.total(Operation::Exit, term);
    assert!(exits > 0);
    assert_eq!(exit(&engine, Term::Stored), exits);
    let aggregated = exit(&single, Term::Aggregated) + exits;
    assert_eq!(exit(&engine, Term::Aggregated), aggregated);
    let told = told(&frames);
    let operation = format!(" {:#x} ", codec::op::EXIT);
    let ends = told.lines().filter(|line| line.starts_with("PE ") && line.contains(&operation));
    assert_eq!(ends.count() as u64, exits, "{told}");
}
