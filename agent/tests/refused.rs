//! What is lost behind the spool reaches the books: the real agent on this machine's kernel, and a
//! receiver that takes none of its frames.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fleet;
#[allow(dead_code, reason = "other tests ask it for more")]
mod receiver;
#[allow(dead_code, reason = "other tests ask it for more")]
mod sample;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use fleet::Ca;
use receiver::{Collector, Reply, until};
use rustls::version::TLS13;
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

#[test]
fn refused_records_are_in_the_books() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new(&directory.path().join("fleet"), "fleet");
    ca.sign("collector", "DNS:localhost", "serverAuth", 30);
    let files = ca.sign_agent("agent", "gw-0001", 30);
    let receiver = Collector::start(receiver::server(&ca, "collector", &ca, &TLS13), |_, _| {
        Reply::Answer(400, "", r#"{"error":"malformed","detail":"because"}"#.into())
    });
    let status = directory.path().join("status.json");
    let text = format!(
        "[collector]\nurl = {:?}\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
         upload_interval_s = 1\n[spool]\ndirectory = {:?}\n[frames]\nage_max_s = 1\n\
         [status]\nfile = {status:?}\n",
        receiver.url(),
        files.ca,
        files.certificate,
        files.key,
        directory.path().join("state/spool"),
    );
    let config = directory.path().join("agent.toml");
    std::fs::write(&config, text).unwrap();
    std::fs::create_dir_all(directory.path().join("state/spool")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysflow-agent"));
    command.args(["run", "--config"]).arg(&config).stderr(Stdio::null());
    let mut agent = Agent(command.spawn().unwrap());
    let mut ended = None;
    until("refused records in the books", || {
        // Something to tell of.
        drop(std::fs::File::create(directory.path().join("act")));
        ended = agent.0.try_wait().unwrap();
        let read = std::fs::read(&status).ok();
        let told: Value = read.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        let by_reason = told["upload"]["refused_records"].as_object().into_iter().flatten();
        let refused: u64 = by_reason.filter_map(|(_, count)| count.as_u64()).sum();
        ended.is_some() || (refused > 0 && told["ledger"]["lost_refused"] == refused)
    });
    match ended {
        None => {}
        // Not by println!, which the test runner swallows.
        Some(status) if status.code() == Some(77) => {
            let said = b"\nskipped: refused_records_are_in_the_books: needs root\n";
            std::io::stdout().write_all(said).unwrap();
        }
        Some(status) => panic!("the agent ended with {status}"),
    }
}
