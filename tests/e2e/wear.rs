//! A day's bytes for flash, end to end: while the collector is away no more is written than that,
//! and what found no place is named.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use tests::Result;
use tests::files::make_files;
use tests::fleet::Fleet;
use tests::machine::{Machine, Need};
use tests::records::{of_kind, text};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(120);
/// The smallest budget, and what state files may take beside it.
const BUDGET_BYTES: u64 = 16 << 20;
const STATE_BYTES: u64 = 8 << 20;

#[test]
fn a_budget_for_flash_is_kept_and_what_finds_no_place_is_named() -> Result {
    let test = "a_budget_for_flash_is_kept_and_what_finds_no_place_is_named";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    // Nobody answers there until a collector is started.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut settings = fleet.agent_settings("agent", address);
    settings.spool_bytes_max = 64 << 20;
    settings.write_bytes_per_day = BUDGET_BYTES;
    let folder = fleet.path("volumes");
    std::fs::create_dir(&folder)?;
    let mut agent = fleet.start_agent(&settings)?;
    let number = |status: &Value, of: &str, key: &str| status[of][key].as_u64().unwrap_or(0);
    let mut turn = 0;
    wait_for("frames that find no place", DEADLINE, || {
        turn += 1;
        make_files(&folder, turn)?;
        let status = agent.status()?;
        Ok((number(&status, "ledger", "lost_flash_budget") > 0).then_some(()))
    })?;
    let status = agent.status()?;
    let before = number(&status, "spool", "day_written_bytes");
    assert_eq!(number(&status, "spool", "write_bytes_per_day"), BUDGET_BYTES);
    assert!(before > BUDGET_BYTES / 2 && before <= BUDGET_BYTES + STATE_BYTES, "{before}");
    assert!(number(&status, "spool", "written_bytes") <= BUDGET_BYTES / 4 * 3, "{status}");
    assert_eq!(number(&status, "ledger", "lost_spool_full"), 0);
    // It goes down, with frames in memory, and does not forget what it has written.
    agent.program.stop()?;
    let mut agent = fleet.start_agent(&settings)?;
    let after = number(&agent.status()?, "spool", "day_written_bytes");
    assert!(after >= before && after <= BUDGET_BYTES + STATE_BYTES, "{after} after {before}");
    make_files(&folder, turn + 1)?;
    let mut collector = fleet.start_collector(&address.to_string())?;
    agent.wait_until("an empty spool", |status| {
        // What is finished each second is in it for a moment.
        number(status, "upload", "frames") > 0 && number(status, "spool", "frames") < 4
    })?;
    agent.program.stop()?;
    collector.program.stop()?;

    let (code, lines) = fleet.ledger()?;
    assert_eq!(code, Some(65), "a gap is no whole book");
    let gaps: Vec<&Value> = of_kind(&lines, "GAP").collect();
    assert!(!gaps.is_empty());
    for gap in &gaps {
        let why = (&gap["reason"], &gap["why"], &gap["class"]);
        assert_eq!(why, (&json!("dropped_frames"), &json!("flash_budget"), &json!(1)), "{gap}");
    }
    let books: Vec<&Value> = of_kind(&lines, "BOOKS").collect();
    assert_eq!(books.len(), 2);
    let lost = |books: &&Value| books["records_lost"]["lost_flash_budget"].as_u64();
    let lost: u64 = books.iter().filter_map(lost).sum();
    let named: u64 = gaps.iter().filter_map(|gap| gap["records"].as_u64()).sum();
    println!(
        "{turn} turns, {before} and {after} of {BUDGET_BYTES} bytes written, {} gaps, {lost} \
         records lost, {named} of them named",
        gaps.len()
    );
    assert_eq!(lost, named);
    for books in books {
        assert_eq!((text(books, "ending"), &books["faults"]), ("closed", &json!([])), "{books}");
    }
    Ok(())
}
