use codec::{Clock, Frame, FrameWriter, GenerationStart, Header, StreamKey};

use super::*;
use crate::ranges::RANGES_MAX;

const BOOT: [u8; 16] = [0xb0; 16];

fn bytes(sequence: u64, is_start: bool, salt: u64) -> Vec<u8> {
    let header = Header {
        key: StreamKey { run_tag: [1; 8], class: 0, sequence },
        first_ns: salt,
        start: is_start.then_some(GenerationStart {
            agent_id: "a",
            boot_id: BOOT,
            run_id: [1; 16],
            agent_version: "",
            kernel: "",
            machine: "",
        }),
        clock: Some(Clock { offset_ns: 0, uncertainty_ns: 0, synchronized: false }),
        ..Header::default()
    };
    let mut buffer = vec![0; codec::FRAME_BYTES_MAX];
    FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap().to_vec()
}

fn open(root: &Path) -> Store {
    Store::open(root, Arc::new(Usage::new(root, None))).unwrap()
}

fn put(store: &Store, sequences: &[u64]) -> Result<Stored, Refusal> {
    let body: Vec<u8> = sequences.iter().flat_map(|s| bytes(*s, *s == 0, 0)).collect();
    store.put("a", &body::frames("a", &body)?)
}

#[test]
fn two_receivers_over_one_store_see_each_others_frames() {
    let folder = tempfile::tempdir().unwrap();
    let one = open(folder.path());
    let other = open(folder.path());
    put(&one, &[0, 1]).unwrap();
    let stored = put(&other, &[1, 2, 4]).unwrap();
    assert_eq!((stored.new, stored.duplicates), (2, 1));
    let stored = put(&one, &[3]).unwrap();
    assert_eq!(stored.streams[0].contiguous, 5);
    assert_eq!(stored.streams[0].holes, Vec::<[u64; 2]>::new());
}

#[test]
fn a_name_taken_between_look_and_link_is_a_conflict_or_a_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let directory = folder.path();
    let (ours, theirs) = (bytes(5, false, 1), bytes(5, false, 2));
    let file = directory.join(layout::frame_name(5));
    std::fs::write(&file, &theirs).unwrap();
    let frame = |bytes| Checked::from(&Frame::decode(bytes).unwrap().0);
    assert!(matches!(
        store.write_new(directory, &file, &frame(&ours)),
        Err(WriteError::Taken(key)) if key.sequence == 5
    ));
    assert!(matches!(store.write_new(directory, &file, &frame(&theirs)), Ok(false)));
    // Nothing in the making is left behind.
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 1);
}

#[test]
fn a_stream_of_nothing_but_holes_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let every_other = |from: usize, to: usize| (from..to).map(|n| n as u64 * 2).collect::<Vec<_>>();
    for part in every_other(0, RANGES_MAX).chunks(body::FRAMES_MAX) {
        put(&store, part).unwrap();
    }
    let stored = put(&store, &every_other(RANGES_MAX, RANGES_MAX + 9)).unwrap();
    assert_eq!((stored.new, stored.streams[0].contiguous), (9, 1));
    // One of a hole that is told no more is stored all the same.
    assert_eq!(put(&store, &[3]).unwrap().new, 1);
    let stored = put(&store, &[1]).unwrap();
    assert!(stored.streams[0].contiguous >= 5);
    assert_eq!(stored.streams[0].holes.len(), HOLES_MAX);
}

#[test]
fn a_refused_body_decides_nothing_about_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let twice = [bytes(0, true, 0), bytes(1, true, 0)].concat();
    let frames = body::frames("a", &twice).unwrap();
    assert!(matches!(store.put("a", &frames), Err(Refusal::Malformed(_))));
    assert!(matches!(put(&store, &[1]), Err(Refusal::GenerationLost(_))));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
