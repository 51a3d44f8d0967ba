//! The collector for a centre, as a static program: built like the agent, but for speed, and with
//! unwinding, by which it survives a connection whose task panics.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::standard_library::{self, StandardLibrary};
use crate::targets::Target;
use crate::workspace::{self, Workspace, root, say};
use crate::{Result, setup, zig};

/// A collector that was built.
#[derive(Debug)]
pub struct Built {
    /// Where it is.
    pub path: PathBuf,
    /// The crates of registries that it is linked of, by name and version.
    pub crates: BTreeSet<(String, String)>,
}

/// Builds the collector for a static target, the same bytes from every checkout of a commit.
///
/// # Errors
/// If a tool or the standard library is missing, or it does not build.
pub fn build(target: &Target) -> Result<Built> {
    setup::cross(target)?;
    zig::install()?;
    let library = standard_library::find(&target.triple)?;
    say(&format!("building for {}: the collector", target.triple));
    let folder = Workspace::Device.target().join("cross-collector");
    let mut command = Workspace::Collector.cargo("zigbuild");
    command.args(["--quiet", "--locked", "--release", "--target", &target.triple]);
    command.args(["--bin", "sysflow-collector", "--message-format=json-render-diagnostics"]);
    command.env("CARGO_TARGET_DIR", &folder);
    zig::apply(&mut command)?;
    let mut rust_flags = target.rust_flags.clone();
    let mut c_flags = target.c_flags.clone();
    if let StandardLibrary::Source(source) = &library {
        command.arg("-Zbuild-std=std,panic_unwind").env("RUSTC_BOOTSTRAP", "1");
        command.env("__CARGO_TESTS_ONLY_SRC_ROOT", source);
        // A library built here has no start-up objects of its own: zig has them.
        rust_flags.push("-Clink-self-contained=no".to_string());
    }
    for (from, to) in names_of_folders(&folder, standard_library::source(&library)) {
        rust_flags.push(format!("--remap-path-prefix={from}={to}"));
        c_flags.push(format!("-ffile-prefix-map={from}={to}"));
    }
    // Flags of the machine's owner are for its own processor.
    for owner in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CFLAGS", "TARGET_CFLAGS"] {
        command.env_remove(owner);
    }
    let variable = target.variable();
    let upper = variable.to_uppercase();
    command.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), rust_flags.join(" "));
    command.env(format!("CFLAGS_{variable}"), c_flags.join(" "));
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let shown = workspace::show(&command);
    let output = command.output().map_err(|e| format!("start {shown}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let messages: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let folder = folder.join(&target.triple).join("release");
    let crates = messages.iter().filter_map(|message| linked(message, &folder)).collect();
    Ok(Built { path: folder.join("sysflow-collector"), crates })
}

/// The crate of a registry that a message of cargo's tells of, if it went into the target's
/// folder: what runs on this machine goes elsewhere.
fn linked(message: &Value, folder: &Path) -> Option<(String, String)> {
    let package = message.get("package_id")?.as_str()?;
    let (name, version) = package.strip_prefix("registry+")?.split_once('#')?.1.split_once('@')?;
    let is_artifact = message.get("reason")?.as_str()? == "compiler-artifact";
    let file = message.get("filenames")?.as_array()?.first()?.as_str()?;
    let is_it = is_artifact && Path::new(file).starts_with(folder);
    is_it.then(|| (name.to_string(), version.to_string()))
}

/// Folders of this machine, and what they are called in what is built. Of several that fit, the
/// last is taken: the longest.
fn names_of_folders(target: &Path, library: Option<&Path>) -> Vec<(String, &'static str)> {
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
    let mut folders = vec![(root(), "/sysflow"), (target.to_path_buf(), "/target")];
    folders.extend(cargo.map(|folder| (folder, "/cargo")));
    folders.extend(library.map(|folder| (folder.to_path_buf(), "/rust")));
    folders.sort_by_key(|(folder, _)| folder.as_os_str().len());
    folders.into_iter().map(|(from, to)| (from.display().to_string(), to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_linked_if_it_lies_in_the_targets_folder() {
        let message = |package: &str, file: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "package_id": package, "filenames": [file],
            })
        };
        let of = |package, file| linked(&message(package, file), Path::new("/t/x/release"));
        let registry = "registry+https://registry.example/index#http@1.2.3";
        let http = Some(("http".to_string(), "1.2.3".to_string()));
        assert_eq!(of(registry, "/t/x/release/deps/libhttp.rlib"), http);
        assert_eq!(of(registry, "/t/release/deps/libhttp.rlib"), None);
        assert_eq!(of("path+file:///codec#0.1.0", "/t/x/release/deps/libcodec.rlib"), None);
    }
}
