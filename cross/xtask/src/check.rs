//! `cargo xtask check`: what can be said of the tree without running it.

use crate::workspace::{self, Workspace, say};
use crate::{Result, setup};

/// Checks formatting, lints, documentation and the rules of the tree, in this order, in all
/// three workspaces.
///
/// # Errors
/// The first check that fails; its own output says what and where.
pub fn run() -> Result {
    setup::run()?;
    for place in Workspace::ALL {
        say(&format!("formatting of {}", place.name()));
        workspace::run(place.cargo("fmt").args(["--all", "--", "--check"]))?;
    }
    for place in Workspace::ALL {
        say(&format!("lints of {}", place.name()));
        workspace::run(
            place
                .cargo("clippy")
                .args(["--quiet", "--locked", "--workspace", "--all-targets"])
                .args(["--", "-D", "warnings"]),
        )?;
    }
    for place in Workspace::ALL {
        say(&format!("documentation of {}", place.name()));
        workspace::run(
            place
                .cargo("doc")
                .args(["--quiet", "--locked", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )?;
    }
    say("rules of the tree");
    workspace::run(
        Workspace::Device
            .cargo("test")
            .args(["--quiet", "--locked", "-p", "tests", "--test", "tidy"]),
    )?;
    say("all checks passed");
    Ok(())
}
