//! Kernels in guests: the cross-built agent under emulated ARM and x86-64 kernels, delivering
//! over TLS to a collector on this machine, and its records held against what workloads did.
//!
//! `cargo xtask vm` lays the guests out and names their folders in `SYSFLOW_GUESTS`. Each check
//! of each guest is a test of its own, told in the form of the usual test runner; a table of
//! guests and checks follows.

// A test program: what cannot be looked up ends it.
#![allow(clippy::unwrap_used)]

mod checks;
mod cpio;
mod guest;
mod suites;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use checks::{CHECKS, Run};
use guest::{Boot, Guest, Told};
use suites::SUITES;
use tests::Result;
use tests::fleet::{AGENT_ID, AgentSettings, Fleet};
use tests::frames::Summary;
use tests::machine::{Machine, skip};

/// Where the host's loopback is, seen from a guest.
const HOST: &str = "10.0.2.2";
/// Calls of each thread on each object in the check of exactness.
const EXACT_CALLS: u64 = 1000;

/// Memory of a small gateway, and time that is enough for an emulator on a busy machine: it takes
/// about a minute.
const TESTS: Boot = Boot { root: "root", memory_mb: 512, deadline: Duration::from_secs(420) };

/// What came of one guest.
struct Report {
    name: String,
    /// In the order of [`CHECKS`] and then [`SUITES`]: none where one does not apply.
    results: Vec<Option<Result<String>>>,
    /// Of each boot: seconds, memory, and how the probes ran.
    notes: Vec<String>,
}

/// What came of each check of a boot, none where one does not apply, and a note for people.
type Outcome = (Vec<Option<Result<String>>>, String);

impl Report {
    /// Takes over what came of a boot that `checks` are made of.
    fn add(&mut self, outcome: Result<Outcome>, checks: usize) {
        let before = self.results.len();
        match outcome {
            Ok((results, notes)) => {
                self.results.extend(results);
                self.notes.push(notes);
            }
            Err(error) => self.results.push(Some(Err(error))),
        }
        self.results.resize_with(before + checks, || None);
    }
}

/// Names of all checks, in the order of the table's columns.
fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|check| check.name).chain(SUITES)
}

fn main() -> ExitCode {
    match all() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guests: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all tests passed.
fn all() -> Result<bool> {
    let Some(folders) = std::env::var_os("SYSFLOW_GUESTS") else {
        skip("guests", "SYSFLOW_GUESTS is not set (run `cargo xtask vm`)")?;
        println!("test result: ok. 1 passed; 0 failed; 0 ignored");
        return Ok(true);
    };
    let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    let Some(machine) = Machine::claim("guests", &[])? else {
        println!("test result: ok. 1 passed; 0 failed; 0 ignored");
        return Ok(true);
    };
    let mut reports = Vec::new();
    for folder in &folders {
        let guest = Guest::read(folder)?;
        let mut report =
            Report { name: guest.name.clone(), results: Vec::new(), notes: Vec::new() };
        if guest.has_tests {
            report.add(watch(&machine, &guest, folder), CHECKS.len());
        } else {
            report.results.resize_with(CHECKS.len(), || None);
        }
        if !guest.suites.is_empty() {
            report.add(suites::run(&machine, &guest, folder), SUITES.len());
        }
        report.results.resize_with(CHECKS.len() + SUITES.len(), || None);
        tell(&report);
        reports.push(report);
    }
    table(&reports);
    let results = || reports.iter().flat_map(|report| report.results.iter().flatten());
    let (passed, failed) =
        (results().filter(|r| r.is_ok()).count(), results().filter(|r| r.is_err()).count());
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    Ok(failed == 0)
}

/// Boots a guest beside a collector and judges what came of it.
fn watch(machine: &Machine, guest: &Guest, folder: &Path) -> Result<Outcome> {
    let fleet = Fleet::new(machine)?;
    fleet.issue("pki", &["--agent", AGENT_ID, "--host", HOST])?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let settings = AgentSettings {
        url: format!("https://{HOST}:{}", collector.address.port()),
        ca: "/etc/sysflow/ca.pem".into(),
        certificate: "/etc/sysflow/agent.pem".into(),
        key: "/etc/sysflow/agent.key".into(),
        // What the product has, so that memory is the product's.
        budget_bytes: 8 << 20,
        ring_bytes: None,
        spool: "/var/lib/sysflow/spool".into(),
        status: "/run/sysflow/status.json".into(),
        ..fleet.agent_settings("guest", collector.address)
    };
    let read = |name: &str| std::fs::read(fleet.path("pki").join(name));
    let guest_settings = format!("{}EXACT_CALLS={EXACT_CALLS}\n", guest.settings());
    let files = [
        ("etc/guest.conf", 0o644, guest_settings.into_bytes()),
        ("etc/sysflow/agent.toml", 0o644, settings.text().into_bytes()),
        ("etc/sysflow/ca.pem", 0o644, read("ca.pem")?),
        ("etc/sysflow/agent.pem", 0o644, read("agent.pem")?),
        ("etc/sysflow/agent.key", 0o600, read("agent.key")?),
    ];
    let files = files.map(|(name, mode, content)| (name.to_string(), mode, content));
    let told = guest.boot(&TESTS, &files, folder)?;
    collector.program.stop()?;
    if told.one("end") == "not-ready" {
        let said = [told.all("agent-log"), told.all("dmesg")].concat();
        return Err(format!("the agent did not get ready: {}", said.join("\n")).into());
    }
    let (records, summary) = (fleet.print(&fleet.store())?, Summary::of(&fleet.store())?);
    let run = Run { guest, told: &told, records, summary };
    let results =
        CHECKS.iter().map(|check| (check.applies)(guest).then(|| (check.judge)(&run))).collect();
    let jit = if run.is_jited() { "compiled" } else { "interpreted" };
    Ok((results, notes(&told, jit)))
}

/// Time, memory and how the probes ran.
fn notes(told: &Told, jit: &str) -> String {
    let number = |key: &str, name: &str| -> f64 {
        let words = told.one(key).split(' ');
        let found = words.filter_map(|word| word.split_once('=')).find(|(n, _)| *n == name);
        found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0.0)
    };
    let mb = |key: &str, name: &str| number(key, name) / 1024.0;
    format!(
        "{:.0} s, {jit}; process peak {:.1} MB, at the end {:.1} ({:.1} anonymous), BPF {:.1} MB",
        told.took.as_secs_f64(),
        mb("memory-end", "peak_kb"),
        mb("memory-end", "now_kb"),
        mb("memory-end", "anonymous_kb"),
        number("memory-end", "bpf_bytes") / (1024.0 * 1024.0)
    )
}

fn tell(report: &Report) {
    for (check, result) in names().zip(&report.results) {
        match result {
            Some(Ok(found)) => println!("test {}::{check} ... ok   {found}", report.name),
            Some(Err(error)) => {
                println!("test {}::{check} ... FAILED\n{error}", report.name)
            }
            None => {}
        }
    }
    println!("{}: {}", report.name, report.notes.join("; "));
}

fn table(reports: &[Report]) {
    print!("\n{:<22}", "GUEST");
    names().for_each(|check| print!(" {check:<9}"));
    println!();
    for report in reports {
        print!("{:<22}", report.name);
        for result in &report.results {
            let word = match result {
                Some(Ok(_)) => "ok",
                Some(Err(_)) => "FAILED",
                None => "-",
            };
            print!(" {word:<9}");
        }
        println!(" {}", report.notes.join("; "));
    }
}
