//! A few bytes that survive the loss of power, rewritten often and cheaply.
//!
//! One file holds the value twice. Each write goes to the slot that does not hold the newest
//! value, with a serial number and a checksum, so a torn write leaves the value before it. What
//! was written is read back, so that a device that only says that it wrote does not get at both.
//! A slot has a sector of its own. A write is one `pwrite`; it is durable after
//! [`Slots::sync`], and until then a power cut may bring an earlier value back: owners keep
//! only what may be old.
//!
//! A value of another length is another version's, as two versions leave it that share a folder (A/B
//! slots): it is not taken for ours, which is said, and goes, lest that version find it again when
//! it is old. So whoever changes what a value means changes its length.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use crate::syncer::Syncer;

/// Distance of the slots, bytes: no device writes less at a time.
const SLOT_BYTES: usize = 512;
/// Both slots.
const FILE_BYTES: usize = 2 * SLOT_BYTES;
/// Serial number and checksum.
const FRAME_BYTES: usize = 8 + 4;

/// A value of `N` bytes in a file.
#[derive(Debug)]
pub struct Slots<const N: usize> {
    file: Arc<File>,
    serial: u64,
    /// Makes it durable.
    syncer: Syncer,
}

impl<const N: usize> Slots<N> {
    const FITS: () = assert!(N + FRAME_BYTES <= SLOT_BYTES);

    /// Opens or creates the file and returns it with the newest whole value, if it has one.
    ///
    /// # Errors
    /// If the file cannot be opened or read, or there is no room for it.
    pub fn open(path: &Path) -> io::Result<(Self, Option<[u8; N]>)> {
        let () = Self::FITS;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let newest = newest(&file);
        if newest.is_none() {
            let mut held = [0; FILE_BYTES];
            let read = file.read_at(&mut held, 0).unwrap_or(0);
            if held.iter().any(|byte| *byte != 0) {
                log::warn!(
                    "{}: holds nothing that this version reads (another version wrote it, or it \
                     is damaged): it begins anew",
                    path.display()
                );
            }
            if read < FILE_BYTES || held != [0; FILE_BYTES] {
                // Takes its place on the disk, so that one that fills up takes values all the same.
                file.write_all_at(&[0; FILE_BYTES], 0)?;
            }
        }
        let serial = newest.map_or(0, |(serial, _)| serial);
        let (file, syncer) = (Arc::new(file), Syncer::default());
        Ok((Slots { file, serial, syncer }, newest.map(|(_, value)| value)))
    }

    /// The newest whole value, without creating or changing anything.
    pub fn peek(path: &Path) -> Option<[u8; N]> {
        newest(&File::open(path).ok()?).map(|(_, value)| value)
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// If the write fails, or what is read back is something else; the value before it is still
    /// there.
    pub fn write(&mut self, value: &[u8; N]) -> io::Result<()> {
        let serial = self.serial + 1;
        let mut bytes = Vec::with_capacity(N + FRAME_BYTES);
        bytes.extend_from_slice(&serial.to_le_bytes());
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        self.file.write_all_at(&bytes, offset(serial % 2))?;
        if read(&self.file, serial % 2) != Some((serial, *value)) {
            return Err(io::Error::other("what was written is not there"));
        }
        self.serial = serial;
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn sync(&self) -> io::Result<()> {
        self.syncer.sync(&self.file)
    }

    /// From now on `syncer` does that.
    pub fn sync_by(&mut self, syncer: Syncer) {
        self.syncer = syncer;
    }
}

fn newest<const N: usize>(file: &File) -> Option<(u64, [u8; N])> {
    [0, 1].into_iter().filter_map(|slot| read(file, slot)).max_by_key(|(serial, _)| *serial)
}

fn offset(slot: u64) -> u64 {
    slot * SLOT_BYTES as u64
}

fn read<const N: usize>(file: &File, slot: u64) -> Option<(u64, [u8; N])> {
    let mut bytes = [0; SLOT_BYTES];
    let bytes = bytes.get_mut(..N + FRAME_BYTES)?;
    file.read_exact_at(bytes, offset(slot)).ok()?;
    let (content, checksum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(content).to_le_bytes() != *checksum {
        return None;
    }
    let (serial, value) = content.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*serial), value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_only_says_that_it_wrote_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let (mut slots, _) = Slots::<5>::open(&path).unwrap();
        for _ in 0..2 {
            let error = slots.write(b"value").unwrap_err();
            assert_eq!(error.to_string(), "what was written is not there");
        }
        // The other slot is left alone.
        assert_eq!(slots.serial, 0);
    }

    #[test]
    fn a_torn_write_leaves_the_value_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let (mut slots, none) = Slots::<5>::open(&path).unwrap();
        assert_eq!(none, None);
        slots.write(b"first").unwrap();
        slots.write(b"other").unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(Slots::<5>::open(&path).unwrap().1, Some(*b"other"));
        for torn in 0..17 {
            let mut bytes = whole.clone();
            bytes[torn] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let (mut slots, value) = Slots::<5>::open(&path).unwrap();
            assert_eq!(value, Some(*b"first"), "byte {torn}");
            slots.write(b"third").unwrap();
            assert_eq!(Slots::<5>::open(&path).unwrap().1, Some(*b"third"), "byte {torn}");
        }
    }

    #[test]
    fn a_value_of_another_length_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let (mut newer, _) = Slots::<6>::open(&path).unwrap();
        for value in [b"first.", b"second"] {
            newer.write(value).unwrap();
        }
        let (mut older, none) = Slots::<5>::open(&path).unwrap();
        assert_eq!(none, None);
        older.write(b"third").unwrap();
        assert_eq!(Slots::<5>::open(&path).unwrap().1, Some(*b"third"));
        // Nor does it come back when it is old.
        assert_eq!(Slots::<6>::open(&path).unwrap().1, None);
    }
}
