//! `cargo xtask cross TARGET`: the agent as an image builder gets it from `cross build`, with its
//! size held against the target's budget.
//!
//! `Cross.toml` says how; here is only what a machine may lack: the image, `cross` itself, a
//! standard library for the target, and a rustup that fetches nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::image::{self, Engine};
use crate::standard_library::{self, StandardLibrary};
use crate::targets::{self, Target};
use crate::workspace::{self, Workspace, root, say};
use crate::{Result, build};

const FILE: &str = "Cross.toml";
/// The version of `cross` that `Cross.toml` is checked with.
const VERSION: &str = "0.2.5";
/// Where the source of the standard library is in the container, and where the folder is that
/// cargo builds in.
const SOURCE: &str = "/rust-src/library";
const BUILT: &str = "/target";

/// Builds the agent for `triple` by `cross` and prints its size beside the budget.
///
/// # Errors
/// If something is missing that cannot be installed, it does not build, or it is larger than its
/// budget.
pub fn run(triple: &str, mirror: Option<&str>) -> Result {
    let target = targets::find(triple)?;
    if !target.is_arm() {
        return Err(
            format!("{FILE} has no {triple}: `cargo xtask build {triple}` builds it").into()
        );
    }
    if !is_there("rustup") {
        return Err("no rustup here, which `cross` asks for toolchains: `cargo xtask build` does \
                    without it"
            .into());
    }
    let library = standard_library::find(triple)?;
    let engine = Engine::find()?;
    image::make(engine, mirror)?;
    let cross = install()?;
    let folder = Workspace::Device.target().join("image");
    let mut command = Command::new(&cross);
    command.current_dir(root()).args(["build", "--release", "--locked", "--target", triple]);
    command.args(standard_library::arguments(&library));
    let mut path = vec![root().join("cross/guard")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let options = options(engine, &target, &library, &folder)?;
    let options: Vec<String> = options.iter().map(|option| quoted(option)).collect();
    command
        .env("PATH", std::env::join_paths(path)?)
        .env("RUSTUP_AUTO_INSTALL", "0")
        // Otherwise it would add the target or the source by rustup.
        .env("CROSS_CUSTOM_TOOLCHAIN", "1")
        .env("CROSS_CONTAINER_ENGINE", engine.program())
        .env("CROSS_CONTAINER_OPTS", options.join(" "));
    // It hands all of these on.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") && text != "CARGO_HOME" || text == "RUSTFLAGS" {
            command.env_remove(&name);
        }
    }
    command.env("CARGO_TARGET_DIR", &folder);
    if std::env::var_os("SOURCE_DATE_EPOCH").is_none()
        && let Some(time) = build::commit_time()
    {
        command.env("SOURCE_DATE_EPOCH", time);
    }
    say(&format!("cross {VERSION}: building for {triple}"));
    workspace::run(command.stdin(Stdio::null()))?;
    let built = folder.join(triple).join("release/sysflow-agent");
    build::judge(&target, &built)
}

/// Whether a shell would find a program of this name.
fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Installs `cross` below `target/`, unless it is there.
fn install() -> Result<PathBuf> {
    let folder = root().join("target/tools").join(format!("cross-{VERSION}"));
    let program = folder.join("bin/cross");
    if program.is_file() {
        return Ok(program);
    }
    say(&format!("installing cross {VERSION} into target/tools"));
    let built = folder.join("build");
    let mut install = Workspace::Tool.cargo("install");
    install.args(["--quiet", "--locked", "cross", "--version", VERSION, "--root"]).arg(&folder);
    workspace::run(install.env("CARGO_TARGET_DIR", &built).stdin(Stdio::null()))?;
    std::fs::remove_dir_all(built)?;
    Ok(program)
}

/// Options of the container: the engine's, and for a library that is built there its source, and
/// the flags of such a build in the place of those of `Cross.toml`.
fn options(
    engine: Engine,
    target: &Target,
    library: &StandardLibrary,
    folder: &Path,
) -> Result<Vec<String>> {
    let mut options = engine.options();
    let Some(source) = standard_library::source(library) else { return Ok(options) };
    options.push(format!("--volume={}:{SOURCE}:ro", source.display()));
    options.push(format!("--env=__CARGO_TESTS_ONLY_SRC_ROOT={SOURCE}"));
    options.push("--env=RUSTC_BOOTSTRAP=1".to_string());
    let mut flags = rust_flags(target);
    flags.extend(standard_library::flags(library).iter().map(|flag| flag.to_string()));
    if let Some(musl) = musl(target) {
        // What a library of Rust's own would bring along is Debian's here. Nothing unwinds, but
        // the library that would is asked for: it is empty.
        let empty = folder.join("empty");
        std::fs::create_dir_all(&empty)?;
        std::fs::write(empty.join("libunwind.a"), "!<arch>\n")?;
        let place = format!("/usr/lib/{musl}");
        flags.push("-Clink-self-contained=no".to_string());
        flags.push(format!("-Lnative={place}"));
        flags.push(format!("-Lnative={BUILT}/empty"));
        flags.push("-Zpre-link-arg=-nostartfiles".to_string());
        flags.extend(["crt1.o", "crti.o"].map(|name| format!("-Zpre-link-arg={place}/{name}")));
        flags.push(format!("-Clink-arg={place}/crtn.o"));
    }
    let variable = target.variable().to_uppercase();
    options.push(format!("--env=CARGO_TARGET_{variable}_RUSTFLAGS={}", flags.join(" ")));
    Ok(options)
}

/// A word as a shell reads it: `cross` splits its options as one does.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Debian's name of what a static target is compiled for.
fn musl(target: &Target) -> Option<&'static str> {
    let name = if target.debian == "arm64" { "aarch64-linux-musl" } else { "arm-linux-musleabihf" };
    target.is_static().then_some(name)
}

/// What the Rust compiler is told for a target.
fn rust_flags(target: &Target) -> Vec<String> {
    let mut flags = target.rust_flags.clone();
    flags.push(build::NO_TABLES.to_string());
    flags
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct CrossToml {
        build: Build,
        target: BTreeMap<String, Section>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Build {
        env: Environment,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        image: String,
        env: Environment,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Environment {
        passthrough: BTreeSet<String>,
    }

    /// What `Cross.toml` has to say of a target, by what `cargo xtask build` does.
    fn wanted(target: &Target) -> BTreeSet<String> {
        let gcc = targets::with_c_library(&target.debian).unwrap();
        let targets::Tools::Gcc(gcc) = gcc.tools else { panic!("{gcc:?}") };
        let mut c_flags: Vec<String> = build::C_FLAGS.map(String::from).to_vec();
        c_flags.extend(target.c_flags.iter().cloned());
        if target.is_static() && target.debian == "arm64" {
            c_flags.push("-mno-outline-atomics".to_string());
        }
        let compiler = musl(target).map_or(gcc.clone(), |musl| format!("{musl}-gcc"));
        let variable = target.variable();
        let upper = variable.to_uppercase();
        BTreeSet::from([
            format!("CC_{variable}={compiler}"),
            format!("CFLAGS_{variable}={}", c_flags.join(" ")),
            format!("CARGO_TARGET_{upper}_LINKER={gcc}"),
            format!("CARGO_TARGET_{upper}_RUSTFLAGS={}", rust_flags(target).join(" ")),
        ])
    }

    #[test]
    fn cross_builds_every_arm_target_as_xtask_does() {
        let text = std::fs::read_to_string(root().join(FILE)).unwrap();
        let mut cross: CrossToml = toml::from_str(&text).unwrap();
        assert_eq!(cross.build.env.passthrough, ["SOURCE_DATE_EPOCH".to_string()].into());
        for target in targets::all().unwrap().into_values().filter(Target::is_arm) {
            let section = cross.target.remove(&target.triple).expect(&target.triple);
            assert_eq!(section.image, image::NAME, "{}", target.triple);
            assert_eq!(section.env.passthrough, wanted(&target), "{}", target.triple);
        }
        assert!(cross.target.is_empty(), "{:?} are not in targets.toml", cross.target.keys());
    }

    #[test]
    fn a_build_of_nothing_named_is_the_agents() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&manifest).unwrap();
        let members = manifest["workspace"]["default-members"].as_array().unwrap();
        assert_eq!(members, &[toml::Value::from("agent")]);
    }

    #[test]
    fn only_a_library_that_is_built_needs_options() {
        let target = targets::find("aarch64-unknown-linux-musl").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let source = StandardLibrary::Source("/src/library".into());
        let options = options(Engine::Docker, &target, &source, folder.path()).unwrap();
        assert_eq!(options[0], "--volume=/src/library:/rust-src/library:ro");
        let flags = options.iter().find(|option| option.contains("_RUSTFLAGS=")).unwrap();
        assert!(flags.contains(" -Cpanic=immediate-abort "), "{flags}");
        assert!(flags.contains("=-Cforce-unwind-tables=no "), "{flags}");
        assert!(folder.path().join("empty/libunwind.a").exists());
        assert_eq!(quoted("a b'c"), r"'a b'\''c'");
        let installed = StandardLibrary::Installed;
        assert!(
            super::options(Engine::Docker, &target, &installed, folder.path()).unwrap().is_empty()
        );
    }

    #[test]
    fn the_guard_lists_toolchains_by_their_names_alone_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let rustup = folder.path().join("rustup");
        std::fs::write(&rustup, "#!/bin/sh\necho 'stable-x86_64 (active, default)'\necho 1.90\n")
            .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&rustup, mode).unwrap();
        let first = root().join("cross/guard");
        let mut path = vec![first.clone(), folder.path().to_path_buf()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let path = std::env::join_paths(path).unwrap();
        let guard = |words: &[&str]| {
            let mut command = Command::new(first.join("rustup"));
            command.args(words).env("PATH", &path).output().unwrap()
        };
        assert_eq!(guard(&["toolchain", "list"]).stdout, b"stable-x86_64\n1.90\n");
        for words in [["toolchain", "add", "stable"], ["target", "add", "x"]] {
            let refused = guard(&words);
            assert!(!refused.status.success() && refused.stdout.is_empty(), "{words:?}");
        }
    }
}
