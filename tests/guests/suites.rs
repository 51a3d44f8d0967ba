//! Suites of `tests/e2e` in a guest: the same programs, beside an agent and a collector of the
//! guest's architecture, on a small Debian. Each suite is one check.
//!
//! The reference suite's printer does not run there: guests send it files over the network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::Result;
use tests::fleet::{AGENT_ID, Fleet};
use tests::machine::Machine;

use crate::guest::{Boot, Guest, Told};
use crate::{HOST, Outcome};

/// The suites, in the order of the table's columns.
pub(crate) const SUITES: [&str; 6] =
    ["scenarios", "identity", "acts", "events", "flows", "servers"];
/// The guest's memory, MB: the userland lies in it, too.
const MEMORY_MB: u32 = 1024;
/// A suite that has not ended by then hangs; in an emulator on a busy machine the longest takes a
/// few minutes.
const SUITE_DEADLINE: Duration = Duration::from_secs(600);
/// Longest file that a guest may send to the printer, bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Boots the guest with its userland and judges what its suites said: what came of each, in the
/// order of [`SUITES`], and a note for people.
pub(crate) fn run(machine: &Machine, guest: &Guest, folder: &Path) -> Result<Outcome> {
    let fleet = Fleet::new(machine)?;
    fleet.issue("pki", &["--agent", AGENT_ID])?;
    let printer = TcpListener::bind("127.0.0.1:0")?;
    let port = printer.local_addr()?.port();
    let program = machine.sysprint().clone();
    // It ends with this process: nobody is left to ask it.
    std::thread::spawn(move || print_for_guests(&printer, &program));
    let suites = guest.suites.join(" ");
    let settings = format!("{}SUITES={suites:?}\nPRINTER=\"{HOST} {port}\"\n", guest.settings());
    let mut files = vec![("etc/guest.conf".to_string(), 0o644, settings.into_bytes())];
    for entry in std::fs::read_dir(fleet.path("pki"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((format!("etc/sysflow/pki/{name}"), 0o600, std::fs::read(path)?));
    }
    let boot = Boot {
        root: "userland",
        memory_mb: MEMORY_MB,
        deadline: SUITE_DEADLINE * guest.suites.len() as u32,
    };
    let told = guest.boot(&boot, &files, folder)?;
    let judge = |suite: &&str| {
        let is_there = guest.suites.iter().any(|name| name == suite);
        is_there.then(|| verdict(suite, &told))
    };
    let notes = format!("{:.0} s with suites", told.took.as_secs_f64());
    Ok((SUITES.iter().map(judge).collect(), notes))
}

/// Whether a suite passed, and how many of its tests ran; else all that it said.
fn verdict(suite: &str, told: &Told) -> Result<String> {
    let said = told.all(&format!("log-{suite}"));
    let counts = said.iter().find_map(|line| line.strip_prefix("test result: "));
    let code = told.one(&format!("code-{suite}"));
    let complaint = told.all("dmesg").join("\n");
    if !complaint.is_empty() {
        return Err(format!("the kernel complains: {complaint}").into());
    }
    let Some(counts) = counts.and_then(|counts| counts.strip_prefix("ok. ")) else {
        return Err(format!("{suite} ended with {code:?} and said:\n{}", said.join("\n")).into());
    };
    let passed = counts.split(' ').next().unwrap_or_default();
    let skipped: Vec<&str> =
        said.iter().filter_map(|line| line.strip_prefix("skipped: ")).collect();
    let (parts, seconds) = (skipped.len(), told.one(&format!("time-{suite}")));
    if code != "0" || passed == "0" {
        return Err(format!("{suite} ended with {code:?}, {passed} tests passed").into());
    }
    for why in &skipped {
        // With the guest's name before it: the test runner's own count is of tests.
        println!("  {suite}: skipped {why}");
    }
    let skips = if parts == 0 { String::new() } else { format!(", {parts} skipped in part") };
    Ok(format!("{passed} tests{skips}, {seconds} s"))
}

/// Answers each guest that sends a file with what the printer says of it.
fn print_for_guests(listener: &TcpListener, program: &Path) {
    for connection in listener.incoming().flatten() {
        // A guest that got nothing fails its test; why is told here.
        if let Err(error) = print(connection, program) {
            eprintln!("guests: the printer: {error}");
        }
    }
}

fn print(connection: TcpStream, program: &Path) -> Result {
    let mut reader = BufReader::new(&connection);
    let mut length = String::new();
    reader.by_ref().take(32).read_line(&mut length)?;
    let length: u64 = length.trim().parse()?;
    if length > FILE_BYTES_MAX {
        return Err(format!("a file of {length} bytes").into());
    }
    let mut file = tempfile::Builder::new().suffix(".sf").tempfile()?;
    let written = std::io::copy(&mut reader.take(length), &mut file)?;
    if written != length {
        return Err(format!("{written} of {length} bytes came").into());
    }
    let output = Command::new(program).args(["-A", "-o", "flatjson"]).arg(file.path()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok((&connection).write_all(&output.stdout)?)
}
