//! What came of the acts: each is in the records exactly once and as it was, or where it is
//! missing something names the loss.

mod held;
mod named;

use std::collections::BTreeMap;
use std::path::Path;

use codec::Subject;
use serde_json::Value;
use tests::Result;
use tests::acts::{Act, Item, Part, by_number, items};
use tests::records::{of_kind, text};

use crate::world::{Blows, ClockStep, HOUR_NS, Session, wall_offset_ns};
use named::{Interval, Name, Search};

/// What came of a run's acts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acts: u64,
    /// Whole in the records.
    pub(crate) delivered: u64,
    /// Missing, wholly or in part, and within frames that the agent says that it dropped.
    pub(crate) in_dropped: u64,
    /// Missing, wholly or in part, and within other missing frames.
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
    pub(crate) blows: &'e Blows,
    pub(crate) clock_steps: &'e [ClockStep],
}

/// The kinds of operations that a part of an act consists of, as the books call them, and what
/// summaries of it are about.
fn kind(part: Part) -> (&'static str, Subject) {
    match part {
        Part::Exec => ("exec", Subject::Processes),
        Part::Exit => ("exit", Subject::Processes),
        Part::Folder => ("mkdir", Subject::Files),
        Part::Writes | Part::Process => ("write+send", Subject::Files),
    }
}

/// What is missing, and how it is excused.
struct Missing {
    part: Part,
    operations: u64,
    /// What it lies in, the best excuse first.
    excuses: Vec<Interval>,
}

impl Missing {
    fn is_in(&self, wanted: impl Fn(&Interval) -> bool) -> bool {
        self.excuses.iter().any(wanted)
    }
}

const DROPPED: Name = Name::Frames { dropped: true };

fn is_frames(interval: &Interval) -> bool {
    matches!(interval.name, Name::Frames { .. })
}

/// Judges a run.
pub(crate) fn judge(acts: &[Act], evidence: &Evidence<'_>) -> Result<Verdict> {
    let mut verdict = Verdict { acts: acts.len() as u64, ..Verdict::default() };
    let mut runs = held::runs(evidence.store)?;
    let lives = evidence.sessions.iter();
    let lives = lives.map(|session| (session, runs.remove(&session.run).unwrap_or_default()));
    let mut search = Search { evidence, lives: lives.collect(), found: vec![], faults: vec![] };
    search.run()?;
    verdict.steps = search.found.iter().filter(|i| i.name == Name::Step).count() as u64;
    let missing = look_up(acts, evidence, &search, &mut verdict)?;
    balance(evidence, &mut verdict);
    counted_on_steps(&search, &missing, &mut verdict)?;
    counted_in_frames(&search, &missing, &mut verdict);
    told_clocks(&search, &mut verdict);
    verdict.faults.append(&mut search.faults);
    if !verdict.faults.is_empty() {
        verdict.faults.push(format!("named: {:#?}", search.found));
        verdict.faults.push(format!("lives: {:#?}", evidence.sessions));
    }
    Ok(verdict)
}

/// Holds the acts against the records: what is missing of them.
fn look_up(
    acts: &[Act],
    evidence: &Evidence<'_>,
    search: &Search<'_>,
    verdict: &mut Verdict,
) -> Result<Vec<Missing>> {
    // Only what names the folder is of an act; the rest of a machine's doings is much.
    let name = evidence.folder.to_string_lossy();
    let mut lines = String::new();
    for line in evidence.printed.lines().filter(|line| line.contains(name.as_ref())) {
        lines.push_str(line);
        lines.push('\n');
    }
    let records = tests::records::parse(&lines)?;
    let mut by_number = by_number(&records, evidence.folder);
    let mut all = Vec::new();
    for act in acts {
        let found = by_number.remove(&act.mark.number).unwrap_or_default();
        let mut missing = Vec::new();
        for item in items(act, evidence.folder, &found) {
            match item {
                Item::Right => {}
                Item::Missing { part, operations } => {
                    let covers = |interval: &&Interval| interval.covers(act, part);
                    let excuses = search.found.iter().filter(covers).copied().collect();
                    missing.push(Missing { part, operations, excuses });
                }
                Item::Wrong(what) => {
                    verdict.faults.push(format!("act {}: {what}", act.mark.number));
                }
            }
        }
        let is_in = |wanted: fn(&Interval) -> bool| missing.iter().any(|m| m.is_in(wanted));
        if missing.is_empty() {
            verdict.delivered += 1;
        } else if let Some(missing) = missing.iter().find(|missing| missing.excuses.is_empty()) {
            verdict.faults.push(format!(
                "act {} ({} to {}): {:?} is missing without a word",
                act.mark.number, act.from_ns, act.to_ns, missing.part
            ));
        } else if is_in(|interval| interval.name == DROPPED) {
            verdict.in_dropped += 1;
        } else if is_in(is_frames) {
            verdict.in_frames += 1;
        } else if is_in(|interval| interval.name == Name::Interval) {
            verdict.in_interval += 1;
        } else {
            verdict.in_step += 1;
        }
        all.append(&mut missing);
    }
    let invented = by_number.keys().map(|number| format!("act {number} was never done"));
    verdict.faults.extend(invented);
    Ok(all)
}

/// What the books say: whether they balance, and the records that they count as lost.
fn balance(evidence: &Evidence<'_>, verdict: &mut Verdict) {
    for books in of_kind(evidence.ledger, "BOOKS") {
        let lost = books["records_lost"].as_object().into_iter().flatten();
        verdict.records_lost += lost.filter_map(|(_, count)| count.as_u64()).sum::<u64>();
        for fault in books["faults"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let run = text(books, "run");
            verdict.faults.push(format!("run {run} does not balance: {fault}"));
        }
    }
}

/// What steps of the ladder gave up is counted or summarised, kind by kind, in each life whose
/// books are closed and whose frames all came.
fn counted_on_steps(search: &Search<'_>, missing: &[Missing], verdict: &mut Verdict) -> Result {
    let mut given_up: BTreeMap<(usize, Part), u64> = BTreeMap::new();
    for Missing { part, operations, excuses } in missing {
        let other = excuses.iter().any(|interval| interval.name != Name::Step);
        if let Some(step) = excuses.first().filter(|_| !other) {
            *given_up.entry((step.life, *part)).or_default() += operations;
        }
    }
    for books in of_kind(search.evidence.ledger, "BOOKS") {
        let life = search.life(text(books, "run"))?;
        let lacks = search.found.iter().any(|i| i.life == life && is_frames(i));
        let Some((_, run)) = search.lives.get(life) else { continue };
        if lacks || text(books, "ending") != "closed" {
            continue;
        }
        for ((_, part), missing) in given_up.iter().filter(|((of, _), _)| *of == life) {
            let (kind, subject) = kind(*part);
            let shed = books["operations"][kind]["lost_shed"].as_u64().unwrap_or(0);
            let told = run.summarised.get(&subject).copied().unwrap_or_default();
            let told = if *part == Part::Writes { told.writes } else { told.records };
            if *missing > shed + told {
                verdict.faults.push(format!(
                    "{missing} of {part:?} are missing on steps of life {life}: {shed} are \
                     counted, {told} summarised"
                ));
            }
        }
    }
    Ok(())
}

/// What was in missing frames is counted, by those who dropped them; and nothing is counted as
/// lost where all came.
fn counted_in_frames(search: &Search<'_>, missing: &[Missing], verdict: &mut Verdict) {
    // A run that was killed beside a full disk could not note how many frames it had made: its last
    // ones lie within its interval.
    let is_named = |named: &Interval| is_frames(named) || named.name == Name::Interval;
    if !search.found.iter().any(is_named) && verdict.records_lost > 0 {
        let lost = verdict.records_lost;
        verdict.faults.push(format!("{lost} records are counted as lost, and no frame is missing"));
    }
    let only = |missing: &&Missing, wanted: fn(&Interval) -> bool| {
        !missing.excuses.is_empty() && missing.excuses.iter().all(wanted)
    };
    let dropped = |interval: &Interval| interval.name == DROPPED;
    let found = missing.iter().filter(|missing| only(missing, dropped)).count() as u64;
    let stones = of_kind(search.evidence.ledger, "GAP");
    let told: u64 = stones.filter_map(|gap| gap["records"].as_u64()).sum();
    if found > told {
        verdict.faults.push(format!("{found} are missing in {told} records that were dropped"));
    }
    // Frames that rot, or die with their agent, take their number with them.
    let is_quiet = !search.evidence.blows.takes_frames();
    let found = missing.iter().filter(|missing| only(missing, is_frames)).count() as u64;
    if is_quiet && found > verdict.records_lost {
        let lost = verdict.records_lost;
        verdict.faults.push(format!("{found} are missing in frames, {lost} records are counted"));
    }
}

/// The wall clock of an agent whose clock was moved is in what its frames told.
fn told_clocks(search: &Search<'_>, verdict: &mut Verdict) {
    let offsets = |life: usize| search.lives.get(life).map(|(_, run)| run.offsets_ns.as_slice());
    let true_ns = wall_offset_ns();
    for step in search.evidence.clock_steps {
        let expected_ns = true_ns + step.offset_s * 1_000_000_000;
        let lives = step.lives.clone().filter_map(offsets).flatten();
        let is_told = lives.into_iter().any(|ns| (ns - expected_ns).abs() < HOUR_NS);
        if !is_told {
            let told: Vec<_> = step.lives.clone().filter_map(offsets).collect();
            verdict.faults.push(format!("{step:?} is in no frame: {told:?} from {true_ns}"));
        }
    }
}
