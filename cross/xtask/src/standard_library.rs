//! Where the standard library of a target comes from: the toolchain has it ready, or its
//! source is here (rustup's `rust-src`, or Debian's) and cargo builds it with the rest.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::debian::Archive;
use crate::workspace::say;

/// Releases of Debian whose `rust-src` is looked at, in this order.
const SUITES: [&str; 4] = ["trixie-backports", "forky", "sid", "trixie"];

/// The standard library of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandardLibrary {
    /// Built already, in the toolchain.
    Installed,
    /// To be built: the folder `library` of rustc's source.
    Source(PathBuf),
}

/// Looks for the standard library of `triple`; nothing is asked of rustup, which might answer
/// by a download.
///
/// # Errors
/// If there is none: says what is missing and how to get it.
pub fn find(triple: &str) -> Result<StandardLibrary> {
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
    if sysroot.join("lib/rustlib").join(triple).join("lib").is_dir() {
        return Ok(StandardLibrary::Installed);
    }
    let component = sysroot.join("lib/rustlib/src/rust/library");
    if component.join("std/Cargo.toml").is_file() {
        return Ok(StandardLibrary::Source(component));
    }
    let version = ask(&["--version"])?;
    let release = version.split(' ').nth(1).unwrap_or_default();
    from_debian(release).map(StandardLibrary::Source).map_err(|why| {
        format!(
            "no standard library for {triple}: the toolchain {release} has none, and there is \
             no source to build one from ({why}); where rustup may download, run \
             `rustup target add {triple}` or `rustup component add rust-src`"
        )
        .into()
    })
}

fn from_debian(release: &str) -> Result<PathBuf> {
    let mut reasons = Vec::new();
    for suite in SUITES {
        let found = Archive::open(suite, "amd64").and_then(|archive| {
            let versions = archive.versions("rust-src")?;
            let is_it = |version: &&String| version.starts_with(&format!("{release}+"));
            let Some(version) = versions.iter().find(is_it) else {
                return Err(format!("{suite} has rust-src {}", versions.join(", ")).into());
            };
            say(&format!("source of the standard library: Debian's rust-src {version}"));
            let pattern = "./usr/src/rustc-*/library/*";
            let folder = archive.unpack("rust-src", Some(version), &[pattern])?;
            let source = folder.join(format!("usr/src/rustc-{release}/library"));
            Ok(settle(&source, version).unwrap_or_else(|error| {
                say(&format!("{error}: other checkouts will not give the same bytes"));
                source
            }))
        });
        match found {
            Ok(folder) if folder.join("std/Cargo.toml").is_file() => return Ok(folder),
            Ok(folder) => reasons.push(format!("{} holds no std", folder.display())),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons.join("; ").into())
}

/// Keeps the source in the user's cache, outside of the checkout: cargo makes the source's path
/// part of every crate's name in the binary, and two checkouts must give the same bytes.
fn settle(source: &Path, version: &str) -> Result<PathBuf> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => return Err("HOME is not set: no place to keep rust-src".into()),
    };
    let kept = cache.join("sysflow-edge/rust-src").join(version).join("library");
    if kept.is_dir() {
        return Ok(kept);
    }
    let parent = kept.parent().unwrap_or(&cache);
    std::fs::create_dir_all(parent).map_err(|e| format!("make {}: {e}", parent.display()))?;
    // Another checkout may do the same: what is half copied must never be seen.
    let half = parent.join(format!("library.{}", std::process::id()));
    crate::workspace::run(Command::new("cp").arg("-a").arg(source).arg(&half))?;
    if std::fs::rename(&half, &kept).is_err() && !kept.is_dir() {
        return Err(format!("{} cannot be put in place", kept.display()).into());
    }
    Ok(kept)
}

fn ask(arguments: &[&str]) -> Result<String> {
    let output = rustc().args(arguments).output().map_err(|e| format!("start rustc: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("rustc {}: {}", arguments.join(" "), said.trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_string())
}

/// The compiler that cargo would call here.
fn rustc() -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command.current_dir(crate::workspace::root());
    command
}

/// Cargo's flags for a build with this library.
pub fn arguments(library: &StandardLibrary) -> &'static [&'static str] {
    match library {
        StandardLibrary::Installed => &[],
        StandardLibrary::Source(_) => {
            &["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]
        }
    }
}

/// Cargo's flags and variables for a build with this library.
pub fn apply(library: &StandardLibrary, command: &mut Command) {
    command.args(arguments(library));
    if let StandardLibrary::Source(folder) = library {
        command.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", folder);
    }
}

/// The compiler's flags for a build with this library. One that is built here leaves out the
/// text of panics, a seventh of the agent: a panic ends it at once, and the service manager
/// starts it anew.
pub fn flags(library: &StandardLibrary) -> &'static [&'static str] {
    match library {
        StandardLibrary::Installed => &[],
        StandardLibrary::Source(_) => &["-Zunstable-options", "-Cpanic=immediate-abort"],
    }
}

/// The folder of the source, if it is built.
pub fn source(library: &StandardLibrary) -> Option<&Path> {
    match library {
        StandardLibrary::Installed => None,
        StandardLibrary::Source(folder) => Some(folder),
    }
}
