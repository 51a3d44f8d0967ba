//! The C compiler and linker for musl targets: zig and cargo-zigbuild, from PyPI into an
//! environment of their own below `target/`, caches included.

use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::setup;
use crate::workspace::root;

/// The versions that builds are checked with.
const PACKAGES: [&str; 2] = ["cargo-zigbuild==0.24.0", ZIG];
const ZIG: &str = "ziglang==0.17.1";

fn folder() -> PathBuf {
    root().join("target/zig")
}

/// Installs both unless they are there.
///
/// # Errors
/// If they cannot be installed.
pub fn install() -> Result {
    setup::python_environment(&folder().join("venv"), &PACKAGES)
}

/// The version of zig.
pub fn version() -> &'static str {
    ZIG.rsplit('=').next().unwrap_or_default()
}

/// The folder in which zig has its licence and the source of its libraries.
///
/// # Errors
/// If it is not installed.
pub fn libraries() -> Result<PathBuf> {
    let environment = folder().join("venv/lib");
    let entries = std::fs::read_dir(&environment)
        .map_err(|e| format!("{}: {e}: zig is not installed", environment.display()))?;
    for entry in entries {
        let found = entry?.path().join("site-packages/ziglang");
        if found.is_dir() {
            return Ok(found);
        }
    }
    Err(format!("{}: no ziglang in it", environment.display()).into())
}

/// Lets a command find both, and keeps what they cache below `target/`.
///
/// # Errors
/// If the search path of this process cannot be extended.
pub fn apply(command: &mut Command) -> Result {
    let mut path = vec![folder().join("venv/bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    command
        .env("PATH", std::env::join_paths(path)?)
        .env("ZIG_GLOBAL_CACHE_DIR", folder().join("cache"))
        .env("CARGO_ZIGBUILD_CACHE_DIR", folder().join("wrappers"));
    Ok(())
}
