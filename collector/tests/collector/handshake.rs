//! Who may connect, and that both ends learn why not.

use crate::harness::frames::Run;
use crate::harness::pki::Pki;
use crate::harness::{Site, until};

/// Connects with a certificate that is refused in the handshake.
fn refused(
    identity: impl Fn(&Site) -> Option<crate::harness::pki::Identity>,
    alert: &str,
    reason: &str,
) {
    let site = Site::new("");
    let collector = site.start();
    let client = collector.connect_as(identity(&site).as_ref());
    let error = client.alert();
    assert!(error.contains(alert), "the client sees {error:?}, not {alert}");
    collector.logged(&["127.0.0.1:", "TLS handshake refused", reason]);
    assert_eq!(collector.health()["handshakes_refused"][reason], 1);
    assert!(site.stored("frame").is_empty());
}

#[test]
fn a_certificate_of_another_ca_is_refused_by_name() {
    let other = Pki::new("another fleet");
    refused(|_| Some(other.agent("gw-1")), "UnknownCA", "unknown-issuer");
}

#[test]
fn a_certificate_of_a_ca_with_the_same_name_is_refused_by_signature() {
    let other = Pki::new("fleet");
    refused(|_| Some(other.agent("gw-1")), "DecryptError", "bad-signature");
}

#[test]
fn an_expired_certificate_is_refused_as_expired() {
    refused(|site| Some(site.pki.expired("gw-1")), "CertificateExpired", "expired");
}

#[test]
fn a_certificate_before_its_time_is_refused_as_such() {
    refused(|site| Some(site.pki.early("gw-1")), "CertificateExpired", "not-valid-yet");
}

#[test]
fn no_certificate_is_refused_as_required() {
    refused(|_| None, "CertificateRequired", "no-certificate");
}

#[test]
fn a_servers_certificate_is_no_agents() {
    refused(|site| Some(site.pki.server()), "UnsupportedCertificate", "wrong-purpose");
}

#[test]
fn a_peer_that_speaks_no_tls_is_counted_and_leaves_the_server_alive() {
    use std::io::Write;
    let site = Site::new("");
    let collector = site.start();
    let mut plain = std::net::TcpStream::connect(collector.address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    until("the refusal", || {
        (collector.health()["handshakes_refused"]["not-tls"] == 1).then_some(())
    });
}

#[test]
fn a_peer_that_says_nothing_is_let_go() {
    use std::io::Read;
    let site = Site::new("[limits]\nrequest_timeout_s = 1\n");
    let collector = site.start();
    let mut silent = std::net::TcpStream::connect(collector.address).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(collector.health()["handshakes_refused"]["timeout"], 1);
}

#[test]
fn a_certificate_without_a_usable_id_gets_401_whatever_its_common_name() {
    let site = Site::new("");
    let collector = site.start();
    let body = Run::new("gw-1", 1).start(0, 0);
    let two = ["sysflow:agent:gw-1", "sysflow:agent:gw-2"];
    let cases: [(&[&str], &str); 4] = [
        (&[], "has no SAN URI"),
        (&["https://example.org/gw-1"], "has no SAN URI"),
        (&["sysflow:agent:GW/1"], "not of the form"),
        (&two, "more than one"),
    ];
    for (uris, detail) in cases {
        let mut client = collector.connect_as(Some(&site.pki.with_uris(uris)));
        let told = client.post(&body).refusal(401, "identity");
        assert!(told.contains(detail), "{told}");
        collector.logged(&["identity", detail]);
    }
    assert_eq!(collector.health()["refused"]["identity"], 4);
    assert!(site.stored("frame").is_empty());
}

#[test]
fn a_denied_agent_gets_403_and_others_do_not() {
    let site = Site::new("[agents]\ndenied = ['gw-2']\n");
    let collector = site.start();
    let told = collector.connect("gw-2").post(&Run::new("gw-2", 1).start(0, 0));
    assert!(told.refusal(403, "denied").contains("gw-2"));
    assert_eq!(collector.connect("gw-1").post(&Run::new("gw-1", 2).start(0, 0)).status, 200);
    assert_eq!(site.stored("frame").len(), 1);
}
