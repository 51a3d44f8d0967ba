//! What must be true of a guest's run: each check is one test.

use std::collections::BTreeSet;

use codec::Term;
use serde_json::Value;
use tests::Result;
use tests::frames::Summary;
use tests::records::{differences, number, path_faults, text};
use tests::truth::{Spawner, Truth};

use crate::guest::{Guest, Told};

/// All that is known of a guest's run.
pub(crate) struct Run<'g> {
    pub(crate) guest: &'g Guest,
    pub(crate) told: &'g Told,
    pub(crate) records: Vec<Value>,
    pub(crate) summary: Summary,
}

/// One test of a guest.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Whether this guest has it.
    pub(crate) applies: fn(&Guest) -> bool,
    /// A check that passes says what it found, if that is worth a word.
    pub(crate) judge: fn(&Run<'_>) -> Result<String>,
}

const fn always(name: &'static str, judge: fn(&Run<'_>) -> Result<String>) -> Check {
    Check { name, applies: |_| true, judge }
}

/// The checks, in the order of the table's columns.
pub(crate) const CHECKS: [Check; 13] = [
    always("attach", attach),
    always("types", types),
    Check { name: "no-types", applies: lacks_types, judge: no_types },
    always("exec", exec),
    always("file", file),
    always("network", network),
    always("path", path),
    always("exact", exact),
    always("pids", pids),
    always("volume-paths", volume_paths),
    Check { name: "compat", applies: |guest| guest.compat, judge: compat },
    always("delivery", delivery),
    always("privilege", privilege),
];

/// Debian's 32-bit ARM kernels are built without types.
fn lacks_types(guest: &Guest) -> bool {
    guest.architecture == "armhf"
}

impl Run<'_> {
    fn truth(&self, workload: &str) -> Result<Truth> {
        let code = self.told.one(&format!("code-{workload}"));
        if code != "0" {
            let log = self.told.all(&format!("log-{workload}")).join("\n");
            return Err(format!("the workload ended with {code:?}: {log}").into());
        }
        let text = self.told.one(&format!("truth-{workload}"));
        Ok(serde_json::from_str(text).map_err(|e| format!("the truth of {workload}: {e}"))?)
    }

    fn expect(&self, truth: &Truth) -> Result {
        none(&differences(&self.records, truth))
    }

    /// Whether a line of the agent's log contains `text`.
    fn agent_said(&self, text: &str) -> bool {
        self.told.all("agent-log").iter().any(|line| line.contains(text))
    }

    /// Whether the kernel runs the probes compiled.
    pub(crate) fn is_jited(&self) -> bool {
        !self.agent_said("interprets the probes")
    }
}

fn none(faults: &[String]) -> Result {
    if faults.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = faults.iter().take(6).map(String::as_str).collect();
    Err(format!("{} differences:\n{}", faults.len(), shown.join("\n")).into())
}

fn attach(run: &Run<'_>) -> Result<String> {
    if run.agent_said("not attached") || !run.agent_said("5 hooks attached") {
        return Err("not every hook is attached".into());
    }
    let code = run.told.one("agent-code");
    if code != "0" {
        return Err(format!("the agent ended with {code}").into());
    }
    match run.told.one("dmesg") {
        "" => Ok(String::new()),
        complaint => Err(format!("the kernel complains: {complaint}").into()),
    }
}

fn types(run: &Run<'_>) -> Result<String> {
    let expected = match run.guest.types_bytes {
        Some(_) => format!("types of the kernel: /usr/lib/sysflow/btf/{}.btf", run.guest.release),
        None => "types of the kernel: /sys/kernel/btf/vmlinux".to_string(),
    };
    if !run.agent_said(&expected) {
        return Err(format!("the agent does not say {expected:?}").into());
    }
    Ok(run.guest.types_bytes.map_or(String::new(), |bytes| format!("{bytes} bytes")))
}

fn no_types(run: &Run<'_>) -> Result<String> {
    let (code, said) = (run.told.one("without-types-code"), run.told.all("without-types"));
    let names = |word: &str| said.iter().any(|line| line.contains(word));
    let wanted = format!("/usr/lib/sysflow/btf/{}.btf", run.guest.release);
    if code == "78" && names("CONFIG_DEBUG_INFO_BTF") && names(&wanted) {
        return Ok(String::new());
    }
    Err(format!("without types the agent ended with {code:?} and said: {}", said.join("\n")).into())
}

fn exec(run: &Run<'_>) -> Result<String> {
    let truth = run.truth("volume")?;
    run.expect(&Truth { processes: truth.processes.clone(), ..Truth::default() })?;
    Ok(format!("{} processes", truth.processes.len()))
}

fn file(run: &Run<'_>) -> Result<String> {
    let truth = run.truth("volume")?;
    run.expect(&Truth { files: truth.files.clone(), ..Truth::default() })?;
    Ok(format!("{} objects", truth.files.len()))
}

fn network(run: &Run<'_>) -> Result<String> {
    let truth = run.truth("volume")?;
    run.expect(&Truth { network: truth.network.clone(), ..Truth::default() })?;
    Ok(format!("{} peers", truth.network.len()))
}

fn path(run: &Run<'_>) -> Result<String> {
    let truth = run.truth("paths")?;
    none(&path_faults(&run.records, &truth, &run.summary))?;
    Ok(format!("{} paths, {} events", truth.files.len(), truth.events.len()))
}

/// Two threads on two processors share descriptors: not one call of theirs may be missing.
fn exact(run: &Run<'_>) -> Result<String> {
    let truth = run.truth("exact")?;
    run.expect(&Truth { files: truth.files, network: truth.network, ..Truth::default() })?;
    Ok(format!("{} calls", truth.calls.values().sum::<u64>()))
}

/// Process ids come round several times: each program keeps an identity of its own, and the
/// parent that started it.
fn pids(run: &Run<'_>) -> Result<String> {
    let code = run.told.one("code-pids");
    if code != "0" {
        let log = run.told.all("log-pids").join("\n");
        return Err(format!("the workload ended with {code:?}: {log}").into());
    }
    let spawners: Vec<Spawner> = serde_json::from_str(run.told.one("truth-pids"))?;
    let execs: Vec<&Value> =
        run.records.iter().filter(|record| text(record, "opflags") == "EXEC").collect();
    let (mut faults, mut identities, mut ids) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut programs = 0;
    for spawner in &spawners {
        for program in &spawner.programs {
            programs += 1;
            ids.insert(program.pid);
            let args = format!("--program {}", program.number);
            let found: Vec<_> =
                execs.iter().filter(|exec| text(exec, "proc.args") == args).collect();
            let [exec] = found.as_slice() else {
                faults.push(format!("{args}: {} records of its exec", found.len()));
                continue;
            };
            let pair = (number(exec, "proc.pid"), number(exec, "pproc.pid"));
            if pair != (Some(program.pid.into()), Some(spawner.pid.into())) {
                faults.push(format!("{args}: {program:?} of {}, but {pair:?}", spawner.pid));
            }
            if !identities.insert((pair.0, number(exec, "proc.createts"))) {
                faults.push(format!("{args}: an identity that another had before: {pair:?}"));
            }
        }
    }
    none(&faults)?;
    if programs < 3 * ids.len() {
        return Err(
            format!("{programs} programs had {} ids: they did not come round", ids.len()).into()
        );
    }
    Ok(format!("{programs} programs, {} ids", ids.len()))
}

/// Calls on two descriptors, of many messages, and on copies of descriptors.
fn volume_paths(run: &Run<'_>) -> Result<String> {
    let mut truth = run.truth("transfer")?;
    if run.guest.compat {
        truth.merge(run.truth("compat-transfer")?);
    }
    run.expect(&truth)?;
    Ok(format!("{} calls", truth.calls.values().sum::<u64>()))
}

fn compat(run: &Run<'_>) -> Result<String> {
    let truth = run.truth("compat-volume")?;
    run.expect(&truth)?;
    none(&path_faults(&run.records, &run.truth("compat-paths")?, &run.summary))?;
    Ok(format!("{} calls", truth.calls.values().sum::<u64>()))
}

fn delivery(run: &Run<'_>) -> Result<String> {
    let losses: Vec<String> = run
        .summary
        .ledger
        .iter()
        .filter(|((_, term), total)| term.is_loss() && **total > 0)
        .map(|((operation, term), total)| format!("{operation:?} {term:?} {total}"))
        .collect();
    none(&losses)?;
    if run.summary.frames == 0 || !run.summary.holes().is_empty() {
        return Err(format!("holes {:?}", run.summary.holes()).into());
    }
    let observed = run.summary.term(Term::Observed);
    if observed == 0 {
        return Err("the kernel's counters did not arrive".into());
    }
    Ok(format!("{} frames, {observed} operations observed", run.summary.frames))
}

/// Nothing is kept but CAP_BPF, and that only where the agent says why.
fn privilege(run: &Run<'_>) -> Result<String> {
    const BPF: u64 = 1 << 39;
    let held = u64::from_str_radix(run.told.one("capabilities"), 16)
        .map_err(|e| format!("capabilities {:?}: {e}", run.told.one("capabilities")))?;
    match (held, run.agent_said("it is kept")) {
        (0, false) => Ok("none".to_string()),
        (BPF, true) => Ok("CAP_BPF".to_string()),
        _ => Err(format!("the agent holds {held:016x}").into()),
    }
}
