//! What a spool's folder holds when it is opened: reads every segment once, with one buffer, cuts
//! what a crash left, and removes what is settled.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::{
    Generation, Positions, Recovery, Segment, SpoolError, failed, scan, segment_numbers,
    segment_path,
};

/// Reads all segments. Returns those that hold frames, the number for the next one, and the
/// report.
pub(super) fn recover(
    directory: &Path,
    settled: Positions,
) -> Result<(VecDeque<Segment>, u64, Recovery), SpoolError> {
    let numbers = segment_numbers(directory)?;
    let known = settled.0.into_iter().map(|(number, _)| number).chain(numbers.last().copied());
    let next = known.max().unwrap_or(0) + 1;
    let mut recovery = Recovery::default();
    let mut segments = VecDeque::new();
    let mut buffer = Vec::new();
    for number in numbers {
        let path = segment_path(directory, number);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        let segment = recover_segment(&file, number, &settled, &mut recovery, &mut buffer)
            .map_err(failed("read", &path))?;
        match segment.filter(Segment::waits) {
            Some(segment) => {
                recovery.frames += segment.frames;
                recovery.records += segment.records;
                segments.push_back(segment);
            }
            None => fs::remove_file(&path).map_err(failed("remove", &path))?,
        }
    }
    Ok((segments, next, recovery))
}

/// What a segment holds; none without a whole frame, or if its removal was cut short.
fn recover_segment(
    file: &File,
    number: u64,
    settled: &Positions,
    recovery: &mut Recovery,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Segment>> {
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
        return Ok(None);
    }
    recovery.damaged_bytes += damaged_before;
    let whole = found.as_ref().map_or(0, |segment| segment.bytes);
    if length > whole {
        file.set_len(whole)?;
        file.sync_data()?;
        recovery.cut_bytes += length - whole;
    }
    Ok(found)
}
