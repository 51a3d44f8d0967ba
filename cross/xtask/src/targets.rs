//! The targets of `cross/targets.toml`, read and checked.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Result;
use crate::workspace::root;

const FILE: &str = "cross/targets.toml";

/// One target, as its table has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The triple, which names the table.
    #[serde(skip)]
    pub triple: String,
    /// What compiles C and links.
    pub tools: Tools,
    /// Debian packages that bring the tools.
    pub packages: Vec<String>,
    /// The architecture's name in Debian.
    pub debian: String,
    /// What the Rust compiler is told besides.
    #[serde(default)]
    pub rust_flags: Vec<String>,
    /// What the C compiler is told besides.
    #[serde(default)]
    pub c_flags: Vec<String>,
    /// Whether kernels of such machines have run the agent, or it is only compiled.
    #[serde(default = "yes")]
    pub runs: bool,
    /// Size budget of the stripped agent, bytes.
    pub bytes_max: u64,
}

fn yes() -> bool {
    true
}

/// What compiles C and links.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Tools {
    /// `cargo zigbuild`, for static programs with musl.
    Zig,
    /// A cross gcc by its name.
    Gcc(String),
}

impl From<String> for Tools {
    fn from(name: String) -> Tools {
        if name == "zig" { Tools::Zig } else { Tools::Gcc(name) }
    }
}

impl Target {
    /// The triple as it stands in names of environment variables: lower case, underscores.
    pub fn variable(&self) -> String {
        self.triple.replace('-', "_")
    }

    /// Whether it is one of the gateways' own, for which `Cross.toml` says how `cross` builds.
    pub fn is_arm(&self) -> bool {
        ["arm64", "armhf"].contains(&self.debian.as_str())
    }

    /// Whether its programs bring their C library along.
    pub fn is_static(&self) -> bool {
        self.tools == Tools::Zig
    }
}

/// All targets, by triple.
///
/// # Errors
/// If the file cannot be read or holds anything but targets.
pub fn all() -> Result<BTreeMap<String, Target>> {
    let path = root().join(FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("read {FILE}: {e}"))?;
    let mut targets: BTreeMap<String, Target> =
        toml::from_str(&text).map_err(|e| format!("{FILE}: {e}"))?;
    for (triple, target) in &mut targets {
        target.triple.clone_from(triple);
    }
    Ok(targets)
}

/// The target with this triple.
///
/// # Errors
/// If there is none: names those that there are.
pub fn find(triple: &str) -> Result<Target> {
    let mut targets = all()?;
    let known: Vec<&str> = targets.keys().map(String::as_str).collect();
    let unknown = format!("{triple:?} is no target of {FILE}; these are: {}", known.join(", "));
    targets.remove(triple).ok_or_else(|| unknown.into())
}

/// The static target whose programs run on a Debian architecture.
///
/// # Errors
/// If no target serves it.
pub fn of_debian(architecture: &str) -> Result<Target> {
    all()?
        .into_values()
        .find(|target| target.debian == architecture && target.is_static())
        .ok_or_else(|| format!("no static target of {FILE} serves {architecture}").into())
}

/// The target whose programs run with the C library of a Debian architecture.
///
/// # Errors
/// If no target serves it.
pub fn with_c_library(architecture: &str) -> Result<Target> {
    all()?
        .into_values()
        .find(|target| target.debian == architecture && !target.is_static())
        .ok_or_else(|| format!("no target of {FILE} has the C library of {architecture}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_targets_is_well_formed() {
        let kernels = crate::kernels::all().unwrap();
        let guests: Vec<String> = kernels.into_values().map(|kernel| kernel.architecture).collect();
        for (triple, target) in all().unwrap() {
            assert_eq!(triple.contains("-musl"), target.is_static(), "{triple}");
            assert_eq!(target.packages.is_empty(), target.is_static(), "{triple}");
            let is_in_a_guest = guests.contains(&target.debian);
            assert_eq!(is_in_a_guest, target.runs, "{triple}: {}", target.debian);
        }
    }

    #[test]
    fn an_unknown_target_is_answered_with_those_that_there_are() {
        let text = find("m68k-unknown-linux-gnu").unwrap_err().to_string();
        assert!(text.contains("aarch64-unknown-linux-musl"), "{text}");
    }
}
