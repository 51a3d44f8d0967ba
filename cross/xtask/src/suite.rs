//! `cargo xtask test`: every test that this machine can run, and their sum.
//!
//! The end-to-end tests get the programs under test by environment variables. A test that
//! cannot run here prints `skipped: <test>: <why>`; it is counted as skipped, although the
//! test runner takes it for passed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::reproduce::Copy;
use crate::workspace::{self, Workspace, say, show};
use crate::{Result, packages, reproduce, setup, targets, vm};

/// How agent and collector are built for end-to-end tests and campaigns: what ships, but for how far
/// it is optimised, at a bearable build time.
pub const PROFILE: &str = "test-release";

/// Counts of tests, as their runner gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Tests among the passed that said that they did not run.
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped += other.skipped;
    }

    /// Takes note of a line of a test runner's output.
    fn note(&mut self, line: &str) {
        if line.starts_with("skipped: ") {
            self.skipped += 1;
        }
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let mut words = part.split(' ');
            let count = words.next().and_then(|count| count.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => self.passed += count,
                Some("failed") => self.failed += count,
                Some("ignored") => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Builds the agent that the end-to-end tests run.
///
/// # Errors
/// If it does not build.
pub fn build_agent() -> Result {
    say("building the agent that the end-to-end tests run");
    workspace::run(Workspace::Device.cargo("build").args([
        "--quiet",
        "--locked",
        "-p",
        "agent",
        "--profile",
        PROFILE,
    ]))
}

/// Builds the collector that the end-to-end tests and the guests deliver to.
///
/// # Errors
/// If it does not build.
pub fn build_collector() -> Result {
    say("building the collector that the end-to-end tests run");
    workspace::run(Workspace::Collector.cargo("build").args([
        "--quiet",
        "--locked",
        "--profile",
        PROFILE,
    ]))
}

/// Tells tests where the programs are.
///
/// # Errors
/// If this tool's own path is unknown.
pub fn environment(command: &mut Command) -> Result {
    command
        .env("SYSPRINT", setup::sysprint())
        .env("SYSFLOW_AGENT", Workspace::Device.binary(PROFILE, "sysflow-agent"))
        .env("SYSFLOW_COLLECTOR", Workspace::Collector.binary(PROFILE, "sysflow-collector"))
        .env("SYSFLOW_NGINX", setup::nginx())
        .env("SYSFLOW_LAYER_TOOLS", setup::layer_tools())
        .env("SYSFLOW_XTASK", std::env::current_exe()?);
    Ok(())
}

/// The suites of these workspaces run in this order: the quick ones first; the last one has the live
/// tests and the guests.
const PLACES: [Workspace; 3] = [Workspace::Tool, Workspace::Collector, Workspace::Device];

/// The call of a workspace's test runner.
fn tests(place: Workspace) -> Command {
    let mut command = place.cargo("test");
    command.args(["--locked", "--workspace", "--no-fail-fast"]);
    command
}

/// Builds what the suites run on this machine, the suites, the agent in the copy, and the packages.
/// Where the agent does not build in the copy, the comparison says so.
fn build_here(copy: &Copy) -> Result<Option<packages::Prepared>> {
    build_agent()?;
    build_collector()?;
    for place in PLACES {
        say(&format!("building the tests of {}", place.name()));
        // What does not build is told once the others have run.
        let _ = workspace::run(tests(place).args(["--quiet", "--no-run"]));
    }
    let _ = copy.build(reproduce::ALWAYS);
    packages::prepare()
}

/// Builds, runs all suites and prints the sum as the last line.
///
/// # Errors
/// If something does not build, a test fails, or no test ran.
pub fn run() -> Result {
    setup::run()?;
    setup::web_servers()?;
    setup::layer()?;
    setup::guests()?;
    setup::cross(&targets::find(reproduce::ALWAYS)?)?;
    packages::set_up()?;
    let copy = Copy::new()?;
    // Builds in two places at a time: each has steps that leave a processor idle.
    let (laid_out, built, printer) = std::thread::scope(|scope| {
        let printer = scope.spawn(setup::install_sysprint);
        let here = scope.spawn(|| build_here(&copy));
        (vm::prepare_always(), here.join(), printer.join())
    });
    printer.map_err(|_| "an installation ended in a panic")??;
    let guests = laid_out?;
    let prepared = built.map_err(|_| "a build ended in a panic")??;
    let mut sum = Counts::default();
    let mut broken = Vec::new();
    for place in PLACES {
        say(&format!("tests of {}", place.name()));
        let mut command = tests(place);
        environment(&mut command)?;
        command.env("SYSFLOW_GUESTS", &guests);
        if let Some(prepared) = &prepared {
            command.env("SYSFLOW_DEBIAN", &prepared.tree);
            command.env("SYSFLOW_PACKAGES", &prepared.packages);
        }
        let (counts, succeeded) = count(&mut command)?;
        sum.add(counts);
        if !succeeded && counts.failed == 0 {
            // It did not build, or a test took its runner down with it.
            sum.failed += 1;
        }
        if !succeeded {
            broken.push(place.name());
        }
    }
    say("the agent again in another directory");
    match reproduce::run_in(&copy, &[reproduce::ALWAYS.to_string()]) {
        Ok(()) => sum.passed += 1,
        Err(error) => {
            println!("{error}");
            sum.failed += 1;
            broken.push("reproducible builds");
        }
    }
    let passed = sum.passed.saturating_sub(sum.skipped);
    println!("{passed} passed, {} failed, {} skipped", sum.failed, sum.skipped + sum.ignored);
    if !broken.is_empty() {
        return Err(format!("failed: {}", broken.join(", ")).into());
    }
    if passed == 0 {
        return Err("no test ran".into());
    }
    Ok(())
}

/// Runs a test runner, passes its output on and counts.
fn count(command: &mut Command) -> Result<(Counts, bool)> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("start {shown}: {e}"))?;
    let mut counts = Counts::default();
    if let Some(output) = child.stdout.take() {
        let mut shown = std::io::stdout().lock();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            counts.note(&String::from_utf8_lossy(&line));
            shown.write_all(&line)?;
            shown.write_all(b"\n")?;
        }
    }
    Ok((counts, child.wait()?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_skips_are_summed() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "skipped: paths: needs root",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            counts.note(line);
        }
        assert_eq!(counts, Counts { passed: 7, failed: 2, ignored: 1, skipped: 1 });
    }
}
