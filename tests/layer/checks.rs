//! What is checked of a tree: each check gives the faults it found.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::Result;

/// Releases of Yocto that the layer is for.
const RELEASES: [&str; 2] = ["scarthgap", "wrynose"];
/// Rules of the linter that do not fit: it asks the network for the home page; takes the kernel's
/// part, which a distribution feature guards, for one that changes everybody's kernel; does not
/// know oe-core's KERNEL_DEBUG; and wants the list of crates, which has the form that oe-core's
/// own tool gives it, and a package without sources to look otherwise.
const UNFIT: [&str; 7] = [
    "oelint.vars.homepageping",
    "oelint.vars.noncoreoverride",
    "oelint.vars.mispell.unknown",
    "oelint.vars.inconspaces",
    "oelint.vars.srcurifile",
    "oelint.var.mandatoryvar.SRC_URI",
    "oelint.var.licenseremotefile",
];
/// Highest exposure of a service, tenths.
const EXPOSURE_MAX: &str = "18";
/// The units, and what their ExecStart runs.
pub(crate) const UNITS: [(&str, &str); 2] = [
    ("agent/sysflow-agent.service", "/usr/bin/sysflow-agent"),
    ("collector/sysflow-collector.service", "/usr/bin/sysflow-collector"),
];
/// What the agent takes beyond its budget, bytes, as its unit says it: code and TLS, then for a
/// moment the types of the whole kernel, and the verifier's memory.
const BEYOND_BUDGET: u64 = (4 << 20) + 13_000_000 + 16_000_000;

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// BitBake's own parser; see `parse.py` for what it cannot see.
    Parser,
    /// A linter for recipes.
    Linter,
    /// The schema of kas.
    Kas,
    /// A linter for shell scripts.
    Scripts,
    /// systemd's view of the units: keys, and how exposed the services are.
    Units,
}

impl Check {
    /// All of them.
    pub(crate) const ALL: [Check; 5] =
        [Check::Parser, Check::Linter, Check::Kas, Check::Scripts, Check::Units];

    /// The faults of a tree, by lines.
    ///
    /// # Errors
    /// If the check cannot be made.
    pub(crate) fn faults(self, tools: &Path, tree: &Path) -> Result<Vec<String>> {
        match self {
            Check::Parser => parse(tools, tree),
            Check::Linter => lint(tools, tree),
            Check::Kas => run(python(tools, "kas_schema.py").arg(tree)),
            Check::Scripts => scripts(tree),
            Check::Units => units(tree),
        }
    }
}

/// The tools, if `cargo xtask` has installed them.
pub(crate) fn tools() -> Option<PathBuf> {
    std::env::var_os("SYSFLOW_LAYER_TOOLS").map(PathBuf::from)
}

/// The root of this tree.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn python(tools: &Path, script: &str) -> Command {
    let mut command = Command::new(tools.join("bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("layer").join(script));
    command
}

/// What a checker printed; that it failed without a word is a fault, too.
fn run(command: &mut Command) -> Result<Vec<String>> {
    let output = command.output().map_err(|e| format!("start {command:?}: {e}"))?;
    let mut lines = lines(&output);
    if !output.status.success() && lines.is_empty() {
        lines.push(format!("{command:?}: {}", output.status));
    }
    Ok(lines)
}

fn lines(output: &Output) -> Vec<String> {
    let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    let lines = said.iter().flat_map(|said| said.lines()).filter(|line| !line.trim().is_empty());
    lines.map(str::to_string).collect()
}

fn parse(tools: &Path, tree: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for release in RELEASES {
        faults.extend(run(python(tools, "parse.py").arg(tree).arg(release))?);
    }
    Ok(faults)
}

/// Files of the layer with these endings.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if endings.contains(&ending.as_str()) {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn lint(tools: &Path, tree: &Path) -> Result<Vec<String>> {
    let layer = tree.join("yocto/meta-sysflow");
    let files = files(&layer, &["bb", "bbappend", "inc", "bbclass", "conf"])?;
    let mut faults = Vec::new();
    for release in RELEASES {
        let mut command = Command::new(tools.join("bin/oelint-adv"));
        command.args(["--quiet", "--hide", "info", "--release", release]);
        command.args(UNFIT.iter().flat_map(|rule| ["--suppress", rule])).args(&files);
        faults.extend(run(&mut command)?);
    }
    Ok(faults)
}

/// The files that git knows here and a shell runs, each with that shell: a shell is named in their
/// first line, or by their ending.
pub(crate) fn shell_scripts() -> Result<Vec<(String, &'static str)>> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output()?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", lines(&output).join(" ")).into());
    }
    let mut scripts = Vec::new();
    for name in String::from_utf8(output.stdout)?.split_terminator('\0') {
        let path = root().join(name);
        // Neither links nor what is deleted and not yet committed so.
        if !path.symlink_metadata().is_ok_and(|file| file.is_file()) {
            continue;
        }
        let text = std::fs::read(&path)?;
        let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let first = String::from_utf8_lossy(first);
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let shell = match (&*ending, first.strip_prefix("#!")) {
            ("bash", _) => "bash",
            (_, Some(runner)) if runner.trim_end().ends_with("bash") => "bash",
            ("sh", _) => "sh",
            (_, Some(runner)) if runner.trim_end().ends_with("sh") => "sh",
            _ => continue,
        };
        scripts.push((name.to_string(), shell));
    }
    Ok(scripts)
}

fn scripts(tree: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let scripts = shell_scripts()?;
    for (script, shell) in &scripts {
        let mut command = Command::new("shellcheck");
        // What a guest's scripts read stands elsewhere in the tree, or only there.
        command.args(["--exclude", "SC1091", "--format", "gcc", "--shell", shell]);
        faults.extend(run(command.arg(tree.join(script)))?);
    }
    if scripts.is_empty() {
        faults.push("git names no scripts here".to_string());
    }
    Ok(faults)
}

/// A size as units have it, bytes.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.split_at(text.len().checked_sub(1)?) {
        (number, "K") => (number, 1 << 10),
        (number, "M") => (number, 1 << 20),
        (number, "G") => (number, 1 << 30),
        _ => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// What is wrong with the memory that the agent's unit, with these values of its MemoryMax, allows
/// an agent of this configuration.
fn memory_fault(allowed: &[&str], config: &str) -> Option<String> {
    let budget = config.lines().find_map(|line| line.strip_prefix("budget_bytes = "));
    let budget = budget.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let Some(needed) = budget.map(|budget| budget + BEYOND_BUDGET) else {
        return Some("agent.toml has no memory.budget_bytes".to_string());
    };
    let bytes = match allowed {
        [one] => size(one),
        _ => None,
    };
    let is_enough = bytes.is_some_and(|bytes| bytes >= needed);
    (!is_enough).then(|| format!("MemoryMax is {allowed:?}, the agent may need {needed} bytes"))
}

fn units(tree: &Path) -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let mut faults = Vec::new();
    for (unit, program) in UNITS {
        let text = std::fs::read_to_string(tree.join(unit))?;
        // systemd tries a unit whose credential is missing until its limit of starts, and no more.
        let values = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.filter(|(name, _)| *name == key).map(|(_, value)| value).collect::<Vec<&str>>()
        };
        for credential in values("LoadCredential") {
            let path = credential.split_once(':').map_or(credential, |(_, path)| path);
            if !values("AssertPathExists").contains(&path) {
                faults.push(format!("{unit}: lends {path}, and does not assert it"));
            }
        }
        if program.ends_with("agent") {
            let config = std::fs::read_to_string(tree.join("agent/agent.toml"))?;
            let fault = memory_fault(&values("MemoryMax"), &config);
            faults.extend(fault.map(|fault| format!("{unit}: {fault}")));
            if values("WatchdogSec").is_empty() {
                faults.push(format!("{unit}: nobody notices an agent that hangs: no WatchdogSec"));
            }
        }
        let name = Path::new(unit).file_name().unwrap_or_default();
        let copy = folder.path().join(name);
        // The program is not installed on the machine that checks.
        std::fs::write(&copy, text.replace(program, "/bin/true"))?;
        let mut verify = Command::new("systemd-analyze");
        // It ends well although it ignores what it does not know; then what it says counts.
        faults.extend(run(verify.args(["verify", "--man=no"]).arg(&copy))?);
        let mut judge = Command::new("systemd-analyze");
        judge.args(["security", "--offline=true", "--no-pager"]);
        judge.arg(format!("--threshold={EXPOSURE_MAX}")).arg(tree.join(unit));
        let judged = judge.output()?;
        if !judged.status.success() {
            let verdict = lines(&judged).pop().unwrap_or_default();
            faults.push(format!("{unit}: {verdict}; at most {EXPOSURE_MAX} tenths"));
        }
    }
    Ok(faults)
}
