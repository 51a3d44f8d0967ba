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
mod reader;
mod recover;
mod scan;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codec::{CLASSES, StreamKey};
use rustix::fs::{FlockOperation, flock};

use crate::slots::Slots;

use recover::recover;

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

const EXTENSION: &str = "frames";
/// Of segments whose frames this version cannot read.
const EXTENSION_ASIDE: &str = "aside";
const LOCK_FILE: &str = "lock";
const POSITION_FILE: &str = "position";
/// Of each class segment number and offset.
const POSITION_BYTES: usize = 16 * CLASSES;

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

/// What both ends share. The lock file is released when the last of them is gone.
#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    limits: Limits,
    state: Mutex<State>,
    lock: File,
}

/// The segments, oldest first. Files are made and removed outside the mutex, so that neither
/// thread waits for the other's disk.
#[derive(Debug)]
struct State {
    segments: VecDeque<Segment>,
    /// By class, whether the writer may still append to its last segment.
    growing: [bool; CLASSES],
}

/// What the frames of a segment are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generation {
    run_tag: [u8; 8],
    class: u8,
    number: u32,
}

impl Generation {
    fn new(key: &StreamKey, number: u32) -> Self {
        Generation { run_tag: key.run_tag, class: key.class, number }
    }

    /// The place of its class in tables: classes that are not known are the least urgent.
    fn lane(&self) -> usize {
        lane_of(self.class)
    }
}

fn lane_of(class: u8) -> usize {
    usize::from(class).min(CLASSES - 1)
}

#[derive(Debug)]
struct Segment {
    number: u64,
    generation: Generation,
    /// First and last sequence in it; none if it has frames of several streams, as segments of
    /// earlier versions could.
    sequences: Option<[u64; 2]>,
    /// Whole frames, as far as the writer has finished them.
    bytes: u64,
    /// Everything before this is settled.
    settled_bytes: u64,
    /// Frames and records that are not settled.
    frames: u64,
    records: u64,
    pinned: bool,
    /// Its file is being removed: it is not given out meanwhile, and none of its class behind it.
    is_going: bool,
    /// What comes behind `written_bytes` is here and not in the file, which is not there before
    /// anything is written. Shared while it is written, and only then.
    memory: Arc<Vec<u8>>,
    written_bytes: u64,
}

impl Segment {
    /// An empty one, whose first frame will be that with `key`.
    fn new(number: u64, generation: Generation, key: &StreamKey) -> Self {
        Segment {
            number,
            generation,
            sequences: Some([key.sequence; 2]),
            bytes: 0,
            settled_bytes: 0,
            frames: 0,
            records: 0,
            pinned: false,
            is_going: false,
            memory: Arc::default(),
            written_bytes: 0,
        }
    }

    /// Takes note of one more frame in it.
    fn note(&mut self, key: &StreamKey) {
        let Generation { run_tag, class, .. } = self.generation;
        if (key.run_tag, key.class) != (run_tag, class) {
            self.sequences = None;
        }
        if let Some([_, last]) = &mut self.sequences {
            *last = key.sequence.max(*last);
        }
    }

    fn lane(&self) -> usize {
        self.generation.lane()
    }

    fn waits(&self) -> bool {
        self.settled_bytes < self.bytes
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete when the guard is dropped: there is nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> PathBuf {
        segment_path(&self.directory, number)
    }

    /// Whether the folder that was opened is still there by its name: a file system that is gone
    /// shows another one, or none.
    fn is_here(&self) -> bool {
        let identity = |of: io::Result<fs::Metadata>| of.ok().map(|of| (of.dev(), of.ino()));
        let opened = identity(self.lock.metadata());
        opened.is_some() && opened == identity(fs::metadata(self.directory.join(LOCK_FILE)))
    }

    /// Removes a segment's file. One that is not there is removed, unless all the folder is away.
    fn remove(&self, number: u64) -> Result<(), SpoolError> {
        let path = self.path(number);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_here() => Ok(()),
            removed => removed.map_err(failed("remove", &path)),
        }
    }

    /// Removes the segments whose frames are all settled and to which nothing is appended. One that
    /// the device does not remove stays in the books, and is tried again.
    fn remove_settled(&self) {
        let mut settled = Vec::new();
        let mut state = self.state();
        let is_done = |state: &State, segment: &Segment| {
            !segment.waits() && !segment.pinned && !segment.is_going && !state.grows(segment.number)
        };
        while let Some(at) = state.segments.iter().position(|segment| is_done(&state, segment)) {
            settled.extend(state.segments.remove(at));
        }
        drop(state);
        for mut segment in settled {
            if self.remove(segment.number).is_err() && segment.written_bytes > 0 {
                segment.memory = Arc::default();
                segment.bytes = segment.written_bytes;
                segment.settled_bytes = segment.bytes;
                let segments = &mut self.state().segments;
                let at = segments.partition_point(|other| other.number < segment.number);
                segments.insert(at, segment);
            }
        }
    }

    fn segment_bytes(&self) -> u64 {
        let bytes_max = self.limits.bytes_max;
        (bytes_max / 16).min(SEGMENT_BYTES_MAX).max(bytes_max / SEGMENTS_AIM)
    }

    fn depth(&self) -> Depth {
        let mut depth = Depth::default();
        for segment in &self.state().segments {
            depth.segments += 1;
            depth.bytes += segment.bytes;
            depth.frames += segment.frames;
            depth.records += segment.records;
            depth.waiting_bytes += segment.bytes - segment.settled_bytes;
        }
        depth
    }
}

impl State {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The newest segment of a class.
    fn last_of(&self, lane: usize) -> Option<&Segment> {
        self.segments.iter().rfind(|segment| segment.lane() == lane)
    }

    /// Whether the writer may append to this segment.
    fn grows(&self, number: u64) -> bool {
        let segment = self.segments.iter().find(|segment| segment.number == number);
        segment.is_some_and(|segment| {
            let lane = segment.lane();
            let is_last = self.last_of(lane).is_some_and(|last| last.number == number);
            is_last && self.growing.get(lane) == Some(&true)
        })
    }

    /// What goes first to make room for a frame of the class at `lane`.
    fn victim(&self, lane: usize) -> Option<Generation> {
        let oldest = |of: usize| {
            self.segments.iter().find(|segment| segment.lane() == of && !segment.pinned)
        };
        (lane..CLASSES).rev().find_map(oldest).map(|segment| segment.generation)
    }
}

/// Up to where each class is settled: segment number, and offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Positions([(u64, u64); CLASSES]);

impl Positions {
    fn parse(bytes: &[u8; POSITION_BYTES]) -> Positions {
        let mut positions = Positions::default();
        for (position, bytes) in positions.0.iter_mut().zip(bytes.chunks_exact(16)) {
            let number = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |b| u64::from_le_bytes(*b));
            *position = (number(bytes.first_chunk()), number(bytes.last_chunk()));
        }
        positions
    }

    fn bytes(&self) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        for ((number, end), bytes) in self.0.iter().zip(bytes.chunks_exact_mut(16)) {
            let (number_bytes, end_bytes) = bytes.split_at_mut(8);
            number_bytes.copy_from_slice(&number.to_le_bytes());
            end_bytes.copy_from_slice(&end.to_le_bytes());
        }
        bytes
    }

    /// Everything of a class up to here is settled.
    fn settle(&mut self, class: u8, number: u64, end: u64) {
        if let Some(position) = self.0.get_mut(lane_of(class)) {
            *position = (*position).max((number, end));
        }
    }

    /// Up to which offset frames of a class are settled in a segment.
    fn settled_in(&self, class: u8, number: u64) -> u64 {
        let (settled, end) = self.0.get(lane_of(class)).copied().unwrap_or_default();
        match number.cmp(&settled) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => end,
            std::cmp::Ordering::Greater => 0,
        }
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
