//! A Debian with a systemd of its own beside the machine's: a tree of packages, in namespaces that
//! end with their owner. The kernel is the machine's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use tests::Result;
use tests::program::Program;
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
const GROUPS: &str = "/sys/fs/cgroup";

/// A running system.
#[derive(Debug)]
pub(crate) struct Container {
    program: Program,
    /// Its first process, by the machine's number.
    init: u32,
    groups: Vec<PathBuf>,
    _folder: TempDir,
}

impl Container {
    /// Boots `tree`, which is not changed.
    ///
    /// # Errors
    /// If it does not come up: with what its systemd said.
    pub(crate) fn boot(tree: &Path) -> Result<Container> {
        let folder = tempfile::tempdir()?;
        for part in ["root", "layer"] {
            std::fs::create_dir(folder.path().join(part))?;
        }
        let name = format!("sysflow-packages-{}", std::process::id());
        let (groups, pairs) = groups(&name)?;
        // Joins the groups before the namespace begins, in which they are then the root.
        let join = "for group; do case $group in /*) echo $$ >\"$group/cgroup.procs\" ;; esac; \
                    shift; [ \"$group\" = -- ] && break; done; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", join, "sh"]).args(&groups).arg("--");
        // It must not outlive this test, however that ends.
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        command.args(["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup"]);
        command.args(["--fork", "--kill-child", "sh"]);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packages/boot.sh"));
        command.arg(folder.path()).arg(tree).args(pairs);
        let program = Program::start("systemd", &mut command, folder.path())?;
        let mut container = Container { program, init: 0, groups, _folder: folder };
        let booted = container.wait_for_boot();
        booted.map_err(|e| {
            format!("{e}; its log:\n{}", container.program.log().unwrap_or_default())
        })?;
        Ok(container)
    }

    fn wait_for_boot(&mut self) -> Result {
        let shell = self.program.pid();
        self.init = wait_for("systemd in its container", DEADLINE, || {
            if !self.program.is_running()? {
                return Err("systemd has ended".into());
            }
            let children = format!("/proc/{shell}/task/{shell}/children");
            let children = std::fs::read_to_string(children)?;
            let Some(first) = children.split_whitespace().next() else { return Ok(None) };
            let is_systemd = std::fs::read_to_string(format!("/proc/{first}/comm"))
                .is_ok_and(|name| name.trim() == "systemd");
            Ok(if is_systemd { Some(first.parse()?) } else { None })
        })?;
        wait_for("the end of systemd's boot", DEADLINE, || {
            let output = self.run(["systemctl", "is-system-running"])?;
            let said = String::from_utf8_lossy(&output.stdout);
            Ok(["running", "degraded"].contains(&said.trim()).then_some(()))
        })
    }

    /// Where a path of it is to this process.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Whether there is something at a path of it, be it a link that leads nowhere.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Runs a command in it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "--root", "--wd"]);
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER="]).args(words);
        Ok(command.output()?)
    }

    /// Runs a line of shell in it that must end well; returns what it printed.
    ///
    /// # Errors
    /// If it ends otherwise: with all that it said.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        let (status, said) = self.try_sh(line)?;
        if status == Some(0) { Ok(said) } else { Err(format!("{line}: {status:?}\n{said}").into()) }
    }

    /// Runs a line of shell in it; returns its exit status and what it printed, errors included.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn try_sh(&self, line: &str) -> Result<(Option<i32>, String)> {
        let output = self.run(["sh", "-c", &format!("exec 2>&1; {line}")])?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Its processes die with the first one, some moments later; the groups are empty then.
        let _ = self.program.kill();
        for group in &self.groups {
            let _ = wait_for("an empty control group", DEADLINE, || {
                remove(group);
                Ok((!group.exists()).then_some(()))
            });
        }
    }
}

/// Removes a control group and those in it, as far as they are empty.
fn remove(group: &Path) {
    let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
    for inner in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&inner.path());
    }
    let _ = std::fs::remove_dir(group);
}

/// Makes a control group of this name in each hierarchy of the machine; returns their folders, and
/// of each, relative to the hierarchies' common folder, its path and that of its hierarchy.
fn groups(name: &str) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let (mut folders, mut pairs) = (Vec::new(), Vec::new());
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (Some(place), Some(kind)) = (words.get(1), words.get(2)) else { continue };
        let Some(hierarchy) = place.strip_prefix(GROUPS) else { continue };
        // A group of cpuset takes nobody before it is told its processors; systemd needs none.
        if !["cgroup", "cgroup2"].contains(kind) || hierarchy.ends_with("cpuset") {
            continue;
        }
        let hierarchy = hierarchy.trim_start_matches('/');
        let group = Path::new(hierarchy).join(name);
        let folder = Path::new(GROUPS).join(&group);
        if !folder.exists() {
            std::fs::create_dir(&folder)?;
        }
        folders.push(folder);
        let hierarchy = if hierarchy.is_empty() { "." } else { hierarchy };
        pairs.push(format!("{} {hierarchy}", group.display()));
    }
    Ok((folders, pairs))
}
