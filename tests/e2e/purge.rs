//! An operator throws away what waits in a spool: the collector's books name the loss.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use tests::Result;
use tests::fleet::{AgentSettings, Fleet};
use tests::machine::{Machine, Need};
use tests::records::of_kind;
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);

fn spool(
    machine: &Machine,
    fleet: &Fleet<'_>,
    settings: &AgentSettings,
    words: &[&str],
) -> Result<Output> {
    let config = fleet.path(&format!("{}.toml", settings.name));
    let mut command = Command::new(machine.agent());
    Ok(command.arg("spool").args(words).arg("--config").arg(config).output()?)
}

fn list(machine: &Machine, fleet: &Fleet<'_>, settings: &AgentSettings) -> Result<Value> {
    let output = spool(machine, fleet, settings, &["list", "--json"])?;
    assert!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// How many purged records the runs in the store tell of.
fn told(fleet: &Fleet<'_>) -> Result<Vec<u64>> {
    if !fleet.store().exists() {
        return Ok(Vec::new());
    }
    let (_, lines) = fleet.ledger()?;
    Ok(lines.iter().filter_map(|line| line["records_lost"]["lost_purged"].as_u64()).collect())
}

#[test]
fn what_was_purged_is_in_the_collectors_books_once() -> Result {
    let test = "what_was_purged_is_in_the_collectors_books_once";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    // An address that nobody answers at until the collector is started there.
    let reserved = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let settings = fleet.agent_settings("agent", reserved);
    let mut agent = fleet.start_agent(&settings)?;
    wait_for("frames in the spool", DEADLINE, || {
        Ok((list(&machine, &fleet, &settings)?["frames"].as_u64() > Some(2)).then_some(()))
    })?;
    let beside = list(&machine, &fleet, &settings)?;
    assert_eq!(beside["owner"].as_str(), Some(agent.program.pid().to_string().as_str()));
    let refused = spool(&machine, &fleet, &settings, &["purge", "--yes"])?;
    assert_eq!(refused.status.code(), Some(75), "{refused:?}");
    agent.program.stop()?;

    let waiting = list(&machine, &fleet, &settings)?;
    let (frames, records) = (waiting["frames"].as_u64(), waiting["records"].as_u64());
    assert!(frames >= beside["frames"].as_u64() && records > Some(0), "{waiting}");
    let purged = spool(&machine, &fleet, &settings, &["purge", "--yes"])?;
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(list(&machine, &fleet, &settings)?["frames"], 0);
    println!("{}", String::from_utf8_lossy(&purged.stdout).trim());

    let mut collector = fleet.start_collector(&reserved.to_string())?;
    for _ in 0..2 {
        let mut agent = fleet.start_agent(&settings)?;
        wait_for("the books to tell of the purge", DEADLINE, || {
            Ok((!told(&fleet)?.is_empty()).then_some(()))
        })?;
        agent.program.stop()?;
    }
    collector.program.stop()?;
    // The second run has nothing to tell.
    assert_eq!(told(&fleet)?, [records.unwrap_or_default()]);
    // Which frames it was is named, too, and why, by the run that came after them.
    let (code, lines) = fleet.ledger()?;
    let gaps: Vec<_> = of_kind(&lines, "GAP").collect();
    assert_eq!((code, lines.len()), (Some(65), 2 + gaps.len()), "{lines:?}");
    for (class, gap) in gaps.iter().enumerate() {
        let why = (&gap["reason"], &gap["why"], &gap["class"]);
        assert_eq!(why, (&json!("dropped_frames"), &json!("purged"), &json!(class)));
        assert_eq!(gap["first"].as_u64(), Some(0));
        assert_eq!(gap["last"].as_u64().map(|last| last + 1), gap["frames"].as_u64());
    }
    let sum = |key: &str| gaps.iter().filter_map(|gap| gap[key].as_u64()).sum::<u64>();
    assert_eq!(gaps.len(), codec::CLASSES);
    assert_eq!((Some(sum("frames")), Some(sum("records"))), (frames, records), "{gaps:?}");
    Ok(())
}
