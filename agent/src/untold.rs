//! What was dropped from the spool and no frame has told of yet.
//!
//! One small file beside the spool holds how many records an operator purged, and which frames
//! went, for the quota or by a purge, until an urgent frame that tells of them is in the spool. A
//! crash in between tells them twice: a collector knows the frames, and the records stand in the books of two
//! runs. After a power cut in the moment of a drop they are not told at all: the frames are then missing
//! without a reason. It holds the
//! last segment of a purge, too, so that the next run can end one that was cut short, and counts
//! nothing twice.

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::sync::Arc;

use codec::{DropReason, TOMBSTONES_MAX, Tombstone};

use crate::slots::Slots;
use crate::syncer::Syncer;
use crate::tombstones::Graveyard;
use crate::wear::{Meter, Wear};

/// Name of the file, in the state folder.
pub const FILE: &str = "untold";

/// Run tag, class, reason, range, frames, records.
const STONE_BYTES: usize = 8 + 1 + 1 + 4 * NUMBER_BYTES;
/// Records, the number of the last segment of a purge, late records (two numbers), number of tombstones, tombstones.
const NOTE_BYTES: usize = 8 + 8 + 2 * NUMBER_BYTES + 1 + TOMBSTONES_MAX * STONE_BYTES;
/// Numbers in a tombstone are kept in so many bytes: a run of centuries has no more frames.
const NUMBER_BYTES: usize = 7;

/// The note.
#[derive(Debug)]
pub struct Untold {
    slots: Slots<NOTE_BYTES>,
    records: u64,
    until: u64,
    late: Late,
    stones: Graveyard,
    /// How often it may be written.
    meter: Meter,
    /// Whether the file says something to tell.
    is_kept: bool,
}

/// Records that a run lost after its books were closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// Refused by the collector.
    pub refused: u64,
    /// Damaged in the spool.
    pub damaged: u64,
}

impl Untold {
    /// The note in the state folder, if there is one.
    ///
    /// # Errors
    /// If it is there and cannot be opened.
    pub fn find(directory: &Path) -> io::Result<Option<Untold>> {
        if directory.join(FILE).exists() { Untold::open(directory).map(Some) } else { Ok(None) }
    }

    /// The note in the state folder, made if it is missing.
    ///
    /// # Errors
    /// If it cannot be opened or made.
    pub fn open(directory: &Path) -> io::Result<Untold> {
        let (slots, note) = Slots::open(&directory.join(FILE))?;
        let mut untold = Untold {
            slots,
            records: 0,
            until: 0,
            late: Late::default(),
            stones: Graveyard::default(),
            meter: Meter::default(),
            is_kept: false,
        };
        if let Some(note) = &note {
            let mut rest = note.as_slice();
            untold.records = number(&mut rest, 8);
            untold.until = number(&mut rest, 8);
            untold.late.refused = number(&mut rest, NUMBER_BYTES);
            untold.late.damaged = number(&mut rest, NUMBER_BYTES);
            for _ in 0..number(&mut rest, 1) {
                untold.stones.extend(stone(&mut rest).as_slice());
            }
        }
        untold.is_kept = !untold.is_told();
        Ok(untold)
    }

    /// Gives the file to whom the folder belongs: whoever runs the agent must be able to write it, too.
    ///
    /// # Errors
    /// If it cannot be given.
    pub fn hand_over(directory: &Path) -> io::Result<()> {
        let folder = std::fs::metadata(directory)?;
        chown(directory.join(FILE), Some(folder.uid()), Some(folder.gid()))
    }

    /// From now on it is written seldom, and counted: what a kill takes is missing without a
    /// reason.
    pub fn spare(&mut self, wear: Option<Arc<Wear>>) {
        self.meter = Meter::new(wear);
    }

    /// From now on `syncer` makes it durable.
    pub fn sync_by(&mut self, syncer: Syncer) {
        self.slots.sync_by(syncer);
    }

    /// Writes what is to be told, at the end of a run.
    ///
    /// # Errors
    /// If the write fails: the frames are then missing without a reason.
    pub fn close(&mut self) -> io::Result<()> {
        if self.is_told() && !self.is_kept {
            return Ok(());
        }
        self.meter.count();
        self.write(self.records, self.until, self.stones.clone())?;
        self.slots.sync()
    }

    /// Purged records to tell of.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Number of the last segment that was purged.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// Late records to tell of.
    pub fn late(&self) -> Late {
        self.late
    }

    /// Adds records that were lost after the books were closed, at the end of a run:
    /// [`Untold::close`] writes them.
    pub fn add_late(&mut self, late: Late) {
        self.late.refused = self.late.refused.saturating_add(late.refused);
        self.late.damaged = self.late.damaged.saturating_add(late.damaged);
    }

    /// Frames to tell of.
    pub fn stones(&self) -> &Graveyard {
        &self.stones
    }

    /// Whether there is nothing to tell.
    pub fn is_told(&self) -> bool {
        self.records == 0 && self.stones.is_empty() && self.late == Late::default()
    }

    /// Adds a purge of so many records, up to the segment `until`. Durable when it returns.
    ///
    /// # Errors
    /// If the write fails: the note is then as it was.
    pub fn add_purge(&mut self, records: u64, until: u64, stones: &Graveyard) -> io::Result<()> {
        let mut all = self.stones.clone();
        all.extend(stones.stones());
        self.write(self.records.saturating_add(records), until, all)?;
        self.slots.sync()
    }

    /// Adds what the quota took. Not made durable at once: drops may be many, and after a power
    /// cut the collector still finds the frames missing.
    ///
    /// # Errors
    /// If the write fails: the note is then as it was.
    pub fn add_dropped(&mut self, stones: &Graveyard) -> io::Result<()> {
        let mut all = self.stones.clone();
        all.extend(stones.stones());
        if self.meter.is_due() {
            return self.write(self.records, self.until, all);
        }
        self.stones = all;
        Ok(())
    }

    /// A frame that tells of them is in the spool.
    ///
    /// # Errors
    /// If the write fails: the next run tells of them again.
    pub fn told(&mut self) -> io::Result<()> {
        if !self.is_kept {
            (self.records, self.stones) = (0, Graveyard::default());
            self.late = Late::default();
            return Ok(());
        }
        self.meter.count();
        self.late = Late::default();
        self.write(0, self.until, Graveyard::default())?;
        self.slots.sync()
    }

    fn write(&mut self, records: u64, until: u64, stones: Graveyard) -> io::Result<()> {
        let mut note = [0; NOTE_BYTES];
        let mut rest = note.as_mut_slice();
        put(&mut rest, records, 8);
        put(&mut rest, until, 8);
        put(&mut rest, self.late.refused, NUMBER_BYTES);
        put(&mut rest, self.late.damaged, NUMBER_BYTES);
        put(&mut rest, stones.stones().len() as u64, 1);
        for stone in stones.stones() {
            let Tombstone { run_tag, class, reason, first, last, frames, records } = *stone;
            put(&mut rest, u64::from_le_bytes(run_tag), 8);
            put(&mut rest, class.into(), 1);
            put(&mut rest, reason as u64, 1);
            for number in [first, last, frames, records] {
                put(&mut rest, number, NUMBER_BYTES);
            }
        }
        self.slots.write(&note)?;
        (self.records, self.until, self.stones) = (records, until, stones);
        self.is_kept = !self.is_told();
        Ok(())
    }
}

fn put(rest: &mut &mut [u8], number: u64, bytes: usize) {
    let (place, after) = std::mem::take(rest).split_at_mut(bytes);
    place.copy_from_slice(number.to_le_bytes().split_at(bytes).0);
    *rest = after;
}

fn number(rest: &mut &[u8], bytes: usize) -> u64 {
    let (place, after) = rest.split_at(bytes.min(rest.len()));
    *rest = after;
    let mut number = [0; 8];
    for (byte, read) in number.iter_mut().zip(place) {
        *byte = *read;
    }
    u64::from_le_bytes(number)
}

fn stone(rest: &mut &[u8]) -> Option<Tombstone> {
    let run_tag = number(rest, 8).to_le_bytes();
    let class = number(rest, 1) as u8;
    let reason = number(rest, 1);
    let [first, last, frames, records] = [(); 4].map(|()| number(rest, NUMBER_BYTES));
    let reason = DropReason::ALL.into_iter().find(|known| *known as u64 == reason)?;
    Some(Tombstone { run_tag, class, reason, first, last, frames, records })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stones(first: u64, last: u64, reason: DropReason) -> Graveyard {
        let mut stones = Graveyard::default();
        let frames = last - first + 1;
        let run_tag = *b"run-tag.";
        let stone = Tombstone { run_tag, class: 1, reason, first, last, frames, records: 1 << 40 };
        stones.add(&stone);
        stones
    }

    #[test]
    fn drops_add_up_until_they_are_told() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Untold::find(directory.path()).unwrap().is_none());
        let open = || Untold::open(directory.path()).unwrap();
        open().add_purge(7, 3, &stones(0, 4, DropReason::Purged)).unwrap();
        open().add_purge(5, 9, &stones(5, 6, DropReason::Purged)).unwrap();
        open().add_dropped(&stones(1 << 50, 1 << 50, DropReason::SpoolFull)).unwrap();
        let mut untold = Untold::find(directory.path()).unwrap().unwrap();
        assert_eq!((untold.records(), untold.until()), (12, 9));
        let mut all = stones(0, 6, DropReason::Purged);
        let full = stones(1 << 50, 1 << 50, DropReason::SpoolFull);
        all.extend(full.stones());
        let told = |stone: &Tombstone| (stone.reason, stone.first, stone.last, stone.frames);
        assert_eq!(
            untold.stones().stones().iter().map(told).collect::<Vec<_>>(),
            all.stones().iter().map(told).collect::<Vec<_>>()
        );
        assert_eq!(untold.stones().stones()[0].records, 2 << 40);
        untold.told().unwrap();
        let untold = Untold::find(directory.path()).unwrap().unwrap();
        assert_eq!((untold.records(), untold.until(), untold.is_told()), (0, 9, true));
    }

    #[test]
    fn a_full_note_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut full = Graveyard::default();
        for run in 1..=TOMBSTONES_MAX as u8 {
            let run_tag = [run; 8];
            let reason = DropReason::SpoolFull;
            full.add(&Tombstone {
                run_tag,
                class: 0,
                reason,
                first: 1,
                last: 2,
                frames: 2,
                records: 3,
            });
        }
        Untold::open(directory.path()).unwrap().add_dropped(&full).unwrap();
        assert_eq!(Untold::open(directory.path()).unwrap().stones().stones(), full.stones());
    }
}
