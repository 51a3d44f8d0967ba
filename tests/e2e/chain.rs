//! The chain of seals, end to end: a store is as its agent made it, a frame that somebody changed
//! afterwards is found, and so is a chain that somebody made anew, since the device signs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use codec::{Capabilities, FRAME_BYTES_MAX, Frame, FrameWriter, Header, Seal};
use ring::digest::{Context, SHA256};
use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames;
use tests::machine::{Machine, Need};
use tests::records::{of_kind, text};
use tests::wait::wait_for;

/// Writes a frame again with another header, whole and with a checksum that is right.
fn rewrite(path: &Path, change: impl FnOnce(&mut Header<'_>)) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    let (frame, _) = Frame::decode(&bytes)?;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(&mut buffer)?;
    for record in frame.records() {
        writer.push(&record?)?;
    }
    let mut header = frame.header.clone();
    change(&mut header);
    let forged = writer.finish(&header)?.to_vec();
    // The store links a generation's first frame twice.
    std::fs::remove_file(path)?;
    std::fs::write(path, &forged)?;
    Ok(forged)
}

fn lie(header: &mut Header<'_>) {
    header.capabilities = Some(Capabilities { attached: 0, missing: 0, jit: false });
}

/// Makes all seals of a stream anew, as somebody does who has changed one of its frames, but who
/// has not the device's key.
fn seal_anew(stream: &[std::path::PathBuf]) -> Result {
    let mut before: Option<Seal> = None;
    let mut present: Option<(u32, Context)> = None;
    for path in stream {
        let bytes = std::fs::read(path)?;
        let generation = Frame::decode(&bytes)?.0.header.generation;
        if let Some((number, digest)) = present.take_if(|(number, _)| *number != generation) {
            let digest = digest.finish().as_ref().try_into()?;
            before = Some(Seal { generation: number, digest });
        }
        let bytes = rewrite(path, |header| {
            header.seal = header.seal.and(before);
        })?;
        present.get_or_insert((generation, Context::new(&SHA256))).1.update(&bytes);
    }
    Ok(())
}

/// How many generations are whole, cannot be checked, are signed, unsigned, without a certificate.
fn chain(lines: &[Value]) -> Result<[u64; 5]> {
    let run = of_kind(lines, "BOOKS").next().ok_or("no run")?;
    let count = |key: &str| run["chain"][key].as_u64().unwrap_or(u64::MAX);
    Ok(["whole", "incomplete", "signed", "unsigned", "unchecked"].map(count))
}

/// The reasons of all gaps.
fn reasons(lines: &[Value]) -> Vec<&str> {
    of_kind(lines, "GAP").map(|gap| text(gap, "reason")).collect()
}

#[test]
fn what_was_changed_in_the_store_is_found() -> Result {
    let test = "what_was_changed_in_the_store_is_found";
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

    let (code, lines) = fleet.ledger()?;
    let [whole, rest @ ..] = chain(&lines)?;
    println!("{whole} generations are as they were sealed");
    // Of each class all but the last one, which only has the seal of the one before.
    assert_eq!((code, rest), (Some(0), [0, whole, 0, 0]), "{lines:?}");
    assert!(whole > 2, "{whole} generations");
    let ca = fleet.path("pki").join("ca.pem");
    let (code, lines) = fleet.ledger_with(&["--ca".as_ref(), ca.as_ref()])?;
    assert_eq!((code, chain(&lines)?), (Some(0), [whole, 0, whole, 0, 0]), "{lines:?}");

    // Another fleet's CA proves nothing.
    let other = fleet.issue("other", &[])?.join("ca.pem");
    let (code, lines) = fleet.ledger_with(&["--ca".as_ref(), other.as_ref()])?;
    let found = reasons(&lines);
    let unsigned = found.iter().filter(|reason| **reason == "chain_unsigned").count();
    assert_eq!((code, unsigned as u64), (Some(65), whole), "{found:?}");

    let mut urgent = frames::find(&fleet.store())?;
    urgent.retain(|frame| frame.parent().is_some_and(|class| class.ends_with("0")));
    rewrite(urgent.first().ok_or("no frame")?, lie)?;
    let (code, lines) = fleet.ledger()?;
    let gaps: Vec<&Value> = of_kind(&lines, "GAP").collect();
    let [gap] = gaps.as_slice() else { return Err(format!("not one gap: {gaps:?}").into()) };
    assert_eq!((code, text(gap, "reason")), (Some(65), "chain_break"));
    assert_eq!((gap["class"].as_u64(), gap["generation"].as_u64()), (Some(0), Some(0)));
    assert_eq!(chain(&lines)?, [whole - 1, 0, whole - 1, 0, 0]);

    // Who makes the chain anew lacks the key: of all that follow, no signature holds.
    seal_anew(&urgent)?;
    let (code, lines) = fleet.ledger()?;
    let [whole_now, incomplete, signed, unsigned, unchecked] = chain(&lines)?;
    assert_eq!((whole_now, incomplete, unsigned, unchecked), (whole, 0, 0, 0));
    let found = reasons(&lines);
    assert_eq!(found, vec!["chain_signature"; (whole - signed) as usize]);
    assert!(code == Some(65) && signed < whole, "{signed} of {whole} are signed");

    // Without the certificates nothing is known of signatures, which is said.
    std::fs::remove_dir_all(fleet.store().join(tests::fleet::AGENT_ID).join("certificates"))?;
    let (code, lines) = fleet.ledger()?;
    assert_eq!((code, chain(&lines)?), (Some(0), [whole, 0, 0, 0, whole]), "{lines:?}");
    let (code, _) = fleet.ledger_with(&["--ca".as_ref(), ca.as_ref()])?;
    assert_eq!(code, Some(65));
    Ok(())
}
