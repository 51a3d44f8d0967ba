//! The kernels of `tests/kernels.toml`, and their files out of Debian's packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::Result;
use crate::debian::Archive;
use crate::workspace::{self, root};

const FILE: &str = "tests/kernels.toml";

/// Modules of the guest's network card, in the order in which they are loaded. A kernel that
/// has one built in lacks its file.
const MODULES: [&str; 9] = [
    "virtio",
    "virtio_ring",
    "virtio_mmio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// One guest's kernel, as its table has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Debian's name of the architecture.
    pub architecture: String,
    /// The release that has the package.
    pub suite: String,
    /// The package.
    pub package: String,
    /// Where the agent finds the kernel's types.
    pub types: Types,
    /// A 32-bit architecture whose programs the guest runs too.
    pub compat: Option<String>,
    /// What `net.core.bpf_jit_enable` is set to; none: it is left as it is.
    pub jit: Option<bool>,
    /// Suites of `tests/e2e` that run in the guest too, on a userland of its own.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Whether `cargo xtask test` runs this guest.
    #[serde(default)]
    pub always: bool,
}

/// Where the agent finds the kernel's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Types {
    /// In the kernel.
    Kernel,
    /// In a minimised file.
    File,
}

/// A kernel's files.
#[derive(Debug)]
pub struct Files {
    /// What the guest boots.
    pub image: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
    /// Modules in the order in which they are loaded, packed or not.
    pub modules: Vec<PathBuf>,
}

/// All guests by name.
///
/// # Errors
/// If the file cannot be read or holds anything but kernels.
pub fn all() -> Result<BTreeMap<String, Kernel>> {
    let text = std::fs::read_to_string(root().join(FILE)).map_err(|e| format!("{FILE}: {e}"))?;
    Ok(toml::from_str(&text).map_err(|e| format!("{FILE}: {e}"))?)
}

impl Kernel {
    /// Fetches the package and finds its files.
    ///
    /// # Errors
    /// If the mirror does not have it, or it is no kernel.
    pub fn files(&self) -> Result<Files> {
        let archive = Archive::open(&self.suite, &self.architecture)?;
        let patterns = [
            "./boot/vmlinuz-*",
            "./lib/modules/*/kernel/drivers/virtio/*",
            "./lib/modules/*/kernel/drivers/net/*failover.ko*",
            "./lib/modules/*/kernel/drivers/net/virtio_net.ko*",
            "./lib/modules/*/kernel/net/core/failover.ko*",
        ];
        let folder = archive.unpack(&self.package, None, &patterns).map_err(|e| {
            format!("{e} (if the mirror has gone on, name its present kernel in {FILE})")
        })?;
        let image = list(&folder.join("boot"))?.into_iter().next().ok_or("no kernel in boot/")?;
        let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let release = name.trim_start_matches("vmlinuz-").to_string();
        let modules = modules(&folder.join("lib/modules").join(&release).join("kernel"))?;
        Ok(Files { image, release, modules })
    }
}

/// The modules among a kernel's that the guest loads, in order.
fn modules(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in list(&folder)? {
            if path.is_dir() { folders.push(path) } else { all.push(path) }
        }
    }
    let named = |name: &&'static str| {
        let is_it = |path: &&PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.split('.').next() == Some(*name)
        };
        all.iter().find(is_it).cloned()
    };
    Ok(MODULES.iter().filter_map(named).collect())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| format!("list {}: {e}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}

/// Puts a module, unpacked, into a folder; returns its file name there.
///
/// # Errors
/// If it cannot be copied or unpacked.
pub fn place_module(module: &Path, folder: &Path) -> Result<String> {
    let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let target = folder.join(&name);
    std::fs::copy(module, &target).map_err(|e| format!("copy {}: {e}", module.display()))?;
    if let Some(plain) = name.strip_suffix(".xz") {
        workspace::run(Command::new("xz").args(["--decompress", "--force"]).arg(&target))?;
        return Ok(plain.to_string());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_kernels_is_well_formed() {
        let kernels = all().unwrap();
        for (name, kernel) in &kernels {
            assert!(name.starts_with(&kernel.architecture), "{name}: {}", kernel.architecture);
            assert!(crate::targets::of_debian(&kernel.architecture).is_ok(), "{name}");
            for suite in &kernel.suites {
                assert!(crate::userland::SUITES.contains(&suite.as_str()), "{name}: {suite}");
            }
        }
        let always: Vec<&str> = kernels
            .values()
            .filter(|kernel| kernel.always)
            .map(|kernel| kernel.architecture.as_str())
            .collect();
        assert!(always.contains(&"arm64") && always.contains(&"armhf"), "{always:?}");
    }
}
