//! What keeps the agent small on a device: the service unit, and that it lets the agent do all
//! that it has to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::Result;
use tests::fleet::{AgentSettings, Fleet};
use tests::machine::{Machine, Need};
use tests::records::{of_process, text};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
/// Somebody who owns nothing on the machine.
const NOBODY: u32 = 65534;

/// The agent's unit.
fn unit() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/sysflow-agent.service");
    Ok(std::fs::read_to_string(path)?)
}

/// The values of a key of a unit, in their order.
fn values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

/// The system's groups of system calls, each with its calls, those of inner groups included.
fn groups() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new("systemd-analyze").arg("syscall-filter").output()?;
    let listed = String::from_utf8(output.stdout)?;
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut group = String::new();
    for line in listed.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match line.strip_prefix("    ") {
            Some(member) => {
                groups.entry(group.clone()).or_default().insert(member.trim().to_string());
            }
            None if line.starts_with('@') => group = line.trim().to_string(),
            // What the list has after its groups belongs to none.
            None => group.clear(),
        }
    }
    // Groups nest three deep at most.
    for _ in 0..4 {
        let known = groups.clone();
        for members in groups.values_mut() {
            let inner: Vec<&str> =
                members.iter().filter(|m| m.starts_with('@')).map(String::as_str).collect();
            let calls: Vec<String> =
                inner.into_iter().filter_map(|name| known.get(name)).flatten().cloned().collect();
            members.extend(calls);
        }
    }
    Ok(groups)
}

/// The system calls that a unit's filter, which begins with a list of the allowed, allows.
fn allowed(unit: &str) -> Result<BTreeSet<String>> {
    let groups = groups()?;
    let calls = |word: &str| match groups.get(word) {
        Some(calls) => calls.clone(),
        None => BTreeSet::from([word.to_string()]),
    };
    let mut allowed = calls("@default");
    for line in values(unit, "SystemCallFilter") {
        for word in line.trim_start_matches('~').split(' ') {
            if line.starts_with('~') {
                allowed.retain(|call| !calls(word).contains(call));
            } else {
                allowed.extend(calls(word));
            }
        }
    }
    Ok(allowed)
}

/// Settings of an agent as the unit runs it, but for the filter: somebody without rights, with
/// the unit's capabilities and its view of /proc. The binary and all files are where that
/// somebody gets at them.
fn as_the_unit(fleet: &Fleet<'_>, machine: &Machine, unit: &str) -> Result<AgentSettings> {
    let mut settings = fleet.agent_settings("agent", "127.0.0.1:9".parse()?);
    let home = fleet.path("agent");
    std::fs::create_dir_all(&settings.spool)?;
    let passage = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fleet.path("."), passage)?;
    for path in [&home, &settings.spool, &settings.key, &settings.certificate] {
        chown(path, Some(NOBODY), Some(NOBODY))?;
    }
    let binary = fleet.path("sysflow-agent");
    std::fs::copy(machine.agent(), &binary)?;
    let capabilities = |key| {
        let names = values(unit, key).concat().to_lowercase().replace("cap_", "+");
        format!("-all,{}", names.replace(' ', ","))
    };
    let ambient = capabilities("AmbientCapabilities");
    let hide = values(unit, "ProtectProc").concat();
    let mount = format!("mount -t proc -o hidepid={hide} proc /proc && exec \"$@\"");
    let nobody = NOBODY.to_string();
    settings.wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"]
        .into_iter()
        .chain(["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
        .chain(["--no-new-privs", "--inh-caps", &ambient, "--ambient-caps", &ambient])
        .chain(["--bounding-set", &capabilities("CapabilityBoundingSet")])
        .map(OsString::from)
        .chain([binary.into_os_string()])
        .collect();
    Ok(settings)
}

/// The same under the system-call tracer, which stays beside it and writes into the file.
fn traced(settings: &mut AgentSettings, trace: &Path) {
    let strace = ["strace", "-D", "-f", "-qq", "--signal=none", "--output"].map(OsString::from);
    let at = settings.wrapper.len() - 1;
    settings.wrapper.splice(at..at, strace.into_iter().chain([trace.into()]));
}

/// The system calls in a trace whose last line has been written.
fn calls(trace: &Path, pid: u32) -> Result<BTreeSet<String>> {
    let end = format!("{pid} exit_group(");
    let written = wait_for("the end of the trace", DEADLINE, || {
        let written = std::fs::read_to_string(trace)?;
        Ok(written.lines().any(|line| line.starts_with(&end)).then_some(written))
    })?;
    let name = |line: &str| {
        let call = line.split_whitespace().nth(1)?.split('(').next()?;
        call.starts_with(char::is_alphabetic).then(|| call.to_string())
    };
    Ok(written.lines().filter_map(name).collect())
}

#[test]
fn the_unit_lets_the_agent_do_what_it_has_to() -> Result {
    let test = "the_unit_lets_the_agent_do_what_it_has_to";
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root, Need::Strace])? else {
        return Ok(());
    };
    let fleet = Fleet::new(&machine)?;
    let unit = unit()?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut settings = as_the_unit(&fleet, &machine, &unit)?;
    settings.url = format!("https://{}", collector.address);
    let trace: PathBuf = fleet.path("agent/trace");
    traced(&mut settings, &trace);
    // Somebody else's process that is there before the agent: what it is, only SYS_PTRACE tells.
    let mark = fleet.path("mark");
    let script = format!("read word && echo \"$word\" > {}", mark.display());
    let mut before = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn()?;
    let mut agent = fleet.start_agent(&settings)?;
    drop(before.stdin.take().map(|mut input| std::io::Write::write_all(&mut input, b"go\n")));
    let pid = before.id();
    assert!(before.wait()?.success());
    wait_for("a delivered frame", DEADLINE, || {
        let is_there = fleet.store().exists() && !tests::frames::find(&fleet.store())?.is_empty();
        Ok(is_there.then_some(()))
    })?;
    let status = agent.status()?;
    assert_eq!(status["privileges"], serde_json::json!([]), "{status}");
    let agent_pid = agent.program.pid();
    agent.program.stop()?;
    collector.program.stop()?;

    let records = fleet.print(&fleet.store())?;
    let shell = std::fs::canonicalize("/bin/sh")?;
    let executables: BTreeSet<&str> =
        of_process(&records, pid).map(|record| text(record, "proc.exe")).collect();
    assert_eq!(executables, BTreeSet::from([shell.to_str().unwrap_or_default()]));

    let (called, allowed) = (calls(&trace, agent_pid)?, allowed(&unit)?);
    assert!(called.contains("bpf") && called.contains("openat"), "{called:?}");
    let refused: Vec<&String> = called.difference(&allowed).collect();
    assert!(refused.is_empty(), "the unit's SystemCallFilter refuses {refused:?}");
    // The filter is one: what the agent never does is not in it.
    for call in ["ptrace", "execve", "mount", "setuid", "perf_event_open", "init_module", "chown"] {
        let is_allowed = allowed.contains(call);
        assert_eq!(is_allowed, call == "execve", "{call}: systemd itself needs execve alone");
    }
    println!("{} system calls of {} that the unit allows", called.len(), allowed.len());
    Ok(())
}
