//! `cargo xtask mutations [--count N] [--seed S]`: whether the tests notice books that are not kept.
//!
//! Each place in the agent and its probes that adds to the ledger is a statement in a line of its own.
//! In a copy of the tree one of them is taken out at a time, and the suites that hold the books
//! against what happened must fail then. First they must pass with all of them in place. Which
//! places are tried is drawn from the seed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::workspace::{self, Workspace, root, say};
use crate::{Result, reproduce, setup, suite};

/// How many places are tried where nobody says otherwise.
const COUNT: u64 = 3;

/// The suites that are quick to build and to run.
const QUICK: [&[&str]; 2] = [
    &["-p", "bpf", "--lib"],
    &["-p", "agent", "--lib", "--test", "books", "--test", "losses", "--test", "summaries"],
];
/// Those that run the agent.
const LIVE: [&[&str]; 3] = [
    &["-p", "tests", "--test", "acts", "--test", "losses", "--test", "events", "--test", "flows"],
    &["-p", "agent", "--test", "refused", "--test", "former"],
    &["-p", "tests", "--test", "purge", "--test", "priority", "--test", "wear", "--test", "ladder"],
];

/// A statement that adds to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// From the root of the tree.
    file: PathBuf,
    /// From 0.
    line: usize,
    text: String,
}

/// What became of a tree in which a place was taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// These tests failed.
    Caught(Vec<String>),
    Survived,
}

/// Tries places, and says which test catches each.
///
/// # Errors
/// If something does not build, if the suites fail with every place as it is, or if they pass
/// without one of them.
pub fn run(options: &[(&'static str, u64)]) -> Result {
    let asked = |name| options.iter().rev().find(|(asked, _)| *asked == name).map(|(_, n)| *n);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = asked("seed").unwrap_or(now);
    let all = places()?;
    let count = asked("count").unwrap_or(COUNT).min(all.len() as u64) as usize;
    setup::for_tests()?;
    suite::build_collector()?;
    let tree = Tree::new()?;
    say(&format!("the suites with all of {} places", all.len()));
    if let Verdict::Caught(tests) = tree.judge()? {
        return Err(format!("nothing is taken out, and these fail: {}", tests.join(", ")).into());
    }
    let mut survivors = Vec::new();
    for place in drawn(all, seed).into_iter().take(count) {
        let name = format!("{}:{} {}", place.file.display(), place.line + 1, place.text);
        say(&format!("without {name}"));
        match tree.without(&place)? {
            Verdict::Caught(tests) => println!("caught by {}", tests.join(", ")),
            Verdict::Survived => {
                println!("no test fails");
                survivors.push(name);
            }
        }
    }
    println!("{} of {count} places caught; seed {seed}", count - survivors.len());
    match survivors[..] {
        [] => Ok(()),
        _ => Err(format!("no test misses {}", survivors.join(", ")).into()),
    }
}

/// Whether a line of this file is a statement that adds to the ledger.
fn adds(file: &Path, line: &str) -> bool {
    let line = line.trim();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("c" | "h") => {
            line.starts_with("tally->") && (line.ends_with("++;") || line.contains(" += "))
        }
        Some("rs") => {
            let calls = ["self.books.add", "self.batch.books.add", "batch.books.add"];
            let counts = line.starts_with("self.count(") && line.contains("Term::");
            let adds = counts || calls.iter().any(|call| line.starts_with(call));
            adds && line.ends_with(';')
        }
        _ => false,
    }
}

/// All places, in order.
fn places() -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for file in workspace::files()? {
        if !(file.starts_with("bpf/src") || file.starts_with("agent/src")) {
            continue;
        }
        let path = root().join(&file);
        let text =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        for (line, text) in text.lines().enumerate().filter(|(_, text)| adds(&file, text)) {
            places.push(Place { file: file.clone(), line, text: text.trim().to_string() });
        }
    }
    Ok(places)
}

/// The places in an order that the seed decides.
fn drawn(mut places: Vec<Place>, seed: u64) -> Vec<Place> {
    // SplitMix64: any seed does, and the order is the same everywhere.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    for last in (1..places.len()).rev() {
        places.swap(last, (next() % (last as u64 + 1)) as usize);
    }
    places
}

/// The copy in which places are taken out; gone when dropped. What is built of it stays.
struct Tree {
    copy: reproduce::Copy,
    target: PathBuf,
}

impl Tree {
    fn new() -> Result<Tree> {
        Ok(Tree {
            copy: reproduce::Copy::new()?,
            target: Workspace::Device.target().join("mutations"),
        })
    }

    /// What the suites say without a place, which is there again afterwards.
    fn without(&self, place: &Place) -> Result<Verdict> {
        let path = self.copy.folder().join(&place.file);
        let whole = std::fs::read_to_string(&path)?;
        let is_c = path.extension().is_some_and(|extension| extension != "rs");
        let lines =
            whole.lines().enumerate().map(|(line, text)| match (line == place.line, is_c) {
                (false, _) => text,
                // It may be all of a branch.
                (true, true) => ";",
                (true, false) => "",
            });
        let without: Vec<&str> = lines.collect();
        std::fs::write(&path, without.join("\n") + "\n")?;
        let verdict = self.judge();
        std::fs::write(&path, whole)?;
        verdict
    }

    /// The first suite that fails decides.
    fn judge(&self) -> Result<Verdict> {
        for suite in QUICK {
            if let Some(verdict) = self.caught_by(suite)? {
                return Ok(verdict);
            }
        }
        let mut build = self.cargo("build")?;
        build.args(["--quiet", "-p", "agent", "--profile", suite::PROFILE]);
        workspace::run(&mut build)?;
        for suite in LIVE {
            if let Some(verdict) = self.caught_by(suite)? {
                return Ok(verdict);
            }
        }
        Ok(Verdict::Survived)
    }

    fn caught_by(&self, suite: &[&str]) -> Result<Option<Verdict>> {
        workspace::run(self.cargo("test")?.args(["--quiet", "--no-run"]).args(suite))?;
        let failed = failures(self.cargo("test")?.arg("--no-fail-fast").args(suite))?;
        Ok((!failed.is_empty()).then_some(Verdict::Caught(failed)))
    }

    /// A call of cargo in the copy.
    fn cargo(&self, verb: &str) -> Result<Command> {
        let mut command = Workspace::Device.cargo(verb);
        command.current_dir(self.copy.folder()).env("CARGO_TARGET_DIR", &self.target);
        // What a place that is taken out leaves unused is no fault here.
        command.arg("--locked").env_remove("SYSFLOW_PROBES_STRICT");
        suite::environment(&mut command)?;
        let agent = self.target.join(suite::PROFILE).join("sysflow-agent");
        command.env("SYSFLOW_AGENT", agent);
        Ok(command)
    }
}

/// Runs a test runner, and returns the tests that failed; what they said is for nobody.
///
/// # Errors
/// If it cannot be started, fails without a test that does, or a test did not run.
fn failures(command: &mut Command) -> Result<Vec<String>> {
    let shown = workspace::show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("start {shown}: {e}"))?;
    let (mut failed, mut skipped) = (Vec::new(), None);
    let output = child.stdout.take().map(|output| BufReader::new(output).split(b'\n'));
    for line in output.into_iter().flatten() {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let test = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        failed.extend(test.map(ToString::to_string));
        if line.starts_with("skipped: ") {
            skipped = Some(line.into_owned());
        }
    }
    let status = child.wait()?;
    if let Some(skipped) = skipped {
        return Err(format!("{skipped}: no place can be tried without it").into());
    }
    match status.success() || !failed.is_empty() {
        true => Ok(failed),
        false => Err(format!("{shown}: {status}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_add_to_the_ledger_are_found() {
        let [c, rust] = ["a.bpf.c", "a.rs"].map(Path::new);
        assert!(adds(c, "\t\ttally->lost_ring++;"));
        assert!(adds(c, "\t\ttally->observed += parts;"));
        assert!(!adds(c, "\tif (tally->observed > 1)"));
        assert!(adds(rust, "    self.count(kind, Term::Stored, 1);"));
        assert!(adds(rust, "self.batch.books.add_lost_records(Term::LostEncoding, 1);"));
        assert!(!adds(rust, "self.count();"));
        assert!(!adds(rust, "let events = self.all.count(second);"));
        assert!(!adds(Path::new("README.md"), "tally->observed++;"));
        let found = places().unwrap();
        let of = |part: &str| found.iter().filter(|place| place.file.starts_with(part)).count();
        assert!(of("bpf/src") > 40 && of("agent/src") > 25, "{found:#?}");
    }

    #[test]
    fn a_seed_draws_each_place_once_and_in_its_own_order() {
        let place = |line| Place { file: PathBuf::from("a.rs"), line, text: String::new() };
        let all: Vec<Place> = (0..50).map(place).collect();
        let mut one = drawn(all.clone(), 1);
        assert_eq!(one, drawn(all.clone(), 1));
        assert_ne!(one, drawn(all.clone(), 2));
        one.sort_by_key(|place| place.line);
        assert_eq!(one, all);
    }
}
