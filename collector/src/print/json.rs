//! One flat JSON object a row: the keys of `sysprint -A -o flatjson` in its order, and ours
//! behind them.
//!
//! Where `sysprint` has no value it says `null` for numbers and `""` for texts, with a few
//! exceptions that are kept. Our keys always stand there; `null` where nothing is known.

use codec::{EndReason, file, network, process};
use serde_json::{Map, Value, json};

use super::join::Row;
use super::text;
use crate::capture::Origin;
use crate::sysflow::{
    CONTAINER_TYPES, Inode, K8S_ACTIONS, K8S_COMPONENTS, OBJECT_STATES, Pod, Process, Record,
};

/// Version of `sysprint`'s JSON.
const JSON_VERSION: &str = "4";

/// The object of a row.
pub(super) fn object(row: &Row<'_>, origin: Option<&Origin>) -> Map<String, Value> {
    let mut out = Object(Map::new());
    put_record(&mut out, row);
    put_process(&mut out, "proc", row.process, &PROCESS_KEYS);
    put_process(&mut out, "pproc", row.parent, &PARENT_KEYS);
    put_resource(&mut out, row);
    put_surroundings(&mut out, row);
    put_extensions(&mut out, row, origin);
    out.0
}

struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// A value, or `""`.
    fn put_or_empty(&mut self, key: &str, value: Option<impl Into<Value>>) {
        self.put(key, value.map_or_else(|| Value::from(""), Into::into));
    }
}

fn put_record(out: &mut Object, row: &Row<'_>) {
    let record = row.record;
    let state = row.process.map(|p| p.state).or(row.file.map(|f| f.state));
    let ret = match record {
        Record::ProcessEvent(r) => Some(r.ret),
        Record::FileEvent(r) => Some(r.ret),
        Record::NetworkEvent(r) => Some(r.ret),
        _ => None,
    };
    let ts = text::ts(record);
    let end_ts = text::end(record).map(|(end_ts, _)| end_ts);
    out.put("version", JSON_VERSION);
    out.put("type", text::kind(record));
    out.put_or_empty("state", state.and_then(|s| OBJECT_STATES.get(usize::from(s)).copied()));
    out.put_or_empty("opflags", text::ops(record).map(text::operations));
    out.put_or_empty("opflags_bitmap", text::ops(record));
    out.put("ret", ret);
    out.put("ts", iso_8601(ts));
    out.put("ts_uts", ts);
    out.put_or_empty("endts", end_ts.map(iso_8601));
    out.put("endts_uts", end_ts);
    out.put("proc.pid", row.process.map(|p| p.oid.hpid));
    out.put("proc.tid", text::tid(record));
}

/// `sysprint` names a process's fields in one order and its parent's in another.
const PROCESS_KEYS: [&str; 11] =
    ["uid", "user", "gid", "group", "cwd", "exe", "args", "tty", "entry", "env", "createts"];
const PARENT_KEYS: [&str; 12] =
    ["pid", "gid", "uid", "group", "tty", "entry", "env", "user", "cwd", "exe", "args", "createts"];

fn put_process(out: &mut Object, whose: &str, process: Option<&Process>, keys: &[&str]) {
    for key in keys {
        let value = match (*key, process) {
            ("pid", p) => json!(p.map(|p| p.oid.hpid)),
            ("uid", p) => json!(p.map(|p| p.uid)),
            ("gid", p) => json!(p.map(|p| p.gid)),
            ("createts", None) if whose == "proc" => Value::Null,
            (_, None) => json!(""),
            ("user", Some(p)) => json!(p.user),
            ("group", Some(p)) => json!(p.group),
            ("cwd", Some(p)) => json!(p.cwd),
            ("exe", Some(p)) => json!(p.exe),
            ("args", Some(p)) => json!(p.args),
            ("tty", Some(p)) => json!(p.tty),
            ("entry", Some(p)) => json!(p.entry),
            ("env", Some(p)) => {
                let set = p.env.iter().filter(|item| !item.is_empty() && *item != "=");
                json!(set.map(String::as_str).collect::<Vec<_>>().join(";"))
            }
            (_, Some(p)) => json!(p.oid.create_ts),
        };
        out.put(&format!("{whose}.{key}"), value);
    }
}

fn put_resource(out: &mut Object, row: &Row<'_>) {
    let (fd, open_flags) = match row.record {
        Record::FileFlow(r) => (Some(r.fd), Some(r.open_flags)),
        Record::NetworkFlow(r) => (Some(r.fd), None),
        _ => (None, None),
    };
    let ends = text::endpoints(row.record);
    let volume = text::volume(row.record);
    let threads = match row.record {
        Record::ProcessFlow(r) => Some(r),
        _ => None,
    };
    let letter = |restype: i32| {
        u32::try_from(restype).ok().and_then(char::from_u32).unwrap_or('?').to_string()
    };
    out.put_or_empty("file.fd", fd);
    out.put_or_empty("file.path", row.file.map(|f| f.path.as_str()));
    out.put_or_empty("file.newpath", row.new_file.map(|f| f.path.as_str()));
    out.put_or_empty("file.type", row.file.map(|f| letter(f.restype)));
    out.put_or_empty("file.openflags", open_flags);
    out.put_or_empty("net.proto", ends.map(|e| e.protocol));
    out.put("net.sport", ends.map(|e| e.source_port));
    out.put("net.dport", ends.map(|e| e.destination_port));
    out.put_or_empty("net.sip", ends.map(|e| e.source.to_string()));
    out.put_or_empty("net.dip", ends.map(|e| e.destination.to_string()));
    out.put("res", text::resource(row));
    out.put("flow.rbytes", volume.map(|v| v.read_bytes));
    out.put("flow.rops", volume.map(|v| v.read_ops));
    out.put("flow.wbytes", volume.map(|v| v.write_bytes));
    out.put("flow.wops", volume.map(|v| v.write_ops));
    out.put("pf.nthreads", threads.map(|t| t.threads_cloned));
    out.put("pf.nexits", threads.map(|t| t.threads_exited));
    out.put("pf.nerrors", threads.map(|t| t.clone_errors));
}

fn put_surroundings(out: &mut Object, row: &Row<'_>) {
    let container = row.container;
    let container_type = container.and_then(|c| CONTAINER_TYPES.get(usize::from(c.kind)).copied());
    out.put_or_empty("container.id", container.map(|c| c.id.as_str()));
    out.put_or_empty("container.name", container.map(|c| c.name.as_str()));
    out.put_or_empty("container.imageid", container.map(|c| c.image_id.as_str()));
    out.put_or_empty("container.image", container.map(|c| c.image.as_str()));
    out.put_or_empty("container.type", container_type);
    out.put_or_empty("container.privileged", container.map(|c| c.privileged));
    out.put_or_empty("pod.id", row.pod.map(|p| p.id.as_str()));
    out.put_or_empty("pod.name", row.pod.map(|p| p.name.as_str()));
    out.put_or_empty("pod.nname", row.pod.map(|p| p.node.as_str()));
    out.put_or_empty("pod.hostip", row.pod.map(|p| addresses(&p.host_ip)));
    out.put_or_empty("pod.internalip", row.pod.map(|p| addresses(&p.internal_ip)));
    out.put_or_empty("pod.ns", row.pod.map(|p| p.namespace.as_str()));
    out.put("pod.rstrtcnt", row.pod.map(|p| p.restarts));
    out.put_or_empty("pod.services", row.pod.map(services));
    out.put_or_empty("node.id", row.header.map(|h| h.exporter.as_str()));
    out.put_or_empty("node.ip", row.header.map(|h| h.ip.as_str()));
    out.put_or_empty("filename", row.header.map(|h| h.filename.as_str()));
    out.put_or_empty("schema", row.header.map(|h| h.version));
    out.put("tags", json!([]));
    let event = match row.record {
        Record::K8sEvent(event) => Some(event),
        _ => None,
    };
    let named = |names: &[&'static str], index: u8| names.get(usize::from(index)).copied();
    out.put_or_empty("k8s.action", event.and_then(|e| named(&K8S_ACTIONS, e.action)));
    out.put_or_empty("k8s.kind", event.and_then(|e| named(&K8S_COMPONENTS, e.kind)));
    out.put_or_empty("k8s.msg", event.map(|e| e.message.as_str()));
}

fn put_extensions(out: &mut Object, row: &Row<'_>, origin: Option<&Origin>) {
    let reason = text::end(row.record).and_then(|(_, reason)| reason).map(end_reason);
    let network = match row.record {
        Record::NetworkFlow(flow) => flow.error.map(|error| (error, flow.flags)),
        _ => None,
    };
    let (inode, new_inode) = match row.record {
        Record::FileFlow(r) => (r.file.inode, None),
        Record::FileEvent(r) => (r.file.inode, r.new_file.and_then(|file| file.inode)),
        _ => (None, None),
    };
    let arguments = match row.record {
        Record::ProcessEvent(event) => Some(json!(event.args)),
        Record::FileEvent(event) => Some(json!(event.args)),
        _ => None,
    };
    out.put("record.kind", record_kind(row.record));
    out.put("record.args", arguments);
    out.put("endreason", reason);
    out.put("net.error", network.map(|(error, _)| error));
    out.put("net.flags", network.map(|(_, flags)| names(flags, &NETWORK_FLAGS)));
    for (key, inode) in [("file", inode), ("file.new", new_inode)] {
        let known = |number: u64| (number != 0).then_some(number);
        let Inode { device, number, flags } = inode.unwrap_or_default();
        out.put(&format!("{key}.device"), known(device.into()));
        out.put(&format!("{key}.inode"), known(number));
        out.put(&format!("{key}.flags"), inode.map(|_| names(flags, &FILE_FLAGS)));
    }
    out.put("proc.flags", row.process.map(|p| names(p.flags, &PROCESS_FLAGS)));
    out.put("pproc.flags", row.parent.map(|p| names(p.flags, &PROCESS_FLAGS)));
    for (whose, process) in [("proc", row.process), ("pproc", row.parent)] {
        out.put(&format!("{whose}.argv"), process.map(|p| json!(p.argv)));
        let script = process.map(|p| p.script.as_str()).filter(|script| !script.is_empty());
        out.put(&format!("{whose}.script"), script);
        let namespace = process.map(|p| p.mount_namespace).filter(|number| *number != 0);
        out.put(&format!("{whose}.mount_namespace"), namespace);
    }
    let summary = match row.record {
        Record::Summary(summary) => Some(summary),
        _ => None,
    };
    out.put("summary.subject", summary.map(|s| s.subject.name()));
    out.put("summary.session", summary.map(|s| s.session));
    out.put("summary.records", summary.map(|s| s.records));
    out.put("summary.objects", summary.map(|s| s.objects));
    out.put("summary.processes", summary.map(|s| s.processes));
    out.put("container.full_id", row.container.map(|c| c.full_id.as_str()));
    out.put("stream.boot", origin.map(|o| o.boot.as_str()));
    out.put("stream.run", origin.map(|o| o.run.as_str()));
    out.put("stream.class", origin.map(|o| o.class));
    out.put("stream.generation", origin.map(|o| o.generation));
    out.put("stream.sequence", origin.map(|o| o.sequence));
    let clock = |origin: &Origin| if origin.has_wall_clock { "wall" } else { "boot" };
    out.put("stream.clock", origin.map(clock));
}

const NETWORK_FLAGS: [(u32, &str); 2] =
    [(network::ROLE_ASSUMED, "role_assumed"), (network::PEER_FROM_PROGRAM, "peer_from_program")];
const FILE_FLAGS: [(u32, &str); 6] = [
    (file::DELETED, "deleted"),
    (file::PATH_TRUNCATED, "path_truncated"),
    (file::DETACHED, "detached"),
    (file::AS_NAMED, "as_named"),
    (file::OUTSIDE_ROOT, "outside_root"),
    (file::CHANGED_ROOT, "changed_root"),
];
const PROCESS_FLAGS: [(u32, &str); 11] = [
    (process::PRE_EXISTING, "pre_existing"),
    (process::START_COARSE, "start_coarse"),
    (process::ARGS_TRUNCATED, "args_truncated"),
    (process::PATH_TRUNCATED, "path_truncated"),
    (process::EXE_DELETED, "exe_deleted"),
    (process::COMPAT, "compat"),
    (process::INCOMPLETE, "incomplete"),
    (process::REDACTED, "redacted"),
    (process::EXE_DETACHED, "exe_detached"),
    (process::ENV_TRUNCATED, "env_truncated"),
    (process::IO_URING, "io_uring"),
];

/// The names of the bits that are set. A bit without a name, of a later agent, is written as
/// its number.
fn names(flags: u32, known: &[(u32, &str)]) -> Value {
    let bits = (0..32).map(|shift| 1_u32 << shift).filter(|bit| flags & bit != 0);
    bits.map(|bit| match known.iter().find(|(flag, _)| *flag == bit) {
        Some((_, name)) => json!(name),
        None => json!(bit),
    })
    .collect()
}

fn end_reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Unknown => "unknown",
        EndReason::IdleTimeout => "idle_timeout",
        EndReason::ActiveTimeout => "active_timeout",
        EndReason::EndDetected => "end_detected",
        EndReason::ForcedEnd => "forced_end",
        EndReason::LackOfResources => "lack_of_resources",
    }
}

fn record_kind(record: &Record) -> &'static str {
    match record {
        Record::Header(_) => "SFHeader",
        Record::Container(_) => "Container",
        Record::Process(_) => "Process",
        Record::File(_) => "File",
        Record::ProcessEvent(_) => "ProcessEvent",
        Record::NetworkFlow(_) => "NetworkFlow",
        Record::FileFlow(_) => "FileFlow",
        Record::FileEvent(_) => "FileEvent",
        Record::NetworkEvent(_) => "NetworkEvent",
        Record::ProcessFlow(_) => "ProcessFlow",
        Record::Pod(_) => "Pod",
        Record::K8sEvent(_) => "K8sEvent",
        Record::Summary(_) => "Summary",
    }
}

/// Four octets, the first in the lowest byte.
fn addresses(numbers: &[i64]) -> Value {
    let text = |number: &i64| {
        let [a, b, c, d, ..] = number.to_le_bytes();
        format!("{a}.{b}.{c}.{d}")
    };
    numbers.iter().map(text).collect()
}

fn services(pod: &Pod) -> Value {
    let service = |service: &crate::sysflow::Service| {
        let ports: Value = service
            .ports
            .iter()
            .map(|port| {
                json!({
                    "port": port.port,
                    "targetPort": port.target_port,
                    "nodePort": port.node_port,
                    "proto": port.protocol,
                })
            })
            .collect();
        json!({
            "name": service.name,
            "id": service.id,
            "namespace": service.namespace,
            "portList": ports,
            "clusterIP": addresses(&service.cluster_ip),
        })
    };
    pod.services.iter().map(service).collect()
}

/// A moment as Python's `datetime.isoformat` writes it: microseconds, rounded from a double as
/// `sysprint` does, and left out where they are zero.
fn iso_8601(ts_ns: i64) -> String {
    let seconds = ts_ns as f64 / 1e9;
    let mut whole = seconds.trunc();
    let mut micros = ((seconds - whole) * 1e6).round_ties_even();
    if micros >= 1e6 {
        micros -= 1e6;
        whole += 1.0;
    } else if micros < 0.0 {
        micros += 1e6;
        whole -= 1.0;
    }
    let Ok(t) = time::OffsetDateTime::from_unix_timestamp(whole as i64) else {
        return ts_ns.to_string();
    };
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    let (hour, minute, second) = t.to_hms();
    let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if micros == 0.0 { text } else { format!("{text}.{:06}", micros as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_python_writes_them() {
        assert_eq!(iso_8601(1_554_906_981_522_895_947), "2019-04-10T14:36:21.522896");
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00");
        assert_eq!(iso_8601(999_999_999), "1970-01-01T00:00:01");
        assert_eq!(iso_8601(-500_000_000), "1969-12-31T23:59:59.500000");
    }

    #[test]
    fn flags_without_a_name_are_numbers() {
        assert_eq!(names(1 | 1 << 30, &NETWORK_FLAGS), json!(["role_assumed", 1_u32 << 30]));
    }
}
