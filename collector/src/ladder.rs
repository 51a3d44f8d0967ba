//! How much detail a run gave up under strain: the changes of step that its frames tell, by time.
//! A change is told again in each generation, so that frames that are missing hide at most what
//! lay between.

use std::collections::BTreeMap;

use codec::{Step, StepChange};
use serde_json::{Value, json};

/// The changes of one run, by the boot clock, ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ladder(BTreeMap<u64, StepChange>);

/// An interval of one step below full detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stay {
    change: StepChange,
    /// None: it held when the last frame was made.
    to_ns: Option<u64>,
}

impl Ladder {
    /// Takes note of what a frame tells.
    pub(crate) fn note(&mut self, changes: &[StepChange]) {
        self.0.extend(changes.iter().map(|change| (change.at_ns, *change)));
    }

    fn stays(&self) -> impl Iterator<Item = Stay> {
        let ends = self.0.keys().skip(1).copied().map(Some).chain([None]);
        let stays =
            self.0.values().zip(ends).map(|(change, to_ns)| Stay { change: *change, to_ns });
        stays.filter(|stay| stay.change.step != Step::Everything)
    }

    /// A line for each interval below full detail; `end_ns` is when the run ended at the latest, if
    /// that is known.
    pub(crate) fn lines(&self, end_ns: Option<u64>) -> impl Iterator<Item = String> {
        self.stays().map(move |Stay { change, to_ns }| {
            let until = match to_ns.or(end_ns) {
                Some(to_ns) => format!("to {to_ns} ns"),
                None => "on".to_owned(),
            };
            let StepChange { at_ns, step, strain, percent } = change;
            format!(
                "  ladder: step {} from {at_ns} ns {until} of the boot clock ({} at {percent} % of \
                 its limit)",
                step.name(),
                strain.name()
            )
        })
    }

    /// The same for JSON.
    pub(crate) fn json(&self, end_ns: Option<u64>) -> Value {
        let stays = self.stays().map(|Stay { change, to_ns }| {
            json!({
                "step": change.step.name(),
                "from_ns": change.at_ns,
                "to_ns": to_ns.or(end_ns),
                "strain": change.strain.name(),
                "percent": change.percent,
            })
        });
        stays.collect()
    }
}

#[cfg(test)]
mod tests {
    use codec::Strain;

    use super::*;

    #[test]
    fn stays_are_told_however_frames_come() {
        let change = |at_ns, step| StepChange { at_ns, step, strain: Strain::Ring, percent: 120 };
        let down = change(5, Step::Summaries);
        let mut ladder = Ladder::default();
        ladder.note(&[change(9, Step::Shares), change(12, Step::Summaries)]);
        ladder.note(&[down]);
        ladder.note(&[down, change(20, Step::Everything)]);
        let told = |ladder: &Ladder, end| {
            let stays = ladder.json(end);
            let stays = stays.as_array().unwrap().iter();
            let told =
                stays.map(|stay| format!("{} {} {}", stay["step"], stay["from_ns"], stay["to_ns"]));
            told.collect::<Vec<_>>()
        };
        let three = ["\"summaries\" 5 9", "\"shares\" 9 12", "\"summaries\" 12 20"];
        assert_eq!(told(&ladder, Some(90)), three);
        ladder.note(&[change(30, Step::Totals)]);
        assert_eq!(told(&ladder, None)[3], "\"totals\" 30 null");
        assert_eq!(told(&ladder, Some(90))[3], "\"totals\" 30 90");
        assert_eq!(ladder.lines(None).count(), 4);
    }
}
