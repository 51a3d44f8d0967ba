//! A device that takes seconds to make something durable: the ring does not wait for it.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use codec::Term;
use serde_json::Value;
use tests::Result;
use tests::fleet::{AgentSettings, Fleet};
use tests::frames::Summary;
use tests::machine::{Machine, Need};
use tests::records::text;

/// How long the device takes each time: an agent that waited for it would lose most of what happens
/// meanwhile.
const DEVICE: Duration = Duration::from_secs(2);
/// How long files are made, and how often one is: few enough that the agent may be late by a second.
const MADE_FOR: Duration = Duration::from_secs(8);
const MADE_EACH: Duration = Duration::from_millis(4);

#[test]
fn a_device_that_is_slow_to_sync_costs_no_record() -> Result {
    let test = "a_device_that_is_slow_to_sync_costs_no_record";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Strace])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let trace = fleet.path("trace");
    let inject = format!("inject=fsync,fdatasync:delay_enter={}", DEVICE.as_micros());
    let strace = ["strace", "-D", "-f", "-qq", "--signal=none", "--seccomp-bpf", "-e"];
    let mut wrapper = strace.map(OsString::from).to_vec();
    wrapper.extend(["trace=fsync,fdatasync", "-e", &inject, "-o"].map(Into::into));
    wrapper.extend([trace.clone().into(), machine.agent().into()]);
    let settings = AgentSettings {
        ring_bytes: Some(128 << 10),
        sync_interval_s: Some(1),
        frame_age_max_s: 1,
        wrapper,
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
