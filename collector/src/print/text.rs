//! Words for a row: the cells of the text table, and the texts that JSON shares with it.

use std::net::IpAddr;

use codec::op;
use nix::errno::Errno;

use super::join::Row;
use super::table::Cell;
use crate::sysflow::{Endpoints, FileFlow, NetworkFlow, ProcessFlow, Record, Volume};

/// The short name of a record's kind.
pub(super) fn kind(record: &Record) -> &'static str {
    match record {
        Record::Header(_) => "H",
        Record::Container(_) => "C",
        Record::Process(_) => "P",
        Record::File(_) => "F",
        Record::ProcessEvent(_) => "PE",
        Record::NetworkFlow(_) => "NF",
        Record::FileFlow(_) => "FF",
        Record::FileEvent(_) => "FE",
        Record::NetworkEvent(_) => "NE",
        Record::ProcessFlow(_) => "PF",
        Record::Pod(_) => "POD",
        Record::K8sEvent(_) => "KE",
        Record::Summary(_) => "SUM",
    }
}

/// When an event was, or a flow began.
pub(super) fn ts(record: &Record) -> i64 {
    match record {
        Record::ProcessEvent(r) => r.ts,
        Record::NetworkFlow(r) => r.ts,
        Record::FileFlow(r) => r.ts,
        Record::FileEvent(r) => r.ts,
        Record::NetworkEvent(r) => r.ts,
        Record::ProcessFlow(r) => r.ts,
        Record::K8sEvent(r) => r.ts,
        Record::Summary(r) => r.ts,
        Record::Process(r) => r.ts,
        Record::File(r) => r.ts,
        Record::Pod(r) => r.ts,
        Record::Header(_) | Record::Container(_) => 0,
    }
}

/// The thread of an event or flow.
pub(super) fn tid(record: &Record) -> Option<i64> {
    match record {
        Record::ProcessEvent(r) => Some(r.tid),
        Record::NetworkFlow(r) => Some(r.tid),
        Record::FileFlow(r) => Some(r.tid),
        Record::FileEvent(r) => Some(r.tid),
        Record::NetworkEvent(r) => Some(r.tid),
        _ => None,
    }
}

/// The operation bits of an event or flow.
pub(super) fn ops(record: &Record) -> Option<u64> {
    match record {
        Record::ProcessEvent(r) => Some(r.ops),
        Record::NetworkFlow(r) => Some(r.ops),
        Record::FileFlow(r) => Some(r.ops),
        Record::FileEvent(r) => Some(r.ops),
        Record::NetworkEvent(r) => Some(r.ops),
        Record::ProcessFlow(r) => Some(r.ops),
        Record::Summary(r) => Some(r.ops),
        _ => None,
    }
}

/// The end of a flow and why it ended.
pub(super) fn end(record: &Record) -> Option<(i64, Option<codec::EndReason>)> {
    match record {
        Record::NetworkFlow(NetworkFlow { end_ts, end, .. })
        | Record::FileFlow(FileFlow { end_ts, end, .. })
        | Record::ProcessFlow(ProcessFlow { end_ts, end, .. }) => Some((*end_ts, *end)),
        Record::Summary(r) => Some((r.end_ts, Some(r.end))),
        _ => None,
    }
}

/// What a flow read and wrote.
pub(super) fn volume(record: &Record) -> Option<Volume> {
    match record {
        Record::NetworkFlow(r) => Some(r.volume),
        Record::FileFlow(r) => Some(r.volume),
        Record::Summary(r) => Some(r.volume),
        _ => None,
    }
}

/// The two ends of a network record.
pub(super) fn endpoints(record: &Record) -> Option<Endpoints> {
    match record {
        Record::NetworkFlow(r) => Some(r.ends),
        Record::NetworkEvent(r) => Some(r.ends),
        _ => None,
    }
}

/// Operation bits in words: names for events, a mask of letters for flows.
pub(super) fn operations(ops: u64) -> String {
    const FILE_EVENTS: [(u64, &str); 6] = [
        (op::MKDIR, "MKDIR"),
        (op::RMDIR, "RMDIR"),
        (op::LINK, "LINK"),
        (op::SYMLINK, "SYMLINK"),
        (op::UNLINK, "UNLINK"),
        (op::RENAME, "RENAME"),
    ];
    const PROCESS_EVENTS: [(u64, &str); 4] =
        [(op::CLONE, "CLONE"), (op::EXEC, "EXEC"), (op::EXIT, "EXIT"), (op::SETUID, "SETUID")];
    const EXTENSIONS: [(u64, &str); 16] = [
        (op::CHMOD, "CHMOD"),
        (op::CHOWN, "CHOWN"),
        (op::MOUNT, "MOUNT"),
        (op::UMOUNT, "UMOUNT"),
        (op::RESIZE, "RESIZE"),
        (op::MKNOD, "MKNOD"),
        (op::SETGID, "SETGID"),
        (op::CAPSET, "CAPSET"),
        (op::PTRACE, "PTRACE"),
        (op::LOAD_MODULE, "LOAD_MODULE"),
        (op::UNLOAD_MODULE, "UNLOAD_MODULE"),
        (op::LOAD_BPF, "LOAD_BPF"),
        (op::UNSHARE, "UNSHARE"),
        (op::MEMFD, "MEMFD"),
        (op::BIND, "BIND"),
        (op::LISTEN, "LISTEN"),
    ];
    const LETTERS: [(u64, char); 11] = [
        (op::OPEN, 'O'),
        (op::ACCEPT, 'A'),
        (op::CONNECT, 'C'),
        (op::WRITE_SEND, 'W'),
        (op::READ_RECV, 'R'),
        (op::SETNS, 'N'),
        (op::MMAP, 'M'),
        (op::SHUTDOWN, 'S'),
        (op::CLOSE, 'C'),
        (op::TRUNCATE, 'T'),
        (op::DIGEST, 'D'),
    ];
    // A flow that also did what has a letter keeps the letters.
    let extensions = if ops & op::SYSFLOW_V5 == 0 { EXTENSIONS.as_slice() } else { &[] };
    for names in [FILE_EVENTS.as_slice(), PROCESS_EVENTS.as_slice(), extensions] {
        let words: String =
            names.iter().filter(|(bit, _)| ops & bit != 0).map(|(_, name)| *name).collect();
        if !words.is_empty() {
            return words;
        }
    }
    LETTERS.iter().map(|(bit, letter)| if ops & bit != 0 { *letter } else { ' ' }).collect()
}

/// Why the call that a record tells of failed: the name of its errno, or its number where it has
/// none.
fn failure(record: &Record) -> Option<String> {
    let ret = match record {
        // A status, which is no errno.
        Record::ProcessEvent(event) if event.ops & op::EXIT != 0 => None,
        Record::ProcessEvent(event) => Some(event.ret),
        Record::FileEvent(event) => Some(event.ret),
        Record::NetworkEvent(event) => Some(event.ret),
        Record::NetworkFlow(flow) => flow.error,
        _ => None,
    };
    // As the kernel returns it.
    let number = ret.filter(|ret| (-4095..0).contains(ret))?.unsigned_abs();
    Some(match Errno::from_raw(number.cast_signed()) {
        Errno::UnknownErrno => number.to_string(),
        errno => format!("{errno:?}"),
    })
}

/// The file or connection that a record is about.
pub(super) fn resource(row: &Row<'_>) -> String {
    if let Some(ends) = endpoints(row.record) {
        return format!(
            "{}:{}-{}:{}",
            bracketed(ends.source),
            ends.source_port,
            bracketed(ends.destination),
            ends.destination_port
        );
    }
    if let Record::Summary(summary) = row.record {
        let whose = match summary.session {
            true => format!("session, {} processes", summary.processes),
            false => "process".to_owned(),
        };
        let subject = summary.subject.name();
        return format!("{} records, {} {subject} ({whose})", summary.records, summary.objects);
    }
    let mut text = row.file.map(|file| file.path.clone()).unwrap_or_default();
    if let Some(new) = row.new_file {
        text.push_str(", ");
        text.push_str(&new.path);
    }
    text
}

/// An address as it stands before a colon.
fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Text that is safe in a terminal and stays on its line: control characters are spelled out.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

/// The cells of `sysprint`'s default columns, in its order, without the record's number.
pub(super) fn cells(row: &Row<'_>) -> [Cell; 12] {
    let number =
        |number: Option<i64>| Cell::Text(number.map(|n| n.to_string()).unwrap_or_default());
    let text = |text: Option<&String>| Cell::Text(text.map(|t| escape(t)).unwrap_or_default());
    let volume = volume(row.record);
    let ends = endpoints(row.record);
    let resource = escape(&resource(row));
    [
        number(Some(ts(row.record))),
        Cell::Text(kind(row.record).to_owned()),
        text(row.process.map(|process| &process.exe)),
        // What was done stands in front.
        Cell::Head(row.process.map(|process| escape(&process.args)).unwrap_or_default()),
        number(row.parent.map(|parent| parent.oid.hpid)),
        number(row.process.map(|process| process.oid.hpid)),
        number(tid(row.record)),
        match (ops(row.record).map(operations).unwrap_or_default(), failure(row.record)) {
            (operations, None) => Cell::Text(operations),
            (operations, Some(errno)) => Cell::Whole(format!("{} {errno}", operations.trim_end())),
        },
        // An address is of no use without its end, and IPv6 ones are long.
        if ends.is_some_and(|ends| ends.source.is_ipv6() || ends.destination.is_ipv6()) {
            Cell::Whole(resource)
        } else {
            Cell::Text(resource)
        },
        number(volume.map(|volume| volume.read_bytes)),
        number(volume.map(|volume| volume.write_bytes)),
        text(row.container.map(|container| &container.id)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_names_or_a_mask_of_eleven_letters() {
        assert_eq!(operations(op::MKDIR), "MKDIR");
        assert_eq!(operations(op::CLONE), "CLONE");
        assert_eq!(operations(op::LISTEN), "LISTEN");
        assert_eq!(operations(op::WRITE_SEND | op::CHOWN), "   W       ");
        assert_eq!(operations(op::OPEN | op::MMAP | op::CLOSE), "O     M C  ");
        assert_eq!(operations(op::CONNECT | op::WRITE_SEND | op::TRUNCATE), "  CW     T ");
        assert_eq!(operations(0), " ".repeat(11));
    }

    #[test]
    fn a_terminal_never_sees_control_characters() {
        assert_eq!(escape("a\n\x1b[31mb\u{9b}ü"), "a\\n\\u{1b}[31mb\\u{9b}ü");
    }
}
