//! The C compiler and linker for musl targets: zig and cargo-zigbuild, from PyPI into an
//! environment of their own below `target/`, caches included.

use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::setup;
use crate::workspace::root;

/// The versions that builds are checked with.
const PACKAGES: [&str; 2] = ["cargo-zigbuild==0.24.0", "ziglang==0.17.1"];

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
