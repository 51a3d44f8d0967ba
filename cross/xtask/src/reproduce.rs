//! `cargo xtask reproduce [TARGET]...`: whether two directories give the same bytes.
//!
//! The agent is built here and in a copy of the tree's files in another directory, whose path
//! differs in length too, and the two binaries are compared. Same here means: one user, one
//! toolchain, one machine; the standard library's source lies in the user's cache, because cargo
//! hashes its path into every crate.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::{self, root, say};
use crate::{Result, build, setup, targets};

/// The target whose builds every test run compares: the one that the guests need anyway.
pub const ALWAYS: &str = "aarch64-unknown-linux-musl";

/// Compares the builds for these targets, or for all of them.
///
/// # Errors
/// If a target is unknown, a build fails, or two builds differ.
pub fn run(triples: &[String]) -> Result {
    let triples: Vec<String> = match triples {
        [] => targets::all()?.into_keys().collect(),
        named => named.to_vec(),
    };
    for triple in &triples {
        targets::find(triple)?;
    }
    setup::run()?;
    run_in(&Copy::new()?, &triples)
}

/// Compares the builds for these targets with those in a copy.
///
/// # Errors
/// If a target is unknown, a build fails, or two builds differ.
pub fn run_in(copy: &Copy, triples: &[String]) -> Result {
    let mut differing = Vec::new();
    for triple in triples {
        match copy.compare(triple)? {
            Outcome::Same { bytes } => {
                println!("{triple}: {} bytes, alike in two directories", build::grouped(bytes));
            }
            Outcome::Different { at } => {
                println!("{triple}: differs from byte {at} on");
                differing.push(triple.as_str());
            }
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    Err(format!("two directories gave different agents for {}", differing.join(", ")).into())
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Same { bytes: u64 },
    Different { at: usize },
}

/// A copy of the tree's files, tracked or new, without history: gone when dropped.
#[derive(Debug)]
pub struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    /// Makes it.
    ///
    /// # Errors
    /// If this is no checkout, or a file cannot be copied.
    pub fn new() -> Result<Copy> {
        let folder = tempfile::Builder::new().prefix("sysflow-edge-somewhere-else-").tempdir()?;
        for name in workspace::files()? {
            let (from, to) = (root().join(&name), folder.path().join(name));
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::copy(&from, &to).map_err(|e| format!("copy {}: {e}", from.display()))?;
        }
        Ok(Copy { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Builds the agent in it for a target; returns where it is.
    ///
    /// # Errors
    /// If it does not build.
    pub fn build(&self, triple: &str) -> Result<PathBuf> {
        say(&format!("the same again in {}", self.folder.path().display()));
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(["xtask", "build", triple]).current_dir(self.folder.path());
        command.env_remove("CARGO_TARGET_DIR").env("RUSTUP_AUTO_INSTALL", "0");
        if let Some(time) = build::commit_time() {
            // The copy has no history to take it from.
            command.env("SOURCE_DATE_EPOCH", time);
        }
        workspace::run(&mut command)?;
        let built = self.folder.path().join("target/cross").join(triple);
        Ok(built.join("release/sysflow-agent"))
    }

    fn compare(&self, triple: &str) -> Result<Outcome> {
        let here = build::agent(&targets::find(triple)?)?.path;
        let there = self.build(triple)?;
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        Ok(difference(&read(&here)?, &read(&there)?))
    }
}

fn difference(one: &[u8], other: &[u8]) -> Outcome {
    let at = one.iter().zip(other).position(|(a, b)| a != b);
    match at {
        Some(at) => Outcome::Different { at },
        None if one.len() != other.len() => Outcome::Different { at: one.len().min(other.len()) },
        None => Outcome::Same { bytes: one.len() as u64 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_even_where_one_file_only_goes_on() {
        assert_eq!(difference(b"abc", b"abc"), Outcome::Same { bytes: 3 });
        assert_eq!(difference(b"abc", b"axc"), Outcome::Different { at: 1 });
        assert_eq!(difference(b"abc", b"abcd"), Outcome::Different { at: 3 });
    }
}
