//! Frames as an agent makes them, and a sample that has every kind of record.

use codec::{
    Address, Capabilities, Clock, Container, Counter, EndReason, FRAME_BYTES_MAX, Farewell, File,
    FileEvent, FileFlow, FileId, FrameWriter, GenerationStart, Header, Interruption, K8sEvent,
    NetworkEvent, NetworkFlow, ObjectState, Oid, Operation, Pod, Process, ProcessEvent,
    ProcessFlow, Record, StreamKey, Term, Volume, op,
};

/// Boot clock to Unix time, ns: a moment in 2026.
pub(crate) const OFFSET_NS: i64 = 1_790_000_000_000_000_000;

/// One start of an agent.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) agent: &'static str,
    pub(crate) boot_id: [u8; 16],
    pub(crate) run_id: [u8; 16],
    pub(crate) class: u8,
    /// What its frames say of the clock.
    pub(crate) offset_ns: i64,
}

impl Run {
    /// A run of an agent in its first boot; `number` tells runs apart.
    pub(crate) fn new(agent: &'static str, number: u8) -> Self {
        Run { agent, boot_id: [0xb0; 16], run_id: [number; 16], class: 0, offset_ns: OFFSET_NS }
    }

    pub(crate) fn tag(&self) -> String {
        self.run_id[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn header(&self, generation: u32, sequence: u64) -> Header<'_> {
        Header {
            key: StreamKey {
                run_tag: *self.run_id.first_chunk().unwrap(),
                class: self.class,
                sequence,
            },
            generation,
            first_ns: 1_000_000_000,
            ..Header::default()
        }
    }

    fn start_header(&self, generation: u32, sequence: u64) -> Header<'_> {
        Header {
            start: Some(GenerationStart {
                agent_id: self.agent,
                boot_id: self.boot_id,
                run_id: self.run_id,
                agent_version: "0.1.0",
                kernel: "6.1.0",
                machine: "aarch64",
            }),
            clock: Some(Clock { offset_ns: self.offset_ns, uncertainty_ns: 5, synchronized: true }),
            capabilities: Some(Capabilities { attached: 31, missing: 0, jit: true }),
            ..self.header(generation, sequence)
        }
    }

    /// The first frame of a generation: a process that starts.
    pub(crate) fn start(&self, generation: u32, sequence: u64) -> Vec<u8> {
        frame(&self.start_header(generation, sequence), &[shell(), exec(sequence)])
    }

    /// A later frame: one event, whose thread id is the sequence.
    pub(crate) fn next(&self, generation: u32, sequence: u64) -> Vec<u8> {
        frame(&self.header(generation, sequence), &[exec(sequence)])
    }

    /// Frames 0 to `count` - 1 of one generation.
    pub(crate) fn frames(&self, count: u64) -> Vec<Vec<u8>> {
        let frame = |s| if s == 0 { self.start(0, 0) } else { self.next(0, s) };
        (0..count).map(frame).collect()
    }

    /// The first frame of a run that began to watch then, and tells how another was cut.
    pub(crate) fn start_behind(&self, begins_ns: u64, cut: &Run, from_ns: u64) -> Vec<u8> {
        let mut header = self.start_header(0, 0);
        (header.first_ns, header.last_ns) = (begins_ns, begins_ns);
        let to_ns = if cut.boot_id == self.boot_id { begins_ns } else { 0 };
        let Run { boot_id, run_id, .. } = *cut;
        let operations_at_least = 0;
        header.interruption =
            Some(Interruption { boot_id, run_id, from_ns, to_ns, operations_at_least });
        frame(&header, &[])
    }

    /// The last frame of a run that ends in order: the urgent one with this sequence.
    pub(crate) fn farewell(&self, sequence: u64, at_ns: u64) -> Vec<u8> {
        let mut header = self.header(0, sequence);
        header.farewell = Some(Farewell { at_ns, frames: [sequence + 1, 0] });
        frame(&header, &[])
    }

    /// Two frames with every kind of record, a ledger and an interruption.
    pub(crate) fn sample(&self) -> Vec<Vec<u8>> {
        let counter = |operation, term, total| Counter { operation, term, total };
        let mut first = self.start_header(0, 0);
        first.ledger.extend([
            counter(Some(Operation::Open), Term::Observed, 5),
            counter(Some(Operation::Open), Term::Aggregated, 4),
            counter(Some(Operation::Open), Term::LostRing, 1),
        ]);
        first.interruption = Some(Interruption {
            boot_id: self.boot_id,
            run_id: [0xee; 16],
            from_ns: 100,
            to_ns: 900,
            operations_at_least: 7,
        });
        let mut second = self.header(0, 1);
        second.ledger.extend([
            counter(Some(Operation::Open), Term::Observed, 9),
            counter(Some(Operation::Open), Term::Aggregated, 8),
            counter(None, Term::LostSpoolFull, 2),
        ]);
        let records = every_kind();
        let (entities, rest) = records.split_at(5);
        vec![frame(&first, entities), frame(&second, rest)]
    }
}

pub(crate) fn frame(header: &Header<'_>, records: &[Record<'_>]) -> Vec<u8> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(&mut buffer).unwrap();
    records.iter().for_each(|record| writer.push(record).unwrap());
    writer.finish(header).unwrap().to_vec()
}

const INIT: Oid = Oid { start_ns: 1_000_000, pid: 1 };
const SHELL: Oid = Oid { start_ns: 900_000_000, pid: 4711 };

fn shell() -> Record<'static> {
    Record::Process(Process {
        state: ObjectState::Created,
        oid: SHELL,
        parent: Some(INIT),
        time_ns: 1_000_000_000,
        exe: "/bin/sh\u{fc}".as_bytes(),
        args: b"-c\0echo a | cat\0\xff\0",
        uid: 1000,
        gid: u32::MAX,
        user: b"me",
        group: b"",
        tty: true,
        container: 0,
        entry: false,
        cwd: b"/home/me/",
        env: b"A=1\0B=2\0",
        flags: codec::process::ARGS_TRUNCATED,
        argv0: b"",
        script: b"",
        mount_namespace: 0,
    })
}

fn exec(sequence: u64) -> Record<'static> {
    Record::ProcessEvent(ProcessEvent {
        process: SHELL,
        time_ns: 1_000_000_000_u64.saturating_add(sequence),
        tid: sequence as u32,
        ops: op::EXEC,
        args: b"",
        ret: 0,
    })
}

fn file_flow(file: u32, ops: u64, end: EndReason, time_ns: u64) -> Record<'static> {
    Record::FileFlow(FileFlow {
        process: SHELL,
        time_ns,
        tid: 4711,
        ops,
        open_flags: codec::open_flag::RDONLY | codec::open_flag::CLOEXEC,
        end_ns: time_ns + 10,
        file: FileId(file),
        fd: 3,
        volume: Volume { read_ops: 2, write_ops: 1, read_bytes: 832, write_bytes: 1 << 40 },
        end,
    })
}

fn network_flow(source: Address, destination: Address, time_ns: u64) -> Record<'static> {
    Record::NetworkFlow(NetworkFlow {
        process: SHELL,
        time_ns,
        tid: 4712,
        ops: op::CONNECT | op::WRITE_SEND | op::READ_RECV,
        end_ns: time_ns + 10,
        source,
        source_port: 40000,
        destination,
        destination_port: 443,
        protocol: 6,
        fd: 5,
        volume: Volume { read_ops: 1, write_ops: 1, read_bytes: 80, write_bytes: 81 },
        end: EndReason::ActiveTimeout,
        error: -111,
        flags: codec::network::ROLE_ASSUMED,
    })
}

/// Rows of [`every_kind`] that a `.sf` file cannot say: IPv6, an unknown operation, a network
/// event, and a file without a name.
pub(crate) const UNSAID_ROWS: usize = 4;

/// All rows of [`every_kind`].
pub(crate) const ROWS: usize = 16;

/// An IPv6 address that has to be seen whole.
pub(crate) const IPV6: &str = "2001:db8:1111:2222:3333:4444:5555:6666";

/// Five entities, and an event or a flow of every kind and in every shape.
pub(crate) fn every_kind() -> Vec<Record<'static>> {
    let v6 = Address::V6(IPV6.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let mapped = Address::V6(std::net::Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets());
    let v4 = Address::V4([192, 168, 59, 100]);
    let file = |id, kind, path: &'static [u8], container| {
        Record::File(File {
            state: ObjectState::Reup,
            id: FileId(id),
            time_ns: 1_000_000_000,
            kind,
            path,
            container,
            device: 8 << 20 | 1,
            inode: 1 << 40,
            flags: codec::file::AS_NAMED,
        })
    };
    let file_event = |ops, file, new_file: Option<u32>, ret| {
        Record::FileEvent(FileEvent {
            process: SHELL,
            time_ns: 1_000_000_300,
            tid: 4711,
            ops,
            file: FileId(file),
            ret,
            new_file: new_file.map(FileId),
            args: b"",
        })
    };
    let process_event = |ops, args, ret| {
        Record::ProcessEvent(ProcessEvent {
            process: SHELL,
            time_ns: 1_000_000_400,
            tid: 4711,
            ops,
            args,
            ret,
        })
    };
    vec![
        Record::Container(Container {
            id: 1,
            full_id: b"e7a89f97e548aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            name: b"web",
            image: b"nginx:1.27",
            image_id: b"sha256:12",
            kind: 7,
            privileged: true,
            pod_id: b"pod-1",
        }),
        Record::Pod(Pod {
            time_ns: 1_000_000_000,
            id: b"pod-1",
            name: b"web-0",
            node: b"node-1",
            namespace: b"default",
            restarts: 3,
        }),
        Record::Process(Process {
            state: ObjectState::Reup,
            oid: INIT,
            parent: None,
            time_ns: 1_000_000_000,
            exe: b"/sbin/init",
            args: b"",
            uid: 0,
            gid: 0,
            user: b"root",
            group: b"root",
            tty: false,
            container: 1,
            entry: true,
            cwd: b"/",
            env: b"",
            flags: codec::process::PRE_EXISTING,
            argv0: b"",
            script: b"",
            mount_namespace: 0,
        }),
        shell(),
        file(1, b'f', b"/etc/ld.so.cache", 0),
        file(2, b'd', b"/a/very/long/path/that/does/not/fit/into/the/column/at/all", 1),
        exec(4711),
        process_event(op::SETUID, b"me\0", -1),
        process_event(op::EXIT, b"", 256),
        file_flow(1, op::OPEN | op::MMAP | op::CLOSE, EndReason::EndDetected, 1_000_000_100),
        file_flow(2, op::READ_RECV, EndReason::EndDetected, 1_000_000_110),
        file_flow(1, op::WRITE_SEND | 1 << 22, EndReason::LackOfResources, 1_000_000_120),
        file_flow(9, op::READ_RECV, EndReason::IdleTimeout, 1_000_000_130),
        network_flow(v4, mapped, 1_000_000_200),
        network_flow(v6, v6, 1_000_000_210),
        file_event(op::MKDIR, 2, None, 0),
        file_event(op::RENAME, 1, Some(2), -2),
        file_event(1 << 21, 1, None, 0),
        Record::ProcessFlow(ProcessFlow {
            process: SHELL,
            time_ns: 1_000_000_500,
            ops: op::CLONE | op::EXIT,
            end_ns: 1_000_000_600,
            threads_cloned: 3,
            threads_exited: 2,
            clone_errors: 1,
            end: EndReason::ForcedEnd,
        }),
        Record::NetworkEvent(NetworkEvent {
            process: SHELL,
            time_ns: 1_000_000_700,
            tid: 4711,
            ops: op::CONNECT,
            source: v4,
            source_port: 1,
            destination: v4,
            destination_port: 2,
            protocol: 17,
            ret: -1,
        }),
        Record::K8sEvent(K8sEvent {
            kind: 2,
            action: 1,
            time_ns: 1_000_000_800,
            message: br#"{"kind":"Pod"}"#,
        }),
        process_event(op::CLONE, b"", 4712),
    ]
}
