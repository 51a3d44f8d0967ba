//! What keeps a device from delivering is named, and nothing leaves the spool.

use std::sync::Arc;
use std::time::Duration;

use agent::tls::{Credentials, Files};
use rustls::version::{TLS12, TLS13};

use crate::device::{Device, FLEETS, collector};
use crate::fleet::Ca;
use crate::receiver::{self, Collector, Reply};

#[test]
fn a_collector_of_another_ca_is_named() {
    let server = receiver::server(&FLEETS.foreign, "collector", &FLEETS.ours, &TLS13);
    let collector = Collector::start(server, |_, _| Reply::Take);
    let device = Device::start(&collector, &[100], |_| {});
    let ca = FLEETS.files.ca.display();
    assert_eq!(device.error(), format!("collector's certificate is not signed by our CA ({ca})"));
}

#[test]
fn a_collector_for_another_name_is_named() {
    FLEETS.ours.sign("elsewhere", "DNS:elsewhere.example", "serverAuth", 30);
    let server = receiver::server(&FLEETS.ours, "elsewhere", &FLEETS.ours, &TLS13);
    let collector = Collector::start(server, |_, _| Reply::Take);
    let device = Device::start(&collector, &[100], |_| {});
    let expected = "not for localhost (collector.url)";
    let error = device.error();
    assert!(error.contains("elsewhere.example") && error.ends_with(expected), "{error}");
}

#[test]
fn a_refused_certificate_is_named_whatever_the_version_and_the_body() {
    let expired = FLEETS.ours.sign_agent("expired", "gw-0001", -1);
    let foreign = Files {
        ca: FLEETS.ours.path("ca.pem"),
        ..FLEETS.foreign.sign_agent("agent", "gw-0001", 30)
    };
    // Another CA of the same name, as after a fleet's CA was made anew.
    let twin = Ca::new(&FLEETS.directory.path().join("twin"), "ours");
    let twin = Files { ca: FLEETS.ours.path("ca.pem"), ..twin.sign_agent("agent", "gw-0001", 30) };
    for version in [&TLS13, &TLS12] {
        for (files, why) in [
            (&expired, "certificate expired"),
            (&twin, "its signature is not by the CA that the collector trusts"),
            (&foreign, "it is not signed by the CA that the collector trusts"),
        ] {
            // Small, asking for leave, and (in several writes) more than a socket takes.
            for bytes in [100, 60_000] {
                let server = receiver::server(&FLEETS.ours, "collector", &FLEETS.ours, version);
                let collector = Collector::start(server, |_, _| Reply::Take);
                let device = Device::start(&collector, &[bytes; 20], |settings| {
                    settings.credentials = Credentials::load(files, None, &settings.clock).unwrap();
                });
                let file = files.certificate.display();
                let expected = format!("collector refused our certificate: {why} ({file})");
                assert_eq!(device.error(), expected, "{version:?}, {bytes} bytes");
            }
        }
    }
}

#[test]
fn a_demanded_certificate_is_named() {
    let collector = collector(|_, _| Reply::Take);
    let device = Device::start(&collector, &[60_000; 20], |settings| {
        let ca = &settings.collector.ca;
        let mut roots = rustls::RootCertStore::empty();
        let pem: rustls::pki_types::CertificateDer<'_> =
            rustls::pki_types::pem::PemObject::from_pem_file(ca).unwrap();
        roots.add(pem).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        settings.credentials.client = Arc::new(client);
    });
    let error = device.error();
    assert!(error.starts_with("collector requires a client certificate"), "{error}");
}

#[test]
fn nobody_there() {
    let collector = collector(|_, _| Reply::Take);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    drop(listener);
    let device = Device::start(&collector, &[100], |settings| {
        settings.collector.url.clone_from(&url);
    });
    let expected = format!("{url}/v1/frames: connection refused: does the collector run there?");
    assert_eq!(device.error(), expected);
}

#[test]
fn a_collector_that_says_nothing_is_left_after_a_while() {
    let collector = collector(|number, _| if number == 0 { Reply::Silence } else { Reply::Take });
    let device = Device::start(&collector, &[100], |settings| {
        settings.timeouts.stall = Duration::from_millis(300);
    });
    let error = device.error();
    assert!(error.contains("no progress in time"), "{error}");
    device.empty();
    assert_eq!(device.counters().last_error, "");
}
