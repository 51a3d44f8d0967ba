//! `spool list` and `spool purge`, by the program itself: beside an owner, over damage, and cut
//! short.

#![allow(clippy::unwrap_used, clippy::panic)]

mod sample;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::spool::{Contents, Limits, Reader, Spool, Sync, Writer, complete_purge};
use agent::tombstones::Graveyard;
use agent::untold::Untold;
use codec::{Counter, DropReason, Frame, FrameWriter, Ledger, Term};
use serde_json::{Value, json};

const LIMITS: Limits = Limits { bytes_max: 1 << 20, sync: Sync::EachFrame };

/// A device: its configuration file and its spool.
struct Device {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// One device at a time: a program that another test is about to start holds all descriptors of
/// this process for a moment, and with them the locks of its spools.
static ALONE: Mutex<()> = Mutex::new(());

impl Device {
    fn new() -> Device {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let device = Device { folder: tempfile::tempdir().unwrap(), _alone: alone };
        let text = format!(
            "[collector]\nurl = \"https://collector:7443\"\n[spool]\ndirectory = {:?}\n",
            device.spool()
        );
        fs::write(device.config(), text).unwrap();
        device
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("agent.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn spool(&self) -> PathBuf {
        self.state().join("spool")
    }

    fn open(&self) -> (Writer, Reader) {
        let (writer, reader, _) = Spool::open(&self.spool(), LIMITS).unwrap();
        (writer, reader)
    }

    fn fill(&self, sequences: std::ops::Range<u64>) {
        let (mut writer, _reader) = self.open();
        for sequence in sequences {
            writer.append(&sample::frame(sequence, 3, 40)).unwrap();
        }
    }

    fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysflow-agent"));
        command.arg("spool").args(words).arg("--config").arg(self.config()).output().unwrap()
    }

    fn list(&self) -> Value {
        let output = self.command(&["list", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn untold(&self) -> u64 {
        Untold::find(&self.state()).unwrap().map_or(0, |untold| untold.records())
    }
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_list_beside_an_owner_says_so_and_changes_nothing() {
    let device = Device::new();
    let (mut writer, mut reader) = device.open();
    for sequence in [0, 1, 2, 5] {
        writer.append(&sample::frame(sequence, 3, 40)).unwrap();
    }
    // The first one is delivered.
    reader.batch(&mut Vec::new(), 1 << 20, 1).unwrap();
    reader.acknowledge(|_| true);
    let before = files(&device.spool());
    let listed = device.list();
    assert_eq!(listed["owner"], std::process::id().to_string());
    assert_eq!((&listed["frames"], &listed["records"]), (&json!(3), &json!(9)));
    let bytes = (1..4).map(|_| sample::frame(1, 3, 40).len()).sum::<usize>();
    assert_eq!(listed["waiting_bytes"], bytes);
    let segment = &listed["segments"][0];
    let stream = json!({ "run": "5a5a5a5a5a5a5a5a", "class": 0, "sequences": [[1, 2], [5, 5]] });
    assert_eq!(segment["streams"], json!([stream]));
    // Times are sequence + record; the clock's offset is 0.
    assert_eq!((&segment["first_unix_ns"], &segment["last_unix_ns"]), (&json!(1), &json!(7)));
    let text = String::from_utf8(device.command(&["list"]).stdout).unwrap();
    assert!(text.contains(&format!("in use by process {}", std::process::id())), "{text}");
    assert!(text.contains("run 5a5a5a5a5a5a5a5a class 0: frames 1-2, 5-5"), "{text}");
    assert!(files(&device.spool()) == before);
    drop((writer, reader));
    assert_eq!(device.list()["owner"], Value::Null);
}

#[test]
fn damage_and_unfinished_ends_are_listed() {
    let device = Device::new();
    device.fill(0..3);
    let path = device.spool().join("00000000000000000001.frames");
    let mut bytes = fs::read(&path).unwrap();
    let length = sample::frame(1, 3, 40).len();
    let start = bytes.len() - 2 * length;
    bytes[start + length / 2] ^= 1;
    bytes.extend_from_slice(b"SFE");
    fs::write(&path, bytes).unwrap();
    let listed = device.list();
    let segment = &listed["segments"][0];
    assert_eq!(segment["frames"], 2);
    assert_eq!(segment["damaged_bytes"], length);
    assert_eq!(segment["unfinished_bytes"], 3);
    let text = String::from_utf8(device.command(&["list"]).stdout).unwrap();
    assert!(text.contains(&format!("damaged: {length} bytes")), "{text}");
    assert!(text.contains("unfinished: 3 bytes"), "{text}");
}

#[test]
fn a_purge_is_refused_while_the_spool_is_in_use_and_without_leave() {
    let device = Device::new();
    device.fill(0..3);
    assert_eq!(device.command(&["purge"]).status.code(), Some(64));
    let owner = device.open();
    let output = device.command(&["purge", "--yes"]);
    assert_eq!(output.status.code(), Some(75));
    let told = String::from_utf8(output.stderr).unwrap();
    let process = format!("in use by process {} (stop that agent first)", std::process::id());
    assert!(told.contains(&process), "{told}");
    drop(owner);
    assert_eq!(device.list()["frames"], 3);
    assert_eq!(device.untold(), 0);
}

#[test]
fn a_purge_empties_the_spool_and_is_remembered() {
    let device = Device::new();
    device.fill(0..3);
    let output = device.command(&["purge", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("3 frames purged, 9 records"), "{said}");
    assert_eq!(device.untold(), 9);
    let untold = Untold::find(&device.state()).unwrap().unwrap();
    let [stone] = &untold.stones().stones()[..] else { panic!("{untold:?}") };
    let told = (stone.reason, stone.class, stone.first, stone.last, stone.frames, stone.records);
    assert_eq!(told, (DropReason::Purged, 0, 0, 2, 3, 9));
    assert_eq!(device.list()["segments"], json!([]));
    // What comes after it is not touched by it, nor by one that finds nothing.
    device.fill(10..12);
    complete_purge(&device.spool(), Untold::find(&device.state()).unwrap().unwrap().until())
        .unwrap();
    assert_eq!(device.list()["frames"], 2);
    device.command(&["purge", "--yes"]);
    device.command(&["purge", "--yes"]);
    assert_eq!(device.untold(), 15);
}

#[test]
fn a_purge_that_was_cut_short_is_ended_and_counted_once() {
    let device = Device::new();
    device.fill(0..4);
    // As after a power cut between the note and the files.
    let contents = Contents::read(&device.spool()).unwrap();
    let until = contents.segments.last().unwrap().number;
    let stones = Graveyard::default();
    let mut untold = Untold::open(&device.state()).unwrap();
    untold.add_purge(contents.records, until, &stones).unwrap();
    let output = device.command(&["purge", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(device.untold(), 12);
    assert_eq!(device.list()["frames"], 0);
}

#[test]
fn a_purge_of_the_frame_that_tells_of_a_purge_tells_of_both() {
    let device = Device::new();
    let (mut writer, reader) = device.open();
    let bytes = sample::frame(0, 3, 40);
    let (frame, _) = Frame::decode(&bytes).unwrap();
    let mut header = frame.header.clone();
    let told = Counter { operation: None, term: Term::LostPurged, total: 100 };
    header.ledger = Ledger::from_slice(&[told]).unwrap();
    let mut buffer = vec![0; codec::FRAME_BYTES_MAX];
    let mut telling = FrameWriter::new(&mut buffer).unwrap();
    for record in frame.records() {
        telling.push(&record.unwrap()).unwrap();
    }
    writer.append(telling.finish(&header).unwrap()).unwrap();
    drop((writer, reader));
    assert!(device.command(&["purge", "--yes"]).status.success());
    assert_eq!(device.untold(), 103);
}

#[test]
fn before_the_first_run_nothing_waits_and_nothing_is_purged() {
    let device = Device::new();
    let listed = device.list();
    assert_eq!((&listed["frames"], &listed["segments"]), (&json!(0), &json!([])));
    let text = String::from_utf8(device.command(&["list"]).stdout).unwrap();
    assert!(text.contains("0 frames wait"), "{text}");
    assert!(!device.state().exists());
    let refused = |words: &[&str], code| {
        let output = device.command(words);
        assert_eq!(output.status.code(), Some(code));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&device.spool().display().to_string()), "{told}");
    };
    refused(&["purge", "--yes"], 75);
    assert!(!device.state().exists());
    // What is no folder cannot be read.
    fs::create_dir(device.state()).unwrap();
    fs::write(device.spool(), "").unwrap();
    refused(&["list"], 78);
}
