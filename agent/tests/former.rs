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
use codec::{Class, DropReason, Frame, Tombstone};
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
             [frames]\nage_max_s = 1\n[status]\nfile = {status:?}\n[spool]\ndirectory = {spool:?}\nfree_percent = 0\n",
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

/// The urgent frames in these files, in their order: how many, and the ids of the runs of which they
/// tell that they were cut.
fn on_disk(spool: &Path) -> (u64, Vec<String>) {
    let files = std::fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "frames");
    let mut files: Vec<PathBuf> = files.filter(is_segment).collect();
    files.sort();
    let (mut frames, mut runs) = (0, Vec::new());
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let mut rest = bytes.as_slice();
        while let Ok((frame, behind)) = Frame::decode(rest) {
            let run = frame.header.interruption.map(|interruption| interruption.run_id);
            runs.extend(run.map(|id| id.map(|byte| format!("{byte:02x}")).concat()));
            frames += u64::from(frame.header.key.class == Class::Urgent as u8);
            rest = behind;
        }
    }
    (frames, runs)
}

#[test]
fn runs_that_are_killed_with_all_in_memory_are_told_of_one_by_one() {
    let test = "runs_that_are_killed_with_all_in_memory_are_told_of_one_by_one";
    let device = Device::new();
    let spool = device.state().join("spool");
    let mut killed = Vec::new();
    for _ in 0..2 {
        let (held, _) = on_disk(&spool);
        // The first urgent frame is on disk, and there are others in memory.
        let is_on = |status: &Value| {
            let (now, _) = on_disk(&spool);
            now > held && status["spool"]["frames"].as_u64() > Some(now + 1)
        };
        let mut agent = device.start("sync = \"memory-first\"\nsync_interval_s = 86400");
        let Some(status) = agent.until("frames in memory", test, is_on) else { return };
        killed.push(status["run_id"].as_str().unwrap().to_string());
        drop(agent);
    }
    let mut last = device.start("sync = \"frame\"");
    last.until("what it tells of the runs before", test, |_| on_disk(&spool).1.len() > 1);
    assert_eq!(on_disk(&spool).1, killed);
}
