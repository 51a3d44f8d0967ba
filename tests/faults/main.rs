//! Randomised faults, end to end: the real agent on the real kernel delivers over real TLS to
//! the real collector, while things break that break in the field. A workload whose every act is
//! known by its number goes on all the while. When all is whole again, each act must be in the
//! store once and as it was, or lie within what the store names as missing.
//!
//! Each run is drawn from its seed, which is printed; `cargo xtask faults --runs 1 --seed S` does
//! it again. Several runs go side by side, each with an agent and a collector of its own.

// A test program: what cannot be looked up ends it.
#![allow(clippy::unwrap_used)]

mod fault;
mod judge;
mod schedule;
mod world;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use tests::Result;
use tests::acts::Actor;
use tests::machine::{Machine, Need, has_program, skip};

use fault::Fault;
use judge::{Evidence, Verdict};
use world::{Blows, World};

/// What a test runner's filter is held against.
const NAME: &str = "faults";
/// Tells this program that it is in a mount namespace of its own.
const UNSHARED: &str = "SYSFLOW_FAULTS_UNSHARED";
/// Runs where nobody says how many.
const RUNS: u64 = 20;
/// Runs at a time: they mostly wait.
const SIDE_BY_SIDE: u64 = 4;
/// Acts that follow when all is whole again.
const LAST_ACTS: usize = 10;

#[derive(Clone, Copy, Debug)]
struct Plan {
    runs: u64,
    seed: u64,
}

fn parse() -> Result<Plan> {
    let mut plan = Plan { runs: RUNS, seed: 1 };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("runs") => plan.runs = parser.value()?.parse()?,
            Arg::Long("seed") => plan.seed = parser.value()?.parse()?,
            // A filter for another test asks for none of these.
            Arg::Value(filter) => {
                let is_meant = NAME.contains(filter.string()?.as_str());
                plan.runs = if is_meant { plan.runs } else { 0 };
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(plan)
}

fn main() -> ExitCode {
    match all() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Goes on in a mount namespace of its own: whatever ends this program, its disks go with it.
/// Returns only if that cannot be had.
fn unshare_mounts() -> Result {
    let own = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(own);
    command.args(std::env::args_os().skip(1)).env(UNSHARED, "1");
    Err(format!("start unshare: {}", command.exec()).into())
}

/// What came of all runs.
#[derive(Debug, Default)]
struct Sum {
    passed: u64,
    failed: Vec<u64>,
    blows: Blows,
    bites: Bites,
    verdict: Verdict,
}

/// By kind of fault, how often it was carried out, and how often something showed of it.
#[derive(Clone, Debug, Default)]
struct Bites(BTreeMap<&'static str, [u64; 2]>);

impl Bites {
    fn note(&mut self, kind: &'static str, has_shown: bool) {
        let [times, shown] = self.0.entry(kind).or_default();
        *times += 1;
        *shown += u64::from(has_shown);
    }

    fn add(&mut self, other: &Bites) {
        for (kind, [times, shown]) in &other.0 {
            let sum = self.0.entry(kind).or_default();
            *sum = [sum[0] + times, sum[1] + shown];
        }
    }

    /// Kinds of which nothing ever showed.
    fn idle(&self) -> Vec<&'static str> {
        self.0.iter().filter(|(_, [_, shown])| *shown == 0).map(|(kind, _)| *kind).collect()
    }
}

/// Whether all runs passed.
fn all() -> Result<bool> {
    let plan = parse()?;
    if plan.runs == 0 {
        println!("test result: ok. 0 passed; 0 failed; 0 ignored");
        return Ok(true);
    }
    if tests::machine::is_root() && std::env::var_os(UNSHARED).is_none() {
        unshare_mounts()?;
    }
    let machine = Machine::claim(NAME, &[Need::Agent, Need::Root, Need::Strace])?;
    let Some(machine) = machine else {
        println!("test result: ok. 1 passed; 0 failed; 0 ignored");
        return Ok(true);
    };
    let Some(compiler) = ["clang", "cc"].into_iter().find(|name| has_program(name)) else {
        skip(NAME, "no C compiler is installed")?;
        println!("test result: ok. 1 passed; 0 failed; 0 ignored");
        return Ok(true);
    };
    let folder = tempfile::tempdir()?;
    let preload = compile(compiler, folder.path())?;
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(plan.runs) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.runs {
                        return;
                    }
                    let seed = plan.seed + number;
                    let told = run(&machine, &preload, seed);
                    tell(seed, told, &mut sum.lock().unwrap());
                }
            });
        }
    });
    let Sum { passed, failed, blows, bites, verdict } = sum.into_inner()?;
    println!("{blows:?}");
    println!("shown of each kind of fault: {bites:?}");
    println!(
        "{} runs from seed {}: {} acts, {} delivered, {} missing within dropped frames, {} within \
         other missing frames, {} within named intervals, {} on {} steps of the ladder; {} records counted as lost",
        plan.runs,
        plan.seed,
        verdict.acts,
        verdict.delivered,
        verdict.in_dropped,
        verdict.in_frames,
        verdict.in_interval,
        verdict.in_step,
        verdict.steps,
        verdict.records_lost
    );
    // In so many runs in a row each kind is drawn.
    let idle = if plan.runs < Fault::KINDS { Vec::new() } else { bites.idle() };
    let is_well = failed.is_empty() && idle.is_empty();
    let result = if is_well { "ok" } else { "FAILED" };
    if !is_well {
        println!("failed seeds: {failed:?}; faults of which nothing showed: {idle:?}");
    }
    let failures = failed.len() + idle.len();
    println!("test result: {result}. {passed} passed; {failures} failed; 0 ignored");
    Ok(is_well)
}

/// Compiles what moves the wall clock of one program.
fn compile(compiler: &str, folder: &Path) -> Result<PathBuf> {
    let library = folder.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/clock.c");
    let mut command = Command::new(compiler);
    let output =
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output()?;
    if output.status.success() {
        return Ok(library);
    }
    Err(format!("{compiler} {source}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// What a run was, and what came of it.
struct Told {
    schedule: String,
    seconds: f64,
    blows: Blows,
    bites: Bites,
    verdict: Result<Verdict>,
}

fn run(machine: &Machine, preload: &Path, seed: u64) -> Told {
    let start = std::time::Instant::now();
    let mut random = Rng::with_seed(seed);
    let phases = schedule::draw(seed, &mut random);
    let character = schedule::Character::draw(&mut random);
    let schedule: Vec<String> = phases.iter().map(ToString::to_string).collect();
    let (mut blows, mut bites) = (Blows::default(), Bites::default());
    let begun = World::start(machine, preload, &character);
    let verdict = begun
        .and_then(|world| befall(machine, world, &phases, &mut random, &mut blows, &mut bites));
    let seconds = start.elapsed().as_secs_f64();
    Told {
        schedule: format!("{character}: {}", schedule.join("; ")),
        seconds,
        blows,
        bites,
        verdict,
    }
}

fn befall(
    machine: &Machine,
    mut world: World<'_>,
    phases: &[schedule::Phase],
    random: &mut Rng,
    blows: &mut Blows,
    bites: &mut Bites,
) -> Result<Verdict> {
    let mut actor = Actor::start(env!("CARGO_BIN_EXE_workload-mark"), world.fleet.path("acts"))?;
    for phase in phases {
        let carried = schedule::carry_out(phase, &mut world, &mut actor, random);
        *blows = world.blows;
        let has_shown = carried
            .map_err(|e| format!("{phase}: {e}; the agent's log:\n{}", world.agent_log()))?;
        bites.note(phase.kind(), has_shown);
    }
    actor.order(LAST_ACTS);
    let acts = actor.finish()?;
    let drained = world.drain();
    *blows = world.blows;
    drained.map_err(|e| format!("{e}; the agent's log:\n{}", world.agent_log()))?;
    let output = Command::new(machine.collector())
        .args(["print", "--json"])
        .arg(world.fleet.store())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let printed = String::from_utf8(output.stdout)?;
    let (_, ledger) = world.fleet.ledger()?;
    let evidence = Evidence {
        store: &world.fleet.store(),
        folder: &actor.folder,
        sessions: &world.sessions,
        printed: &printed,
        ledger: &ledger,
        blows: &world.blows,
        clock_steps: &world.clock_steps,
    };
    judge::judge(&acts, &evidence)
}

/// Prints what came of a run, and adds it up.
fn tell(seed: u64, told: Told, sum: &mut Sum) {
    let Told { schedule, seconds, blows, bites, verdict } = told;
    sum.blows.add(&blows);
    sum.bites.add(&bites);
    let faults = match &verdict {
        Ok(verdict) => {
            sum.verdict.acts += verdict.acts;
            sum.verdict.delivered += verdict.delivered;
            sum.verdict.in_dropped += verdict.in_dropped;
            sum.verdict.in_frames += verdict.in_frames;
            sum.verdict.in_interval += verdict.in_interval;
            sum.verdict.in_step += verdict.in_step;
            sum.verdict.steps += verdict.steps;
            sum.verdict.records_lost += verdict.records_lost;
            verdict.faults.join("\n")
        }
        Err(error) => error.to_string(),
    };
    let counts = verdict.as_ref().map_or(String::new(), |v| {
        format!(
            "{} acts, {} delivered, {} in dropped frames, {} in missing ones, {} in intervals, {} on \
             {} steps; ",
            v.acts, v.delivered, v.in_dropped, v.in_frames, v.in_interval, v.in_step, v.steps
        )
    });
    let result = if faults.is_empty() { "ok" } else { "FAILED" };
    println!("test faults::seed_{seed} ... {result}   {counts}{seconds:.0} s: {schedule}");
    if faults.is_empty() {
        sum.passed += 1;
    } else {
        println!("{faults}");
        sum.failed.push(seed);
    }
}
