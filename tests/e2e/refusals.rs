//! What a collector must not take, posted over real TLS: it says why, on both sides, and
//! keeps nothing of it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::fleet::{AGENT_ID, Collector, Fleet};
use tests::frames::{self, Summary};
use tests::machine::{Machine, Need};
use tests::post::{self, Identity};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(20);
const RUN: [u8; 16] = [3; 16];
static OLD_VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

fn with_collector(test: &str, body: impl FnOnce(&Fleet<'_>, &mut Collector) -> Result) -> Result {
    let Some(machine) = Machine::claim(test, &[])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let mut collector = fleet.start_collector("127.0.0.1:0")?;
    body(&fleet, &mut collector)?;
    collector.program.stop()
}

fn good(fleet: &Fleet<'_>) -> Identity {
    Identity::of(&fleet.path("pki"), "agent")
}

fn stored(fleet: &Fleet<'_>) -> Result<u64> {
    if fleet.store().exists() { Ok(Summary::of(&fleet.store())?.frames) } else { Ok(0) }
}

fn health(address: SocketAddr, identity: &Identity) -> Result<Value> {
    let answer = post::request(address, identity, "GET", "/v1/health", "", b"")?;
    if answer.status == 200 { Ok(answer.body) } else { Err(format!("{answer:?}").into()) }
}

#[track_caller]
fn expect_refusal(answer: &post::Answer, status: u16, kind: &str) {
    assert_eq!((answer.status, answer.body["error"].as_str()), (status, Some(kind)), "{answer:?}");
    let detail = answer.body["detail"].as_str().unwrap_or_default();
    assert!(detail.len() > kind.len(), "no detail in {answer:?}");
}

#[test]
fn who_speaks_only_tls_1_2_does_not_get_in() -> Result {
    with_collector("who_speaks_only_tls_1_2_does_not_get_in", |fleet, collector| {
        let old = Identity { versions: OLD_VERSIONS, ..good(fleet) };
        let said = health(collector.address, &old).expect_err("TLS 1.2 is spoken").to_string();
        assert!(said.contains("ProtocolVersion"), "{said}");
        health(collector.address, &good(fleet))?;
        Ok(())
    })
}

#[test]
fn whole_frames_are_stored_and_repeats_fall_away() -> Result {
    with_collector("whole_frames_are_stored_and_repeats_fall_away", |fleet, collector| {
        let identity = good(fleet);
        let mut body = frames::sample(AGENT_ID, RUN, 0)?;
        body.extend(frames::sample(AGENT_ID, RUN, 1)?);
        body.extend(frames::sample(AGENT_ID, RUN, 3)?);
        for _ in 0..2 {
            let answer = post::frames(collector.address, &identity, &body)?;
            assert_eq!(answer.status, 200, "{answer:?}");
            let stream = &answer.body["streams"][0];
            assert_eq!(stream["run"], "0303030303030303");
            assert_eq!(stream["contiguous"], 2);
            assert_eq!(stream["holes"], serde_json::json!([[2, 2]]));
            assert!(answer.body["time_ns"].as_u64().unwrap_or(0) > 1_700_000_000_000_000_000);
        }
        assert_eq!(stored(fleet)?, 3);
        Ok(())
    })
}

#[test]
fn damaged_bodies_are_refused_whole() -> Result {
    with_collector("damaged_bodies_are_refused_whole", |fleet, collector| {
        let identity = good(fleet);
        let first = frames::sample(AGENT_ID, RUN, 0)?;
        let second = frames::sample(AGENT_ID, RUN, 1)?;
        // A bit of the second frame's records, its last byte missing, and its length raised.
        let mut flipped = [first.clone(), second.clone()].concat();
        let middle = first.len() + second.len() / 2;
        flipped[middle] ^= 1;
        let mut cut = [first.clone(), second.clone()].concat();
        cut.pop();
        let mut long = [first.clone(), second.clone()].concat();
        long[first.len() + 4] ^= 1;
        let bodies = [flipped, cut, long, b"not a frame".to_vec(), Vec::new()];
        for body in bodies {
            let answer = post::frames(collector.address, &identity, &body)?;
            expect_refusal(&answer, 400, "malformed");
        }
        assert_eq!(stored(fleet)?, 0, "nothing of a refused body is stored");
        let counted = health(collector.address, &identity)?;
        assert_eq!(counted["refused"]["malformed"], 5, "{counted}");
        Ok(())
    })
}

#[test]
fn a_body_over_the_limit_is_refused() -> Result {
    with_collector("a_body_over_the_limit_is_refused", |fleet, collector| {
        let body = vec![b'x'; Collector::BODY_BYTES_MAX + 1];
        let answer = post::frames(collector.address, &good(fleet), &body)?;
        expect_refusal(&answer, 413, "too-large");
        let answer = post::request(
            collector.address,
            &good(fleet),
            "POST",
            "/v1/frames",
            "text/plain",
            b"",
        )?;
        expect_refusal(&answer, 415, "content-type");
        Ok(())
    })
}

#[test]
fn frames_of_another_agent_are_refused() -> Result {
    with_collector("frames_of_another_agent_are_refused", |fleet, collector| {
        let body = frames::sample("gw-0002", RUN, 0)?;
        let answer = post::frames(collector.address, &good(fleet), &body)?;
        expect_refusal(&answer, 403, "foreign-frame");
        assert_eq!(stored(fleet)?, 0);
        Ok(())
    })
}

#[test]
fn a_certificate_without_a_usable_id_is_refused() -> Result {
    with_collector("a_certificate_without_a_usable_id_is_refused", |fleet, collector| {
        fleet.issue("pki", &["--as", "odd", "--san-id", "../GW"])?;
        let odd = Identity::of(&fleet.path("pki"), "odd");
        let answer = post::frames(collector.address, &odd, &frames::sample(AGENT_ID, RUN, 0)?)?;
        expect_refusal(&answer, 401, "identity");
        assert_eq!(stored(fleet)?, 0);
        Ok(())
    })
}

/// Posts with an identity whose handshake must fail, and expects the reason in the log and
/// in the counters.
fn expect_handshake_refusal(
    fleet: &Fleet<'_>,
    collector: &mut Collector,
    identity: &Identity,
    reason: &str,
) -> Result {
    let body = frames::sample(AGENT_ID, RUN, 0)?;
    let answer = post::frames(collector.address, identity, &body);
    assert!(answer.is_err(), "{reason}: {answer:?}");
    let line = collector.program.wait_for_line(reason, DEADLINE)?;
    assert!(line.contains("127.0.0.1:"), "no peer in {line:?}");
    let address = collector.address;
    wait_for(&format!("{reason} among the counters"), DEADLINE, || {
        let counted = health(address, &good(fleet))?;
        Ok((counted["handshakes_refused"][reason] == 1).then_some(()))
    })?;
    assert_eq!(stored(fleet)?, 0);
    Ok(())
}

#[test]
fn strangers_and_the_expired_do_not_get_in() -> Result {
    with_collector("strangers_and_the_expired_do_not_get_in", |fleet, collector| {
        fleet.issue("pki", &["--as", "late", "--expired"])?;
        let late = Identity::of(&fleet.path("pki"), "late");
        expect_handshake_refusal(fleet, collector, &late, "expired")?;

        let other = fleet.issue("other-pki", &["--agent", AGENT_ID])?;
        let mut stranger = Identity::of(&other, "agent");
        stranger.ca = fleet.path("pki/ca.pem");
        expect_handshake_refusal(fleet, collector, &stranger, "unknown-issuer")?;

        let nobody = Identity { certificate: None, ..good(fleet) };
        expect_handshake_refusal(fleet, collector, &nobody, "no-certificate")
    })
}

#[test]
fn a_collector_of_another_fleet_is_not_trusted() -> Result {
    with_collector("a_collector_of_another_fleet_is_not_trusted", |fleet, collector| {
        let other = fleet.issue("other-pki", &["--agent", AGENT_ID])?;
        let fooled = Identity { ca: other.join("ca.pem"), ..good(fleet) };
        let body = frames::sample(AGENT_ID, RUN, 0)?;
        let refused = post::frames(collector.address, &fooled, &body);
        let said = refused.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("UnknownIssuer"), "{said:?}");
        collector.program.wait_for_line("refused-by-client", DEADLINE)?;
        Ok(())
    })
}

/// Runs an agent with a certificate that the collector refuses and returns what it says.
fn refused_agent(test: &str, options: &[&str], ca: &str, expected: &[&str]) -> Result {
    let Some(machine) = Machine::claim(test, &[Need::Agent])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let collector = fleet.start_collector("127.0.0.1:0")?;
    let folder = fleet.issue(ca, options)?;
    let mut settings = fleet.agent_settings("agent", collector.address);
    let file = |name: &str| -> std::path::PathBuf { Path::new(&folder).join(name) };
    (settings.certificate, settings.key) = (file("late.pem"), file("late.key"));
    let mut agent = fleet.launch_agent(&settings)?;
    let line = agent.program.wait_for_line("certificate", DEADLINE)?;
    for word in expected {
        assert!(line.contains(word), "no {word:?} in {line:?}");
    }
    assert!(!line.contains("roken pipe"), "{line:?}");
    assert_eq!(stored(&fleet)?, 0);
    Ok(())
}

#[test]
fn an_agent_says_that_its_certificate_expired() -> Result {
    refused_agent(
        "an_agent_says_that_its_certificate_expired",
        &["--as", "late", "--expired"],
        "pki",
        &["expired"],
    )
}

#[test]
fn an_agent_says_that_its_ca_is_unknown() -> Result {
    refused_agent(
        "an_agent_says_that_its_ca_is_unknown",
        &["--as", "late"],
        "other-pki",
        &["refused"],
    )
}
