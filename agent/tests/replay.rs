//! Recorded events in, records out: a scene that the probes once saw (`bpf/examples/record.rs`)
//! is run through the engine, and what comes out is held against the committed text. The scene:
//! a shell that makes, reads, renames and removes files, drops privileges, fails to start a
//! program, and a Python that talks over TCP, UDP, IPv4 and IPv6.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it does not expect"
)]

mod stage;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use agent::batch::Limits;
use agent::engine::{Bounds, Counters, Engine, Last, Taken};
use agent::entity::{Process, START_TICK_NS};
use agent::flow::Totals;
use bpf::{Event, FlowKey, Header};
use codec::{Class, FileId, Frame, Oid, Operation, Record, Term, Volume, process as process_flag};
use stage::{NoMaps, ROOMY, WIDE, events, replay_behind, replay_events};

const RECORDS: &str = include_str!("replay/scene.records");

fn replay(limits: Limits) -> Vec<Vec<u8>> {
    replay_events(limits, ROOMY, events()).0
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
    assert_whole(&frames);
}

/// Each generation stands alone: every name that a record uses is in it (`told` looks it up
/// among those of the generation), and every process.
fn assert_whole(frames: &[Vec<u8>]) {
    let mut known_in = Class::ALL.map(|_| Vec::new());
    for bytes in frames {
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

/// Processes that had to make room for others are known by less, but all that they do is told.
#[test]
fn a_table_too_small_for_the_living_loses_nothing() {
    let narrow = Bounds { processes_max: 2, files_max: 1, text_bytes: 4096, ..ROOMY };
    // Without their ends all of them live on, and what they do they do again.
    let living = || {
        let begins = |event: &Event<'_>| matches!(event, Event::Fork(_) | Event::Exec(_));
        let all = events().chain(events().filter(move |event| !begins(event)));
        all.filter(|event| !matches!(event, Event::Exit(_)))
    };
    let (frames, engine) = replay_events(WIDE, narrow, living());
    let (complete, roomy) = replay_events(WIDE, ROOMY, living());
    let totals = |engine: &Engine| {
        Operation::ALL.map(|kind| Term::ALL.map(|term| engine.batch.books.total(kind, term)))
    };
    assert_eq!(totals(&engine), totals(&roomy));
    assert_whole(&frames);
    let incomplete = |frame: &Vec<u8>| {
        let (frame, _) = Frame::decode(frame).unwrap();
        frame
            .records()
            .filter(|record| {
                matches!(record, Ok(Record::Process(process))
            if process.flags & codec::process::INCOMPLETE != 0)
            })
            .count()
    };
    let before = complete.iter().map(incomplete).sum::<usize>();
    assert!(frames.iter().map(incomplete).sum::<usize>() > before, "none had to go");
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
    // The first to find nobody left is another thread than the process's first.
    let doubled = events().flat_map(|mut event| {
        let again = is_last(&event).then_some(event);
        if let (Some(_), Event::Exit(exit)) = (again, &mut event) {
            exit.header.tid += 1;
        }
        [Some(event), again].into_iter().flatten()
    });
    let exits = events().filter(is_last).count() as u64;
    let (frames, engine) = replay_events(WIDE, ROOMY, doubled);
    let (_, single) = replay_events(WIDE, ROOMY, events());
    let exit = |engine: &Engine, term| engine.batch.books.total(Operation::Exit, term);
    assert!(exits > 0);
    assert_eq!(exit(&engine, Term::Stored), exits);
    let aggregated = exit(&single, Term::Aggregated) + exits;
    assert_eq!(exit(&engine, Term::Aggregated), aggregated);
    let told = told(&frames);
    let operation = format!(" {:#x} ", codec::op::EXIT);
    let ends = told.lines().filter(|line| line.starts_with("PE ") && line.contains(&operation));
    assert_eq!(ends.count() as u64, exits, "{told}");
    for frame in &frames {
        for record in Frame::decode(frame).unwrap().0.records() {
            if let Record::ProcessEvent(event) = record.unwrap()
                && event.ops == codec::op::EXIT
            {
                assert_eq!(event.tid, event.process.pid);
            }
        }
    }
}

/// Identities of the processes that frames describe, with their parents, in order.
fn described(frames: &[Vec<u8>]) -> Vec<(u32, Oid, Option<Oid>)> {
    let mut found = Vec::new();
    for bytes in frames {
        let (frame, _) = Frame::decode(bytes).unwrap();
        for record in frame.records() {
            if let Record::Process(process) = record.unwrap() {
                found.push((frame.header.generation, process.oid, process.parent));
            }
        }
    }
    found
}

/// The first process of the scene: it becomes two programs.
fn first_exec() -> Header {
    let exec = |event: Event<'_>| match event {
        Event::Exec(started) => Some(started.exec.header),
        _ => None,
    };
    events().find_map(exec).unwrap()
}

#[test]
fn a_process_known_by_its_tick_keeps_that_identity_as_another_program() {
    let header = first_exec();
    let start_ns = header.start_ns / START_TICK_NS * START_TICK_NS;
    let coarse = Oid { start_ns, pid: header.tgid };
    let mut met = Process::unknown(coarse);
    met.flags = process_flag::PRE_EXISTING | process_flag::START_COARSE;
    let (frames, engine) = replay_behind(
        |engine| assert!(engine.processes.insert(met)),
        WIDE,
        ROOMY,
        events(),
        &NoMaps,
    );
    let described = described(&frames);
    let own: Vec<Oid> =
        described.iter().map(|(_, oid, _)| *oid).filter(|oid| oid.pid == coarse.pid).collect();
    assert!(own.len() > 1 && own.iter().all(|oid| *oid == coarse), "{own:?}");
    assert!(engine.processes.get(coarse).unwrap().ended_ns.is_some());
}

#[test]
fn a_process_that_a_first_look_met_behind_its_fork_is_one() {
    let fork = |event: Event<'_>| match event {
        Event::Fork(fork) if fork.child_tgid != fork.header.tgid => Some(fork),
        _ => None,
    };
    let fork = events().find_map(fork).unwrap();
    let exact = Oid { start_ns: fork.child_start_ns, pid: fork.child_tgid };
    let tick_ns = exact.start_ns / START_TICK_NS * START_TICK_NS;
    for start_ns in [exact.start_ns, tick_ns] {
        let mut met = Process::unknown(Oid { start_ns, ..exact });
        let coarse = if start_ns == tick_ns { process_flag::START_COARSE } else { 0 };
        met.flags = process_flag::PRE_EXISTING | coarse;
        let (frames, engine) = replay_behind(
            |engine| assert!(engine.processes.insert(met)),
            WIDE,
            ROOMY,
            events(),
            &NoMaps,
        );
        let parent = described(&frames).into_iter().find(|(_, oid, _)| *oid == exact);
        assert_eq!(
            parent.and_then(|(.., parent)| parent).map(|oid| oid.pid),
            Some(fork.parent_tgid)
        );
        let known = engine.processes.get(exact).unwrap();
        assert_eq!(known.flags & process_flag::PRE_EXISTING, 0);
        assert!(start_ns == exact.start_ns || engine.processes.get(met.oid).is_none());
    }
}

#[test]
fn a_long_chain_of_parents_is_told_root_first_in_each_generation() {
    let header = first_exec();
    let own = Oid { start_ns: header.start_ns, pid: header.tgid };
    let first_look = |engine: &mut Engine| {
        let mut parent = None;
        for step in (0..200).rev() {
            let oid = Oid { start_ns: own.start_ns - step, pid: own.pid - step as u32 };
            let mut process = Process::unknown(oid);
            process.parent = parent.replace(oid);
            assert!(engine.processes.insert(process));
        }
    };
    let limits = Limits { generation_records_max: 100, ..WIDE };
    let (frames, _) = replay_behind(first_look, limits, ROOMY, events(), &NoMaps);
    let described = described(&frames);
    let mut told = std::collections::BTreeSet::new();
    for (generation, oid, parent) in &described {
        let is_known = parent.is_none_or(|parent| told.contains(&(*generation, parent)));
        assert!(is_known || oid.pid == own.pid - 199, "{generation} {oid:?} before {parent:?}");
        told.insert((*generation, *oid));
    }
    assert!(described.last().unwrap().0 > 1);
}

/// Events that are lost and numbers that are given again cannot make the agent go in circles.
#[test]
fn a_circle_of_parents_ends() {
    let header = first_exec();
    let own = Oid { start_ns: header.start_ns, pid: header.tgid };
    let other = Oid { start_ns: 1, pid: 1 };
    let first_look = |engine: &mut Engine| {
        for (oid, parent) in [(own, other), (other, own)] {
            let mut process = Process::unknown(oid);
            process.parent = Some(parent);
            assert!(engine.processes.insert(process));
        }
    };
    let (frames, _) = replay_behind(first_look, WIDE, ROOMY, events(), &NoMaps);
    assert!(described(&frames).iter().any(|(_, oid, _)| *oid == other));
}

/// Exec ends all threads but one, so that what they did is the old program's.
#[test]
fn threads_are_told_of_the_program_that_had_them() {
    let header = first_exec();
    let mut thread = events().find(|event| matches!(event, Event::Fork(_)));
    if let Some(Event::Fork(fork)) = &mut thread {
        fork.header = header;
        fork.child_tgid = header.tgid;
    }
    let is_own = |event: &Event<'_>| matches!(event, Event::Exec(started) if started.exec.header.tgid == header.tgid);
    let mut execs = 0;
    let with_thread = events().flat_map(|event| {
        execs += u32::from(is_own(&event));
        let before = if is_own(&event) && execs == 2 { thread.take() } else { None };
        [before, Some(event)].into_iter().flatten()
    });
    let (frames, _) = replay_events(WIDE, ROOMY, with_thread);
    let mut exes = Vec::new();
    for bytes in &frames {
        let (frame, _) = Frame::decode(bytes).unwrap();
        if frame.header.key.class != Class::Volume as u8 {
            continue;
        }
        for record in frame.records() {
            match record.unwrap() {
                Record::Process(process) if process.oid.pid == header.tgid => {
                    exes.push(String::from_utf8_lossy(process.exe).into_owned());
                }
                Record::ProcessFlow(flow) if flow.process.pid == header.tgid => {
                    exes.push(format!("{} thread", flow.threads_cloned));
                }
                _ => {}
            }
        }
    }
    assert_eq!(exes, ["/usr/bin/env", "1 thread", "/usr/bin/dash"]);
}

/// A map from which the flow that is asked for has gone, once with a younger one in its place.
struct Overtaken(RefCell<Option<(FlowKey, Taken)>>);

impl Counters for Overtaken {
    fn take(&self, key: &FlowKey, _: u64) -> Taken {
        let once = self.0.borrow_mut().take_if(|(younger, _)| younger == key);
        once.map_or(Taken::Ended, |(_, taken)| taken)
    }
}

const SENT: Volume = Volume { read_ops: 0, write_ops: 3, read_bytes: 0, write_bytes: 30 };

/// Volumes of the flows to one peer, in order.
fn volumes_to(frames: &[Vec<u8>], port: u16) -> Vec<Volume> {
    let mut found = Vec::new();
    for bytes in frames {
        let (frame, _) = Frame::decode(bytes).unwrap();
        for record in frame.records() {
            if let Record::NetworkFlow(flow) = record.unwrap()
                && flow.destination_port == port
                && flow.protocol == 17
                && flow.volume != Volume::default()
            {
                found.push(flow.volume);
            }
        }
    }
    found
}

/// A datagram socket is closed and the next one on its number goes on with the same peer, before
/// the agent has heard of it: what each has sent is told, and told once.
#[test]
fn peers_of_sockets_that_follow_each_other_keep_their_volume() {
    let is_peers = |event: &Event<'_>| {
        matches!(event, Event::FlowStart { start, .. }
            if start.key.peer_family != 0 && start.operation == bpf::Operation::Send as u8)
    };
    let starts = || events().filter(is_peers);
    let Some(Event::FlowStart { start, .. }) = starts().next() else { panic!("no peer") };
    // The entry of its descriptor.
    let base_ns = events().filter_map(|event| match event {
        Event::FlowStart { start: base, .. } => (base.key.peer_family == 0
            && (base.key.tgid, base.key.fd) == (start.key.tgid, start.key.fd)
            && base.flow_ns <= start.flow_ns)
            .then_some(base.flow_ns),
        _ => None,
    });
    let base_ns = base_ns.max().unwrap();
    let is_base = |event: &Event<'_>| {
        matches!(event, Event::FlowEnd(end)
            if (end.key.tgid, end.key.fd) == (start.key.tgid, start.key.fd)
                && end.flow_ns == base_ns)
    };
    let younger_ns = start.flow_ns + 1_000_000;
    // The end of the older flow, and the start of the younger one, come behind that of the socket.
    let behind = |event: Event<'static>, with_end: bool, with_start: bool| {
        let is_last = is_base(&event);
        let end = events().find(is_base).filter(|_| is_last && with_end).map(|mut event| {
            if let Event::FlowEnd(end) = &mut event {
                (end.key, end.flow_ns) = (start.key, start.flow_ns);
                let Volume { read_ops, write_ops, read_bytes, write_bytes } = SENT;
                end.volume = bpf::Volume { read_ops, write_ops, read_bytes, write_bytes };
            }
            event
        });
        let start = starts().next().filter(|_| is_last && with_start).map(|mut event| {
            if let Event::FlowStart { start, .. } = &mut event {
                start.flow_ns = younger_ns;
            }
            event
        });
        [Some(event), end, start].into_iter().flatten()
    };
    let port = start.key.peer_port;
    let gone = Overtaken(RefCell::new(None));
    let told = events().flat_map(|event| behind(event, true, false));
    let (frames, engine) = replay_behind(|_| (), WIDE, ROOMY, told, &gone);
    assert_eq!(volumes_to(&frames, port), [SENT]);
    assert_eq!(engine.batch.books.total(Operation::Write, Term::LostTable), 0);
    let last = Last { totals: Totals { volume: SENT, ..Totals::default() }, ended: 0 };
    let overtaken = Overtaken(RefCell::new(Some((start.key, Taken::Younger(younger_ns, last)))));
    let told = events().flat_map(|event| behind(event, true, true));
    let (frames, _) = replay_behind(|_| (), WIDE, ROOMY, told, &overtaken);
    assert_eq!(volumes_to(&frames, port), [SENT, SENT]);
}
