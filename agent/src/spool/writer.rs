//! The end that appends.

mod held;
pub(super) mod room;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use codec::{CLASSES, DropReason, Frame, StreamKey, Tombstone};

use super::{Depth, Generation, Segment, Shared, SpoolError, Sync, failed};
use crate::syncer::Syncer;
use crate::tombstones::Graveyard;
use crate::wear::{BLOCK_BYTES, WRITE_BACK_NS, Wear, blocks_bytes};

/// The quota takes a generation as a whole: none should grow beyond this part of it. Smaller ones
/// would say names and processes again all the time.
const GENERATIONS_MIN: u64 = 4;
/// What a new segment costs beside its frames, bytes: its entry in the folder, and its inode.
const NEW_SEGMENT_BYTES: u64 = 2 * BLOCK_BYTES;

/// Appends frames. Owned by the event thread.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// By class, its last segment while it may grow.
    files: [Option<Arc<File>>; CLASSES],
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
    /// The day's bytes for flash.
    spare: Option<Arc<Wear>>,
    /// How many bytes of frames wait in memory for more of them, or for a device that refuses.
    memory_bytes: u64,
    /// By class, up to where its file is counted as written back, bytes.
    counted_to: [u64; CLASSES],
    /// When what was counted is written back, boot clock, ns: the last block counts again then.
    written_back_ns: u64,
    /// The last failure that cost no frame.
    trouble: Option<SpoolError>,
    /// Makes files durable.
    syncer: Syncer,
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
            memory_bytes: 0,
            counted_to: [0; CLASSES],
            written_back_ns: 0,
            trouble: None,
            syncer: Syncer::default(),
        }
    }

    /// From now on `syncer` makes durable what need not be so before the writer goes on.
    pub fn sync_by(&mut self, syncer: Syncer) {
        self.syncer = syncer;
    }

    /// Keeps so much of the file system free from now on, percent: where others fill it up, the
    /// quota shrinks, but not below a mebibyte.
    pub fn keep_free(&mut self, percent: u8) {
        self.free_percent = percent;
    }

    /// From now on no more is written in a day than `wear` has, and a part of that for volumes.
    /// Frames beyond it are held in memory: [`Writer::hold_at_most`].
    pub fn spare(&mut self, wear: Arc<Wear>) {
        self.spare = Some(wear);
    }

    /// From now on so many bytes of frames that cannot be written are held in memory, until they
    /// are delivered, or [`Writer::sync`] writes them.
    pub fn hold_at_most(&mut self, memory_bytes: u64) {
        self.memory_bytes = memory_bytes;
    }

    /// What may be written of each class, bytes.
    fn left(&self) -> [u64; CLASSES] {
        self.spare.as_ref().map_or([u64::MAX; CLASSES], |wear| wear.left())
    }

    /// Counts bytes of a class as written, if they are left.
    fn take(&self, lane: usize, bytes: u64) -> bool {
        self.spare.as_ref().is_none_or(|wear| wear.take(lane, bytes))
    }

    /// Counts what it costs to append so many bytes at `offset` of the file of a class, if that is
    /// left. The block that the last frame ended in is written back once with this one.
    fn take_append(&mut self, lane: usize, offset: u64, bytes: u64) -> bool {
        let Some(wear) = &self.spare else { return true };
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
            is_kept = self.put(frame, &header.key, generation, header.records)?;
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
        let quota = self.bytes_max();
        let mut restart = self.present_bytes.map(|bytes| bytes >= quota / GENERATIONS_MIN);
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
    /// waits in memory for bytes of a day goes on waiting. With [`Writer::sync_by`] it is begun, and
    /// not waited for.
    ///
    /// # Errors
    /// If the device refuses. What could not be written stays in memory then.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.write_memory(0)?;
        for file in self.files.iter().flatten() {
            self.syncer.sync(file).map_err(failed("sync", &self.shared.directory))?;
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

    /// Writes the frame; where the device refuses, takes it into memory. Returns whether it is in.
    fn put(
        &mut self,
        frame: &[u8],
        key: &StreamKey,
        generation: Generation,
        records: u32,
    ) -> Result<bool, SpoolError> {
        let memory_bytes = self.memory_bytes;
        if let Sync::MemoryFirst { bytes_max } = self.shared.limits.sync {
            return self.hold(frame, key, generation, records, bytes_max);
        }
        match self.write(frame, key, generation, records) {
            Err(error @ SpoolError::Io { .. }) if memory_bytes > 0 => {
                match self.hold(frame, key, generation, records, memory_bytes) {
                    Ok(is_kept) => {
                        self.trouble = Some(error);
                        Ok(is_kept)
                    }
                    // Memory is full, and what it holds cannot be written either.
                    Err(_) => Err(error),
                }
            }
            written => written,
        }
    }

    /// Writes the frame behind the last one of its generation, in a new segment where there is
    /// none or it is full; takes it into memory where the day's bytes are spent. Returns whether it
    /// is in.
    fn write(
        &mut self,
        frame: &[u8],
        key: &StreamKey,
        generation: Generation,
        records: u32,
    ) -> Result<bool, SpoolError> {
        let lane = generation.lane();
        let (length, segment_bytes) = (frame.len() as u64, self.shared.segment_bytes());
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
            return self.hold(frame, key, generation, records, self.memory_bytes);
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

    fn file(&self, lane: usize) -> Option<&Arc<File>> {
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
            self.sync_directory(&Syncer::default())?;
        }
        let lane = generation.lane();
        let mut state = self.shared.state();
        state.segments.push_back(Segment::new(self.next, generation, key));
        if let Some(growing) = state.growing.get_mut(lane) {
            *growing = true;
        }
        drop(state);
        self.next += 1;
        self.set(lane, |writer| &mut writer.files, Some(Arc::new(file)));
        Ok(())
    }

    fn sync_directory(&self, syncer: &Syncer) -> Result<(), SpoolError> {
        let directory = &self.shared.directory;
        File::open(directory)
            .and_then(|directory| syncer.sync_names(directory))
            .map_err(failed("sync", directory))
    }

    /// Ends the present segment of a class. Where it cannot be made durable, a loss of power may
    /// take frames of it; the next frame is not to suffer for it.
    fn close_file(&mut self, lane: usize) {
        if self.shared.limits.sync == Sync::OnRequest
            && let Some(file) = self.file(lane)
            && let Err(error) =
                self.syncer.sync(file).map_err(failed("sync", &self.shared.directory))
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
