//! What holds for every frame: what goes in comes out, and hostile bytes are refused without
//! a panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at what it does not expect")]

use codec::{
    Address, CLASSES, DecodeError, DropReason, EncodeError, EndReason, FileId, FormerRun, Frame,
    FrameWriter, Header, NetworkFlow, ObjectState, Oid, Process, ProcessEvent, Record,
    SIGNATURE_BYTES_MAX, Seal, Signature, SignatureScheme, StreamKey, TOMBSTONES_MAX, Tombstone,
    Tombstones, Volume,
};
use proptest::collection::vec;
use proptest::prelude::*;

const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Clone, Debug)]
enum Made {
    Process { oid: Oid, parent: Option<Oid>, texts: [Vec<u8>; 3], uid: u32, time_ns: u64 },
    Event { oid: Oid, time_ns: u64, ops: u64, args: Vec<u8>, ret: i32 },
    Flow { oid: Oid, time_ns: u64, ports: (u16, u16), volume: [u64; 4], fd: i32, v6: [u8; 16] },
    File { id: u32, path: Vec<u8>, inode: u64, time_ns: u64 },
}

impl Made {
    fn record(&self) -> Record<'_> {
        match self {
            Made::Process { oid, parent, texts, uid, time_ns } => Record::Process(Process {
                state: ObjectState::Modified,
                oid: *oid,
                parent: *parent,
                time_ns: *time_ns,
                exe: &texts[0],
                args: &texts[1],
                uid: *uid,
                gid: 0,
                user: &texts[2],
                group: b"",
                tty: false,
                container: 0,
                entry: true,
                cwd: b"/",
                env: b"",
                flags: 0,
                argv0: b"",
                script: b"",
                mount_namespace: 0,
            }),
            Made::Event { oid, time_ns, ops, args, ret } => Record::ProcessEvent(ProcessEvent {
                process: *oid,
                time_ns: *time_ns,
                tid: oid.pid,
                ops: *ops,
                args,
                ret: *ret,
            }),
            Made::Flow { oid, time_ns, ports, volume, fd, v6 } => {
                let [read_ops, write_ops, read_bytes, write_bytes] = *volume;
                Record::NetworkFlow(NetworkFlow {
                    process: *oid,
                    time_ns: *time_ns,
                    tid: oid.pid,
                    ops: 0,
                    end_ns: *time_ns,
                    source: Address::V6(*v6),
                    source_port: ports.0,
                    destination: Address::V4([v6[0], v6[1], v6[2], v6[3]]),
                    destination_port: ports.1,
                    protocol: 17,
                    fd: *fd,
                    volume: Volume { read_ops, write_ops, read_bytes, write_bytes },
                    end: EndReason::IdleTimeout,
                    error: *fd,
                    flags: 0,
                })
            }
            Made::File { id, path, inode, time_ns } => Record::File(codec::File {
                state: ObjectState::Created,
                id: FileId(*id),
                time_ns: *time_ns,
                kind: b'd',
                path,
                container: *id,
                device: *id,
                inode: *inode,
                flags: 0,
            }),
        }
    }
}

prop_compose! {
    fn an_oid()(start_ns: u64, pid: u32) -> Oid { Oid { start_ns, pid } }
}

fn made() -> impl Strategy<Value = Made> {
    let text = || vec(any::<u8>(), 0..300);
    prop_oneof![
        (an_oid(), proptest::option::of(an_oid()), [text(), text(), text()], any::<(u32, u64)>())
            .prop_map(|(oid, parent, texts, (uid, time_ns))| Made::Process {
                oid,
                parent,
                texts,
                uid,
                time_ns
            }),
        (an_oid(), any::<(u64, u64, i32)>(), text()).prop_map(
            |(oid, (time_ns, ops, ret), args)| Made::Event { oid, time_ns, ops, args, ret }
        ),
        (an_oid(), any::<(u64, (u16, u16), [u64; 4], i32, [u8; 16])>()).prop_map(
            |(oid, (time_ns, ports, volume, fd, v6))| Made::Flow {
                oid,
                time_ns,
                ports,
                volume,
                fd,
                v6
            }
        ),
        (any::<(u32, u64, u64)>(), text()).prop_map(|((id, inode, time_ns), path)| Made::File {
            id,
            path,
            inode,
            time_ns
        }),
    ]
}

fn header(sequence: u64) -> Header<'static> {
    Header {
        key: StreamKey { run_tag: [7; 8], class: 0, sequence },
        generation: 1,
        ..Header::default()
    }
}

/// Packs as many of the records as fit, and tells how many those are.
fn pack(made: &[Made], sequence: u64) -> (Vec<u8>, usize) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut writer = FrameWriter::new(&mut buffer).unwrap();
    let mut packed = 0;
    for one in made {
        match writer.push(&one.record()) {
            Ok(()) => packed += 1,
            Err(EncodeError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    (writer.finish(&header(sequence)).unwrap().to_vec(), packed)
}

proptest! {
    #[test]
    fn how_far_the_former_run_came_is_told(boot_id: [u8; 16], run_id: [u8; 16], frames: [u64; CLASSES]) {
        let former = Some(FormerRun { boot_id, run_id, frames });
        let mut buffer = vec![0; BUFFER_BYTES];
        let writer = FrameWriter::new(&mut buffer).unwrap();
        let bytes = writer.finish(&Header { former, ..header(0) }).unwrap();
        prop_assert_eq!(Frame::decode(bytes).unwrap().0.header.former, former);
    }

    #[test]
    fn a_seal_is_told(generation: u32, digest: [u8; 32]) {
        let seal = Some(Seal { generation, digest });
        let mut buffer = vec![0; BUFFER_BYTES];
        let writer = FrameWriter::new(&mut buffer).unwrap();
        let bytes = writer.finish(&Header { seal, ..header(0) }).unwrap();
        prop_assert_eq!(Frame::decode(bytes).unwrap().0.header.seal, seal);
    }

    #[test]
    fn a_signature_is_told_and_is_of_all_that_it_should_be(
        generation: u32, digest: [u8; 32], boot: [u8; 16], run: [u8; 16], key: [u8; 8],
        class in 0..CLASSES as u8,
        id in "[a-z0-9][a-z0-9._-]{0,62}", bytes in vec(any::<u8>(), 0..=SIGNATURE_BYTES_MAX),
        scheme in prop_oneof![
            Just(SignatureScheme::EcdsaP256Sha256),
            Just(SignatureScheme::EcdsaP384Sha384),
            Just(SignatureScheme::Ed25519),
        ]
    ) {
        let seal = Seal { generation, digest };
        let signature = Some(Signature { scheme, key, bytes: bytes.as_slice().try_into().unwrap() });
        let mut buffer = vec![0; BUFFER_BYTES];
        let writer = FrameWriter::new(&mut buffer).unwrap();
        let header = Header { seal: Some(seal), signature: signature.clone(), ..header(0) };
        let bytes = writer.finish(&header).unwrap();
        prop_assert_eq!(Frame::decode(bytes).unwrap().0.header.signature, signature);

        let message = seal.message(&id, &boot, &run, class).unwrap();
        let others = [
            Seal { generation: generation ^ 1, digest }.message(&id, &boot, &run, class),
            Seal { generation, digest: digest.map(|byte| !byte) }.message(&id, &boot, &run, class),
            seal.message("other id", &boot, &run, class),
            seal.message(&id, &boot.map(|byte| !byte), &run, class),
            seal.message(&id, &boot, &run.map(|byte| !byte), class),
            seal.message(&id, &boot, &run, class ^ 1),
        ];
        prop_assert!(others.iter().flatten().all(|other| *other != message));
        prop_assert_eq!(seal.message(&"x".repeat(64), &boot, &run, class), None);
    }

    #[test]
    fn tombstones_are_told(numbers in vec(any::<([u8; 8], u8, usize, [u64; 4])>(), 0..=TOMBSTONES_MAX)) {
        let tombstones: Tombstones = numbers
            .into_iter()
            .map(|(run_tag, class, reason, [first, last, frames, records])| {
                let reason = DropReason::ALL[reason % DropReason::ALL.len()];
                Tombstone { run_tag, class, reason, first, last, frames, records }
            })
            .collect();
        let mut buffer = vec![0; BUFFER_BYTES];
        let writer = FrameWriter::new(&mut buffer).unwrap();
        let bytes = writer.finish(&Header { tombstones: tombstones.clone(), ..header(0) }).unwrap();
        prop_assert_eq!(Frame::decode(bytes).unwrap().0.header.tombstones, tombstones);
    }

    #[test]
    fn what_goes_in_comes_out(made in vec(made(), 0..40), sequence: u64) {
        let (bytes, packed) = pack(&made, sequence);
        let (frame, rest) = Frame::decode(&bytes).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(frame.header.key.sequence, sequence);
        let expected: Vec<Record<'_>> = made[..packed].iter().map(Made::record).collect();
        let found: Result<Vec<_>, _> = frame.records().collect();
        prop_assert_eq!(found.unwrap(), expected);
        let times = made[..packed].iter().filter_map(|one| one.record().time_ns());
        if let Some(first) = times.clone().min() {
            prop_assert_eq!(frame.header.first_ns, first);
            prop_assert_eq!(Some(frame.header.last_ns), times.max());
        }
    }

    #[test]
    fn frames_follow_each_other(counts in vec(vec(made(), 0..4), 1..5)) {
        let frames: Vec<Vec<u8>> =
            counts.iter().enumerate().map(|(n, made)| pack(made, n as u64).0).collect();
        let stream = frames.concat();
        let mut rest = stream.as_slice();
        for (number, bytes) in frames.iter().enumerate() {
            prop_assert_eq!(Frame::length(rest).unwrap(), bytes.len());
            let (frame, after) = Frame::decode(rest).unwrap();
            prop_assert_eq!(frame.header.key.sequence, number as u64);
            prop_assert_eq!(frame.bytes, bytes.as_slice());
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_cut_frame_is_truncated(made in vec(made(), 0..4), cut: prop::sample::Index) {
        let (bytes, _) = pack(&made, 0);
        let cut = cut.index(bytes.len());
        prop_assert_eq!(Frame::decode(&bytes[..cut]).unwrap_err(), DecodeError::Truncated);
    }

    #[test]
    fn a_changed_bit_is_found(made in vec(made(), 0..4), at: prop::sample::Index, bit in 0..8u8) {
        let (mut bytes, _) = pack(&made, 0);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Frame::decode(&bytes).is_err());
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..600), seal: bool) {
        // Half of them with a prefix and a checksum that are right, to get behind both.
        let bytes = if seal {
            let mut frame = b"SFE\0".to_vec();
            frame.extend((bytes.len() as u32 + 12).to_le_bytes());
            frame.extend(&bytes);
            frame.extend(crc32fast::hash(&frame).to_le_bytes());
            frame
        } else {
            bytes
        };
        if let Ok((frame, _)) = Frame::decode(&bytes) {
            let records = frame.records().count();
            prop_assert!(records <= bytes.len() + 1);
        }
    }
}
