//! Runs that were cut short, as later ones tell.
//!
//! A run tells of the one before it, and notes that it is the latest itself once that is durable. One
//! that is cut before is not known to the next, which tells of the same run again: where two tell of
//! one, the earlier of them was cut, too, unless it said farewell.

use std::collections::BTreeMap;

use codec::{Header, Interruption};

use crate::capture::Origin;
use crate::gap::{Gap, run_tag};

/// By agent and run that was cut, those that tell of it by their run ids.
#[derive(Debug, Default)]
pub(crate) struct Cuts(BTreeMap<(String, [u8; 16]), BTreeMap<[u8; 16], Teller>>);

/// A run that tells of one that was cut.
#[derive(Clone, Copy, Debug)]
struct Teller {
    run_id: [u8; 16],
    boot_id: [u8; 16],
    /// How many told of the same run before it appeared.
    place: usize,
    /// When it began to watch, boot clock, ns.
    begins_ns: u64,
    interruption: Interruption,
}

impl Cuts {
    /// Takes note of what a frame tells.
    pub(crate) fn note(&mut self, origin: &Origin, header: &Header<'_>) {
        let (Some(interruption), Some(start)) = (header.interruption, &header.start) else {
            return;
        };
        let (run_id, boot_id, begins_ns) = (start.run_id, start.boot_id, header.first_ns);
        let tellers = self.0.entry((origin.agent.clone(), interruption.run_id)).or_default();
        let place = tellers.len();
        let teller = Teller { run_id, boot_id, place, begins_ns, interruption };
        let known = tellers.entry(run_id).or_insert(teller);
        known.begins_ns = known.begins_ns.min(begins_ns);
    }

    /// What is missing of runs that were cut, those included that told of one and were cut themselves;
    /// `is_closed` says which runs of an agent said farewell.
    pub(crate) fn gaps(&self, is_closed: impl Fn(&str, &[u8; 16]) -> bool) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for ((agent, _), tellers) in &self.0 {
            // Of one boot by its clock; boots as they appear, since they share no clock but the wall's.
            let mut boots = BTreeMap::new();
            for teller in tellers.values() {
                let place = boots.entry(teller.boot_id).or_insert(teller.place);
                *place = teller.place.min(*place);
            }
            let mut tellers: Vec<&Teller> = tellers.values().collect();
            tellers.sort_by_key(|teller| (boots.get(&teller.boot_id), teller.begins_ns));
            let mut push = |interruption, teller: &Teller| {
                gaps.push(Gap::Interruption {
                    agent: agent.clone(),
                    reported_by: run_tag(&teller.run_id),
                    interruption,
                });
            };
            if let Some(first) = tellers.first() {
                push(first.interruption, first);
            }
            for pair in tellers.windows(2) {
                let [one, next] = pair else { continue };
                let is_told = self.0.contains_key(&(agent.clone(), one.run_id));
                if !is_told && !is_closed(agent, &one.run_id) {
                    push(one.cut_before(next), next);
                }
            }
        }
        gaps
    }
}

impl Teller {
    /// The interruption of this one, of which `next` does not know: from when it watched until that
    /// one did.
    fn cut_before(&self, next: &Teller) -> Interruption {
        Interruption {
            boot_id: self.boot_id,
            run_id: self.run_id,
            from_ns: self.begins_ns,
            to_ns: if next.boot_id == self.boot_id { next.begins_ns } else { 0 },
            operations_at_least: 0,
        }
    }
}
