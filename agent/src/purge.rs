//! Records that an operator purged from the spool and no frame has told of yet.
//!
//! One small file beside the spool holds their number until the first frame of a later run, which
//! carries it in its ledger, is in the spool. A crash in between tells them twice, never not at
//! all. It holds the last segment of the purge, too, so that the next run can end one that was
//! cut short, and counts nothing twice.

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use crate::slots::Slots;

/// Name of the file, in the state folder.
pub const FILE: &str = "purged";

/// Records, and the number of the last segment.
const NOTE_BYTES: usize = 8 + 8;

/// The note.
#[derive(Debug)]
pub struct Untold {
    slots: Slots<NOTE_BYTES>,
    records: u64,
    until: u64,
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
        let path = directory.join(FILE);
        let is_new = !path.exists();
        let (slots, note) = Slots::open(&path)?;
        if is_new {
            // Whoever runs the agent must be able to write it, too.
            let folder = std::fs::metadata(directory)?;
            chown(&path, Some(folder.uid()), Some(folder.gid()))?;
        }
        let number = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let note = note.unwrap_or_default();
        let records = number(note.first_chunk());
        Ok(Untold { slots, records, until: number(note.last_chunk()) })
    }

    /// Records to tell of.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Number of the last segment that was purged.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// Adds a purge of so many records, up to the segment `until`. Durable when it returns.
    ///
    /// # Errors
    /// If the write fails: the note is then as it was.
    pub fn add(&mut self, records: u64, until: u64) -> io::Result<()> {
        self.write(self.records.saturating_add(records), until)
    }

    /// A frame that tells of them is in the spool.
    ///
    /// # Errors
    /// If the write fails: the next run tells of them again.
    pub fn told(&mut self) -> io::Result<()> {
        self.write(0, self.until)
    }

    fn write(&mut self, records: u64, until: u64) -> io::Result<()> {
        let mut note = [0; NOTE_BYTES];
        let (first, last) = note.split_at_mut(8);
        first.copy_from_slice(&records.to_le_bytes());
        last.copy_from_slice(&until.to_le_bytes());
        self.slots.write(&note)?;
        self.slots.sync()?;
        (self.records, self.until) = (records, until);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purges_add_up_until_they_are_told() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Untold::find(directory.path()).unwrap().is_none());
        Untold::open(directory.path()).unwrap().add(7, 3).unwrap();
        Untold::open(directory.path()).unwrap().add(5, 9).unwrap();
        let mut untold = Untold::find(directory.path()).unwrap().unwrap();
        assert_eq!((untold.records(), untold.until()), (12, 9));
        untold.told().unwrap();
        let untold = Untold::find(directory.path()).unwrap().unwrap();
        assert_eq!((untold.records(), untold.until()), (0, 9));
    }
}
