//! The bounded queue on disk: whole frames in, whole frames out, the most urgent class first, each
//! class oldest first.
//!
//! Frames lie back to back in segment files named by a running number; a segment has frames of one
//! generation. [`Spool::open`] returns the two ends: the [`Writer`] for the event thread and the
//! [`Reader`] for the upload thread. Full: the writer drops whole generations, those of the least
//! urgent class first, the oldest first, and says which frames went. The spool knows files and
//! frame bytes, not where they go.
//!
//! What holds at any time, also after a crash:
//!
//! 1. A frame is in the spool whole or not at all: a failed write is cut back, and opening
//!    cuts what follows the last whole frame of each segment.
//! 2. A frame leaves by [`Reader::acknowledge`], by [`Reader::discard`], with its segment for
//!    the quota, because its bytes are damaged, or by [`purge`]; each of the last four is counted.
//! 3. Frames of a class leave in the order in which they came, those of the pinned segment apart,
//!    and what the collector holds behind a frame that it lacks; no frame waits for one of a less
//!    urgent class.
//! 4. Segments together have at most `bytes_max` bytes, and there are at most
//!    [`SEGMENTS_MAX`].
//! 5. The segment that a batch came from is pinned until the batch is settled: the quota
//!    takes the next one, so that no frame is both counted as dropped and delivered.
//!    What is left of a generation of which the quota took a frame is not appended.
//! 6. A batch comes from one segment, so at most one is pinned.
//! 7. What is acknowledged is remembered over a restart, up to what a power cut takes; a
//!    frame that is sent again is known to the collector by its stream key.
//! 8. One process owns the spool: the lock goes with the process.
//! 9. Nothing is mapped, and memory does not grow with the size of the spool, but to the bound of
//!    [`Sync::MemoryFirst`].

mod contents;
mod positions;
mod reader;
mod recover;
mod scan;
mod shared;
mod writer;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use codec::CLASSES;
use rustix::fs::{FlockOperation, flock};

use crate::slots::Slots;

use positions::{POSITION_BYTES, Positions};
use recover::recover;
use shared::{Generation, Segment, Shared, State, lane_of};

pub use contents::{Contents, Purged, SegmentContents, StreamContents, complete_purge, purge};
pub use reader::{Reader, Sent, Settled};
pub use writer::room::share;
pub use writer::{Appended, Writer};

/// Most segment files, whatever their size.
pub const SEGMENTS_MAX: usize = 1024;

/// A segment is a sixteenth of the spool, so that the quota takes little at a time, but not
/// more than this (bytes), ...
const SEGMENT_BYTES_MAX: u64 = 1 << 20;
/// ... unless the spool is so large that there would be more than so many.
const SEGMENTS_AIM: u64 = 512;

pub(crate) const EXTENSION: &str = "frames";
/// Of segments whose frames this version cannot read.
const EXTENSION_ASIDE: &str = "aside";
const LOCK_FILE: &str = "lock";
const POSITION_FILE: &str = "position";

/// What the spool may use, and how careful it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest size of all segments together, bytes. Room for eight frames at least, or the
    /// quota leaves nothing.
    pub bytes_max: u64,
    /// When frames are made durable.
    pub sync: Sync,
}

/// When appended frames are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before [`Writer::append`] returns.
    EachFrame,
    /// When [`Writer::sync`] is called: less wear, and a power cut takes what came since.
    OnRequest,
    /// They are not even written before that, or before they take more memory than so many bytes:
    /// what is delivered meanwhile costs no write at all, and the end of the process, unless in
    /// order, takes what came since.
    MemoryFirst {
        /// Most bytes that are held so.
        bytes_max: u64,
    },
}

/// What opening found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Frames that wait for delivery.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes cut off behind the last whole frame of a segment: what a crash left.
    pub cut_bytes: u64,
    /// Bytes between whole frames that are none: damage by the device, skipped. The records in
    /// them cannot be counted.
    pub damaged_bytes: u64,
    /// Bytes of segments of another version's frames, set aside for an agent that reads them. No
    /// quota takes them; they are at most what the agent that wrote them could keep.
    pub foreign_bytes: u64,
}

/// What waits in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Segment files.
    pub segments: usize,
    /// Their bytes, delivered frames of unfinished segments included.
    pub bytes: u64,
    /// Frames that wait.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes that wait.
    pub waiting_bytes: u64,
}

/// Why the spool did not do what it was asked for.
#[derive(Debug)]
pub enum SpoolError {
    /// The system refused.
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process owns it.
    InUse {
        /// The spool.
        directory: PathBuf,
        /// What the owner wrote of itself: its process id.
        owner: String,
    },
    /// The bytes given are not one frame.
    NotAFrame(codec::DecodeError),
    /// A frame of so many bytes does not fit beside what must be kept.
    NoRoom {
        /// Its bytes.
        bytes: usize,
        /// The quota.
        bytes_max: u64,
    },
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolError::Io { action, path, source } => {
                write!(f, "spool: {action} {}: {source}", path.display())
            }
            SpoolError::InUse { directory, owner } => {
                write!(
                    f,
                    "spool: {} is in use by process {owner} (stop that agent first)",
                    directory.display()
                )
            }
            SpoolError::NotAFrame(error) => write!(f, "spool: {error}"),
            SpoolError::NoRoom { bytes, bytes_max } => {
                write!(f, "spool: no room for {bytes} bytes in {bytes_max} (spool.bytes_max)")
            }
        }
    }
}

impl std::error::Error for SpoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SpoolError::Io { source, .. } => Some(source),
            SpoolError::NotAFrame(error) => Some(error),
            SpoolError::InUse { .. } | SpoolError::NoRoom { .. } => None,
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    move |source| SpoolError::Io { action, path: path.into(), source }
}

/// The spool, to be opened.
#[derive(Debug)]
pub struct Spool;

impl Spool {
    /// Opens or creates the spool in `directory`: takes its lock, cuts what a crash left and
    /// counts what waits. Reads every segment once, with one buffer.
    ///
    /// # Errors
    /// If another process owns it, or the system refuses.
    pub fn open(
        directory: &Path,
        limits: Limits,
    ) -> Result<(Writer, Reader, Recovery), SpoolError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("create", directory))?;
        let lock = lock(directory)?;
        let position_path = directory.join(POSITION_FILE);
        let (position, value) =
            Slots::open(&position_path).map_err(failed("open", &position_path))?;
        let settled = value.as_ref().map(Positions::parse).unwrap_or_default();
        let (segments, next, recovery) = recover(directory, settled)?;
        let shared = Arc::new(Shared {
            directory: directory.into(),
            limits,
            state: Mutex::new(State { segments, growing: [false; CLASSES] }),
            lock,
        });
        let writer = Writer::new(Arc::clone(&shared), next);
        Ok((writer, Reader::new(shared, position, settled), recovery))
    }
}

fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}.{EXTENSION}"))
}

fn lock(directory: &Path) -> Result<File, SpoolError> {
    let path = directory.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // For the message above only; a full disk must not keep the agent from starting.
            let _ = file.set_len(0);
            let _ = write!(file, "{}", std::process::id());
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = file.take(16).read_to_string(&mut owner);
            Err(SpoolError::InUse { directory: directory.into(), owner })
        }
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// The numbers of the segments with this extension in a folder, oldest first.
fn segment_numbers(directory: &Path, extension: &str) -> Result<Vec<u64>, SpoolError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let path = entry.map_err(failed("list", directory))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number
            && path == segment_path(directory, number).with_extension(extension)
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}
