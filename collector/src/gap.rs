//! What is not in the records, and how it is named.
//!
//! Missing ranges of frames and the tombstones of devices come in; what comes out says of each
//! range whether the device dropped it, or nobody knows.

use std::collections::BTreeMap;

use codec::{DropReason, Tombstone};
use serde_json::{Map, Value, json};

use crate::capture::Origin;
use crate::chain::Fault;
use crate::layout;

/// Something that is not in the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Frames that are not there.
    Missing { origin: Origin, first: u64, last: u64 },
    /// Frames that are not there because the device dropped them, as it says itself.
    Dropped { origin: Origin, first: u64, last: u64, tombstone: codec::Tombstone },
    /// A run that ended without saying so.
    Interruption { agent: String, reported_by: String, interruption: codec::Interruption },
    /// Frames that are not as their agent made them.
    Chain { origin: Origin, fault: Fault },
    /// A file that cannot be read.
    Unreadable { path: String, why: String },
}

/// Tombstones by the agent and run that tell of them, the run and class that they are of, their
/// reason and where their range begins: what is told later in the same place takes its place.
#[derive(Default)]
pub(crate) struct Graves(BTreeMap<Place, Tombstone>);

type Place = (String, String, [u8; 8], u8, DropReason, u64);

impl Graves {
    /// Takes note of what a frame of the run `teller` tells.
    pub(crate) fn note(&mut self, teller: &Origin, tombstones: &[Tombstone]) {
        for stone in tombstones {
            let (agent, run) = (teller.agent.clone(), teller.run.clone());
            let key = (agent, run, stone.run_tag, stone.class, stone.reason, stone.first);
            self.0.insert(key, *stone);
        }
    }

    /// Names the frames `first` to `last` of a stream, which are not there, range by range.
    pub(crate) fn name(&self, origin: &Origin, first: u64, last: u64, gaps: &mut Vec<Gap>) {
        let mut stones: Vec<&Tombstone> = self
            .0
            .iter()
            .filter(|((agent, ..), stone)| {
                *agent == origin.agent
                    && stone.class == origin.class
                    && layout::hex(&stone.run_tag) == origin.run
            })
            .map(|(_, stone)| stone)
            .collect();
        // Of those that begin alike the longest comes first, and what lies in it says nothing new.
        stones.sort_by_key(|stone| (stone.first, u64::MAX - stone.last));
        let mut next = Some(first);
        for stone in stones {
            let Some(unnamed) = next else { return };
            let (from, to) = (unnamed.max(stone.first), last.min(stone.last));
            if from > to {
                continue;
            }
            if from > unnamed {
                let origin = origin.clone();
                gaps.push(Gap::Missing { origin, first: unnamed, last: from - 1 });
            }
            let (origin, tombstone) = (origin.clone(), *stone);
            gaps.push(Gap::Dropped { origin, first: from, last: to, tombstone });
            next = to.checked_add(1).filter(|next| *next <= last);
        }
        if let Some(unnamed) = next {
            gaps.push(Gap::Missing { origin: origin.clone(), first: unnamed, last });
        }
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
            // `frames` and `records` are those of the whole tombstone.
            Gap::Dropped { origin, first, last, tombstone } => json!({
                "reason": "dropped_frames",
                "why": tombstone.reason.name(),
                "agent": origin.agent,
                "boot": origin.boot,
                "run": origin.run,
                "class": origin.class,
                "first": first,
                "last": last,
                "frames": tombstone.frames,
                "records": tombstone.records,
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
            }),
            Gap::Chain { origin, fault } => json!({
                "reason": fault.reason(),
                "agent": origin.agent,
                "boot": origin.boot,
                "run": origin.run,
                "class": origin.class,
                "generation": origin.generation,
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
            Gap::Dropped { origin, first, last, tombstone } => {
                let more = match (last - first + 1).saturating_sub(tombstone.frames) {
                    0 => String::new(),
                    more => format!("; {more} more are missing"),
                };
                format!(
                    "gap: frames {first} to {last} of run {}, class {} (agent {}) were dropped by \
                     the device ({}): {} frames with {} records{more}",
                    origin.run,
                    origin.class,
                    origin.agent,
                    tombstone.reason.name(),
                    tombstone.frames,
                    tombstone.records
                )
            }
            Gap::Interruption { agent, interruption, .. } => {
                let until = match interruption.to_ns {
                    0 => "the end of the boot".to_owned(),
                    to_ns => format!("{to_ns} ns"),
                };
                format!(
                    "gap: run {} (agent {agent}, boot {}) was cut: what was done from {} ns to \
                     {until} of the boot clock is not in any frame",
                    run_tag(&interruption.run_id),
                    layout::uuid(interruption.boot_id),
                    interruption.from_ns
                )
            }
            Gap::Chain { origin, fault } => format!(
                "chain: generation {} of run {}, class {} (agent {}) {}",
                origin.generation,
                origin.run,
                origin.class,
                origin.agent,
                fault.text()
            ),
            Gap::Unreadable { path, why } => format!("gap: {path}: {why}"),
        }
    }
}

/// The run tag in a run id, as streams are named by it.
pub(crate) fn run_tag(run_id: &[u8; 16]) -> String {
    layout::hex(run_id.first_chunk::<8>().map_or(&[], |tag| tag.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stone(class: u8, first: u64, last: u64) -> Tombstone {
        let (frames, reason) = (last - first + 1, DropReason::SpoolFull);
        Tombstone { run_tag: [1; 8], class, reason, first, last, frames, records: 10 * frames }
    }

    /// How the frames 5 to 20 of class 1 are named: range, and the records of those dropped.
    fn named(stones: &[Tombstone]) -> Vec<(u64, u64, Option<u64>)> {
        let mut graves = Graves::default();
        let agent = || "gw".to_owned();
        let teller = |agent| Origin { agent, run: "teller".to_owned(), ..Origin::default() };
        graves.note(&teller(agent()), stones);
        // Nobody explains what another lacks.
        graves.note(&teller("other".to_owned()), &[stone(1, 0, 30)]);
        let run = layout::hex(&[1; 8]);
        let origin = Origin { agent: agent(), run, class: 1, ..Origin::default() };
        let mut gaps = Vec::new();
        graves.name(&origin, 5, 20, &mut gaps);
        gaps.into_iter()
            .map(|gap| match gap {
                Gap::Missing { first, last, .. } => (first, last, None),
                Gap::Dropped { first, last, tombstone, .. } => {
                    (first, last, Some(tombstone.records))
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_missing_range_is_divided_between_the_device_and_nobody() {
        assert_eq!(named(&[]), [(5, 20, None)]);
        assert_eq!(named(&[stone(0, 5, 20)]), [(5, 20, None)]);
        assert_eq!(named(&[stone(1, 0, 30)]), [(5, 20, Some(310))]);
        assert_eq!(
            named(&[stone(1, 15, 17), stone(1, 0, 6)]),
            [(5, 6, Some(70)), (7, 14, None), (15, 17, Some(30)), (18, 20, None)]
        );
        // A range that grew takes the place of what was told before, and of those in it.
        assert_eq!(
            named(&[stone(1, 4, 8), stone(1, 4, 20), stone(1, 9, 12)]),
            [(5, 20, Some(170))]
        );
        let last = u64::MAX;
        let mut gaps = Vec::new();
        Graves::default().name(&Origin::default(), last, last, &mut gaps);
        assert!(matches!(gaps[..], [Gap::Missing { first, .. }] if first == last));
    }
}
