//! Events that SysFlow has no words for, each held against what a program did: operation, file
//! or arguments, and result, of calls that succeed and of calls that fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use codec::op;
use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames::Summary;
use tests::machine::{Machine, Need};
use tests::records::{brief, number, of_process, text};

/// Operations whose events the workload makes.
const OPERATIONS: [&str; 18] = [
    "CHMOD",
    "CHOWN",
    "RESIZE",
    "MKNOD",
    "MOUNT",
    "UMOUNT",
    "UNSHARE",
    "CAPSET",
    "SETGID",
    "PTRACE",
    "LOAD_MODULE",
    "UNLOAD_MODULE",
    "LOAD_BPF",
    "MEMFD",
    "BIND",
    "LISTEN",
    "ACCEPT",
    "OPEN",
];

/// Whether a record says what the truth says.
fn tells(record: &Value, event: &Value) -> bool {
    let is_same = |theirs: &Value, ours: &str| theirs.is_null() || theirs == ours;
    let address = &event["address"];
    is_event(record, event["operation"].as_str().unwrap_or_default())
        && number(record, "ret") == event["ret"].as_i64()
        && is_same(&event["path"], text(record, "file.path"))
        && number(record, "file.inode") == event["inode"].as_i64()
        && (event["args"].is_null() || record["record.args"] == event["args"])
        && is_same(&address[0], text(record, "net.dip"))
        && (address.is_null() || record["net.dport"] == address[1])
}

/// Whether a record is an event of this operation. Those that SysFlow knows of flows only have
/// its letters.
fn is_event(record: &Value, operation: &str) -> bool {
    let letters = match operation {
        "OPEN" => "O",
        "ACCEPT" => "A",
        other => other,
    };
    ["PE", "FE", "NE"].contains(&text(record, "type")) && text(record, "opflags").trim() == letters
}

/// The SysFlow files of all agents in a store.
fn sysflow_files(store: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for agent in std::fs::read_dir(store)? {
        let folder = agent?.path().join("sysflow");
        if folder.is_dir() {
            for file in std::fs::read_dir(folder)? {
                found.push(file?.path());
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|ending| ending == "sf"));
    Ok(found)
}

#[test]
fn changes_of_attributes_and_privileges_are_recorded() -> Result {
    let test = "changes_of_attributes_and_privileges_are_recorded";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root, Need::Sysprint])? else {
        return Ok(());
    };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut agent = fleet.start_agent(&fleet.agent_settings("agent", collector.address))?;
    let folder = fleet.path("events");
    std::fs::create_dir(&folder)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/events.py");
    let output = Command::new("/usr/bin/python3").arg("-I").arg(script).arg(&folder).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    let events: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    agent.program.stop()?;
    collector.program.stop()?;

    let records = fleet.print(&fleet.store())?;
    let mut faults = Vec::new();
    for operation in OPERATIONS {
        let expected: Vec<&Value> =
            events.iter().filter(|event| event["operation"] == operation).collect();
        assert!(!expected.is_empty(), "the workload makes no {operation}");
        for event in &expected {
            let pid = event["pid"].as_u64().unwrap_or_default() as u32;
            let found = of_process(&records, pid).filter(|record| tells(record, event)).count();
            let same = expected.iter().filter(|other| other == &event).count();
            if found != same {
                faults.push(format!("{event}: found {found}, expected {same}"));
            }
        }
        // Nothing is told that was not done.
        let mut pids: Vec<_> = expected.iter().filter_map(|event| event["pid"].as_u64()).collect();
        pids.sort_unstable();
        pids.dedup();
        let told: Vec<&Value> = pids
            .iter()
            .flat_map(|pid| of_process(&records, *pid as u32))
            .filter(|record| is_event(record, operation))
            .collect();
        if told.len() != expected.len() {
            let told: Vec<String> =
                told.iter().map(|r| format!("{} {}", brief(r), r["record.args"])).collect();
            faults.push(format!("{operation}: {} done, told {told:#?}", expected.len()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(events.iter().any(|event| event["ret"].as_i64() < Some(0)), "no call has failed");

    // Of all that, SysFlow's files have what its tools can read: no bit that they do not know.
    let mut refused = 0;
    for path in sysflow_files(&fleet.store())? {
        let output =
            Command::new(machine.sysprint()).args(["-A", "-o", "flatjson"]).arg(&path).output()?;
        let theirs = tests::records::parse(&String::from_utf8(output.stdout)?)?;
        let is_unknown = |record: &&Value| record["opflags_bitmap"].as_u64() > Some(op::SYSFLOW_V5);
        assert_eq!(theirs.iter().find(is_unknown), None, "{}", path.display());
        refused += theirs.iter().filter(|record| is_event(record, "OPEN")).count();
    }
    assert!(refused >= 3, "sysprint tells {refused} refused opens");

    let summary = Summary::of(&fleet.store())?;
    assert_eq!(summary.unbalanced(), Vec::<String>::new());
    Ok(())
}
