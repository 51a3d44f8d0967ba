//! After its start the path of events takes no memory: the allocations of this thread are counted
//! while a recorded scene goes through over and over, each time as the doing of other processes on
//! other files, through tables that are far too small for it.
//!
//! `SYSFLOW_EVENTS` says how many events go through.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the unexpected")]

#[allow(dead_code, reason = "other tests ask it for more")]
mod stage;

use std::cell::RefCell;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use agent::batch::{Kept, Limits, Sink};
use agent::budget;
use agent::config::Config;
use agent::engine::{Bounds, Engine, Timeouts, Users};
use agent::pipeline::{EventPath, Settings};
use agent::privacy::Privacy;
use bpf::{Event, Header, Probes};
use codec::{Class, Frame, Record, Step, Term};
use stage::NoMaps;

/// Unless `SYSFLOW_EVENTS` says otherwise.
const EVENTS: u64 = 500_000;
/// Between two rounds of the scene: process ids, and time on the boot clock, ns.
const PIDS: u32 = 1_000;
const ROUND_NS: u64 = 1_000_000_000;
/// Of all of it: it floods.
const SESSION: u32 = 7;

/// Checks each frame, and keeps none.
#[derive(Default)]
struct Seen {
    frames: u64,
    records: u64,
    summaries: u64,
}

impl Sink for Seen {
    fn frame(&mut self, _: Class, frame: &[u8]) -> Kept {
        let (decoded, rest) = Frame::decode(frame).unwrap();
        assert!(rest.is_empty());
        self.frames += 1;
        self.records += u64::from(decoded.header.records);
        let is_summary = |record: &Record<'_>| matches!(record, Record::Summary(_));
        self.summaries += decoded.records().flatten().filter(is_summary).count() as u64;
        Kept::default()
    }
}

/// The events of the scene, as they happen in round `round`: to others, and later.
fn events(round: u64) -> impl Iterator<Item = Event<'static>> {
    stage::events().map(move |mut event| {
        shift(&mut event, round);
        event
    })
}

fn shift(event: &mut Event<'_>, round: u64) {
    let pid = |pid: &mut u32| *pid += PIDS * (round % 4_000) as u32;
    let time = |time_ns: &mut u64| *time_ns += ROUND_NS * round;
    let header = |header: &mut Header| {
        time(&mut header.time_ns);
        time(&mut header.start_ns);
        pid(&mut header.tgid);
        pid(&mut header.tid);
        header.session = SESSION;
    };
    match event {
        Event::Fork(fork) => {
            header(&mut fork.header);
            time(&mut fork.child_start_ns);
            time(&mut fork.parent_start_ns);
            pid(&mut fork.child_tgid);
            pid(&mut fork.child_tid);
            pid(&mut fork.parent_tgid);
        }
        Event::Exec(started) => {
            header(&mut started.exec.header);
            time(&mut started.exec.parent_start_ns);
            pid(&mut started.exec.parent_tgid);
        }
        Event::Exit(exit) => header(&mut exit.header),
        Event::Clone(clone) => header(&mut clone.header),
        Event::ExecFailed { failed, .. } => header(&mut failed.header),
        Event::Setuid(setuid) => header(&mut setuid.header),
        Event::FlowStart { start, .. } => {
            header(&mut start.header);
            pid(&mut start.key.tgid);
            time(&mut start.flow_ns);
            start.inode += round;
            start.file += round;
        }
        Event::FlowEnd(end) => {
            header(&mut end.header);
            pid(&mut end.key.tgid);
            time(&mut end.flow_ns);
        }
        Event::ClosedRange(range) => header(&mut range.header),
        Event::Path { path, .. } => header(&mut path.header),
        Event::SocketState(state) => header(&mut state.header),
        Event::IoUring(event) => header(&mut event.header),
        Event::Attribute { attribute, .. } => header(&mut attribute.path.header),
        Event::Socket { socket, .. } => header(&mut socket.header),
        Event::Privilege { privilege, .. } => header(&mut privilege.header),
    }
}

/// An empty engine, whose frames go to `seen`.
fn engine(bounds: Bounds, limits: Limits, seen: &Rc<RefCell<Seen>>) -> Engine {
    let sink = Box::new(Rc::clone(seen));
    Engine::new(
        bounds,
        Timeouts { idle_ns: 2 * ROUND_NS, active_ns: ROUND_NS },
        Users::default(),
        Privacy::new(true, &[], &["PATH".to_string()]),
        stage::batch(limits, sink),
    )
}

#[test]
fn an_engine_takes_what_the_budget_gives_it() {
    let seen = Rc::default();
    for mib in [4, 8, 32] {
        let mut config = Config::default();
        config.memory.budget_bytes = mib << 20;
        let division = budget::divide(&config, 2).unwrap();
        let settings = Settings::divided(&config, &division);
        let mut made = None;
        let taken = allocation_counter::measure(|| {
            made = Some(engine(settings.tables, settings.limits, &seen));
        });
        // Beside them stand the ring, the request and what the kernel takes.
        let given: usize = settings.tables.memory_bytes() + settings.limits.memory_bytes();
        println!("{mib} MiB: {} bytes taken of {given}", taken.bytes_max);
        assert!(taken.bytes_max <= given as u64, "{mib} MiB: {taken:?} of {given}");
        assert!(taken.bytes_max > given as u64 * 95 / 100, "{mib} MiB: {taken:?} of {given}");
    }
}

#[test]
fn events_take_no_memory() {
    let wanted = std::env::var("SYSFLOW_EVENTS");
    let wanted = wanted.map_or(EVENTS, |count| count.parse().expect("SYSFLOW_EVENTS: a number"));
    let limits = Limits { frame_bytes_max: 16 * 1024, generation_records_max: 1_000 };
    let seen = Rc::new(RefCell::new(Seen::default()));
    let bounds = Bounds { flows_max: 8, processes_max: 16, files_max: 64, text_bytes: 16 * 1024 };
    let mut engine = engine(bounds, limits, &seen);
    let mut count = 0;
    let mut rounds = 0..;
    let taken = allocation_counter::measure(|| {
        while count < wanted {
            let round = rounds.next().unwrap_or_default();
            let mut last_ns = 0;
            let step = Step::ALL[(round / 10) as usize % Step::ALL.len()];
            engine.set_step(step, ROUND_NS * round);
            for event in events(round) {
                if let Event::Exit(exit) = &event {
                    last_ns = exit.header.time_ns;
                }
                engine.observe(&event, &NoMaps);
                count += 1;
            }
            engine.expire(last_ns);
            engine.told_until(last_ns, last_ns);
        }
    });
    let (seen, lost) = (seen.borrow(), engine.batch.books.sum(Term::LostTable));
    println!("{count} events, {} records in {} frames, {lost} lost", seen.records, seen.frames);
    println!("{} summaries", seen.summaries);
    assert_eq!(taken.count_total, 0, "allocations in {count} events: {taken:?}");
    // The tables were full, and what passed was told all the same.
    assert!(seen.records > count / 10 && seen.frames > 100 && seen.summaries > 100);
}

/// The same on the running kernel, maps included: `SYSFLOW_SECONDS` of a program that makes, reads
/// and removes files, and starts others.
#[test]
fn a_live_load_takes_no_memory() {
    const LOAD: &str = "while :; do echo x > f; read y < f; /bin/true; mv f g; rm g; done";
    let seconds = std::env::var("SYSFLOW_SECONDS");
    let seconds = seconds.map_or(3, |count| count.parse().expect("SYSFLOW_SECONDS: a number"));
    let settings = Settings::new(&Config::default()).unwrap();
    let probes = match Probes::load(&settings.bounds) {
        Ok(probes) => Rc::new(probes),
        Err(error) => {
            // Not by println!, which the test runner swallows.
            let text = format!("\nskipped: a_live_load_takes_no_memory: {error}\n");
            std::io::stdout().write_all(text.as_bytes()).unwrap();
            return;
        }
    };
    let seen = Rc::new(RefCell::new(Seen::default()));
    let limits = Limits { frame_bytes_max: 16 * 1024, generation_records_max: 1_000 };
    let engine = engine(settings.tables, limits, &seen);
    let path = EventPath::new(Rc::clone(&probes), engine).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut load = Command::new("/bin/sh");
    load.args(["-c", LOAD]).current_dir(&folder).stderr(Stdio::null());
    let mut load = load.spawn().unwrap();
    let boot_ns = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    let (end, mut swept) = (Instant::now() + Duration::from_secs(seconds), Instant::now());
    let taken = allocation_counter::measure(|| {
        while Instant::now() < end {
            path.drain();
            if swept.elapsed() >= Duration::from_secs(1) {
                swept = Instant::now();
                path.sweep(boot_ns()).unwrap();
                path.engine.borrow_mut().batch.finish(Class::Urgent);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    load.kill().and_then(|()| load.wait()).unwrap();
    probes.detach();
    let engine = path.engine.borrow();
    let observed = engine.batch.books.sum(Term::Observed);
    let seen = seen.borrow();
    println!(
        "{seconds} s: {observed} operations, {} records in {} frames",
        seen.records, seen.frames
    );
    assert_eq!(taken.count_total, 0, "allocations in {observed} operations: {taken:?}");
    assert!(seen.records > 1_000 && seen.frames > 10);
}
