//! Campaigns: tests of `tests/` that run in a short form with all others, and in a long one by a
//! verb of their own. This builds what they need, and has one run.

use crate::workspace::{self, Workspace};
use crate::{Result, setup, suite};

/// A campaign, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// The test target.
    pub test: &'static str,
    /// Its options, with their numbers; where nothing is said, what the test itself takes.
    pub options: Vec<(&'static str, u64)>,
}

/// Installs what is missing, builds, and runs.
///
/// # Errors
/// If something does not build, or the campaign finds a fault.
pub fn run(campaign: &Campaign) -> Result {
    setup::for_tests()?;
    suite::build_agent()?;
    suite::build_collector()?;
    let mut command = Workspace::Device.cargo("test");
    command.args(["--quiet", "--locked", "-p", "tests", "--test", campaign.test, "--"]);
    for (name, value) in &campaign.options {
        command.arg(format!("--{name}")).arg(value.to_string());
    }
    suite::environment(&mut command)?;
    workspace::run(&mut command)
}

/// Events and seconds of the long form, where nobody says otherwise.
const ALLOCATIONS: [(&str, u64); 2] = [("events", 10_000_000), ("seconds", 60)];

/// Runs the long form of the agent's own test that its path of events takes no memory. `options`
/// say how many events, and how many seconds of a live load.
///
/// # Errors
/// If something does not build, or memory is taken.
pub fn allocations(options: &[(&'static str, u64)]) -> Result {
    setup::run()?;
    let mut command = Workspace::Device.cargo("test");
    command.args(["--quiet", "--locked", "-p", "agent", "--test", "allocations", "--"]);
    command.args(["--nocapture", "--test-threads", "1"]);
    for (name, default) in ALLOCATIONS {
        let asked = options.iter().rev().find(|(asked, _)| *asked == name);
        let value = asked.map_or(default, |(_, value)| *value);
        command.env(format!("SYSFLOW_{}", name.to_uppercase()), value.to_string());
    }
    workspace::run(&mut command)
}
