//! The bounded disk queue of frames between the event thread and the upload thread.
//!
//! One file a frame, named by a running number, written to a temporary name, synchronised and
//! renamed: a frame on disk is whole or absent. Invariants:
//! 1. A frame leaves by acknowledgement, by refusal for good, or by quota; the latter two are
//!    counted.
//! 2. The bytes of all frames stay within `bytes_max`: the oldest go first.
//! 3. Numbers only grow, also over restarts, so that order on disk is order of time.
//! 4. Both threads work on the folder alone and tolerate that a file has gone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use codec::{Frame, StreamKey};

const SUFFIX: &str = "frame";
const LOCK_FILE: &str = "lock";

/// A spool folder, held by this process.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    bytes_max: u64,
    next: u64,
    _lock: File,
}

/// A frame on disk.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// Its file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its place in its stream.
    pub key: StreamKey,
    /// Its records.
    pub records: u32,
}

fn numbers(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            (path.extension()? == SUFFIX).then_some(())?;
            Some((path.file_stem()?.to_str()?.parse().ok()?, path))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

impl Spool {
    /// Opens (and makes) a spool folder and takes it for this process.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process holds it.
    pub fn open(directory: &Path, bytes_max: u64) -> io::Result<Spool> {
        fs::create_dir_all(directory)?;
        let lock = File::create(directory.join(LOCK_FILE))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another agent uses this spool"))?;
        let next = numbers(directory)?.last().map_or(0, |(number, _)| number + 1);
        Ok(Spool { directory: directory.into(), bytes_max, next, _lock: lock })
    }

    /// Appends a frame durably. Returns how many records of older frames had to go.
    ///
    /// # Errors
    /// If it could not be written; then it is not there at all.
    pub fn append(&mut self, frame: &[u8]) -> io::Result<u64> {
        let dropped = self.make_room(frame.len() as u64)?;
        let path = self.directory.join(format!("{:020}.{SUFFIX}", self.next));
        let temporary = self.directory.join("new");
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(frame)?;
            file.sync_data()
        });
        written.and_then(|()| fs::rename(&temporary, &path))?;
        File::open(&self.directory)?.sync_all()?;
        self.next += 1;
        Ok(dropped)
    }

    fn make_room(&self, bytes: u64) -> io::Result<u64> {
        let files = numbers(&self.directory)?;
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let mut total: u64 = files.iter().map(|(_, path)| size(path)).sum();
        let mut dropped = 0;
        for (_, path) in files {
            if total + bytes <= self.bytes_max {
                break;
            }
            total -= size(&path);
            dropped += read(&path).map_or(0, |frame| u64::from(frame.records));
            let _ = fs::remove_file(&path);
        }
        Ok(dropped)
    }
}

/// Reads one frame; none if it has gone or is damaged.
fn read(path: &Path) -> Option<Spooled> {
    let bytes = fs::read(path).ok()?;
    let (key, records) = {
        let (frame, _) = Frame::decode(&bytes).ok()?;
        (frame.header.key, frame.header.records)
    };
    Some(Spooled { path: path.into(), bytes, key, records })
}

/// The oldest frames, as many as fit into `bytes_max`, at least one. A damaged file is set
/// aside with the suffix `damaged`, so that it cannot stop the others.
///
/// # Errors
/// If the folder cannot be read.
pub fn oldest(directory: &Path, bytes_max: usize) -> io::Result<Vec<Spooled>> {
    let mut frames: Vec<Spooled> = Vec::new();
    let mut total = 0;
    for (_, path) in numbers(directory)? {
        let Some(frame) = read(&path) else {
            if path.exists() {
                log::error!("{}: damaged, set aside", path.display());
                fs::rename(&path, path.with_extension("damaged"))?;
            }
            continue;
        };
        total += frame.bytes.len();
        if total > bytes_max && !frames.is_empty() {
            break;
        }
        frames.push(frame);
    }
    Ok(frames)
}

/// Frames in the spool.
pub fn depth(directory: &Path) -> usize {
    numbers(directory).map_or(0, |files| files.len())
}
