//! Certificates, revocation lists and the list of denied devices change while the collector runs.

use crate::harness::client::{Client, config};
use crate::harness::frames::Run;
use crate::harness::pki::{Identity, Pki};
use crate::harness::{Collector, Site, until};

const AGENT: &str = "gw-1";

fn write(site: &Site, name: &str, text: &str) {
    // As an operator's tool does it: never half a file.
    let making = site.path("making");
    std::fs::write(&making, text).unwrap();
    std::fs::rename(making, site.path(name)).unwrap();
}

/// The configuration with one line more in its `[tls]`, and with `extra` behind it.
fn configure(site: &Site, line: &str, extra: &str) {
    let config = std::fs::read_to_string(site.path("collector.toml")).unwrap();
    let config = config.replace("[store]", &format!("{line}\n[store]"));
    write(site, "collector.toml", &format!("{config}{extra}"));
}

/// Whether a device with this certificate is served now.
fn is_served(collector: &Collector<'_>, identity: &Identity) -> bool {
    let mut client = collector.connect_as(Some(identity));
    let sent = client.send(b"GET /v1/health HTTP/1.1\r\nhost: c\r\n\r\n");
    sent.and_then(|()| client.receive()).is_ok_and(|answer| answer.status == 200)
}

#[track_caller]
fn refused_as_revoked(collector: &Collector<'_>, identity: &Identity) {
    let error = collector.connect_as(Some(identity)).alert();
    assert!(error.contains("CertificateRevoked"), "{error}");
    collector.logged(&["TLS handshake refused: revoked"]);
}

fn times(site: &Site, text: &str) -> usize {
    site.log().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_revoked_certificate_is_refused_as_such_and_others_are_not() {
    let site = Site::new("");
    let (lost, good) = (site.pki.agent("gw-lost"), site.pki.agent(AGENT));
    write(&site, "crl.pem", &site.pki.revocation_list(&[&lost], 30));
    configure(&site, "crl = 'crl.pem'", "");
    let collector = site.start();
    refused_as_revoked(&collector, &lost);
    assert!(is_served(&collector, &good));
    assert_eq!(collector.health()["handshakes_refused"]["revoked"], 1);
}

#[test]
fn a_list_that_changes_holds_from_then_on_also_for_open_connections() {
    let site = Site::new("");
    let (lost, good) = (site.pki.agent("gw-lost"), site.pki.agent(AGENT));
    write(&site, "crl.pem", &site.pki.revocation_list(&[], 30));
    configure(&site, "crl = ['crl.pem']", "");
    let collector = site.start();
    let mut open = collector.connect_as(Some(&lost));
    assert_eq!(open.post(&Run::new("gw-lost", 1).start(0, 0)).status, 200);
    write(&site, "crl.pem", &site.pki.revocation_list(&[&lost], 30));
    // All connections end, and begin again by the new rules.
    assert!(open.is_gone());
    refused_as_revoked(&collector, &lost);
    assert!(is_served(&collector, &good));
    // And back, by signal.
    write(&site, "crl.pem", &site.pki.revocation_list(&[], 30));
    collector.signal("HUP");
    until("the device to be taken again", || is_served(&collector, &lost).then_some(()));
}

#[test]
fn connections_and_sessions_last_as_long_as_their_certificate_is_good() {
    let site = Site::new("");
    let collector = site.start();
    let frames = Run::new(AGENT, 1).start(0, 0);
    let post = |config| {
        let mut client = Client::over(collector.address, config);
        let answer = client.post(&frames);
        (client.is_resumed(), answer)
    };
    let lasting = config(&site.pki, Some(&site.pki.agent(AGENT)));
    for is_resumed in [false, true, true] {
        let (found, answer) = post(&lasting);
        assert_eq!((found, answer.status), (is_resumed, 200));
    }
    // Long enough for a first upload on a busy machine.
    let brief = config(&site.pki, Some(&site.pki.brief(AGENT, 20)));
    let mut open = Client::over(collector.address, &brief);
    assert_eq!(open.post(&frames).status, 200);
    assert_eq!(post(&brief).1.status, 200);
    let detail = until("the certificate to end", || {
        let (is_resumed, answer) = post(&brief);
        assert!(is_resumed);
        (answer.status != 200).then(|| answer.refusal(401, "identity"))
    });
    assert!(detail.contains("is not valid any more"), "{detail}");
    // Nor does a connection that lasts go on.
    open.post(&frames).refusal(401, "identity");
    // It holds what others say for good.
    assert!(post(&lasting).0);
}

#[test]
fn new_rules_end_all_sessions() {
    let site = Site::new("");
    let lost = site.pki.agent("gw-lost");
    write(&site, "crl.pem", &site.pki.revocation_list(&[], 30));
    configure(&site, "crl = ['crl.pem']", "");
    let collector = site.start();
    let config = config(&site.pki, Some(&lost));
    for is_resumed in [false, true] {
        let mut client = Client::over(collector.address, &config);
        client.get("/v1/health");
        assert_eq!(client.is_resumed(), is_resumed);
    }
    write(&site, "crl.pem", &site.pki.revocation_list(&[&lost], 30));
    collector.signal("HUP");
    collector.logged(&["read anew"]);
    refused_as_revoked(&collector, &lost);
    let error = Client::over(collector.address, &config).alert();
    assert!(error.contains("CertificateRevoked"), "{error}");
}

#[test]
fn a_wrong_list_leaves_the_old_one_in_use_and_is_complained_about_once() {
    let site = Site::new("");
    let lost = site.pki.agent("gw-lost");
    write(&site, "crl.pem", &site.pki.revocation_list(&[&lost], 30));
    configure(&site, "crl = 'crl.pem'", "");
    let collector = site.start();
    for (text, complaint) in [
        ("nonsense\n".to_owned(), "holds no revocation list"),
        (Pki::new("another fleet").revocation_list(&[], 30), "is not signed by a CA of"),
        (Pki::new("fleet").revocation_list(&[], 30), "is not signed by a CA of"),
    ] {
        write(&site, "crl.pem", &text);
        collector.signal("HUP");
        let line = collector.logged(&["crl.pem: ", complaint]);
        assert!(line.contains("what was read before stays in use"), "{line}");
        refused_as_revoked(&collector, &lost);
    }
    // Looked at again and again, said once for each change and each signal.
    let said = times(&site, "stays in use");
    std::fs::remove_file(site.path("crl.pem")).unwrap();
    collector.logged(&["crl.pem: ", "No such file"]);
    write(&site, "crl.pem", &site.pki.revocation_list(&[], 30));
    until("the good list", || is_served(&collector, &lost).then_some(()));
    assert!(times(&site, "stays in use") <= said + 2);
    assert_eq!(times(&site, "No such file"), 1);
}

#[test]
fn a_list_past_its_time_stays_in_use_and_is_warned_of() {
    let site = Site::new("");
    let (lost, good) = (site.pki.agent("gw-lost"), site.pki.agent(AGENT));
    write(&site, "crl.pem", &site.pki.revocation_list(&[&lost], -1));
    configure(&site, "crl = 'crl.pem'", "");
    let collector = site.start();
    collector.logged(&["warning: ", "crl.pem: was to be renewed by", "take a newer list"]);
    refused_as_revoked(&collector, &lost);
    assert!(is_served(&collector, &good));
}

#[test]
fn a_list_that_cannot_be_used_keeps_the_collector_from_starting() {
    let site = Site::new("");
    write(&site, "crl.pem", &Pki::new("another fleet").revocation_list(&[], 30));
    configure(&site, "crl = 'crl.pem'", "");
    let told = site.does_not_start();
    assert!(told.contains("crl.pem") && told.contains("take the list of the fleet's CA"), "{told}");
}

#[test]
fn a_device_that_is_denied_gets_403_at_its_next_request_also_on_an_open_connection() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let run = Run::new(AGENT, 1);
    assert_eq!(client.post(&run.start(0, 0)).status, 200);
    configure(&site, "", "[agents]\ndenied = ['gw-1']\n");
    let mut sequence = 1;
    // On the connection from before.
    let denied = until("the denial", || {
        let answer = client.post(&run.next(0, sequence));
        sequence += 1;
        (answer.status != 200).then_some(answer)
    });
    assert!(denied.refusal(403, "denied").contains(AGENT));
    assert_eq!(collector.connect("gw-2").post(&Run::new("gw-2", 1).start(0, 0)).status, 200);
    // A file that cannot be read changes nothing.
    write(&site, "collector.toml", "[agents\n");
    collector.logged(&["collector.toml: ", "what was read before stays in use"]);
    let again = collector.connect(AGENT).post(&run.next(0, sequence));
    again.refusal(403, "denied");
}

#[test]
fn renewed_certificates_and_another_ca_are_taken_without_a_restart() {
    let site = Site::new("");
    let collector = site.start();
    let next = Pki::new("next fleet");
    let theirs = next.agent(AGENT);
    assert!(!is_served(&collector, &theirs));
    let renewed = site.pki.server();
    // Certificate and key change one after the other: in between they are no pair.
    write(&site, "collector.pem", &renewed.certificate_pem);
    collector.signal("HUP");
    collector.logged(&[
        "collector.key: ",
        "is not the key of",
        "what was read before stays in use",
    ]);
    assert!(is_served(&collector, &site.pki.agent(AGENT)));
    write(&site, "collector.key", &renewed.key_pem);
    write(&site, "ca.pem", &format!("{}{}", site.pki.ca_pem(), next.ca_pem()));
    // The harness's client trusts the first fleet's CA, which signed the collector's.
    until("the new CA", || is_served(&collector, &theirs).then_some(()));
    let shown = collector.connect(AGENT).collectors_certificate();
    assert_eq!(shown, renewed.chain()[0]);
}
