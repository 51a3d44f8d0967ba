//! What the frames say about losses: the ledger of each run, and the gaps.
//!
//! Headers come in, totals come out: one ledger a run (the latest total of each counter,
//! summed over the run's classes), one gap for each interruption that an agent reports and
//! for each range of frames that is missing.

use std::collections::{BTreeMap, HashSet};

use codec::{Counter, Frame, Operation, Term};
use serde_json::{Map, Value, json};

use crate::capture::Origin;
use crate::convert::Unresolved;
use crate::layout;

pub(crate) type CounterName = (Option<Operation>, Term);

/// One run of an agent.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) agent: String,
    pub(crate) boot: String,
    pub(crate) run: String,
    agent_version: String,
    kernel: String,
    machine: String,
    capabilities: Option<codec::Capabilities>,
    pub(crate) frames: u64,
    pub(crate) records: u64,
    /// When it ended in order, boot clock, ns.
    pub(crate) farewell: Option<u64>,
    /// The last frame's sequence of each class.
    last: BTreeMap<u8, u64>,
    /// The latest totals of each class.
    totals: BTreeMap<u8, BTreeMap<CounterName, u64>>,
}

/// Something that is not in the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Frames that are not there.
    Missing { origin: Origin, first: u64, last: u64 },
    /// A run that ended without saying so.
    Interruption { agent: String, reported_by: String, interruption: codec::Interruption },
    /// A file that cannot be read.
    Unreadable { path: String, why: String },
}

/// Ledgers and gaps of all that was read.
#[derive(Default)]
pub(crate) struct Account {
    runs: Vec<Run>,
    gaps: Vec<Gap>,
    interruptions: HashSet<[u8; 16]>,
    /// By run id, with the agent: how far runs came, as later ones tell.
    formers: BTreeMap<[u8; 16], (String, codec::FormerRun)>,
    unresolved: Unresolved,
}

impl Account {
    /// Takes note of a frame.
    pub(crate) fn frame(&mut self, origin: &Origin, frame: &Frame<'_>) {
        let position = self.runs.iter().position(|run| run.run == origin.run);
        let position = position.unwrap_or_else(|| {
            self.runs.push(Run { run: origin.run.clone(), ..Run::default() });
            self.runs.len() - 1
        });
        let Some(run) = self.runs.get_mut(position) else { return };
        let header = &frame.header;
        run.agent.clone_from(&origin.agent);
        run.boot.clone_from(&origin.boot);
        if let Some(start) = &header.start {
            run.agent_version = start.agent_version.to_owned();
            run.kernel = start.kernel.to_owned();
            run.machine = start.machine.to_owned();
        }
        run.capabilities = header.capabilities.or(run.capabilities);
        run.frames += 1;
        let last = run.last.entry(origin.class).or_default();
        *last = header.key.sequence.max(*last);
        run.records += u64::from(header.records);
        run.farewell = run.farewell.or(header.farewell.map(|farewell| farewell.at_ns));
        let totals = run.totals.entry(origin.class).or_default();
        for Counter { operation, term, total } in &header.ledger {
            totals.insert((*operation, *term), *total);
        }
        if let Some(former) = header.former {
            self.formers.insert(former.run_id, (origin.agent.clone(), former));
        }
        if let Some(interruption) = header.interruption
            && self.interruptions.insert(interruption.run_id)
        {
            self.gaps.push(Gap::Interruption {
                agent: origin.agent.clone(),
                reported_by: origin.run.clone(),
                interruption,
            });
        }
    }

    /// Takes note of a gap.
    pub(crate) fn gap(&mut self, gap: Gap) {
        self.gaps.push(gap);
    }

    /// Takes note of references that led nowhere.
    pub(crate) fn unresolved(&mut self, more: Unresolved) {
        self.unresolved.processes += more.processes;
        self.unresolved.files += more.files;
        self.unresolved.containers += more.containers;
    }

    /// References that led nowhere, by kind.
    pub(crate) fn unresolved_counts(&self) -> BTreeMap<&'static str, u64> {
        self.unresolved.counts()
    }

    /// The runs in order of appearance.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The gaps in order of appearance; behind them the ends of runs that are missing, or all of
    /// them, as later runs tell.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let mut gaps = self.gaps.clone();
        for (agent, former) in self.formers.values() {
            let tag = run_tag(&former.run_id);
            let run = self.runs.iter().find(|run| run.run == tag);
            let first = run.and_then(|run| run.last.get(&0)).map_or(0, |last| last + 1);
            if first < former.frames {
                let origin = Origin {
                    agent: agent.clone(),
                    boot: layout::uuid(former.boot_id),
                    run: tag,
                    ..Origin::default()
                };
                gaps.push(Gap::Missing { origin, first, last: former.frames - 1 });
            }
        }
        gaps
    }

    /// Whether a later run tells of the end of this one.
    pub(crate) fn has_successor(&self, run: &Run) -> bool {
        self.formers.keys().chain(&self.interruptions).any(|id| run_tag(id) == run.run)
    }

    /// Whether files could not be read.
    pub(crate) fn has_unreadable(&self) -> bool {
        self.gaps.iter().any(|gap| matches!(gap, Gap::Unreadable { .. }))
    }
}

impl Run {
    /// The latest totals, summed over classes.
    pub(crate) fn totals(&self) -> BTreeMap<CounterName, u64> {
        let mut sums = BTreeMap::new();
        for (name, total) in self.totals.values().flatten() {
            let sum: &mut u64 = sums.entry(*name).or_default();
            *sum = sum.saturating_add(*total);
        }
        sums
    }

    /// The totals by name of operation and term; counters in units of records stand under
    /// `records`.
    pub(crate) fn counters(&self) -> BTreeMap<&'static str, BTreeMap<&'static str, u64>> {
        let mut named: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for ((operation, term), total) in self.totals() {
            let operation = operation.map_or("records", Operation::name);
            named.entry(operation).or_default().insert(term.name(), total);
        }
        named
    }

    /// The line of `print --json`.
    pub(crate) fn json(&self) -> Value {
        let capabilities = self
            .capabilities
            .map(|can| json!({ "attached": can.attached, "missing": can.missing, "jit": can.jit }));
        json!({
            "type": "LEDGER",
            "agent": self.agent,
            "boot": self.boot,
            "run": self.run,
            "agent_version": self.agent_version,
            "kernel": self.kernel,
            "machine": self.machine,
            "capabilities": capabilities,
            "farewell_ns": self.farewell,
            "frames": self.frames,
            "records": self.records,
            "counters": self.counters(),
        })
    }

    /// The lines of `print`: one for each operation, with the losses by their names.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "ledger of run {} (agent {}, boot {}): {} frames, {} records",
            self.run, self.agent, self.boot, self.frames, self.records
        )];
        for (operation, terms) in self.counters() {
            let is_loss = |name: &str| Term::ALL.iter().any(|t| t.is_loss() && t.name() == name);
            let lost: u64 = terms.iter().filter(|(n, _)| is_loss(n)).map(|(_, total)| total).sum();
            let terms: Vec<_> = Term::ALL
                .iter()
                .filter_map(|term| Some(format!("{} {}", term.name(), terms.get(term.name())?)))
                .collect();
            lines.push(format!("  {operation:<12} lost {lost}: {}", terms.join(", ")));
        }
        lines
    }
}

impl Gap {
    /// The line of `print --json`.
    pub(crate) fn json(&self) -> Value {
        let mut line = Map::new();
        line.insert("type".to_owned(), "GAP".into());
        let rest = match self {
            Gap::Missing { origin, first, last } => json!({
                "reason": "missing_frames",
                "agent": origin.agent,
                "boot": origin.boot,
                "run": origin.run,
                "class": origin.class,
                "first": first,
                "last": last,
            }),
            Gap::Interruption { agent, reported_by, interruption } => json!({
                "reason": "interruption",
                "agent": agent,
                "boot": layout::uuid(interruption.boot_id),
                "run": run_tag(&interruption.run_id),
                "run_id": layout::hex(&interruption.run_id),
                "reported_by_run": reported_by,
                "from_ns": interruption.from_ns,
                "to_ns": interruption.to_ns,
                "operations_at_least": interruption.operations_at_least,
            }),
            Gap::Unreadable { path, why } => json!({
                "reason": "unreadable",
                "path": path,
                "detail": why,
            }),
        };
        if let Value::Object(rest) = rest {
            line.extend(rest);
        }
        Value::Object(line)
    }

    /// The line of `print`.
    pub(crate) fn line(&self) -> String {
        match self {
            Gap::Missing { origin, first, last } => format!(
                "gap: frames {first} to {last} of run {}, class {} (agent {}) are missing",
                origin.run, origin.class, origin.agent
            ),
            Gap::Interruption { agent, interruption, .. } => {
                let until = match interruption.to_ns {
                    0 => "the end of the boot".to_owned(),
                    to_ns => format!("{to_ns} ns"),
                };
                format!(
                    "gap: run {} (agent {agent}, boot {}) was cut: from {} ns to {until} of the \
                     boot clock at least {} operations are not in any frame",
                    run_tag(&interruption.run_id),
                    layout::uuid(interruption.boot_id),
                    interruption.from_ns,
                    interruption.operations_at_least
                )
            }
            Gap::Unreadable { path, why } => format!("gap: {path}: {why}"),
        }
    }
}

/// The run tag in a run id, as streams are named by it.
pub(crate) fn run_tag(run_id: &[u8; 16]) -> String {
    layout::hex(run_id.first_chunk::<8>().map_or(&[], |tag| tag.as_slice()))
}
