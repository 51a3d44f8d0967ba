//! How much the spool may take of its file system, and what goes to make room: whole generations,
//! the least urgent first, the oldest first, none that is on its way.

use codec::DropReason;
use rustix::fs::{StatVfs, statvfs};

use super::super::{Generation, SEGMENTS_MAX, Segment, SpoolError};
use super::Writer;

/// The quota does not shrink below this, bytes, however full the file system is.
const QUOTA_BYTES_MIN: u64 = 1 << 20;

/// How large a spool that has `used` bytes of a file system may grow where `free_percent` of that are
/// kept free, bytes.
pub fn share(space: &StatVfs, used: u64, free_percent: u8) -> u64 {
    let reserve = space.f_blocks.saturating_mul(space.f_frsize) / 100 * u64::from(free_percent);
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    used.saturating_add(free).saturating_sub(reserve)
}

impl Writer {
    /// The quota as the file system is now, where segments have `used` bytes.
    pub(super) fn quota(&self, used: u64) -> u64 {
        let bytes_max = self.shared.limits.bytes_max;
        if self.free_percent == 0 {
            return bytes_max;
        }
        // Where it does not tell, writing will.
        let Ok(space) = statvfs(&self.shared.directory) else { return bytes_max };
        share(&space, used, self.free_percent).clamp(QUOTA_BYTES_MIN.min(bytes_max), bytes_max)
    }

    /// Drops generations until `bytes` more of the class at `lane` are within the quota. Returns
    /// whether they are.
    pub(super) fn make_room(&mut self, bytes: usize, lane: usize) -> Result<bool, SpoolError> {
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
    pub(super) fn drop_from(
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
}
