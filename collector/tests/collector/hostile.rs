//! Bodies that lie: whatever they say, the answer is one of the protocol's, nothing of a refused
//! body is kept, and what is held stays as it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use codec::FRAME_BYTES_MAX;

use crate::harness::frames::Run;
use crate::harness::{Site, run, until};

const AGENT: &str = "gw-1";

/// Bytes of a frame before its header: magic, version, length.
const PREFIX_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// A small generator: each seed is a case that can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

/// Makes length and checksum of a frame true again.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let content = frame.len() - CHECKSUM_BYTES;
    frame[4..PREFIX_BYTES].copy_from_slice(&(content as u32 + 4).to_le_bytes());
    let checksum = crc32fast::hash(&frame[..content]);
    frame[content..].copy_from_slice(&checksum.to_le_bytes());
    frame
}

/// Changes a frame somewhere behind its prefix.
fn mutated(frame: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut inside = frame[PREFIX_BYTES..frame.len() - CHECKSUM_BYTES].to_vec();
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(inside.len());
        match dice.roll(6) {
            0 => inside[at] ^= 1 << dice.roll(8),
            1 => inside[at] = [0, 1, 0x7f, 0x80, 0xff][dice.roll(5)],
            2 => inside.insert(at, dice.roll(256) as u8),
            3 => {
                inside.remove(at);
            }
            4 => inside.truncate(at.max(1)),
            // A number that goes on and on.
            _ => {
                let end = inside.len().min(at + 10);
                inside[at..end].fill(0xff);
            }
        }
        if inside.is_empty() {
            inside.push(0);
        }
    }
    let mut bad = frame[..PREFIX_BYTES].to_vec();
    bad.extend_from_slice(&inside);
    bad.extend_from_slice(&[0; CHECKSUM_BYTES]);
    sealed(bad)
}

/// All frames held, with their bytes.
fn held(site: &Site) -> BTreeMap<PathBuf, Vec<u8>> {
    site.stored("frame")
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn nonsense_under_a_good_checksum_is_answered_and_harms_nobody() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let mut answers: BTreeMap<u16, u32> = BTreeMap::new();
    for seed in 0..600 {
        let mut dice = Dice(seed);
        let mut frames = Run::new(AGENT, (seed % 250) as u8).sample();
        let place = dice.roll(frames.len());
        frames[place] = mutated(&frames[place], &mut dice);
        let before = site.stored("frame").len();
        let answer = client.post(&frames.concat());
        let after = site.stored("frame").len();
        *answers.entry(answer.status).or_default() += 1;
        match answer.status {
            200 => assert!(after > 0, "seed {seed}"),
            400 | 403 | 409 => assert_eq!(before, after, "seed {seed}"),
            other => panic!("seed {seed}: {other}: {}", String::from_utf8_lossy(&answer.body)),
        }
    }
    println!("answers to 600 mutations: {answers:?}");
    assert!(answers[&400] > 100 && answers[&200] > 10);
    // The compactor reads all of what was taken.
    collector.terminate();
    let log = site.log();
    assert!(!log.contains("panicked") && !log.contains("compactor ended"), "{log}");
    for command in [["print", "--json"], ["ledger", "--json"]] {
        let printed = run(&[command[0].as_ref(), command[1].as_ref(), site.store().as_os_str()]);
        assert!(matches!(printed.status.code(), Some(0 | 65)), "{printed:?}");
    }
}

#[test]
fn lengths_that_lie_and_unknown_versions_are_refused() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let good = Run::new(AGENT, 1).frames(2).concat();
    let length = Run::new(AGENT, 1).start(0, 0).len() as u32;
    let too_large = FRAME_BYTES_MAX as u32 + 1;
    for lie in [0, 4, 11, 12, length - 1, length + 1, too_large - 1, too_large, u32::MAX] {
        let mut body = good.clone();
        body[4..8].copy_from_slice(&lie.to_le_bytes());
        client.post(&body).refusal(400, "malformed");
    }
    for version in (0..=u8::MAX).filter(|version| *version != good[3]) {
        let mut body = good.clone();
        body[3] = version;
        let detail = client.post(&body).refusal(400, "malformed");
        assert!(detail.contains(&format!("version {version} ")), "{detail}");
    }
    assert!(site.stored("frame").is_empty());
    assert_eq!(client.post(&good).status, 200);
}

#[test]
fn numbers_at_the_end_of_their_range_are_taken_or_refused() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    for (number, offset_ns) in [(1, i64::MIN), (2, i64::MAX), (3, -1)] {
        let mut run = Run::new(AGENT, number);
        run.offset_ns = offset_ns;
        run.class = u8::MAX;
        assert_eq!(client.post(&run.start(u32::MAX, u64::MAX - 1)).status, 200);
        let detail = client.post(&run.next(u32::MAX, u64::MAX)).refusal(400, "malformed");
        assert!(detail.contains("largest number"), "{detail}");
    }
    collector.terminate();
    assert_eq!(site.stored("sf").len(), 3);
    assert!(!site.log().contains("panicked"));
}

#[test]
fn old_bodies_sent_again_and_again_change_nothing() {
    let site = Site::new("");
    let collector = site.start();
    let body = Run::new(AGENT, 1).frames(20).concat();
    assert_eq!(collector.connect(AGENT).post(&body).status, 200);
    let before = held(&site);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = collector.connect(AGENT);
                for _ in 0..25 {
                    let answer = client.post(&body);
                    assert_eq!(answer.status, 200);
                    assert_eq!(answer.json()["streams"][0]["contiguous"], 20);
                }
            });
        }
    });
    assert!(held(&site) == before);
    assert_eq!(collector.health()["frames_duplicate"], 2000);
}

#[test]
fn what_contradicts_what_is_held_is_refused_and_what_is_held_stays() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let held_run = Run::new(AGENT, 1);
    assert_eq!(client.post(&held_run.frames(5).concat()).status, 200);
    let before = held(&site);
    let mut other_boot = held_run.clone();
    other_boot.boot_id = [0xb1; 16];
    let mut other_clock = held_run.clone();
    other_clock.offset_ns += 1;
    let fresh = held_run.next(0, 5);
    let cases = [
        ("its generation begins elsewhere", held_run.start(0, 7), 400, "malformed"),
        ("another boot", other_boot.start(1, 5), 400, "malformed"),
        ("other bytes of the start", other_clock.start(0, 0), 409, "conflict"),
        ("a generation that nobody began", held_run.next(9, 5), 409, "generation-lost"),
        ("another device's start", Run::new("gw-2", 1).start(0, 0), 403, "foreign-frame"),
        ("another device's later frame", Run::new("gw-2", 2).next(0, 3), 409, "generation-lost"),
    ];
    for (what, frame, status, kind) in &cases {
        println!("{what}");
        client.post(frame).refusal(*status, kind);
        // Behind a good frame it takes that one with it.
        client.post(&[fresh.clone(), frame.clone()].concat()).refusal(*status, kind);
        // And before one.
        client.post(&[frame.clone(), fresh.clone()].concat()).refusal(*status, kind);
        assert!(held(&site) == before, "{what}");
    }
    assert_eq!(client.post(&fresh).json()["streams"][0]["contiguous"], 6);
}

#[test]
fn a_body_of_very_many_small_frames_is_refused() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let frames = Run::new(AGENT, 1).frames(1025);
    let detail = client.post(&frames.concat()).refusal(413, "too-large");
    assert!(detail.contains("1024 frames"), "{detail}");
    assert!(site.stored("frame").is_empty());
}

#[test]
fn a_head_that_does_not_end_is_refused() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let long = "x".repeat(1 << 20);
    // The collector may close before all of it is sent.
    let _ = client.send(format!("GET /v1/health HTTP/1.1\r\nx-long: {long}\r\n").as_bytes());
    if let Ok(answer) = client.receive() {
        assert_eq!(answer.status, 431);
    }
    until("the next client", || {
        (collector.connect(AGENT).get("/v1/health").status == 200).then_some(())
    });
}
