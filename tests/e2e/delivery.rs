//! Delivery under faults: every frame is stored once, and what cannot be had is named.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames::{self, Summary};
use tests::machine::{Machine, Need};
use tests::proxy::Proxy;
use tests::records::{differences, of_kind, text};
use tests::truth::Truth;
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs the demonstration's workload in a new folder and returns what it did.
fn work(fleet: &Fleet<'_>, name: &str) -> Result<Truth> {
    let folder = fleet.path(name);
    std::fs::create_dir(&folder)?;
    let output =
        Command::new(env!("CARGO_BIN_EXE_workload-demo")).arg("--dir").arg(&folder).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until the store holds more than `frames` frames, and returns how many.
fn wait_for_more(fleet: &Fleet<'_>, frames: usize) -> Result<usize> {
    wait_for(&format!("more than {frames} frames in the store"), DEADLINE, || {
        let held = if fleet.store().exists() { frames::find(&fleet.store())?.len() } else { 0 };
        Ok((held > frames).then_some(held))
    })
}

/// All runs' workloads are found and no stream has a hole.
fn expect_all(fleet: &Fleet<'_>, truths: &[Truth]) -> Result<Vec<Value>> {
    let summary = Summary::of(&fleet.store())?;
    assert!(summary.holes().is_empty(), "{:?}", summary.holes());
    let records = fleet.print(&fleet.store())?;
    for truth in truths {
        let faults = differences(&records, truth);
        if !faults.is_empty() {
            return Err(faults.join("\n").into());
        }
    }
    Ok(records)
}

#[test]
fn a_collector_that_dies_loses_and_repeats_nothing() -> Result {
    let test = "a_collector_that_dies_loses_and_repeats_nothing";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let proxy = Proxy::start(collector.address)?;
    let mut agent = fleet.start_agent(&fleet.agent_settings("agent", proxy.address))?;
    let mut truths = vec![work(&fleet, "one")?];
    let mut held = wait_for_more(&fleet, 0)?;
    for round in ["two", "three"] {
        collector.program.kill()?;
        truths.push(work(&fleet, round)?);
        collector = fleet.start_collector("127.0.0.1:0")?;
        proxy.retarget(collector.address);
        held = wait_for_more(&fleet, held)?;
    }
    agent.program.stop()?;
    collector.program.stop()?;
    expect_all(&fleet, &truths)?;
    Ok(())
}

#[test]
fn cut_and_slow_connections_lose_and_repeat_nothing() -> Result {
    let test = "cut_and_slow_connections_lose_and_repeat_nothing";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let proxy = Proxy::start(collector.address)?;
    // Uploads are cut while they go out ...
    proxy.cut_after(Some(6000));
    let mut agent = fleet.start_agent(&fleet.agent_settings("agent", proxy.address))?;
    let mut truths = vec![work(&fleet, "one")?];
    wait_for("a cut", DEADLINE, || Ok((proxy.cuts() > 0).then_some(())))?;
    // ... then their answers get lost, so that all that was stored is sent again ...
    proxy.cut_after(None);
    let before = proxy.cuts();
    proxy.cut_answers_after(Some(3000));
    truths.push(work(&fleet, "two")?);
    wait_for("a cut answer or a stored frame", DEADLINE, || {
        let held = if fleet.store().exists() { frames::find(&fleet.store())?.len() } else { 0 };
        Ok((proxy.cuts() > before || held > 0).then_some(()))
    })?;
    // ... then all goes slowly.
    proxy.cut_answers_after(None);
    proxy.delay(Duration::from_millis(50));
    truths.push(work(&fleet, "three")?);
    wait_for_more(&fleet, 0)?;
    agent.program.stop()?;
    collector.program.stop()?;
    expect_all(&fleet, &truths)?;
    Ok(())
}

#[test]
fn an_agent_that_is_killed_leaves_its_frames_and_a_named_gap() -> Result {
    let test = "an_agent_that_is_killed_leaves_its_frames_and_a_named_gap";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let proxy = Proxy::start(collector.address)?;
    let settings = fleet.agent_settings("agent", proxy.address);
    let mut agent = fleet.start_agent(&settings)?;
    let first = work(&fleet, "one")?;
    wait_for_more(&fleet, 0)?;
    // Nobody takes frames now; the agent's spool must.
    collector.program.kill()?;
    let delivered = frames::find(&fleet.store())?.len();
    let before = newest_urgent(&machine, &fleet, "agent")?;
    let second = work(&fleet, "two")?;
    let grown = wait_for_spool(&machine, &fleet, "agent", before)?;
    // Records of a class keep their order: once later ones are in the spool, so are those of the
    // second workload.
    work(&fleet, "more")?;
    wait_for_spool(&machine, &fleet, "agent", grown)?;
    agent.program.kill()?;

    collector = fleet.start_collector("127.0.0.1:0")?;
    proxy.retarget(collector.address);
    let mut agent = fleet.start_agent(&settings)?;
    let third = work(&fleet, "three")?;
    wait_for_more(&fleet, delivered)?;
    agent.program.stop()?;
    collector.program.stop()?;

    let records = expect_all(&fleet, &[first, third])?;
    let second_pid = i64::from(second.pid);
    assert!(
        records.iter().any(|record| record["proc.pid"] == second_pid),
        "no record of the workload that ran while the collector was away"
    );
    let gaps: Vec<&Value> = of_kind(&records, "GAP").collect();
    let gap = gaps
        .iter()
        .find(|gap| text(gap, "reason") == "interruption")
        .ok_or_else(|| format!("no interruption among {gaps:?}"))?;
    let (from, to) = (gap["from_ns"].as_u64(), gap["to_ns"].as_u64());
    assert!(from > Some(0) && to > from, "{gap}");
    let runs: Vec<&str> = of_kind(&records, "LEDGER").map(|ledger| text(ledger, "run")).collect();
    assert_eq!(runs.len(), 2, "{runs:?}");
    assert!(runs.contains(&text(gap, "run")), "{gap} names none of {runs:?}");
    let (code, lines) = fleet.ledger()?;
    let mut endings: Vec<(&str, &str)> =
        of_kind(&lines, "BOOKS").map(|run| (text(run, "ending"), text(run, "run"))).collect();
    endings.sort_unstable();
    assert_eq!(code, Some(65), "a gap is no whole book");
    assert_eq!(endings.iter().map(|(ending, _)| *ending).collect::<Vec<_>>(), ["closed", "cut"]);
    assert_eq!(endings.last().map(|(_, run)| *run), Some(text(gap, "run")));
    Ok(())
}

#[test]
fn a_supervisor_is_told_of_readiness_life_and_the_end() -> Result {
    let test = "a_supervisor_is_told_of_readiness_life_and_the_end";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    let socket = fleet.path("notify");
    let supervisor = UnixDatagram::bind(&socket)?;
    supervisor.set_read_timeout(Some(Duration::from_secs(60)))?;
    settings.environment = vec![
        ("NOTIFY_SOCKET".into(), socket.into_os_string()),
        ("WATCHDOG_USEC".into(), "400000".into()),
    ];
    let mut agent = fleet.launch_agent(&settings)?;
    let hear = |wanted: &str| -> Result<String> {
        loop {
            let mut buffer = [0; 4096];
            let length = supervisor.recv(&mut buffer).map_err(|e| format!("no {wanted}: {e}"))?;
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.lines().any(|line| line.starts_with(wanted)) {
                return Ok(message);
            }
        }
    };
    let ready = hear("READY=1")?;
    assert!(ready.contains("STATUS=watching with 5 hooks; 0 frames wait"), "{ready:?}");
    for _ in 0..3 {
        hear("WATCHDOG=1")?;
    }
    collector.program.kill()?;
    // Whoever looks at the state sees why nothing arrives.
    while !hear("STATUS=")?.contains("failed in a row: ") {}
    agent.program.stop()?;
    hear("STOPPING=1")?;
    Ok(())
}

/// Sequence of the newest urgent frame that waits in the spool; volumes are there before it.
fn newest_urgent(machine: &Machine, fleet: &Fleet<'_>, name: &str) -> Result<Option<u64>> {
    let mut command = Command::new(machine.agent());
    command.args(["spool", "list", "--json", "--config"]).arg(fleet.path(&format!("{name}.toml")));
    let listed: Value = serde_json::from_slice(&command.output()?.stdout)?;
    let segments = listed["segments"].as_array().ok_or("no list of segments")?;
    let streams = segments.iter().filter_map(|segment| segment["streams"].as_array()).flatten();
    let urgent = streams.filter(|stream| stream["class"] == 0);
    let ranges = urgent.filter_map(|stream| stream["sequences"].as_array()?.last()?[1].as_u64());
    Ok(ranges.max())
}

/// Waits until a newer urgent frame than `before` is in the spool, and returns its sequence.
fn wait_for_spool(
    machine: &Machine,
    fleet: &Fleet<'_>,
    name: &str,
    before: Option<u64>,
) -> Result<Option<u64>> {
    wait_for("frames in the spool", DEADLINE, || {
        let newest = newest_urgent(machine, fleet, name)?;
        Ok((newest > before).then_some(newest))
    })
}
