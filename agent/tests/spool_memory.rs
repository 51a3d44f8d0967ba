//! The spool that writes as little as it can: what is delivered in time costs no write, what is
//! not is written, and memory has its bound.

#![allow(clippy::unwrap_used)]

mod sample;

use std::path::Path;

use agent::spool::{Limits, Reader, Spool, SpoolError, Sync, Writer};

const MEMORY_BYTES: u64 = 60_000;
const LIMITS: Limits =
    Limits { bytes_max: 1 << 20, sync: Sync::MemoryFirst { bytes_max: MEMORY_BYTES } };

fn open(directory: &Path) -> (Writer, Reader) {
    let (writer, reader, _) = Spool::open(directory, LIMITS).unwrap();
    (writer, reader)
}

/// Bytes in files of frames.
fn on_disk(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let frames = files.filter(|path| path.extension().is_some_and(|end| end == "frames"));
    frames.map(|path| std::fs::metadata(path).unwrap().len()).sum()
}

/// Takes out at most so many frames: their sequences.
fn take(reader: &mut Reader, frames: usize) -> Vec<u64> {
    let mut buffer = Vec::new();
    let sent = reader.batch(&mut buffer, 1 << 20, frames).unwrap().to_vec();
    // What comes out is what went in, from memory and from files.
    let expected: Vec<u8> =
        sent.iter().flat_map(|sent| sample::frame(sent.key.sequence, 1, 10_000)).collect();
    assert!(buffer == expected, "{} bytes are not those of {sent:?}", buffer.len());
    reader.acknowledge(|_| true);
    sent.iter().map(|sent| sent.key.sequence).collect()
}

fn append(writer: &mut Writer, sequences: std::ops::Range<u64>) {
    for sequence in sequences {
        assert!(writer.append(&sample::frame(sequence, 1, 10_000)).unwrap().is_kept);
    }
}

#[test]
fn what_is_delivered_in_time_is_never_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader) = open(directory.path());
    for round in 0..20 {
        append(&mut writer, 3 * round..3 * round + 3);
        assert_eq!(take(&mut reader, 2), [3 * round, 3 * round + 1]);
        assert_eq!(take(&mut reader, 2), [3 * round + 2]);
    }
    writer.sync().unwrap();
    assert_eq!((writer.written_bytes(), on_disk(directory.path())), (0, 0));
    assert_eq!(writer.depth().bytes, 0);
}

#[test]
fn buffers_take_what_they_hold() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader) = open(directory.path());
    let frames: Vec<Vec<u8>> = (0..5).map(|number| sample::frame(number, 1, 10_000)).collect();
    let held: usize = frames.iter().map(Vec::len).sum();
    let taken = allocation_counter::measure(|| {
        for frame in &frames {
            writer.append(frame).unwrap();
        }
    });
    let more = taken.bytes_current - held as i64;
    assert!((0..4096).contains(&more), "{} for {held}", taken.bytes_current);
    let mut buffer = Vec::new();
    for frames in 1..5 {
        reader.batch(&mut buffer, frames * 10_100, 512).unwrap();
        assert!(buffer.capacity() <= frames * 10_100, "{}", buffer.capacity());
    }
}

#[test]
fn what_the_device_refuses_waits_in_memory_until_it_takes_it() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    for sync in [Sync::EachFrame, Sync::OnRequest] {
        let limits = Limits { bytes_max: 1 << 20, sync };
        let (mut writer, mut reader, _) = Spool::open(&spool, limits).unwrap();
        writer.hold_at_most(MEMORY_BYTES);
        let away = directory.path().join("away");
        std::fs::rename(&spool, &away).unwrap();
        append(&mut writer, 0..5);
        let trouble = writer.trouble().unwrap();
        assert!(matches!(trouble, SpoolError::Io { action: "create", .. }), "{trouble}");
        writer.append(&sample::frame(5, 1, 10_000)).unwrap_err();
        assert_eq!(take(&mut reader, 2), [0, 1]);
        std::fs::rename(&away, &spool).unwrap();
        // What comes now is written behind it, and with the next look so is that.
        append(&mut writer, 6..7);
        assert!(writer.trouble().is_none());
        assert_eq!((writer.depth().frames, on_disk(&spool) / 10_000), (4, 1));
        writer.sync().unwrap();
        assert!(on_disk(&spool) > 40_000);
        assert_eq!(take(&mut reader, 9), [2, 3, 4]);
        assert_eq!(take(&mut reader, 9), [6]);
        assert_eq!(reader.depth().frames, 0);
    }
}

#[test]
fn memory_has_its_bound_and_files_take_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader) = open(directory.path());
    for sequence in 0..40 {
        append(&mut writer, sequence..sequence + 1);
        let depth = writer.depth();
        assert!(depth.bytes - on_disk(directory.path()) <= MEMORY_BYTES);
    }
    assert!(writer.written_bytes() > 300_000);
    // Across the border between file and memory.
    let mut out = take(&mut reader, 3);
    append(&mut writer, 40..43);
    while reader.depth().frames > 0 {
        out.extend(take(&mut reader, 4));
    }
    assert_eq!(out, (0..43).collect::<Vec<_>>());
    assert_eq!(on_disk(directory.path()), 0);
}

#[test]
fn an_end_in_order_writes_what_is_left_and_a_kill_takes_what_was_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, mut reader) = open(directory.path());
    append(&mut writer, 0..3);
    assert_eq!(take(&mut reader, 1), [0]);
    writer.sync().unwrap();
    append(&mut writer, 3..5);
    drop((writer, reader));
    let (mut writer, mut reader) = open(directory.path());
    assert_eq!(take(&mut reader, 9), [1, 2]);
    append(&mut writer, 5..7);
    writer.sync().unwrap();
    drop((writer, reader));
    assert_eq!(take(&mut open(directory.path()).1, 9), [5, 6]);
}

#[test]
fn a_frame_for_which_nothing_can_be_written_is_refused_whole() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let (mut writer, mut reader) = open(&spool);
    append(&mut writer, 0..5);
    std::fs::rename(&spool, directory.path().join("away")).unwrap();
    let error = writer.append(&sample::frame(5, 1, 10_000)).unwrap_err();
    assert!(matches!(error, SpoolError::Io { action: "write", .. }), "{error}");
    assert_eq!(writer.depth().frames, 5);
    // Delivery goes on from memory, and makes room there.
    assert_eq!(take(&mut reader, 9), [0, 1, 2, 3, 4]);
    append(&mut writer, 6..7);
    assert_eq!(take(&mut reader, 9), [6]);
}
