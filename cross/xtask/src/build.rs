//! `cargo xtask build TARGET`: the agent for a device, from this machine, with its size held
//! against the target's budget.
//!
//! Builds are reproducible: no path of the checkout and no time but that of the last commit ends
//! in the binary, so that two checkouts of one commit give the same bytes. `reproduce` proves it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::parts::{Crate, Crates};
use crate::setup;
use crate::standard_library::{self, StandardLibrary};
use crate::targets::{self, Target, Tools};
use crate::workspace::{self, Workspace, root, say};
use crate::zig;

/// How C is compiled: small, and without the tables by which exceptions would pass through it.
pub const C_FLAGS: [&str; 5] = [
    "-Os",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
];

/// What Rust leaves out: the same tables.
pub const NO_TABLES: &str = "-Cforce-unwind-tables=no";

/// A binary that was built.
#[derive(Debug)]
pub struct Built {
    /// Where it is.
    pub path: PathBuf,
    /// Its size, bytes.
    pub bytes: u64,
    /// The object with the probes that it holds.
    pub probes: PathBuf,
    /// The crates of registries that were compiled for the target: what it is linked of, build
    /// scripts and procedural macros apart.
    pub crates: Crates,
}

/// What the toolchain's own standard library has more than the one that is built here, bytes: the
/// texts of panics, and what prints where they come from.
const INSTALLED_LIBRARY_BYTES: u64 = 200_000;

/// Builds the agent for `triple` and prints its size beside the budget.
///
/// # Errors
/// If it cannot be built, or is larger than its budget.
pub fn run(triple: &str) -> Result {
    let target = targets::find(triple)?;
    let built = agent(&target)?;
    judge(&target, &built.path)
}

/// Prints the size of an agent that was built for `target` beside the budget.
///
/// # Errors
/// If it is larger than that.
pub fn judge(target: &Target, agent: &Path) -> Result {
    let size = size(agent)?;
    println!("{}", agent.display());
    let more = match standard_library::find(&target.triple)? {
        StandardLibrary::Installed => INSTALLED_LIBRARY_BYTES,
        StandardLibrary::Source(_) => 0,
    };
    let bytes_max = target.bytes_max + more;
    let (triple, bytes, most) = (&target.triple, grouped(size), grouped(bytes_max));
    let remark = if target.runs { "" } else { "; compiled, but never run" };
    println!("{triple}: {bytes} bytes, stripped; budget {most}{remark}");
    if size > bytes_max {
        return Err(
            format!("the agent for {triple} has {bytes} bytes, its budget is {most}").into()
        );
    }
    Ok(())
}

fn size(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file).map_err(|e| format!("{}: {e}", file.display()))?.len())
}

/// Builds the agent for a target.
///
/// # Errors
/// If a tool or the standard library is missing, or it does not build.
pub fn agent(target: &Target) -> Result<Built> {
    let features = ["--features", "bpf/vendored"];
    let (folder, messages) = cargo(target, &[&["-p", "agent"], features.as_slice()].concat())?;
    let path = folder.join("sysflow-agent");
    let bytes = size(&path)?;
    let probes = messages
        .iter()
        .filter_map(output_of_script)
        .map(|folder| folder.join("probes.bpf.o"))
        .find(|object| object.exists())
        .ok_or("no build script left an object with probes")?;
    let crates = messages.iter().filter_map(|message| linked(message, &folder)).collect();
    Ok(Built { path, bytes, probes, crates })
}

/// Builds the workloads for a target; returns the folder that holds them.
///
/// # Errors
/// As [`agent`].
pub fn workloads(target: &Target) -> Result<PathBuf> {
    let binaries = ["workload-volume", "workload-paths", "workload-transfer", "workload-pids"];
    let binaries: Vec<&str> = binaries.iter().flat_map(|name| ["--bin", name]).collect();
    Ok(cargo(target, &[&["-p", "tests"], binaries.as_slice()].concat())?.0)
}

/// Calls cargo for a target in the release profile; returns the folder of what it built, and what
/// cargo said of it.
fn cargo(target: &Target, what: &[&str]) -> Result<(PathBuf, Vec<serde_json::Value>)> {
    setup::cross(target)?;
    let library = standard_library::find(&target.triple)?;
    if target.tools == Tools::Zig {
        zig::install()?;
    }
    say(&format!("building for {}: {}", target.triple, what.join(" ")));
    let folder = Workspace::Device.target().join("cross");
    let verb = if target.tools == Tools::Zig { "zigbuild" } else { "build" };
    let mut command = Workspace::Device.cargo(verb);
    command.args(["--quiet", "--locked", "--release", "--target", &target.triple]).args(what);
    command.env("CARGO_TARGET_DIR", &folder);
    standard_library::apply(&library, &mut command);
    let variable = target.variable();
    let upper = variable.to_uppercase();
    let remaps = remaps(&folder, &library);
    let mut rust_flags: Vec<String> =
        remaps.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")).collect();
    let mut c_flags: Vec<String> =
        remaps.iter().map(|(from, to)| format!("-ffile-prefix-map={from}={to}")).collect();
    c_flags.extend(C_FLAGS.map(str::to_string));
    c_flags.extend(target.c_flags.iter().cloned());
    rust_flags.extend(target.rust_flags.iter().cloned());
    rust_flags.push(NO_TABLES.to_string());
    rust_flags.extend(standard_library::flags(&library).iter().map(|flag| flag.to_string()));
    match &target.tools {
        Tools::Zig => {
            zig::apply(&mut command)?;
            musl(&mut command);
            c_flags.push(format!("-I{}", root().join("cross/image").display()));
            if library != StandardLibrary::Installed {
                // A library built here has no start-up objects of its own: zig has them.
                rust_flags.push("-Clink-self-contained=no".to_string());
            }
        }
        Tools::Gcc(gcc) => {
            command
                .env(format!("CARGO_TARGET_{upper}_LINKER"), gcc)
                .env(format!("CC_{variable}"), gcc);
        }
    }
    // Flags of the machine's owner, meant for its own processor, must not reach the device.
    for owner in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CFLAGS", "TARGET_CFLAGS"] {
        command.env_remove(owner);
    }
    command.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), rust_flags.join(" "));
    command.env(format!("CFLAGS_{variable}"), c_flags.join(" "));
    if std::env::var_os("SOURCE_DATE_EPOCH").is_none()
        && let Some(time) = commit_time()
    {
        command.env("SOURCE_DATE_EPOCH", time);
    }
    command.arg("--message-format=json-render-diagnostics");
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output =
        command.output().map_err(|e| format!("start {}: {e}", workspace::show(&command)))?;
    if !output.status.success() {
        return Err(format!("{}: {}", workspace::show(&command), output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let messages = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok((folder.join(&target.triple).join("release"), messages))
}

/// The crate of a registry that cargo has compiled into this folder, which is the target's, and
/// the folder of its source: what runs on this machine goes elsewhere.
pub(crate) fn linked(message: &serde_json::Value, folder: &Path) -> Option<(Crate, PathBuf)> {
    let is_artifact = message.get("reason")?.as_str()? == "compiler-artifact";
    let file = message.get("filenames")?.as_array()?.first()?.as_str()?;
    let (_, id) = message.get("package_id")?.as_str()?.split_once('#')?;
    let is_of_registry = message.get("package_id")?.as_str()?.starts_with("registry+");
    let (name, version) = id.split_once('@')?;
    let source = Path::new(message.get("manifest_path")?.as_str()?).parent()?;
    let is_it = is_artifact && is_of_registry && Path::new(file).starts_with(folder);
    is_it.then(|| ((name.to_string(), version.to_string()), source.to_path_buf()))
}

/// The folder that a build script wrote into, if this message of cargo's tells of one.
fn output_of_script(message: &serde_json::Value) -> Option<PathBuf> {
    let is_it = message.get("reason")?.as_str()? == "build-script-executed";
    is_it.then_some(message.get("out_dir")?.as_str()?.into())
}

/// What configure scripts of elfutils ask of a C library and musl answers differently: libelf
/// itself uses none of it.
fn musl(command: &mut Command) {
    for function in ["argp_parse", "fts_close", "_obstack_free"] {
        command.env(format!("ac_cv_search_{function}"), "none required");
    }
}

/// Folders of this machine, and what they are called in what is built.
pub(crate) fn remaps(target: &Path, library: &StandardLibrary) -> Vec<(String, String)> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let mut folders = vec![(root(), "sysflow"), (target.to_path_buf(), "target")];
    folders.extend(cargo_home.or_else(home).map(|folder| (folder, "cargo")));
    folders.extend(standard_library::source(library).map(|folder| (folder.to_path_buf(), "rust")));
    // Of several that fit, the last one given is taken: the longest.
    folders.sort_by_key(|(folder, _)| folder.as_os_str().len());
    let name = |(from, to): (PathBuf, &str)| (from.display().to_string(), format!("/{to}"));
    folders.into_iter().map(name).collect()
}

/// Time of the last commit, Unix seconds; none outside a checkout.
pub fn commit_time() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]).current_dir(root()).stderr(Stdio::null());
    let output = git.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}

/// A number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups_of_three() {
        for (number, text) in [(7, "7"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn linked_is_what_a_registry_has_and_the_target_gets() {
        let artifact = |id: &str, file: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "package_id": id, "filenames": [file],
                "manifest_path": "/source/log/Cargo.toml",
            })
        };
        let linked = |id, file| linked(&artifact(id, file), Path::new("/t/arm/release"));
        let registry = "registry+https://registry.example/index#log@0.4.1";
        let found = Some((("log".to_string(), "0.4.1".to_string()), PathBuf::from("/source/log")));
        assert_eq!(linked(registry, "/t/arm/release/deps/liblog.rlib"), found);
        assert_eq!(linked(registry, "/t/release/deps/liblog.rlib"), None);
        assert_eq!(linked("path+file:///codec#0.1.0", "/t/arm/release/deps/x.rlib"), None);
    }

    #[test]
    fn the_longest_folder_is_mapped_last() {
        let folders = remaps(&root().join("target/cross"), &StandardLibrary::Installed);
        assert!(folders.windows(2).all(|pair| pair[0].0.len() <= pair[1].0.len()));
    }
}
