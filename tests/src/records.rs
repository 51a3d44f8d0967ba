//! Records as `print --json` says them, and their comparison with a truth.
//!
//! Every comparison returns the differences as sentences; none means that all was found.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Result;
use crate::frames::Summary;
use crate::truth::{EventTruth, FileTruth, Name, NetworkTruth, ProcessTruth, Truth, Volume};

/// SysFlow's bit for an open that was seen.
const OPEN: u64 = 128;

/// Reads one JSON object a line.
///
/// # Errors
/// If a line is not JSON: with the line's number.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().filter(|line| !line.is_empty()).enumerate();
    lines
        .map(|(n, line)| {
            serde_json::from_str(line).map_err(|e| format!("line {}: {e}", n + 1).into())
        })
        .collect()
}

/// The number under `key`; none if there is none.
pub fn number(record: &Value, key: &str) -> Option<i64> {
    record.get(key).and_then(Value::as_i64)
}

/// The text under `key`; empty if there is none.
pub fn text<'r>(record: &'r Value, key: &str) -> &'r str {
    record.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The records of one kind: `PE`, `FE`, `FF`, `NF`, `PF`, or the printer's own `LEDGER` and
/// `GAP`.
pub fn of_kind<'r>(records: &'r [Value], kind: &str) -> impl Iterator<Item = &'r Value> {
    let kind = kind.to_string();
    records.iter().filter(move |record| text(record, "type") == kind)
}

/// The records whose process has this id.
pub fn of_process(records: &[Value], pid: u32) -> impl Iterator<Item = &Value> {
    records.iter().filter(move |record| number(record, "proc.pid") == Some(i64::from(pid)))
}

/// What a flow record counted.
pub fn volume(flow: &Value) -> Volume {
    let count = |key| number(flow, key).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    Volume {
        read_ops: count("flow.rops"),
        write_ops: count("flow.wops"),
        read_bytes: count("flow.rbytes"),
        write_bytes: count("flow.wbytes"),
    }
}

/// What several flow records counted together.
pub fn total<'r>(flows: impl IntoIterator<Item = &'r Value>) -> Volume {
    let mut sum = Volume::default();
    for flow in flows {
        sum.add(volume(flow));
    }
    sum
}

/// Everything in which `records` differ from `truth`.
pub fn differences(records: &[Value], truth: &Truth) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(truth.processes.iter().filter_map(|process| process_fault(records, process)));
    found.extend(truth.files.iter().filter_map(|file| file_fault(records, file)));
    found.extend(truth.network.iter().filter_map(|peer| network_fault(records, peer)));
    found.extend(event_faults(records, &truth.events));
    found
}

/// Everything in which the paths of `records`, and of the frames that they came in, differ
/// from those of a truth whose every file was written to with another number of bytes.
pub fn path_faults(records: &[Value], truth: &Truth, summary: &Summary) -> Vec<String> {
    let mut faults = Vec::new();
    // The number of bytes is how a case's flow is found without looking at its path.
    for file in &truth.files {
        let paths: Vec<&str> = of_kind(records, "FF")
            .filter(|flow| {
                number(flow, "proc.pid") == Some(i64::from(file.pid))
                    && number(flow, "file.fd") == file.fd.map(i64::from)
                    && volume(flow) == file.volume
            })
            .map(|flow| text(flow, "file.path"))
            .collect();
        if !paths.contains(&file.path.text.as_str()) {
            faults.push(format!("expected {:?}, found {paths:?}", file.path.text));
        }
    }
    let events = Truth {
        events: truth.events.clone(),
        processes: truth.processes.clone(),
        ..Truth::default()
    };
    faults.extend(differences(records, &events));
    // Text loses what is not UTF-8; the wire does not.
    let hexes: BTreeSet<String> =
        summary.paths.iter().map(|path| Name::from(path.as_slice()).hex).collect();
    let unseen = truth.files.iter().filter(|file| !hexes.contains(&file.path.hex));
    faults.extend(unseen.map(|file| format!("no file {:?} on the wire", file.path.text)));
    faults
}

fn process_fault(records: &[Value], truth: &ProcessTruth) -> Option<String> {
    let args = truth.args.join(" ");
    let is_it = |record: &&Value| {
        let pid = number(record, "proc.pid");
        truth.pid.is_none_or(|expected| pid == Some(i64::from(expected)))
            && truth.parent.is_none_or(|p| number(record, "pproc.pid") == Some(i64::from(p)))
            && text(record, "proc.exe") == truth.exe
            && text(record, "proc.args") == args
    };
    let name = format!("process {:?} {} {args}", truth.pid, truth.exe);
    let found: Vec<&Value> = records.iter().filter(is_it).collect();
    let Some(pid) = found.first().and_then(|record| number(record, "proc.pid")) else {
        let same = truth.pid.map(|pid| of_process(records, pid).map(brief).collect::<Vec<_>>());
        return Some(format!("{name}: not found; of its pid: {:?}", same.unwrap_or_default()));
    };
    let owner = |record: &&&Value| {
        number(record, "proc.uid") == Some(i64::from(truth.uid))
            && number(record, "proc.gid") == Some(i64::from(truth.gid))
    };
    if !found.iter().any(|record| owner(&record)) {
        return Some(format!("{name}: never seen as {}:{}", truth.uid, truth.gid));
    }
    let status = i64::from(truth.status?);
    let ends: Vec<Option<i64>> = found
        .iter()
        .filter(|record| text(record, "opflags") == "EXIT")
        .filter(|record| {
            let tid = number(record, "proc.tid");
            number(record, "proc.pid") == Some(pid) && tid == Some(pid)
        })
        .map(|record| number(record, "ret"))
        .collect();
    let expected = vec![Some(status)];
    (ends != expected).then(|| format!("{name}: ends {ends:?}, expected {expected:?}"))
}

fn file_fault(records: &[Value], truth: &FileTruth) -> Option<String> {
    let kind = truth.kind.to_string();
    let is_it = |flow: &&Value| {
        let path = text(flow, "file.path");
        // A unix socket without a name has nothing to be told by but its descriptor.
        let same_path = if truth.kind == 'u' && truth.path.text.is_empty() {
            !path.starts_with(['/', '@'])
        } else {
            path == truth.path.text
        };
        let fd = number(flow, "file.fd");
        number(flow, "proc.pid") == Some(i64::from(truth.pid))
            && text(flow, "file.type") == kind
            && truth.fd.is_none_or(|expected| fd == Some(i64::from(expected)))
            && same_path
    };
    let name =
        format!("pid {} fd {:?} {:?} {:?}", truth.pid, truth.fd, truth.kind, truth.path.text);
    let flows: Vec<&Value> = of_kind(records, "FF").filter(is_it).collect();
    let sum = total(flows.iter().copied());
    if sum != truth.volume {
        let near: Vec<String> = of_process(records, truth.pid)
            .filter(|r| text(r, "type") == "FF")
            .filter(|r| truth.fd.is_none_or(|fd| number(r, "file.fd") == Some(i64::from(fd))))
            .map(brief)
            .collect();
        return Some(format!(
            "{name}: {} flows with {sum:?}, expected {:?}; flows of this descriptor: {near:?}",
            flows.len(),
            truth.volume
        ));
    }
    let operations = flows.iter().filter_map(|flow| flow["opflags_bitmap"].as_u64());
    let seen = operations.fold(0, |all, bits| all | bits);
    let missed = truth.opened && truth.kind == 'f' && seen & OPEN == 0;
    missed.then(|| format!("{name}: its open is not among the operations {seen:#x}"))
}

fn network_fault(records: &[Value], truth: &NetworkTruth) -> Option<String> {
    let end = |ip: std::net::IpAddr, port: u16| (ip.to_string(), Some(i64::from(port)));
    let client = end(truth.client.ip(), truth.client.port());
    let server = end(truth.server.ip(), truth.server.port());
    let is_it = |flow: &&Value| {
        let ends = (
            (text(flow, "net.sip").to_string(), number(flow, "net.sport")),
            (text(flow, "net.dip").to_string(), number(flow, "net.dport")),
        );
        let straight = ends.0 == client && ends.1 == server;
        // Who asked whom is known of a connection; of datagrams it may have to be guessed.
        let turned = truth.protocol != 6 && ends.0 == server && ends.1 == client;
        let fd = number(flow, "file.fd");
        number(flow, "proc.pid") == Some(i64::from(truth.pid))
            && number(flow, "net.proto") == Some(i64::from(truth.protocol))
            && truth.fd.is_none_or(|expected| fd == Some(i64::from(expected)))
            && (straight || turned)
    };
    let flows: Vec<&Value> = of_kind(records, "NF").filter(is_it).collect();
    let sum = total(flows.iter().copied());
    if sum == truth.volume {
        return None;
    }
    let near: Vec<String> = of_process(records, truth.pid)
        .filter(|r| text(r, "type") == "NF")
        .filter(|r| truth.fd.is_none_or(|fd| number(r, "file.fd") == Some(i64::from(fd))))
        .map(brief)
        .collect();
    Some(format!(
        "pid {} fd {:?} protocol {} {} to {}: {} flows with {sum:?}, expected {:?}; flows of \
         this descriptor: {near:?}",
        truth.pid,
        truth.fd,
        truth.protocol,
        truth.client,
        truth.server,
        flows.len(),
        truth.volume
    ))
}

fn event_faults(records: &[Value], events: &[EventTruth]) -> Vec<String> {
    let mut faults = Vec::new();
    for truth in events {
        let is_it = |record: &&Value| {
            let has_name = truth.operation != "SETUID";
            number(record, "proc.pid") == Some(i64::from(truth.pid))
                && text(record, "opflags") == truth.operation
                && number(record, "ret") == Some(i64::from(truth.result))
                && (!has_name || text(record, "file.path") == truth.path.text)
                && (!has_name || text(record, "file.newpath") == truth.new_path.text)
        };
        let found = records.iter().filter(is_it).count();
        let expected = events.iter().filter(|other| *other == truth).count();
        if found != expected {
            let near: Vec<String> = of_process(records, truth.pid)
                .filter(|record| text(record, "opflags") == truth.operation)
                .map(brief)
                .collect();
            faults.push(format!(
                "pid {} {} {:?} {:?} = {}: found {found}, expected {expected}; its kind: {near:?}",
                truth.pid, truth.operation, truth.path.text, truth.new_path.text, truth.result
            ));
        }
    }
    faults
}

/// A record in a few words, for messages.
pub fn brief(record: &Value) -> String {
    let mut words = vec![text(record, "type").to_string()];
    words.push(text(record, "opflags").split_whitespace().collect::<Vec<_>>().join(" "));
    words.push(format!("{} {}", text(record, "proc.exe"), text(record, "proc.args")));
    let resource = text(record, "res");
    if !resource.is_empty() {
        words.push(format!("{} {}", resource, text(record, "file.newpath")));
    }
    match text(record, "type") {
        "FF" | "NF" => {
            let v = volume(record);
            words.push(format!(
                "r {}/{} w {}/{} {}",
                v.read_ops,
                v.read_bytes,
                v.write_ops,
                v.write_bytes,
                text(record, "endreason")
            ));
        }
        _ => words.push(format!("= {:?}", number(record, "ret"))),
    }
    words.join(" | ")
}
