//! SIGHUP: the certificate files are read anew at once, and the run goes on.

use std::path::Path;
use std::time::Duration;

use tests::Result;
use tests::fleet::{AGENT_ID, Fleet};
use tests::machine::{Machine, Need};
use tests::program::Program;
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until it has said so once more than before.
fn says(agent: &Program, text: &str, times: usize) -> Result {
    wait_for(text, DEADLINE, || {
        let count = agent.log()?.matches(text).count();
        Ok((count >= times).then_some(()))
    })
}

fn copy(from: &Path, to: &Path) -> Result {
    for file in ["agent.pem", "agent.key"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

#[test]
fn a_new_certificate_is_in_use_as_soon_as_the_agent_is_told() -> Result {
    let test = "a_new_certificate_is_in_use_as_soon_as_the_agent_is_told";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    // Another fleet's, so that nothing is delivered; and by itself it would try tomorrow.
    let foreign = fleet.issue("foreign", &["--agent", AGENT_ID])?;
    let device = fleet.path("device");
    std::fs::create_dir(&device)?;
    copy(&foreign, &device)?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    settings.certificate = device.join("agent.pem");
    settings.key = device.join("agent.key");
    settings.upload_interval_s = 86_400;
    let mut agent = fleet.start_agent(&settings)?;
    let run = agent.status()?["run_id"].clone();

    // Where nothing waits there is nothing to deliver.
    agent.wait_until("frames wait", |status| status["spool"]["frames"].as_u64() > Some(0))?;
    copy(&fleet.path("pki"), &device)?;
    agent.program.reload()?;
    says(&agent.program, "reload: ", 1)?;
    agent.wait_until("it delivers", |status| {
        status["upload"]["frames"].as_u64() > Some(0) && status["upload"]["failures"] == 0
    })?;
    assert!(!agent.program.log()?.contains("refused"), "{}", agent.program.log()?);

    // What cannot be used changes nothing, and is said each time.
    std::fs::write(device.join("agent.pem"), "none")?;
    for times in [1, 2] {
        agent.program.reload()?;
        says(&agent.program, "the former certificate stays in use", times)?;
    }
    copy(&fleet.path("pki"), &device)?;
    agent.program.reload()?;
    says(&agent.program, "reload: ", 2)?;
    assert!(run.is_string() && agent.status()?["run_id"] == run, "{run}");
    agent.program.stop()?;
    collector.program.stop()?;
    let (code, _) = fleet.ledger()?;
    assert_eq!(code, Some(0), "nothing is lost");
    Ok(())
}

/// Each of them may cut a load of the probes short, and libbpf itself tries five times.
#[test]
fn signals_while_it_starts_do_not_end_the_agent() -> Result {
    const SIGNALS: usize = 400;
    let test = "signals_while_it_starts_do_not_end_the_agent";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let settings = fleet.agent_settings("agent", collector.address);
    let mut agent = fleet.launch_agent(&settings)?;
    // It takes its lock when it takes signals, and before it loads anything.
    let lock = settings.spool.join("lock");
    wait_for("its lock", DEADLINE, || Ok(lock.exists().then_some(())))?;
    for _ in 0..SIGNALS {
        agent.program.reload()?;
        std::thread::sleep(Duration::from_micros(500));
    }
    agent.wait_until("it watches the kernel", |status| status["ready"] == true)?;
    agent.program.stop()?;
    collector.program.stop()
}
