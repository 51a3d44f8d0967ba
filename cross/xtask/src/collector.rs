//! The collector for a centre, as a static program: built like the agent, but for speed, and with
//! unwinding, by which it survives a connection whose task panics.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::build::{linked, remaps};
use crate::parts::Crates;
use crate::standard_library::{self, StandardLibrary};
use crate::targets::Target;
use crate::workspace::{self, Workspace, say};
use crate::{Result, setup, zig};

/// A collector that was built.
#[derive(Debug)]
pub struct Built {
    /// Where it is.
    pub path: PathBuf,
    /// The crates of registries that it is linked of.
    pub crates: Crates,
}

/// Builds the collector for a static target, without a path of the checkout in it; that two
/// checkouts give the same bytes is compared for the agent alone.
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
    for (from, to) in remaps(&folder, &library) {
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
