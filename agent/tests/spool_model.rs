//! The spool against a model: random appends, batches, acknowledgements, refusals and
//! restarts, under a quota that bites, without and with the faults of devices.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod sample;

use model::{Model, Step, calm_step, step};
use proptest::prelude::*;

/// Returns how many appends failed.
fn run(steps: &[Step]) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let mut model = Model::open(&directory.path().join("spool"));
    for step in steps {
        model.step(step);
    }
    model.drain();
    model.failures
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn every_record_is_delivered_once_refused_or_counted(
        steps in prop::collection::vec(calm_step(), 1..150)
    ) {
        prop_assert_eq!(run(&steps), 0);
    }

    #[test]
    fn crashes_and_damage_cost_what_they_hit_and_no_more(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        run(&steps);
    }
}
