//! What lies in a spool, for operators: read without its lock, beside a running agent, or thrown
//! away under its lock. Reads with one buffer; memory grows with segments and with gaps in
//! sequences, not with frames. It writes nothing but what [`purge`] has to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use codec::{Class, DropReason, Tombstone};
use rustix::fs::{major, minor};
use serde::Serialize;

use super::scan::{self, Found, FoundFrame};
use super::{
    EXTENSION, LOCK_FILE, POSITION_FILE, Positions, SpoolError, failed, lock, segment_numbers,
    segment_path,
};
use crate::slots::Slots;
use crate::tombstones::Graveyard;

/// What waits in a spool, and what is damaged.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The spool.
    pub directory: PathBuf,
    /// Process id of the agent that has it open: then all figures may be a moment old.
    pub owner: Option<String>,
    /// Oldest first.
    pub segments: Vec<SegmentContents>,
    /// Frames that wait.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Bytes that are no frame, between whole ones.
    pub damaged_bytes: u64,
    /// Purged records that waiting frames were to tell of.
    #[serde(skip)]
    purged_untold: u64,
}

/// One file of a spool.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct SegmentContents {
    /// Its running number.
    pub number: u64,
    /// Its size.
    pub bytes: u64,
    /// Frames that wait.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Time of the oldest record that waits, Unix time, ns; none where no frame of the file
    /// tells the run's clock.
    pub first_unix_ns: Option<i64>,
    /// Time of the newest.
    pub last_unix_ns: Option<i64>,
    /// Which frames wait.
    pub streams: Vec<StreamContents>,
    /// Bytes that are no frame, between whole ones.
    pub damaged_bytes: u64,
    /// Bytes behind the last whole frame: being written, or left by a crash.
    pub unfinished_bytes: u64,
}

/// The frames of one stream.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct StreamContents {
    /// Run tag.
    pub run: String,
    /// Priority class.
    pub class: u8,
    /// Inclusive ranges, in order.
    pub sequences: Vec<[u64; 2]>,
    #[serde(skip)]
    run_tag: [u8; 8],
    #[serde(skip)]
    records: u64,
}

/// What a purge took.
#[derive(Clone, Debug)]
pub struct Purged {
    /// Frames.
    pub frames: u64,
    /// Records that are to be told as lost: those in the frames, and those that the frames were
    /// to tell of.
    pub records: u64,
    /// Bytes between frames that were none: what was in them cannot be counted.
    pub damaged_bytes: u64,
    /// Number of the last segment that was purged.
    pub until: u64,
    /// Which frames it was.
    pub stones: Graveyard,
}

impl Contents {
    /// Looks into the spool in `directory` and changes nothing. Where there is none, no agent has
    /// run yet, and nothing waits.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(directory: &Path) -> Result<Contents, SpoolError> {
        let numbers = match segment_numbers(directory, EXTENSION) {
            Err(SpoolError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            numbers => numbers?,
        };
        let settled = Slots::peek(&directory.join(POSITION_FILE));
        let settled = settled.as_ref().map(Positions::parse).unwrap_or_default();
        let mut contents = Contents {
            directory: directory.into(),
            owner: owner(&directory.join(LOCK_FILE)),
            segments: Vec::new(),
            frames: 0,
            records: 0,
            waiting_bytes: 0,
            damaged_bytes: 0,
            purged_untold: 0,
        };
        let mut offsets = BTreeMap::new();
        let mut buffer = Vec::new();
        for number in numbers {
            let path = segment_path(directory, number);
            let mut segment = SegmentContents { number, ..SegmentContents::default() };
            let untold = &mut contents.purged_untold;
            match segment.read(&path, &settled, &mut buffer, &mut offsets, untold) {
                Ok(()) => {}
                // Delivered meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("read", &path)(error)),
            }
            contents.frames += segment.frames;
            contents.records += segment.records;
            contents.waiting_bytes += segment.waiting_bytes;
            contents.damaged_bytes += segment.damaged_bytes;
            contents.segments.push(segment);
        }
        Ok(contents)
    }

    /// For people.
    pub fn describe(&self) -> String {
        let mut text = format!("{}: ", self.directory.display());
        let _ = match &self.owner {
            Some(owner) => writeln!(
                text,
                "in use by process {owner}; read beside it, figures may be a moment old"
            ),
            None => writeln!(text, "no agent uses it"),
        };
        for segment in &self.segments {
            let SegmentContents { number, frames, records, waiting_bytes, bytes, .. } = segment;
            let _ = write!(
                text,
                "segment {number}: {frames} frames wait, {records} records, {waiting_bytes} of \
                 {bytes} bytes"
            );
            let _ = match (segment.first_unix_ns, segment.last_unix_ns) {
                (Some(first), Some(last)) => writeln!(
                    text,
                    ", Unix time {} to {}",
                    first.div_euclid(1_000_000_000),
                    last.div_euclid(1_000_000_000)
                ),
                _ => writeln!(text),
            };
            for StreamContents { run, class, sequences, .. } in &segment.streams {
                let ranges: Vec<String> =
                    sequences.iter().map(|[first, last]| format!("{first}-{last}")).collect();
                let _ = writeln!(text, "  run {run} class {class}: frames {}", ranges.join(", "));
            }
            if segment.damaged_bytes > 0 {
                let _ = writeln!(text, "  damaged: {} bytes are no frame", segment.damaged_bytes);
            }
            if segment.unfinished_bytes > 0 {
                let _ =
                    writeln!(text, "  unfinished: {} bytes at its end", segment.unfinished_bytes);
            }
        }
        let Contents { segments, frames, records, waiting_bytes, damaged_bytes, .. } = self;
        let _ = writeln!(
            text,
            "{} segments, {frames} frames wait, {records} records, {waiting_bytes} bytes, \
             {damaged_bytes} bytes damaged",
            segments.len()
        );
        text
    }
}

impl SegmentContents {
    fn read(
        &mut self,
        path: &Path,
        settled: &Positions,
        buffer: &mut Vec<u8>,
        offsets: &mut BTreeMap<[u8; 8], i64>,
        purged_untold: &mut u64,
    ) -> io::Result<()> {
        let file = File::open(path)?;
        self.bytes = file.metadata()?.len();
        let mut damaged = 0;
        scan::file(&file, self.bytes, buffer, |found, end| match found {
            Found::Frame(frame) => {
                self.damaged_bytes += std::mem::take(&mut damaged);
                if let Some(offset_ns) = frame.offset_ns {
                    offsets.insert(frame.key.run_tag, offset_ns);
                }
                if end > settled.settled_in(frame.key.class, self.number) {
                    self.add(&frame, offsets.get(&frame.key.run_tag).copied());
                    *purged_untold += frame.purged_told;
                }
            }
            Found::Damage(bytes) => damaged += bytes as u64,
            Found::Partial | Found::End => {}
        })?;
        self.unfinished_bytes = damaged;
        Ok(())
    }

    fn add(&mut self, frame: &FoundFrame, offset_ns: Option<i64>) {
        self.frames += 1;
        self.records += u64::from(frame.records);
        self.waiting_bytes += frame.bytes as u64;
        if let Some(offset_ns) = offset_ns
            && frame.records > 0
        {
            let [first, last] = frame.times_ns.map(|time| offset_ns.saturating_add_unsigned(time));
            self.first_unix_ns = Some(self.first_unix_ns.unwrap_or(first).min(first));
            self.last_unix_ns = Some(self.last_unix_ns.unwrap_or(last).max(last));
        }
        let run: String = frame.key.run_tag.iter().map(|byte| format!("{byte:02x}")).collect();
        let (class, sequence) = (frame.key.class, frame.key.sequence);
        let known = self.streams.iter_mut().find(|s| s.class == class && s.run == run);
        let (run_tag, records) = (frame.key.run_tag, u64::from(frame.records));
        match known {
            None => {
                let sequences = vec![[sequence, sequence]];
                self.streams.push(StreamContents { run, class, sequences, run_tag, records });
            }
            Some(stream) => {
                stream.records += records;
                match stream.sequences.last_mut() {
                    Some([_, last]) if last.checked_add(1) == Some(sequence) => *last = sequence,
                    _ => stream.sequences.push([sequence, sequence]),
                }
            }
        }
    }
}

impl StreamContents {
    /// What a purge leaves of it.
    fn stone(&self) -> Option<Tombstone> {
        Some(Tombstone {
            run_tag: self.run_tag,
            class: self.class,
            reason: DropReason::Purged,
            first: self.sequences.first()?[0],
            last: self.sequences.last()?[1],
            frames: self.sequences.iter().map(|[first, last]| last - first + 1).sum(),
            records: self.records,
        })
    }
}

/// Who holds the lock, by the kernel's table: to try the lock could keep an agent from it.
fn owner(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let written = fs::read_to_string(path).unwrap_or_default();
    let device = format!("{:02x}:{:02x}", major(metadata.dev()), minor(metadata.dev()));
    let place = format!("{device}:{}", metadata.ino());
    let inode = format!(":{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        // Some file systems show another device there than to stat.
        let is_it = word(5) == place || (word(5).ends_with(&inode) && word(4) == written);
        word(1) == "FLOCK" && is_it
    });
    held.then_some(written)
}

/// Throws away all that waits in the spool in `directory`. `note` makes durable what is taken,
/// so that it can be told, before anything goes.
///
/// # Errors
/// If an agent has the spool open, or the system refuses. After one of `note` all is as it was;
/// after a later one [`complete_purge`] ends what was begun.
pub fn purge(
    directory: &Path,
    note: impl FnOnce(&Purged) -> Result<(), SpoolError>,
) -> Result<Purged, SpoolError> {
    // It must be there before a lock file is made in it.
    segment_numbers(directory, EXTENSION)?;
    let _lock = lock(directory)?;
    let contents = Contents::read(directory)?;
    let mut purged = Purged {
        frames: contents.frames,
        records: contents.records + contents.purged_untold,
        damaged_bytes: contents.damaged_bytes,
        until: contents.segments.last().map_or(0, |segment| segment.number),
        stones: Graveyard::default(),
    };
    for stream in contents.segments.iter().flat_map(|segment| &segment.streams) {
        purged.stones.extend(stream.stone().as_slice());
    }
    if purged.until > 0 {
        note(&purged)?;
        settle_until(directory, purged.until)?;
    }
    Ok(purged)
}

/// Ends a purge that was cut short after its note; nothing else.
///
/// # Errors
/// As for [`purge`].
pub fn complete_purge(directory: &Path, until: u64) -> Result<(), SpoolError> {
    if until == 0 || !directory.exists() {
        return Ok(());
    }
    let _lock = lock(directory)?;
    settle_until(directory, until)
}

/// Everything up to the segment `until` is settled. The position decides; the files follow.
fn settle_until(directory: &Path, until: u64) -> Result<(), SpoolError> {
    let path = directory.join(POSITION_FILE);
    let (mut position, value) = Slots::open(&path).map_err(failed("open", &path))?;
    let before = value.as_ref().map(Positions::parse).unwrap_or_default();
    let mut settled = before;
    for class in Class::ALL {
        settled.settle(class as u8, until, u64::MAX);
    }
    if settled != before {
        let written = position.write(&settled.bytes());
        written.and_then(|()| position.sync()).map_err(failed("write", &path))?;
    }
    for number in
        segment_numbers(directory, EXTENSION)?.into_iter().filter(|number| *number <= until)
    {
        let path = segment_path(directory, number);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    Ok(())
}
