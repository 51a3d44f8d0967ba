//! The data path, put together: knows all modules, owns every timer, reads the clock. One
//! thread drains the ring, sweeps the kernel's flows, and hands finished frames on.

mod capture;
mod delivery;
mod path;
mod settings;
mod strain;

pub use capture::capture;
pub use delivery::{purge, run};
pub use path::EventPath;
pub use settings::Settings;

use std::cell::RefCell;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bpf::{Hook, Probes};
use codec::{CLASSES, Capabilities, Class, Clock, DropReason, Step, StepChange, Term, hook};
use rustix::time::{ClockId, clock_gettime};
use smol::Timer;

use crate::batch::{Batch, Books, Identity, Signer, Sink};
use crate::confinement::{self, Needs};
use crate::engine::Engine;
use crate::ladder::Measures;
use crate::procfs::{self, UserFiles};
use crate::run_state::Before;
use crate::spool::SpoolError;
use crate::tombstones::Graveyard;
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
            Error::File(_, source) | Error::Spool(SpoolError::Io { source, .. }) => {
                file_exit_code(source.kind())
            }
            Error::Spool(SpoolError::InUse { .. }) => EXIT_PASSING,
            Error::Config(_) | Error::Spool(_) => 78,
        }
    }
}

/// Exit code: what is wrong may pass by itself.
const EXIT_PASSING: u8 = 75;

/// A file system that is full, read-only, failing or not mounted yet may be well again; a path that
/// cannot be one is the configuration's fault.
fn file_exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::PermissionDenied => 77,
        ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidInput
        | ErrorKind::Unsupported => 78,
        _ => EXIT_PASSING,
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

/// Nanoseconds on the wall clock, before 1970 negative. By the C library, as all that asks for this
/// clock: there tests can move it for one program.
fn wall_ns() -> i64 {
    let ns = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => ns(since),
        Err(before) => -ns(before.duration()),
    }
}

/// Reads both clocks around each other: the gap between the two boot readings bounds the error.
fn clock() -> Clock {
    let before = nanoseconds(ClockId::Boottime);
    let wall = wall_ns();
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
    /// Signs what the frames were.
    fn signer(&self) -> Option<Box<dyn Signer>> {
        None
    }
    /// Adds what strains the outlet.
    fn measure(&self, _measures: &mut Measures) {}
    /// Which step of the ladder holds from now on.
    fn stepped(&mut self, _step: Step) {}
    /// Once for every age of urgent frames.
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
    /// By class, whether the collector has lost the generation.
    restart: [bool; CLASSES],
}

/// What runs before this one left to be told.
#[derive(Clone, Default)]
struct Former {
    /// Of the last of them: how far it came, and whether it ended without a farewell.
    before: Before,
    /// Records that were purged from the spool.
    purged_records: u64,
    /// Frames that were dropped.
    dropped: Graveyard,
    /// What the last of them lost behind the outlet after its books were closed.
    late: Losses,
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
    let watching_ns = boot_ns();
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
    let Former { before, purged_records, dropped, late } = former;
    let Before { mut interruption, former } = before;
    if let Some(interruption) = &mut interruption
        && interruption.to_ns != 0
    {
        // Loading takes a moment, in which nothing is seen yet.
        interruption.to_ns = watching_ns;
    }
    let mut offset = clock();
    let sink = Box::new(Rc::clone(outlet));
    let limits = settings.limits;
    let mut batch = Batch::new(identity, limits, capabilities, offset, interruption, former, sink);
    if let Some(signer) = outlet.borrow().signer() {
        batch.sign_with(signer);
    }
    batch.books.add_lost_records(Term::LostPurged, purged_records);
    tell_losses(&mut batch, &late);
    for stone in dropped.stones() {
        // What no frame told of, no ledger counted. A purge has a count of its own.
        match stone.reason {
            DropReason::SpoolFull => {
                batch.books.add_lost_records(Term::LostSpoolFull, stone.records);
            }
            DropReason::FlashBudget => {
                batch.books.add_lost_records(Term::LostFlashBudget, stone.records);
            }
            DropReason::Purged => {}
        }
    }
    batch.tell_dropped(&dropped);
    let mut user_files = UserFiles::default();
    let mut engine = Engine::new(
        settings.tables,
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
    let path = EventPath::new(Rc::clone(&probes), engine)?;
    log::info!("watching: {} hooks attached", probes.attached().len());

    outlet.borrow_mut().ready(&probes)?;
    path.engine.borrow_mut().batch.open(watching_ns);
    let started = Instant::now();
    let (mut swept, mut told) = (started, started);
    let mut framed = [started; CLASSES];
    let mut strain = strain::Watch::new(settings, started);
    let [urgent_age_max, volume_age_max] = settings.frame_ages_max;
    let wake = smol::Async::new(path.ring.descriptor()).map_err(|e| Error::System("ring", e))?;
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
            strain.note_ring(path.ring.waiting_bytes());
            path.drain();
            let now = Instant::now();
            outlet.borrow_mut().alive(now);
            let measure = |measures: &mut Measures| outlet.borrow().measure(measures);
            if let Some(change) = strain.look(now, drained_ns, measure) {
                step(&change, &probes, &path);
                outlet.borrow_mut().stepped(change.step);
            }
            let sweeping = stopping || now.duration_since(swept) >= SWEEP;
            if sweeping {
                swept = now;
                path.sweep(boot_ns())?;
            }
            // The guard ends before the wait: the ring's observer takes the engine itself.
            {
                let mut engine = path.engine.borrow_mut();
                if sweeping {
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
                    path::tell_tallies(&mut engine, &probes);
                    let losses = outlet.borrow_mut().losses();
                    tell_losses(&mut engine.batch, &losses);
                    engine.close(now_ns);
                } else if now.duration_since(framed[Class::Urgent as usize]) >= urgent_age_max {
                    framed[Class::Urgent as usize] = now;
                    if now.duration_since(framed[Class::Volume as usize]) >= volume_age_max {
                        framed[Class::Volume as usize] = now;
                        engine.batch.finish(Class::Volume);
                    }
                    path::tell_tallies(&mut engine, &probes);
                    if engine.batch.pending(Class::Urgent) > 0
                        || now.duration_since(told) >= LEDGER_AGE_MAX
                    {
                        told = now;
                        engine.batch.finish(Class::Urgent);
                    }
                    let losses = outlet.borrow_mut().losses();
                    tell_losses(&mut engine.batch, &losses);
                    outlet.borrow_mut().tick(&engine.batch.books);
                }
                let until_ns = if stopping {
                    drained_ns
                } else {
                    engine.told_until(path.swept_ns.get(), drained_ns)
                };
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

/// Books what was lost behind the outlet.
fn tell_losses(batch: &mut Batch, losses: &Losses) {
    batch.books.add_lost_records(Term::LostRefused, losses.refused);
    batch.books.add_lost_records(Term::LostSpoolError, losses.damaged);
    for class in Class::ALL {
        if losses.restart[class as usize] {
            batch.restart_generation(class);
        }
    }
}

/// Takes a step of the ladder: kernel side, engine and log hear of it, and the collector.
fn step(change: &StepChange, probes: &Probes, path: &EventPath) {
    let StepChange { at_ns, step, strain, percent } = *change;
    if let Err(error) = probes.set_step(step as u32) {
        log::error!("{error}: the probes do not follow");
    }
    {
        let mut engine = path.engine.borrow_mut();
        engine.set_step(step, at_ns);
        engine.batch.tell_step(*change);
    }
    let (name, strain) = (step.name(), strain.name());
    if step == Step::Everything {
        log::info!("ladder: {name} is told again");
    } else {
        log::warn!("ladder: step {name:?} holds ({strain} at {percent} % of its limit)");
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

/// A flag that SIGHUP sets, which then ends nothing.
fn reload_on_signal() -> Result<Arc<AtomicBool>, Error> {
    let reload = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&reload))
        .map_err(|e| Error::System("signal handler", e))?;
    Ok(reload)
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |error| Error::File(path, error)
}

/// Gives up what the start needed, but for `needs`: what is attached stays attached.
fn drop_privileges(probes: &Probes, needs: &Needs) -> Result<(), Error> {
    privileges::give_up(|| probes.can_read().is_ok())
        .map_err(|e| Error::System("giving up capabilities", e))?;
    confinement::confine(needs);
    Ok(())
}
