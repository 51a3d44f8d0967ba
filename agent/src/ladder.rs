//! The ladder: how much detail the agent gives up under strain, and when it takes it back. Measures
//! go in, changes of step come out, each to be told in a frame. Pure: it reads no clock.
//!
//! Each strain has a limit for each step. At the limit the next step is taken, at once, then every
//! five seconds; back it goes only after a time in which every strain stayed clearly below the
//! limit of the step before, one step at a time. So the ladder does not flutter at a limit. Where
//! the strain comes right back, the step was what spared it: the next time it is held twice as
//! long, up to sixteen times.

use codec::{Step, StepChange, Strain};

/// Steps below full detail.
const STEPS: usize = Step::ALL.len() - 1;
/// Steps down are at least so far apart, ns: what a step spares shows only then.
const DOWN_NS: u64 = 5_000_000_000;
/// A strain is over where it is below so many percent of its limit.
const CALM_PERCENT: u32 = 70;
/// A calm must last at most so many times as long as it is set.
const PATIENCE_MAX: u64 = 16;
/// Where budgets of a day begin to tell, step by step: percent of what an even spending had spent
/// by now.
const DAY_LIMITS: [u32; STEPS] = [110, 125, 150, 200, 300];

/// When steps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The last step that may be taken.
    pub step_max: Step,
    /// Share of the ring in use at which the first step is taken, percent; for each further one half
    /// of what is left.
    pub ring_percent: u32,
    /// Share of one processor that the agent uses, percent.
    pub processor_percent: u32,
    /// Share of the spool in use, in the same way, percent.
    pub spool_percent: u32,
    /// How long all must be calm before a step is taken back, ns.
    pub hold_ns: u64,
}

/// What was measured, by strain, as [`Limits`] and [`Strain`] have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures([u32; Strain::ALL.len()]);

impl Measures {
    /// Notes a measure; the largest since [`Measures::default`] counts.
    pub fn note(&mut self, strain: Strain, percent: u32) {
        let known = &mut self.0[strain as usize];
        *known = percent.max(*known);
    }

    fn get(&self, strain: Strain) -> u32 {
        self.0[strain as usize]
    }
}

/// Each further step is taken where half of the room is left that was left at the one before.
fn filling(first_percent: u32, index: usize) -> u32 {
    100 - (100_u32.saturating_sub(first_percent) >> index)
}

/// The ladder.
#[derive(Clone, Debug)]
pub struct Ladder {
    limits: Limits,
    step: Step,
    changed_ns: Option<u64>,
    calm_since_ns: Option<u64>,
    /// When a step was taken back last.
    eased_ns: Option<u64>,
    /// How many times as long as `hold_ns` the calm must last.
    patience: u64,
}

impl Ladder {
    /// At full detail.
    pub fn new(limits: Limits) -> Ladder {
        Ladder {
            limits,
            step: Step::Everything,
            changed_ns: None,
            calm_since_ns: None,
            eased_ns: None,
            patience: 1,
        }
    }

    /// The step that holds.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The limit of a strain at which the step after the `index`th is taken, percent.
    fn limit(&self, strain: Strain, index: usize) -> u32 {
        let index = index.min(STEPS - 1);
        match strain {
            Strain::Ring => filling(self.limits.ring_percent, index),
            Strain::Spool => filling(self.limits.spool_percent, index),
            Strain::Processor => self.limits.processor_percent,
            Strain::Link | Strain::Flash => DAY_LIMITS[index],
        }
    }

    /// The greatest strain, and how great it is in percent of the limit after the `index`th step.
    fn greatest(&self, measures: &Measures, index: usize) -> (Strain, u32) {
        let of_limit = |strain| {
            let limit = u64::from(self.limit(strain, index)).max(1);
            (u64::from(measures.get(strain)) * 100 / limit).min(u32::MAX.into()) as u32
        };
        let strains = Strain::ALL.map(|strain| (strain, of_limit(strain)));
        // Of equal ones the first.
        strains.into_iter().rev().max_by_key(|(_, percent)| *percent).unwrap_or((Strain::Ring, 0))
    }

    /// Takes note of what was measured since the last call, and takes a step if that is due.
    /// `now_ns` is on the boot clock.
    pub fn observe(&mut self, measures: &Measures, now_ns: u64) -> Option<StepChange> {
        let index = self.step as usize;
        let (strain, percent) = self.greatest(measures, index);
        let (before, calm) = self.greatest(measures, index.saturating_sub(1));
        if calm >= CALM_PERCENT {
            self.calm_since_ns = None;
        }
        let since_ns = |then: Option<u64>| then.map(|then| now_ns.saturating_sub(then));
        if percent >= 100 && self.step < self.limits.step_max {
            let due = since_ns(self.changed_ns).is_none_or(|past_ns| past_ns >= DOWN_NS);
            return due.then(|| {
                self.lose_or_gain_patience(since_ns(self.eased_ns));
                self.change(index + 1, strain, percent, now_ns)
            });
        }
        if calm >= CALM_PERCENT || self.step == Step::Everything {
            return None;
        }
        let calm_ns = now_ns - *self.calm_since_ns.get_or_insert(now_ns);
        (calm_ns >= self.hold_ns()).then(|| {
            self.calm_since_ns = Some(now_ns);
            self.eased_ns = Some(now_ns);
            self.change(index - 1, before, calm, now_ns)
        })
    }

    fn hold_ns(&self) -> u64 {
        self.limits.hold_ns.saturating_mul(self.patience)
    }

    /// Where a step that was taken back so long ago is to be taken again, what it spared was the
    /// strain: the next time waits longer. Not so where there was time between.
    fn lose_or_gain_patience(&mut self, eased_ago_ns: Option<u64>) {
        let came_back = eased_ago_ns.is_some_and(|ago_ns| ago_ns < 2 * self.hold_ns());
        self.patience = if came_back { (self.patience * 2).min(PATIENCE_MAX) } else { 1 };
    }

    fn change(&mut self, index: usize, strain: Strain, percent: u32, now_ns: u64) -> StepChange {
        self.step = Step::ALL[index];
        self.changed_ns = Some(now_ns);
        StepChange { at_ns: now_ns, step: self.step, strain, percent }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;
    const LIMITS: Limits = Limits {
        step_max: Step::Processes,
        ring_percent: 50,
        processor_percent: 40,
        spool_percent: 50,
        hold_ns: 30 * S,
    };

    fn measures(measured: &[(Strain, u32)]) -> Measures {
        let mut measures = Measures::default();
        measured.iter().for_each(|(strain, percent)| measures.note(*strain, *percent));
        measures
    }

    /// The steps that are taken where each second this is measured.
    fn steps(
        ladder: &mut Ladder,
        seconds: std::ops::Range<u64>,
        all: &Measures,
    ) -> Vec<(u64, Step)> {
        seconds
            .filter_map(|second| ladder.observe(all, second * S))
            .map(|change| (change.at_ns / S, change.step))
            .collect()
    }

    #[test]
    fn a_lasting_strain_leads_down_step_by_step_and_calm_back_up() {
        let mut ladder = Ladder::new(LIMITS);
        let busy = measures(&[(Strain::Processor, 40), (Strain::Ring, 49)]);
        let down = steps(&mut ladder, 0..25, &busy);
        let expected = [0, 5, 10, 15, 20].into_iter().zip(Step::ALL.into_iter().skip(1));
        assert_eq!(down, expected.collect::<Vec<_>>());
        // Neither strained nor calm: nothing happens.
        assert_eq!(steps(&mut ladder, 25..500, &measures(&[(Strain::Processor, 30)])), []);
        let up = steps(&mut ladder, 500..700, &measures(&[(Strain::Processor, 27)]));
        let expected =
            [530, 560, 590, 620, 650].into_iter().zip(Step::ALL.into_iter().rev().skip(1));
        assert_eq!(up, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_spool_leads_down_as_far_as_it_is_full() {
        for (percent, step) in [
            (49, Step::Everything),
            (50, Step::Summaries),
            (75, Step::Shares),
            (88, Step::Totals),
            (94, Step::Flows),
            (97, Step::Processes),
        ] {
            let mut ladder = Ladder::new(LIMITS);
            steps(&mut ladder, 0..100, &measures(&[(Strain::Spool, percent)]));
            assert_eq!(ladder.step(), step);
        }
    }

    #[test]
    fn a_strain_that_comes_right_back_is_met_with_patience() {
        let mut ladder = Ladder::new(LIMITS);
        let flood = measures(&[(Strain::Processor, 90)]);
        let mut taken = 0;
        for second in 0..3_600 {
            // The first step is enough against it.
            let spared = ladder.step() == Step::Everything;
            let now = if spared { flood } else { Measures::default() };
            let change = ladder.observe(&now, second * S);
            taken += u32::from(change.is_some_and(|change| change.step == Step::Summaries));
        }
        // After 30, 60, 120, 240, and then 480 seconds each.
        assert_eq!(taken, 11);
        steps(&mut ladder, 3_600..6_000, &Measures::default());
        assert!(ladder.observe(&flood, 6_000 * S).is_some());
        assert_eq!(
            steps(&mut ladder, 6_001..6_100, &Measures::default()),
            [(6_031, Step::Everything)]
        );
    }

    #[test]
    fn a_change_names_the_greatest_strain() {
        let mut ladder = Ladder::new(LIMITS);
        let all = measures(&[(Strain::Ring, 90), (Strain::Link, 111), (Strain::Processor, 84)]);
        let change = ladder.observe(&all, 7).unwrap();
        let expected =
            StepChange { at_ns: 7, step: Step::Summaries, strain: Strain::Processor, percent: 210 };
        assert_eq!(change, expected);
    }

    #[test]
    fn the_last_step_allowed_is_not_passed() {
        let limits = Limits { step_max: Step::Everything, ..LIMITS };
        let all = measures(&[(Strain::Ring, 100)]);
        assert_eq!(steps(&mut Ladder::new(limits), 0..100, &all), []);
        let limits = Limits { step_max: Step::Shares, ..LIMITS };
        assert_eq!(steps(&mut Ladder::new(limits), 0..100, &all).len(), 2);
    }

    proptest! {
        /// Whatever is measured: one step at a time, down at most every 5 s, back not before the
        /// hold is over, and at the end of a long calm all is told again.
        #[test]
        fn steps_keep_their_distance(
            seconds in proptest::collection::vec((0..5_usize, 0..400_u32), 0..300)
        ) {
            let mut ladder = Ladder::new(LIMITS);
            let (mut step, mut at_ns) = (Step::Everything, None);
            for (second, (strain, percent)) in seconds.iter().enumerate() {
                let now_ns = second as u64 * S;
                let all = measures(&[(Strain::ALL[*strain], *percent)]);
                if let Some(change) = ladder.observe(&all, now_ns) {
                    let past_ns = at_ns.map_or(u64::MAX, |at_ns| now_ns - at_ns);
                    if change.step > step {
                        prop_assert!(change.percent >= 100 && past_ns >= DOWN_NS);
                    } else {
                        prop_assert!(change.percent < CALM_PERCENT && past_ns >= LIMITS.hold_ns);
                    }
                    prop_assert_eq!((change.step as usize).abs_diff(step as usize), 1);
                    (step, at_ns) = (change.step, Some(now_ns));
                }
            }
            let calm = Measures::default();
            let end = seconds.len() as u64;
            let enough = STEPS as u64 * PATIENCE_MAX * LIMITS.hold_ns / S + 10;
            steps(&mut ladder, end..end + enough, &calm);
            prop_assert_eq!(ladder.step(), Step::Everything);
        }
    }
}
