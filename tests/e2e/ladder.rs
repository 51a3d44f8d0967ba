//! The ladder, live: an agent whose spool fills up, since its collector is away. A flood becomes a
//! summary while what a quiet program does is told in full; on the last steps what is left out is
//! counted; and after a calm everything is told again.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use tests::Result;
use tests::acts::{self, Actor};
use tests::fleet::{Agent, AgentSettings, Fleet};
use tests::machine::{Machine, Need};
use tests::records::{number, of_kind, text};

/// A flood's kind, how many acts it has, and how many of them a second: a flood lasts.
type Flood = (&'static str, u64, u64);
/// Opens, connections and short programs.
const FLOODS: [Flood; 3] = [("opens", 4_000, 1_000), ("ports", 4_000, 1_000), ("forks", 800, 200)];
/// So many acts a second are a flood: programs that start are eight events and more each.
const FLOOD_ACTS: f64 = 150.0;
/// So far an estimate may be wrong: five standard errors, percent.
const ERROR_PERCENT: u64 = 46;

fn flood(fleet: &Fleet<'_>, (kind, count, pace): Flood) -> Result {
    let folder = fleet.path(&format!("flood-{kind}"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir(&folder)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_workload-adversary"));
    command.args(["--kind", kind, "--count", &count.to_string(), "--pace", &pace.to_string()]);
    command.arg("--dir").arg(&folder);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{kind}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// Fills the spool until the agent is on a step.
fn strain(fleet: &Fleet<'_>, agent: &mut Agent, step: &str) -> Result {
    for _ in 0..1_000 {
        if agent.status()?["step"] == step {
            return Ok(());
        }
        flood(fleet, ("deep", 1_000, 1_000))?;
    }
    Err(format!("step {step:?} is not taken: {}", agent.program.log()?).into())
}

/// An agent that is strained by a spool of so many percent, and a collector that is not there yet.
fn settings(
    fleet: &Fleet<'_>,
    last_step: &str,
    percent: u32,
) -> Result<(AgentSettings, SocketAddr)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let ladder = format!(
        "last_step = {last_step:?}\nprocessor_percent = 6400\nspool_percent = {percent}\nhold_s = 3\n"
    );
    Ok((AgentSettings { ladder, ..fleet.agent_settings("agent", address) }, address))
}

/// The agent has delivered what waited, and then been calm for long enough.
fn calm(agent: &mut Agent) -> Result {
    agent.wait_until("it delivers", |status| {
        status["spool"]["frames"].as_u64().is_some_and(|frames| frames < 10)
    })?;
    agent.wait_until("all is told again", |status| status["step"] == "everything")
}

/// How `ledger` ends, and the books of the one run, closed and balanced.
fn books(fleet: &Fleet<'_>) -> Result<(Option<i32>, Value)> {
    let (code, lines) = fleet.ledger()?;
    let books: Vec<&Value> = of_kind(&lines, "BOOKS").collect();
    let [books] = books[..] else { return Err(format!("{lines:?}").into()) };
    assert_eq!((text(books, "ending"), &books["faults"]), ("closed", &Value::from([(); 0])));
    Ok((code, books.clone()))
}

/// The steps that the books tell, and that they follow each other.
fn steps(books: &Value) -> Result<Vec<String>> {
    let stays = books["ladder"].as_array().ok_or("no ladder")?;
    let ends: Vec<(i64, i64)> = stays
        .iter()
        .map(|s| (number(s, "from_ns").unwrap_or(0), number(s, "to_ns").unwrap_or(0)))
        .collect();
    assert!(ends.iter().all(|(from, to)| from < to), "{stays:?}");
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{stays:?}");
    Ok(stays.iter().map(|stay| text(stay, "step").to_string()).collect())
}

/// What became of floods beside a quiet program, while sessions that flood are summed up.
struct Told {
    /// How long each flood took, seconds.
    seconds: Vec<f64>,
    books: Value,
    records: Vec<Value>,
}

impl Told {
    /// Has the agent strained, the floods made, and everything delivered. What the quiet program
    /// does meanwhile is told in full.
    fn of(machine: &Machine, fleet: &Fleet<'_>, floods: &[Flood]) -> Result<Told> {
        /// What it does beside each flood.
        const ACTS: usize = 5;
        let (settings, address) = settings(fleet, "summaries", 1)?;
        let mut agent = fleet.start_agent(&settings)?;
        strain(fleet, &mut agent, "summaries")?;
        let mut actor = Actor::start(env!("CARGO_BIN_EXE_workload-mark"), fleet.path("acts"))?;
        let mut seconds = Vec::new();
        for one in floods {
            actor.order(ACTS);
            let start = Instant::now();
            flood(fleet, *one)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let quiet = actor.finish()?;
        assert_eq!(agent.status()?["step"], "summaries");
        let mut collector = fleet.start_collector(&address.to_string())?;
        calm(&mut agent)?;
        agent.program.stop()?;
        collector.program.stop()?;

        let (code, books) = books(fleet)?;
        assert_eq!(code, Some(0));
        let (whole, missing) = acts::missing(machine, fleet, &actor.folder, &quiet)?;
        assert_eq!((whole, missing), (ACTS * floods.len(), Vec::new()));
        Ok(Told { seconds, books, records: fleet.print(&fleet.store())? })
    }
}

#[test]
fn a_flood_becomes_summaries_and_the_quiet_are_told_in_full() -> Result {
    let test = "a_flood_becomes_summaries_and_the_quiet_are_told_in_full";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let Told { seconds, books, records } = Told::of(&machine, &fleet, &FLOODS)?;
    assert_eq!(steps(&books)?, ["summaries"]);
    assert_eq!(text(&books["ladder"][0], "strain"), "spool");
    // Other programs of this machine may flood, too. The flood's session is young, and what is told
    // of young ones names the first process that was met, which may be a child that it started.
    let adversary = env!("CARGO_BIN_EXE_workload-adversary");
    let is_ours = |record: &&Value| {
        text(record, "record.kind") == "Summary"
            && (text(record, "proc.exe") == adversary
                || text(record, "summary.subject") == "processes")
    };
    let summaries: Vec<&Value> = records.iter().filter(is_ours).collect();
    let sum = |subject: &str, key: &str| -> u64 {
        let of_subject = summaries.iter().filter(|s| text(s, "summary.subject") == subject);
        of_subject.map(|s| s[key].as_u64().unwrap_or(0)).sum()
    };
    let near = |told: u64, count: u64| told.abs_diff(count) * 100 <= count * ERROR_PERCENT;
    let subjects = ["files", "network", "processes"];
    for (((kind, count, _), subject), seconds) in FLOODS.into_iter().zip(subjects).zip(seconds) {
        let (told, objects) = (sum(subject, "summary.records"), sum(subject, "summary.objects"));
        println!(
            "{count} {kind} in {seconds:.1} s: {told} records, {objects} objects in summaries"
        );
        // A machine that is slow at starting programs makes no flood of them.
        let is_flood = count as f64 / seconds > FLOOD_ACTS;
        assert!(told >= count / 2 || !is_flood, "{kind}: {told} of {count} are in summaries");
        assert!(is_flood || kind == "forks", "{count} {kind} in {seconds} s are no flood");
        assert!(kind == "forks" || near(objects, count), "{kind}: {objects} of {count} objects");
    }
    assert!(summaries.iter().all(|s| s["summary.session"] == true));
    // Hardly any of it is told by itself.
    let name = fleet.path("flood-opens").to_string_lossy().into_owned();
    let alone = records.iter().filter(|r| text(r, "file.path").starts_with(&name)).count() as u64;
    let observed = books["operations"]["open"]["observed"].as_u64().unwrap_or(0);
    println!("{alone} opens of the flood by themselves, {observed} opens observed");
    Ok(())
}

#[test]
fn a_flood_of_sessions_is_summed_up_as_that_of_one() -> Result {
    const SESSIONS: u64 = 1_000;
    let test = "a_flood_of_sessions_is_summed_up_as_that_of_one";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let floods = [("sessions", SESSIONS, 200)];
    let Told { seconds, records, .. } = Told::of(&machine, &fleet, &floods)?;
    let is_summary = |record: &&Value| {
        text(record, "record.kind") == "Summary" && text(record, "summary.subject") == "processes"
    };
    let told = records.iter().filter(is_summary).map(|s| s["summary.records"].as_u64());
    let told: u64 = told.map(Option::unwrap_or_default).sum();
    let seconds: f64 = seconds.iter().sum();
    println!("{SESSIONS} sessions in {seconds:.1} s: {told} records of processes in summaries");
    // A machine that is slow at starting programs makes no flood of them.
    let is_flood = SESSIONS as f64 / seconds > FLOOD_ACTS;
    assert!(told >= SESSIONS || !is_flood, "{told} records of {SESSIONS} sessions in summaries");
    Ok(())
}

/// The acts of `script`, in a session of its own.
fn act(script: &str, folder: &Path) -> Result {
    std::fs::create_dir_all(folder)?;
    let path = format!("{}/workloads/{script}.py", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("/usr/bin/python3").arg("-I").arg(path).arg(folder).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{script}: {said}").into()) }
}

#[test]
fn what_the_last_steps_leave_out_is_counted_and_calm_brings_it_back() -> Result {
    let test = "what_the_last_steps_leave_out_is_counted_and_calm_brings_it_back";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let (settings, address) = settings(&fleet, "processes", 20)?;
    // The last step wants a spool that is nearly full, and stays so.
    let (spool_bytes_max, generation_records_max) = (1 << 20, 100);
    let settings = AgentSettings { spool_bytes_max, generation_records_max, ..settings };
    let mut agent = fleet.start_agent(&settings)?;
    strain(&fleet, &mut agent, "processes")?;
    let hidden = fleet.path("hidden");
    act("acts", &hidden)?;
    assert_eq!(agent.status()?["step"], "processes");
    let mut collector = fleet.start_collector(&address.to_string())?;
    calm(&mut agent)?;
    let seen = fleet.path("seen");
    act("acts", &seen)?;
    agent.program.stop()?;
    collector.program.stop()?;

    // What the spool dropped meanwhile is a gap.
    let (_, books) = books(&fleet)?;
    let all = ["summaries", "shares", "totals", "flows", "processes"];
    let back = all.iter().rev().skip(1);
    assert_eq!(steps(&books)?, all.iter().chain(back).copied().collect::<Vec<_>>());
    for kind in ["open", "mkdir", "unlink", "rename"] {
        let shed = books["operations"][kind]["lost_shed"].as_u64().unwrap_or(0);
        assert!(shed > 0, "{kind}: {books}");
    }
    let records = fleet.print(&fleet.store())?;
    let told = |folder: &Path, kind: &str| {
        let name = folder.to_string_lossy();
        let of_kind = records.iter().filter(|r| text(r, "type") == kind);
        of_kind.filter(|r| text(r, "file.path").starts_with(name.as_ref())).count()
    };
    for kind in ["FF", "FE"] {
        assert_eq!(told(&hidden, kind), 0, "{kind}");
        assert!(told(&seen, kind) > 0, "{kind}");
    }
    // Processes are told on every step.
    let name = hidden.to_string_lossy();
    let ran = records.iter().filter(|r| text(r, "proc.args").contains(name.as_ref()));
    assert!(ran.filter(|r| text(r, "opflags") == "EXEC").count() > 0);
    Ok(())
}
