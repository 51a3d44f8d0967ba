//! What the image runs, run here: the package's own test, and the init script.

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

#[test]
fn the_init_script_starts_and_stops_the_agent() -> Result {
    let test = "the_init_script_starts_and_stops_the_agent";
    if !has_program("start-stop-daemon") || !has_program("logger") {
        return skip(test, "start-stop-daemon and logger are not installed");
    }
    let Some(machine) = Machine::claim(test, &[Need::Agent, Need::Root])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let settings = fleet.agent_settings("agent", "127.0.0.1:9".parse()?);
    let config = fleet.path("agent.toml");
    std::fs::write(&config, settings.text())?;
    // The same script, with this fleet's places.
    let script = std::fs::read_to_string(root().join(FILES).join("sysflow-agent.init"))?;
    let places = [
        ("PROGRAM=/usr/bin/sysflow-agent", format!("PROGRAM={}", machine.agent().display())),
        ("CONFIG=/etc/sysflow/agent.toml", format!("CONFIG={}", config.display())),
        ("STATE=/var/lib/sysflow", format!("STATE={}", fleet.path("agent").display())),
        ("RUN=/run/sysflow", format!("RUN={}", fleet.path("run").display())),
    ];
    let script = places.iter().try_fold(script, |script, (from, to)| {
        script.contains(from).then(|| script.replace(from, to)).ok_or(*from)
    })?;
    let path = fleet.path("init");
    std::fs::write(&path, script)?;
    let call = |verb: &str| -> Result<Option<i32>> {
        let output = Command::new("sh").arg(&path).arg(verb).output()?;
        Ok(output.status.code())
    };
    assert_eq!(call("status")?, Some(3));
    assert_eq!(call("start")?, Some(0));
    wait_for("status", DEADLINE, || Ok((call("status")? == Some(0)).then_some(())))?;
    let pid = std::fs::read_to_string(fleet.path("run/sysflow-agent.pid"))?;
    let program = std::fs::read_link(format!("/proc/{}/exe", pid.trim()))?;
    assert_eq!(program, std::fs::canonicalize(machine.agent())?);
    assert_eq!(call("stop")?, Some(0));
    assert_eq!(call("status")?, Some(3));
    // It ended in order: its state says so to the next run, which then has no gap to tell.
    assert!(!program.as_os_str().is_empty() && !fleet.path("run/sysflow-agent.pid").exists());
    assert_eq!(call("nonsense")?, Some(2));
    Ok(())
}
