//! The command `ledger`: whether everything that an agent observed is accounted for.
//!
//! Frames come in, one table a run and a verdict come out. Each kind of operation must satisfy
//! `observed = stored + aggregated + filtered + own + lost`. Until a run's farewell has come,
//! operations may be observed and not told yet: they are shown as open, not as a fault. What is
//! missing is named: frames by their sequence range, cut runs by their interval.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use codec::{Operation, Term};
use serde_json::{Value, json};

use crate::account::{Account, Run};
use crate::capture::{self, Origin, Sink};
use crate::certificates::Certificates;
use crate::chain::Checked;
use crate::print::{Format, Outcome, escape};
use crate::sysflow::Record;

/// Kinds that are one line: a flow's counters do not tell which of the two calls was used on a
/// socket, so that only their sums balance.
const JOINED: [(Operation, Operation); 2] =
    [(Operation::Read, Operation::Receive), (Operation::Write, Operation::Send)];

/// Prints the books of all runs that `paths` lead to; seals are held against `certificates`, and
/// those in the store.
///
/// # Errors
/// Those of the output and of paths that cannot be opened.
pub(crate) fn print(
    paths: &[PathBuf],
    certificates: Certificates,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<Outcome> {
    let mut books = Books(Account::with(certificates));
    capture::read(paths, &mut books)?;
    let account = &books.0;
    let gaps = account.gaps();
    let mut is_whole = gaps.is_empty();
    let ends = account.ends();
    for run in account.runs() {
        let statement = Statement::of(run, ends.has_successor(run), ends.end_ns(run));
        is_whole &= statement.verdict().is_ok();
        match format {
            Format::Text => {
                for line in statement.lines() {
                    writeln!(out, "{}", escape(&line))?;
                }
            }
            Format::Json => writeln!(out, "{}", statement.json())?,
        }
    }
    for gap in &gaps {
        match format {
            Format::Text => writeln!(out, "{}", escape(&gap.line()))?,
            Format::Json => writeln!(out, "{}", gap.json())?,
        }
    }
    if account.runs().is_empty() {
        log::error!("no frames there: only frames have books, .sf files have none");
        is_whole = false;
    }
    out.flush()?;
    Ok(if is_whole { Outcome::Whole } else { Outcome::Damaged })
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Its farewell came: the totals are final.
    Closed,
    /// A later run says that it is over.
    Cut,
    /// It goes on, or nobody has told of its end yet.
    Open,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Ending::Closed => "closed",
            Ending::Cut => "cut",
            Ending::Open => "open",
        }
    }
}

/// One line of a run's books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    terms: BTreeMap<Term, u64>,
}

impl Line {
    fn term(&self, term: Term) -> u64 {
        self.terms.get(&term).copied().unwrap_or(0)
    }

    fn lost(&self) -> u64 {
        self.terms.iter().filter(|(term, _)| term.is_loss()).map(|(_, total)| total).sum()
    }

    /// Observed and not told: negative if more was told than observed.
    fn unaccounted(&self) -> i128 {
        let told: u64 =
            self.terms.iter().filter(|(t, _)| **t != Term::Observed).map(|(_, n)| n).sum();
        i128::from(self.term(Term::Observed)) - i128::from(told)
    }
}

/// The books of one run.
struct Statement<'a> {
    run: &'a Run,
    ending: Ending,
    /// When it ended at the latest, boot clock, ns.
    end_ns: Option<u64>,
    lines: Vec<(String, Line)>,
    /// Losses of whole records.
    records_lost: BTreeMap<Term, u64>,
}

impl<'a> Statement<'a> {
    fn of(run: &'a Run, is_cut: bool, end_ns: Option<u64>) -> Statement<'a> {
        let ending = match run.farewell {
            Some(_) => Ending::Closed,
            None if is_cut => Ending::Cut,
            None => Ending::Open,
        };
        let mut lines: BTreeMap<Operation, Line> = BTreeMap::new();
        let mut records_lost = BTreeMap::new();
        for ((operation, term), total) in run.totals() {
            let Some(operation) = operation else {
                records_lost.insert(term, total);
                continue;
            };
            let joined = JOINED.iter().find(|(_, second)| *second == operation);
            let kind = joined.map_or(operation, |(first, _)| *first);
            *lines.entry(kind).or_default().terms.entry(term).or_default() += total;
        }
        let name = |kind: Operation| match JOINED.iter().find(|(first, _)| *first == kind) {
            Some((first, second)) => format!("{}+{}", first.name(), second.name()),
            None => kind.name().to_owned(),
        };
        let lines = lines.into_iter().map(|(kind, line)| (name(kind), line)).collect();
        Statement { run, ending, end_ns, lines, records_lost }
    }

    /// What does not add up, by kind of operation, in a closed run. While a run goes on, what is
    /// open is no fault; nor is what is told already and counted later, since the kernel's
    /// counters travel less often than records. Nor in a run that died.
    fn verdict(&self) -> Result<(), Vec<String>> {
        let is_fault = |open: i128| self.ending == Ending::Closed && open != 0;
        let faults: Vec<String> = self
            .lines
            .iter()
            .filter(|(_, line)| is_fault(line.unaccounted()))
            .map(|(name, line)| {
                let open = line.unaccounted();
                match open {
                    0.. => format!("{name}: {open} observed and not accounted for"),
                    _ => format!("{name}: {} accounted for and not observed", -open),
                }
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn lines(&self) -> Vec<String> {
        let run = self.run;
        let mut lines = vec![format!(
            "run {} (agent {}, boot {}): {}, {} frames, {} records",
            run.run,
            run.agent,
            run.boot,
            self.ending.name(),
            run.frames,
            run.records
        )];
        lines.push(format!(
            "  {:<14} {:>12} {:>12} {:>12} {:>12} {:>10} {:>10} {:>8}",
            "operation", "observed", "stored", "aggregated", "filtered", "own", "lost", "open"
        ));
        for (name, line) in &self.lines {
            lines.push(format!(
                "  {name:<14} {:>12} {:>12} {:>12} {:>12} {:>10} {:>10} {:>8}",
                line.term(Term::Observed),
                line.term(Term::Stored),
                line.term(Term::Aggregated),
                line.term(Term::Filtered),
                line.term(Term::Own),
                line.lost(),
                line.unaccounted()
            ));
        }
        for (name, line) in &self.lines {
            for (term, total) in line.terms.iter().filter(|(t, n)| t.is_loss() && **n > 0) {
                lines.push(format!("  lost: {total} of {name}, {}", term.name()));
            }
        }
        for (term, total) in &self.records_lost {
            lines.push(format!("  lost: {total} records, {}", term.name()));
        }
        lines.extend(run.ladder.lines(self.end_ns));
        let checked = run.checked();
        let Checked { whole, incomplete, signed, unsigned, unchecked, unsealed_frames } = checked;
        lines.push(format!(
            "  chain: {whole} generations are as they were sealed, {incomplete} cannot be checked; \
             {unsealed_frames} frames are covered by no seal"
        ));
        lines.push(format!(
            "  of their seals {signed} are signed by the device, {unsigned} are not signed, \
             {unchecked} without a certificate to check"
        ));
        match (self.verdict(), self.ending) {
            (Err(faults), _) => {
                lines
                    .extend(faults.into_iter().map(|fault| format!("  does not balance: {fault}")));
            }
            (Ok(()), Ending::Closed) => lines.push("  balances to the unit".to_owned()),
            (Ok(()), Ending::Cut) => {
                lines.push("  cut: what is open was never told (see its gap)".to_owned());
            }
            (Ok(()), Ending::Open) => {
                lines.push("  goes on: what is open is not told yet".to_owned());
            }
        }
        lines
    }

    fn json(&self) -> Value {
        let lines: serde_json::Map<String, Value> = self
            .lines
            .iter()
            .map(|(name, line)| {
                let mut terms: serde_json::Map<String, Value> = line
                    .terms
                    .iter()
                    .map(|(term, total)| (term.name().to_owned(), json!(total)))
                    .collect();
                let open = i64::try_from(line.unaccounted()).unwrap_or(i64::MAX);
                terms.insert("open".to_owned(), json!(open));
                (name.clone(), Value::Object(terms))
            })
            .collect();
        let records_lost: BTreeMap<_, _> =
            self.records_lost.iter().map(|(term, total)| (term.name(), total)).collect();
        let run = self.run;
        json!({
            "type": "BOOKS",
            "agent": run.agent,
            "boot": run.boot,
            "run": run.run,
            "ending": self.ending.name(),
            "frames": run.frames,
            "records": run.records,
            "operations": lines,
            "records_lost": records_lost,
            "chain": run.checked().json(),
            "ladder": run.ladder.json(self.end_ns),
            "faults": self.verdict().err().unwrap_or_default(),
        })
    }
}

/// Only the account of what was read.
struct Books(Account);

impl Sink for Books {
    fn account(&mut self) -> &mut Account {
        &mut self.0
    }

    fn record(&mut self, _: Record, _: Option<&Origin>) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use codec::{Counter, Farewell, FormerRun, Frame, GenerationStart, Header, Ledger, StreamKey};

    use super::*;
    use crate::chain::Fault;
    use crate::gap::{Gap, run_tag};
    use crate::layout;

    fn header() -> Header<'static> {
        Header {
            key: StreamKey { run_tag: [1; 8], class: 0, sequence: 0 },
            start: Some(GenerationStart {
                agent_id: "gw",
                boot_id: [7; 16],
                run_id: [1; 16],
                agent_version: "0",
                kernel: "k",
                machine: "m",
            }),
            ..Header::default()
        }
    }

    fn account(counters: &[(Option<Operation>, Term, u64)], is_closed: bool) -> Account {
        account_behind(counters, is_closed, None)
    }

    fn account_behind(
        counters: &[(Option<Operation>, Term, u64)],
        is_closed: bool,
        former: Option<FormerRun>,
    ) -> Account {
        let mut buffer = vec![0; 16 * 1024];
        let mut ledger = Ledger::new();
        for &(operation, term, total) in counters {
            ledger.push(Counter { operation, term, total }).unwrap();
        }
        let header = Header {
            ledger,
            farewell: is_closed.then_some(Farewell { at_ns: 9, frames: [1, 0] }),
            former,
            ..header()
        };
        let bytes = codec::FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap();
        let mut account = Account::default();
        let origin = Origin {
            agent: "gw".to_owned(),
            boot: layout::uuid([7; 16]),
            run: run_tag(&[1; 16]),
            class: 0,
            ..Origin::default()
        };
        account.frame(&origin, &Frame::decode(bytes).unwrap().0);
        account
    }

    fn verdict(account: &Account, is_cut: bool) -> (Ending, Result<(), Vec<String>>) {
        let statement = Statement::of(&account.runs()[0], is_cut, None);
        (statement.ending, statement.verdict())
    }

    const READ: Option<Operation> = Some(Operation::Read);
    const RECEIVE: Option<Operation> = Some(Operation::Receive);

    #[test]
    fn every_term_counts_and_reads_are_weighed_together_with_receives() {
        let terms = [Term::Stored, Term::Aggregated, Term::Filtered, Term::Own];
        let losses = Term::ALL.into_iter().filter(|term| term.is_loss());
        let told: Vec<Term> = terms.into_iter().chain(losses).collect();
        let mut counters = vec![(RECEIVE, Term::Observed, told.len() as u64)];
        counters.extend(told.iter().map(|term| (READ, *term, 1)));
        assert_eq!(verdict(&account(&counters, true), false), (Ending::Closed, Ok(())));
        // Without any one of them the books of a closed run do not balance.
        for left_out in 1..counters.len() {
            let mut fewer = counters.clone();
            fewer.remove(left_out);
            let (_, result) = verdict(&account(&fewer, true), false);
            assert_eq!(result.unwrap_err(), ["read+receive: 1 observed and not accounted for"]);
        }
    }

    #[test]
    fn the_missing_end_of_a_class_is_a_gap_that_the_farewell_tells() {
        assert_eq!(account(&[], true).gaps(), []);
        let mut account = account(&[], false);
        let mut buffer = vec![0; 16 * 1024];
        let header = Header {
            key: StreamKey { run_tag: [1; 8], class: 0, sequence: 1 },
            start: None,
            farewell: Some(Farewell { at_ns: 9, frames: [2, 3] }),
            ..header()
        };
        let bytes = codec::FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap();
        let run = account.runs()[0].run.clone();
        let (agent, boot) = ("gw".to_owned(), layout::uuid([7; 16]));
        let origin = Origin { agent, boot, run, ..Origin::default() };
        account.frame(&origin, &Frame::decode(bytes).unwrap().0);
        let gaps = account.gaps();
        let [Gap::Missing { origin, first: 0, last: 2 }] = &gaps[..] else { panic!("{gaps:?}") };
        assert_eq!(origin.class, 1);
    }

    #[test]
    fn the_missing_end_of_a_run_is_a_gap_that_the_next_run_tells() {
        let gaps = |run, frames| {
            let former = FormerRun { boot_id: [7; 16], run_id: [run; 16], frames };
            let account = account_behind(&[], true, Some(former));
            let gaps: Vec<(String, u8, u64, u64)> = account
                .gaps()
                .into_iter()
                .filter_map(|gap| match gap {
                    Gap::Missing { origin, first, last } => {
                        Some((origin.run, origin.class, first, last))
                    }
                    _ => None,
                })
                .collect();
            gaps
        };
        // Of run 1 frame 0 is held, of run 9 nothing.
        let (one, nine) = ("01".repeat(8), "09".repeat(8));
        assert_eq!(gaps(1, [1, 0]), []);
        assert_eq!(gaps(1, [4, 0]), [(one.clone(), 0, 1, 3)]);
        assert_eq!(gaps(1, [1, 2]), [(one, 1, 0, 1)]);
        assert_eq!(gaps(9, [2, 1]), [(nine.clone(), 0, 0, 1), (nine, 1, 0, 0)]);
        assert_eq!(gaps(9, [0, 0]), []);
    }

    #[test]
    fn frames_behind_the_last_one_are_named() {
        let mut account = account(&[], true);
        let mut buffer = vec![0; 16 * 1024];
        for (class, sequence) in [(0, 1), (1, 0)] {
            let key = StreamKey { run_tag: [1; 8], class, sequence };
            let header = Header { key, start: header().start.filter(|_| class == 1), ..header() };
            let bytes = codec::FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap();
            let run = account.runs()[0].run.clone();
            let (agent, boot) = ("gw".to_owned(), layout::uuid([7; 16]));
            let origin = Origin { agent, boot, run, class, ..Origin::default() };
            account.frame(&origin, &Frame::decode(bytes).unwrap().0);
        }
        let named: Vec<_> = account
            .gaps()
            .into_iter()
            .map(|gap| match gap {
                Gap::Chain { origin, fault } => (origin.class, fault),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(named, [(0, Fault::Surplus), (1, Fault::Surplus)]);
    }

    #[test]
    fn two_agents_with_one_run_tag_have_books_of_their_own() {
        let mut account = account(&[(READ, Term::Observed, 1), (READ, Term::Stored, 1)], true);
        let mut buffer = vec![0; 16 * 1024];
        let counter = Counter { operation: READ, term: Term::Observed, total: 9 };
        let header = Header { ledger: Ledger::from_iter([counter]), ..header() };
        let bytes = codec::FrameWriter::new(&mut buffer).unwrap().finish(&header).unwrap();
        let frame = Frame::decode(bytes).unwrap().0;
        let run = run_tag(&[1; 16]);
        for (agent, boot) in [("other", 7), ("gw", 8)] {
            let (agent, boot) = (agent.to_owned(), layout::uuid([boot; 16]));
            account.frame(&Origin { agent, boot, run: run.clone(), ..Origin::default() }, &frame);
        }
        let endings: Vec<_> =
            account.runs().iter().map(|run| Statement::of(run, false, None).ending).collect();
        assert_eq!(endings, [Ending::Closed, Ending::Open, Ending::Open]);
        assert_eq!(verdict(&account, false), (Ending::Closed, Ok(())));
        assert_eq!(account.gaps(), []);
    }

    #[test]
    fn what_is_open_and_what_is_too_much_are_faults_of_a_closed_run() {
        let open = [(READ, Term::Observed, 5), (READ, Term::Stored, 3)];
        assert_eq!(verdict(&account(&open, false), false), (Ending::Open, Ok(())));
        assert_eq!(verdict(&account(&open, false), true), (Ending::Cut, Ok(())));
        assert!(verdict(&account(&open, true), true).1.is_err());
        let invented = [(READ, Term::Observed, 3), (READ, Term::Stored, 5)];
        assert_eq!(verdict(&account(&invented, false), false), (Ending::Open, Ok(())));
        let (_, result) = verdict(&account(&invented, true), false);
        assert_eq!(result.unwrap_err(), ["read+receive: 2 accounted for and not observed"]);
    }
}
