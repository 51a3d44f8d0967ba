//! What the device dropped and no frame has told of is in the books of the next run: the real agent
//! on this machine's kernel.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "other tests ask it for more")]
mod fleet;
#[allow(dead_code, reason = "other tests ask it for more")]
mod receiver;
#[allow(dead_code, reason = "other tests ask it for more")]
mod sample;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use agent::tombstones::Graveyard;
use agent::untold::Untold;
use codec::{DropReason, Tombstone};
use fleet::Ca;
use receiver::until;
use serde_json::Value;

/// Ends with its owner, also if a test fails.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Records that were dropped, with the term that they are lost by.
const DROPPED: [(DropReason, u64, &str); 2] = [
    (DropReason::SpoolFull, 7, "lost_spool_full"),
    (DropReason::FlashBudget, 5, "lost_flash_budget"),
];

#[test]
fn what_a_run_before_dropped_is_in_the_books() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new(&directory.path().join("fleet"), "fleet");
    let files = ca.sign_agent("agent", "gw-0001", 30);
    let state = directory.path().join("state");
    std::fs::create_dir_all(state.join("spool")).unwrap();
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
    Untold::open(&state).unwrap().add_dropped(&dropped).unwrap();
    let status = directory.path().join("status.json");
    // Nobody listens there: what is told is in the status file all the same.
    let text = format!(
        "[collector]\nurl = \"https://localhost:1\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
         [spool]\ndirectory = {:?}\n[frames]\nage_max_s = 1\n[status]\nfile = {status:?}\n",
        files.ca,
        files.certificate,
        files.key,
        state.join("spool"),
    );
    let config = directory.path().join("agent.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysflow-agent"));
    command.args(["run", "--config"]).arg(&config).stderr(Stdio::null());
    let mut agent = Agent(command.spawn().unwrap());
    let mut ended = None;
    let mut ledger = Value::Null;
    until("the books of the run", || {
        ended = agent.0.try_wait().unwrap();
        let read = std::fs::read(&status).ok();
        let told: Value = read.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        ledger = told["ledger"].clone();
        ended.is_some() || ledger["observed"].as_u64().is_some_and(|observed| observed > 0)
    });
    match ended {
        None => {
            for (_, records, term) in DROPPED {
                assert_eq!(ledger[term], records, "{term}: {ledger}");
            }
        }
        // Not by println!, which the test runner swallows.
        Some(status) if status.code() == Some(77) => {
            let said = b"\nskipped: what_a_run_before_dropped_is_in_the_books: needs root\n";
            std::io::stdout().write_all(said).unwrap();
        }
        Some(status) => panic!("the agent ended with {status}"),
    }
}
