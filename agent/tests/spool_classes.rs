//! The spool and priority classes: what goes out first, and what goes first when it is full.

#![allow(clippy::unwrap_used)]

mod sample;

use std::path::Path;

use agent::spool::{Appended, Limits, Reader, Spool, Sync, Writer};
use codec::{CLASSES, Tombstone};

const LIMITS: Limits = Limits { bytes_max: 300_000, sync: Sync::OnRequest };
/// Of a frame, so that the spool takes fourteen of them.
const BYTES: usize = 20_000;

struct Queue {
    writer: Writer,
    reader: Reader,
    next: [u64; CLASSES],
    generations: [u32; CLASSES],
}

impl Queue {
    fn open(directory: &Path) -> Queue {
        let (writer, reader, _) = Spool::open(directory, LIMITS).unwrap();
        Queue { writer, reader, next: [0; CLASSES], generations: [0; CLASSES] }
    }

    /// Appends the next frame of a class; `starts` says whether a generation begins with it.
    fn append(&mut self, class: u8, starts: bool) -> Appended {
        let lane = usize::from(class);
        self.generations[lane] += u32::from(starts);
        let generation = (self.generations[lane], starts);
        let frame = sample::frame_of(class, generation, self.next[lane], 1, BYTES);
        self.next[lane] += 1;
        self.writer.append(&frame).unwrap()
    }

    /// Takes everything out: classes and sequences.
    fn drain(&mut self) -> Vec<(u8, u64)> {
        let mut out = Vec::new();
        loop {
            let sent = self.reader.batch(&mut Vec::new(), 1 << 20, 512).unwrap();
            if sent.is_empty() {
                return out;
            }
            out.extend(sent.iter().map(|sent| (sent.key.class, sent.key.sequence)));
            self.reader.acknowledge(|_| true);
        }
    }
}

/// Class, first and last of what an append dropped.
fn dropped(appended: &Appended) -> Vec<(u8, u64, u64)> {
    let told = |stone: &Tombstone| (stone.class, stone.first, stone.last);
    appended.dropped.stones().iter().map(told).collect()
}

#[test]
fn urgent_frames_go_out_first_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(directory.path());
    for sequence in 0..3 {
        queue.append(1, sequence == 0);
        queue.append(0, sequence == 0);
    }
    // One of the volumes is on its way when another urgent one comes.
    let taken = |queue: &mut Queue| {
        let sent = queue.reader.batch(&mut Vec::new(), BYTES + 1000, 512).unwrap();
        let taken = sent.iter().map(|s| (s.key.class, s.key.sequence)).collect::<Vec<_>>();
        queue.reader.acknowledge(|_| true);
        taken
    };
    assert_eq!(taken(&mut queue), [(0, 0)]);
    assert_eq!(taken(&mut queue), [(0, 1)]);
    assert_eq!(taken(&mut queue), [(0, 2)]);
    assert_eq!(taken(&mut queue), [(1, 0)]);
    queue.append(0, false);
    drop(queue);
    let mut queue = Queue::open(directory.path());
    assert_eq!(queue.drain(), [(0, 3), (1, 1), (1, 2)]);
    drop(queue);
    assert_eq!(Queue::open(directory.path()).drain(), []);
}

#[test]
fn a_class_that_may_have_no_bytes_waits() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(directory.path());
    queue.append(1, true);
    queue.writer.append(&sample::frame(0, 1, BYTES)).unwrap();
    for urgent in [1, 0] {
        let sent = queue.reader.batch_within(&mut Vec::new(), [1 << 20, 0], 512).unwrap();
        assert_eq!(sent.len(), urgent);
        queue.reader.acknowledge(|_| true);
    }
    assert_eq!(queue.reader.depth().frames, 1);
    assert_eq!(queue.drain(), [(1, 0)]);
}

#[test]
fn the_quota_takes_whole_generations_of_volumes_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(directory.path());
    // Five urgent ones, and nine volumes in three generations: it is full.
    for sequence in 0..9 {
        if sequence < 5 {
            queue.append(0, sequence == 0);
        }
        assert_eq!(queue.append(1, sequence % 3 == 0).dropped_frames, 0);
    }
    // The oldest generation of volumes goes as a whole, whoever needs the room.
    let first = queue.append(0, false);
    assert_eq!((dropped(&first), first.dropped_records), (vec![(1, 0, 2)], 3));
    // That is not the present one, which is small and goes on.
    assert!(!first.restart[1]);
    assert_eq!(queue.append(0, false).dropped_frames, 0);
    assert_eq!(queue.append(0, false).dropped_frames, 0);
    let second = queue.append(1, false);
    assert_eq!((dropped(&second), second.is_kept), (vec![(1, 3, 5)], true));
    queue.append(0, false);
    queue.append(0, false);
    let third = queue.append(0, false);
    assert_eq!((dropped(&third), third.restart[1]), (vec![(1, 6, 9)], true));
    // What is left of a generation of which frames are gone follows them.
    let rest = queue.append(1, false);
    assert_eq!((dropped(&rest), rest.is_kept, rest.restart[1]), (vec![(1, 10, 10)], false, true));
    assert!(queue.append(1, true).is_kept);
    let told = queue.drain();
    let urgent: Vec<_> = (0..11).map(|sequence| (0, sequence)).collect();
    assert_eq!(told, [urgent, vec![(1, 11)]].concat());
}

#[test]
fn volumes_never_take_the_room_of_urgent_frames() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(directory.path());
    for sequence in 0..14 {
        queue.append(0, sequence % 4 == 0);
    }
    let refused = queue.append(1, true);
    assert_eq!((refused.is_kept, dropped(&refused)), (false, vec![(1, 0, 0)]));
    assert_eq!(refused.dropped_records, 1);
    // Urgent ones make room for each other, the oldest generation first.
    assert_eq!(dropped(&queue.append(0, true)), [(0, 0, 3)]);
    assert_eq!(queue.drain().first(), Some(&(0, 4)));
}
