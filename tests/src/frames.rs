//! Frames in a store, read with the codec, and frames made for a test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use codec::{
    Clock, Frame, FrameWriter, GenerationStart, Header, Interruption, ObjectState, Oid, Operation,
    Process, Record, StreamKey, Term,
};

use crate::Result;

/// All frame files below a folder, sorted.
///
/// # Errors
/// If a folder cannot be listed.
pub fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|ending| ending == "frame") {
                found.push(entry.path());
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What the frames of a store say together.
#[derive(Debug, Default)]
pub struct Summary {
    /// Frames.
    pub frames: u64,
    /// Bytes of all frames, headers and checksums included.
    pub bytes: u64,
    /// Records by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Sequences held of each stream (run tag, class).
    pub sequences: BTreeMap<([u8; 8], u8), Vec<u64>>,
    /// Latest ledger totals, summed over streams.
    pub ledger: BTreeMap<(Option<Operation>, Term), u64>,
    /// Runs that ended without a farewell, as later runs report them.
    pub interruptions: Vec<Interruption>,
    /// Paths of all files that were named, as bytes.
    pub paths: Vec<Vec<u8>>,
}

impl Summary {
    /// Reads all frames below a folder.
    ///
    /// # Errors
    /// If a file cannot be read or is not exactly one frame.
    pub fn of(folder: &Path) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut ledgers: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
        for path in find(folder)? {
            let bytes = std::fs::read(&path)?;
            let (frame, rest) =
                Frame::decode(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
            if !rest.is_empty() {
                return Err(format!("{}: bytes behind the frame", path.display()).into());
            }
            summary.frames += 1;
            summary.bytes += bytes.len() as u64;
            let key = frame.header.key;
            let stream = (key.run_tag, key.class);
            summary.sequences.entry(stream).or_default().push(key.sequence);
            summary.interruptions.extend(frame.header.interruption);
            let ledger = ledgers.entry(stream).or_default();
            for counter in &frame.header.ledger {
                ledger.insert((counter.operation, counter.term), counter.total);
            }
            for record in frame.records() {
                let record = record.map_err(|e| format!("{}: {e}", path.display()))?;
                *summary.records.entry(kind(&record)).or_default() += 1;
                if let Record::File(file) = record {
                    summary.paths.push(file.path.to_vec());
                }
            }
        }
        for (counter, total) in ledgers.into_values().flatten() {
            *summary.ledger.entry(counter).or_default() += total;
        }
        Ok(summary)
    }

    /// Records of all kinds.
    pub fn records_total(&self) -> u64 {
        self.records.values().sum()
    }

    /// The total of a term over all kinds of operations.
    pub fn term(&self, term: Term) -> u64 {
        self.ledger.iter().filter(|((_, t), _)| *t == term).map(|(_, total)| total).sum()
    }

    /// Kinds of operations whose terms do not add up to what was observed. A flow's counters do
    /// not tell which call read or wrote, so reads and receives count as one kind here, and
    /// writes and sends.
    pub fn unbalanced(&self) -> Vec<String> {
        let groups: Vec<Vec<Operation>> = Operation::ALL
            .into_iter()
            .filter_map(|operation| match operation {
                Operation::Read => Some(vec![operation, Operation::Receive]),
                Operation::Write => Some(vec![operation, Operation::Send]),
                Operation::Receive | Operation::Send => None,
                other => Some(vec![other]),
            })
            .collect();
        let sum = |group: &[Operation], wanted: &dyn Fn(Term) -> bool| -> u64 {
            let of_group = |operation: &Option<Operation>| {
                operation.is_some_and(|operation| group.contains(&operation))
            };
            self.ledger
                .iter()
                .filter(|((operation, term), _)| of_group(operation) && wanted(*term))
                .map(|(_, total)| total)
                .sum()
        };
        groups
            .iter()
            .filter_map(|group| {
                let observed = sum(group, &|term| term == Term::Observed);
                let told = sum(group, &|term| term != Term::Observed);
                let name = group.first()?.name();
                (observed != told).then(|| format!("{name}: observed {observed}, told {told}"))
            })
            .collect()
    }

    /// Streams that lack a frame before their last one, with the first one lacking.
    pub fn holes(&self) -> Vec<(([u8; 8], u8), u64)> {
        let hole = |sequences: &Vec<u64>| {
            let mut sorted = sequences.clone();
            sorted.sort_unstable();
            (0..).zip(sorted).find(|(expected, held)| expected != held).map(|(e, _)| e)
        };
        self.sequences.iter().filter_map(|(key, held)| Some((*key, hole(held)?))).collect()
    }
}

/// SysFlow's name for a record's kind.
fn kind(record: &Record<'_>) -> &'static str {
    match record {
        Record::Container(_) => "Container",
        Record::Process(_) => "Process",
        Record::File(_) => "File",
        Record::ProcessEvent(_) => "ProcessEvent",
        Record::NetworkFlow(_) => "NetworkFlow",
        Record::FileFlow(_) => "FileFlow",
        Record::FileEvent(_) => "FileEvent",
        Record::NetworkEvent(_) => "NetworkEvent",
        Record::ProcessFlow(_) => "ProcessFlow",
        Record::Summary(_) => "Summary",
        Record::Pod(_) => "Pod",
        Record::K8sEvent(_) => "K8sEvent",
    }
}

/// A well-formed frame of `agent_id` with one process in it, number `sequence` of its run;
/// number 0 begins the generation.
///
/// # Errors
/// Never for ids of permitted length.
pub fn sample(agent_id: &str, run_id: [u8; 16], sequence: u64) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    let mut writer = FrameWriter::new(&mut buffer)?;
    let start_ns = 1_000_000_000 + sequence;
    writer.push(&Record::Process(Process {
        state: ObjectState::Created,
        oid: Oid { start_ns, pid: 4242 },
        parent: None,
        time_ns: start_ns,
        exe: b"/usr/bin/sample",
        args: b"",
        uid: 0,
        gid: 0,
        user: b"root",
        group: b"root",
        tty: false,
        container: 0,
        entry: false,
        cwd: b"/",
        env: b"",
        flags: 0,
        argv0: b"",
        script: b"",
        mount_namespace: 0,
    }))?;
    let mut run_tag = [0; 8];
    run_tag.iter_mut().zip(run_id).for_each(|(tag, id)| *tag = id);
    let begins = sequence == 0;
    let header = Header {
        key: StreamKey { run_tag, class: 0, sequence },
        start: begins.then_some(GenerationStart {
            agent_id,
            boot_id: [7; 16],
            run_id,
            agent_version: "0.0.0",
            kernel: "6.0.0",
            machine: "x86_64",
        }),
        clock: begins.then_some(Clock {
            offset_ns: 1_700_000_000_000_000_000,
            uncertainty_ns: 1000,
            synchronized: false,
        }),
        ..Header::default()
    };
    Ok(writer.finish(&header)?.to_vec())
}
