//! Who did it, and to what: programs under other names, from nowhere, in other namespaces, and
//! files that change theirs.

use std::process::Command;

use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::machine::{Machine, Need};
use tests::records::{number, of_process, text};

#[test]
fn programs_and_files_are_known_for_what_they_are() -> Result {
    let test = "programs_and_files_are_known_for_what_they_are";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root])? else {
        return Ok(());
    };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    settings.sections =
        "[privacy]\nenvironment = [\"ZONE\", \"DEPLOY_TOKEN\", \"NONE\"]\n".to_string();
    let mut agent = fleet.start_agent(&settings)?;
    let folder = fleet.path("work");
    std::fs::create_dir(&folder)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/identities.py");
    let output = Command::new("python3").arg(script).arg(&folder).output()?;
    agent.program.stop()?;
    collector.program.stop()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let cases: serde_json::Map<String, Value> = serde_json::from_slice(&output.stdout)?;
    let records = fleet.print(&fleet.store())?;
    let mut faults = Vec::new();
    for (name, case) in &cases {
        assert_eq!(case["status"], 0, "{name}: {case}; {said}");
        let pid = case["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).ok_or("pid")?;
        let own: Vec<&Value> = of_process(&records, pid).collect();
        let fault = match case["truth"].get("paths") {
            Some(paths) => file_fault(&own, paths, &case["truth"]["inode"]),
            None => program_fault(&own, &case["truth"]),
        };
        faults.extend(fault.map(|fault| format!("{name}: {fault}")));
    }
    assert!(cases.len() == 8 && faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What the successful exec of this process says otherwise.
fn program_fault(own: &[&Value], truth: &Value) -> Option<String> {
    let is_exec = |r: &&&Value| text(r, "opflags") == "EXEC" && number(r, "ret") == Some(0);
    let Some(exec) = own.iter().rev().find(is_exec) else { return Some("no EXEC".to_string()) };
    for (key, expected) in truth.as_object()? {
        let recorded = &exec[format!("proc.{key}")];
        if recorded != expected {
            return Some(format!("{key}: expected {expected}, recorded {recorded}"));
        }
    }
    // What the case does not name must not be there.
    let script_expected = truth.get("script").is_some();
    (!script_expected && !exec["proc.script"].is_null())
        .then(|| format!("script {}", exec["proc.script"]))
}

/// What the flows on these paths say otherwise: all are one file.
fn file_fault(own: &[&Value], paths: &Value, inode: &Value) -> Option<String> {
    let flows: Vec<(&Value, &Value)> = paths
        .as_array()?
        .iter()
        .filter_map(|path| {
            let flow = own.iter().find(|r| text(r, "type") == "FF" && r["file.path"] == *path)?;
            Some((&flow["file.device"], &flow["file.inode"]))
        })
        .collect();
    let is_one = |first| flows.iter().all(|flow| flow == first && flow.1 == inode);
    let is_known = flows.len() == 3 && flows.first().is_some_and(is_one);
    (!is_known).then(|| format!("device and inode of each name: {flows:?}, the file's {inode}"))
}
