//! `cargo xtask vm`: lays out guests (kernel, modules, the cross-built agent and workloads),
//! and has the tests of `tests/guests` boot and judge them.
//!
//! A guest's folder holds its kernel, `root/` (what becomes its initial file system), and
//! `guest.json`, which tells the tests what is there.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::build::Built;
use crate::debian::Archive;
use crate::kernels::{self, Kernel, Types};
use crate::workspace::{self, Workspace, root, say};
use crate::{Result, btf, build, setup, suite, targets};

/// The release whose busybox the guests run.
const BUSYBOX_SUITE: &str = "bookworm";
/// Folder of the minimised types of kernels that have none, `<release>.btf`.
const TYPES_FOLDER: &str = "tests/btf";

/// Boots the guests with these names, or all of them, and runs their tests.
///
/// # Errors
/// If a name is unknown, a guest cannot be laid out, or a test fails.
pub fn run(names: &[String]) -> Result {
    let mut kernels = kernels::all()?;
    if !names.is_empty() {
        if let Some(unknown) = names.iter().find(|name| !kernels.contains_key(*name)) {
            let known: Vec<&str> = kernels.keys().map(String::as_str).collect();
            return Err(format!("{unknown:?} is no kernel; these are: {}", known.join(", ")).into());
        }
        kernels.retain(|name, _| names.contains(name));
    }
    setup::run()?;
    let guests = prepare(&kernels)?;
    suite::build_collector()?;
    let mut command = Workspace::Device.cargo("test");
    command.args(["--quiet", "--locked", "-p", "tests", "--test", "guests"]);
    suite::environment(&mut command)?;
    command.env("SYSFLOW_GUESTS", guests);
    workspace::run(&mut command)
}

/// Lays out the guests that every test run boots; returns what `SYSFLOW_GUESTS` is set to.
///
/// # Errors
/// If a guest cannot be laid out.
pub fn prepare_always() -> Result<std::ffi::OsString> {
    let mut kernels = kernels::all()?;
    kernels.retain(|_, kernel| kernel.always);
    prepare(&kernels)
}

fn prepare(kernels: &BTreeMap<String, Kernel>) -> Result<std::ffi::OsString> {
    setup::guests()?;
    let mut programs = Programs::default();
    let mut folders = Vec::new();
    for (name, kernel) in kernels {
        say(&format!("laying out the guest {name}"));
        let laid = lay_out(name, kernel, &mut programs);
        folders.push(laid.map_err(|error| format!("guest {name}: {error}"))?);
    }
    Ok(std::env::join_paths(folders)?)
}

/// What was built already, by Debian's name of the architecture.
#[derive(Default)]
struct Programs {
    agents: BTreeMap<String, Built>,
    workloads: BTreeMap<String, PathBuf>,
}

impl Programs {
    fn agent(&mut self, architecture: &str) -> Result<&Built> {
        if !self.agents.contains_key(architecture) {
            let built = build::agent(&targets::of_debian(architecture)?)?;
            self.agents.insert(architecture.to_string(), built);
        }
        Ok(&self.agents[architecture])
    }

    fn workloads(&mut self, architecture: &str) -> Result<&Path> {
        if !self.workloads.contains_key(architecture) {
            let built = build::workloads(&targets::of_debian(architecture)?)?;
            self.workloads.insert(architecture.to_string(), built);
        }
        Ok(&self.workloads[architecture])
    }
}

fn lay_out(name: &str, kernel: &Kernel, programs: &mut Programs) -> Result<PathBuf> {
    let files = kernel.files()?;
    let folder = root().join("target/guests").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let place = folder.join("root");
    for part in ["bin", "lib/modules", "usr/lib/sysflow/btf", "compat"] {
        std::fs::create_dir_all(place.join(part))?;
    }
    let bin = place.join("bin");
    let architecture = &kernel.architecture;
    let agent = programs.agent(architecture)?;
    copy(&agent.path, &bin.join("sysflow-agent"))?;
    let mut types_bytes = None;
    if kernel.types == Types::File {
        let file = format!("{}.btf", files.release);
        let placed = place.join("usr/lib/sysflow/btf").join(&file);
        let kept = root().join(TYPES_FOLDER).join(&file);
        if kept.exists() {
            std::fs::copy(&kept, &placed)?;
        } else {
            btf::minimise(&agent.probes, &files.image, &placed)?;
        }
        types_bytes = Some(std::fs::metadata(&placed)?.len());
    }
    for workload in ["workload-volume", "workload-paths", "workload-transfer", "workload-pids"] {
        copy(&programs.workloads(architecture)?.join(workload), &bin.join(workload))?;
        if let Some(compat) = &kernel.compat {
            let built = programs.workloads(compat)?.join(workload);
            copy(&built, &place.join("compat").join(workload))?;
        }
    }
    let busybox = Archive::open(BUSYBOX_SUITE, architecture)?.unpack(
        "busybox-static",
        None,
        &["./bin/busybox"],
    )?;
    copy(&busybox.join("bin/busybox"), &bin.join("busybox"))?;
    copy(&root().join("tests/guests/init"), &place.join("init"))?;
    let mut order = String::new();
    for module in &files.modules {
        let placed = kernels::place_module(module, &place.join("lib/modules"))?;
        order.push_str(&format!("{placed}\n"));
    }
    std::fs::write(place.join("lib/modules/order"), order)?;
    let description = json!({
        "name": name,
        "architecture": architecture,
        "kernel": files.image,
        "release": files.release,
        "root": place,
        "types_bytes": types_bytes,
        "compat": kernel.compat.is_some(),
        "jit": kernel.jit,
    });
    std::fs::write(folder.join("guest.json"), serde_json::to_vec_pretty(&description)?)?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result {
    std::fs::copy(from, to).map_err(|e| format!("copy {}: {e}", from.display()))?;
    Ok(std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755))?)
}
