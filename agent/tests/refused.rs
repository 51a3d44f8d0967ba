//! What is lost behind the spool reaches the books, and what the agent says to a disk that is not
//! well: the real agent on this machine's kernel, and a receiver that takes none of its frames.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fleet;
#[allow(dead_code, reason = "other tests ask it for more")]
mod receiver;
#[allow(dead_code, reason = "other tests ask it for more")]
mod sample;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::spool::{Limits, Spool, Sync};
use fleet::Ca;
use receiver::{Collector, Reply, until};
use rustix::process::{Pid, Signal, kill_process};
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

fn failure(status: u16, error: &str) -> Reply {
    Reply::Answer(status, "", format!(r#"{{"error":"{error}","detail":"because"}}"#))
}

/// A device whose state is below `state`, and its collector.
struct Device {
    directory: tempfile::TempDir,
    state: PathBuf,
    _receiver: Collector,
}

impl Device {
    /// One whose collector answers so each time.
    fn new(status: u16, error: &'static str) -> Device {
        Device::answered(move || failure(status, error))
    }

    fn answered(answer: impl Fn() -> Reply + Send + std::marker::Sync + 'static) -> Device {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let ca = Ca::new(&directory.path().join("fleet"), "fleet");
        ca.sign("collector", "DNS:localhost", "serverAuth", 30);
        let files = ca.sign_agent("agent", "gw-0001", 30);
        let server = receiver::server(&ca, "collector", &ca, &TLS13);
        let receiver = Collector::start(server, move |_, _| answer());
        let text = format!(
            "[collector]\nurl = {:?}\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
             upload_interval_s = 1\n[spool]\ndirectory = {:?}\nfree_percent = 0\nmemory_bytes = 65536\n\
             [frames]\nbytes_max = 16384\nage_max_s = 1\nvolume_age_max_s = 1\ngeneration_records_max = 100\n\
             [status]\nfile = {:?}\n",
            receiver.url(),
            files.ca,
            files.certificate,
            files.key,
            state.join("spool"),
            directory.path().join("status.json"),
        );
        fs::write(directory.path().join("agent.toml"), text).unwrap();
        fs::create_dir_all(&state).unwrap();
        Device { directory, state, _receiver: receiver }
    }

    fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }

    fn start(&self) -> Agent {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysflow-agent"));
        command.args(["run", "--config"]).arg(self.directory.path().join("agent.toml"));
        Agent(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Starts an agent that ends by itself: its exit code, and what it said.
    fn refused(&self) -> (Option<i32>, String) {
        let mut agent = self.start();
        let mut said = String::new();
        agent.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (agent.0.wait().unwrap().code(), said)
    }

    /// Makes something to tell of, and reads what the agent says of itself.
    fn act(&self) -> Value {
        for number in 0..16 {
            drop(File::create(self.directory.path().join(format!("act{number}"))));
        }
        let read = fs::read(self.directory.path().join("status.json")).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Waits until the agent says so. False, after saying so, where it may not watch.
    fn until(&self, agent: &mut Agent, what: &str, mut holds: impl FnMut(&Value) -> bool) -> bool {
        let mut ended = None;
        until(what, || {
            let told = self.act();
            ended = agent.0.try_wait().unwrap();
            ended.is_some() || holds(&told)
        });
        match ended {
            None => true,
            // Not by println!, which the test runner swallows.
            Some(status) if status.code() == Some(77) => {
                let said = format!("\nskipped: {what}: needs root\n");
                std::io::stdout().write_all(said.as_bytes()).unwrap();
                false
            }
            Some(status) => panic!("the agent ended with {status}"),
        }
    }
}

fn refused(told: &Value) -> u64 {
    let by_reason = told["upload"]["refused_records"].as_object().into_iter().flatten();
    by_reason.filter_map(|(_, count)| count.as_u64()).sum()
}

#[test]
fn refused_records_are_in_the_books() {
    let device = Device::new(400, "malformed");
    let mut agent = device.start();
    device.until(&mut agent, "refused records in the books", |told| {
        refused(told) > 0 && told["ledger"]["lost_refused"] == refused(told)
    });
}

/// Its books are closed by then.
#[test]
fn what_the_last_delivery_loses_is_in_the_books_of_the_next_run() {
    let stopping = Arc::new(AtomicBool::new(false));
    let is_stopping = Arc::clone(&stopping);
    let device = Device::answered(move || match is_stopping.load(Ordering::Relaxed) {
        true => failure(400, "malformed"),
        false => failure(503, "busy"),
    });
    let mut agent = device.start();
    let waits = |told: &Value| told["spool"]["records"].as_u64() > Some(20);
    if !device.until(&mut agent, "records in the spool", waits) {
        return;
    }
    stopping.store(true, Ordering::Relaxed);
    let pid = Pid::from_raw(agent.0.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(agent.0.wait().unwrap().success());
    let told = device.act();
    let late = refused(&told) - told["ledger"]["lost_refused"].as_u64().unwrap();
    assert!(late > 0, "{told}");
    stopping.store(false, Ordering::Relaxed);
    let mut agent = device.start();
    let run = told["run_id"].clone();
    device.until(&mut agent, "late records in the books", |told| {
        told["run_id"] != run && told["ledger"]["lost_refused"] == late
    });
}

#[test]
fn damaged_records_are_in_the_books() {
    let damaged = Arc::new(AtomicBool::new(false));
    let is_damaged = Arc::clone(&damaged);
    // What is urgent goes first: where none of it is taken, nobody gets to read the rest.
    let device = Device::answered(move || match is_damaged.load(Ordering::Relaxed) {
        true => Reply::Take,
        false => failure(503, "busy"),
    });
    let mut agent = device.start();
    let waits = |told: &Value| told["spool"]["records"].as_u64() > Some(20);
    if !device.until(&mut agent, "records in the spool", waits) {
        return;
    }
    for entry in fs::read_dir(device.spool()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "frames") {
            let length = fs::metadata(&path).unwrap().len() as usize;
            let mut file = File::options().write(true).open(&path).unwrap();
            file.write_all(&vec![0xaa; length]).unwrap();
        }
    }
    damaged.store(true, Ordering::Relaxed);
    device.until(&mut agent, "damaged records in the books", |told| {
        let damaged = told["upload"]["damaged_records"].as_u64().unwrap_or(0);
        damaged > 0 && told["ledger"]["lost_spool_error"] == damaged
    });
}

#[test]
fn records_that_cannot_be_spooled_are_in_the_books_and_the_agent_lives() {
    let device = Device::new(503, "busy");
    let mut agent = device.start();
    let lost = |told: &Value| told["ledger"]["lost_spool_error"].as_u64().unwrap_or(0);
    let waiting = |told: &Value| told["spool"]["records"].as_u64().unwrap_or(0);
    if !device.until(&mut agent, "records in the spool", |told| waiting(told) > 0) {
        return;
    }
    // Its file system is gone.
    let away = device.state.join("away");
    fs::rename(device.spool(), &away).unwrap();
    device.until(&mut agent, "records that are lost", |told| lost(told) > 0);
    fs::rename(&away, device.spool()).unwrap();
    // It goes on where it was, and what waited is there.
    let mut before = None;
    device.until(&mut agent, "records in the spool again", |told| {
        let (at, lost_before) = *before.get_or_insert((waiting(told), lost(told)));
        let goes_on = waiting(told) > at && lost(told) == lost_before;
        if lost(told) != lost_before {
            before = None;
        }
        goes_on
    });
}

/// Ends with its owner.
struct Mount(PathBuf);

impl Mount {
    /// None, after saying so, where it may not be mounted.
    fn new(path: &Path, size: &str) -> Option<Mount> {
        let mount = Mount(path.into());
        if mount.run(&["mount", "-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]) {
            return Some(mount);
        }
        let said = b"\nskipped: refused: mounting a tmpfs needs root\n";
        std::io::stdout().write_all(said).unwrap();
        None
    }

    fn run(&self, command: &[&str]) -> bool {
        let (program, arguments) = command.split_first().unwrap();
        let run = Command::new(program).args(arguments).arg(&self.0).status();
        run.is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.run(&["umount", "-l"]);
    }
}

#[test]
fn a_disk_that_may_be_well_later_ends_a_start_with_75() {
    let device = Device::new(503, "busy");
    let Some(mount) = Mount::new(&device.state, "64k") else { return };
    let is_told = |why: &str| {
        let (code, said) = device.refused();
        assert_eq!(code, Some(75), "{said}");
        assert!(said.contains(why) && said.contains(device.state.to_str().unwrap()), "{said}");
    };
    assert!(mount.run(&["mount", "-o", "remount,ro"]));
    is_told("Read-only file system");
    assert!(mount.run(&["mount", "-o", "remount,rw"]));
    fs::create_dir(device.spool()).unwrap();
    assert!(mount.run(&["mount", "-o", "remount,ro"]));
    is_told("Read-only file system");
    assert!(mount.run(&["mount", "-o", "remount,rw"]));

    let ballast = device.state.join("ballast");
    fs::write(&ballast, vec![0; 64 << 10]).unwrap();
    is_told("No space left on device");
    fs::remove_file(&ballast).unwrap();

    let limits = Limits { bytes_max: 1 << 20, sync: Sync::OnRequest };
    let owner = Spool::open(&device.spool(), limits).unwrap();
    is_told("is in use by process");
    drop(owner);

    // It is well again.
    let mut agent = device.start();
    device.until(&mut agent, "an agent that watches", |told| told["ready"] == true);
}

#[test]
fn a_disk_that_leaves_the_spool_less_than_it_may_have_is_told() {
    let device = Device::new(503, "busy");
    let Some(_mount) = Mount::new(&device.state, "4m") else { return };
    let path = device.directory.path().join("agent.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("free_percent = 0", "free_percent = 5")).unwrap();
    let mut agent = device.start();
    let is_less = |told: &Value| told["spool"]["bytes_max"].as_u64().is_some_and(|b| b <= 4 << 20);
    if !device.until(&mut agent, "a smaller spool", |told| told["ready"] == true && is_less(told)) {
        return;
    }
    kill_process(Pid::from_raw(agent.0.id() as i32).unwrap(), Signal::TERM).unwrap();
    let mut said = String::new();
    agent.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let told = said.matches("spool: the file system leaves it ").count();
    assert!(
        told == 1 && said.contains("lower spool.bytes_max or spool.free_percent = 5"),
        "{said}"
    );
}
