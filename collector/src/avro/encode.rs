//! The bytes of each version 5 record, on the way out. What the schema has no place for is
//! left out here; whether a record may go out at all is `sysflow`'s word.

use std::net::IpAddr;

use codec::op;

use crate::sysflow::{Endpoints, Oid, Pod, Record, Volume};

/// Appends `record`. Bits of `ops` beyond version 5 are masked; an address that is not IPv4
/// and a file that is not known become zeros. `false`, and nothing is appended, where the schema
/// has no such record.
pub(crate) fn encode(out: &mut Vec<u8>, record: &Record) -> bool {
    match record {
        Record::Header(r) => {
            put_long(out, 0);
            put_long(out, r.version);
            put_text(out, &r.exporter);
            put_text(out, &r.ip);
            put_text(out, &r.filename);
        }
        Record::Container(r) => {
            put_long(out, 1);
            put_text(out, &r.id);
            put_text(out, &r.name);
            put_text(out, &r.image);
            put_text(out, &r.image_id);
            put_long(out, r.kind.into());
            put_bool(out, r.privileged);
            put_option(out, r.pod_id.as_deref(), put_text);
        }
        Record::Process(r) => {
            put_long(out, 2);
            put_long(out, r.state.into());
            put_oid(out, r.oid);
            put_option(out, r.parent, put_oid);
            put_long(out, r.ts);
            put_text(out, &r.exe);
            put_text(out, &r.args);
            put_long(out, r.uid.into());
            put_text(out, &r.user);
            put_long(out, r.gid.into());
            put_text(out, &r.group);
            put_bool(out, r.tty);
            put_option(out, r.container_id.as_deref(), put_text);
            put_bool(out, r.entry);
            put_text(out, &r.cwd);
            put_array(out, &r.env, |out, item| put_text(out, item));
        }
        Record::File(r) => {
            put_long(out, 3);
            put_long(out, r.state.into());
            out.extend_from_slice(&r.oid);
            put_long(out, r.ts);
            put_long(out, r.restype.into());
            put_text(out, &r.path);
            put_option(out, r.container_id.as_deref(), put_text);
        }
        Record::ProcessEvent(r) => {
            put_long(out, 4);
            put_subject(out, r.process, r.ts, r.tid, r.ops);
            put_array(out, &r.args, |out, item| put_text(out, item));
            put_long(out, r.ret.into());
        }
        Record::NetworkFlow(r) => {
            put_long(out, 5);
            put_subject(out, r.process, r.ts, r.tid, r.ops);
            put_long(out, r.end_ts);
            put_endpoints(out, &r.ends);
            put_long(out, r.fd.into());
            put_volume(out, r.volume);
        }
        Record::FileFlow(r) => {
            put_long(out, 6);
            put_subject(out, r.process, r.ts, r.tid, r.ops);
            put_long(out, r.open_flags.into());
            put_long(out, r.end_ts);
            out.extend_from_slice(&r.file.oid.unwrap_or_default());
            put_long(out, r.fd.into());
            put_volume(out, r.volume);
        }
        Record::FileEvent(r) => {
            put_long(out, 7);
            put_subject(out, r.process, r.ts, r.tid, r.ops);
            out.extend_from_slice(&r.file.oid.unwrap_or_default());
            put_long(out, r.ret.into());
            put_option(out, r.new_file, |out, file| {
                out.extend_from_slice(&file.oid.unwrap_or_default());
            });
        }
        Record::NetworkEvent(r) => {
            put_long(out, 8);
            put_subject(out, r.process, r.ts, r.tid, r.ops);
            put_endpoints(out, &r.ends);
            put_long(out, r.ret.into());
        }
        Record::ProcessFlow(r) => {
            put_long(out, 9);
            put_oid(out, r.process);
            put_long(out, r.ts);
            put_long(out, r.threads_cloned);
            put_long(out, (r.ops & op::SYSFLOW_V5).cast_signed());
            put_long(out, r.end_ts);
            put_long(out, r.threads_exited);
            put_long(out, r.clone_errors);
        }
        Record::Pod(r) => encode_pod(out, r),
        Record::K8sEvent(r) => {
            put_long(out, 11);
            put_long(out, r.kind.into());
            put_long(out, r.action.into());
            put_long(out, r.ts);
            put_text(out, &r.message);
        }
        Record::Summary(_) => return false,
    }
    true
}

fn encode_pod(out: &mut Vec<u8>, pod: &Pod) {
    let put_number = |out: &mut Vec<u8>, number: &i64| put_long(out, *number);
    let put_pair = |out: &mut Vec<u8>, (key, value): &(String, String)| {
        put_text(out, key);
        put_text(out, value);
    };
    put_long(out, 10);
    put_long(out, pod.ts);
    put_text(out, &pod.id);
    put_text(out, &pod.name);
    put_text(out, &pod.node);
    put_array(out, &pod.host_ip, put_number);
    put_array(out, &pod.internal_ip, put_number);
    put_text(out, &pod.namespace);
    put_long(out, pod.restarts);
    put_array(out, &pod.labels, put_pair);
    put_array(out, &pod.selectors, put_pair);
    put_array(out, &pod.services, |out, service| {
        put_text(out, &service.name);
        put_text(out, &service.id);
        put_text(out, &service.namespace);
        put_array(out, &service.ports, |out, port| {
            put_long(out, port.port.into());
            put_long(out, port.target_port.into());
            put_long(out, port.node_port.into());
            put_text(out, &port.protocol);
        });
        put_array(out, &service.cluster_ip, put_number);
    });
}

/// Appends an Avro int or long: zig-zag, then seven bits a byte, lowest first.
pub(super) fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest > 0x7f {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends length and bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(value.into());
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        None => put_long(out, 0),
        Some(value) => {
            put_long(out, 1);
            put(out, value);
        }
    }
}

/// Arrays, and maps as arrays of pairs: one block, and the empty block that ends it.
fn put_array<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        put_long(out, items.len() as i64);
        for item in items {
            put(out, item);
        }
    }
    put_long(out, 0);
}

fn put_oid(out: &mut Vec<u8>, oid: Oid) {
    put_long(out, oid.create_ts);
    put_long(out, oid.hpid);
}

fn put_subject(out: &mut Vec<u8>, process: Oid, ts: i64, tid: i64, ops: u64) {
    put_oid(out, process);
    put_long(out, ts);
    put_long(out, tid);
    put_long(out, (ops & op::SYSFLOW_V5).cast_signed());
}

fn put_endpoints(out: &mut Vec<u8>, ends: &Endpoints) {
    put_address(out, ends.source);
    put_long(out, ends.source_port.into());
    put_address(out, ends.destination);
    put_long(out, ends.destination_port.into());
    put_long(out, ends.protocol.into());
}

/// The four bytes in network order, read as a little-endian int.
fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    let octets = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    put_long(out, i32::from_le_bytes(octets).into());
}

fn put_volume(out: &mut Vec<u8>, volume: Volume) {
    put_long(out, volume.read_ops);
    put_long(out, volume.write_ops);
    put_long(out, volume.read_bytes);
    put_long(out, volume.write_bytes);
}
