//! What finds no room is counted, kind by kind: the agent stands still while programs do everything
//! that is recorded, so that nearly all of it meets a full ring.

use std::path::Path;
use std::process::Command;

use codec::{Operation, Term};
use rustix::process::{Pid, Signal, kill_process};
use tests::Result;
use tests::fleet::{AgentSettings, Fleet};
use tests::frames::Summary;
use tests::machine::{Machine, Need};

/// Kinds that no full ring takes: closes without a flow are filtered, and of the state of sockets
/// only failures are told.
const NEVER: [Operation; 2] = [Operation::Close, Operation::SocketState];

fn run(name: &str, command: &mut Command, folder: &Path) -> Result {
    let folder = folder.join(name);
    std::fs::create_dir(&folder)?;
    let output = command.arg(&folder).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// Everything that is recorded, each kind at least once.
fn everything(folder: &Path) -> Result {
    let adversary = |kind: &str, count: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload-adversary"));
        command.args(["--kind", kind, "--count", count, "--dir"]);
        command
    };
    // Fills the ring.
    run("opens", &mut adversary("opens", "5000"), folder)?;
    for script in ["events", "acts", "flows", "identities"] {
        let path = format!("{}/workloads/{script}.py", env!("CARGO_MANIFEST_DIR"));
        run(script, Command::new("/usr/bin/python3").arg("-I").arg(path), folder)?;
    }
    run("transfer", Command::new(env!("CARGO_BIN_EXE_workload-transfer")).arg("--dir"), folder)?;
    run("threads", &mut adversary("threads", "20"), folder)?;
    run("ports", &mut adversary("ports", "200"), folder)?;
    std::os::unix::fs::symlink("nowhere", folder.join("link"))?;
    let mut none = Command::new("/nonexistent/program");
    if none.spawn().is_ok() {
        return Err("a program that is not there was started".into());
    }
    Ok(())
}

#[test]
fn what_a_full_ring_takes_is_counted_kind_by_kind() -> Result {
    let test = "what_a_full_ring_takes_is_counted_kind_by_kind";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let settings = AgentSettings {
        ring_bytes: Some(64 << 10),
        ..fleet.agent_settings("agent", collector.address)
    };
    let mut agent = fleet.start_agent(&settings)?;
    let folder = fleet.path("everything");
    std::fs::create_dir(&folder)?;
    let pid = i32::try_from(agent.program.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("no process id")?;
    kill_process(pid, Signal::STOP)?;
    let done = everything(&folder);
    kill_process(pid, Signal::CONT)?;
    done?;
    agent.program.stop()?;
    collector.program.stop()?;
    let summary = Summary::of(&fleet.store())?;
    assert_eq!(summary.unbalanced(), Vec::<String>::new());
    let lost = |kind| summary.ledger.get(&(Some(kind), Term::LostRing)).copied().unwrap_or(0);
    let untouched: Vec<Operation> = Operation::ALL
        .into_iter()
        .filter(|kind| !NEVER.contains(kind) && lost(*kind) == 0)
        .collect();
    assert_eq!(untouched, [], "not met by a full ring");
    Ok(())
}
