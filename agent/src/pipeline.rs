//! The data path, put together: knows all modules, owns every timer, reads the clock. One
//! thread drains the ring, sweeps the kernel's flows, and hands finished frames on.

mod delivery;

pub use delivery::{purge, run};

use std::cell::RefCell;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bpf::{Bounds, Event, FlowKey, Hook, Probes};
use codec::{Capabilities, Clock, Operation, Term, hook};
use rustix::time::{ClockId, clock_gettime};
use smol::Timer;

use crate::batch::{Batch, Books, Identity, Kept, Limits, Sink};
use crate::confinement::{self, Needs};
use crate::engine::{self, Counters, Engine, Timeouts};
use crate::flow::Totals;
use crate::privacy::Privacy;
use crate::procfs::{self, UserFiles};
use crate::run_state::Before;
use crate::spool::SpoolError;
use crate::{privileges, run_state};

/// How often the ring is looked into when it does not wake the agent itself.
const TICK: Duration = Duration::from_millis(100);
/// Without records the ledger alone is told so often: a quiet gateway sends little.
const LEDGER_AGE_MAX: Duration = Duration::from_secs(60);
/// How often the kernel's flows are read.
const SWEEP: Duration = Duration::from_secs(5);

/// Why the agent stops.
#[derive(Debug)]
pub enum Error {
    /// The kernel side does not run.
    Probes(bpf::Error),
    /// A file or folder cannot be used; the text names it.
    File(PathBuf, std::io::Error),
    /// The configuration, or a file that it names, is wrong; the text says how.
    Config(String),
    /// The spool cannot be used.
    Spool(SpoolError),
    /// The operating system refused something; the text names it.
    System(&'static str, std::io::Error),
}

impl Error {
    /// The program's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Probes(bpf::Error::NotPermitted) => 77,
            Error::Probes(
                bpf::Error::NoTypes(_)
                | bpf::Error::TypesUnreadable(..)
                | bpf::Error::WrongTypes(..)
                | bpf::Error::NoBpf,
            ) => 78,
            Error::Probes(_) | Error::System(..) => 70,
            Error::File(_, error) if error.kind() == std::io::ErrorKind::PermissionDenied => 77,
            Error::Spool(SpoolError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                77
            }
            Error::File(..) | Error::Config(_) | Error::Spool(_) => 78,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Probes(error) => error.fmt(f),
            Error::File(path, _) => write!(f, "{}: cannot be used", path.display()),
            Error::Config(text) => f.write_str(text),
            Error::Spool(error) => error.fmt(f),
            Error::System(what, _) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Probes(error) => error.source(),
            Error::File(_, error) | Error::System(_, error) => Some(error),
            Error::Config(_) => None,
            // Its text has its cause.
            Error::Spool(_) => None,
        }
    }
}

/// Nanoseconds on the boot clock.
fn boot_ns() -> u64 {
    nanoseconds(ClockId::Boottime).max(0) as u64
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Reads both clocks around each other: the gap between the two boot readings bounds the error.
fn clock() -> Clock {
    let before = nanoseconds(ClockId::Boottime);
    let wall = nanoseconds(ClockId::Realtime);
    let after = nanoseconds(ClockId::Boottime);
    Clock {
        offset_ns: wall - (before + (after - before) / 2),
        uncertainty_ns: (after - before).max(0) as u64,
        synchronized: false,
    }
}

/// An offset that moved by less than this is the same: reading it takes that long.
const CLOCK_MOVED_NS: u64 = 1_000_000;

fn identity(agent_id: String, boot_id: [u8; 16], run_id: [u8; 16]) -> Identity {
    let uname = rustix::system::uname();
    Identity {
        agent_id,
        boot_id,
        run_id,
        kernel: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
    }
}

fn boot_id() -> Result<[u8; 16], Error> {
    run_state::boot_id().map_err(|e| Error::System("the kernel's boot id", e))
}

fn hook_bit(hook: Hook) -> u32 {
    match hook {
        Hook::SysExit => hook::SYS_EXIT,
        Hook::Fork => hook::FORK,
        Hook::Exec => hook::EXEC,
        Hook::Exit => hook::EXIT,
        Hook::SocketState => hook::SOCKET_STATE,
    }
}

const OPERATIONS: [(bpf::Operation, Operation); Operation::ALL.len()] = {
    let mut pairs = [(bpf::Operation::Clone, Operation::Clone); Operation::ALL.len()];
    let mut i = 0;
    while i < pairs.len() {
        pairs[i] = (bpf::Operation::ALL[i], Operation::ALL[i]);
        i += 1;
    }
    pairs
};

struct Kernel(Rc<Probes>);

impl Counters for Kernel {
    fn take(&self, key: &FlowKey, flow_ns: u64) -> Option<Totals> {
        let entry = self.0.flow(key)?;
        if entry.flow_ns != flow_ns {
            return None;
        }
        let entry = self.0.take_flow(key)?;
        Some(Totals::new(&entry.volume, entry.shutdown, entry.mmaps))
    }
}

/// What the path is built with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds of the kernel side.
    pub bounds: Bounds,
    /// Timeouts of flows.
    pub timeouts: Timeouts,
    /// Bounds of frames.
    pub limits: Limits,
    /// Age at which a frame is finished.
    pub frame_age_max: Duration,
    /// Processes in the table.
    pub processes_max: usize,
    /// Bytes of the texts of processes and flows.
    pub text_bytes: usize,
    /// What is masked in arguments.
    pub privacy: Privacy,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            bounds: Bounds {
                ring_bytes: 512 * 1024,
                flow_entries: 4096,
                peers_max: 64,
                args_bytes_max: 2048,
                env_bytes_max: 0,
                btf: None,
            },
            timeouts: Timeouts { idle_ns: 60_000_000_000, active_ns: 30_000_000_000 },
            limits: Limits { frame_bytes_max: 64 * 1024, generation_records_max: 10_000 },
            frame_age_max: Duration::from_secs(5),
            processes_max: 2048,
            text_bytes: 1 << 20,
            privacy: Privacy::default(),
        }
    }
}

impl Settings {
    /// Bounds of the tables of the engine.
    pub fn engine_bounds(&self) -> engine::Bounds {
        engine::Bounds {
            // Those that the kernel keeps, and some whose end is still in the ring.
            flows_max: self.bounds.flow_entries as usize + 1024,
            processes_max: self.processes_max,
            // Most records of a generation use a file that is known already.
            files_max: self.limits.generation_records_max as usize,
            text_bytes: self.text_bytes,
        }
    }
}

/// Where finished frames go.
trait Outlet: Sink {
    /// The probes are attached; no privilege is needed from here on.
    fn ready(&mut self, probes: &Probes) -> Result<(), Error>;
    /// Everything that was observed until `until_ns` has been given to the outlet.
    ///
    /// # Errors
    /// If the outlet has failed, and nothing more is worth the watching.
    fn told_until(&mut self, until_ns: u64) -> Result<(), Error>;
    /// What was lost behind the outlet since it was last asked.
    fn losses(&mut self) -> Losses {
        Losses::default()
    }
    /// Once for every frame age.
    fn tick(&mut self, _books: &Books) {}
    /// Once for every look into the ring, at least ten times a second while all is well.
    fn alive(&mut self, _now: Instant) {}
    /// The probes are detached: what is held is told, and then it ends.
    fn stopping(&mut self) {}
}

/// Records that were lost after they had been handed on.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    /// Refused by the collector.
    refused: u64,
    /// Damaged on the device.
    damaged: u64,
    /// Whether the collector has lost the generation.
    restart: bool,
}

/// What runs before this one left to be told.
#[derive(Clone, Copy, Default)]
struct Former {
    /// Of the last of them: how far it came, and whether it ended without a farewell.
    before: Before,
    /// Records that were purged from the spool.
    purged_records: u64,
}

/// Watches until `stop` is set or `duration` is over.
fn watch(
    settings: &Settings,
    identity: Identity,
    former: Former,
    duration: Option<Duration>,
    stop: &Arc<AtomicBool>,
    outlet: &Rc<RefCell<impl Outlet + 'static>>,
) -> Result<(), Error> {
    privileges::start().map_err(|e| Error::System("giving up capabilities", e))?;
    let probes = Rc::new(Probes::load(&settings.bounds).map_err(Error::Probes)?);
    log::info!("types of the kernel: {}", probes.types());
    for (hook, reason) in probes.missing() {
        let option = hook.option();
        log::warn!(
            "{}: not attached ({reason}; enable {option}); what it shows is not seen",
            hook.name()
        );
    }
    if !probes.is_jited() {
        log::warn!(
            "the kernel interprets the probes (enable CONFIG_BPF_JIT, and set \
             net.core.bpf_jit_enable to 1)"
        );
    }
    let capabilities = Capabilities {
        attached: probes.attached().iter().fold(0, |bits, hook| bits | hook_bit(*hook)),
        missing: probes.missing().iter().fold(0, |bits, (hook, _)| bits | hook_bit(*hook)),
        jit: probes.is_jited(),
    };
    let Former { before: Before { mut interruption, former }, purged_records } = former;
    if let Some(interruption) = &mut interruption
        && interruption.to_ns != 0
    {
        // Loading takes a moment, in which nothing is seen yet.
        interruption.to_ns = boot_ns();
    }
    let mut offset = clock();
    let sink = Box::new(Rc::clone(outlet));
    let limits = settings.limits;
    let mut batch = Batch::new(identity, limits, capabilities, offset, interruption, former, sink);
    batch.books.add_lost_records(Term::LostPurged, purged_records);
    let mut user_files = UserFiles::default();
    let mut engine = Engine::new(
        settings.engine_bounds(),
        settings.timeouts,
        user_files.changed().unwrap_or_default(),
        settings.privacy.clone(),
        batch,
    );
    for (process, words) in procfs::processes(&probes.processes(), &settings.privacy) {
        if engine.processes.insert(process) {
            engine.processes.set_words(process.oid, words.slices());
        }
    }
    let kernel = Rc::new(Kernel(Rc::clone(&probes)));
    let engine = Rc::new(RefCell::new(engine));
    let ring = {
        let (engine, kernel) = (Rc::clone(&engine), Rc::clone(&kernel));
        probes
            .ring(move |bytes| match Event::decode(bytes) {
                Some(event) => engine.borrow_mut().observe(&event, kernel.as_ref()),
                None => {
                    log::warn!("an event of the probes cannot be read: agent and probes differ")
                }
            })
            .map_err(Error::Probes)?
    };
    log::info!("watching: {} hooks attached", probes.attached().len());

    outlet.borrow_mut().ready(&probes)?;
    let started = Instant::now();
    let (mut swept, mut framed, mut told) = (started, started, started);
    let mut swept_ns = boot_ns();
    let wake = smol::Async::new(ring.descriptor()).map_err(|e| Error::System("ring", e))?;
    smol::block_on(smol::LocalExecutor::new().run(async {
        loop {
            let stopping = stop.load(Ordering::Relaxed)
                || duration.is_some_and(|duration| started.elapsed() >= duration);
            if stopping {
                // What comes after this is nobody's business, and the books can balance.
                probes.detach();
                outlet.borrow_mut().stopping();
            }
            let drained_ns = boot_ns();
            ring.drain();
            let now = Instant::now();
            outlet.borrow_mut().alive(now);
            // The guard ends before the wait: the ring's observer takes the engine itself.
            {
                let mut engine = engine.borrow_mut();
                if stopping || now.duration_since(swept) >= SWEEP {
                    swept = now;
                    let now_ns = boot_ns();
                    swept_ns = now_ns;
                    probes
                        .each_flow(|entry| engine.sweep(&entry, now_ns, kernel.as_ref()))
                        .map_err(Error::Probes)?;
                    engine.expire(now_ns);
                    if let Some(users) = user_files.changed() {
                        engine.users = users;
                    }
                    let moved = clock();
                    if moved.offset_ns.abs_diff(offset.offset_ns) > CLOCK_MOVED_NS {
                        offset = moved;
                        engine.batch.set_clock(offset);
                    }
                }
                if stopping {
                    let now_ns = boot_ns();
                    tell_tallies(&mut engine, &probes);
                    engine.close(now_ns);
                } else if now.duration_since(framed) >= settings.frame_age_max {
                    framed = now;
                    tell_tallies(&mut engine, &probes);
                    if engine.batch.pending() > 0 || now.duration_since(told) >= LEDGER_AGE_MAX {
                        told = now;
                        engine.batch.finish();
                    }
                    let losses = outlet.borrow_mut().losses();
                    let books = &mut engine.batch.books;
                    books.add_lost_records(Term::LostRefused, losses.refused);
                    books.add_lost_records(Term::LostSpoolError, losses.damaged);
                    if losses.restart {
                        engine.batch.restart_generation();
                    }
                    outlet.borrow_mut().tick(&engine.batch.books);
                }
                let until_ns =
                    if stopping { drained_ns } else { engine.told_until(swept_ns, drained_ns) };
                let mut outlet = outlet.borrow_mut();
                outlet.told_until(until_ns)?;
                if stopping {
                    outlet.tick(&engine.batch.books);
                }
            }
            if stopping {
                return Ok(());
            }
            smol::future::or(
                async {
                    Timer::after(TICK).await;
                },
                async {
                    // An error of the wait is answered by the timer.
                    if wake.readable().await.is_err() {
                        smol::future::pending::<()>().await;
                    }
                },
            )
            .await;
        }
    }))
}

/// Brings the kernel side's terms of the ledger up to date.
fn tell_tallies(engine: &mut Engine, probes: &Probes) {
    for (kernel, operation) in OPERATIONS {
        let tally = probes.tally(kernel);
        for (term, total) in [
            (Term::Observed, tally.observed),
            (Term::Filtered, tally.filtered),
            (Term::Own, tally.own),
            (Term::LostRing, tally.lost_ring),
            (Term::LostMap, tally.lost_map),
            (Term::LostUnreadable, tally.lost_unreadable),
        ] {
            engine.batch.books.set(operation, term, total);
        }
    }
}

/// A flag that SIGTERM and SIGINT set.
///
/// # Errors
/// [`Error::System`] if the handlers cannot be installed.
pub fn stop_on_signal() -> Result<Arc<AtomicBool>, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|e| Error::System("signal handler", e))?;
    }
    Ok(stop)
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |error| Error::File(path, error)
}

/// A folder that takes each frame as a file.
struct Folder {
    out: PathBuf,
    number: u64,
    failure: Option<Error>,
}

impl Sink for Folder {
    fn frame(&mut self, frame: &[u8]) -> Kept {
        let path = self.out.join(format!("{:020}.frame", self.number));
        self.number += 1;
        let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(frame));
        if let Err(error) = written {
            self.failure = Some(Error::File(path, error));
        }
        Kept::default()
    }
}

impl Outlet for Folder {
    fn ready(&mut self, probes: &Probes) -> Result<(), Error> {
        drop_privileges(probes, &Needs::of_capture(&self.out))
    }

    fn told_until(&mut self, _: u64) -> Result<(), Error> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// Watches without a collector: each frame becomes a file in `out`.
///
/// # Errors
/// See [`Error`]; `out` must be a folder that can be made and written, without frames.
pub fn capture(settings: &Settings, duration: Option<Duration>, out: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(out).map_err(file_error(out))?;
    if std::fs::read_dir(out).map_err(file_error(out))?.next().is_some() {
        let text = format!("{}: is not empty (name a new folder for the frames)", out.display());
        return Err(Error::Config(text));
    }
    let stop = stop_on_signal()?;
    let folder = Rc::new(RefCell::new(Folder { out: out.into(), number: 0, failure: None }));
    let run_id = run_state::random_id().map_err(|e| Error::System("a random run id", e))?;
    let identity = identity("capture".into(), boot_id()?, run_id);
    watch(settings, identity, Former::default(), duration, &stop, &folder)?;
    log::info!("{} frames in {}", folder.borrow().number, out.display());
    Ok(())
}

/// Gives up what the start needed, but for `needs`: what is attached stays attached.
fn drop_privileges(probes: &Probes, needs: &Needs) -> Result<(), Error> {
    privileges::give_up(|| probes.can_read().is_ok())
        .map_err(|e| Error::System("giving up capabilities", e))?;
    confinement::confine(needs);
    Ok(())
}
