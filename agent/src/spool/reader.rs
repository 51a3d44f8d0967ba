//! The end that gives frames out and takes back what became of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use codec::{CLASSES, FRAME_BYTES_MAX, StreamKey};
use rustix::io::Errno;

use super::scan::{self, Found};
use super::{Depth, POSITION_BYTES, Positions, Shared, SpoolError, failed, lane_of};
use crate::slots::Slots;
use crate::wear::{Meter, Wear};

/// Most frames of one batch: bounds what is remembered of it.
const BATCH_FRAMES_MAX: usize = 512;

/// Gives out frames, the most urgent first, of each class the oldest first. Owned by the upload
/// thread.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    position: Slots<POSITION_BYTES>,
    settled: Positions,
    /// How often the position may be written.
    meter: Meter,
    /// Whether it is older than what is settled.
    is_old: bool,
    /// The last segment that was read, open.
    file: Option<(u64, File)>,
    /// The segment of the last batch.
    number: u64,
    /// The frames of the last batch that are not settled.
    in_flight: Vec<Sent>,
    /// By class, frames behind the settled ones that are held, too.
    ahead: [Ahead; CLASSES],
    damaged_records: u64,
}

/// A frame that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its place in its stream.
    pub key: StreamKey,
    /// Its generation.
    pub generation: u32,
    /// Whether the generation begins with it.
    pub starts: bool,
    /// Records in it.
    pub records: u32,
    /// Its size.
    pub bytes: usize,
    /// Offset behind it in its segment.
    end: u64,
}

/// What left the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Frames of a segment that the collector holds, behind one that it does not: they are settled
/// with that one, and not given out again in this run. At most as many as a batch has.
#[derive(Debug, Default)]
struct Ahead {
    number: u64,
    /// Offsets behind the frames.
    ends: Vec<u64>,
}

impl Ahead {
    fn has(&self, number: u64, end: u64) -> bool {
        self.number == number && self.ends.contains(&end)
    }

    /// Whether there was room to note it.
    fn note(&mut self, number: u64, end: u64) -> bool {
        if self.number != number {
            (self.number, self.ends) = (number, Vec::new());
        }
        let has_room = self.ends.len() < BATCH_FRAMES_MAX;
        if has_room {
            self.ends.push(end);
        }
        has_room
    }

    fn settle(&mut self, number: u64, end: u64) {
        self.ends.retain(|ahead| self.number != number || *ahead > end);
    }
}

impl Settled {
    fn add(&mut self, sent: &Sent) {
        self.frames += 1;
        self.records += u64::from(sent.records);
        self.bytes += sent.bytes as u64;
    }
}

/// What of one segment is to be given out next.
struct Span {
    number: u64,
    class: u8,
    from: u64,
    to: u64,
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        position: Slots<POSITION_BYTES>,
        settled: Positions,
    ) -> Self {
        Reader {
            shared,
            position,
            settled,
            meter: Meter::default(),
            is_old: false,
            file: None,
            number: 0,
            in_flight: Vec::new(),
            ahead: Default::default(),
            damaged_records: 0,
        }
    }

    /// From now on what is settled is remembered seldom, and counted as written.
    pub fn spare(&mut self, wear: Arc<Wear>) {
        self.meter = Meter::new(Some(wear));
    }

    /// Remembers what is settled, at the end of a run: what was not repeats after a restart.
    pub fn close(&mut self) {
        if self.is_old {
            self.meter.count();
            let _ = self.position.write(&self.settled.bytes());
            self.is_old = false;
        }
    }

    /// Replaces the contents of `buffer` by the oldest frames that are not settled, whole,
    /// back to back: at most `bytes_max` bytes, but one frame at least, and at most
    /// `frames_max` of them. Returns what they are; nothing if nothing waits. The batch before
    /// is given back as it was.
    ///
    /// # Errors
    /// If a segment cannot be read. [`Reader::abandon`] goes on behind one that [`Reader::is_lost`].
    pub fn batch(
        &mut self,
        buffer: &mut Vec<u8>,
        bytes_max: usize,
        frames_max: usize,
    ) -> Result<&[Sent], SpoolError> {
        self.batch_within(buffer, [bytes_max; CLASSES], frames_max)
    }

    /// As [`Reader::batch`], with as many bytes as each class may have: none of one with 0.
    ///
    /// # Errors
    /// As for [`Reader::batch`].
    pub fn batch_within(
        &mut self,
        buffer: &mut Vec<u8>,
        bytes_max: [usize; CLASSES],
        frames_max: usize,
    ) -> Result<&[Sent], SpoolError> {
        self.release();
        buffer.clear();
        for (lane, bytes_max) in bytes_max.into_iter().enumerate().filter(|(_, max)| *max > 0) {
            while let Some(span) = self.pin(lane) {
                let end = self.fill(&span, buffer, bytes_max, frames_max.max(1))?;
                if !self.in_flight.is_empty() {
                    return Ok(&self.in_flight);
                }
                // All of it is damaged, or held.
                self.settle_to(span.number, span.class, end, 0, 0);
            }
        }
        Ok(&self.in_flight)
    }

    /// The frames of the last batch that are not settled, in its order.
    pub fn in_flight(&self) -> &[Sent] {
        &self.in_flight
    }

    /// Settles the leading frames of the batch for which `held` says that the collector has
    /// them durably, and gives the others back. Frames that are held behind one that is not have
    /// left, too, and are not given out again; after a restart they may be.
    pub fn acknowledge(&mut self, held: impl Fn(&StreamKey) -> bool) -> Settled {
        let leading = self.in_flight.iter().take_while(|sent| held(&sent.key)).count();
        let mut ahead = Settled::default();
        for sent in self.in_flight.iter().skip(leading).filter(|sent| held(&sent.key)) {
            let lane = lane_of(sent.key.class);
            let noted = self.ahead.get_mut(lane).is_some_and(|a| a.note(self.number, sent.end));
            if noted {
                ahead.add(sent);
            }
        }
        if ahead.frames > 0 {
            // Before the quota may take the segment, and counts what is in it as lost.
            let mut state = self.shared.state();
            if let Some(segment) = state.segments.iter_mut().find(|s| s.number == self.number) {
                segment.frames = segment.frames.saturating_sub(ahead.frames);
                segment.records = segment.records.saturating_sub(ahead.records);
            }
        }
        let Settled { frames, records, bytes } = self.settle(leading);
        Settled {
            frames: frames + ahead.frames,
            records: records + ahead.records,
            bytes: bytes + ahead.bytes,
        }
    }

    /// Settles the first `frames` of the batch, which nobody will ever take, and gives the
    /// others back. The caller counts them.
    pub fn discard(&mut self, frames: usize) -> Settled {
        self.settle(frames)
    }

    /// Gives the batch back as it was.
    pub fn release(&mut self) {
        self.settle(0);
    }

    /// Goes on behind the segment of the last batch, which could not be read.
    pub fn abandon(&mut self) {
        let pinned = {
            let state = self.shared.state();
            let pinned = state.segments.iter().find(|segment| segment.pinned);
            pinned.map(|segment| (segment.number, segment.generation.class, segment.bytes))
        };
        self.in_flight.clear();
        if let Some((number, class, end)) = pinned {
            self.settle_to(number, class, end, 0, 0);
        }
    }

    /// Whether a segment that [`Reader::batch`] could not read will never be readable: the folder is
    /// there, and the device says that the file is damaged or gone. Else it may come back.
    pub fn is_lost(&self, error: &SpoolError) -> bool {
        let SpoolError::Io { source, .. } = error else { return false };
        let errno = source.raw_os_error().map(Errno::from_raw_os_error);
        let is_damage = matches!(errno, Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN));
        let is_gone = [io::ErrorKind::UnexpectedEof, io::ErrorKind::NotFound];
        (is_damage || is_gone.contains(&source.kind())) && self.shared.is_here()
    }

    /// Records that were in the spool and could not be read back, so far.
    pub fn damaged_records(&self) -> u64 {
        self.damaged_records
    }

    /// What waits in the spool.
    pub fn depth(&self) -> Depth {
        self.shared.depth()
    }

    /// Chooses what to give out next and keeps the quota away from it.
    fn pin(&mut self, lane: usize) -> Option<Span> {
        let mut state = self.shared.state();
        let mut of_class = state.segments.iter_mut().filter(|segment| segment.lane() == lane);
        let segment = of_class.find(|segment| segment.waits())?;
        if segment.is_going {
            return None;
        }
        segment.pinned = true;
        Some(Span {
            number: segment.number,
            class: segment.generation.class,
            from: segment.settled_bytes,
            to: segment.bytes,
        })
    }

    /// Reads frames of the span into `buffer` and `in_flight`. Returns the offset behind what
    /// was looked at.
    fn fill(
        &mut self,
        span: &Span,
        buffer: &mut Vec<u8>,
        bytes_max: usize,
        frames_max: usize,
    ) -> Result<u64, SpoolError> {
        self.number = span.number;
        let left = usize::try_from(span.to - span.from).unwrap_or(usize::MAX);
        let mut wanted = left.min(bytes_max);
        loop {
            // Not twice as much at a time: the budget counts the largest request.
            buffer.reserve_exact(wanted.saturating_sub(buffer.len()));
            buffer.resize(wanted, 0);
            self.read(span, buffer)?;
            let last = wanted == left;
            // Frames are moved together over what is damaged between them.
            let (mut at, mut kept) = (0, 0);
            while self.in_flight.len() < frames_max.min(BATCH_FRAMES_MAX) {
                match scan::find(buffer.get(at..).unwrap_or_default(), last) {
                    Found::Frame(found) if self.is_ahead(span, at + found.bytes) => {
                        at += found.bytes;
                    }
                    // Only where one frame was too large for what was asked is there more.
                    Found::Frame(found) if kept > 0 && kept + found.bytes > bytes_max => break,
                    Found::Frame(found) => {
                        buffer.copy_within(at..at + found.bytes, kept);
                        at += found.bytes;
                        kept += found.bytes;
                        self.in_flight.push(Sent {
                            key: found.key,
                            generation: found.generation,
                            starts: found.starts,
                            records: found.records,
                            bytes: found.bytes,
                            end: span.from + at as u64,
                        });
                    }
                    Found::Damage(bytes) => at += bytes,
                    Found::Partial | Found::End => break,
                }
            }
            if self.in_flight.is_empty() && at == 0 && !last && wanted < FRAME_BYTES_MAX {
                // The first frame alone is larger than what was asked for.
                wanted = left.min(FRAME_BYTES_MAX);
                continue;
            }
            buffer.truncate(kept);
            return Ok(span.from + at as u64);
        }
    }

    /// Whether the frame that ends so many bytes behind the beginning of the span is held.
    fn is_ahead(&self, span: &Span, at: usize) -> bool {
        let ahead = self.ahead.get(lane_of(span.class));
        ahead.is_some_and(|ahead| ahead.has(span.number, span.from + at as u64))
    }

    /// Fills `buffer` with what the segment has from the beginning of the span on: the part that is
    /// written from its file, the rest from memory.
    fn read(&mut self, span: &Span, buffer: &mut [u8]) -> Result<(), SpoolError> {
        let written_bytes = {
            let state = self.shared.state();
            let segment = state.segments.iter().find(|segment| segment.number == span.number);
            // Pinned, so it is there.
            let Some(segment) = segment else { return Ok(()) };
            let in_file = segment.written_bytes.saturating_sub(span.from);
            let in_file = usize::try_from(in_file).unwrap_or(usize::MAX).min(buffer.len());
            let skipped = span.from.saturating_sub(segment.written_bytes);
            let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
            if let Some(place) = buffer.get_mut(in_file..)
                && let Some(memory) = segment.memory.get(skipped..)
                && let Some(memory) = memory.get(..place.len())
            {
                place.copy_from_slice(memory);
            }
            in_file
        };
        let Some(place) = buffer.get_mut(..written_bytes).filter(|place| !place.is_empty()) else {
            return Ok(());
        };
        let path = self.shared.path(span.number);
        let file = match &mut self.file {
            Some((number, file)) if *number == span.number => file,
            other => {
                let file = File::open(&path).map_err(failed("open", &path))?;
                &mut other.insert((span.number, file)).1
            }
        };
        let read = file.read_exact_at(place, span.from).map_err(failed("read", &path));
        if read.is_err() {
            // What comes back in its place is another file.
            self.file = None;
        }
        read
    }

    /// Settles the first `frames` of the batch and gives the others back.
    fn settle(&mut self, frames: usize) -> Settled {
        let mut settled = Settled::default();
        let mut end = None;
        for sent in self.in_flight.iter().take(frames) {
            settled.add(sent);
            end = Some((sent.end, sent.key.class));
        }
        self.in_flight.clear();
        match end {
            Some((end, class)) => {
                self.settle_to(self.number, class, end, settled.frames, settled.records);
            }
            None => self.unpin(),
        }
        settled
    }

    fn unpin(&mut self) {
        for segment in &mut self.shared.state().segments {
            segment.pinned = false;
        }
    }

    /// Everything of the segment before `end` is settled, so many frames and records of it
    /// by delivery or refusal.
    fn settle_to(&mut self, number: u64, class: u8, end: u64, frames: u64, records: u64) {
        let mut finished = false;
        {
            let mut state = self.shared.state();
            let grows = state.grows(number);
            let Some(index) = state.segments.iter().position(|s| s.number == number) else {
                return;
            };
            let Some(segment) = state.segments.get_mut(index) else { return };
            segment.pinned = false;
            segment.settled_bytes = segment.settled_bytes.max(end);
            segment.frames = segment.frames.saturating_sub(frames);
            segment.records = segment.records.saturating_sub(records);
            if !segment.waits() {
                // Frames that were counted in and never came out again.
                self.damaged_records += std::mem::take(&mut segment.records);
                segment.frames = 0;
                if !grows {
                    finished = true;
                }
            }
        }
        if finished {
            self.file = None;
            self.shared.remove_settled();
        }
        if let Some(ahead) = self.ahead.get_mut(lane_of(class)) {
            ahead.settle(number, end);
        }
        // A position that is not written costs a repeat after a restart, no more.
        self.settled.settle(class, number, end);
        self.is_old = true;
        if self.meter.is_due() {
            let _ = self.position.write(&self.settled.bytes());
            self.is_old = false;
        }
    }
}
