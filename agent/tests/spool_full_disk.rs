//! The spool on a disk that is full. A test binary of its own: it starts programs, and a
//! program that is being started holds the locks of its parent for a moment.

#![allow(clippy::unwrap_used, clippy::panic)]

mod sample;

use std::process::Command;

use agent::spool::{Limits, Spool, SpoolError, Sync};

const LIMITS: Limits = Limits { bytes_max: 1 << 20, sync: Sync::EachFrame };

#[test]
fn a_full_disk_refuses_whole_frames_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(directory.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let spool = directory.path().join("spool");
    {
        let (mut writer, mut reader, _) = Spool::open(&spool, LIMITS).unwrap();
        let mut spooled = Vec::new();
        let mut refused = 0;
        let mut sequence = 0;
        while refused < 5 {
            match writer.append(&sample::frame(sequence, 1, 10_000)) {
                Ok(_) => spooled.push(sequence),
                Err(SpoolError::Io { source, .. }) => {
                    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
            assert_eq!(writer.depth().frames, spooled.len() as u64);
            sequence += 1;
        }
        assert!(spooled.len() > 10);
        // Delivery makes room, and appending goes on by itself.
        reader.batch(&mut Vec::new(), 64_000, 512).unwrap();
        reader.acknowledge(|_| true);
        let left = usize::try_from(reader.depth().frames).unwrap();
        writer.append(&sample::frame(sequence, 1, 10_000)).unwrap();
        spooled.push(sequence);
        drop((writer, reader));
        // Nothing of the refused frames is left.
        let (_writer, mut reader, recovery) = Spool::open(&spool, LIMITS).unwrap();
        assert_eq!((recovery.cut_bytes, recovery.damaged_bytes), (0, 0));
        let sent = reader.batch(&mut Vec::new(), 1 << 20, 512).unwrap();
        assert_eq!(sent[0].key.sequence, spooled[spooled.len() - left - 1]);
        assert_eq!(recovery.frames, left as u64 + 1);
    }
    let unmounted = Command::new("umount").arg(directory.path()).status().unwrap();
    assert!(unmounted.success());
}
