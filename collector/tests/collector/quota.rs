//! One device has a share of the store and no more: the others are served while it waits.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::harness::frames::Run;
use crate::harness::{Collector, Site, until};

const GREEDY: &str = "gw-greedy";
const HONEST: &str = "gw-honest";
const BYTES_MAX: u64 = 1 << 20;
const BODY_FRAMES: u64 = 16;

/// What the files and folders of an agent take, in blocks, but for the count itself.
fn on_disk(site: &Site, agent: &str) -> u64 {
    fn walk(path: &Path, seen: &mut BTreeSet<u64>) -> u64 {
        let metadata = fs::symlink_metadata(path).unwrap();
        if !seen.insert(metadata.ino()) || path.ends_with("usage.json") {
            return 0;
        }
        if !metadata.is_dir() {
            return metadata.len().div_ceil(4096) * 4096;
        }
        let entries = fs::read_dir(path).unwrap().flatten();
        4096 + entries.map(|entry| walk(&entry.path(), seen)).sum::<u64>()
    }
    walk(&site.store().join(agent), &mut BTreeSet::new())
}

fn counted(site: &Site, agent: &str) -> u64 {
    let text = fs::read(site.store().join(agent).join("usage.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["bytes"].as_u64().unwrap()
}

fn body(run: &Run, first: u64) -> Vec<u8> {
    let frame = |s| if s == 0 { run.start(0, 0) } else { run.next(0, s) };
    (first..first + BODY_FRAMES).flat_map(frame).collect()
}

/// Sends until the share is full. Returns the first frame that was not taken.
fn fill(collector: &Collector<'_>, run: &Run) -> u64 {
    let mut client = collector.connect(GREEDY);
    let mut first = 0;
    loop {
        let answer = client.post(&body(run, first));
        if answer.status != 200 {
            let detail = answer.refusal(507, "quota");
            assert!(detail.contains("\"gw-greedy\""), "{detail}");
            assert!(detail.contains("store.bytes_per_agent_max"), "{detail}");
            assert!(answer.header("retry-after").is_some());
            return first;
        }
        first += BODY_FRAMES;
        assert!(first * 4096 <= BYTES_MAX, "the share never fills");
    }
}

#[test]
fn a_device_that_fills_its_share_waits_and_the_others_go_on() {
    let site = Site::new(&format!("bytes_per_agent_max = {BYTES_MAX}\n"));
    let collector = site.start();
    let (greedy, honest) = (Run::new(GREEDY, 1), Run::new(HONEST, 2));
    let full_at = fill(&collector, &greedy);
    println!("full after {full_at} frames, {} bytes on disk", on_disk(&site, GREEDY));
    assert!(full_at > BODY_FRAMES);
    collector.logged(&["warning:", "507 quota", GREEDY, "store.bytes_per_agent_max"]);
    assert_eq!(collector.connect(HONEST).post(&body(&honest, 0)).status, 200);
    // What is held can still be confirmed.
    let mut client = collector.connect(GREEDY);
    let again = client.post(&body(&greedy, full_at - BODY_FRAMES));
    assert_eq!((again.status, &again.json()["streams"][0]["contiguous"]), (200, &full_at.into()));
    assert_eq!(collector.health()["refused"]["quota"], 1);
    collector.terminate();
    assert!(counted(&site, GREEDY) <= BYTES_MAX);
    // The frames and what was made of them.
    for agent in [GREEDY, HONEST] {
        let (counted, there) = (counted(&site, agent), on_disk(&site, agent));
        println!("{agent}: {counted} counted, {there} there");
        // The folder of `.sf` files is found by the next look.
        assert!((there - 4096..=there).contains(&counted), "{agent}");
    }

    // A restart forgets nothing, and begins with no look at the files.
    let before = counted(&site, GREEDY);
    let collector = site.start();
    let mut client = collector.connect(GREEDY);
    client.post(&body(&greedy, full_at)).refusal(507, "quota");
    assert!((before..=before + 4096).contains(&counted(&site, GREEDY)));
    assert_eq!(collector.connect(HONEST).post(&body(&honest, BODY_FRAMES)).status, 200);

    // An operator makes room, and the device is served without a restart.
    for entry in fs::read_dir(site.store().join(GREEDY)).unwrap().flatten() {
        if entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let next = Run::new(GREEDY, 3);
    let answer = until("room for the device", || {
        let answer = client.post(&body(&next, 0));
        (answer.status != 507).then_some(answer)
    });
    assert_eq!(answer.json()["streams"][0]["contiguous"], BODY_FRAMES);
    // The rest of the run that went has no start any more: the device begins a new generation.
    client.post(&body(&greedy, full_at)).refusal(409, "generation-lost");
    collector.terminate();
    let held = site.stored("frame");
    let of = |agent: &str| held.iter().filter(|path| path.iter().any(|p| p == agent)).count();
    assert_eq!((of(GREEDY) as u64, of(HONEST) as u64), (BODY_FRAMES, 2 * BODY_FRAMES));
}

#[test]
fn a_bound_holds_for_what_was_stored_before_it_was_set() {
    let site = Site::new("");
    let collector = site.start();
    let run = Run::new(GREEDY, 1);
    let frames = 2 * BYTES_MAX / 4096;
    for first in (0..frames).step_by(BODY_FRAMES as usize) {
        assert_eq!(collector.connect(GREEDY).post(&body(&run, first)).status, 200);
    }
    collector.terminate();
    assert!(!site.store().join(GREEDY).join("usage.json").exists());
    let path = site.path("collector.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}bytes_per_agent_max = {BYTES_MAX}\n")).unwrap();
    let collector = site.start();
    collector.connect(GREEDY).post(&body(&run, frames)).refusal(507, "quota");
    // Nothing is made of its frames meanwhile, and the log says why.
    for file in site.stored("sf") {
        fs::remove_file(file).unwrap();
    }
    collector.terminate();
    let collector = site.start();
    collector.logged(&["no .sf file", "store.bytes_per_agent_max"]);
    collector.terminate();
    assert_eq!(site.stored("sf").len(), 0);
    assert_eq!(site.stored("frame").len() as u64, frames);
    // Without the bound the count, which nobody keeps, is gone, and what waited is made.
    fs::write(&path, text).unwrap();
    let collector = site.start();
    until("the .sf file", || (site.stored("sf").len() == 1).then_some(()));
    collector.terminate();
    assert!(!site.store().join(GREEDY).join("usage.json").exists());
}
