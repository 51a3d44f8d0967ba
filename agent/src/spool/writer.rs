//! The end that appends.

mod held;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use codec::{CLASSES, DropReason, Frame, StreamKey, Tombstone};
use rustix::fs::statvfs;

use super::{Depth, Generation, SEGMENTS_MAX, Segment, Shared, SpoolError, Sync, failed};
use crate::tombstones::Graveyard;
use crate::wear::{BLOCK_BYTES, WRITE_BACK_NS, Wear, blocks_bytes};

/// The quota takes a generation as a whole: none should grow beyond this part of it. Smaller ones
/// would say names and processes again all the time.
const GENERATIONS_MIN: u64 = 4;
/// What a new segment costs beside its frames, bytes: its entry in the folder, and its inode.
const NEW_SEGMENT_BYTES: u64 = 2 * BLOCK_BYTES;

/// The quota does not shrink below this, bytes, however full the file system is.
const QUOTA_BYTES_MIN: u64 = 1 << 20;

/// Appends frames. Owned by the event thread.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// By class, its last segment while it may grow.
    files: [Option<File>; CLASSES],
    /// By class, the generation that was appended to last.
    present: [Option<Generation>; CLASSES],
    /// By class, bytes of it.
    present_bytes: [u64; CLASSES],
    /// By class, a generation of which frames were dropped: what is left of it follows them.
    dead: [Option<Generation>; CLASSES],
    /// By class, why.
    dead_for: [DropReason; CLASSES],
    next: u64,
    /// Bytes of frames written to files.
    written_bytes: u64,
    /// Dropped and not yet told.
    dropped: Dropped,
    /// Of the file system kept free, percent.
    free_percent: u8,
    /// The day's bytes for flash, and how many bytes of frames wait in memory for more of them.
    spare: Option<(Arc<Wear>, u64)>,
    /// By class, up to where its file is counted as written back, bytes.
    counted_to: [u64; CLASSES],
    /// When what was counted is written back, boot clock, ns: the last block counts again then.
    written_back_ns: u64,
    /// The last failure that cost no frame.
    trouble: Option<SpoolError>,
}

#[derive(Clone, Debug, Default)]
struct Dropped {
    frames: u64,
    records: u64,
    unwritten_records: u64,
    stones: Graveyard,
}

impl Dropped {
    fn add(
        &mut self,
        generation: &Generation,
        reason: DropReason,
        sequences: Option<[u64; 2]>,
        count: [u64; 2],
    ) {
        let [frames, records] = count;
        self.frames += frames;
        match reason {
            DropReason::FlashBudget => self.unwritten_records += records,
            DropReason::SpoolFull | DropReason::Purged => self.records += records,
        }
        if let Some([first, last]) = sequences {
            let Generation { run_tag, class, .. } = *generation;
            self.stones.add(&Tombstone { run_tag, class, reason, first, last, frames, records });
        }
    }
}

/// What an append did.
#[derive(Clone, Debug, Default)]
pub struct Appended {
    /// Whether the frame is in the spool; else it is among those that were dropped.
    pub is_kept: bool,
    /// Frames that the quota took, by generations, since the last append that succeeded, and those
    /// that could neither be written nor held.
    pub dropped_frames: u64,
    /// Records in those that the quota took: the unit of the ledger.
    pub dropped_records: u64,
    /// Records in those that could neither be written, the day's bytes for flash being spent, nor
    /// held in memory.
    pub unwritten_records: u64,
    /// Which frames those were.
    pub dropped: Graveyard,
    /// By class, whether its present generation should end: the quota has taken of it, or it is
    /// large, and a generation goes as a whole.
    pub restart: [bool; CLASSES],
    /// Whether the frame tells of dropped frames.
    pub tells_of_dropped: bool,
    /// Bytes that now wait for delivery.
    pub waiting_bytes: u64,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, next: u64) -> Self {
        Writer {
            shared,
            files: [const { None }; CLASSES],
            present: [None; CLASSES],
            present_bytes: [0; CLASSES],
            dead: [None; CLASSES],
            dead_for: [DropReason::SpoolFull; CLASSES],
            next,
            written_bytes: 0,
            dropped: Dropped::default(),
            free_percent: 0,
            spare: None,
            counted_to: [0; CLASSES],
            written_back_ns: 0,
            trouble: None,
        }
    }

    /// Keeps so much of the file system free from now on, percent: where others fill it up, the
    /// quota shrinks, but not below a mebibyte.
    pub fn keep_free(&mut self, percent: u8) {
        self.free_percent = percent;
    }

    /// The quota as the file system is now, where segments have `used` bytes.
    fn quota(&self, used: u64) -> u64 {
        let bytes_max = self.shared.limits.bytes_max;
        if self.free_percent == 0 {
            return bytes_max;
        }
        // Where it does not tell, writing will.
        let Ok(space) = statvfs(&self.shared.directory) else { return bytes_max };
        let reserve =
            space.f_blocks.saturating_mul(space.f_frsize) / 100 * u64::from(self.free_percent);
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        (used + free).saturating_sub(reserve).clamp(QUOTA_BYTES_MIN.min(bytes_max), bytes_max)
    }

    /// From now on no more is written in a day than `wear` has, and a part of that for volumes.
    /// Frames beyond it are held in memory, at most `memory_bytes` of them.
    pub fn spare(&mut self, wear: Arc<Wear>, memory_bytes: u64) {
        self.spare = Some((wear, memory_bytes));
    }

    /// What may be written of each class, bytes.
    fn left(&self) -> [u64; CLASSES] {
        self.spare.as_ref().map_or([u64::MAX; CLASSES], |(wear, _)| wear.left())
    }

    /// Counts bytes of a class as written, if they are left.
    fn take(&self, lane: usize, bytes: u64) -> bool {
        self.spare.as_ref().is_none_or(|(wear, _)| wear.take(lane, bytes))
    }

    /// Counts what it costs to append so many bytes at `offset` of the file of a class, if that is
    /// left. The block that the last frame ended in is written back once with this one.
    fn take_append(&mut self, lane: usize, offset: u64, bytes: u64) -> bool {
        let Some((wear, _)) = &self.spare else { return true };
        let now_ns = wear.now_ns();
        if now_ns >= self.written_back_ns {
            self.written_back_ns = now_ns.saturating_add(WRITE_BACK_NS);
            self.counted_to = [0; CLASSES];
        }
        let begin = if offset == 0 { NEW_SEGMENT_BYTES } else { 0 };
        let counted_to = self.counted_to.get(lane).copied().filter(|_| offset > 0).unwrap_or(0);
        let (from, to) = (offset.max(counted_to), offset + bytes);
        let cost = begin + if from < to { blocks_bytes(from, to) } else { 0 };
        let is_taken = wear.take(lane, cost);
        if is_taken {
            let end = to.next_multiple_of(BLOCK_BYTES).max(counted_to);
            let is_durable = self.shared.limits.sync == Sync::EachFrame;
            self.set(lane, |writer| &mut writer.counted_to, if is_durable { 0 } else { end });
        }
        is_taken
    }

    /// Appends one frame. Whole generations make room for it where the quota asks for it, none of
    /// a more urgent class; where that is not enough, the frame itself is dropped.
    ///
    /// # Errors
    /// The frame is then not in the spool, not even in part, and a later append may succeed:
    /// the caller counts its records as lost.
    pub fn append(&mut self, frame: &[u8]) -> Result<Appended, SpoolError> {
        let (decoded, rest) = Frame::decode(frame).map_err(SpoolError::NotAFrame)?;
        if !rest.is_empty() {
            let error = codec::DecodeError::Malformed("bytes after the frame");
            return Err(SpoolError::NotAFrame(error));
        }
        let bytes_max = self.shared.limits.bytes_max;
        if frame.len() as u64 > bytes_max {
            return Err(SpoolError::NoRoom { bytes: frame.len(), bytes_max });
        }
        let header = &decoded.header;
        let generation = Generation::new(&header.key, header.generation);
        let lane = generation.lane();
        if self.present.get(lane) != Some(&Some(generation)) {
            self.set(lane, |writer| &mut writer.present, Some(generation));
            self.set(lane, |writer| &mut writer.present_bytes, 0);
        }
        let has_room = self.make_room(frame.len(), lane)?;
        let mut is_kept = has_room && self.dead.get(lane) != Some(&Some(generation));
        let mut reason = self.dead_for.get(lane).copied().unwrap_or(DropReason::SpoolFull);
        if !has_room {
            reason = DropReason::SpoolFull;
        } else if is_kept {
            reason = DropReason::FlashBudget;
            is_kept = self.write(frame, &header.key, generation, header.records)?;
        }
        if is_kept {
            if let Some(bytes) = self.present_bytes.get_mut(lane) {
                *bytes += frame.len() as u64;
            }
        } else {
            let count = [1, header.records.into()];
            self.dropped.add(&generation, reason, Some([header.key.sequence; 2]), count);
            self.kill(generation, reason);
        }
        let mut restart = self.present_bytes.map(|bytes| bytes >= bytes_max / GENERATIONS_MIN);
        for ((restart, dead), present) in restart.iter_mut().zip(&self.dead).zip(&self.present) {
            *restart |= dead.is_some() && dead == present;
        }
        let Dropped { frames, records, unwritten_records, stones } =
            std::mem::take(&mut self.dropped);
        Ok(Appended {
            is_kept,
            dropped_frames: frames,
            dropped_records: records,
            unwritten_records,
            dropped: stones,
            restart,
            tells_of_dropped: is_kept && !header.tombstones.is_empty(),
            waiting_bytes: self.waiting_bytes(),
        })
    }

    /// What is left of a generation follows what was dropped of it.
    fn kill(&mut self, generation: Generation, reason: DropReason) {
        self.set(generation.lane(), |writer| &mut writer.dead, Some(generation));
        self.set(generation.lane(), |writer| &mut writer.dead_for, reason);
    }

    fn set<T>(&mut self, lane: usize, of: impl Fn(&mut Self) -> &mut [T; CLASSES], value: T) {
        if let Some(place) = of(self).get_mut(lane) {
            *place = value;
        }
    }

    fn waiting_bytes(&self) -> u64 {
        let state = self.shared.state();
        state.segments.iter().map(|segment| segment.bytes - segment.settled_bytes).sum()
    }

    /// Makes what was appended durable, for [`Sync::OnRequest`] and [`Sync::MemoryFirst`]; what
    /// waits in memory for bytes of a day goes on waiting.
    ///
    /// # Errors
    /// If the device refuses. What is in memory stays there then.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.write_memory(0)?;
        for file in self.files.iter().flatten() {
            file.sync_data().map_err(failed("sync", &self.shared.directory))?;
        }
        self.counted_to = [0; CLASSES];
        Ok(())
    }

    /// The last failure that cost no frame, since this was last asked.
    pub fn trouble(&mut self) -> Option<SpoolError> {
        self.trouble.take()
    }

    /// Bytes of frames that were written to files since the spool was opened: what flash wears by.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The quota as the file system is now, bytes.
    pub fn bytes_max(&self) -> u64 {
        let used = self.shared.state().bytes();
        self.quota(used)
    }

    /// What waits in the spool.
    pub fn depth(&self) -> Depth {
        self.shared.depth()
    }

    /// Drops generations until `bytes` more of the class at `lane` are within the quota. Returns
    /// whether they are.
    fn make_room(&mut self, bytes: usize, lane: usize) -> Result<bool, SpoolError> {
        loop {
            let victim = {
                let state = self.shared.state();
                let used = state.bytes();
                let is_full = used + bytes as u64 > self.quota(used);
                if !is_full && state.segments.len() < SEGMENTS_MAX {
                    return Ok(true);
                }
                state.victim(lane)
            };
            // All that is left is on its way, or more urgent.
            let Some(generation) = victim else { return Ok(false) };
            self.drop_from(generation, 0, DropReason::SpoolFull)?;
        }
    }

    /// Drops what waits of a generation from the segment `first` on, apart from what is on its
    /// way.
    fn drop_from(
        &mut self,
        generation: Generation,
        first: u64,
        reason: DropReason,
    ) -> Result<(), SpoolError> {
        while let Some((number, has_file)) = self.mark_going(generation, first) {
            let removed = if has_file { self.shared.remove(number) } else { Ok(()) };
            let mut state = self.shared.state();
            let at = state.segments.iter().position(|segment| segment.number == number);
            let Some(at) = at else { continue };
            if removed.is_err() {
                // Its frames are still there: they wait, and nobody is told that they went.
                if let Some(segment) = state.segments.get_mut(at) {
                    segment.is_going = false;
                }
                return removed;
            }
            let segment = state.segments.remove(at);
            drop(state);
            let Some(segment) = segment else { continue };
            let count = [segment.frames, segment.records];
            self.dropped.add(&generation, reason, segment.sequences, count);
            if segment.frames > 0 && self.present.get(generation.lane()) == Some(&Some(generation))
            {
                self.kill(generation, reason);
            }
        }
        Ok(())
    }

    /// Chooses the first segment of a generation, from `first` on, that is not on its way, and
    /// keeps it from getting there; nothing is appended to it any more. Returns its number, and
    /// whether it has a file.
    fn mark_going(&mut self, generation: Generation, first: u64) -> Option<(u64, bool)> {
        let lane = generation.lane();
        let mut state = self.shared.state();
        let is_one = |s: &Segment| s.generation == generation && s.number >= first && !s.pinned;
        let number = state.segments.iter().find(|segment| is_one(segment))?.number;
        let grows = state.grows(number);
        if let Some(growing) = state.growing.get_mut(lane)
            && grows
        {
            *growing = false;
        }
        let segment = state.segments.iter_mut().find(|segment| segment.number == number)?;
        segment.is_going = true;
        let has_file = segment.written_bytes > 0;
        drop(state);
        if grows {
            self.set(lane, |writer| &mut writer.files, None);
        }
        Some((number, has_file))
    }

    /// Writes the frame behind the last one of its generation, in a new segment where there is
    /// none or it is full; or takes it into memory. Returns whether it is in.
    fn write(
        &mut self,
        frame: &[u8],
        key: &StreamKey,
        generation: Generation,
        records: u32,
    ) -> Result<bool, SpoolError> {
        if let Sync::MemoryFirst { bytes_max } = self.shared.limits.sync {
            return self.hold(frame, key, generation, records, bytes_max);
        }
        let lane = generation.lane();
        let (length, segment_bytes) = (frame.len() as u64, self.shared.segment_bytes());
        let memory_bytes = self.spare.as_ref().map_or(0, |(_, memory_bytes)| *memory_bytes);
        let fits = |segment: &Segment| {
            segment.generation == generation
                && (segment.bytes == 0 || segment.bytes + length <= segment_bytes)
        };
        if self.file(lane).is_some() && !self.shared.state().last_of(lane).is_some_and(fits) {
            self.close_file(lane);
        }
        let offset = match self.file(lane) {
            Some(_) => self.shared.state().last_of(lane).map_or(0, |segment| segment.bytes),
            None => 0,
        };
        if !self.take_append(lane, offset, length) {
            return self.hold(frame, key, generation, records, memory_bytes);
        }
        if self.file(lane).is_none() {
            self.begin_segment(key, generation)?;
        }
        let number = self.shared.state().last_of(lane).map_or(0, |segment| segment.number);
        let path = self.shared.path(number);
        let Some(file) = self.file(lane) else { return Ok(false) };
        let written = file.write_all_at(frame, offset).map_err(failed("write", &path));
        let durable = written.and_then(|()| match self.shared.limits.sync {
            Sync::EachFrame => file.sync_data().map_err(failed("sync", &path)),
            Sync::OnRequest | Sync::MemoryFirst { .. } => Ok(()),
        });
        if durable.is_err() {
            // After a failed sync nobody knows what the device has of the file, and a failed
            // cut leaves a piece behind: neither file is appended to again. Opening the spool
            // cuts what is left.
            let cut = file.set_len(offset);
            if cut.is_err() || matches!(durable, Err(SpoolError::Io { action: "sync", .. })) {
                self.let_go(lane);
            }
        }
        durable?;
        self.written_bytes += length;
        let mut state = self.shared.state();
        if let Some(segment) = state.segments.iter_mut().find(|s| s.number == number) {
            segment.note(key);
            segment.bytes += length;
            segment.written_bytes = segment.bytes;
            segment.frames += 1;
            segment.records += u64::from(records);
        }
        Ok(true)
    }

    fn file(&self, lane: usize) -> Option<&File> {
        self.files.get(lane)?.as_ref()
    }

    fn begin_segment(&mut self, key: &StreamKey, generation: Generation) -> Result<(), SpoolError> {
        let path = self.shared.path(self.next);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        if self.shared.limits.sync == Sync::EachFrame {
            // The name must be durable before the first frame is.
            self.sync_directory()?;
        }
        let lane = generation.lane();
        let mut state = self.shared.state();
        state.segments.push_back(Segment::new(self.next, generation, key));
        if let Some(growing) = state.growing.get_mut(lane) {
            *growing = true;
        }
        drop(state);
        self.next += 1;
        self.set(lane, |writer| &mut writer.files, Some(file));
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), SpoolError> {
        let directory = &self.shared.directory;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync", directory))
    }

    /// Ends the present segment of a class. Where it cannot be made durable, a loss of power may
    /// take frames of it; the next frame is not to suffer for it.
    fn close_file(&mut self, lane: usize) {
        if self.shared.limits.sync == Sync::OnRequest
            && let Some(file) = self.file(lane)
            && let Err(error) = file.sync_data().map_err(failed("sync", &self.shared.directory))
        {
            self.trouble = Some(error);
        }
        self.let_go(lane);
    }

    fn let_go(&mut self, lane: usize) {
        self.set(lane, |writer| &mut writer.files, None);
        if let Some(growing) = self.shared.state().growing.get_mut(lane) {
            *growing = false;
        }
        // Nobody comes back to a segment whose frames are all settled.
        self.shared.remove_settled();
    }
}
