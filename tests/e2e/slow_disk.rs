//! A device that takes seconds to make something durable: the ring does not wait for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codec::Term;
use serde_json::Value;
use tests::Result;
use tests::fleet::{AgentSettings, Fleet};
use tests::frames::{self, Summary};
use tests::machine::{Machine, Need};
use tests::records::{of_kind, text};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
/// How long the device takes each time: an agent that waited for it would lose most of what happens
/// meanwhile.
const DEVICE: Duration = Duration::from_secs(2);
/// How long files are made, and how often one is: few enough that the agent may be late by a second.
const MADE_FOR: Duration = Duration::from_secs(8);
const MADE_EACH: Duration = Duration::from_millis(4);

/// A command line under which each sync of the agent takes so long; each that is over is in `trace`.
fn slow(machine: &Machine, trace: &Path, device: Duration) -> Vec<OsString> {
    let strace = ["strace", "-D", "-f", "-qq", "--signal=none", "--seccomp-bpf", "-e"];
    let mut wrapper = strace.map(OsString::from).to_vec();
    let inject = format!("inject=fsync,fdatasync:delay_enter={}", device.as_micros());
    wrapper.extend(["trace=fsync,fdatasync", "-e", &inject, "-o"].map(Into::into));
    wrapper.extend([trace.into(), machine.agent().into()]);
    wrapper
}

#[test]
fn a_device_that_is_slow_to_sync_costs_no_record() -> Result {
    let test = "a_device_that_is_slow_to_sync_costs_no_record";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Strace])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let trace = fleet.path("trace");
    let settings = AgentSettings {
        ring_bytes: Some(128 << 10),
        sync_interval_s: Some(1),
        frame_age_max_s: 1,
        wrapper: slow(&machine, &trace, DEVICE),
        ..fleet.agent_settings("agent", collector.address)
    };
    let mut agent = fleet.start_agent(&settings)?;
    agent.wait_until("a delivery", |status| status["upload"]["frames"].as_u64() > Some(0))?;
    let synced = || -> Result<usize> { Ok(std::fs::read_to_string(&trace)?.lines().count()) };
    let before = synced()?;

    let folder = fleet.path("files");
    std::fs::create_dir(&folder)?;
    let begun = Instant::now();
    let mut made = 0;
    while begun.elapsed() < MADE_FOR {
        std::fs::write(folder.join(made.to_string()), [0; 16])?;
        made += 1;
        std::thread::sleep(MADE_EACH);
    }
    let times = synced()? - before;
    assert!(times > 1, "{times} times");
    agent.program.stop()?;
    collector.program.stop()?;

    let summary = Summary::of(&fleet.store())?;
    assert_eq!(summary.unbalanced(), Vec::<String>::new());
    let lost = summary.ledger.iter().filter(|((_, term), _)| *term == Term::LostRing);
    assert_eq!(lost.map(|(_, lost)| lost).sum::<u64>(), 0, "{made} files, {times} times");
    let place = folder.to_string_lossy().into_owned();
    let records = fleet.print(&fleet.store())?;
    let is_made = |r: &&Value| text(r, "type") == "FF" && text(r, "file.path").starts_with(&place);
    assert_eq!(records.iter().filter(is_made).count(), made);
    let log = agent.program.log()?;
    assert!(log.contains("takes more than spool.sync_interval_s to make durable"), "{log}");
    println!("{made} files while the device was waited for {times} times");
    Ok(())
}

/// Its first frame came to the collector before the device had it, so that it had not noted yet that it
/// is the latest run.
#[test]
fn a_run_that_is_killed_while_the_device_is_slow_is_named_as_cut() -> Result {
    let test = "a_run_that_is_killed_while_the_device_is_slow_is_named_as_cut";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Strace])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let settings = fleet.agent_settings("agent", collector.address);
    let wrapper = slow(&machine, &fleet.path("trace"), 5 * DEVICE);
    let slow = AgentSettings { wrapper, ..settings.clone() };
    let mut runs = Vec::new();
    for settings in [&settings, &slow, &settings] {
        let mut agent = fleet.start_agent(settings)?;
        let run_id = agent.status()?["run_id"].as_str().unwrap_or_default().to_owned();
        let run = run_id.get(..16).ok_or("no run id")?.to_owned();
        let is_its = |path: &PathBuf| path.components().any(|part| part.as_os_str() == &*run);
        wait_for("its first frame in the store", DEADLINE, || {
            let found = if fleet.store().exists() { frames::find(&fleet.store())? } else { vec![] };
            Ok(found.iter().any(is_its).then_some(()))
        })?;
        runs.push(run);
        if runs.len() < 3 { agent.program.kill()? } else { agent.program.stop()? }
    }
    collector.program.stop()?;
    let (_, lines) = fleet.ledger()?;
    let ending = |run: &String| {
        let books = of_kind(&lines, "BOOKS").find(|books| text(books, "run") == run);
        books.map_or("", |books| text(books, "ending"))
    };
    assert_eq!(runs.iter().map(ending).collect::<Vec<_>>(), ["cut", "cut", "closed"]);
    let cuts: Vec<&Value> =
        of_kind(&lines, "GAP").filter(|gap| text(gap, "reason") == "interruption").collect();
    let [first, second] = cuts[..] else { panic!("{lines:?}") };
    for (cut, run, teller) in [(first, &runs[0], &runs[1]), (second, &runs[1], &runs[2])] {
        assert_eq!((text(cut, "run"), text(cut, "reported_by_run")), (&**run, &**teller), "{cut}");
        assert!(cut["from_ns"].as_u64() < cut["to_ns"].as_u64(), "{cut}");
    }
    assert_eq!(first["to_ns"], second["from_ns"]);
    Ok(())
}
