//! A guest's second root: a small Debian, and in it suites of `tests/e2e` as they are, with the
//! collector beside the agent.
//!
//! The suites' programs are built against Debian's C library, because they are to have a loader
//! like programs of gateways; what they name by absolute path (workloads, scripts) lies in the
//! guest where it lies here. Packages are unpacked, never configured: no service starts.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::debian::Archive;
use crate::standard_library::{self, StandardLibrary};
use crate::targets::{self, Target};
use crate::workspace::{self, Workspace, root, say};
use crate::{Result, zig};

/// The release whose packages are unpacked, and its C library's version.
const RELEASE: &str = "bookworm";
const C_LIBRARY: &str = "2.36";

/// Suites that can run in a guest.
pub const SUITES: [&str; 6] = ["scenarios", "identity", "acts", "events", "flows", "servers"];
/// Suites whose workloads are written in Python.
const PYTHON_SUITES: [&str; 4] = ["identity", "acts", "events", "flows"];

/// What every suite needs: C library, shell, and the programs that workloads start.
const BASE: [&str; 25] = [
    "libc6",
    "libc-bin",
    "libgcc-s1",
    "libcrypt1",
    "dash",
    "busybox-static",
    "coreutils",
    "libacl1",
    "libattr1",
    "libgmp10",
    "libselinux1",
    "libpcre2-8-0",
    "util-linux",
    "mount",
    "libblkid1",
    "libmount1",
    "libsmartcols1",
    "libuuid1",
    "libcap-ng0",
    "libtinfo6",
    "libsystemd0",
    "libudev1",
    "zlib1g",
    "libssl3",
    "libexpat1",
];
const PYTHON: [&str; 5] = [
    "python3-minimal",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libffi8",
];
const WEB_SERVERS: [&str; 4] = ["apache2-bin", "libapr1", "libaprutil1", "nginx"];
/// Parts of packages that no program reads here.
const LEFT_OUT: [&str; 4] =
    ["usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/perl5"];

/// Users as every Debian has them.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
     www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
     nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// How the suites and the collector are built: quick to build and quick enough in an emulator,
/// and with unwinding, by which the test runner survives a failed test.
const PROFILE: [&str; 6] = [
    "profile.guest.inherits=\"dev\"",
    "profile.guest.opt-level=1",
    "profile.guest.debug=false",
    "profile.guest.strip=true",
    "profile.guest.incremental=false",
    "profile.guest.codegen-units=16",
];

/// Puts the release's packages, the collector and `suites` into the folder `place`.
///
/// # Errors
/// If a package cannot be had, or something does not build.
pub fn lay_out(place: &Path, architecture: &str, suites: &[&str]) -> Result {
    let archive = Archive::open(RELEASE, architecture)?;
    let mut packages = BASE.to_vec();
    if suites.iter().any(|suite| PYTHON_SUITES.contains(suite)) {
        packages.extend(PYTHON);
    }
    if suites.contains(&"servers") {
        packages.extend(WEB_SERVERS);
    }
    for package in packages {
        let unpacked = archive.unpack(package, None, &["./*"])?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg("--no-preserve=ownership").arg(unpacked.join(".")).arg(place);
        workspace::run(&mut copy)?;
    }
    for part in LEFT_OUT.map(|part| place.join(part)) {
        if part.exists() {
            std::fs::remove_dir_all(part)?;
        }
    }
    let etc = place.join("etc");
    for (name, text) in [("passwd", PASSWD), ("group", GROUP), ("hosts", HOSTS)] {
        std::fs::write(etc.join(name), text)?;
    }
    let python = place.join("usr/bin/python3");
    if python.exists() || python.is_symlink() {
        std::fs::remove_file(&python)?;
        symlink("python3.11", python)?;
    }
    let built = Suites::build(architecture, suites)?;
    copy(&built.collector, &place.join("usr/bin/sysflow-collector"))?;
    for (suite, program) in &built.suites {
        copy(program, &place.join("suites").join(suite))?;
    }
    for program in &built.workloads {
        copy(program, &in_guest(place, program))?;
    }
    for entry in std::fs::read_dir(root().join("tests/workloads"))? {
        let script = entry?.path();
        if script.extension().is_some_and(|ending| ending == "py" || ending == "sh") {
            copy(&script, &in_guest(place, &script))?;
        }
    }
    Ok(())
}

/// Where a file of this machine lies in the root `place`, by its own absolute path.
fn in_guest(place: &Path, path: &Path) -> PathBuf {
    place.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path) -> Result {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let copied = std::fs::copy(from, to);
    copied.map_err(|e| format!("copy {} to {}: {e}", from.display(), to.display()))?;
    Ok(())
}

/// What was built for a guest.
struct Suites {
    collector: PathBuf,
    suites: BTreeMap<String, PathBuf>,
    workloads: Vec<PathBuf>,
}

impl Suites {
    fn build(architecture: &str, suites: &[&str]) -> Result<Suites> {
        let target = targets::with_c_library(architecture)?;
        let names: Vec<&str> = suites.iter().flat_map(|suite| ["--test", suite]).collect();
        let arguments = [["-p", "tests"].as_slice(), &names].concat();
        let built = cargo(Workspace::Device, &target, &arguments)?;
        let collector = cargo(Workspace::Collector, &target, &[])?
            .into_iter()
            .find(|program| program.name == "sysflow-collector")
            .ok_or("cargo tells of no collector that it built")?;
        let (tests, binaries): (Vec<_>, Vec<_>) = built.into_iter().partition(|p| p.is_test);
        Ok(Suites {
            collector: collector.path,
            suites: tests.into_iter().map(|program| (program.name, program.path)).collect(),
            workloads: binaries.into_iter().map(|program| program.path).collect(),
        })
    }
}

/// A program that cargo built.
struct Program {
    name: String,
    path: PathBuf,
    is_test: bool,
}

/// Builds in a workspace for a target with Debian's C library.
fn cargo(workspace: Workspace, target: &Target, what: &[&str]) -> Result<Vec<Program>> {
    zig::install()?;
    let library = standard_library::find(&target.triple)?;
    let triple = format!("{}.{C_LIBRARY}", target.triple);
    say(&format!("building for {triple}: {} {}", workspace.name(), what.join(" ")));
    let mut command = workspace.cargo("zigbuild");
    command.args(["--quiet", "--locked", "--profile", "guest", "--target", &triple]);
    PROFILE.iter().for_each(|setting| {
        command.args(["--config", setting]);
    });
    command.args(what).arg("--message-format=json-render-diagnostics");
    // One folder, so that the standard library is built once.
    command.env("CARGO_TARGET_DIR", Workspace::Device.target().join("cross"));
    if let StandardLibrary::Source(folder) = &library {
        command.arg("-Zbuild-std=std,panic_unwind,test");
        command.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", folder);
    }
    for owner in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CFLAGS", "TARGET_CFLAGS"] {
        command.env_remove(owner);
    }
    zig::apply(&mut command)?;
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let shown = workspace::show(&command);
    let output = command.output().map_err(|e| format!("start {shown}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.lines().filter_map(program).collect())
}

/// The program that a line of cargo's tells of.
fn program(line: &str) -> Option<Program> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let (path, target) = (message.get("executable")?.as_str()?, message.get("target")?);
    let kinds = target.get("kind")?.as_array()?;
    Some(Program {
        name: target.get("name")?.as_str()?.to_string(),
        path: path.into(),
        is_test: kinds.iter().any(|kind| kind == "test"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_from_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"flows"},
            "executable":"/t/deps/flows-1"}"#;
        let found = program(line).unwrap();
        assert!(
            found.is_test && found.name == "flows" && found.path == Path::new("/t/deps/flows-1")
        );
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"codec"},
            "executable":null}"#;
        assert!(program(library).is_none());
    }

    #[test]
    fn paths_of_this_machine_lie_below_the_guests_root() {
        let place = in_guest(Path::new("/g/root"), Path::new("/src/tests/run.py"));
        assert_eq!(place, Path::new("/g/root/src/tests/run.py"));
    }
}
