//! One record of each kind and a header with every extension, for the golden frame.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

use codec::{
    Address, Capabilities, Clock, Container, Counter, EndReason, File, FileEvent, FileFlow, FileId,
    GenerationStart, Header, Interruption, K8sEvent, Ledger, NetworkEvent, NetworkFlow,
    ObjectState, Oid, Operation, Pod, Process, ProcessEvent, ProcessFlow, Record, StreamKey, Term,
    Volume, file, hook, network, op, open_flag, process,
};

const SHELL: Oid = Oid { start_ns: 81_234_567_890, pid: 4711 };

pub(crate) fn records() -> Vec<Record<'static>> {
    let volume = Volume { read_ops: 3, write_ops: 2, read_bytes: 4096, write_bytes: 80 };
    vec![
        Record::Container(Container {
            id: 1,
            full_id: b"0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
            name: b"broker",
            image: b"mosquitto:2",
            image_id: b"sha256:77",
            kind: 5,
            privileged: true,
            pod_id: b"",
        }),
        Record::Process(Process {
            state: ObjectState::Created,
            oid: SHELL,
            parent: Some(Oid { start_ns: 1_000_000, pid: 1 }),
            time_ns: 81_234_600_000,
            exe: b"/usr/bin/dash",
            args: b"-c\0echo caf\xc3\xa9 \xff\0",
            uid: 1000,
            gid: u32::MAX,
            user: b"op",
            group: b"",
            tty: true,
            container: 1,
            entry: false,
            cwd: b"/srv",
            env: b"LANG=C\0",
            flags: process::COMPAT | process::ARGS_TRUNCATED,
            argv0: b"sh",
            script: b"/srv/run",
            mount_namespace: 4_026_531_841,
        }),
        Record::File(File {
            state: ObjectState::Reup,
            id: FileId(0),
            time_ns: 81_234_700_000,
            kind: b'f',
            path: b"/etc/passwd",
            container: 1,
            device: 8 << 20 | 1,
            inode: 1 << 40,
            flags: file::DELETED,
        }),
        Record::ProcessEvent(ProcessEvent {
            process: SHELL,
            time_ns: 81_234_800_000,
            tid: 4712,
            ops: op::SETUID,
            args: b"root\0",
            ret: -1,
        }),
        Record::NetworkFlow(NetworkFlow {
            process: SHELL,
            time_ns: 81_235_000_000,
            tid: 4711,
            ops: op::CONNECT | op::READ_RECV,
            end_ns: 81_236_000_000,
            source: Address::V6([0xfe; 16]),
            source_port: 40_556,
            destination: Address::V4([127, 0, 0, 1]),
            destination_port: 8080,
            protocol: 6,
            fd: 3,
            volume,
            end: EndReason::ActiveTimeout,
            error: -111,
            flags: network::ROLE_ASSUMED,
        }),
        Record::FileFlow(FileFlow {
            process: SHELL,
            time_ns: 81_237_000_000,
            tid: 4711,
            ops: op::OPEN | op::WRITE_SEND | op::CLOSE,
            open_flags: open_flag::RDWR | open_flag::CREAT,
            end_ns: 81_238_000_000,
            file: FileId(0),
            fd: 5,
            volume,
            end: EndReason::EndDetected,
        }),
        Record::FileEvent(FileEvent {
            process: SHELL,
            time_ns: 81_239_000_000,
            tid: 4711,
            ops: op::RENAME,
            file: FileId(0),
            ret: -2,
            new_file: Some(FileId(7)),
            args: b"",
        }),
        Record::NetworkEvent(NetworkEvent {
            process: SHELL,
            time_ns: 81_240_000_000,
            tid: 4711,
            ops: op::ACCEPT,
            source: Address::V4([10, 0, 0, 1]),
            source_port: 1,
            destination: Address::V4([10, 0, 0, 2]),
            destination_port: 2,
            protocol: 17,
            ret: 0,
        }),
        Record::ProcessFlow(ProcessFlow {
            process: SHELL,
            time_ns: 81_241_000_000,
            ops: op::CLONE | op::EXIT,
            end_ns: 81_242_000_000,
            threads_cloned: 4,
            threads_exited: 3,
            clone_errors: 1,
            end: EndReason::ForcedEnd,
        }),
        Record::Pod(Pod {
            time_ns: 81_243_000_000,
            id: b"pod",
            name: b"broker-0",
            node: b"gw",
            namespace: b"default",
            restarts: 2,
        }),
        Record::K8sEvent(K8sEvent { kind: 2, action: 1, time_ns: 81_244_000_000, message: b"{}" }),
    ]
}

pub(crate) fn header() -> Header<'static> {
    let mut ledger = Ledger::new();
    for (operation, term, total) in [
        (Some(Operation::Read), Term::Observed, 300),
        (Some(Operation::SocketState), Term::LostUnreadable, 1),
        (None, Term::LostRefused, u64::MAX),
    ] {
        ledger.push(Counter { operation, term, total }).unwrap();
    }
    Header {
        key: StreamKey { run_tag: *b"run-tag.", class: 2, sequence: 300 },
        generation: 4,
        first_ns: 81_234_600_000,
        last_ns: 81_244_000_000,
        records: 11,
        start: Some(GenerationStart {
            agent_id: "gw-0001",
            boot_id: *b"the-boot-id-0123",
            run_id: *b"run-tag.and-more",
            agent_version: "0.1.0",
            kernel: "6.12.95+deb12-arm64",
            machine: "aarch64",
        }),
        clock: Some(Clock {
            offset_ns: 1_795_502_736_000_000_000,
            uncertainty_ns: 150,
            synchronized: true,
        }),
        ledger,
        interruption: Some(Interruption {
            boot_id: *b"the-boot-id-0123",
            run_id: *b"an-earlier-run..",
            from_ns: 70_000_000_000,
            to_ns: 80_000_000_000,
            operations_at_least: 12,
        }),
        capabilities: Some(Capabilities {
            attached: hook::SYS_EXIT | hook::EXEC,
            missing: hook::SOCKET_STATE,
            jit: true,
        }),
        ..Header::default()
    }
}
