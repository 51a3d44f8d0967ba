//! The spool on a disk that is full. A test binary of its own: it starts programs, and a
//! program that is being started holds the locks of its parent for a moment.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod sample;

use std::io::Write as _;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::spool::{Limits, Spool, SpoolError, Sync};
use codec::DropReason;
use model::{Model, step};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

const LIMITS: Limits = Limits { bytes_max: 1 << 20, sync: Sync::EachFrame };

/// One test at a time: each starts programs.
static TURN: Mutex<()> = Mutex::new(());

/// A disk of a few KiB.
struct Disk(TempDir, #[allow(dead_code)] MutexGuard<'static, ()>);

impl Disk {
    /// None, after saying so, where it cannot be mounted.
    fn mount(kib: u32) -> Option<Disk> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(directory.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            // Not by println!, which the test runner swallows.
            let said = b"\nskipped: spool_full_disk: mounting a tmpfs needs root\n";
            std::io::stdout().write_all(said).unwrap();
            return None;
        }
        Some(Disk(directory, turn))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Where this fails the folder cannot be removed either, and stays to be seen.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A file system on a sparse image, whose disk is full: what is written is there and cannot be made
/// durable. None, after saying so, where there are no loop devices.
struct Unsound(TempDir);

impl Unsound {
    fn mount(disk: &Disk) -> Option<Unsound> {
        let image = disk.0.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let made =
            Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image).status();
        let mounted = made.is_ok_and(|status| status.success())
            && Command::new("mount")
                .args(["-o", "loop"])
                .args([image.as_path(), directory.path()])
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            let said = b"\nskipped: spool_full_disk: mounting an image needs a loop device\n";
            std::io::stdout().write_all(said).unwrap();
            return None;
        }
        Some(Unsound(directory))
    }
}

impl Drop for Unsound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_segment_that_is_not_durable_costs_no_frame_behind_it() {
    let Some(disk) = Disk::mount(2048) else { return };
    let Some(unsound) = Unsound::mount(&disk) else { return };
    let limits = Limits { bytes_max: 1 << 20, sync: Sync::OnRequest };
    let (mut writer, mut reader, _) = Spool::open(&unsound.0.path().join("spool"), limits).unwrap();
    writer.append(&sample::frame_of(1, (0, true), 0, 1, 40_000)).unwrap();
    assert!(writer.trouble().is_none());
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 2 << 20]).unwrap_err();
    // It begins a segment, and the one before it is made durable.
    assert!(writer.append(&sample::frame_of(1, (1, true), 1, 1, 100)).unwrap().is_kept);
    let trouble = writer.trouble().unwrap();
    assert!(matches!(trouble, SpoolError::Io { action: "sync", .. }), "{trouble}");
    assert!(writer.trouble().is_none());
    std::fs::remove_file(&ballast).unwrap();
    let sent = reader.batch(&mut Vec::new(), 1 << 20, 512).unwrap();
    assert_eq!(sent.first().unwrap().key.sequence, 0);
}

/// Less than the quota of the model fits onto the disk: both bite.
#[test]
fn the_model_holds_on_a_full_disk() {
    let Some(disk) = Disk::mount(256) else { return };
    std::fs::write(disk.0.path().join("ballast"), vec![0; 160 << 10]).unwrap();
    let mut runner = TestRunner::deterministic();
    let mut failures = 0;
    for case in 0..24 {
        let steps = proptest::collection::vec(step(), 1..150).new_tree(&mut runner).unwrap();
        let steps = steps.current();
        let spool = disk.0.path().join(case.to_string());
        let mut model = Model::open(&spool);
        for step in &steps {
            model.step(step);
        }
        model.drain();
        failures += model.failures;
        std::fs::remove_dir_all(spool).unwrap();
    }
    assert!(failures > 100, "the disk was full {failures} times");
}

#[test]
fn a_full_disk_refuses_whole_frames_and_recovers() {
    let Some(disk) = Disk::mount(256) else { return };
    let spool = disk.0.path().join("spool");
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
}

/// What a full disk leaves in memory at the end of a run has a name, by the reason that its ledger
/// has a term for.
#[test]
fn what_the_disk_refuses_to_the_end_is_dropped_by_name() {
    let Some(disk) = Disk::mount(256) else { return };
    let (mut writer, _reader, _) = Spool::open(&disk.0.path().join("spool"), LIMITS).unwrap();
    writer.hold_at_most(64_000);
    writer.append(&sample::frame(0, 1, 10_000)).unwrap();
    std::fs::write(disk.0.path().join("ballast"), vec![0; 256 << 10]).unwrap_err();
    for sequence in 1..4 {
        assert!(writer.append(&sample::frame(sequence, 2, 10_000)).unwrap().is_kept);
        assert!(writer.trouble().is_some());
    }
    let (dropped, refused) = writer.close();
    assert!(matches!(refused, Some(SpoolError::Io { .. })), "{refused:?}");
    let named: Vec<_> =
        dropped.stones().iter().map(|s| (s.reason, s.first, s.last, s.frames, s.records)).collect();
    assert_eq!(named, [(DropReason::SpoolFull, 1, 3, 3, 6)]);
    assert_eq!(writer.depth().frames, 1);
}

/// The disk is never full, nothing is refused, and what others take the spool gives up, but for a
/// mebibyte; what it drops is counted.
#[test]
fn a_share_of_the_disk_is_kept_free() {
    const KIB: u64 = 1024;
    const FRAMES_A_GENERATION: u64 = 10;
    let Some(disk) = Disk::mount(8 * 1024) else { return };
    let spool = disk.0.path().join("spool");
    let limits = Limits { bytes_max: 64 << 20, sync: Sync::EachFrame };
    let (mut writer, _reader, _) = Spool::open(&spool, limits).unwrap();
    writer.keep_free(50);
    let (mut appended, mut kept_out) = (0, 0);
    let mut fill = |writer: &mut agent::spool::Writer| {
        for _ in 0..600 {
            let generation = u32::try_from(appended / FRAMES_A_GENERATION).unwrap();
            let starts = appended % FRAMES_A_GENERATION == 0;
            let frame = sample::frame_of(1, (generation, starts), appended, 1, 20_000);
            kept_out += writer.append(&frame).unwrap().dropped_frames;
            appended += 1;
        }
        let depth = writer.depth();
        assert_eq!(depth.frames + kept_out, appended);
        depth.bytes
    };
    let alone = fill(&mut writer);
    assert!((3500 * KIB..=4096 * KIB).contains(&alone), "{alone}");
    std::fs::write(disk.0.path().join("ballast"), vec![0; 2 << 20]).unwrap();
    let beside = fill(&mut writer);
    assert!((1500 * KIB..=2048 * KIB).contains(&beside), "{beside}");
    std::fs::write(disk.0.path().join("more"), vec![0; 4 << 20]).unwrap();
    let least = fill(&mut writer);
    assert!((700 * KIB..=1024 * KIB).contains(&least), "{least}");
    assert_eq!(writer.bytes_max(), 1 << 20);
    // Generations are begun anew by what there is, not by what there may be.
    let generation = u32::try_from(appended).unwrap();
    let begun_anew = (0..20).find(|number| {
        let frame = sample::frame_of(1, (generation, *number == 0), appended + number, 1, 20_000);
        writer.append(&frame).unwrap().restart[1]
    });
    assert!(begun_anew.is_some_and(|number| (10..20).contains(&number)), "{begun_anew:?}");
}
