//! A device whose certificate is revoked, or whose id is denied, while it delivers: it says so,
//! keeps its frames, and delivers all of them once it may again.

use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::fleet::{AGENT_ID, Fleet};
use tests::frames::{self, Summary};
use tests::machine::{Machine, Need};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);

/// Changes the collector's configuration, which it reads again by itself.
fn reconfigure(fleet: &Fleet<'_>, from: &str, to: &str) -> Result {
    let config = fleet.path("pki/collector.toml");
    let text = std::fs::read_to_string(&config)?;
    assert!(text.contains(from), "{text}");
    let making = fleet.path("pki/making");
    std::fs::write(&making, text.replace(from, to))?;
    Ok(std::fs::rename(making, config)?)
}

fn held(fleet: &Fleet<'_>) -> Result<usize> {
    if fleet.store().exists() { Ok(frames::find(&fleet.store())?.len()) } else { Ok(0) }
}

fn says(status: &Value, text: &str) -> bool {
    status["upload"]["last_error"].as_str().is_some_and(|error| error.contains(text))
}

#[test]
fn a_revoked_device_is_told_so_and_delivers_with_a_new_certificate() -> Result {
    let test = "a_revoked_device_is_told_so_and_delivers_with_a_new_certificate";
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    let mut agent = fleet.start_agent(&fleet.agent_settings("agent", collector.address))?;
    wait_for("the first frames", DEADLINE, || Ok((held(&fleet)? > 0).then_some(())))?;

    let revoked = fleet.path("pki/agent.pem");
    fleet.issue("pki", &["--revoke", &revoked.to_string_lossy()])?;
    reconfigure(
        &fleet,
        "key = \"collector.key\"\n",
        "key = \"collector.key\"\ncrl = \"crl.pem\"\n",
    )?;
    agent.wait_until("it is told that its certificate is revoked", |status| {
        says(status, "collector refused our certificate: certificate revoked (")
            && says(status, "agent.pem")
    })?;
    let log = wait_for("the collector's word", DEADLINE, || {
        let log = collector.program.log()?;
        Ok(log.contains("TLS handshake refused: revoked").then_some(log))
    })?;
    assert!(log.contains("read anew"), "{log}");

    // The operator gives the device a new certificate, and restarts nothing.
    let before = held(&fleet)?;
    fleet.issue("pki", &[])?;
    wait_for("more frames", DEADLINE, || Ok((held(&fleet)? > before).then_some(())))?;

    reconfigure(&fleet, "[limits]\n", &format!("[agents]\ndenied = [{AGENT_ID:?}]\n[limits]\n"))?;
    agent.wait_until("it is denied", |status| says(status, "403 denied"))?;
    reconfigure(&fleet, &format!("{AGENT_ID:?}"), "")?;
    let before = held(&fleet)?;
    wait_for("more frames", DEADLINE, || Ok((held(&fleet)? > before).then_some(())))?;
    agent.program.stop()?;
    collector.program.stop()?;
    let summary = Summary::of(&fleet.store())?;
    assert!(summary.holes().is_empty(), "{:?}", summary.holes());
    let (code, _) = fleet.ledger()?;
    assert_eq!(code, Some(0), "nothing is lost");
    Ok(())
}
