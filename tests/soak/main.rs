//! Endurance: the agent delivers for a long time while programs do as much as it can take in
//! without a loss. The pace is found by the test: it rises until something is lost, and falls
//! then. Memory, descriptors and spool must not grow meanwhile, and the books must balance.
//!
//! `cargo xtask soak --seconds N` says for how long.

// A test program: what cannot be looked up ends it.
#![allow(clippy::unwrap_used)]

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use tests::Result;
use tests::fleet::{Agent, Fleet};
use tests::machine::{Machine, Need};
use tests::program::Program;
use tests::records::{of_kind, text};
use tests::wait::wait_for;

/// What a test runner's filter is held against.
const NAME: &str = "soak";
/// How long where nobody says it.
const SECONDS: u64 = 24;
/// The programs, and which part of the pace each has.
const KINDS: [(&str, u64); 4] = [("opens", 1), ("ports", 1), ("forks", 40), ("threads", 4)];
/// Acts a second of the quickest program in the first slice.
const FIRST_PACE: u64 = 2_000;
/// The time is cut into slices; in each the pace is the same. So long is one, where that makes
/// neither few nor many of them.
const SLICE_SECONDS: u64 = 3;
const SLICES: (u64, u64) = (8, 60);
/// Growth of memory after the first quarter that is no leak, bytes: a page here and there.
const GROWTH_BYTES_MAX: u64 = 512 * 1024;
/// Tables and pools are filled, and their memory touched, after so long. Before that only the
/// bound of memory holds.
const FILLED_SECONDS: u64 = 300;
/// What the spool may have more of than after the first quarter, bytes: a segment of the size that
/// it has with the settings of tests.
const SEGMENT_BYTES: u64 = 1 << 20;
/// The budget: the product's.
const BUDGET_BYTES: u64 = 8 << 20;
/// What the agent takes beside budget and code at most, bytes.
const SPARE_BYTES: u64 = 2 << 20;
const DEADLINE: Duration = Duration::from_secs(600);

fn parse() -> Result<u64> {
    let mut seconds = SECONDS;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("seconds") => seconds = parser.value()?.parse()?,
            // A filter for another test asks for none of these.
            Arg::Value(filter) => {
                let is_meant = NAME.contains(filter.string()?.as_str());
                seconds = if is_meant { seconds } else { 0 };
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(seconds)
}

fn main() -> ExitCode {
    tests::campaign::tell(parse().and_then(run))
}

/// The agent at the end of a slice.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Acts a second of the quickest program.
    pace: u64,
    lost: u64,
    resident_bytes: u64,
    descriptors: usize,
    spool_bytes: u64,
}

/// All that is wrong; none if nothing was to be done.
fn run(seconds: u64) -> Result<Option<Vec<String>>> {
    if seconds == 0 {
        return Ok(None);
    }
    let Some(machine) = Machine::claim(NAME, &[Need::Agent, Need::Root])? else {
        return Ok(Some(Vec::new()));
    };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    // What the product has.
    settings.budget_bytes = BUDGET_BYTES;
    settings.ring_bytes = None;
    let mut agent = fleet.start_agent(&settings)?;
    let slices = (seconds / SLICE_SECONDS).clamp(SLICES.0, SLICES.1);
    let slice = Duration::from_secs((seconds / slices).max(1));
    let mut samples: Vec<Sample> = Vec::new();
    let mut pace = FIRST_PACE;
    for number in 0..slices {
        let sample = live(&fleet, &mut agent, number, slice, pace)?;
        let before = samples.last().map_or(0, |sample| sample.lost);
        println!(
            "{:>4} s: {pace} acts a second, {} lost; {} bytes resident, {} descriptors, {} bytes \
             in the spool",
            (number + 1) * slice.as_secs(),
            sample.lost - before,
            sample.resident_bytes,
            sample.descriptors,
            sample.spool_bytes
        );
        pace = if sample.lost == before { pace * 5 / 4 } else { pace * 7 / 10 };
        samples.push(sample);
    }
    agent.program.stop()?;
    collector.program.stop()?;
    let code_bytes = std::fs::metadata(machine.agent())?.len();
    let mut faults = growth(&samples, seconds, BUDGET_BYTES + code_bytes + SPARE_BYTES);
    let (_, ledger) = fleet.ledger()?;
    faults.extend(of_kind(&ledger, "GAP").map(|gap| format!("a gap: {gap}")));
    for books in of_kind(&ledger, "BOOKS") {
        if text(books, "ending") != "closed" {
            faults.push(format!("books that are not closed: {books}"));
        }
        let found = books["faults"].as_array().into_iter().flatten();
        faults.extend(found.map(|fault| format!("the books do not balance: {fault}")));
    }
    Ok(Some(faults))
}

/// Has the programs act at a pace for a slice of time; what the agent is like then.
fn live(
    fleet: &Fleet<'_>,
    agent: &mut Agent,
    number: u64,
    slice: Duration,
    pace: u64,
) -> Result<Sample> {
    let folder = fleet.path(&format!("slice-{number}"));
    std::fs::create_dir(&folder)?;
    let mut programs = Vec::new();
    for (kind, part) in KINDS {
        let pace = (pace / part).max(1);
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload-adversary"));
        command.args(["--kind", kind, "--pace", &pace.to_string()]);
        command.args(["--count", &(pace * slice.as_secs()).to_string(), "--dir"]).arg(&folder);
        programs.push(Program::start(kind, &mut command, &fleet.path("logs"))?);
    }
    for program in &mut programs {
        let status = program.wait(slice + DEADLINE)?;
        if !status.success() {
            return Err(format!("a program ended with {status}: {}", program.log()?).into());
        }
    }
    std::fs::remove_dir_all(&folder)?;
    // Its books of what happened are in the status some moments later.
    let written = agent.status()?["written_unix_s"].as_u64().unwrap_or(0);
    agent.wait_until("it writes its status", |status| {
        status["written_unix_s"].as_u64().unwrap_or(0) > written + 1
    })?;
    let sampled = Instant::now();
    // Between two uploads something always waits; all of it goes in time.
    wait_for("the spool to be delivered", DEADLINE, || {
        let frames = agent.status()?["spool"]["frames"].as_u64().unwrap_or(u64::MAX);
        Ok((frames < 8).then_some(()))
    })?;
    if sampled.elapsed() > slice {
        println!("delivery took {:.1} s more", sampled.elapsed().as_secs_f64());
    }
    let status = agent.status()?;
    let ledger = status["ledger"].as_object().into_iter().flatten();
    let lost = ledger.filter(|(term, _)| term.starts_with("lost_"));
    let pid = agent.program.pid();
    Ok(Sample {
        pace,
        lost: lost.filter_map(|(_, total)| total.as_u64()).sum(),
        resident_bytes: resident_bytes(pid)?,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        spool_bytes: status["spool"]["bytes"].as_u64().unwrap_or(0),
    })
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(number.parse::<u64>()? * 1024)
}

/// What has grown after the first quarter of the time, in which tables and pools fill, or beyond
/// the bound.
fn growth(samples: &[Sample], seconds: u64, bound_bytes: u64) -> Vec<String> {
    let (early, late) = samples.split_at(samples.len() / 4);
    let Some(settled) = early.last() else { return vec!["too short a time".to_string()] };
    let resident = late.iter().map(|sample| sample.resident_bytes).max().unwrap_or(0);
    let descriptors = late.iter().map(|sample| sample.descriptors).max().unwrap_or(0);
    let spool = late.iter().map(|sample| sample.spool_bytes).max().unwrap_or(0);
    let best = samples.windows(2).filter(|pair| pair[0].lost == pair[1].lost);
    let best = best.map(|pair| pair[1].pace).max().unwrap_or(0);
    println!(
        "resident: {} bytes after a quarter of the time, {resident} at most later; descriptors: \
         {} and {descriptors}; spool: {} bytes and {spool}; {best} acts a second of each of the \
         quickest without a loss",
        settled.resident_bytes, settled.descriptors, settled.spool_bytes
    );
    let mut faults = Vec::new();
    let grew = resident > settled.resident_bytes + GROWTH_BYTES_MAX;
    if resident > bound_bytes || (grew && seconds >= FILLED_SECONDS) {
        faults.push(format!("memory grew: {samples:#?}"));
    }
    // A connection more or less.
    if descriptors > settled.descriptors + 2 {
        faults.push(format!("descriptors grew: {samples:#?}"));
    }
    if spool > settled.spool_bytes + SEGMENT_BYTES {
        faults.push(format!("the spool grew: {samples:#?}"));
    }
    faults
}
