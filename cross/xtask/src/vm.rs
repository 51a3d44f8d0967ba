//! `cargo xtask vm`: lays out guests (kernel, modules, the cross-built agent and workloads),
//! and has the tests of `tests/guests` boot and judge them.
//!
//! A guest's folder holds `root/` (what becomes its initial file system), `userland/` (the same
//! for a second boot, in which suites of `tests/e2e` run) where it has suites, and `guest.json`,
//! which tells the tests what is there.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::build::Built;
use crate::debian::Archive;
use crate::kernels::{self, Files, Kernel, Types};
use crate::workspace::{self, Workspace, root, say};
use crate::{Result, btf, build, setup, suite, targets, userland};

/// The release whose busybox the guests run.
const BUSYBOX_SUITE: &str = "bookworm";
/// Folder of the minimised types of kernels that have none, `<release>.btf`.
const TYPES_FOLDER: &str = "tests/btf";
/// What the guests' own tests run.
const WORKLOADS: [&str; 4] =
    ["workload-volume", "workload-paths", "workload-transfer", "workload-pids"];
/// Suites that run in the guests of every test run, and of which architecture; the others take
/// minutes, to be built and in an emulator.
const SUITES_ALWAYS: [(&str, &str); 1] = [("arm64", "scenarios")];

/// Boots the guests with these names, or all of them, and runs their tests. Names of suites
/// among them choose those; the guests' other tests are left out then. `agent` is one that was
/// built otherwise, to be tested in the place of this tool's own.
///
/// # Errors
/// If a name is unknown, a guest cannot be laid out, or a test fails.
pub fn run(agent: Option<&Path>, names: &[String]) -> Result {
    let mut kernels = kernels::all()?;
    let is_suite = |name: &&String| userland::SUITES.contains(&name.as_str());
    let (suites, names): (Vec<&String>, Vec<&String>) = names.iter().partition(is_suite);
    if !names.is_empty() {
        if let Some(unknown) = names.iter().find(|name| !kernels.contains_key(**name)) {
            let known: Vec<&str> = kernels.keys().map(String::as_str).collect();
            let (known, suites) = (known.join(", "), userland::SUITES.join(", "));
            return Err(format!(
                "{unknown:?} is neither a kernel ({known}) nor a suite ({suites})"
            )
            .into());
        }
        kernels.retain(|name, _| names.contains(&name));
    }
    let what = if suites.is_empty() { What::All } else { What::SuitesAlone };
    if what == What::SuitesAlone {
        kernels.values_mut().for_each(|kernel| kernel.suites.retain(|s| suites.contains(&s)));
        kernels.retain(|_, kernel| !kernel.suites.is_empty());
        if kernels.is_empty() {
            return Err("none of these kernels has these suites in tests/kernels.toml".into());
        }
    }
    setup::for_tests()?;
    let guests = prepare(&kernels, what, Programs::with(agent)?)?;
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
    for kernel in kernels.values_mut() {
        let architecture = kernel.architecture.as_str();
        kernel.suites.retain(|suite| SUITES_ALWAYS.contains(&(architecture, suite.as_str())));
    }
    prepare(&kernels, What::All, Programs::default())
}

/// What is done with a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Its own tests, and its suites.
    All,
    /// Only the suites.
    SuitesAlone,
}

fn prepare(
    kernels: &BTreeMap<String, Kernel>,
    what: What,
    mut programs: Programs,
) -> Result<std::ffi::OsString> {
    setup::guests()?;
    let mut folders = Vec::new();
    for (name, kernel) in kernels {
        say(&format!("laying out the guest {name}"));
        let laid = lay_out(name, kernel, what, &mut programs);
        folders.push(laid.map_err(|error| format!("guest {name}: {error}"))?);
    }
    Ok(std::env::join_paths(folders)?)
}

/// What was built already, by Debian's name of the architecture.
#[derive(Default)]
struct Programs {
    /// An agent that was not built here.
    given: Option<PathBuf>,
    agents: BTreeMap<String, Built>,
    workloads: BTreeMap<String, PathBuf>,
}

impl Programs {
    fn with(agent: Option<&Path>) -> Result<Programs> {
        let given = agent.map(|file| {
            file.canonicalize().map_err(|e| format!("the agent {}: {e}", file.display()))
        });
        Ok(Programs { given: given.transpose()?, ..Programs::default() })
    }

    /// The agent that guests run.
    fn agent_of_guests(&mut self, architecture: &str) -> Result<PathBuf> {
        let Some(given) = &self.given else { return Ok(self.agent(architecture)?.path.clone()) };
        let is_for = machine(given)?;
        if is_for != architecture {
            let given = given.display();
            return Err(format!("{given} is for {is_for}, the kernel is {architecture}").into());
        }
        Ok(given.clone())
    }

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

fn lay_out(name: &str, kernel: &Kernel, what: What, programs: &mut Programs) -> Result<PathBuf> {
    let files = kernel.files()?;
    let folder = root().join("target/guests").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let agent = programs.agent_of_guests(&kernel.architecture)?;
    let types = types(kernel, &files, programs, &folder)?;
    let guest = Guest { kernel, files: &files, agent, types };
    if what == What::All {
        guest.lay_out_tests(&folder.join("root"), programs)?;
    }
    if !kernel.suites.is_empty() {
        guest.lay_out_suites(&folder.join("userland"))?;
    }
    let types_bytes = guest.types.as_ref().map(std::fs::metadata).transpose()?.map(|m| m.len());
    let description = json!({
        "name": name,
        "architecture": kernel.architecture,
        "kernel": files.image,
        "release": files.release,
        "has_tests": what == What::All,
        "suites": kernel.suites,
        "types_bytes": types_bytes,
        "compat": kernel.compat.is_some(),
        "jit": kernel.jit,
    });
    std::fs::write(folder.join("guest.json"), serde_json::to_vec_pretty(&description)?)?;
    Ok(folder)
}

/// The file with the kernel's types, if the guest is to have one, in `folder`.
fn types(
    kernel: &Kernel,
    files: &Files,
    programs: &mut Programs,
    folder: &Path,
) -> Result<Option<PathBuf>> {
    if kernel.types == Types::Kernel {
        return Ok(None);
    }
    let name = format!("{}.btf", files.release);
    let kept = root().join(TYPES_FOLDER).join(&name);
    if kept.exists() {
        return Ok(Some(kept));
    }
    std::fs::create_dir_all(folder)?;
    let made = folder.join(&name);
    btf::minimise(&programs.agent(&kernel.architecture)?.probes, &files.image, &made)?;
    Ok(Some(made))
}

/// A guest, and what goes into its file systems.
struct Guest<'k> {
    kernel: &'k Kernel,
    files: &'k Files,
    agent: PathBuf,
    types: Option<PathBuf>,
}

impl Guest<'_> {
    /// The root in which the guest's own tests run: busybox, and workloads that need nothing.
    fn lay_out_tests(&self, place: &Path, programs: &mut Programs) -> Result {
        let bin = place.join("bin");
        for folder in [&bin, &place.join("compat")] {
            std::fs::create_dir_all(folder)?;
        }
        let architecture = &self.kernel.architecture;
        for workload in WORKLOADS {
            copy(&programs.workloads(architecture)?.join(workload), &bin.join(workload))?;
            if let Some(compat) = &self.kernel.compat {
                let built = programs.workloads(compat)?.join(workload);
                copy(&built, &place.join("compat").join(workload))?;
            }
        }
        let archive = Archive::open(BUSYBOX_SUITE, architecture)?;
        let busybox = archive.unpack("busybox-static", None, &["./bin/busybox"])?;
        copy(&busybox.join("bin/busybox"), &bin.join("busybox"))?;
        self.add_common(place, "init")
    }

    /// The root in which suites of `tests/e2e` run.
    fn lay_out_suites(&self, place: &Path) -> Result {
        std::fs::create_dir_all(place)?;
        let suites: Vec<&str> = self.kernel.suites.iter().map(String::as_str).collect();
        userland::lay_out(place, &self.kernel.architecture, &suites)?;
        std::fs::create_dir_all(place.join("suites"))?;
        for program in ["pki", "sysprint"] {
            let script = root().join("tests/guests").join(program);
            copy(&script, &place.join("suites").join(program))?;
        }
        self.add_common(place, "init-suites")
    }

    /// The agent, types and modules, and the guest's first program.
    fn add_common(&self, place: &Path, init: &str) -> Result {
        let (types, modules) = (place.join("usr/lib/sysflow/btf"), place.join("lib/modules"));
        for folder in [&types, &modules] {
            std::fs::create_dir_all(folder)?;
        }
        copy(&self.agent, &place.join("bin/sysflow-agent"))?;
        copy(&root().join("tests/guests").join(init), &place.join("init"))?;
        copy(&root().join("tests/guests/machine.sh"), &place.join("machine.sh"))?;
        if let Some(file) = &self.types {
            std::fs::copy(file, types.join(format!("{}.btf", self.files.release)))?;
        }
        let mut order = String::new();
        for module in &self.files.modules {
            order.push_str(&format!("{}\n", kernels::place_module(module, &modules)?));
        }
        Ok(std::fs::write(modules.join("order"), order)?)
    }
}

/// Debian's name of the architecture that a program is for.
fn machine(program: &Path) -> Result<&'static str> {
    let bytes = std::fs::read(program).map_err(|e| format!("{}: {e}", program.display()))?;
    // The head of ELF, little-endian: mark, then at 18 the number of the machine.
    match (bytes.get(..4), bytes.get(18..20)) {
        (Some(b"\x7fELF"), Some([183, 0])) => Ok("arm64"),
        (Some(b"\x7fELF"), Some([40, 0])) => Ok("armhf"),
        (Some(b"\x7fELF"), Some([62, 0])) => Ok("amd64"),
        _ => Err(format!("{} is no program for a guest", program.display()).into()),
    }
}

fn copy(from: &Path, to: &Path) -> Result {
    std::fs::copy(from, to).map_err(|e| format!("copy {}: {e}", from.display()))?;
    Ok(std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_for_another_machine_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent");
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(18, 0);
        head.extend([183, 0]);
        std::fs::write(&file, &head).unwrap();
        let mut programs = Programs::with(Some(&file)).unwrap();
        assert_eq!(programs.agent_of_guests("arm64").unwrap(), file.canonicalize().unwrap());
        let refused = programs.agent_of_guests("armhf").unwrap_err().to_string();
        assert!(refused.contains("is for arm64, the kernel is armhf"), "{refused}");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let refused = programs.agent_of_guests("arm64").unwrap_err().to_string();
        assert!(refused.contains("no program for a guest"), "{refused}");
        assert!(Programs::with(Some(&folder.path().join("none"))).is_err());
    }
}
