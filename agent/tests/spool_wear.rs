//! The spool under a day's budget for flash: whatever comes and goes, no more is written than the
//! budget has, and each frame is delivered, waits, or is named as dropped.

#![allow(clippy::unwrap_used)]

mod sample;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::spool::{Appended, Limits, Reader, Spool, Sync, Writer};
use agent::tombstones::Graveyard;
use agent::wear::{BLOCK_BYTES, STATE_BYTES_PER_DAY, Wear};
use codec::{CLASSES, DropReason, Frame};
use proptest::prelude::*;

const BUDGET: u64 = 1 << 20;
const MEMORY_BYTES: u64 = 100_000;
const S: u64 = 1_000_000_000;
const DAY_S: u64 = 86_400;

#[derive(Clone, Debug)]
enum Step {
    Append { class: u8, records: u32, bytes: usize },
    Flood { class: u8, frames: usize },
    Take { bytes_max: usize, frames_max: usize },
    Acknowledge { frames: usize },
    Sync,
    Wait { seconds: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let class = || 0..CLASSES as u8;
    prop_oneof![
        8 => (class(), 0..4_u32, 0..9_000_usize)
            .prop_map(|(class, records, bytes)| Step::Append { class, records, bytes }),
        3 => (class(), 1..60_usize).prop_map(|(class, frames)| Step::Flood { class, frames }),
        3 => (1..60_000_usize, 1..9_usize)
            .prop_map(|(bytes_max, frames_max)| Step::Take { bytes_max, frames_max }),
        2 => (0..9_usize).prop_map(|frames| Step::Acknowledge { frames }),
        2 => Just(Step::Sync),
        3 => (0..DAY_S / 3).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Restart),
    ]
}

struct Device {
    directory: PathBuf,
    sync: Sync,
    now: Arc<AtomicU64>,
    ends: Option<(Writer, Reader)>,
    /// By class: sequence to (generation, records).
    made: [BTreeMap<u64, (u32, u32)>; CLASSES],
    delivered: [Vec<u64>; CLASSES],
    generations: [(u32, bool); CLASSES],
    dropped: Vec<codec::Tombstone>,
    dropped_frames: u64,
    /// What files had after the step before, and what was written in each day: frames, states.
    files: BTreeMap<PathBuf, Vec<u8>>,
    days: BTreeMap<u64, (u64, u64)>,
}

impl Device {
    fn new(directory: &Path, sync: Sync) -> Device {
        let mut device = Device {
            directory: directory.into(),
            sync,
            now: Arc::default(),
            ends: None,
            made: Default::default(),
            delivered: Default::default(),
            generations: [(0, true); CLASSES],
            dropped: Vec::new(),
            dropped_frames: 0,
            files: BTreeMap::new(),
            days: BTreeMap::new(),
        };
        device.open();
        device
    }

    fn open(&mut self) {
        let now = Arc::clone(&self.now);
        let clock = move || now.load(Ordering::Relaxed);
        let wear = Arc::new(Wear::open(&self.directory, BUDGET, [1; 16], clock).unwrap());
        let limits = Limits { bytes_max: 3 << 20, sync: self.sync };
        let (mut writer, mut reader, _) =
            Spool::open(&self.directory.join("spool"), limits).unwrap();
        writer.spare(Arc::clone(&wear));
        writer.hold_at_most(MEMORY_BYTES);
        reader.spare(wear);
        self.ends = Some((writer, reader));
    }

    fn ends(&mut self) -> &mut (Writer, Reader) {
        self.ends.as_mut().unwrap()
    }

    fn append(&mut self, class: u8, records: u32, bytes: usize) {
        let lane = usize::from(class);
        let sequence = self.made[lane].len() as u64;
        let (generation, starts) = self.generations[lane];
        let frame = sample::frame_of(class, (generation, starts), sequence, records, bytes);
        let records = Frame::decode(&frame).unwrap().0.header.records;
        self.made[lane].insert(sequence, (generation, records));
        self.generations[lane].1 = false;
        let appended = self.ends().0.append(&frame).unwrap();
        self.note(&appended);
        for (generation, restart) in self.generations.iter_mut().zip(appended.restart) {
            if restart {
                *generation = (generation.0 + 1, true);
            }
        }
    }

    fn note(&mut self, appended: &Appended) {
        self.dropped_frames += appended.dropped_frames;
        let of = |reason| {
            let stones = appended.dropped.stones().iter().filter(move |s| s.reason == reason);
            stones.map(|stone| stone.records).sum::<u64>()
        };
        assert_eq!(of(DropReason::SpoolFull), appended.dropped_records);
        assert_eq!(of(DropReason::FlashBudget), appended.unwritten_records);
        self.dropped.extend(appended.dropped.stones());
    }

    /// Acknowledges so many frames of the last batch.
    fn acknowledge(&mut self, frames: usize) {
        let reader = &mut self.ends().1;
        let sent: Vec<_> = reader.in_flight().iter().take(frames).map(|sent| sent.key).collect();
        reader.acknowledge(|key| sent.contains(key));
        for key in sent {
            self.delivered[usize::from(key.class)].push(key.sequence);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { class, records, bytes } => self.append(class, records, bytes),
            Step::Flood { class, frames } => {
                for _ in 0..frames {
                    self.append(class, 1, 8_000);
                    self.check();
                }
            }
            Step::Take { bytes_max, frames_max } => {
                let mut buffer = Vec::new();
                self.ends().1.batch(&mut buffer, bytes_max, frames_max).unwrap();
            }
            Step::Acknowledge { frames } => self.acknowledge(frames),
            Step::Sync => self.ends().0.sync().unwrap(),
            Step::Wait { seconds } => {
                self.now.fetch_add(seconds * S, Ordering::Relaxed);
            }
            Step::Restart => {
                let (mut writer, mut reader) = self.ends.take().unwrap();
                reader.release();
                reader.close();
                let (dropped, refused): (Graveyard, _) = writer.close();
                assert!(refused.is_none(), "{refused:?}");
                self.dropped_frames += dropped.stones().iter().map(|s| s.frames).sum::<u64>();
                self.dropped.extend(dropped.stones());
                drop((writer, reader));
                self.open();
                for generation in &mut self.generations {
                    *generation = (generation.0 + 1, true);
                }
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let depth = self.ends().0.depth();
        let made: u64 = self.made.iter().map(|made| made.len() as u64).sum();
        let delivered: u64 = self.delivered.iter().map(|all| all.len() as u64).sum();
        assert_eq!(made, delivered + self.dropped_frames + depth.frames, "{depth:?}");

        let day = self.now.load(Ordering::Relaxed) / (DAY_S * S);
        let (frames, states) = self.days.entry(day).or_default();
        let files = [self.directory.clone(), self.directory.join("spool")];
        let mut on_disk = 0;
        let entries = files.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let mut present = BTreeMap::new();
        for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            let content = std::fs::read(&path).unwrap();
            let before = self.files.get(&path);
            if path.extension().is_some_and(|end| end == "frames") {
                on_disk += content.len() as u64;
                // Frames are appended and nothing is rewritten.
                let before = before.map_or(&[][..], |before| before);
                assert!(content.starts_with(before), "{}", path.display());
                *frames += (content.len() - before.len()) as u64;
            } else if before.is_none_or(|before| *before != content) && !path.ends_with("lock") {
                *states += BLOCK_BYTES;
            }
            present.insert(path, content);
        }
        self.files = present;
        assert!(*frames <= BUDGET, "day {day}: {frames} bytes of frames");
        assert!(*states <= STATE_BYTES_PER_DAY, "day {day}: {states} bytes of states");
        assert!(depth.bytes - on_disk.min(depth.bytes) <= MEMORY_BYTES, "{depth:?}, {on_disk}");
    }

    /// Takes all out, and holds what came against what was made and what was named.
    fn end(mut self) {
        self.ends().1.release();
        while self.ends().1.depth().frames > 0 {
            self.step(&Step::Take { bytes_max: 1 << 20, frames_max: 100 });
            self.acknowledge(usize::MAX);
        }
        for (class, made) in self.made.iter().enumerate() {
            let delivered = &self.delivered[class];
            let mut sorted = delivered.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), delivered.len(), "delivered twice");
            let mut broken = None;
            for (sequence, (generation, _)) in made {
                if sorted.binary_search(sequence).is_ok() {
                    // Of each generation what was delivered is its beginning.
                    assert_ne!(broken, Some(*generation), "class {class} frame {sequence}");
                    continue;
                }
                broken = Some(*generation);
                let names = |s: &&codec::Tombstone| {
                    usize::from(s.class) == class && (s.first..=s.last).contains(sequence)
                };
                assert!(self.dropped.iter().any(|s| names(&s)), "class {class} frame {sequence}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_more_is_written_than_a_day_has_and_each_frame_has_its_place(
        memory_first in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let sync = if memory_first {
            Sync::MemoryFirst { bytes_max: MEMORY_BYTES }
        } else {
            Sync::OnRequest
        };
        let mut device = Device::new(directory.path(), sync);
        for step in &steps {
            device.step(step);
        }
        device.end();
    }
}

#[test]
fn volumes_leave_a_quarter_to_what_is_urgent_and_go_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut device = Device::new(directory.path(), Sync::OnRequest);
    device.append(0, 1, 8_000);
    let of = |device: &Device, class| {
        let stones = device.dropped.iter().filter(|s| s.class == class);
        stones.map(|s| (s.reason, s.frames)).collect::<Vec<_>>()
    };
    while device.dropped.is_empty() {
        device.append(1, 1, 8_000);
        device.check();
    }
    let written = device.ends().0.written_bytes();
    assert!((BUDGET / 2..=BUDGET / 4 * 3).contains(&written), "{written}");
    assert!(of(&device, 1).iter().all(|(reason, _)| *reason == DropReason::FlashBudget));
    // What is urgent is still written, and then takes the place of volumes in memory.
    while of(&device, 0).is_empty() {
        device.append(0, 1, 8_000);
        device.check();
    }
    let all = device.ends().0.written_bytes();
    assert!(all > written + BUDGET / 8 && all <= BUDGET, "{all}");
    let held = MEMORY_BYTES / sample::frame(0, 1, 8_000).len() as u64;
    let volumes: u64 = of(&device, 1).iter().map(|(_, frames)| frames).sum();
    assert!(volumes >= held, "{volumes} of {held}");
    // The day's bytes are spent: this one waits in memory.
    device.append(0, 1, 8_000);
    assert_eq!(device.ends().0.written_bytes(), all);
    // A new day takes what waits in memory to flash.
    device.step(&Step::Wait { seconds: DAY_S });
    device.step(&Step::Sync);
    assert!(device.ends().0.written_bytes() > all);
    device.append(0, 1, 8_000);
    device.append(1, 1, 8_000);
    device.end();
}
