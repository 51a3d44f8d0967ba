//! Records of the running kernel against the truth of workloads.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::fleet::{Agent, AgentSettings, Collector, Fleet};
use tests::frames::{self, Summary};
use tests::machine::{Machine, Need};
use tests::program::Program;
use tests::records::{brief, differences, number, of_kind, of_process, path_faults, text, total};
use tests::strace;
use tests::truth::{Truth, Volume};
use tests::wait::wait_for;

/// A fleet with a running collector and agent.
struct Watch<'m> {
    fleet: Fleet<'m>,
    collector: Collector,
    agent: Agent,
}

impl<'m> Watch<'m> {
    fn start(machine: &'m Machine, adjust: impl FnOnce(&mut AgentSettings)) -> Result<Watch<'m>> {
        let fleet = Fleet::new(machine)?;
        let collector = fleet.start_collector("127.0.0.1:0")?;
        let mut settings = fleet.agent_settings("agent", collector.address);
        adjust(&mut settings);
        let agent = fleet.start_agent(&settings)?;
        Ok(Watch { fleet, collector, agent })
    }

    /// Ends the agent, which delivers what it holds, then the collector, and reads the store.
    fn end(mut self) -> Result<(Fleet<'m>, Vec<Value>)> {
        self.agent.program.stop()?;
        self.collector.program.stop()?;
        let records = self.fleet.print(&self.fleet.store())?;
        Ok((self.fleet, records))
    }
}

fn truth_of(output: Output) -> Result<Truth> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the workload ended with {}: {said}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A workload's command with an empty folder of its own.
fn workload(binary: &str, folder: &Path) -> Result<Command> {
    std::fs::create_dir(folder)?;
    let mut command = Command::new(binary);
    command.env("MALLOC_ARENA_MAX", "1").arg("--dir").arg(folder);
    Ok(command)
}

fn expect_same(records: &[Value], truth: &Truth) -> Result {
    let faults = differences(records, truth);
    if faults.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = faults.iter().take(20).map(String::as_str).collect();
    Err(format!("{} differences:\n{}", faults.len(), shown.join("\n")).into())
}

/// The store as the codec reads it: gapless, without losses.
fn expect_whole(fleet: &Fleet<'_>) -> Result<Summary> {
    let summary = Summary::of(&fleet.store())?;
    let losses: Vec<_> =
        summary.ledger.iter().filter(|((_, term), n)| term.is_loss() && **n > 0).collect();
    if !losses.is_empty() || !summary.holes().is_empty() {
        return Err(format!("losses {losses:?}, holes {:?}", summary.holes()).into());
    }
    Ok(summary)
}

#[test]
fn the_demonstration_is_found_in_the_records() -> Result {
    let test = "the_demonstration_is_found_in_the_records";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let watch = Watch::start(&machine, |_| ())?;
    let folder = watch.fleet.path("work");
    let truth = truth_of(workload(env!("CARGO_BIN_EXE_workload-demo"), &folder)?.output()?)?;
    let (_, records) = watch.end()?;
    expect_same(&records, &truth)
}

#[test]
fn flows_conserve_calls_and_bytes() -> Result {
    let test = "flows_conserve_calls_and_bytes";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    for (seed, active_timeout_s) in [("3", 30), ("4", 1)] {
        // A short active timeout cuts flows into several records: their sum is the same.
        let watch = Watch::start(&machine, |s| s.active_timeout_s = active_timeout_s)?;
        let folder = watch.fleet.path("work");
        let mut command = workload(env!("CARGO_BIN_EXE_workload-volume"), &folder)?;
        command.args(["--seed", seed, "--threads", "4", "--calls", "2000"]);
        let truth = truth_of(command.output()?)?;
        let (fleet, records) = watch.end()?;
        expect_whole(&fleet)?;
        expect_same(&records, &truth)?;
    }
    Ok(())
}

#[test]
fn the_ledger_balances_to_the_unit_and_names_a_frame_that_is_gone() -> Result {
    let test = "the_ledger_balances_to_the_unit_and_names_a_frame_that_is_gone";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let watch = Watch::start(&machine, |_| ())?;
    // Of one class.
    let urgent = |fleet: &Fleet<'_>| -> Result<Vec<PathBuf>> {
        let mut found =
            if fleet.store().exists() { frames::find(&fleet.store())? } else { Vec::new() };
        found.retain(|frame| frame.parent().is_some_and(|class| class.ends_with("0")));
        Ok(found)
    };
    for turn in ["5", "6", "7"] {
        let before = urgent(&watch.fleet)?.len();
        let folder = watch.fleet.path(&format!("work-{turn}"));
        let mut workload = workload(env!("CARGO_BIN_EXE_workload-volume"), &folder)?;
        truth_of(workload.args(["--seed", turn, "--threads", "2", "--calls", "1000"]).output()?)?;
        // Several frames, so that one of them can be missing between others.
        wait_for("another frame in the store", Duration::from_secs(60), || {
            Ok((urgent(&watch.fleet)?.len() > before).then_some(()))
        })?;
    }
    let (fleet, _) = watch.end()?;
    let (code, lines) = fleet.ledger()?;
    let books: Vec<&Value> = of_kind(&lines, "BOOKS").collect();
    let [run] = books.as_slice() else { return Err(format!("not one run: {books:?}").into()) };
    assert_eq!((code, text(run, "ending")), (Some(0), "closed"), "{run}");
    let operations = run["operations"].as_object().ok_or("no operations")?;
    assert!(operations["read+receive"]["observed"].as_u64() > Some(4000), "{run}");
    assert!(operations.values().all(|terms| terms["open"] == 0), "{run}");

    let mut frames = urgent(&fleet)?;
    // The first one begins the generation: without it nothing could be read.
    let gone = frames.remove(frames.len() / 2);
    let sequence: u64 = gone.file_stem().and_then(|s| s.to_str()).ok_or("no name")?.parse()?;
    assert!(sequence > 0 && frames.len() > 2, "too few frames: {frames:?}");
    std::fs::remove_file(gone)?;
    let (code, lines) = fleet.ledger()?;
    let gaps: Vec<&Value> = of_kind(&lines, "GAP").collect();
    let [gap] = gaps.as_slice() else { return Err(format!("not one gap: {gaps:?}").into()) };
    assert_eq!(code, Some(65));
    assert_eq!((gap["first"].as_u64(), gap["last"].as_u64()), (Some(sequence), Some(sequence)));
    Ok(())
}

#[test]
fn records_agree_with_a_tracer_of_the_same_run() -> Result {
    let test = "records_agree_with_a_tracer_of_the_same_run";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Strace])? else {
        return Ok(());
    };
    let watch = Watch::start(&machine, |_| ())?;
    let folder = watch.fleet.path("work");
    let mut command = workload(env!("CARGO_BIN_EXE_workload-volume"), &folder)?;
    command.args(["--seed", "5", "--threads", "3", "--calls", "300"]);
    let (output, traced) = strace::count(&command, &watch.fleet.path("summary"))?;
    let truth = truth_of(output)?;
    let (_, records) = watch.end()?;
    expect_same(&records, &truth)?;

    // All calls of all processes of the run, those of the runtime and the loader included.
    let mut flows = Volume::default();
    for pid in truth.processes.iter().filter_map(|process| process.pid) {
        let own = of_process(&records, pid);
        flows.add(total(own.filter(|r| ["FF", "NF"].contains(&text(r, "type")))));
    }
    let sum = |reads: bool| -> u64 {
        traced.iter().filter(|(call, _)| strace::reads(call) == reads).map(|(_, n)| n).sum()
    };
    // The tracer starts the workload and reads nothing in its name before it runs.
    assert_eq!((flows.read_ops, flows.write_ops), (sum(true), sum(false)), "{traced:?}");
    Ok(())
}

#[test]
fn paths_are_absolute_and_true() -> Result {
    let test = "paths_are_absolute_and_true";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root])? else {
        return Ok(());
    };
    let watch = Watch::start(&machine, |_| ())?;
    let folder = watch.fleet.path("work");
    let truth = truth_of(workload(env!("CARGO_BIN_EXE_workload-paths"), &folder)?.output()?)?;
    let (fleet, records) = watch.end()?;
    let faults = path_faults(&records, &truth, &Summary::of(&fleet.store())?);
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

#[test]
fn a_process_from_before_the_agent_is_known() -> Result {
    let test = "a_process_from_before_the_agent_is_known";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let collector = fleet.start_collector("127.0.0.1:0")?;
    // It reads what it inherits and has never been seen to open, and ends when told.
    let mut child =
        Command::new("/bin/cat").arg("-").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let settings = fleet.agent_settings("agent", collector.address);
    let agent = fleet.start_agent(&settings)?;
    let pid = child.id();
    if let Some(mut input) = child.stdin.take() {
        use std::io::Write;
        input.write_all(b"known\n")?;
    }
    child.wait()?;
    let watch = Watch { fleet, collector, agent };
    let (_, records) = watch.end()?;
    let own: Vec<&Value> = of_process(&records, pid).collect();
    let exit = own.iter().find(|record| text(record, "opflags") == "EXIT").ok_or_else(|| {
        format!("no EXIT of {pid} among {:?}", own.iter().map(|r| brief(r)).collect::<Vec<_>>())
    })?;
    assert_eq!(text(exit, "proc.exe"), std::fs::canonicalize("/bin/cat")?.to_string_lossy());
    assert_eq!(text(exit, "proc.args"), "-");
    assert_eq!(number(exit, "proc.uid"), Some(0));
    assert_eq!(number(exit, "pproc.pid"), Some(i64::from(std::process::id())));
    let parent_exe = std::env::current_exe()?;
    assert_eq!(text(exit, "pproc.exe"), parent_exe.to_string_lossy());
    let flags = exit["proc.flags"].to_string();
    assert!(flags.contains("pre_existing"), "{flags}");
    let pipe = own.iter().filter(|r| text(r, "type") == "FF" && number(r, "file.fd") == Some(0));
    assert_eq!(total(pipe.copied()).read_bytes, 6);
    Ok(())
}

#[test]
fn secrets_among_arguments_are_stored_nowhere() -> Result {
    let test = "secrets_among_arguments_are_stored_nowhere";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    // Put together here, so that no program's own text has them.
    let secret = |which: &str| format!("{which}-{}", "0x5ec2e7".repeat(2));
    let fleet = Fleet::new(&machine)?;
    // It waits for a line.
    let mut older = Command::new("sh")
        .args(["-c", "read line", "--password", &secret("before")])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut agent = fleet.start_agent(&fleet.agent_settings("agent", collector.address))?;
    let status = Command::new("true")
        .args(["--token", &secret("next"), &format!("https://me:{}@host/", secret("url"))])
        .arg(format!("--db-password={}", secret("joined")))
        .status()?;
    assert!(status.success());
    drop(older.stdin.take());
    older.wait()?;
    agent.program.stop()?;
    collector.program.stop()?;

    let records = fleet.print(&fleet.store())?;
    let of = |exe: &str, args: &str| {
        let is_it = |r: &&Value| text(r, "proc.exe").ends_with(exe) && text(r, "proc.args") == args;
        records.iter().find(is_it).ok_or_else(|| format!("no {exe} with {args:?}"))
    };
    let run = of("/true", "--token *** https://me:***@host/ --db-password=***")?;
    assert!(run["proc.flags"].to_string().contains("redacted"), "{run}");
    // What runs already when the agent starts is no exception.
    let words = "-c read line --password ***";
    assert!(records.iter().any(|r| text(r, "proc.args") == words), "no shell with {words:?}");
    for frame in frames::find(&fleet.store())? {
        let bytes = std::fs::read(&frame)?;
        let found = bytes.windows(8).any(|window| window == b"0x5ec2e7");
        assert!(!found, "{} has a secret", frame.display());
    }
    Ok(())
}

#[test]
fn sysprint_says_the_same_of_the_sysflow_files() -> Result {
    let test = "sysprint_says_the_same_of_the_sysflow_files";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Sysprint])? else {
        return Ok(());
    };
    let watch = Watch::start(&machine, |_| ())?;
    let folder = watch.fleet.path("work");
    truth_of(workload(env!("CARGO_BIN_EXE_workload-demo"), &folder)?.output()?)?;
    let (fleet, _) = watch.end()?;
    let mut compared = 0;
    let agents = std::fs::read_dir(fleet.store())?.collect::<std::io::Result<Vec<_>>>()?;
    for agent in agents.iter().filter(|agent| agent.path().join("sysflow").is_dir()) {
        for entry in std::fs::read_dir(agent.path().join("sysflow"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|ending| ending != "sf") {
                continue;
            }
            let output = Command::new(machine.sysprint())
                .args(["-A", "-o", "flatjson"])
                .arg(&path)
                .output()?;
            let theirs = tests::records::parse(&String::from_utf8(output.stdout)?)?;
            let ours = fleet.print(&path)?;
            assert_eq!(tallies(&theirs), tallies(&ours), "{}", path.display());
            compared += theirs.len();
        }
    }
    assert!(compared > 100, "only {compared} records were compared");
    Ok(())
}

/// Records and sums by kind.
fn tallies(records: &[Value]) -> Vec<(&'static str, usize, Volume)> {
    ["PE", "FE", "FF", "NF", "PF"]
        .into_iter()
        .map(|kind| (kind, of_kind(records, kind).count(), total(of_kind(records, kind))))
        .collect()
}

#[test]
fn the_agent_does_not_watch_itself() -> Result {
    let test = "the_agent_does_not_watch_itself";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let watch = Watch::start(&machine, |_| ())?;
    let pid = watch.agent.program.pid();
    let folder = watch.fleet.path("work");
    truth_of(workload(env!("CARGO_BIN_EXE_workload-demo"), &folder)?.output()?)?;
    let (fleet, records) = watch.end()?;
    let own: Vec<String> = of_process(&records, pid)
        .filter(|record| ["FF", "NF", "FE"].contains(&text(record, "type")))
        .map(brief)
        .collect();
    assert!(own.is_empty(), "{own:?}");
    let summary = Summary::of(&fleet.store())?;
    assert!(summary.term(codec::Term::Own) > 0, "its own operations are not counted");
    Ok(())
}

/// A program that runs until it is dropped, so that a test can look at something running.
#[test]
fn a_running_process_is_reported_before_it_ends() -> Result {
    let test = "a_running_process_is_reported_before_it_ends";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let mut watch = Watch::start(&machine, |s| s.active_timeout_s = 1)?;
    let logs = watch.fleet.path("logs");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "while :; do cat /proc/self/stat >/dev/null; done"]);
    let busy = Program::start("busy", &mut command, &logs)?;
    let store = watch.fleet.store();
    let pid = busy.pid();
    let fleet = &watch.fleet;
    tests::wait::wait_for(
        "records of a running process",
        std::time::Duration::from_secs(30),
        || {
            if tests::frames::find(&store).unwrap_or_default().is_empty() {
                return Ok(None);
            }
            let records = fleet.print(&store)?;
            Ok(of_process(&records, pid).next().map(|_| ()))
        },
    )?;
    drop(busy);
    watch.agent.program.stop()?;
    watch.collector.program.stop()
}
