//! What the image runs, run here: the package's own test, and the init script.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::Result;
use tests::fleet::Fleet;
use tests::machine::{Machine, Need, has_program, skip};
use tests::wait::wait_for;

use crate::checks::root;

const FILES: &str = "yocto/meta-sysflow/recipes-sysflow/sysflow-agent/files";
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn the_packages_own_test_passes_here_and_fails_without_rights() -> Result {
    let test = "the_packages_own_test_passes_here_and_fails_without_rights";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let run = |wrapper: &[&str]| -> Result<(bool, String)> {
        let mut words = wrapper.iter().copied().chain(["sh"]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg(root().join(FILES).join("run-ptest"));
        let output = command.env("AGENT", machine.agent()).output()?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    };
    let (passed, said) = run(&[])?;
    assert!(passed && said.matches("PASS: ").count() >= 5 && !said.contains("FAIL"), "{said}");
    let (passed, said) = run(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"])?;
    assert!(!passed && said.contains("FAIL: capture"), "{said}");
    Ok(())
}

/// What the script needs of BusyBox in place of the machine's tools.
const APPLETS: [&str; 11] = [
    "cat",
    "grep",
    "kill",
    "logger",
    "mkdir",
    "mkfifo",
    "readlink",
    "rm",
    "sh",
    "sleep",
    "start-stop-daemon",
];

/// A program in the agent's place, that does as the only line of its configuration says: whoever
/// runs beside another fails, as in a spool that is in use. It ends by itself if nobody ends it.
const ACTOR: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t asked;
static void ask(int signal) { asked = signal; }
static volatile sig_atomic_t told;
static void hear(int signal) { told = signal; }

int main(int argc, char **argv)
{
	char part[16] = "", used[512], reloaded[512], text[32] = "";
	FILE *config = fopen(argv[argc - 1], "r");
	if (!config || fscanf(config, "%15s", part) != 1 || !strcmp(part, "wrong"))
		return 78;
	snprintf(used, sizeof used, "%s.used", argv[argc - 1]);
	snprintf(reloaded, sizeof reloaded, "%s.reloaded", argv[argc - 1]);
	if (!strcmp(argv[1], "status")) {
		FILE *status = fopen(used, "r");
		if (!status || !fgets(text, sizeof text, status))
			return 69;
		printf("agent gw (process %s)\n", text);
		return 0;
	}
	int file = open(used, O_CREAT | O_EXCL | O_WRONLY, 0600);
	if (file < 0)
		return 1;
	dprintf(file, "%d", getpid());
	signal(SIGTERM, strcmp(part, "deaf") ? ask : SIG_IGN);
	signal(SIGHUP, hear);
	alarm(300);
	while (!asked) {
		usleep(10000);
		if (told) {
			told = 0;
			close(open(reloaded, O_CREAT | O_WRONLY, 0600));
		}
	}
	if (!strcmp(part, "slow"))
		sleep(2);
	unlink(used);
	return 0;
}
"#;

/// The script with the places of a test, and what runs it.
struct Init {
    folder: PathBuf,
    program: PathBuf,
    /// Where its shell and tools are.
    path: OsString,
}

impl Init {
    /// The script in `folder` for `program`, run by dash and the machine's tools, or by BusyBox.
    fn new(folder: &Path, program: &Path, state: &Path, is_busybox: bool) -> Result<Init> {
        let script = std::fs::read_to_string(root().join(FILES).join("sysflow-agent.init"))?;
        let place = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        let places = [
            ("PROGRAM=/usr/bin/sysflow-agent", place("PROGRAM", program.to_path_buf())),
            ("CONFIG=/etc/sysflow/agent.toml", place("CONFIG", folder.join("agent.toml"))),
            ("STATE=/var/lib/sysflow", place("STATE", state.to_path_buf())),
            ("RUN=/run/sysflow", place("RUN", folder.join("run"))),
        ];
        let script = places.iter().try_fold(script, |script, (from, to)| {
            script.contains(from).then(|| script.replace(from, to)).ok_or(*from)
        })?;
        std::fs::write(folder.join("init"), script)?;
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        if is_busybox {
            let busybox = std::env::split_paths(&path).map(|one| one.join("busybox"));
            let busybox = busybox.into_iter().find(|one| one.is_file()).ok_or("no busybox")?;
            let applets = folder.join("applets");
            std::fs::create_dir(&applets)?;
            for name in APPLETS {
                std::os::unix::fs::symlink(&busybox, applets.join(name))?;
            }
            path = applets.into();
        }
        let program = program.to_path_buf();
        Ok(Init { folder: folder.to_path_buf(), program, path })
    }

    fn set(&self, from: &str, to: &str) -> Result {
        let script = std::fs::read_to_string(self.folder.join("init"))?;
        assert!(script.contains(from), "{from}");
        Ok(std::fs::write(self.folder.join("init"), script.replace(from, to))?)
    }

    fn configure(&self, part: &str) -> Result {
        Ok(std::fs::write(self.folder.join("agent.toml"), part)?)
    }

    /// How a call ends, and what it says.
    fn call(&self, verb: &str) -> Result<(Option<i32>, String)> {
        let mut command = Command::new("sh");
        command.arg(self.folder.join("init")).arg(verb);
        // A background process that kept an end of a pipe would be waited for.
        let said = std::fs::File::create(self.folder.join("said"))?;
        command.env("PATH", &self.path).stdout(said.try_clone()?).stderr(said);
        let status = command.status()?;
        Ok((status.code(), std::fs::read_to_string(self.folder.join("said"))?))
    }

    fn expect(&self, verb: &str, code: i32) -> Result<String> {
        let (ended, said) = self.call(verb)?;
        assert_eq!(ended, Some(code), "{:?} {verb}: {said}", self.path);
        Ok(said)
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("run/sysflow-agent.pid")
    }

    fn pid(&self) -> Result<u32> {
        Ok(std::fs::read_to_string(self.pid_file())?.trim().parse()?)
    }

    fn is_program(&self, pid: u32) -> bool {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.program)
    }
}

/// Why the script cannot be run so here, if it cannot.
fn lack(is_busybox: bool) -> Option<&'static str> {
    let needed: &[&'static str] =
        if is_busybox { &["busybox"] } else { &["start-stop-daemon", "logger"] };
    needed.iter().copied().find(|name| !has_program(name))
}

fn lives(test: &str, is_busybox: bool) -> Result {
    if let Some(program) = lack(is_busybox) {
        return skip(test, &format!("{program} is not installed"));
    }
    let temporary = tempfile::tempdir()?;
    let folder = std::fs::canonicalize(temporary.path())?;
    let (source, program) = (folder.join("actor.c"), folder.join("sysflow-agent"));
    std::fs::write(&source, ACTOR)?;
    let made = Command::new("cc").arg("-o").arg(&program).arg(&source).output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let init = Init::new(&folder, &program, &folder.join("state"), is_busybox)?;
    life(&init)?;
    failures(&init)
}

/// Start, status, stop and restart in order.
fn life(init: &Init) -> Result {
    // Without a configuration nothing is known, and nothing starts.
    init.expect("status", 4)?;
    init.expect("start", 6)?;
    init.configure("slow")?;
    init.expect("status", 3)?;
    init.expect("stop", 0)?;
    init.expect("reload", 7)?;
    init.expect("start", 0)?;
    let first = init.pid()?;
    assert!(init.is_program(first));
    let said = init.expect("status", 0)?;
    assert!(said.contains(&format!("agent gw (process {first})")), "{said}");
    let said = init.expect("start", 0)?;
    assert!(said.contains("runs already") && init.pid()? == first, "{said}");
    // The one that stops slowly is gone before the next runs, which would fail beside it.
    init.expect("restart", 0)?;
    let second = init.pid()?;
    assert!(second != first && !init.is_program(first) && init.is_program(second));
    init.expect("reload", 0)?;
    let reloaded = init.folder.join("agent.toml.reloaded");
    wait_for("the reload", DEADLINE, || Ok(reloaded.exists().then_some(())))?;
    assert!(init.pid()? == second && init.is_program(second));
    // An upgrade has replaced the program of one that runs.
    let replaced = init.program.with_extension("new");
    std::fs::copy(&init.program, &replaced)?;
    std::fs::rename(&replaced, &init.program)?;
    init.expect("status", 0)?;
    init.configure("wrong")?;
    init.expect("status", 4)?;
    init.expect("stop", 0)?;
    assert!(std::fs::read_link(format!("/proc/{second}/exe")).is_err());
    assert!(!init.pid_file().exists() && !init.folder.join("agent.toml.used").exists());
    init.configure("slow")?;
    init.expect("status", 3)?;
    init.expect("nonsense", 2)?;
    Ok(())
}

/// What goes wrong: at the start, at the stop, with the file of the process id, with folders.
fn failures(init: &Init) -> Result {
    init.configure("wrong")?;
    let said = init.expect("start", 1)?;
    assert!(said.contains("has not started") && !init.pid_file().exists(), "{said}");

    // A number that is another program's by now.
    init.configure("deaf")?;
    let mut other = Command::new("sleep").arg("300").spawn()?;
    let judged = (|| -> Result {
        std::fs::write(init.pid_file(), format!("{}\n", other.id()))?;
        init.expect("status", 1)?;
        init.expect("stop", 0)?;
        assert!(other.try_wait()?.is_none() && !init.pid_file().exists());
        std::fs::write(init.pid_file(), format!("{}\n", other.id()))?;
        init.expect("start", 0)?;
        assert!(other.try_wait()?.is_none() && init.pid()? != other.id());
        Ok(())
    })();
    other.kill()?;
    other.wait()?;
    judged?;

    // It does not listen, and is killed; then it is dead with its file there.
    init.set("STOP_WITHIN=45", "STOP_WITHIN=1")?;
    let pid = init.pid()?;
    std::fs::copy(init.pid_file(), init.folder.join("kept"))?;
    let said = init.expect("stop", 0)?;
    assert!(said.contains("is killed") && !init.is_program(pid), "{said}");
    std::fs::copy(init.folder.join("kept"), init.pid_file())?;
    init.expect("status", 1)?;

    // No place for its folders.
    let state = format!("STATE={}", init.folder.join("state").display());
    init.set(&state, &format!("STATE={}", init.program.join("state").display()))?;
    let said = init.expect("start", 1)?;
    assert!(said.contains("sysflow-agent/state cannot be made"), "{said}");
    Ok(())
}

#[test]
fn the_init_script_lives_with_the_machines_tools() -> Result {
    lives("the_init_script_lives_with_the_machines_tools", false)
}

#[test]
fn the_init_script_lives_with_busybox() -> Result {
    lives("the_init_script_lives_with_busybox", true)
}

#[test]
fn the_init_script_starts_and_stops_the_agent() -> Result {
    let test = "the_init_script_starts_and_stops_the_agent";
    if let Some(program) = [false, true].into_iter().find_map(lack) {
        return skip(test, &format!("{program} is not installed"));
    }
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root])? else { return Ok(()) };
    for is_busybox in [false, true] {
        let fleet = Fleet::new(&machine)?;
        let settings = fleet.agent_settings("agent", "127.0.0.1:9".parse()?);
        let program = std::fs::canonicalize(machine.agent())?;
        let state = fleet.path("agent");
        let init = Init::new(&fleet.path(""), &program, &state, is_busybox)?;
        init.configure(&settings.text())?;
        init.expect("start", 0)?;
        assert!(init.is_program(init.pid()?));
        wait_for("status", DEADLINE, || {
            Ok(init.call("status")?.1.contains("privileges").then_some(()))
        })?;
        init.expect("stop", 0)?;
        init.expect("status", 3)?;
        // A problem with the configuration is one of the start.
        init.configure("[nonsense]\n")?;
        init.expect("start", 1)?;
    }
    Ok(())
}
