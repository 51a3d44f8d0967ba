//! What keeps the agent small on a device: the service unit, which must let the agent do all that
//! it has to, and what the agent keeps itself from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use tests::Result;
use tests::fleet::{AgentSettings, Fleet};
use tests::machine::{Machine, Need, has_program, skip};
use tests::records::{of_process, text};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
/// Somebody who owns nothing on the machine.
const NOBODY: u32 = 65534;

/// What Landlock keeps a process from: TCP ports since this kernel, signals to others since that.
const PORTS_SINCE: (u32, u32) = (6, 7);
const SIGNALS_SINCE: (u32, u32) = (6, 12);

/// The running kernel's version, as far as features go by it.
fn kernel() -> Result<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("{release} is no kernel's release").into()),
    }
}

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
    let pid = pid.to_string();
    let is_end = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some(&pid)
            && words.next().is_some_and(|call| call.starts_with("exit_group"))
    };
    let written = wait_for("the end of the trace", DEADLINE, || {
        let written = std::fs::read_to_string(trace)?;
        Ok(written.lines().any(is_end).then_some(written))
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

/// What a process is made to try: an expression, as gdb calls functions of the C library in the
/// stopped process, and the error that it must end with; none: it must succeed.
type Attempt = (&'static str, String, Option<Errno>);

/// Makes a process try things, and tells what came of each: the error, or none.
fn attempts(pid: u32, attempts: &[Attempt]) -> Result<Vec<Option<Errno>>> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-p", &pid.to_string()]);
    gdb.args(["-ex", "set $scratch = (char*)malloc(64)"]);
    for (n, (_, expression, _)) in attempts.iter().enumerate() {
        // What gdb does not understand must not leave the result of the attempt before.
        gdb.args(["-ex", "set $result = -77"]);
        gdb.arg("-ex").arg(format!("set $result = ({expression})"));
        gdb.arg("-ex")
            .arg(format!("printf \"attempt {n}: %ld %d\\n\", $result, *(int*)__errno_location()"));
    }
    let output = gdb.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = |n: usize| -> Result<Option<Errno>> {
        let prefix = format!("attempt {n}: ");
        let line = said.lines().find_map(|line| line.strip_prefix(&prefix));
        let (result, error) = line.and_then(|line| line.split_once(' ')).ok_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("gdb says nothing of {}: {said}{errors}", attempts[n].0)
        })?;
        let (result, error): (i64, i32) = (result.parse()?, error.parse()?);
        if result < -1 {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("gdb cannot {}: {errors}", attempts[n].0).into());
        }
        Ok((result == -1).then(|| Errno::from_raw_os_error(error)))
    };
    (0..attempts.len()).map(result).collect()
}

#[test]
fn an_agent_that_watches_can_do_nothing_else() -> Result {
    let test = "an_agent_that_watches_can_do_nothing_else";
    if !has_program("gdb") {
        return skip(test, "gdb is not installed");
    }
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let settings = fleet.agent_settings("agent", collector.address);
    // As an image without systemd has it: root, with all capabilities. Landlock is a thread's, so
    // that the one that watches is asked, the process's first.
    let mut agent = fleet.start_agent(&settings)?;
    let foreign = fleet.path("foreign");
    std::fs::write(&foreign, "of somebody else")?;
    let (foreign, new) = (foreign.display(), fleet.path("new"));
    let own = settings.status.display();
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_be();
    let mut victim = Command::new("sleep").arg("600").spawn()?;
    let pid = victim.id();
    let number = |call: &str| match (call, std::env::consts::ARCH) {
        ("bpf", "x86_64") => Ok(321),
        ("bpf", "aarch64") => Ok(280),
        ("connect", "x86_64") => Ok(42),
        ("connect", "aarch64") => Ok(203),
        ("execve", "x86_64") => Ok(59),
        ("execve", "aarch64") => Ok(221),
        ("ptrace", "x86_64") => Ok(101),
        ("ptrace", "aarch64") => Ok(117),
        (call, other) => Err(format!("the number of {call} on {other} is not known here")),
    };
    // BPF_PROG_LOAD; PTRACE_ATTACH.
    let load = format!("(long)syscall({}, 5, $scratch, 48)", number("bpf")?);
    let map = format!("(long)syscall({}, 0, $scratch, 48)", number("bpf")?);
    let trace = format!("(long)syscall({}, 16, {pid}, 0, 0)", number("ptrace")?);
    let execute = format!("(long)syscall({}, \"/bin/true\", 0, 0)", number("execve")?);
    let connect = format!(
        "*(unsigned short*)$scratch = 2, *(unsigned short*)($scratch + 2) = {port}, \
         *(unsigned int*)($scratch + 4) = 0x0100007f, \
         (long)syscall({}, (int)socket(2, 1, 0), $scratch, 16)",
        number("connect")?
    );
    let (access, permission) = (Some(Errno::ACCESS), Some(Errno::PERM));
    let kernel = kernel()?;
    let is_known = |(name, ..): &Attempt| match *name {
        "connect elsewhere" => kernel >= PORTS_SINCE,
        "signal a process" => kernel >= SIGNALS_SINCE,
        _ => true,
    };
    let mut tried: Vec<Attempt> = vec![
        ("read its own status", format!("(long)(int)open(\"{own}\", 0)"), None),
        ("read the users", "(long)(int)open(\"/etc/passwd\", 0)".to_string(), None),
        ("read a foreign file", format!("(long)(int)open(\"{foreign}\", 0)"), access),
        ("write a foreign file", format!("(long)(int)open(\"{foreign}\", 1)"), access),
        ("make a file", format!("(long)(int)creat(\"{}\", 0600)", new.display()), access),
        ("write in /etc", "(long)(int)creat(\"/etc/sysflow-intruder\", 0600)".to_string(), access),
        ("remove a foreign file", format!("(long)(int)unlink(\"{foreign}\")"), access),
        ("look into root's home", "(long)(int)open(\"/root\", 0)".to_string(), access),
        ("load a program", load, permission),
        ("make a map", map, permission),
        ("trace a process", trace, permission),
        ("signal a process", format!("(long)(int)kill({pid}, 15)"), permission),
        ("run a program", execute, permission),
        ("listen", "(long)(int)listen((int)socket(2, 1, 0), 1)".to_string(), permission),
        ("connect elsewhere", connect, access),
        ("open a raw socket", "(long)(int)socket(17, 3, 0)".to_string(), permission),
        ("mount", "(long)(int)mount(0, \"/\", 0, 32, 0)".to_string(), permission),
        ("become somebody", "(long)(int)setuid(1)".to_string(), permission),
    ];
    tried.retain(is_known);
    let came = attempts(agent.program.pid(), &tried)?;
    // Another process of root, which nothing confines, can do what it is asked for.
    let free: Vec<Attempt> =
        tried.iter().filter(|(name, ..)| name.contains("foreign file")).cloned().collect();
    let by_another = attempts(pid, &free)?;
    victim.kill()?;
    victim.wait()?;
    let mut faults = Vec::new();
    for ((name, expression, expected), came) in tried.iter().zip(&came) {
        if came != expected {
            faults.push(format!("{name} ({expression}): {came:?}, expected {expected:?}"));
        }
    }
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), agent.program.log()?);
    assert!(by_another.iter().all(Option::is_none), "{by_another:?}");
    assert!(!new.exists());
    // And it goes on with its work.
    let before = tests::frames::find(&fleet.store())?.len();
    wait_for("another frame", DEADLINE, || {
        Ok((tests::frames::find(&fleet.store())?.len() > before).then_some(()))
    })?;
    agent.program.stop()?;
    collector.program.stop()?;
    println!("{} attempts, {} refused", tried.len(), came.iter().flatten().count());
    Ok(())
}
