//! Disks that are full or take no writes: nothing is acknowledged that is not held, and all goes
//! on when there is room again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::frames::Run;
use crate::harness::{Site, until};

const AGENT: &str = "gw-1";

/// A small file system of its own in place of the store; unmounted when dropped.
struct Disk {
    place: PathBuf,
}

impl Disk {
    /// None, said aloud, where nothing may be mounted.
    fn mount(site: &Site, size: &str) -> Option<Disk> {
        let place = site.store();
        std::fs::create_dir(&place).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&place)
            .output()
            .unwrap();
        if !mounted.status.success() {
            println!("skipped: mount: {}", String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(Disk { place })
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.place).status();
        assert!(status.unwrap().success(), "mount -o {options}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

/// The frames of one run by sequence, with the bytes that were sent.
#[track_caller]
fn all_held(site: &Site, acknowledged: &BTreeMap<u64, Vec<u8>>) {
    let stored = site.stored("frame");
    for (sequence, bytes) in acknowledged {
        let name = format!("{sequence:020}.frame");
        let path = stored.iter().find(|path| path.ends_with(&name));
        let path = path.unwrap_or_else(|| panic!("frame {sequence} was acknowledged and is gone"));
        assert!(&std::fs::read(path).unwrap() == bytes, "frame {sequence} has other bytes");
    }
}

fn frame(run: &Run, sequence: u64) -> Vec<u8> {
    if sequence == 0 { run.start(0, 0) } else { run.next(0, sequence) }
}

/// Half-written files.
fn left_over(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| {
        entries.flatten().filter(|e| e.file_name().as_encoded_bytes().starts_with(b".")).count()
    })
}

#[test]
fn a_full_disk_is_told_as_503_and_nothing_that_was_acknowledged_is_lost() {
    let site = Site::new("");
    let Some(disk) = Disk::mount(&site, "512k") else { return };
    let mut collector = site.start();
    let run = Run::new(AGENT, 1);
    let mut acknowledged = BTreeMap::new();
    let mut client = collector.connect(AGENT);
    let mut sequence = 0;
    loop {
        let bytes = frame(&run, sequence);
        let answer = client.post(&bytes);
        if answer.status != 200 {
            answer.refusal(503, "unavailable");
            assert!(answer.header("retry-after").is_some());
            break;
        }
        acknowledged.insert(sequence, bytes);
        sequence += 1;
        assert!(sequence < 2000, "the disk never fills");
    }
    println!("full after {sequence} frames");
    assert!(sequence > 5);
    collector.logged(&["store:"]);
    // A body of which a part may fit.
    let rest: Vec<u8> = (sequence..sequence + 8).flat_map(|s| frame(&run, s)).collect();
    client.post(&rest).refusal(503, "unavailable");
    all_held(&site, &acknowledged);
    assert_eq!(left_over(site.stored("frame")[0].parent().unwrap()), 0);
    // Nor after the power is cut and it starts on a full disk.
    collector.kill();
    all_held(&site, &acknowledged);
    collector = site.start();
    let mut client = collector.connect(AGENT);
    client.post(&rest).refusal(503, "unavailable");
    disk.remount("size=64m");
    let answer = client.post(&rest);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["streams"][0]["contiguous"], sequence + 8);
    acknowledged.extend((sequence..sequence + 8).map(|s| (s, frame(&run, s))));
    all_held(&site, &acknowledged);
    collector.terminate();
    assert_eq!(site.stored("sf").len(), 1);
}

#[test]
fn the_certificates_that_frames_came_with_are_kept() {
    let site = Site::new("");
    let collector = site.start();
    let (first, renewed) = (site.pki.agent(AGENT), site.pki.agent(AGENT));
    let run = Run::new(AGENT, 1);
    for (sequence, identity) in [(0, &first), (1, &first), (2, &renewed)] {
        let mut client = collector.connect_as(Some(identity));
        assert_eq!(client.post(&frame(&run, sequence)).status, 200);
    }
    let kept: Vec<String> = site
        .stored("pem")
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap().trim().to_owned())
        .collect();
    let mut shown =
        [&first, &renewed].map(|identity| identity.certificate_pem.replace("\r\n", "\n"));
    let mut kept = kept;
    kept.sort();
    shown.sort();
    assert_eq!(kept, shown.each_ref().map(|text| text.trim()));
    let folder = site.store().join(AGENT).join("certificates");
    assert_eq!(left_over(&folder), 0);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2);
}

#[test]
fn a_store_that_takes_no_writes_any_more_acknowledges_nothing() {
    let site = Site::new("");
    let Some(disk) = Disk::mount(&site, "64m") else { return };
    let collector = site.start();
    let run = Run::new(AGENT, 1);
    let mut client = collector.connect(AGENT);
    assert_eq!(client.post(&run.frames(3).concat()).status, 200);
    until("the compactor to be done", || {
        (collector.health()["sysflow"]["files_written"] == 1).then_some(())
    });
    disk.remount("ro");
    let detail = client.post(&run.next(0, 3)).refusal(503, "unavailable");
    assert!(detail.contains("Read-only"), "{detail}");
    // What is held can still be confirmed to a device that did not hear it.
    let again = client.post(&frame(&run, 2));
    assert!(matches!(again.status, 200 | 503));
    assert_eq!(site.stored("frame").len(), 3);
    disk.remount("rw");
    assert_eq!(client.post(&run.next(0, 3)).json()["streams"][0]["contiguous"], 4);
    let acknowledged = (0..4).map(|sequence| (sequence, frame(&run, sequence))).collect();
    all_held(&site, &acknowledged);
}

#[test]
fn what_was_acknowledged_right_before_a_kill_is_there_byte_for_byte() {
    let site = Site::new("");
    let run = Run::new(AGENT, 1);
    let mut acknowledged: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for _ in 0..12 {
        let collector = site.start();
        // The restart agrees with what was promised.
        all_held(&site, &acknowledged);
        let first = acknowledged.len() as u64;
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut client = collector.connect(AGENT);
            let (acknowledged, killed, run) = (&mut acknowledged, &killed, &run);
            let (told, hear) = std::sync::mpsc::channel();
            scope.spawn(move || {
                for sequence in first.. {
                    let bytes = frame(run, sequence);
                    match client.try_post(&bytes) {
                        Ok(answer) => assert_eq!(answer.status, 200),
                        Err(_) => break,
                    }
                    acknowledged.insert(sequence, bytes);
                    let _ = told.send(sequence);
                }
                assert!(killed.load(Ordering::SeqCst), "the collector ended by itself");
            });
            // Between the acknowledgement and the kill is nothing.
            while hear.recv().unwrap() < first + 2 {}
            killed.store(true, Ordering::SeqCst);
            collector.kill();
        });
        all_held(&site, &acknowledged);
    }
    println!("{} frames acknowledged over 12 kills", acknowledged.len());
}
