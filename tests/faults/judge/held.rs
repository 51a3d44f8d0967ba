//! What the store holds, frame by frame: times, clocks, and what stands for many records.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use codec::{Class, Frame, Record, Subject};
use tests::Result;
use tests::frames;

/// A frame of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Its last record's time, boot clock, ns; 0 without records.
    pub(super) last_ns: u64,
    pub(super) generation: u32,
    /// Whether it begins its generation.
    pub(super) begins: bool,
}

/// What summaries of one subject stand for, in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Summarised {
    pub(super) records: u64,
    pub(super) writes: u64,
}

/// What the frames of a run say.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// By class, the frames by their sequence.
    pub(super) streams: [BTreeMap<u64, Held>; codec::CLASSES],
    /// Offsets from the boot clock to the wall clock that were told, ns.
    pub(super) offsets_ns: Vec<i64>,
    pub(super) summarised: HashMap<Subject, Summarised>,
}

impl Run {
    pub(super) fn stream(&self, class: Class) -> &BTreeMap<u64, Held> {
        let [urgent, volume] = &self.streams;
        if class == Class::Urgent { urgent } else { volume }
    }
}

/// The runs of a store, by their tags.
pub(super) fn runs(store: &Path) -> Result<HashMap<String, Run>> {
    let mut runs: HashMap<String, Run> = HashMap::new();
    for path in frames::find(store)? {
        let bytes = std::fs::read(&path)?;
        let failed = |error: codec::DecodeError| format!("{}: {error}", path.display());
        let (frame, _) = Frame::decode(&bytes).map_err(failed)?;
        let header = &frame.header;
        let tag: String = header.key.run_tag.iter().map(|byte| format!("{byte:02x}")).collect();
        let run = runs.entry(tag).or_default();
        let stream = run.streams.get_mut(usize::from(header.key.class)).ok_or("no such class")?;
        let told = Held {
            last_ns: header.last_ns,
            generation: header.generation,
            begins: header.start.is_some(),
        };
        stream.insert(header.key.sequence, told);
        run.offsets_ns.extend(header.clock.map(|clock| clock.offset_ns));
        for record in frame.records() {
            if let Record::Summary(summary) = record.map_err(failed)? {
                let of = run.summarised.entry(summary.subject).or_default();
                of.records += summary.records;
                of.writes += summary.volume.write_ops;
            }
        }
    }
    Ok(runs)
}
