//! The model that the spool is held against: what was appended, what of it waits, and what
//! became of the rest. It looks at the bytes on disk itself, byte by byte, with the codec
//! alone.
//!
//! After each step every record is accounted for: settled, dropped for the quota, damaged,
//! cut by a crash, or waiting. What comes out is what went in, in order, and nothing that is
//! settled comes again, except where the position was torn.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use agent::spool::{Contents, Limits, Reader, Settled, Spool, SpoolError, Sync, Writer};
use codec::{CLASSES, Frame};
use proptest::prelude::*;

use crate::sample;

pub(crate) const LIMITS: Limits = Limits { bytes_max: 300_000, sync: Sync::OnRequest };

/// What happens to a spool.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append {
        class: u8,
        records: u32,
        bytes: usize,
    },
    /// The folder is away for the moment of an append.
    AppendAway {
        class: u8,
        records: u32,
        bytes: usize,
    },
    Take {
        bytes_max: usize,
        frames_max: usize,
    },
    Acknowledge {
        frames: usize,
    },
    /// All of the batch are held, but for one.
    AcknowledgeBut {
        missing: usize,
    },
    Discard,
    /// The agent ends or is killed, and starts again.
    Reopen,
    /// Killed while it wrote: so much of a frame is behind the last one.
    Tear {
        bytes: usize,
    },
    /// A power cut: the last segment ends anywhere, in thousandths of its length.
    Cut {
        at: u64,
    },
    /// A byte of a segment turns while the spool is in use; place in thousandths. Adding to it
    /// does not bring the old value back, as turning the same bit twice would.
    Rot {
        segment: usize,
        at: u64,
        by: u8,
    },
    /// A power cut while the position was written: a byte of one of its slots is wrong.
    TearPosition {
        slot: u64,
        byte: u64,
    },
}

/// Steps without faults.
pub(crate) fn calm_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..CLASSES as u8, 0..4_u32, 0..12_000_usize)
            .prop_map(|(class, records, bytes)| Step::Append { class, records, bytes }),
        3 => (1..80_000_usize, 1..9_usize)
            .prop_map(|(bytes_max, frames_max)| Step::Take { bytes_max, frames_max }),
        3 => (0..9_usize).prop_map(|frames| Step::Acknowledge { frames }),
        2 => (0..4_usize).prop_map(|missing| Step::AcknowledgeBut { missing }),
        1 => Just(Step::Discard),
        1 => Just(Step::Reopen),
    ]
}

/// Steps of all kinds.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => calm_step(),
        1 => (0..CLASSES as u8, 0..4_u32, 0..12_000_usize)
            .prop_map(|(class, records, bytes)| Step::AppendAway { class, records, bytes }),
        1 => (0..9_000_usize).prop_map(|bytes| Step::Tear { bytes }),
        1 => (0..=1000_u64).prop_map(|at| Step::Cut { at }),
        1 => (0..1000_usize, 0..1000_u64, 1..8_u8)
            .prop_map(|(segment, at, by)| Step::Rot { segment, at, by }),
        1 => (0..2_u64, 0..28_u64).prop_map(|(slot, byte)| Step::TearPosition { slot, byte }),
    ]
}

pub(crate) struct Model {
    directory: PathBuf,
    ends: Option<(Writer, Reader)>,
    /// All frames that the spool took, by sequence.
    frames: BTreeMap<u64, Vec<u8>>,
    /// Of those, the ones that have to come, in order.
    waiting: Vec<u64>,
    /// The ones that may come again: they were settled, and the position was torn.
    settled: Vec<u64>,
    /// The ones that are held behind one that is not: after a restart they may come again.
    ahead: Vec<u64>,
    /// The last batch.
    batch: Vec<u64>,
    next: u64,
    /// By class, the present generation and the frames in it.
    generations: [(u32, u32); CLASSES],
    /// Records since the spool was opened: put in, and gone out each way.
    put: u64,
    out: u64,
    dropped: u64,
    /// Appends that failed since the last that did not: what the quota took is told later.
    failing: bool,
    /// Appends that failed.
    pub(crate) failures: u64,
}

impl Model {
    pub(crate) fn open(directory: &Path) -> Model {
        let mut model = Model {
            directory: directory.into(),
            ends: None,
            frames: BTreeMap::new(),
            waiting: Vec::new(),
            settled: Vec::new(),
            ahead: Vec::new(),
            batch: Vec::new(),
            next: 0,
            generations: [(0, 0); CLASSES],
            put: 0,
            out: 0,
            dropped: 0,
            failing: false,
            failures: 0,
        };
        model.reopen(false);
        model
    }

    fn ends(&mut self) -> &mut (Writer, Reader) {
        self.ends.as_mut().unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "frames"))
            .collect();
        paths.sort();
        paths
    }

    /// The whole frames on disk, and the bytes that belong to none.
    fn on_disk(&self) -> (Vec<u64>, u64) {
        let (mut sequences, mut other) = (Vec::new(), 0);
        for path in self.segments() {
            let bytes = fs::read(path).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                // A frame that is not one of ours, or not where it was, would be invented.
                match Frame::decode(rest) {
                    Ok((frame, after)) => {
                        assert_eq!(self.frames[&frame.header.key.sequence], frame.bytes);
                        sequences.push(frame.header.key.sequence);
                        rest = after;
                    }
                    Err(_) => {
                        other += 1;
                        rest = &rest[1..];
                    }
                }
            }
        }
        (sequences, other)
    }

    fn records(&self, sequences: &[u64]) -> u64 {
        let records =
            |sequence| u64::from(Frame::decode(&self.frames[sequence]).unwrap().0.header.records);
        sequences.iter().map(records).sum()
    }

    /// Closes the spool without a word and opens it; `torn` says that the position may be older
    /// than what was settled. Between the two, only the model's own faults touch the disk.
    fn reopen(&mut self, torn: bool) {
        self.ends = None;
        self.batch.clear();
        let (whole, other) = if self.directory.exists() { self.on_disk() } else { (vec![], 0) };
        let (writer, reader, recovery) = Spool::open(&self.directory, LIMITS).unwrap();
        let depth = reader.depth();
        assert_eq!((recovery.frames, recovery.records), (depth.frames, depth.records));
        // Bytes that are no frame are skipped or cut, and said.
        let said = recovery.cut_bytes + recovery.damaged_bytes + recovery.foreign_bytes;
        let settled_damage = other - said.min(other);
        assert!(settled_damage == 0 || !self.settled.is_empty(), "{settled_damage} bytes unsaid");
        // What waited and is whole waits.
        self.waiting.retain(|sequence| whole.contains(sequence));
        let again: Vec<u64> =
            self.settled.iter().copied().filter(|sequence| whole.contains(sequence)).collect();
        assert!(depth.frames as usize >= self.waiting.len(), "whole frames that waited are gone");
        let ahead: Vec<u64> = std::mem::take(&mut self.ahead);
        let more = depth.frames as usize - self.waiting.len();
        let most = ahead.len() + if torn { again.len() } else { 0 };
        assert!(more <= most, "{more} settled frames wait again");
        // The position is one place a class: what comes again is the newest that was settled.
        let listed = Contents::read(&self.directory).unwrap();
        for class in 0..CLASSES as u8 {
            let streams = listed.segments.iter().flat_map(|segment| &segment.streams);
            let ranges = streams.filter(|s| s.class == class).flat_map(|s| &s.sequences);
            let waits: Vec<u64> = ranges.flat_map(|[first, last]| *first..=*last).collect();
            let mut again = again.clone();
            again.sort_unstable();
            again.retain(|sequence| self.class(*sequence) == class);
            let more = again.iter().filter(|sequence| waits.contains(sequence)).count();
            let newest = &again[again.len() - more..];
            assert!(newest.iter().all(|sequence| waits.contains(sequence)), "not the newest");
            self.waiting.extend(newest);
            let is_of = |sequence: &&u64| self.class(**sequence) == class;
            let back: Vec<u64> =
                ahead.iter().filter(is_of).copied().filter(|s| waits.contains(s)).collect();
            self.waiting.extend(&back);
        }
        self.waiting.sort_unstable();
        self.settled.extend(ahead);
        // A new run begins new generations.
        self.generations = self.generations.map(|(generation, _)| (generation + 1, 0));
        self.settled.retain(|sequence| !self.waiting.contains(sequence));
        assert_eq!(depth.records, self.records(&self.waiting));
        (self.put, self.out, self.dropped, self.failing) = (depth.records, 0, 0, false);
        self.ends = Some((writer, reader));
        self.check();
    }

    fn class(&self, sequence: u64) -> u8 {
        Frame::decode(&self.frames[&sequence]).unwrap().0.header.key.class
    }

    fn settle(&mut self, settled: Settled) {
        let frames = settled.frames as usize;
        let out: Vec<u64> = self.batch.drain(..).take(frames).collect();
        self.leave(settled, &out);
        self.settled.extend(out);
    }

    fn leave(&mut self, settled: Settled, out: &[u64]) {
        assert_eq!((settled.frames, settled.records), (out.len() as u64, self.records(out)));
        self.batch.clear();
        self.waiting.retain(|sequence| !out.contains(sequence));
        self.out += settled.records;
    }

    /// Takes a batch; returns how many frames it has.
    pub(crate) fn take(&mut self, bytes_max: usize, frames_max: usize) -> usize {
        let mut buffer = Vec::new();
        let (_, reader) = self.ends();
        let sent = reader.batch(&mut buffer, bytes_max, frames_max).unwrap();
        assert!(sent.len() <= frames_max);
        assert!(sent.len() <= 1 || buffer.len() <= bytes_max);
        let sent: Vec<_> = sent.to_vec();
        let mut rest = &buffer[..];
        for sent in &sent {
            let (frame, after) = rest.split_at(sent.bytes);
            assert!(self.frames[&sent.key.sequence] == frame, "frame {:?} changed", sent.key);
            rest = after;
        }
        assert!(rest.is_empty());
        self.batch = sent.iter().map(|sent| sent.key.sequence).collect();
        // In order: only what is damaged, and a segment that the quota took, is passed over.
        let Some(class) = self.batch.first().map(|first| self.class(*first)) else { return 0 };
        let mut waiting = self.waiting.iter().filter(|sequence| self.class(**sequence) == class);
        for sequence in &self.batch {
            assert!(waiting.any(|waits| waits == sequence), "frame {sequence} out of order");
        }
        // Nothing that is more urgent stays behind.
        let whole = self.on_disk().0;
        let is_behind = |s: &u64| self.class(*s) < class && whole.contains(s);
        assert!(!self.waiting.iter().any(is_behind), "a frame of class {class} came first");
        self.batch.len()
    }

    fn append(&mut self, class: u8, records: u32, bytes: usize, is_away: bool) {
        let sequence = self.next;
        let (generation, frames) = &mut self.generations[usize::from(class)];
        if *frames == 6 {
            (*generation, *frames) = (*generation + 1, 0);
        }
        let starts = *frames == 0;
        *frames += 1;
        let frame = sample::frame_of(class, (*generation, starts), sequence, records, bytes);
        self.next += 1;
        let (here, away) = (self.directory.clone(), self.directory.with_extension("away"));
        let (writer, _) = self.ends();
        if is_away {
            fs::rename(&here, &away).unwrap();
        }
        let appended = writer.append(&frame);
        if is_away {
            fs::rename(&away, &here).unwrap();
        }
        let (writer, _) = self.ends();
        match appended {
            Ok(appended) => {
                assert_eq!(appended.waiting_bytes, writer.depth().waiting_bytes);
                self.put += u64::from(records);
                self.dropped += appended.dropped_records;
                let stones = appended.dropped.stones();
                let (frames, records) =
                    stones.iter().fold((0, 0), |sum, s| (sum.0 + s.frames, sum.1 + s.records));
                assert_eq!(
                    (frames, records),
                    (appended.dropped_frames, appended.dropped_records),
                    "{stones:?}"
                );
                for (generation, restart) in self.generations.iter_mut().zip(appended.restart) {
                    if restart {
                        *generation = (generation.0 + 1, 0);
                    }
                }
                self.failing = false;
                self.frames.insert(sequence, frame);
                if appended.is_kept {
                    self.waiting.push(sequence);
                }
                if appended.dropped_frames > 0 {
                    self.forget_dropped();
                }
            }
            Err(SpoolError::Io { source, .. }) => {
                let is_away = is_away && source.kind() == std::io::ErrorKind::NotFound;
                let is_full = source.kind() == std::io::ErrorKind::StorageFull;
                assert!(is_away || is_full, "{source}");
                self.failing = true;
                self.failures += 1;
                self.forget_dropped();
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What the quota took does not wait. Damaged frames stay: they are noticed when they are
    /// read.
    fn forget_dropped(&mut self) {
        let names: Vec<u64> = self.on_disk().0;
        let damaged = self.ends().1.depth().frames as usize;
        if damaged == self.waiting.iter().filter(|s| names.contains(s)).count() {
            self.waiting.retain(|sequence| names.contains(sequence));
        }
    }

    /// A place in a file, in thousandths.
    fn place(length: u64, at: u64) -> u64 {
        (length * at / 1000).min(length)
    }

    /// Does a step, and looks whether all is accounted for.
    pub(crate) fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { class, records, bytes } => self.append(class, records, bytes, false),
            Step::AppendAway { class, records, bytes } => self.append(class, records, bytes, true),
            Step::Take { bytes_max, frames_max } => {
                self.take(bytes_max, frames_max);
            }
            Step::Acknowledge { frames } => {
                let held: Vec<u64> = self.batch.iter().copied().take(frames).collect();
                let settled = self.ends().1.acknowledge(|key| held.contains(&key.sequence));
                assert_eq!(settled.frames as usize, held.len());
                self.settle(settled);
            }
            Step::AcknowledgeBut { missing } => {
                let mut held = self.batch.clone();
                if missing < held.len() {
                    held.remove(missing);
                }
                let settled = self.ends().1.acknowledge(|key| held.contains(&key.sequence));
                self.leave(settled, &held);
                let ahead = held.split_off(missing.min(held.len()));
                self.settled.extend(held);
                self.ahead.extend(ahead);
            }
            Step::Discard => {
                let settled = self.ends().1.discard(1);
                self.settle(settled);
            }
            Step::Reopen => self.reopen(false),
            Step::Tear { bytes } => {
                self.ends = None;
                if let Some(path) = self.segments().pop() {
                    let torn = sample::frame(self.next, 3, 3000);
                    let torn = &torn[..bytes.min(torn.len() - 1)];
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    // A full disk takes less.
                    let _ = file.write_all_at(torn, file.metadata().unwrap().len());
                }
                self.reopen(false);
            }
            Step::Cut { at } => {
                self.ends = None;
                if let Some(path) = self.segments().pop() {
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    let length = file.metadata().unwrap().len();
                    file.set_len(Model::place(length, at)).unwrap();
                }
                self.reopen(false);
            }
            Step::Rot { segment, at, by } => {
                let segments = self.segments();
                if let Some(path) = segments.get(segments.len() * segment / 1000) {
                    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
                    let length = file.metadata().unwrap().len();
                    if length > 0 {
                        let place = Model::place(length, at).min(length - 1);
                        let mut byte = [0];
                        file.read_exact_at(&mut byte, place).unwrap();
                        file.write_all_at(&[byte[0].wrapping_add(by)], place).unwrap();
                    }
                }
            }
            Step::TearPosition { slot, byte } => {
                self.ends = None;
                let path = self.directory.join("position");
                let mut bytes = fs::read(&path).unwrap();
                if let Some(byte) = bytes.get_mut((slot * 512 + byte) as usize) {
                    *byte = byte.wrapping_add(1);
                }
                fs::write(&path, bytes).unwrap();
                self.reopen(true);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let (put, out, dropped, failing) = (self.put, self.out, self.dropped, self.failing);
        let (_, reader) = self.ends();
        let depth = reader.depth();
        let told = out + dropped + reader.damaged_records() + depth.records;
        assert!(put == told || (failing && put > told), "of {put} records {told} are told");
        let on_disk: u64 =
            self.segments().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(on_disk, depth.bytes);
        assert!(on_disk <= LIMITS.bytes_max, "{on_disk}");
        assert!(depth.segments <= agent::spool::SEGMENTS_MAX);
    }

    /// Takes all that is left out: nothing waits then.
    pub(crate) fn drain(&mut self) {
        while self.take(1 << 20, 512) > 0 {
            let settled = self.ends().1.acknowledge(|_| true);
            self.settle(settled);
            self.check();
        }
        self.check();
        let depth = self.ends().1.depth();
        assert_eq!((depth.frames, depth.records, depth.waiting_bytes), (0, 0, 0));
        let (whole, _) = self.on_disk();
        let left: Vec<&u64> = self.waiting.iter().filter(|s| whole.contains(s)).collect();
        assert!(left.is_empty(), "never came out: {left:?}");
    }
}
