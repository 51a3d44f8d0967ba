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
    setup::run()?;
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
