//! The bound of memory, against programs that do one thing as fast as they can: the agent lives in
//! a control group that has room for its budget, its code and two MiB more, and that counts what
//! the kernel takes for its maps. The collector is dead all the while. Afterwards the books must
//! balance to the unit, and all that a quiet program did beside must be in the records.
//!
//! The limit is set once the agent watches: to load the probes, kernels from 6.16 on charge what
//! their verifier takes for a moment, which no setting of the agent moves.
//!
//! `cargo xtask bounds --count N --budget BYTES` says how much the programs do, and what the budget is.

// A test program: what cannot be looked up ends it.
#![allow(clippy::unwrap_used)]

mod group;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::Result;
use tests::acts::{self, Actor};
use tests::fleet::{Agent, AgentSettings, Fleet};
use tests::machine::{Machine, Need, skip};
use tests::program::Program;
use tests::records::{number, of_kind, text};
use tests::wait::wait_for;

use group::{Group, Usage};

/// What a test runner's filter is held against.
const NAME: &str = "bounds";
/// What the quickest of the programs do where nobody says how much.
const COUNT: u64 = 20_000;
/// What programs do, and how many of its acts cost about as much as one of the quickest.
const KINDS: [(&str, u64); 7] = [
    ("forks", 20),
    ("arguments", 20),
    ("opens", 1),
    ("deep", 4),
    ("ports", 1),
    ("threads", 4),
    ("sessions", 20),
];
/// The budget where nobody names one: the product's.
const BUDGET_BYTES: u64 = 8 << 20;
/// What the group has room for beside the budget and the code, bytes.
const SPARE_BYTES: u64 = 2 << 20;
/// A quiet program acts so often.
const ACT_INTERVAL: Duration = Duration::from_millis(100);
/// Memory is looked at so often: whoever looks all the time is busy, too.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long the kernel may take to give back what it can.
const RECLAIM_PATIENCE: Duration = Duration::from_secs(10);
/// How long a program, or the delivery of all, may take.
const DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
struct Plan {
    count: u64,
    budget_bytes: u64,
}

fn parse() -> Result<Plan> {
    let mut plan = Plan { count: COUNT, budget_bytes: BUDGET_BYTES };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("count") => plan.count = parser.value()?.parse()?,
            Arg::Long("budget") => plan.budget_bytes = parser.value()?.parse()?,
            // A filter for another test asks for none of these.
            Arg::Value(filter) => {
                let is_meant = NAME.contains(filter.string()?.as_str());
                plan.count = if is_meant { plan.count } else { 0 };
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(plan)
}

fn main() -> ExitCode {
    tests::campaign::tell(parse().and_then(run))
}

/// All that is wrong; none if nothing was to be done.
fn run(plan: Plan) -> Result<Option<Vec<String>>> {
    let Plan { count, budget_bytes } = plan;
    if count == 0 {
        return Ok(None);
    }
    let Some(machine) = Machine::claim(NAME, &[Need::Agent, Need::Root])? else {
        return Ok(Some(Vec::new()));
    };
    // Whatever else goes on in the session that this was started from is not the quiet program's.
    let _ = rustix::process::setsid();
    let group = match Group::new("sysflow-bounds") {
        Ok(group) => group,
        Err(why) => {
            skip(NAME, &why.to_string())?;
            return Ok(Some(Vec::new()));
        }
    };
    let fleet = Fleet::new(&machine)?;
    // A port on which nobody listens until all is over.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let settings = AgentSettings {
        budget_bytes,
        ladder: String::new(),
        ring_bytes: None,
        spool_bytes_max: 2 << 30,
        wrapper: [group.launcher(), vec![machine.agent().into()]].concat(),
        ..fleet.agent_settings("agent", address)
    };
    let mut agent = fleet.start_agent(&settings)?;
    let code_bytes = std::fs::metadata(machine.agent())?.len();
    let limit_bytes = budget_bytes + code_bytes + SPARE_BYTES;
    group.limit(limit_bytes)?;
    let start = group.usage()?;
    let maps = maps_bytes(agent.program.pid())?;
    println!(
        "budget {budget_bytes} bytes, code {code_bytes}, limit {limit_bytes}; at the start: {} \
         anonymous, {} of the kernel, of which its maps are {maps}",
        start.anonymous, start.kernel
    );
    let mut faults = Vec::new();
    if start.kernel < maps {
        faults.push(format!("the group is not charged for the maps: {start:?}, {maps} bytes"));
    }

    let mut actor = Actor::start(env!("CARGO_BIN_EXE_workload-mark"), fleet.path("acts"))?;
    let mut peak = Usage::default();
    for (kind, cost) in KINDS {
        let folder = fleet.path(kind);
        std::fs::create_dir(&folder)?;
        let count = (count / cost).max(1);
        let adversary = Adversary { kind, count, folder: &folder };
        let most = adversary.run(&fleet, &mut agent, &mut actor, &group)?;
        peak = if most.bytes() > peak.bytes() { most } else { peak };
        remove(&folder)?;
    }
    let acts = actor.finish()?;
    println!(
        "peak {} bytes ({} anonymous, {} of the kernel): {:.2} of the budget; with page cache {}",
        peak.bytes(),
        peak.anonymous,
        peak.kernel,
        peak.bytes() as f64 / budget_bytes as f64,
        group.peak()?,
    );
    if peak.bytes() > budget_bytes + SPARE_BYTES {
        faults.push(format!("more than the budget and {SPARE_BYTES} bytes were taken"));
    }
    let begun = Instant::now();
    // The kernel frees some of it a moment later.
    let kept = loop {
        group.reclaim()?;
        let kept = group.usage()?;
        if kept.bytes() <= budget_bytes || begun.elapsed() > RECLAIM_PATIENCE {
            break kept;
        }
        std::thread::sleep(LOOK_INTERVAL);
    };
    println!(
        "{} bytes once the kernel has taken back its caches of names and files ({} anonymous, {} of \
         the kernel): {:.2} of the budget",
        kept.bytes(),
        kept.anonymous,
        kept.kernel,
        kept.bytes() as f64 / budget_bytes as f64,
    );
    if kept.bytes() > budget_bytes {
        faults.push("more than the budget is kept".to_string());
    }
    match group.kills()? {
        0 => {}
        kills => faults.push(format!("{kills} times the group had no memory left")),
    }
    deliver(&fleet, &mut agent, &address.to_string())?;
    faults.extend(books(&fleet)?);
    let (whole, missing) = acts::missing(&machine, &fleet, &actor.folder, &acts)?;
    println!("{whole} of {} quiet acts are whole", acts.len());
    faults.extend(missing);
    Ok(Some(faults))
}

/// Removes what a fast program left: nobody needs it, and there is much of it. To remove so much is a
/// flood, too, and not to be one of the session that the quiet program is in.
fn remove(folder: &Path) -> Result {
    let status = Command::new("setsid").args(["--wait", "rm", "-rf"]).arg(folder).status()?;
    if status.success() { Ok(()) } else { Err(format!("rm {}: {status}", folder.display()).into()) }
}

/// A program that does one thing as fast as it can.
struct Adversary<'a> {
    kind: &'a str,
    count: u64,
    folder: &'a Path,
}

impl Adversary<'_> {
    /// Runs it, with the quiet program beside; returns what the agent took at most.
    fn run(
        &self,
        fleet: &Fleet<'_>,
        agent: &mut Agent,
        actor: &mut Actor,
        group: &Group,
    ) -> Result<Usage> {
        let before = lost(&agent.status()?);
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload-adversary"));
        command.args(["--kind", self.kind, "--count", &self.count.to_string(), "--dir"]);
        let mut program = Program::start(self.kind, command.arg(self.folder), &fleet.path("logs"))?;
        let start = Instant::now();
        let (mut looked, mut acted) = (start, start);
        let mut ordered = actor.order(1);
        let mut peak = Usage::default();
        let what = format!("the end of {}", self.kind);
        wait_for(&what, DEADLINE, || {
            if looked.elapsed() >= LOOK_INTERVAL {
                looked = Instant::now();
                let usage = group.usage()?;
                peak = if usage.bytes() > peak.bytes() { usage } else { peak };
            }
            if !agent.program.is_running()? {
                return Err(format!("the agent has ended: {}", agent.program.log()?).into());
            }
            if acted.elapsed() >= ACT_INTERVAL && actor.done()? == ordered {
                acted = Instant::now();
                ordered = actor.order(1);
            }
            Ok((!program.is_running()?).then_some(()))
        })?;
        let seconds = start.elapsed().as_secs_f64();
        if !program.wait(DEADLINE)?.success() {
            return Err(format!("{}: {}", self.kind, program.log()?).into());
        }
        wait_for("the acts to be done", DEADLINE, || Ok((actor.done()? == ordered).then_some(())))?;
        // The books of what happened are in the status some moments later.
        let written = agent.status()?["written_unix_s"].as_u64().unwrap_or(0);
        agent.wait_until("it writes its status", |status| {
            status["written_unix_s"].as_u64().unwrap_or(0) > written + 1
        })?;
        let after = lost(&agent.status()?);
        let lost: Vec<String> = after
            .iter()
            .map(|(term, total)| (term, total - before.get(term).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .map(|(term, count)| format!("{count} {term}"))
            .collect();
        println!(
            "{:>9}: {} in {seconds:.1} s, {} acts beside; peak {} bytes; {}",
            self.kind,
            self.count,
            ordered,
            peak.bytes(),
            if lost.is_empty() { "nothing lost".to_string() } else { lost.join(", ") }
        );
        Ok(peak)
    }
}

/// The agent's losses so far, by their reason.
fn lost(status: &Value) -> BTreeMap<String, u64> {
    let ledger = status["ledger"].as_object().into_iter().flatten();
    ledger
        .filter(|(term, _)| term.starts_with("lost_"))
        .map(|(term, total)| (term.clone(), total.as_u64().unwrap_or(0)))
        .collect()
}

/// What the maps of a process take, bytes, as the kernel has it; each is counted once.
fn maps_bytes(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.into_values().sum())
}

/// Has everything delivered, and both ends stopped.
fn deliver(fleet: &Fleet<'_>, agent: &mut Agent, address: &str) -> Result {
    let mut collector = fleet.start_collector(address)?;
    let begun = Instant::now();
    wait_for("all to be delivered", DEADLINE, || {
        let status = agent.status()?;
        Ok((status["spool"]["frames"].as_u64().unwrap_or(u64::MAX) < 4).then_some(()))
    })?;
    agent.program.stop()?;
    collector.program.stop()?;
    println!("delivered in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// What is wrong with the books of the store.
fn books(fleet: &Fleet<'_>) -> Result<Vec<String>> {
    let (code, lines) = fleet.ledger()?;
    let mut faults = Vec::new();
    if code != Some(0) {
        faults.push(format!("ledger ends with {code:?}"));
    }
    faults.extend(of_kind(&lines, "GAP").map(|gap| format!("a gap: {gap}")));
    let mut closed = 0;
    for books in of_kind(&lines, "BOOKS") {
        closed += usize::from(text(books, "ending") == "closed");
        for stay in books["ladder"].as_array().into_iter().flatten() {
            let ns = |key| number(stay, key).unwrap_or(0);
            let seconds = (ns("to_ns") - ns("from_ns")) as f64 / 1e9;
            let (step, strain) = (text(stay, "step"), text(stay, "strain"));
            println!("ladder: {step} for {seconds:.1} s ({strain}, {} %)", ns("percent"));
        }
        let found = books["faults"].as_array().into_iter().flatten();
        faults.extend(found.map(|fault| format!("the books do not balance: {fault}")));
    }
    if closed != 1 {
        faults.push(format!("{closed} runs with closed books, expected one"));
    }
    Ok(faults)
}
