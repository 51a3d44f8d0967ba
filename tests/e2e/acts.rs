//! Acts that are easy to record wrongly, each held against what really happened. A few lines
//! each: what the probes once got wrong stays right.

use std::process::Command;

use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames::Summary;
use tests::machine::{Machine, Need};
use tests::records::{number, of_process, text};

/// What an act was, and the records of its process.
struct Act<'r> {
    truth: &'r Value,
    status: i64,
    records: Vec<&'r Value>,
}

impl Act<'_> {
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &&Value> {
        self.records.iter().filter(move |record| text(record, "type") == kind)
    }

    /// Bytes sent to each port.
    fn sent_to(&self, port: i64) -> Option<i64> {
        let mut flows =
            self.of_kind("NF").filter(|flow| number(flow, "net.dport") == Some(port)).peekable();
        flows.peek()?;
        Some(flows.filter_map(|flow| number(flow, "flow.wbytes")).sum())
    }

    fn event<'a>(&'a self, ops: &'a str) -> impl Iterator<Item = &'a &'a Value> {
        self.of_kind("FE").filter(move |event| text(event, "opflags") == ops)
    }
}

fn is_closed(flow: &Value) -> bool {
    const CLOSE: u64 = 1 << 10;
    flow["opflags_bitmap"].as_u64().is_some_and(|bits| bits & CLOSE != 0)
}

#[test]
fn what_is_easy_to_record_wrongly_is_recorded_right() -> Result {
    let test = "what_is_easy_to_record_wrongly_is_recorded_right";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut agent = fleet.start_agent(&fleet.agent_settings("agent", collector.address))?;
    let folder = fleet.path("acts");
    std::fs::create_dir(&folder)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/acts.py");
    let output = Command::new("/usr/bin/python3").arg("-I").arg(script).arg(&folder).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    let acts: Value = serde_json::from_slice(&output.stdout)?;
    agent.program.stop()?;
    collector.program.stop()?;
    let records = fleet.print(&fleet.store())?;
    let act = |name: &str| {
        let act = &acts[name];
        let pid = act["pid"].as_u64().unwrap_or_else(|| panic!("{name} was not done"));
        Act {
            truth: &act["truth"],
            status: act["status"].as_i64().unwrap(),
            records: of_process(&records, pid as u32).collect(),
        }
    };

    for name in [
        "a_datagram_socket_connects_anew",
        "a_connected_datagram_socket_sends_elsewhere",
        "a_refused_socket_connects_elsewhere",
        "an_attempt_to_connect_is_given_up",
    ] {
        let act = act(name);
        for (port, bytes) in act.truth.as_object().unwrap() {
            let port = port.parse()?;
            assert_eq!(act.sent_to(port), bytes.as_i64(), "{name}: port {port}");
        }
    }

    // Its flows with the first peer end without a close.
    let later = act("a_socket_whose_attempt_failed_later_connects_elsewhere");
    for (port, closed) in later.truth.as_object().unwrap() {
        let port = port.parse()?;
        let flows: Vec<bool> = later
            .of_kind("NF")
            .filter(|flow| number(flow, "net.dport") == Some(port))
            .map(|flow| is_closed(flow))
            .collect();
        let closed = closed.as_bool().unwrap();
        assert!(flows.contains(&closed) && !flows.contains(&!closed), "port {port}: {flows:?}");
    }

    let given = act("a_descriptor_is_given_to_another_file");
    let ends: Vec<bool> = given
        .of_kind("FF")
        .filter(|flow| text(flow, "file.path") == given.truth)
        .map(|flow| is_closed(flow))
        .collect();
    assert_eq!(ends, [true]);

    let ranged = act("a_descriptor_is_closed_by_range_and_used_again");
    let path = ranged.truth["path"].as_str().unwrap();
    let written: i64 = ranged
        .of_kind("FF")
        .filter(|flow| text(flow, "file.path") == path)
        .filter_map(|flow| number(flow, "flow.wbytes"))
        .sum();
    assert_eq!(Some(written), ranged.truth["written"].as_i64());

    let jailed = act("a_program_in_a_jail_climbs");
    let made: Vec<&str> =
        jailed.event("MKDIR").skip(1).map(|event| text(event, "file.path")).collect();
    let expected: Vec<&str> =
        jailed.truth.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(made, expected);

    let deep = act("a_directory_is_too_deep_to_be_walked");
    let leaf = deep
        .event("MKDIR")
        .find(|event| text(event, "file.path").ends_with("/leaf"))
        .expect("the deep directory");
    assert!(leaf["file.flags"].to_string().contains("truncated"), "{}", leaf["file.flags"]);

    let nowhere = act("a_name_starts_nowhere");
    let named: Vec<&str> = nowhere.event("MKDIR").map(|e| text(e, "file.path")).collect();
    assert_eq!(named, ["nowhere"]);

    let removed = act("a_directory_is_removed_by_unlinkat");
    let path = removed.truth.as_str().unwrap();
    assert_eq!(removed.event("RMDIR").filter(|e| text(e, "file.path") == path).count(), 1);

    let ended = act("the_first_thread_ends_before_the_process");
    let codes: Vec<i64> = ended
        .of_kind("PE")
        .filter(|event| text(event, "opflags") == "EXIT")
        .filter_map(|event| number(event, "ret"))
        .collect();
    assert_eq!(codes, [ended.status]);
    assert_eq!(ended.truth.as_i64(), Some(ended.status));

    // Five calls of shutdown on one flow are five operations, once.
    let summary = Summary::of(&fleet.store())?;
    assert_eq!(summary.unbalanced(), Vec::<String>::new());
    Ok(())
}
