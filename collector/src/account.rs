//! What the frames say about losses: the ledger of each run, and the gaps.
//!
//! Headers come in, totals come out: one ledger a run (the latest total of each counter,
//! summed over the run's classes), one gap for each interruption that an agent reports and
//! for each range of frames that is missing, at the end of a stream, too: a run's farewell says how
//! many frames of each class there are, and the run after it how far it came.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use codec::{CLASSES, Counter, Frame, Interruption, Operation, Term};
use serde_json::{Value, json};

use crate::capture::Origin;
use crate::certificates::Certificates;
use crate::chain::{self, Chain, Checked, Fault};
use crate::convert::Unresolved;
use crate::cuts::Cuts;
use crate::gap::{Gap, Graves, run_tag};
use crate::ladder::Ladder;
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
    /// How many frames of each class it made, as it says at its end.
    made: Option<[u64; CLASSES]>,
    /// The last frame's sequence of each class.
    last: BTreeMap<u8, u64>,
    /// How much detail it gave up, and when.
    pub(crate) ladder: Ladder,
    /// The seals of each class.
    chains: BTreeMap<u8, Chain>,
    /// The latest totals of each class.
    totals: BTreeMap<u8, BTreeMap<CounterName, u64>>,
}

/// How far a run came.
#[derive(Clone, Debug, Default)]
struct Reach {
    boot: String,
    /// By class, frames made at least.
    frames: [u64; CLASSES],
}

/// Which runs are over without a farewell.
#[derive(Debug)]
pub(crate) struct Ends {
    /// By agent and run tag.
    cut: BTreeMap<(String, String), Interruption>,
    /// Runs of which later ones say how far they came.
    over: HashSet<(String, String)>,
}

impl Ends {
    /// Whether a later run tells of the end of this one.
    pub(crate) fn has_successor(&self, run: &Run) -> bool {
        let name = (run.agent.clone(), run.run.clone());
        self.cut.contains_key(&name) || self.over.contains(&name)
    }

    /// When a run ended at the latest, boot clock, ns: by its farewell, or as the run after it tells.
    pub(crate) fn end_ns(&self, run: &Run) -> Option<u64> {
        let told = self.cut.get(&(run.agent.clone(), run.run.clone()));
        run.farewell.or(told.map(|cut| cut.to_ns.max(cut.from_ns)))
    }
}

/// Ledgers and gaps of all that was read.
#[derive(Default)]
pub(crate) struct Account {
    runs: Vec<Run>,
    gaps: Vec<Gap>,
    cuts: Cuts,
    /// How far runs came, as they tell themselves and later ones do, by agent and run tag.
    reaches: BTreeMap<(String, String), Reach>,
    /// Runs of which a later one tells, by agent.
    formers: HashSet<(String, [u8; 16])>,
    graves: Graves,
    unresolved: Unresolved,
    certificates: Certificates,
}

impl Account {
    /// Of nothing yet; signatures are held against these certificates, and those that are found.
    pub(crate) fn with(certificates: Certificates) -> Account {
        Account { certificates, ..Account::default() }
    }

    /// Takes note of the certificates in an agent's folder of a store.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn certificates(&mut self, agent: &Path) -> io::Result<()> {
        for (path, why) in self.certificates.load(agent)? {
            self.unreadable(&path, &why);
        }
        Ok(())
    }

    /// Takes note of a file that cannot be read, or the rest of it.
    pub(crate) fn unreadable(&mut self, path: &Path, why: &str) {
        log::error!("{}: {why}", path.display());
        self.gaps.push(Gap::Unreadable { path: path.display().to_string(), why: why.to_owned() });
    }

    /// Takes note of frames `first` to `last` of a stream, which are missing.
    pub(crate) fn missing(&mut self, origin: &Origin, first: u64, last: u64) {
        self.gaps.push(Gap::Missing { origin: origin.clone(), first, last });
    }

    /// Takes note of a frame.
    pub(crate) fn frame(&mut self, origin: &Origin, frame: &Frame<'_>) {
        // Two agents, or boots, may say one run tag, honestly or not: each has books of its own.
        let is_run = |run: &Run| {
            run.run == origin.run && run.agent == origin.agent && run.boot == origin.boot
        };
        let position = self.runs.iter().position(is_run).unwrap_or_else(|| {
            let Origin { agent, boot, run, .. } = origin.clone();
            self.runs.push(Run { agent, boot, run, ..Run::default() });
            self.runs.len() - 1
        });
        let Some(run) = self.runs.get_mut(position) else { return };
        let header = &frame.header;
        if let Some(start) = &header.start {
            run.agent_version = start.agent_version.to_owned();
            run.kernel = start.kernel.to_owned();
            run.machine = start.machine.to_owned();
        }
        run.capabilities = header.capabilities.or(run.capabilities);
        run.frames += 1;
        let proof = self.certificates.prove(&origin.agent, header);
        let chain = run.chains.entry(origin.class).or_default();
        if let Some((generation, fault)) = chain.frame(frame, proof) {
            let origin = Origin { generation, ..origin.clone() };
            self.gaps.push(Gap::Chain { origin, fault });
        }
        let last = run.last.entry(origin.class).or_default();
        *last = header.key.sequence.max(*last);
        run.records += u64::from(header.records);
        run.ladder.note(&header.steps);
        run.farewell = run.farewell.or(header.farewell.map(|farewell| farewell.at_ns));
        run.made = run.made.or(header.farewell.map(|farewell| farewell.frames));
        let totals = run.totals.entry(origin.class).or_default();
        for Counter { operation, term, total } in &header.ledger {
            totals.insert((*operation, *term), *total);
        }
        if let Some(farewell) = header.farewell {
            self.reaches(&origin.run, &origin.agent, origin.boot.clone(), farewell.frames);
        }
        if let Some(former) = header.former {
            self.formers.insert((origin.agent.clone(), former.run_id));
            let boot = layout::uuid(former.boot_id);
            self.reaches(&run_tag(&former.run_id), &origin.agent, boot, former.frames);
        }
        self.graves.note(origin, &header.tombstones);
        self.cuts.note(origin, header);
    }

    fn reaches(&mut self, run: &str, agent: &str, boot: String, frames: [u64; CLASSES]) {
        let known = self.reaches.entry((agent.to_owned(), run.to_owned())).or_default();
        known.boot = boot;
        for (known, told) in known.frames.iter_mut().zip(frames) {
            *known = told.max(*known);
        }
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

    /// Interruptions, and the other gaps in order of appearance; behind them the ends of runs that are
    /// missing, or all of them, as later frames tell. What of the missing frames the device dropped is
    /// told so.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let mut gaps = self.interruptions();
        for gap in &self.gaps {
            match gap {
                Gap::Missing { origin, first, last } => {
                    self.graves.name(origin, *first, *last, &mut gaps);
                }
                other => gaps.push(other.clone()),
            }
        }
        for run in &self.runs {
            gaps.extend(run.false_ends(self.certificates.is_strict()));
        }
        for ((agent, tag), reach) in &self.reaches {
            let is_run =
                |run: &&Run| run.run == *tag && run.agent == *agent && run.boot == reach.boot;
            let run = self.runs.iter().find(is_run);
            for (class, frames) in (0..).zip(reach.frames) {
                let first = run.and_then(|run| run.last.get(&class)).map_or(0, |last| last + 1);
                if first < frames {
                    let origin = Origin {
                        agent: agent.clone(),
                        boot: reach.boot.clone(),
                        run: tag.clone(),
                        class,
                        ..Origin::default()
                    };
                    self.graves.name(&origin, first, frames - 1, &mut gaps);
                }
            }
        }
        gaps
    }

    /// The runs that were cut, as later ones tell.
    pub(crate) fn ends(&self) -> Ends {
        let cut = self.interruptions().into_iter().filter_map(|gap| match gap {
            Gap::Interruption { agent, interruption, .. } => {
                Some(((agent, run_tag(&interruption.run_id)), interruption))
            }
            _ => None,
        });
        let formers = self.formers.iter().map(|(agent, id)| (agent.clone(), run_tag(id)));
        Ends { cut: cut.collect(), over: formers.collect() }
    }

    /// Interruptions, as far as they are known in the end.
    fn interruptions(&self) -> Vec<Gap> {
        let is_closed = |run: &&Run| run.farewell.is_some();
        let closed: HashSet<(&str, &str)> =
            self.runs.iter().filter(is_closed).map(|run| (&*run.agent, &*run.run)).collect();
        self.cuts.gaps(|agent, run_id| closed.contains(&(agent, &*run_tag(run_id))))
    }

    /// Whether files could not be read.
    pub(crate) fn has_unreadable(&self) -> bool {
        self.gaps.iter().any(|gap| matches!(gap, Gap::Unreadable { .. }))
    }
}

impl Run {
    /// What is wrong with the ends of the streams of a run that ended in order: frames behind the
    /// last one, and, where `is_strict`, records that no seal covers.
    fn false_ends(&self, is_strict: bool) -> Vec<Gap> {
        let Some(made) = self.made else { return Vec::new() };
        let mut gaps = Vec::new();
        for (class, chain) in &self.chains {
            let made = made.get(usize::from(*class)).copied().unwrap_or(0);
            let last = self.last.get(class).copied().unwrap_or(0);
            let mut name = |generation, fault| {
                let origin = Origin {
                    agent: self.agent.clone(),
                    boot: self.boot.clone(),
                    run: self.run.clone(),
                    class: *class,
                    generation,
                    ..Origin::default()
                };
                gaps.push(Gap::Chain { origin, fault });
            };
            if last >= made {
                name(chain.generation(), Fault::Surplus);
            }
            if let Some(generation) = chain.unsealed()
                && is_strict
                && last + 1 == made
            {
                name(generation, Fault::Unsealed);
            }
        }
        gaps
    }

    /// How its generations stand.
    pub(crate) fn checked(&self) -> Checked {
        chain::sum(&self.chains)
    }

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

    /// The line of `print --json`; `end_ns` as [`Ends::end_ns`] has it.
    pub(crate) fn json(&self, end_ns: Option<u64>) -> Value {
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
            "ladder": self.ladder.json(end_ns),
        })
    }

    /// The lines of `print`: one for each operation, with the losses by their names; `end_ns` as
    /// [`Ends::end_ns`] has it.
    pub(crate) fn lines(&self, end_ns: Option<u64>) -> Vec<String> {
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
        lines.extend(self.ladder.lines(end_ns));
        lines
    }
}
