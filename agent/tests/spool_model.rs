//! The spool against a model: random appends, batches, acknowledgements, refusals and
//! restarts, under a quota that bites. Whatever happens, every record is delivered once,
//! refused, or counted as dropped; the order holds; the disk stays within its bound.

#![allow(clippy::unwrap_used, clippy::panic)]

mod sample;

use std::collections::BTreeSet;
use std::path::Path;

use agent::spool::{Limits, Reader, Settled, Spool, Sync, Writer};
use proptest::prelude::*;

const LIMITS: Limits = Limits { bytes_max: 300_000, sync: Sync::OnRequest };

#[derive(Clone, Debug)]
enum Step {
    Append { records: u32, bytes: usize },
    Take { bytes_max: usize, frames_max: usize },
    Acknowledge { frames: usize },
    Discard,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u32, 0..12_000_usize)
            .prop_map(|(records, bytes)| Step::Append { records, bytes }),
        3 => (1..80_000_usize, 1..9_usize)
            .prop_map(|(bytes_max, frames_max)| Step::Take { bytes_max, frames_max }),
        3 => (0..9_usize).prop_map(|frames| Step::Acknowledge { frames }),
        1 => Just(Step::Discard),
        1 => Just(Step::Reopen),
    ]
}

struct Model {
    writer: Writer,
    reader: Reader,
    next: u64,
    appended: u64,
    settled: u64,
    dropped: u64,
    delivered: BTreeSet<u64>,
    batch: Vec<u64>,
}

impl Model {
    fn open(directory: &Path) -> (Writer, Reader) {
        let (writer, reader, recovery) = Spool::open(directory, LIMITS).unwrap();
        assert_eq!((recovery.cut_bytes, recovery.damaged_bytes), (0, 0));
        assert_eq!(recovery.records, reader.depth().records);
        (writer, reader)
    }

    fn settle(&mut self, settled: Settled) {
        for sequence in self.batch.drain(..).take(settled.frames as usize) {
            assert!(self.delivered.insert(sequence), "frame {sequence} came twice");
        }
        self.settled += settled.records;
    }

    fn take(&mut self, bytes_max: usize, frames_max: usize) -> usize {
        let mut buffer = Vec::new();
        let sent = self.reader.batch(&mut buffer, bytes_max, frames_max).unwrap();
        self.batch = sent.iter().map(|sent| sent.key.sequence).collect();
        assert!(sent.len() <= frames_max);
        assert!(sent.len() <= 1 || buffer.len() <= bytes_max);
        assert_eq!(sent.iter().map(|sent| sent.bytes).sum::<usize>(), buffer.len());
        let mut rest = &buffer[..];
        for sent in sent {
            let (frame, after) = codec::Frame::decode(rest).unwrap();
            assert_eq!((frame.header.key, frame.header.records), (sent.key, sent.records));
            rest = after;
        }
        assert!(self.batch.is_sorted());
        if let (Some(first), Some(last)) = (self.batch.first(), self.delivered.last()) {
            assert!(first > last, "order");
        }
        self.batch.len()
    }

    fn step(&mut self, step: &Step, directory: &Path) {
        match *step {
            Step::Append { records, bytes } => {
                let frame = sample::frame(self.next, records, bytes);
                let appended = self.writer.append(&frame).unwrap();
                self.next += 1;
                self.appended += u64::from(records);
                self.dropped += appended.dropped_records;
                assert_eq!(appended.waiting_bytes, self.writer.depth().waiting_bytes);
            }
            Step::Take { bytes_max, frames_max } => {
                self.take(bytes_max, frames_max);
            }
            Step::Acknowledge { frames } => {
                let held: Vec<u64> = self.batch.iter().copied().take(frames).collect();
                let settled = self.reader.acknowledge(|key| held.contains(&key.sequence));
                assert_eq!(settled.frames as usize, held.len());
                self.settle(settled);
            }
            Step::Discard => {
                let settled = self.reader.discard(1);
                self.settle(settled);
            }
            Step::Reopen => {
                self.batch.clear();
                // The lock goes with both ends.
                let scrap = tempfile::tempdir().unwrap();
                (self.writer, self.reader) = Model::open(scrap.path());
                (self.writer, self.reader) = Model::open(directory);
            }
        }
        let depth = self.reader.depth();
        assert_eq!(self.appended, self.settled + self.dropped + depth.records);
        assert_eq!(self.reader.damaged_records(), 0);
        let on_disk: u64 = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "frames"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert_eq!(on_disk, depth.bytes);
        assert!(on_disk <= LIMITS.bytes_max, "{on_disk}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn every_record_is_delivered_once_refused_or_counted(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let (writer, reader) = Model::open(directory.path());
        let mut model = Model {
            writer,
            reader,
            next: 0,
            appended: 0,
            settled: 0,
            dropped: 0,
            delivered: BTreeSet::new(),
            batch: Vec::new(),
        };
        for step in &steps {
            model.step(step, directory.path());
        }
        while model.take(1 << 20, 512) > 0 {
            let settled = model.reader.acknowledge(|_| true);
            model.settle(settled);
        }
        prop_assert_eq!(model.appended, model.settled + model.dropped);
    }
}
