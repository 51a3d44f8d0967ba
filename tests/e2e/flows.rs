//! Every way to move bytes through a descriptor, held against the program that moved them.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::UdpSocket;
use std::process::Command;

use codec::op;
use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames::Summary;
use tests::machine::{Machine, Need};
use tests::records::{brief, differences, number, of_process, text, total};
use tests::truth::{Truth, Volume};

/// Files that are open while the workloads run.
const HELD: usize = 100;

/// Whether a record is of the flow that `wanted` describes.
fn fits(record: &Value, wanted: &Value) -> bool {
    let same = |key: &str, field: &str| match wanted[key].as_i64() {
        Some(expected) => number(record, field) == Some(expected),
        None => true,
    };
    let kind = text(record, "type");
    let port = wanted["port"].as_i64();
    let at_port = ["net.sport", "net.dport"].map(|field| number(record, field));
    ["FF", "NF"].contains(&kind)
        && same("fd", "file.fd")
        && wanted["path"].as_str().is_none_or(|path| text(record, "file.path") == path)
        && port.is_none_or(|port| at_port.contains(&Some(port)))
}

/// What is wrong with the records of one flow.
fn fault(records: &[Value], pid: u32, wanted: &Value) -> Option<String> {
    let pid = wanted["pid"].as_u64().map_or(pid, |pid| pid as u32);
    let own: Vec<&Value> = of_process(records, pid).collect();
    let found: Vec<&Value> = own.iter().filter(|record| fits(record, wanted)).copied().collect();
    let near = || {
        let flows = own.iter().filter(|r| ["FF", "NF"].contains(&text(r, "type")));
        flows.take(8).map(|r| brief(r)).collect::<Vec<_>>().join("\n    ")
    };
    if wanted["volume"].is_null() {
        return (!found.is_empty()).then(|| format!("{wanted}: found\n    {}", near()));
    }
    let volume: Vec<u64> = wanted["volume"].as_array()?.iter().filter_map(Value::as_u64).collect();
    let [read_ops, read_bytes, write_ops, write_bytes] = volume[..] else {
        return Some(format!("{wanted}: is no volume"));
    };
    let expected = Volume { read_ops, write_ops, read_bytes, write_bytes };
    let sum = total(found.iter().copied());
    if found.is_empty() || sum != expected {
        return Some(format!("{wanted}: found {sum:?}; its process has\n    {}", near()));
    }
    if wanted["records"].as_u64().is_some_and(|records| found.len() as u64 != records) {
        return Some(format!("{wanted}: found {} records:\n    {}", found.len(), near()));
    }
    let error = wanted["error"].as_i64();
    if error.is_some() && !found.iter().any(|record| number(record, "net.error") == error) {
        return Some(format!("{wanted}: no such error in\n    {}", near()));
    }
    let all = |key: &str| found.iter().map(|r| text(r, key)).collect::<Vec<_>>().join(" ");
    for (key, field) in [("ops", "opflags"), ("kind", "file.type"), ("address", "net.dip")] {
        let wanted_text = wanted[key].as_str().unwrap_or_default();
        if !all(field).contains(wanted_text) {
            return Some(format!("{wanted}: {field} is {:?}", all(field)));
        }
    }
    None
}

/// What the workloads say that they did, and the records of their run.
struct Run {
    acts: Value,
    transfers: Truth,
    records: Vec<Value>,
    summary: Summary,
}

impl Run {
    /// Runs the workloads under an agent that keeps so many flows in the kernel.
    fn with(machine: &Machine, flow_entries: u32) -> Result<Run> {
        let fleet = Fleet::new(machine)?;
        let mut collector = fleet.start_collector("127.0.0.1:0")?;
        let mut settings = fleet.agent_settings("agent", collector.address);
        settings.flow_entries = Some(flow_entries);
        let mut agent = fleet.start_agent(&settings)?;
        // More files in use at one time than a small table has entries.
        let held = (0..HELD).map(|number| File::create(fleet.path(&format!("held-{number}"))));
        let held = held.collect::<std::io::Result<Vec<File>>>()?;
        let said = |name: &str, command: &mut Command| -> Result<Vec<u8>> {
            let folder = fleet.path(name);
            std::fs::create_dir(&folder)?;
            let output = command.arg(&folder).output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            if output.status.success() && error.is_empty() {
                return Ok(output.stdout);
            }
            Err(format!("{name}: {}: {error}", output.status).into())
        };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/flows.py");
        let acts = said("flows", Command::new("/usr/bin/python3").arg("-I").arg(script))?;
        let transfer = env!("CARGO_BIN_EXE_workload-transfer");
        let transfers = said("transfer", Command::new(transfer).arg("--dir"))?;
        drop(held);
        agent.program.stop()?;
        collector.program.stop()?;
        Ok(Run {
            acts: serde_json::from_slice(&acts)?,
            transfers: serde_json::from_slice(&transfers)?,
            records: fleet.print(&fleet.store())?,
            summary: Summary::of(&fleet.store())?,
        })
    }
}

#[test]
fn a_full_table_of_flows_still_balances() -> Result {
    let test = "a_full_table_of_flows_still_balances";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let run = Run::with(&machine, 64)?;
    let cut = |record: &&Value| text(record, "endreason") == "lack_of_resources";
    assert!(run.records.iter().any(|record| cut(&record)), "the table was never full");
    assert_eq!(run.summary.unbalanced(), Vec::<String>::new());
    Ok(())
}

#[test]
fn every_way_to_move_bytes_is_counted() -> Result {
    let test = "every_way_to_move_bytes_is_counted";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let Run { acts, transfers, records, summary } = Run::with(&machine, 16_384)?;
    let mut faults = differences(&records, &transfers);
    let mut compared = 0;
    for (name, act) in acts.as_object().into_iter().flatten() {
        let pid = act["pid"].as_u64().ok_or("an act without a process")? as u32;
        let flows = act["truth"].as_array().ok_or_else(|| format!("{name} was not done"))?;
        compared += flows.len();
        let found = flows.iter().filter_map(|flow| fault(&records, pid, flow));
        faults.extend(found.map(|fault| format!("{name}: {fault}")));
    }
    // What goes through io_uring is not seen, but that a process has one is.
    if let Some(pid) = acts["a_connection_is_made_by_io_uring"]["pid"].as_u64() {
        let says = |r: &&Value| r["proc.flags"].to_string().contains("io_uring");
        if of_process(&records, pid as u32).find(says).is_none() {
            faults.push("a process with an io_uring is not marked".to_string());
        }
    } else {
        tests::machine::skip("a_connection_is_made_by_io_uring", "the kernel refuses io_uring")?;
    }
    faults.extend(summary.unbalanced());
    let losses = summary.ledger.iter().filter(|((_, term), count)| term.is_loss() && **count > 0);
    faults.extend(losses.map(|loss| format!("{loss:?}")));
    assert!(compared > 0);
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Each open has its end, and none has two, although a number has long been given to another
/// thread when the call that closed it ends. Where a thread's processor is taken away just then,
/// the open is told as a flow of its own, which says so.
#[test]
fn threads_that_take_over_numbers_are_told_apart() -> Result {
    let test = "threads_that_take_over_numbers_are_told_apart";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let file = fleet.path("race");
    std::fs::write(&file, "")?;
    let (records, opens) = fleet.watch(|| {
        let mut race = Command::new(env!("CARGO_BIN_EXE_workload-race"));
        let output = race.arg("--file").arg(&file).args(["--threads", "6"]).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().parse::<usize>()?)
    })?;
    let path = file.to_string_lossy();
    let mut found = BTreeMap::new();
    for record in records.iter().filter(|record| text(record, "file.path") == path) {
        let operations = record["opflags_bitmap"].as_u64().unwrap_or_default();
        *found.entry((operations, text(record, "endreason"))).or_insert(0) += 1;
    }
    let count = |operations, end| found.get(&(operations, end)).copied().unwrap_or(0);
    let closed = count(op::OPEN | op::CLOSE, "end_detected");
    let alone = count(op::OPEN | op::TRUNCATE, "lack_of_resources");
    // How often a processor is taken away is the machine's matter: hardly ever on an idle one, one
    // open in a hundred in a guest whose processors are programs that share others.
    assert!(closed + alone == opens && alone * 10 < opens, "{opens} opens: {found:?}");
    assert_eq!(Summary::of(&fleet.store())?.unbalanced(), Vec::<String>::new());
    Ok(())
}

/// Sockets that follow each other on one number, each with one message to the same peer, are told
/// apart; and where that is too fast for the ring, what is lost is counted once.
#[test]
fn sockets_of_threads_that_take_over_numbers_are_told_apart() -> Result {
    let test = "sockets_of_threads_that_take_over_numbers_are_told_apart";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let receiver = UdpSocket::bind(("127.0.0.1", 0))?;
    let peer = receiver.local_addr()?;
    for flags in [&["--opens", "1500"][..], &["--opens", "3000", "--no-pause"]] {
        let fleet = Fleet::new(&machine)?;
        let (records, sent) = fleet.watch(|| {
            let mut race = Command::new(env!("CARGO_BIN_EXE_workload-race"));
            let output = race.arg("--send").arg(peer.to_string()).args(flags).output()?;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8(output.stdout)?.trim().parse::<usize>()?)
        })?;
        let summary = Summary::of(&fleet.store())?;
        assert_eq!(summary.unbalanced(), Vec::<String>::new(), "{flags:?}");
        let to_peer = |r: &&Value| number(r, "net.dport") == Some(peer.port().into());
        let volumes: Vec<Volume> =
            records.iter().filter(to_peer).map(|record| total([record])).collect();
        let one = Volume { write_ops: 1, write_bytes: 8, ..Volume::default() };
        let is_lost = summary.ledger.iter().any(|((_, term), count)| term.is_loss() && *count > 0);
        let told = volumes.iter().filter(|volume| **volume == one).count();
        assert!(
            told == volumes.len() && (is_lost || told == sent),
            "{told} of {sent}: {volumes:?}"
        );
        assert!(told > 0);
    }
    Ok(())
}
