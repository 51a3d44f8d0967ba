//! What both ends of the spool share: which segments there are, and what is in them.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codec::{CLASSES, StreamKey};

use super::{
    Depth, LOCK_FILE, Limits, SEGMENT_BYTES_MAX, SEGMENTS_AIM, SpoolError, failed, segment_path,
};

/// What both ends share. The lock file is released when the last of them is gone.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
    pub(super) state: Mutex<State>,
    pub(super) lock: File,
}

/// The segments, oldest first. Files are made and removed outside the mutex, so that neither
/// thread waits for the other's disk.
#[derive(Debug)]
pub(super) struct State {
    pub(super) segments: VecDeque<Segment>,
    /// By class, whether the writer may still append to its last segment.
    pub(super) growing: [bool; CLASSES],
}

/// What the frames of a segment are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) run_tag: [u8; 8],
    pub(super) class: u8,
    pub(super) number: u32,
}

impl Generation {
    pub(super) fn new(key: &StreamKey, number: u32) -> Self {
        Generation { run_tag: key.run_tag, class: key.class, number }
    }

    /// The place of its class in tables: classes that are not known are the least urgent.
    pub(super) fn lane(&self) -> usize {
        lane_of(self.class)
    }
}

pub(super) fn lane_of(class: u8) -> usize {
    usize::from(class).min(CLASSES - 1)
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) generation: Generation,
    /// First and last sequence in it; none if it has frames of several streams, as segments of
    /// earlier versions could.
    pub(super) sequences: Option<[u64; 2]>,
    /// Whole frames, as far as the writer has finished them.
    pub(super) bytes: u64,
    /// Everything before this is settled.
    pub(super) settled_bytes: u64,
    /// Frames and records that are not settled.
    pub(super) frames: u64,
    pub(super) records: u64,
    pub(super) pinned: bool,
    /// Its file is being removed: it is not given out meanwhile, and none of its class behind it.
    pub(super) is_going: bool,
    /// What comes behind `written_bytes` is here and not in the file, which is not there before
    /// anything is written. Shared while it is written, and only then.
    pub(super) memory: Arc<Vec<u8>>,
    pub(super) written_bytes: u64,
}

impl Segment {
    /// An empty one, whose first frame will be that with `key`.
    pub(super) fn new(number: u64, generation: Generation, key: &StreamKey) -> Self {
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
    pub(super) fn note(&mut self, key: &StreamKey) {
        let Generation { run_tag, class, .. } = self.generation;
        if (key.run_tag, key.class) != (run_tag, class) {
            self.sequences = None;
        }
        if let Some([_, last]) = &mut self.sequences {
            *last = key.sequence.max(*last);
        }
    }

    pub(super) fn lane(&self) -> usize {
        self.generation.lane()
    }

    pub(super) fn waits(&self) -> bool {
        self.settled_bytes < self.bytes
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete when the guard is dropped: there is nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        segment_path(&self.directory, number)
    }

    /// Whether the folder that was opened is still there by its name: a file system that is gone
    /// shows another one, or none.
    pub(super) fn is_here(&self) -> bool {
        let identity = |of: io::Result<fs::Metadata>| of.ok().map(|of| (of.dev(), of.ino()));
        let opened = identity(self.lock.metadata());
        opened.is_some() && opened == identity(fs::metadata(self.directory.join(LOCK_FILE)))
    }

    /// Removes a segment's file. One that is not there is removed, unless all the folder is away.
    pub(super) fn remove(&self, number: u64) -> Result<(), SpoolError> {
        let path = self.path(number);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_here() => Ok(()),
            removed => removed.map_err(failed("remove", &path)),
        }
    }

    /// Removes the segments whose frames are all settled and to which nothing is appended. One that
    /// the device does not remove stays in the books, and is tried again.
    pub(super) fn remove_settled(&self) {
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

    pub(super) fn segment_bytes(&self) -> u64 {
        let bytes_max = self.limits.bytes_max;
        (bytes_max / 16).min(SEGMENT_BYTES_MAX).max(bytes_max / SEGMENTS_AIM)
    }

    pub(super) fn depth(&self) -> Depth {
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
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The newest segment of a class.
    pub(super) fn last_of(&self, lane: usize) -> Option<&Segment> {
        self.segments.iter().rfind(|segment| segment.lane() == lane)
    }

    /// Whether the writer may append to this segment.
    pub(super) fn grows(&self, number: u64) -> bool {
        let segment = self.segments.iter().find(|segment| segment.number == number);
        segment.is_some_and(|segment| {
            let lane = segment.lane();
            let is_last = self.last_of(lane).is_some_and(|last| last.number == number);
            is_last && self.growing.get(lane) == Some(&true)
        })
    }

    /// What goes first to make room for a frame of the class at `lane`.
    pub(super) fn victim(&self, lane: usize) -> Option<Generation> {
        let oldest = |of: usize| {
            self.segments.iter().find(|segment| segment.lane() == of && !segment.pinned)
        };
        (lane..CLASSES).rev().find_map(oldest).map(|segment| segment.generation)
    }
}
