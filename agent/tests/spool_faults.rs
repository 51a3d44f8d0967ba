//! The spool when things go wrong: cuts, flipped bits, two owners, two threads.

#![allow(clippy::unwrap_used, clippy::panic)]

mod sample;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use agent::spool::{Limits, Reader, Spool, SpoolError, Sync};

const LIMITS: Limits = Limits { bytes_max: 1 << 20, sync: Sync::EachFrame };

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "frames"))
        .collect();
    paths.sort();
    paths
}

/// Takes everything out and returns the sequences.
fn drain(reader: &mut Reader) -> Vec<u64> {
    let mut sequences = Vec::new();
    let mut buffer = Vec::new();
    loop {
        let sent = reader.batch(&mut buffer, 1 << 20, 512).unwrap();
        if sent.is_empty() {
            return sequences;
        }
        sequences.extend(sent.iter().map(|sent| sent.key.sequence));
        reader.acknowledge(|_| true);
    }
}

#[test]
fn a_cut_at_every_byte_of_the_last_frame_leaves_the_frames_before_it() {
    let made = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = Spool::open(made.path(), LIMITS).unwrap();
    for sequence in 0..3 {
        writer.append(&sample::frame(sequence, 2, 40)).unwrap();
    }
    let bytes = fs::read(&segments(made.path())[0]).unwrap();
    let whole = bytes.len() - sample::frame(2, 2, 40).len();
    for length in whole..bytes.len() {
        let cut = tempfile::tempdir().unwrap();
        fs::write(cut.path().join("00000000000000000001.frames"), &bytes[..length]).unwrap();
        let (mut writer, mut reader, recovery) = Spool::open(cut.path(), LIMITS).unwrap();
        assert_eq!((recovery.frames, recovery.records), (2, 4), "cut at {length}");
        assert_eq!(recovery.cut_bytes, (length - whole) as u64);
        assert_eq!(recovery.damaged_bytes, 0);
        writer.append(&sample::frame(7, 1, 8)).unwrap();
        assert_eq!(drain(&mut reader), [0, 1, 7], "cut at {length}");
    }
}

#[test]
fn zeros_behind_the_last_frame_are_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    writer.append(&sample::frame(0, 1, 8)).unwrap();
    drop((writer, reader));
    let path = &segments(directory.path())[0];
    let length = fs::metadata(path).unwrap().len();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length + 700_000).unwrap();
    let (_writer, mut reader, recovery) = Spool::open(directory.path(), LIMITS).unwrap();
    assert_eq!((recovery.frames, recovery.cut_bytes), (1, 700_000));
    assert_eq!(drain(&mut reader), [0]);
}

#[test]
fn a_flipped_bit_costs_its_frame_and_no_other() {
    let made = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = Spool::open(made.path(), LIMITS).unwrap();
    let frames: Vec<Vec<u8>> = (0..4).map(|sequence| sample::frame(sequence, 3, 60)).collect();
    for frame in &frames {
        writer.append(frame).unwrap();
    }
    drop((writer, reader));
    let path = segments(made.path())[0].clone();
    let bytes = fs::read(&path).unwrap();
    for at in 0..frames[1].len() {
        let mut damaged = bytes.clone();
        damaged[frames[0].len() + at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        let (writer, mut reader, recovery) = Spool::open(made.path(), LIMITS).unwrap();
        assert_eq!(recovery.damaged_bytes, frames[1].len() as u64, "byte {at}");
        assert_eq!((recovery.frames, recovery.records), (3, 9), "byte {at}");
        let mut buffer = Vec::new();
        let sent = reader.batch(&mut buffer, 1 << 20, 512).unwrap();
        let sequences: Vec<u64> = sent.iter().map(|sent| sent.key.sequence).collect();
        assert_eq!(sequences, [0, 2, 3], "byte {at}");
        assert_eq!(buffer, [&frames[0][..], &frames[2], &frames[3]].concat());
        drop((writer, reader));
    }
}

#[test]
fn damage_while_running_is_counted_in_records() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    let frame = sample::frame(0, 3, 20_000);
    writer.append(&frame).unwrap();
    // A segment of its own, since the first is full.
    writer.append(&sample::frame(1, 2, 20_000)).unwrap();
    let path = &segments(directory.path())[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[frame.len() / 2] ^= 1;
    fs::write(path, &bytes).unwrap();
    assert_eq!(drain(&mut reader), [1]);
    assert_eq!(reader.damaged_records(), 3);
    assert_eq!(reader.depth().records, 0);
}

#[test]
fn a_segment_that_cannot_be_read_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    for sequence in 0..2 {
        writer.append(&sample::frame(sequence, 3, 20_000)).unwrap();
    }
    fs::remove_file(&segments(directory.path())[0]).unwrap();
    let error = reader.batch(&mut Vec::new(), 1 << 20, 512).unwrap_err();
    assert!(matches!(error, SpoolError::Io { action: "open", .. }), "{error}");
    assert!(reader.is_lost(&error));
    reader.abandon();
    assert_eq!(drain(&mut reader), [1]);
    assert_eq!(reader.damaged_records(), 3);
}

#[test]
fn a_folder_that_is_away_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let (mut writer, mut reader, _) = Spool::open(&spool, LIMITS).unwrap();
    writer.append(&sample::frame(0, 1, 20_000)).unwrap();
    let away = directory.path().join("away");
    fs::rename(&spool, &away).unwrap();
    // Nothing there, and the folder of another agent.
    for _ in 0..2 {
        let error = reader.batch(&mut Vec::new(), 1 << 20, 512).unwrap_err();
        assert!(!reader.is_lost(&error), "{error}");
        fs::create_dir_all(&spool).unwrap();
        fs::write(spool.join("lock"), "").unwrap();
    }
    fs::remove_dir_all(&spool).unwrap();
    fs::rename(&away, &spool).unwrap();
    assert_eq!(drain(&mut reader), [0]);
}

#[test]
fn what_is_settled_and_cannot_be_removed_stays_in_the_books() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let (mut writer, mut reader, _) = Spool::open(&spool, LIMITS).unwrap();
    for sequence in 0..3 {
        writer.append(&sample::frame(sequence, 1, 40_000)).unwrap();
    }
    reader.batch(&mut Vec::new(), 1, 1).unwrap();
    let away = directory.path().join("away");
    fs::rename(&spool, &away).unwrap();
    reader.acknowledge(|_| true);
    assert_eq!((reader.depth().segments, reader.depth().frames), (3, 2));
    fs::rename(&away, &spool).unwrap();
    // With the next one it goes.
    reader.batch(&mut Vec::new(), 1, 1).unwrap();
    reader.acknowledge(|_| true);
    assert_eq!((reader.depth().segments, segments(&spool).len()), (1, 1));
}

#[test]
fn what_is_acknowledged_stays_so_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    for sequence in 0..5 {
        writer.append(&sample::frame(sequence, 1, 8)).unwrap();
    }
    reader.batch(&mut Vec::new(), 1 << 20, 512).unwrap();
    // What is held behind a gap has left, but a restart does not know it.
    let settled = reader.acknowledge(|key| key.sequence != 3);
    assert_eq!((settled.frames, settled.records), (4, 4));
    assert_eq!((reader.depth().frames, reader.depth().records), (1, 1));
    drop((writer, reader));
    let (_writer, mut reader, recovery) = Spool::open(directory.path(), LIMITS).unwrap();
    assert_eq!(recovery.frames, 2);
    assert_eq!(drain(&mut reader), [3, 4]);
}

/// As where A/B slots share the folder of state: back and forth nothing is lost.
#[test]
fn frames_of_another_version_are_set_aside_and_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    for sequence in 0..2 {
        writer.append(&sample::frame(sequence, 1, 40_000)).unwrap();
    }
    drop((writer, reader));
    let of_newer = &segments(directory.path())[1];
    let mut bytes = fs::read(of_newer).unwrap();
    bytes[3] += 1;
    fs::write(of_newer, &bytes).unwrap();
    for _ in 0..2 {
        let (mut writer, mut reader, recovery) = Spool::open(directory.path(), LIMITS).unwrap();
        assert_eq!(recovery.foreign_bytes, bytes.len() as u64);
        assert_eq!((recovery.cut_bytes, recovery.damaged_bytes), (0, 0));
        // What comes behind it is settled, and it is not.
        writer.append(&sample::frame(7, 1, 8)).unwrap();
        drain(&mut reader);
    }
    // Another of its number does not take its place.
    fs::write(of_newer, &bytes).unwrap();
    for _ in 0..2 {
        let (_, _, recovery) = Spool::open(directory.path(), LIMITS).unwrap();
        assert_eq!(recovery.foreign_bytes, 2 * bytes.len() as u64);
    }
    let aside = of_newer.with_extension("aside");
    let length = bytes.len() as u64;
    bytes[3] -= 1;
    fs::write(&aside, &bytes).unwrap();
    let (_writer, mut reader, recovery) = Spool::open(directory.path(), LIMITS).unwrap();
    assert_eq!((recovery.frames, recovery.foreign_bytes), (1, length));
    assert_eq!(drain(&mut reader), [1]);
    assert!(!aside.exists());
}

#[test]
fn only_what_is_missing_is_given_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    let frames: Vec<Vec<u8>> = (0..9).map(|sequence| sample::frame(sequence, 1, 8)).collect();
    for frame in &frames {
        writer.append(frame).unwrap();
    }
    let mut buffer = Vec::new();
    reader.batch(&mut buffer, 1 << 20, 512).unwrap();
    let settled = reader.acknowledge(|key| ![1, 2, 6].contains(&key.sequence));
    assert_eq!((settled.frames, settled.records), (6, 6));
    for (left, held) in [(vec![1, 2, 6], 2), (vec![1, 6], 1), (vec![6], 6)] {
        let sent = reader.batch(&mut buffer, 1 << 20, 512).unwrap();
        let sequences: Vec<u64> = sent.iter().map(|sent| sent.key.sequence).collect();
        assert_eq!(sequences, left);
        assert_eq!(
            buffer,
            left.iter().flat_map(|s| frames[*s as usize].clone()).collect::<Vec<u8>>()
        );
        let depth = reader.depth();
        assert_eq!((depth.frames, depth.records), (left.len() as u64, left.len() as u64));
        assert_eq!(reader.acknowledge(|key| key.sequence == held).frames, 1);
    }
    writer.append(&sample::frame(9, 1, 8)).unwrap();
    assert_eq!(drain(&mut reader), [9]);
    assert_eq!((reader.damaged_records(), reader.depth().frames), (0, 0));
}

#[test]
fn one_process_owns_a_spool() {
    let directory = tempfile::tempdir().unwrap();
    let ends = Spool::open(directory.path(), LIMITS).unwrap();
    let error = Spool::open(directory.path(), LIMITS).unwrap_err();
    let expected = format!(
        "spool: {} is in use by process {} (stop that agent first)",
        directory.path().display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    drop(ends);
    Spool::open(directory.path(), LIMITS).unwrap();
}

#[test]
fn bytes_that_are_no_frame_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = Spool::open(directory.path(), LIMITS).unwrap();
    let mut two = sample::frame(0, 1, 8);
    two.extend(sample::frame(1, 1, 8));
    for bytes in [&b"SFE"[..], &two] {
        assert!(matches!(writer.append(bytes), Err(SpoolError::NotAFrame(_))));
    }
    assert_eq!(writer.depth().frames, 0);
}

#[test]
fn quota_and_upload_in_two_threads_count_every_record_once() {
    const FRAMES: u64 = 3000;
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_max: 200_000, sync: Sync::OnRequest };
    let (mut writer, mut reader, _) = Spool::open(directory.path(), limits).unwrap();
    let appending = std::thread::spawn(move || {
        let mut dropped = 0;
        for sequence in 0..FRAMES {
            // Generations of ten, since the quota takes whole ones.
            let generation = (sequence as u32 / 10, sequence % 10 == 0);
            let frame = sample::frame_of(1, generation, sequence, 1, 900);
            dropped += writer.append(&frame).unwrap().dropped_records;
        }
        dropped
    });
    let mut delivered = Vec::new();
    let mut buffer = Vec::new();
    let mut turn = 0_u64;
    while !appending.is_finished() || reader.depth().frames > 0 {
        turn += 1;
        let sent = reader.batch(&mut buffer, 20_000, 512).unwrap();
        let sequences: Vec<u64> = sent.iter().map(|sent| sent.key.sequence).collect();
        // Each third upload fails, each other one is held in part.
        let held = match turn % 3 {
            0 => 0,
            1 => sequences.len(),
            _ => sequences.len() / 2,
        };
        let held = sequences.get(..held).unwrap();
        let settled = reader.acknowledge(|key| held.contains(&key.sequence));
        assert_eq!(settled.frames as usize, held.len());
        delivered.extend_from_slice(held);
    }
    let dropped = appending.join().unwrap();
    assert!(delivered.is_sorted_by(|a, b| a < b), "in order, none twice");
    assert_eq!(delivered.len() as u64 + dropped, FRAMES);
}
