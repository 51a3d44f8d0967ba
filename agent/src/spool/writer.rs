//! The end that appends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use codec::Frame;

use super::{Depth, SEGMENTS_MAX, Segment, Shared, SpoolError, Sync, failed};

/// Appends frames. Owned by the event thread.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// The last segment while it may grow.
    file: Option<File>,
    next: u64,
    /// Dropped for the quota and not yet told.
    dropped: Dropped,
}

#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    frames: u64,
    records: u64,
}

/// What an append did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Frames that the quota took, oldest first, since the last append that succeeded.
    pub dropped_frames: u64,
    /// Records in them: the unit of the ledger.
    pub dropped_records: u64,
    /// Bytes that now wait for delivery.
    pub waiting_bytes: u64,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, next: u64) -> Result<Self, SpoolError> {
        let mut writer = Writer { shared, file: None, next, dropped: Dropped::default() };
        let last = {
            let state = writer.shared.state();
            state.segments.back().map(|segment| (segment.number, segment.bytes))
        };
        if let Some((number, bytes)) = last
            && bytes < writer.shared.segment_bytes()
        {
            let path = writer.shared.path(number);
            let file = OpenOptions::new().write(true).open(&path).map_err(failed("open", &path))?;
            writer.file = Some(file);
            writer.shared.state().growing = true;
        }
        Ok(writer)
    }

    /// Appends one frame. The oldest segments make room for it where the quota asks for it.
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
        let records = decoded.header.records;
        self.make_room(frame.len())?;
        self.write(frame)?;
        let waiting_bytes = {
            let mut state = self.shared.state();
            if let Some(segment) = state.segments.back_mut() {
                segment.bytes += frame.len() as u64;
                segment.frames += 1;
                segment.records += u64::from(records);
            }
            state.segments.iter().map(|segment| segment.bytes - segment.settled_bytes).sum()
        };
        let Dropped { frames, records } = std::mem::take(&mut self.dropped);
        Ok(Appended { dropped_frames: frames, dropped_records: records, waiting_bytes })
    }

    /// Makes what was appended durable, for [`Sync::OnRequest`]. Segments that are no longer
    /// appended to are so already.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.sync_data().map_err(failed("sync", &self.shared.directory))
    }

    /// What waits in the spool.
    pub fn depth(&self) -> Depth {
        self.shared.depth()
    }

    /// Drops the oldest segments until `bytes` more are within the quota.
    fn make_room(&mut self, bytes: usize) -> Result<(), SpoolError> {
        let bytes_max = self.shared.limits.bytes_max;
        loop {
            let dropped = {
                let mut state = self.shared.state();
                let full = state.bytes() + bytes as u64 > bytes_max;
                if !full && state.segments.len() < SEGMENTS_MAX {
                    return Ok(());
                }
                let oldest = state
                    .segments
                    .iter()
                    .position(|segment| !segment.pinned && !state.grows(segment.number));
                oldest.and_then(|index| state.segments.remove(index))
            };
            match dropped {
                Some(segment) => {
                    self.dropped.frames += segment.frames;
                    self.dropped.records += segment.records;
                    let path = self.shared.path(segment.number);
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
                // All that is left grows or is on its way: then the quota can only be kept by
                // not growing.
                None if self.file.is_some() => self.close()?,
                None => return Err(SpoolError::NoRoom { bytes, bytes_max }),
            }
        }
    }

    /// Writes the frame behind the last one, in a new segment where the present one is full.
    fn write(&mut self, frame: &[u8]) -> Result<(), SpoolError> {
        let segment_bytes = self.shared.segment_bytes();
        let present = self.shared.state().segments.back().map(|s| (s.number, s.bytes));
        let full = present
            .is_none_or(|(_, bytes)| bytes > 0 && bytes + frame.len() as u64 > segment_bytes);
        if self.file.is_some() && full {
            self.close()?;
        }
        if self.file.is_none() {
            self.begin_segment()?;
        }
        let (number, offset) = {
            let state = self.shared.state();
            state.segments.back().map_or((0, 0), |segment| (segment.number, segment.bytes))
        };
        let path = self.shared.path(number);
        let Some(file) = &self.file else { return Ok(()) };
        let written = file.write_all_at(frame, offset).map_err(failed("write", &path));
        let durable = written.and_then(|()| match self.shared.limits.sync {
            Sync::EachFrame => file.sync_data().map_err(failed("sync", &path)),
            Sync::OnRequest => Ok(()),
        });
        if durable.is_err() {
            // After a failed sync nobody knows what the device has of the file, and a failed
            // cut leaves a piece behind: neither file is appended to again. Opening the spool
            // cuts what is left.
            let cut = file.set_len(offset);
            if cut.is_err() || matches!(durable, Err(SpoolError::Io { action: "sync", .. })) {
                self.let_go();
            }
        }
        durable
    }

    fn begin_segment(&mut self) -> Result<(), SpoolError> {
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
            let directory = &self.shared.directory;
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(failed("sync", directory))?;
        }
        let mut state = self.shared.state();
        state.segments.push_back(Segment::new(self.next));
        state.growing = true;
        self.next += 1;
        self.file = Some(file);
        Ok(())
    }

    /// Ends the present segment.
    fn close(&mut self) -> Result<(), SpoolError> {
        let synced = match self.shared.limits.sync {
            Sync::EachFrame => Ok(()),
            Sync::OnRequest => self.sync(),
        };
        self.let_go();
        synced
    }

    fn let_go(&mut self) {
        self.file = None;
        let settled = {
            let mut state = self.shared.state();
            state.growing = false;
            // Nobody comes back to a segment whose frames are all settled.
            match state.segments.back() {
                Some(last) if !last.waits() => state.segments.pop_back().map(|s| s.number),
                _ => None,
            }
        };
        if let Some(number) = settled {
            // What cannot be removed now is removed when the spool is opened next.
            let _ = fs::remove_file(self.shared.path(number));
        }
    }
}
