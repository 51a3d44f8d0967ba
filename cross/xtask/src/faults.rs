//! `cargo xtask faults`: builds what the randomised fault runs of `tests/faults` need, and has
//! them run.

use crate::workspace::{self, Workspace};
use crate::{Result, setup, suite};

/// How many runs, and from which seed; where nothing is said, what the runs themselves take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Number of runs.
    pub runs: Option<u64>,
    /// Seed of the first; those after it follow.
    pub seed: Option<u64>,
}

/// Installs what is missing, builds, and does the runs.
///
/// # Errors
/// If something does not build, or a run fails.
pub fn run(options: &Options) -> Result {
    setup::run()?;
    suite::build_agent()?;
    suite::build_collector()?;
    let mut command = Workspace::Device.cargo("test");
    command.args(["--quiet", "--locked", "-p", "tests", "--test", "faults", "--"]);
    for (name, value) in [("--runs", options.runs), ("--seed", options.seed)] {
        if let Some(value) = value {
            command.arg(name).arg(value.to_string());
        }
    }
    suite::environment(&mut command)?;
    workspace::run(&mut command)
}
