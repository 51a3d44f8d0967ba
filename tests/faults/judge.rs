//! What came of the acts: each is in the records exactly once and as it was, or where it is
//! missing something names the loss.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use codec::Frame;
use serde_json::Value;
use tests::Result;
use tests::acts::{Act, Item, by_number, items};
use tests::frames;
use tests::records::{of_kind, text};

use crate::world::Session;

/// What names that something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// Frames that the collector knows to be missing.
    Frames,
    /// An agent was killed, or none ran.
    Interval,
    /// The agent was on a step of the ladder that gives up detail.
    Step,
}

/// An interval in which something may be missing, boot clock, ns.
#[derive(Clone, Copy, Debug)]
struct Interval {
    name: Name,
    from_ns: u64,
    to_ns: u64,
}

/// What came of a run's acts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acts: u64,
    /// Whole in the records.
    pub(crate) delivered: u64,
    /// Missing, wholly or in part, and within missing frames.
    pub(crate) in_frames: u64,
    /// Missing, wholly or in part, and within a named interval.
    pub(crate) in_interval: u64,
    /// Missing, wholly or in part, and within a step of the ladder.
    pub(crate) in_step: u64,
    /// Steps below full detail that were taken.
    pub(crate) steps: u64,
    /// Records that the ledger counts as lost.
    pub(crate) records_lost: u64,
    /// Everything that must not be.
    pub(crate) faults: Vec<String>,
}

/// What is left of a run, for the judge.
pub(crate) struct Evidence<'e> {
    pub(crate) store: &'e Path,
    /// Where the acts left their files.
    pub(crate) folder: &'e Path,
    pub(crate) sessions: &'e [Session],
    /// What `print --json` and `ledger --json` say.
    pub(crate) printed: &'e str,
    pub(crate) ledger: &'e [Value],
}

/// Times of the frames of each stream, by the run's tag and class.
type Times = HashMap<(String, u64), BTreeMap<u64, u64>>;

fn frame_times(store: &Path) -> Result<Times> {
    let mut times = Times::new();
    for path in frames::find(store)? {
        let bytes = std::fs::read(&path)?;
        let (frame, _) =
            Frame::decode(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        let key = frame.header.key;
        let run = key.run_tag.iter().map(|byte| format!("{byte:02x}")).collect();
        times
            .entry((run, key.class.into()))
            .or_default()
            .insert(key.sequence, frame.header.last_ns);
    }
    Ok(times)
}

/// The intervals that the store names, and those in which nobody watched by order.
fn intervals(evidence: &Evidence<'_>) -> Result<Vec<Interval>> {
    let times = frame_times(evidence.store)?;
    let mut found = Vec::new();
    for gap in of_kind(evidence.ledger, "GAP") {
        let ns = |key: &str| gap[key].as_u64().unwrap_or(0);
        match text(gap, "reason") {
            "interruption" => {
                found.push(Interval {
                    name: Name::Interval,
                    from_ns: ns("from_ns"),
                    to_ns: ns("to_ns"),
                });
            }
            "missing_frames" | "dropped_frames" => {
                let run = text(gap, "run");
                let class = ns("class");
                let of_run = |run: &str| times.get(&(run.to_string(), class));
                let held = of_run(run).cloned().unwrap_or_default();
                let before = held.range(..ns("first")).map(|(_, ns)| *ns).max();
                let after = held.range(ns("last")..).map(|(_, ns)| *ns).find(|ns| *ns > 0);
                // Where a run begins or ends with what is missing, its life says how far that goes.
                let place = evidence.sessions.iter().position(|session| session.run == run);
                let place = place.ok_or_else(|| format!("{gap}: no such run"))?;
                // What its first frame said of those before it is missing, too.
                let earlier = evidence.sessions.iter().take(place);
                let earlier = earlier.filter_map(|session| of_run(&session.run));
                let earlier = earlier.flat_map(|held| held.values()).max();
                let next = evidence.sessions.get(place + 1);
                found.push(Interval {
                    name: Name::Frames,
                    from_ns: before.or(earlier.copied()).unwrap_or(0),
                    to_ns: after.or(next.map(|next| next.ready_ns)).unwrap_or(u64::MAX),
                });
            }
            reason => return Err(format!("a gap with the reason {reason:?}").into()),
        }
    }
    for books in of_kind(evidence.ledger, "BOOKS") {
        let run = text(books, "run");
        let life = evidence.sessions.iter().find(|session| session.run == run);
        let end_ns = life.map_or(u64::MAX, |session| session.end_ns);
        for stay in books["ladder"].as_array().into_iter().flatten() {
            found.push(Interval {
                name: Name::Step,
                from_ns: stay["from_ns"].as_u64().ok_or("a step has no beginning")?,
                to_ns: stay["to_ns"].as_u64().unwrap_or(end_ns),
            });
        }
    }
    // Between a farewell and the next start there is nothing to be named: the farewell did.
    let closed: Vec<&str> = of_kind(evidence.ledger, "BOOKS")
        .filter(|books| text(books, "ending") == "closed")
        .map(|books| text(books, "run"))
        .collect();
    for pair in evidence.sessions.windows(2) {
        if let [session, next] = pair
            && closed.contains(&session.run.as_str())
        {
            found.push(Interval {
                name: Name::Interval,
                from_ns: session.end_ns,
                to_ns: next.ready_ns,
            });
        }
    }
    Ok(found)
}

/// What is left out on the ladder's steps by the books, and what summaries stand for.
fn given_up(evidence: &Evidence<'_>) -> Result<u64> {
    let kinds = of_kind(evidence.ledger, "BOOKS").flat_map(|books| books["operations"].as_object());
    let kinds = kinds.flatten().filter_map(|(_, terms)| terms["lost_shed"].as_u64());
    let lines: Vec<&str> =
        evidence.printed.lines().filter(|line| line.contains("\"Summary\"")).collect();
    let summaries = tests::records::parse(&lines.join("\n"))?;
    let told = summaries.iter().filter_map(|summary| summary["summary.records"].as_u64());
    Ok(kinds.sum::<u64>() + told.sum::<u64>())
}

/// Judges a run.
pub(crate) fn judge(acts: &[Act], evidence: &Evidence<'_>) -> Result<Verdict> {
    let mut verdict = Verdict { acts: acts.len() as u64, ..Verdict::default() };
    let intervals = intervals(evidence)?;
    verdict.steps = intervals.iter().filter(|i| i.name == Name::Step).count() as u64;
    // Only what names the folder is of an act; the rest of a machine's doings is much.
    let name = evidence.folder.to_string_lossy();
    let mut lines = String::new();
    for line in evidence.printed.lines().filter(|line| line.contains(name.as_ref())) {
        lines.push_str(line);
        lines.push('\n');
    }
    let records = tests::records::parse(&lines)?;
    let mut by_number = by_number(&records, evidence.folder);
    for act in acts {
        let found = by_number.remove(&act.mark.number).unwrap_or_default();
        let mut missing = Vec::new();
        for item in items(act, evidence.folder, &found) {
            match item {
                Item::Right => {}
                Item::Missing(what) => missing.push(what),
                Item::Wrong(what) => {
                    verdict.faults.push(format!("act {}: {what}", act.mark.number));
                }
            }
        }
        if missing.is_empty() {
            verdict.delivered += 1;
            continue;
        }
        let covers =
            |interval: &&Interval| interval.from_ns <= act.to_ns && act.from_ns <= interval.to_ns;
        let names: Vec<Name> = intervals.iter().filter(covers).map(|i| i.name).collect();
        if names.contains(&Name::Frames) {
            verdict.in_frames += 1;
        } else if names.contains(&Name::Interval) {
            verdict.in_interval += 1;
        } else if names.contains(&Name::Step) {
            verdict.in_step += 1;
        } else {
            verdict.faults.push(format!(
                "act {} ({} to {}): missing without a word: {}",
                act.mark.number,
                act.from_ns,
                act.to_ns,
                missing.join(", ")
            ));
        }
    }
    let invented = by_number.keys().map(|number| format!("act {number} was never done"));
    verdict.faults.extend(invented);
    for books in of_kind(evidence.ledger, "BOOKS") {
        let lost = books["records_lost"].as_object().into_iter().flatten();
        verdict.records_lost += lost.filter_map(|(_, count)| count.as_u64()).sum::<u64>();
        for fault in books["faults"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let run = text(books, "run");
            verdict.faults.push(format!("run {run} does not balance: {fault}"));
        }
    }
    // Where all frames came, what a step gave up is counted, too.
    let given_up = given_up(evidence)?;
    if given_up < verdict.in_step && !intervals.iter().any(|i| i.name == Name::Frames) {
        verdict.faults.push(format!(
            "{} acts are missing on steps of the ladder, and {given_up} records are counted",
            verdict.in_step
        ));
    }
    if !verdict.faults.is_empty() {
        verdict.faults.push(format!("named: {intervals:?}"));
        verdict.faults.push(format!("lives: {:?}", evidence.sessions));
    }
    Ok(verdict)
}
