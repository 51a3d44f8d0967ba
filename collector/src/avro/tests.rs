//! Byte-exact vectors of the reference collector, round trips, and hostile files.

use std::net::{IpAddr, Ipv4Addr};

use super::decode::Cursor;
use super::encode::{encode, put_bytes, put_long};
use super::write::BLOCK_BYTES;
use super::{Reader, Writer};
use crate::sysflow::{
    Container, Endpoints, File, FileEvent, FileFlow, FileRef, Header, K8sEvent, NetworkEvent,
    NetworkFlow, Oid, Pod, Port, Process, ProcessEvent, ProcessFlow, Record, Service, Volume,
};

/// Sixteen bytes that occur nowhere else in the files made here.
const SYNC: [u8; 16] = *b"a marker of sync";

const PID_1: Oid = Oid { create_ts: 0, hpid: 1 };
const SERVER: Oid = Oid { create_ts: 0, hpid: 13823 };
const LD_CACHE: &str = "8d57b8c634ff3c042c2d003a93f46a7bc6cc86da";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn foid(text: &str) -> FileRef {
    FileRef { oid: Some(unhex(text).try_into().unwrap()), inode: None }
}

fn local(source_port: i32, destination_port: i32) -> Endpoints {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Endpoints {
        source: localhost,
        source_port,
        destination: localhost,
        destination_port,
        protocol: 6,
    }
}

/// Bytes that the reference collector wrote, and what they say.
fn vectors() -> Vec<(Record, &'static str)> {
    vec![
        (
            Record::Header(Header {
                version: 5,
                exporter: "tests".into(),
                ip: String::new(),
                filename: "/usr/local/sysflow/tests/client-server/tcp-client-server.sf".into(),
            }),
            "000a0a746573747300762f7573722f6c6f63616c2f737973666c6f772f74657374732f636c69656e742d\
             7365727665722f7463702d636c69656e742d7365727665722e7366",
        ),
        (
            Record::Process(Process {
                state: 2,
                oid: PID_1,
                ts: 1_553_543_280_704_111_050,
                exe: "/usr/lib/systemd/systemd".into(),
                args: "--system --deserialize 23".into(),
                user: "root".into(),
                group: "root".into(),
                entry: true,
                cwd: "/".into(),
                ..Process::default()
            }),
            "0404000200948782d9bfd8a58f2b302f7573722f6c69622f73797374656d642f73797374656d64322d2d\
             73797374656d202d2d646573657269616c697a652032330008726f6f740008726f6f74000001022f00",
        ),
        (
            Record::ProcessEvent(ProcessEvent {
                process: SERVER,
                ts: 1_553_543_280_704_111_050,
                tid: 13823,
                ops: 2,
                args: vec![],
                ret: 0,
            }),
            "0800fed701948782d9bfd8a58f2bfed701040000",
        ),
        (
            Record::File(File {
                state: 2,
                oid: unhex(LD_CACHE).try_into().unwrap(),
                ts: 1_553_543_280_704_232_185,
                restype: 'f' as i32,
                path: "/etc/ld.so.cache".into(),
                container_id: None,
            }),
            "06048d57b8c634ff3c042c2d003a93f46a7bc6cc86daf2eb90d9bfd8a58f2bcc01202f6574632f6c642e\
             736f2e636163686500",
        ),
        (
            Record::FileFlow(FileFlow {
                process: SERVER,
                ts: 1_553_543_280_704_232_185,
                tid: 13823,
                ops: 9344,
                open_flags: 4097,
                end_ts: 1_553_543_280_704_242_055,
                file: foid(LD_CACHE),
                fd: 3,
                volume: Volume::default(),
                end: None,
            }),
            "0c00fed701f2eb90d9bfd8a58f2bfed70180920182408e8692d9bfd8a58f2b8d57b8c634ff3c042c2d00\
             3a93f46a7bc6cc86da0600000000",
        ),
        (
            Record::NetworkFlow(NetworkFlow {
                process: Oid { create_ts: 0, hpid: 13824 },
                ts: 1_553_543_282_832_225_890,
                tid: 13824,
                ops: 2880,
                end_ts: 1_553_543_292_823_002_683,
                ends: local(40556, 8080),
                fd: 3,
                volume: Volume { read_ops: 1, write_ops: 1, read_bytes: 80, write_bytes: 80 },
                end: None,
                error: None,
                flags: 0,
            }),
            "0a0080d801c4d9c5c6cfd8a58f2b80d801802df6f8befe99d9a58f2bfe818010d8f904fe818010a07e0c\
             060202a001a001",
        ),
        (
            Record::FileEvent(FileEvent {
                process: Oid { create_ts: 0, hpid: 21847 },
                ts: 1_554_914_834_718_229_740,
                tid: 21847,
                ops: 32768,
                file: foid("916afa22696236e887df5f1e5025c2adee44e3c9"),
                ret: 0,
                new_file: None,
                args: Vec::new(),
            }),
            "0e00aed502d893ecb5b9b395942baed502808004916afa22696236e887df5f1e5025c2adee44e3c90000",
        ),
    ]
}

/// Records of the kinds for which the reference has no vector.
fn other_kinds() -> Vec<Record> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    vec![
        Record::Container(Container {
            id: "e7a89f97e548".into(),
            name: "web".into(),
            image: "nginx:1".into(),
            image_id: "sha".into(),
            kind: 7,
            privileged: true,
            pod_id: Some("pod-1".into()),
            full_id: String::new(),
        }),
        Record::FileEvent(FileEvent {
            file: foid(LD_CACHE),
            new_file: Some(foid(LD_CACHE)),
            ops: 1 << 20,
            ret: -2,
            ..FileEvent::default()
        }),
        Record::NetworkEvent(NetworkEvent {
            process: PID_1,
            ts: i64::MAX,
            tid: -1,
            ops: 64,
            ends: local(1, 2),
            ret: i32::MIN,
        }),
        Record::ProcessFlow(ProcessFlow {
            process: PID_1,
            ts: i64::MIN,
            threads_cloned: 3,
            ops: 5,
            end_ts: 2,
            threads_exited: 1,
            clone_errors: 4,
            end: None,
        }),
        Record::Pod(Pod {
            ts: 1,
            id: "pod-1".into(),
            name: "web".into(),
            node: "node".into(),
            host_ip: vec![16_777_343],
            internal_ip: vec![1, 2],
            namespace: "default".into(),
            restarts: 2,
            labels: vec![pair("a", "b")],
            selectors: vec![pair("c", "d"), pair("e", "f")],
            services: vec![Service {
                name: "s".into(),
                id: "i".into(),
                namespace: "n".into(),
                ports: vec![Port {
                    port: 80,
                    target_port: 8080,
                    node_port: 0,
                    protocol: "TCP".into(),
                }],
                cluster_ip: vec![16_777_343],
            }],
        }),
        Record::K8sEvent(K8sEvent { kind: 9, action: 5, ts: 7, message: "{}".into() }),
    ]
}

#[test]
fn records_are_the_bytes_of_the_reference_collector() {
    for (record, hex) in vectors() {
        let hex: String = hex.split_whitespace().collect();
        let mut bytes = Vec::new();
        encode(&mut bytes, &record);
        assert_eq!(crate::layout::hex(&bytes), hex, "{record:?}");
        let mut cursor = Cursor::new(&bytes);
        assert_eq!(cursor.record().unwrap(), record);
        assert_eq!(cursor.left(), 0);
    }
}

#[test]
fn every_kind_survives_a_file_and_blocks_are_cut_at_80_kb() {
    let mut records: Vec<Record> = vectors().into_iter().map(|(record, _)| record).collect();
    records.extend(other_kinds());
    let all: Vec<Record> = records.iter().cycle().take(5000).cloned().collect();
    let mut writer = Writer::new(Vec::new(), SYNC).unwrap();
    all.iter().for_each(|record| writer.push(record).unwrap());
    let file = writer.finish().unwrap();
    let read: Vec<Record> = Reader::new(file.as_slice()).unwrap().map(Result::unwrap).collect();
    assert!(read == all);
    let mut raw = Vec::new();
    assert!(all.iter().all(|record| encode(&mut raw, record)));
    let blocks = file.windows(16).filter(|window| *window == SYNC).count() - 1;
    assert_eq!(blocks, raw.len() / BLOCK_BYTES + 1);
}

#[test]
fn the_reference_collectors_files_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/samples");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let reader = Reader::new(std::fs::File::open(&path).unwrap());
        if path.ends_with("nginx-nginx.sf") {
            // Written before schema version 1.
            let error = reader.err().unwrap();
            assert_eq!(error.to_string(), "schema is not SysFlow version 5");
            continue;
        }
        assert!(reader.unwrap().all(|record| record.is_ok()), "{}", path.display());
        files += 1;
    }
    assert!(files >= 10);
}

/// Reads as much as there is; the point is that this ends and does not panic.
fn read_all(bytes: &[u8]) -> Result<usize, String> {
    let reader = Reader::new(bytes).map_err(|error| error.to_string())?;
    let records: Result<Vec<_>, _> = reader.collect();
    records.map(|records| records.len()).map_err(|error| error.to_string())
}

fn small_file() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), SYNC).unwrap();
    vectors().iter().for_each(|(record, _)| writer.push(record).unwrap());
    writer.finish().unwrap()
}

#[test]
fn a_cut_file_is_an_error_except_between_blocks() {
    let file = small_file();
    let header = file.windows(16).position(|window| window == SYNC).unwrap() + 16;
    for length in (0..file.len()).step_by(3).chain([header]) {
        let read = read_all(&file[..length]);
        if length == header {
            assert_eq!(read, Ok(0));
        } else {
            assert!(read.is_err(), "cut at {length}");
        }
    }
}

#[test]
fn flipped_bits_never_panic_and_never_add_records() {
    let file = small_file();
    let block = file.windows(16).position(|window| window == SYNC).unwrap();
    // Most of the header is the schema's text: a sample of it will do.
    for position in (0..block).step_by(31).chain(block..file.len()) {
        let mut bad = file.clone();
        bad[position] ^= 1 << (position % 8);
        if let Ok(records) = read_all(&bad) {
            assert!(records <= vectors().len());
        }
    }
}

#[test]
fn hostile_counts_and_lengths_are_refused() {
    // (what follows the union index of a process event, the complaint)
    let subject = [0, 0, 0, 0, 0];
    for (tail, complaint) in [
        (vec![0xfe, 0xff, 0xff, 0xff, 0x0f], "count is larger than the bytes that follow"),
        (vec![0x01, 0x00], "count is larger than the bytes that follow"),
        (vec![0x02, 0x01], "length is negative"),
        (vec![0x02, 0x7e], "bytes end early"),
        (vec![0xff; 11], "number is too long"),
    ] {
        let bytes: Vec<u8> = [8].into_iter().chain(subject).chain(tail).collect();
        assert_eq!(Cursor::new(&bytes).record().unwrap_err(), complaint);
    }
    assert!(Cursor::new(&[24]).record().is_err());
}

#[test]
fn a_block_that_unpacks_to_too_much_is_refused() {
    use std::io::Write;
    let mut file = Writer::new(Vec::new(), SYNC).unwrap().finish().unwrap();
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    deflate.write_all(&vec![0; 9 << 20]).unwrap();
    let data = deflate.finish().unwrap();
    put_long(&mut file, 1);
    put_bytes(&mut file, &data);
    file.extend_from_slice(&SYNC);
    assert_eq!(read_all(&file), Err("block unpacks to more than 8 MiB".to_owned()));
}
