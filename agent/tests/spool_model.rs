//! The spool against a model: random appends, batches, acknowledgements, refusals and
//! restarts, under a quota that bites, without and with the faults of devices.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod sample;

use model::{Model, Step, calm_step, step};
use proptest::prelude::*;

fn run(steps: &[Step]) {
    let directory = tempfile::tempdir().unwrap();
    let mut model = Model::open(&directory.path().join("spool"));
    for step in steps {
        model.step(step);
    }
    model.drain();
    assert_eq!(model.failures, 0);
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
        run(&steps);
    }

    #[test]
    fn crashes_and_damage_cost_what_they_hit_and_no_more(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        run(&steps);
    }
}
