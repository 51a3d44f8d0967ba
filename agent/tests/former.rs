//! What runs of before left to be told is told by a later one: the real agent on this machine's kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "other tests ask it for more")]
mod fleet;
#[allow(dead_code, reason = "other tests ask it for more")]
mod receiver;
#[allow(dead_code, reason = "other tests ask it for more")]
mod sample;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agent::tombstones::Graveyard;
use agent::untold::Untold;
use codec::{DropReason, Frame, Tombstone};
use fleet::Ca;
use receiver::until;
use serde_json::Value;

/// A device without a collector.
struct Device {
    folder: tempfile::TempDir,
    text: String,
}

impl Device {
    fn new() -> Device {
        let folder = tempfile::tempdir().unwrap();
        let files = Ca::new(&folder.path().join("fleet"), "fleet");
        let files = files.sign_agent("agent", "gw-0001", 30);
        let spool = folder.path().join("state/spool");
        std::fs::create_dir_all(&spool).unwrap();
        let status = folder.path().join("status.json");
        // Nobody listens there: what is told is in the spool and the status file all the same.
        let text = format!(
            "[collector]\nurl = \"https://localhost:1\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
             [frames]\nage_max_s = 1\n[status]\nfile = {status:?}\n[spool]\ndirectory = {spool:?}\n",
            files.ca, files.certificate, files.key,
        );
        Device { folder, text }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Starts the agent, with more lines for `[spool]`.
    fn start(&self, lines: &str) -> Agent {
        let config = self.folder.path().join("agent.toml");
        std::fs::write(&config, format!("{}{lines}\n", self.text)).unwrap();
        let status = self.folder.path().join("status.json");
        // That of a run before tells nothing of this one.
        let _ = std::fs::remove_file(&status);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysflow-agent"));
        command.args(["run", "--config"]).arg(&config).stderr(Stdio::null());
        Agent { child: command.spawn().unwrap(), status }
    }
}

/// Ends with its owner, also if a test fails.
struct Agent {
    child: Child,
    status: PathBuf,
}

impl Agent {
    /// Waits until its status file is as wanted, and returns it; none, said aloud, where the agent
    /// is not allowed to watch.
    fn until(&mut self, what: &str, test: &str, is: impl Fn(&Value) -> bool) -> Option<Value> {
        let (mut ended, mut told) = (None, Value::Null);
        until(what, || {
            ended = self.child.try_wait().unwrap();
            let read = std::fs::read(&self.status).ok();
            told = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
            ended.is_some() || is(&told)
        });
        match ended {
            None => Some(told),
            // Not by println!, which the test runner swallows.
            Some(status) if status.code() == Some(77) => {
                let said = format!("\nskipped: {test}: needs root\n");
                std::io::stdout().write_all(said.as_bytes()).unwrap();
                None
            }
            Some(status) => panic!("the agent ended with {status}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Records that were dropped, with the term that they are lost by.
const DROPPED: [(DropReason, u64, &str); 2] = [
    (DropReason::SpoolFull, 7, "lost_spool_full"),
    (DropReason::FlashBudget, 5, "lost_flash_budget"),
];

#[test]
fn what_a_run_before_dropped_is_in_the_books() {
    let device = Device::new();
    let mut dropped = Graveyard::default();
    for (reason, records, _) in DROPPED {
        let run_tag = [9; 8];
        dropped.add(&Tombstone {
            run_tag,
            class: 1,
            reason,
            first: 1,
            last: 2,
            frames: 2,
            records,
        });
    }
    Untold::open(&device.state()).unwrap().add_dropped(&dropped).unwrap();
    let is_told = |status: &Value| status["ledger"]["observed"].as_u64().is_some_and(|n| n > 0);
    let test = "what_a_run_before_dropped_is_in_the_books";
    let Some(status) = device.start("").until("the books of the run", test, is_told) else {
        return;
    };
    let ledger = &status["ledger"];
    for (_, records, term) in DROPPED {
        assert_eq!(ledger[term], records, "{term}: {ledger}");
    }
}

/// The runs of which the frames in these files tell that they were cut, by their ids.
fn interrupted(spool: &Path) -> Vec<String> {
    let files = std::fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path());
    let mut runs = Vec::new();
    for file in files.filter(|path| path.extension().is_some_and(|ending| ending == "frames")) {
        let bytes = std::fs::read(file).unwrap();
        let mut rest = bytes.as_slice();
        while let Ok((frame, behind)) = Frame::decode(rest) {
            let run = frame.header.interruption.map(|interruption| interruption.run_id);
            runs.extend(run.map(|id| id.map(|byte| format!("{byte:02x}")).concat()));
            rest = behind;
        }
    }
    runs
}

#[test]
fn a_run_whose_frames_a_kill_took_out_of_memory_takes_no_word_with_it() {
    let test = "a_run_whose_frames_a_kill_took_out_of_memory_takes_no_word_with_it";
    let device = Device::new();
    let spool = device.state().join("spool");
    let has_frames = |least: u64| {
        move |status: &Value| status["spool"]["frames"].as_u64().is_some_and(|n| n > least)
    };
    let mut first = device.start("sync = \"frame\"");
    let Some(status) = first.until("a frame on disk", test, has_frames(0)) else { return };
    let cut = status["run_id"].as_str().unwrap().to_string();
    drop(first);
    let held = std::fs::read_dir(&spool).unwrap().count();
    // More than the first one left, and a while longer, in which it could note that it is there.
    let mut second = device.start("sync = \"memory-first\"\nsync_interval_s = 86400");
    let frames = status["spool"]["frames"].as_u64().unwrap() + 3;
    let status = second.until("frames in memory", test, has_frames(frames)).unwrap();
    assert_ne!(status["run_id"], cut.as_str());
    drop(second);
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), held, "nothing was written");
    assert_eq!(interrupted(&spool), Vec::<String>::new());

    let mut third = device.start("sync = \"frame\"");
    let mut told = Vec::new();
    third.until("what it tells of the runs before", test, |_| !interrupted(&spool).is_empty());
    told.extend(interrupted(&spool));
    assert!(told.iter().all(|run| *run == cut), "{told:?} and not {cut}");
}
