//! Frames that are in memory and in no file yet: taken in, written out as far as the day's bytes for
//! flash go, and dropped where neither memory nor the budget has room. Bound: that of
//! [`Sync::MemoryFirst`], or of [`Writer::spare`].

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use codec::{CLASSES, Class, DropReason, Frame, StreamKey};

use super::{Generation, NEW_SEGMENT_BYTES, Segment, SpoolError, Writer, blocks_bytes, failed};
use crate::tombstones::Graveyard;

impl Writer {
    /// Writes out the oldest of what is in memory until at most so many bytes are left there.
    /// Returns whether that is so: what the budget has no bytes for stays.
    pub(super) fn write_memory(&mut self, bytes_max: u64) -> Result<bool, SpoolError> {
        self.write_memory_of(&Class::ALL, bytes_max)
    }

    /// The same, of these classes alone.
    fn write_memory_of(&mut self, classes: &[Class], bytes_max: u64) -> Result<bool, SpoolError> {
        let is_of = |s: &Segment| classes.iter().any(|class| *class as usize == s.lane());
        loop {
            let left = self.left();
            let (number, lane, offset, bytes) = {
                let mut state = self.shared.state();
                let held = state.segments.iter().filter(|s| is_of(s));
                if held.map(|s| s.memory.len() as u64).sum::<u64>() <= bytes_max {
                    return Ok(true);
                }
                let fits = |s: &&mut Segment| {
                    let cost = held_cost(s.written_bytes, s.memory.len() as u64);
                    let is_left = left.get(s.lane()).is_some_and(|left| *left >= cost);
                    is_of(s) && !s.memory.is_empty() && is_left
                };
                let Some(segment) = state.segments.iter_mut().find(fits) else { return Ok(false) };
                let lane = segment.lane();
                (segment.number, lane, segment.written_bytes, Arc::clone(&segment.memory))
            };
            if !self.take(lane, held_cost(offset, bytes.len() as u64)) {
                return Ok(false);
            }
            // The reader goes on in memory meanwhile.
            let path = self.shared.path(number);
            let written = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .and_then(|file| {
                    file.write_all_at(&bytes, offset)?;
                    self.syncer.sync(&Arc::new(file))
                });
            written.map_err(failed("write", &path))?;
            self.written_bytes += bytes.len() as u64;
            if offset == 0 {
                self.sync_directory(&self.syncer)?;
            }
            let mut state = self.shared.state();
            match state.segments.iter_mut().find(|segment| segment.number == number) {
                Some(segment) => {
                    segment.written_bytes += bytes.len() as u64;
                    segment.memory = Arc::default();
                }
                None => {
                    // Delivered meanwhile.
                    drop(state);
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }

    /// Makes durable what was appended of a class, and nothing else; as for [`Writer::sync`] it is not
    /// waited for.
    ///
    /// # Errors
    /// If the device refuses. What could not be written stays in memory then.
    pub fn sync_class(&mut self, class: Class) -> Result<(), SpoolError> {
        self.write_memory_of(&[class], 0)?;
        match self.file(class as usize) {
            Some(file) => {
                self.syncer.sync(file).map_err(failed("sync", &self.shared.directory))?;
                // Its name, too: the segment may be new.
                self.sync_directory(&self.syncer)
            }
            None => Ok(()),
        }
    }

    /// Whether frames of a class are in memory alone, and not delivered either.
    pub fn holds(&self, class: Class) -> bool {
        let state = self.shared.state();
        let mut segments = state.segments.iter();
        segments
            .any(|s| s.lane() == class as usize && s.bytes > s.written_bytes.max(s.settled_bytes))
    }

    /// Takes the frame into memory, behind the last one of its generation, or into a new segment
    /// where there is none, it is full, or all of it is delivered. Returns whether it is in: where
    /// nothing more may be written, frames go to make room, none of a more urgent class, and where
    /// that is not enough, the frame itself.
    pub(super) fn hold(
        &mut self,
        frame: &[u8],
        key: &StreamKey,
        generation: Generation,
        records: u32,
        memory_bytes_max: u64,
    ) -> Result<bool, SpoolError> {
        let (lane, length) = (generation.lane(), frame.len() as u64);
        if self.file(lane).is_some() {
            self.close_file(lane);
        }
        while !self.write_memory(memory_bytes_max.saturating_sub(length))? {
            if !self.drop_held(lane, DropReason::FlashBudget)? {
                return Ok(false);
            }
        }
        if self.dead.get(lane) == Some(&Some(generation)) {
            return Ok(false);
        }
        let segment_bytes = self.shared.segment_bytes();
        let fits = |segment: &Segment| {
            segment.generation == generation
                && segment.waits()
                && segment.bytes + length <= segment_bytes
        };
        let mut state = self.shared.state();
        if !state.last_of(lane).is_some_and(fits) {
            state.segments.push_back(Segment::new(self.next, generation, key));
            self.next += 1;
        }
        let last = state.segments.iter_mut().rfind(|segment| segment.lane() == lane);
        if let Some(segment) = last {
            segment.note(key);
            let memory = Arc::make_mut(&mut segment.memory);
            // Not twice as much at a time: the budget counts what is held.
            memory.reserve_exact(frame.len());
            memory.extend_from_slice(frame);
            segment.bytes += length;
            segment.frames += 1;
            segment.records += u64::from(records);
        }
        Ok(true)
    }

    /// Drops the oldest generation that is in memory, the least urgent first, none that is more
    /// urgent than `lane`: what it has in memory and what came behind that. What it has in files
    /// before can be read without. Returns whether anything went.
    fn drop_held(&mut self, lane: usize, reason: DropReason) -> Result<bool, SpoolError> {
        let victim = {
            let state = self.shared.state();
            let oldest = |of: usize| {
                let mut segments = state.segments.iter();
                segments.find(|s| s.lane() == of && !s.pinned && !s.memory.is_empty())
            };
            let victim = (lane..CLASSES).rev().find_map(oldest);
            victim.map(|segment| (segment.number, segment.generation))
        };
        let Some((number, generation)) = victim else { return Ok(false) };
        self.drop_tail(number, reason);
        self.drop_from(generation, number + 1, reason)?;
        if self.present.get(generation.lane()) == Some(&Some(generation)) {
            self.kill(generation, reason);
        }
        Ok(true)
    }

    /// Drops what a segment has in memory and nobody has yet.
    fn drop_tail(&mut self, number: u64, reason: DropReason) {
        let mut state = self.shared.state();
        let Some(at) = state.segments.iter().position(|s| s.number == number && !s.pinned) else {
            return;
        };
        let Some(segment) = state.segments.get_mut(at) else { return };
        let memory = std::mem::take(&mut segment.memory);
        let settled = segment.settled_bytes.saturating_sub(segment.written_bytes);
        let settled = usize::try_from(settled).unwrap_or(usize::MAX);
        let mut rest = memory.get(settled..).unwrap_or_default();
        let (mut count, mut range) = ([0, 0], None);
        // Only whole frames were taken in.
        while let Ok((frame, behind)) = Frame::decode(rest) {
            let sequence = frame.header.key.sequence;
            range = Some([range.map_or(sequence, |[first, _]: [u64; 2]| first), sequence]);
            count = [count[0] + 1, count[1] + u64::from(frame.header.records)];
            rest = behind;
        }
        let generation = segment.generation;
        segment.bytes = segment.written_bytes;
        segment.settled_bytes = segment.settled_bytes.min(segment.bytes);
        segment.frames = segment.frames.saturating_sub(count[0]);
        segment.records = segment.records.saturating_sub(count[1]);
        if let (Some([_, last]), Some([first, _])) = (&mut segment.sequences, range) {
            *last = first.saturating_sub(1);
        }
        let is_empty = !segment.waits();
        let has_file = segment.written_bytes > 0;
        if is_empty {
            state.segments.remove(at);
        }
        drop(state);
        if is_empty && has_file {
            // What cannot be removed now is removed when the spool is opened next.
            let _ = fs::remove_file(self.shared.path(number));
        }
        self.dropped.add(&generation, reason, range, count);
    }

    /// Writes what is in memory out, as far as the budget goes and the device takes it, and drops the
    /// rest: for the end of a run. All of it is durable when it returns, but for what the device refused
    /// while nobody waited ([`Syncer::error`](crate::syncer::Syncer::error)). Returns what went, and why
    /// the device refused it.
    pub fn close(&mut self) -> (Graveyard, Option<SpoolError>) {
        self.syncer.finish();
        let mut refused = self.sync().err();
        while refused.is_none() {
            refused = match self.write_memory(0) {
                Ok(true) => break,
                Ok(false) => match self.drop_held(0, DropReason::FlashBudget) {
                    Ok(true) => None,
                    Ok(false) => break,
                    Err(error) => Some(error),
                },
                Err(error) => Some(error),
            };
        }
        if refused.is_some() {
            // Each round empties a segment's memory, also where its file cannot be removed.
            while !matches!(self.drop_held(0, DropReason::SpoolFull), Ok(false)) {}
        }
        (std::mem::take(&mut self.dropped).stones, refused)
    }
}

/// What it costs to write so many bytes out of memory at `offset`.
fn held_cost(offset: u64, bytes: u64) -> u64 {
    let begin = if offset == 0 { NEW_SEGMENT_BYTES } else { 0 };
    begin + blocks_bytes(offset, offset + bytes)
}
