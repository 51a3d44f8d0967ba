//! The chain of seals, end to end: a store is as its agent made it, and a frame that somebody
//! changed afterwards is found.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use codec::{Capabilities, FRAME_BYTES_MAX, Frame, FrameWriter};
use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames;
use tests::machine::{Machine, Need};
use tests::records::{of_kind, text};
use tests::wait::wait_for;

/// Writes a frame again that says something else, whole and with a checksum that is right.
fn forge(path: &Path) -> Result {
    let bytes = std::fs::read(path)?;
    let (frame, _) = Frame::decode(&bytes)?;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(&mut buffer)?;
    for record in frame.records() {
        writer.push(&record?)?;
    }
    let mut header = frame.header.clone();
    header.capabilities = Some(Capabilities { attached: 0, missing: 0, jit: false });
    let forged = writer.finish(&header)?;
    assert_ne!(forged, bytes);
    // The store links a generation's first frame twice.
    std::fs::remove_file(path)?;
    Ok(std::fs::write(path, forged)?)
}

#[test]
fn a_frame_that_was_changed_in_the_store_breaks_the_chain() -> Result {
    let test = "a_frame_that_was_changed_in_the_store_breaks_the_chain";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    settings.generation_records_max = 100;
    let mut agent = fleet.start_agent(&settings)?;
    wait_for("a dozen frames", Duration::from_secs(60), || {
        for _ in 0..20 {
            assert!(Command::new("true").status()?.success());
        }
        let held = if fleet.store().exists() { frames::find(&fleet.store())?.len() } else { 0 };
        Ok((held > 12).then_some(()))
    })?;
    agent.program.stop()?;
    collector.program.stop()?;
    let chain = |lines: &[Value]| -> Result<(u64, u64)> {
        let run = of_kind(lines, "BOOKS").next().ok_or("no run")?;
        let count = |key: &str| run["chain"][key].as_u64().unwrap_or(u64::MAX);
        Ok((count("whole"), count("incomplete")))
    };
    let (code, lines) = fleet.ledger()?;
    let (whole, incomplete) = chain(&lines)?;
    println!("{whole} generations are as they were sealed");
    assert_eq!((code, incomplete), (Some(0), 0), "{lines:?}");
    assert!(whole > 2, "{whole} generations");

    let mut urgent = frames::find(&fleet.store())?;
    urgent.retain(|frame| frame.parent().is_some_and(|class| class.ends_with("0")));
    forge(urgent.first().ok_or("no frame")?)?;
    let (code, lines) = fleet.ledger()?;
    let gaps: Vec<&Value> = of_kind(&lines, "GAP").collect();
    let [gap] = gaps.as_slice() else { return Err(format!("not one gap: {gaps:?}").into()) };
    assert_eq!((code, text(gap, "reason")), (Some(65), "chain_break"));
    assert_eq!((gap["class"].as_u64(), gap["generation"].as_u64()), (Some(0), Some(0)));
    assert_eq!(chain(&lines)?, (whole - 1, 0));
    Ok(())
}
