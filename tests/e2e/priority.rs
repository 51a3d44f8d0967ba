//! Priority classes, end to end: what is urgent arrives, whatever becomes of volumes, and what the
//! device had to drop is named.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::Result;
use tests::files::{FILES, make_files};
use tests::fleet::{Agent, AgentSettings, Fleet};
use tests::frames;
use tests::machine::{Machine, Need};
use tests::records::{of_kind, text};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(90);
/// A day's bytes: some frames.
const BUDGET_BYTES: u64 = 1 << 20;

/// A total of the running agent's ledger.
fn total(agent: &Agent, term: &str) -> Result<u64> {
    Ok(agent.status()?["ledger"][term].as_u64().unwrap_or(0))
}

/// An address that nobody answers at until a collector is started there.
fn reserved() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A spool that volumes fill soon, and what is urgent does not even on a busy machine.
fn small_spool(fleet: &Fleet<'_>, address: SocketAddr) -> AgentSettings {
    let mut settings = fleet.agent_settings("agent", address);
    settings.spool_bytes_max = 4 << 20;
    settings
}

/// The gaps that the collector's books name.
fn gaps(lines: &[Value]) -> Vec<&Value> {
    of_kind(lines, "GAP").collect()
}

#[test]
fn a_full_spool_drops_volumes_first_and_says_which() -> Result {
    let test = "a_full_spool_drops_volumes_first_and_says_which";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let address = reserved()?;
    let settings = small_spool(&fleet, address);
    let mut agent = fleet.start_agent(&settings)?;
    let folder = fleet.path("volumes");
    std::fs::create_dir(&folder)?;
    // A program that runs before everything else, of which nothing may be missing.
    assert!(std::process::Command::new("true").arg(&folder).status()?.success());
    let mut turn = 0;
    wait_for("a full spool", DEADLINE, || {
        turn += 1;
        make_files(&folder, turn)?;
        Ok((total(&agent, "lost_spool_full")? > 0).then_some(()))
    })?;
    // It goes down with drops of which no frame that is delivered has told, and comes back.
    agent.program.stop()?;
    let mut agent = fleet.start_agent(&settings)?;
    make_files(&folder, turn + 1)?;
    let mut collector = fleet.start_collector(&address.to_string())?;
    agent.wait_until("an empty spool", |status| {
        // What is finished each second is in it for a moment.
        status["upload"]["frames"].as_u64() > Some(0)
            && status["spool"]["frames"].as_u64() < Some(4)
    })?;
    agent.program.stop()?;
    collector.program.stop()?;

    let (code, lines) = fleet.ledger()?;
    let gaps = gaps(&lines);
    assert_eq!(code, Some(65), "a gap is no whole book");
    assert!(!gaps.is_empty());
    for gap in &gaps {
        let why = (&gap["reason"], &gap["why"], &gap["class"]);
        assert_eq!(why, (&json!("dropped_frames"), &json!("spool_full"), &json!(1)), "{gap}");
    }
    let books: Vec<&Value> = of_kind(&lines, "BOOKS").collect();
    assert_eq!(books.len(), 2);
    let lost = |books: &&Value| books["records_lost"]["lost_spool_full"].as_u64();
    let lost: u64 = books.iter().filter_map(lost).sum();
    let named: u64 = gaps.iter().filter_map(|gap| gap["records"].as_u64()).sum();
    println!("{turn} turns, {} gaps, {lost} records lost, {named} of them named", gaps.len());
    assert_eq!(lost, named);
    // The books balance although what they are of is gone in part.
    for books in books {
        assert_eq!((text(books, "ending"), &books["faults"]), ("closed", &json!([])), "{books}");
    }
    let records = fleet.print(&fleet.store())?;
    let place = folder.to_string_lossy();
    let is_first = |r: &&Value| text(r, "type") == "PE" && text(r, "proc.args") == place;
    assert!(records.iter().any(|r| is_first(&r)), "the first program is missing");
    Ok(())
}

#[test]
fn a_budget_of_bytes_a_day_holds_volumes_back_and_nothing_is_lost() -> Result {
    let test = "a_budget_of_bytes_a_day_holds_volumes_back_and_nothing_is_lost";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    settings.bytes_per_day = BUDGET_BYTES;
    let folder = fleet.path("volumes");
    std::fs::create_dir(&folder)?;
    let mut agent = fleet.start_agent(&settings)?;
    let upload = |status: &Value, key: &str| status["upload"][key].as_u64().unwrap_or(0);
    let mut turn = 0;
    let waiting = wait_for("volumes that are held back", DEADLINE, || {
        turn += 1;
        make_files(&folder, turn)?;
        let status = agent.status()?;
        // The part that volumes may have is spent, and more of them wait than that.
        let waits = status["spool"]["waiting_bytes"].as_u64().unwrap_or(0);
        Ok((upload(&status, "frames") > 0 && waits > BUDGET_BYTES).then_some(waits))
    })?;
    // What is urgent still arrives.
    assert!(std::process::Command::new("true").arg(&folder).status()?.success());
    let place = folder.to_string_lossy().into_owned();
    let is_it = |r: &Value| text(r, "type") == "PE" && text(r, "proc.args") == place;
    wait_for("an urgent record in the store", DEADLINE, || {
        if !fleet.store().exists() || frames::find(&fleet.store())?.is_empty() {
            return Ok(None);
        }
        Ok(fleet.print(&fleet.store())?.iter().any(is_it).then_some(()))
    })?;
    agent.program.stop()?;
    let spent = |agent: &Agent| -> Result<u64> { Ok(upload(&agent.status()?, "day_spent_bytes")) };
    let before = spent(&agent)?;
    assert!(before > 0 && before <= BUDGET_BYTES, "{before} of {BUDGET_BYTES} spent");
    // What was spent is not forgotten, ...
    let mut agent = fleet.start_agent(&settings)?;
    agent.wait_until("a look at the budget", |status| upload(status, "day_spent_bytes") > 0)?;
    agent.program.stop()?;
    let after = spent(&agent)?;
    assert!(after >= before && after <= BUDGET_BYTES, "{after} of {BUDGET_BYTES} spent");
    let held = agent.status()?["spool"]["frames"].as_u64();
    assert!(held > Some(0), "nothing was held back: {:?}", agent.status()?["upload"]);
    println!("{waiting} bytes waited; {before} and {after} of {BUDGET_BYTES} bytes spent");
    // ... and what was held back arrives when it may.
    settings.bytes_per_day = 0;
    let mut agent = fleet.start_agent(&settings)?;
    agent.wait_until("what was held back", |status| {
        upload(status, "frames") > 0 && status["spool"]["frames"].as_u64() < Some(4)
    })?;
    agent.program.stop()?;
    collector.program.stop()?;
    let (code, lines) = fleet.ledger()?;
    assert_eq!((code, gaps(&lines)), (Some(0), Vec::new()));
    let records = fleet.print(&fleet.store())?;
    let is_made = |r: &&Value| text(r, "type") == "FF" && text(r, "file.path").starts_with(&place);
    assert_eq!(records.iter().filter(is_made).count(), turn * FILES);
    Ok(())
}

#[test]
fn a_spool_in_memory_writes_nothing_in_time_and_what_a_kill_takes_is_named() -> Result {
    let test = "a_spool_in_memory_writes_nothing_in_time_and_what_a_kill_takes_is_named";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    settings.spool_sync = "memory-first".to_string();
    // Nothing is written but for want of memory.
    settings.sync_interval_s = Some(3600);
    let mut agent = fleet.start_agent(&settings)?;
    let folder = fleet.path("volumes");
    std::fs::create_dir(&folder)?;
    make_files(&folder, 0)?;
    let number = |status: &Value, of: &str, key: &str| status[of][key].as_u64().unwrap_or(0);
    agent.wait_until("deliveries", |status| number(status, "upload", "frames") > 4)?;
    // But for what tells of the runs before, at the beginning, and what is in memory then.
    let written = number(&agent.status()?, "spool", "written_bytes");
    assert!(written < 512 * 1024, "{written}");
    // Nobody takes frames now; what was on its way may have come to the collector all the same.
    collector.program.kill()?;
    agent.wait_until("a failure", |status| number(status, "upload", "failures") > 0)?;
    let unsure = number(&agent.status()?, "spool", "frames");
    make_files(&folder, 1)?;
    agent
        .wait_until("frames in memory", |status| number(status, "spool", "frames") > unsure + 4)?;
    let status = agent.status()?;
    agent.program.kill()?;
    assert_eq!(number(&status, "spool", "written_bytes"), written, "{}", status["spool"]);

    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    settings.url = format!("https://{}", collector.address);
    let mut agent = fleet.start_agent(&settings)?;
    agent.program.stop()?;
    collector.program.stop()?;
    let (_, lines) = fleet.ledger()?;
    let missing: u64 = gaps(&lines)
        .iter()
        .filter(|gap| gap["reason"] == "missing_frames")
        .filter_map(|gap| Some(gap["last"].as_u64()? - gap["first"].as_u64()? + 1))
        .sum();
    let waited = number(&status, "spool", "frames");
    let least = waited - unsure;
    assert!(missing >= least, "{missing} of {least} to {waited}: {lines:?}");
    assert!(gaps(&lines).iter().any(|gap| gap["reason"] == "interruption"), "{lines:?}");
    Ok(())
}
