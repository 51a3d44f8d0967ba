//! What a spool's folder holds when it is opened: reads every segment once, with one buffer, cuts
//! what a crash left, and removes what is settled. Segments whose frames are of a version that is
//! not known, as an agent of another version leaves them that shares the folder, are set aside under
//! another name, and taken back by one that reads them.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use codec::{DecodeError, Frame};

use super::{
    EXTENSION, EXTENSION_ASIDE, Generation, Positions, Recovery, Segment, SpoolError, failed, scan,
    segment_numbers, segment_path,
};

/// Reads all segments. Returns those that hold frames, the number for the next one, and the
/// report.
pub(super) fn recover(
    directory: &Path,
    settled: Positions,
) -> Result<(VecDeque<Segment>, u64, Recovery), SpoolError> {
    let mut numbers = segment_numbers(directory, EXTENSION)?;
    let known = settled.numbers().chain(numbers.last().copied());
    let mut next = known.max().unwrap_or(0) + 1;
    let mut recovery = Recovery::default();
    take_back(directory, &mut numbers, &mut next, &mut recovery)?;
    let mut segments = VecDeque::new();
    let mut buffer = Vec::new();
    for number in numbers {
        let path = segment_path(directory, number);
        let file = File::open(&path).map_err(failed("open", &path))?;
        let held = recover_segment(&file, &path, number, &settled, &mut recovery, &mut buffer)
            .map_err(failed("read", &path))?;
        match held {
            Held::Frames(segment) if segment.waits() => {
                recovery.frames += segment.frames;
                recovery.records += segment.records;
                segments.push_back(segment);
            }
            Held::Foreign => {
                let aside = aside_path(directory, number);
                fs::rename(&path, aside).map_err(failed("set aside", &path))?;
            }
            Held::Frames(_) | Held::Nothing => {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
    }
    Ok((segments, next, recovery))
}

/// Takes segments that were set aside and whose frames can be read for new ones: newer ones may be
/// settled already.
fn take_back(
    directory: &Path,
    numbers: &mut Vec<u64>,
    next: &mut u64,
    recovery: &mut Recovery,
) -> Result<(), SpoolError> {
    for number in segment_numbers(directory, EXTENSION_ASIDE)? {
        let aside = segment_path(directory, number).with_extension(EXTENSION_ASIDE);
        let file = File::open(&aside).map_err(failed("open", &aside))?;
        if is_foreign(&file) {
            recovery.foreign_bytes += file.metadata().map_err(failed("read", &aside))?.len();
            continue;
        }
        fs::rename(&aside, segment_path(directory, *next)).map_err(failed("take back", &aside))?;
        numbers.push(*next);
        *next += 1;
    }
    Ok(())
}

/// Where a segment is set aside: under its number, or a later one where another has that.
fn aside_path(directory: &Path, number: u64) -> PathBuf {
    let named = |number| segment_path(directory, number).with_extension(EXTENSION_ASIDE);
    (number..u64::MAX).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(number))
}

/// As much of a frame as tells its version: [`Frame::length`].
const HEAD_BYTES: usize = 8;

/// What a segment's file holds.
enum Held {
    Frames(Segment),
    /// Frames of another version, and none of ours.
    Foreign,
    /// No whole frame, or what is left of a removal that was cut short.
    Nothing,
}

/// Whether a file begins with a frame of a version that is not known.
fn is_foreign(file: &File) -> bool {
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, 0).is_ok()
        && matches!(Frame::length(&head), Err(DecodeError::UnknownVersion(_)))
}

fn recover_segment(
    file: &File,
    path: &Path,
    number: u64,
    settled: &Positions,
    recovery: &mut Recovery,
    buffer: &mut Vec<u8>,
) -> io::Result<Held> {
    let length = file.metadata()?.len();
    let mut damaged = 0;
    let mut damaged_before = 0;
    let mut found: Option<Segment> = None;
    scan::file(file, length, buffer, |what, end| match what {
        scan::Found::Frame(frame) => {
            damaged_before += std::mem::take(&mut damaged);
            let generation = Generation::new(&frame.key, frame.generation);
            let segment = found.get_or_insert_with(|| Segment::new(number, generation, &frame.key));
            segment.note(&frame.key);
            segment.bytes = end;
            segment.written_bytes = end;
            if end <= settled.settled_in(frame.key.class, number) {
                segment.settled_bytes = end;
            } else {
                segment.frames += 1;
                segment.records += u64::from(frame.records);
            }
        }
        scan::Found::Damage(bytes) => damaged += bytes as u64,
        scan::Found::Partial | scan::Found::End => {}
    })?;
    let is_stale = found
        .as_ref()
        .is_some_and(|segment| settled.settled_in(segment.generation.class, number) == u64::MAX);
    if is_stale {
        return Ok(Held::Nothing);
    }
    if found.is_none() && is_foreign(file) {
        recovery.foreign_bytes += length;
        return Ok(Held::Foreign);
    }
    recovery.damaged_bytes += damaged_before;
    let whole = found.as_ref().map_or(0, |segment| segment.bytes);
    if length > whole {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole)?;
        file.sync_data()?;
        recovery.cut_bytes += length - whole;
    }
    Ok(found.map_or(Held::Nothing, Held::Frames))
}
