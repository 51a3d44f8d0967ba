use codec::{Address, FrameWriter, Header, StreamKey};

use super::*;

fn hex(foid: Foid) -> String {
    crate::layout::hex(&foid)
}

#[test]
fn file_ids_are_those_of_the_reference_collector() {
    for (container, path, expected) in [
        ("", "/etc/ld.so.cache", "8d57b8c634ff3c042c2d003a93f46a7bc6cc86da"),
        ("e7a89f97e548", "/etc/ld.so.cache", "76909bad78fac3fafb052975c01b12c43f859bec"),
        ("8661fade8683", "/data/play", "e55d4503bb07cd3f6f0232689c5ce1087ed76178"),
        ("", "/tmp/tested_file.txt", "2a90715de04f0ae48baab3992e229dc5f6377cd2"),
        ("", "", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
    ] {
        assert_eq!(hex(foid(container, path.as_bytes())), expected);
    }
}

#[test]
fn truncate_says_that_a_flow_was_cut_or_not_seen_to_close() {
    use EndReason::*;
    for (ops, end, truncated) in [
        (op::CLOSE, EndDetected, false),
        (op::READ_RECV, EndDetected, true),
        (op::CLOSE, ForcedEnd, true),
        (op::READ_RECV, LackOfResources, true),
        (op::READ_RECV, ActiveTimeout, false),
        (op::READ_RECV, IdleTimeout, false),
        (op::READ_RECV, Unknown, false),
    ] {
        assert_eq!(flow_ops(ops, end) & op::TRUNCATE != 0, truncated, "{ops} {end:?}");
    }
    assert_eq!(cut(EndDetected), 0, "a process flow has no close to miss");
}

#[test]
fn mapped_addresses_become_ipv4_and_others_stay() {
    let mut octets = [0; 16];
    octets[10..].copy_from_slice(&[0xff, 0xff, 192, 168, 59, 100]);
    assert_eq!(address(Address::V6(octets)), IpAddr::from([192, 168, 59, 100]));
    octets[0] = 0x20;
    assert!(address(Address::V6(octets)).is_ipv6());
}

#[test]
fn texts_that_end_in_nul_keep_empty_ones() {
    assert_eq!(list(b""), Vec::<String>::new());
    assert_eq!(list(b"\0"), [""]);
    assert_eq!(list(b"-a\0\0b c\0"), ["-a", "", "b c"]);
    assert_eq!(list(b"cut sho"), ["cut sho"]);
    assert_eq!(list(b"\xff\0"), ["\u{fffd}"]);
}

/// A header as a decoded frame has it.
fn with_header(generation: u32, clock_ns: Option<i64>, then: impl FnOnce(&Header<'_>)) {
    let clock =
        clock_ns.map(|offset_ns| Clock { offset_ns, uncertainty_ns: 0, synchronized: true });
    let header = Header {
        key: StreamKey { run_tag: [1; 8], class: 0, sequence: 0 },
        generation,
        clock,
        ..Header::default()
    };
    let mut buffer = vec![0; codec::FRAME_BYTES_MAX];
    let bytes = FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap();
    then(&Frame::decode(bytes).unwrap().0.header);
}

fn process(start_ns: u64, time_ns: u64) -> codec::Record<'static> {
    codec::Record::Process(codec::Process {
        state: codec::ObjectState::Reup,
        oid: codec::Oid { start_ns, pid: 7 },
        parent: None,
        time_ns,
        exe: b"/bin/x",
        args: b"a\0b\0",
        uid: u32::MAX,
        gid: 5,
        user: b"",
        group: b"",
        tty: false,
        container: 0,
        entry: false,
        cwd: b"/",
        env: b"",
        flags: 0,
        argv0: b"",
        script: b"",
        mount_namespace: 0,
    })
}

#[test]
fn object_ids_keep_the_first_mapping_and_event_times_take_the_newest() {
    let mut stream = Stream::new(None);
    let converted = |stream: &mut Stream| match stream.record(&process(100, 200)).unwrap() {
        Record::Process(process) => process,
        other => panic!("{other:?}"),
    };
    with_header(0, Some(1000), |header| stream.enter(header));
    let first = converted(&mut stream);
    assert_eq!((first.oid.create_ts, first.ts), (1100, 1200));
    assert_eq!((first.uid, first.gid, first.args.as_str()), (-1, 5, "a b"));
    with_header(0, Some(5000), |header| stream.enter(header));
    let second = converted(&mut stream);
    assert_eq!((second.oid.create_ts, second.ts), (1100, 5200));
}

#[test]
fn a_file_number_means_nothing_after_a_gap_and_in_the_next_generation() {
    let file = codec::Record::File(codec::File {
        state: codec::ObjectState::Created,
        id: FileId(3),
        time_ns: 0,
        kind: b'f',
        path: b"/a",
        container: 0,
        device: 8 << 20,
        inode: 99,
        flags: 0,
    });
    let event = codec::Record::FileEvent(codec::FileEvent {
        process: codec::Oid { start_ns: 1, pid: 1 },
        time_ns: 0,
        tid: 1,
        ops: op::UNLINK,
        file: FileId(3),
        ret: 0,
        new_file: None,
        args: b"",
    });
    let mut stream = Stream::new(Some(0));
    let known = |stream: &mut Stream| match stream.record(&event).unwrap() {
        Record::FileEvent(event) => event.file.oid.is_some(),
        other => panic!("{other:?}"),
    };
    with_header(0, None, |header| stream.enter(header));
    stream.record(&file).unwrap();
    assert!(known(&mut stream));
    stream.forget_names();
    assert!(!known(&mut stream));
    stream.record(&file).unwrap();
    with_header(1, None, |header| stream.enter(header));
    assert!(!known(&mut stream));
    assert_eq!(stream.unresolved(), Unresolved { processes: 3, files: 2, containers: 0 });
}

#[test]
fn times_beyond_the_range_stop_at_its_end() {
    assert_eq!(wall(u64::MAX, i64::MAX), i64::MAX);
    assert_eq!(wall(0, i64::MIN), i64::MIN);
    assert_eq!(signed(u64::MAX), i64::MAX);
}

#[test]
fn an_event_by_name_does_not_hide_the_type_that_is_known() {
    let file = |id, kind| {
        codec::Record::File(codec::File {
            state: codec::ObjectState::Reup,
            id: FileId(id),
            time_ns: 0,
            kind,
            path: b"/a",
            container: 0,
            device: 0,
            inode: 0,
            flags: 0,
        })
    };
    let mut stream = Stream::new(Some(0));
    with_header(0, None, |header| stream.enter(header));
    let told: Vec<i32> = [(1, b'?'), (2, b'd'), (3, b'?'), (4, b'f'), (5, b'?')]
        .into_iter()
        .map(|(id, kind)| match stream.record(&file(id, kind)).unwrap() {
            Record::File(file) => file.restype,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [b'?', b'd', b'd', b'f', b'f'].map(i32::from));
}
