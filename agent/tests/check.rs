//! `check` on devices with one thing wrong each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fleet;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agent::check::{self, Level};
use agent::config::Config;
use fleet::Ca;

/// A device in `directory` on which everything is as it should be.
fn device(directory: &Path) -> (Ca, Config) {
    let ca = Ca::new(&directory.join("pki"), "fleet");
    let files = ca.sign_agent("agent", "gw-0001", 90);
    fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
    let mut config = Config::default();
    config.collector.ca = files.ca;
    config.collector.certificate = files.certificate;
    config.collector.key = files.key;
    config.spool.directory = directory.join("state/spool");
    // However full this machine's disk is.
    config.spool.free_percent = 0;
    config.status.file = directory.join("run/status.json");
    (ca, config)
}

/// What is not good, with the device's folder left out, and the exit code.
fn complaints(change: impl FnOnce(&Ca, &mut Config)) -> (Vec<String>, u8) {
    let directory = tempfile::tempdir().unwrap();
    let (ca, mut config) = device(directory.path());
    change(&ca, &mut config);
    let findings = check::environment(&config);
    let code = check::exit_code(&findings);
    let prefix = format!("{}/", directory.path().display());
    let bad = findings.iter().filter(|finding| finding.level != Level::Good);
    (bad.map(|finding| finding.to_string().replace(&prefix, "")).collect(), code)
}

#[test]
fn a_device_that_is_well() {
    assert_eq!(complaints(|_, _| {}), (vec![], 0));
    let directory = tempfile::tempdir().unwrap();
    let (_, config) = device(directory.path());
    let good: Vec<String> =
        check::environment(&config).iter().map(|finding| finding.text.clone()).collect();
    assert_eq!(
        good[1..],
        [
            "is for agent \"gw-0001\"",
            "89 days left",
            "is the key of the certificate",
            &format!("is signed by the CA in {}", config.collector.ca.display()),
            "can be written",
            "can be written",
        ]
        .map(|text| text.replace("89", if good[2].starts_with("90") { "90" } else { "89" }))
    );
    // Looking leaves nothing behind.
    assert!(!directory.path().join("state").exists());
}

#[test]
fn one_thing_wrong_at_a_time() {
    let one = |text: &str| (vec![text.to_string()], 78);
    assert_eq!(
        complaints(|_, config| {
            fs::set_permissions(&config.collector.key, Permissions::from_mode(0o644)).unwrap();
        }),
        one("PROBLEM pki/agent.key: mode 644 lets others at it -> chmod 640, or 600")
    );
    assert_eq!(
        complaints(|_, config| config.agent.id = Some("gw-2".into())),
        one("PROBLEM pki/agent.pem: is for agent \"gw-0001\", this is \"gw-2\" (agent.id, or the \
             id at start) -> replace the file")
    );
    assert_eq!(
        complaints(|_, config| fs::remove_file(&config.collector.ca).unwrap()),
        one("PROBLEM pki/ca.pem: No such file or directory (os error 2) -> provide the file, \
             readable for the agent's user")
    );
    assert_eq!(
        complaints(|_, config| fs::write(&config.collector.key, "no key").unwrap()),
        one("PROBLEM pki/agent.key: holds no private key in PEM form, without password -> \
             replace the file")
    );
    assert_eq!(
        complaints(|ca, config| {
            ca.sign_agent("other", "gw-0001", 90);
            fs::set_permissions(ca.path("other.key"), Permissions::from_mode(0o600)).unwrap();
            config.collector.key = ca.path("other.key");
        }),
        one("PROBLEM pki/other.key: is not the key of pki/agent.pem -> replace the file")
    );
    assert_eq!(
        complaints(|ca, config| {
            ca.sign("agent", "URI:sysflow:agent:gw-0001", "serverAuth", 90);
            fs::set_permissions(&config.collector.key, Permissions::from_mode(0o600)).unwrap();
        }),
        one(
            "PROBLEM pki/agent.pem: is not for client authentication -> have it signed by the CA in \
             pki/ca.pem, for client authentication"
        )
    );
    assert_eq!(
        complaints(|ca, config| {
            let other = Ca::new(&ca.path("other"), "another");
            config.collector.ca = other.path("ca.pem");
        }),
        one(
            "PROBLEM pki/agent.pem: is not signed by the CA in pki/other/ca.pem -> have it signed by the CA in \
             pki/other/ca.pem, for client authentication"
        )
    );
    assert_eq!(
        complaints(|_, config| config.kernel.btf = Some("/nonexistent.btf".into())),
        one("PROBLEM /nonexistent.btf: No such file or directory (os error 2) -> provide the \
             file, or leave kernel.btf empty")
    );
    let (texts, code) = complaints(|_, config| {
        fs::write(config.spool.directory.parent().unwrap(), "in the way").unwrap();
    });
    assert_eq!(code, 78);
    assert!(texts[0].contains("state is not a folder"), "{texts:?}");
}

#[test]
fn certificates_and_time() {
    let renew = "renew it; the agent takes the new file without a restart";
    let (texts, code) = complaints(|ca, _| {
        ca.sign_agent("agent", "gw-0001", 10);
    });
    assert_eq!(code, 0, "a warning is no failure: {texts:?}");
    assert!(texts[0].starts_with("WARNING pki/agent.pem: "), "{texts:?}");
    assert!(texts[0].ends_with(&format!("days left -> {renew}")), "{texts:?}");
    let (texts, code) = complaints(|ca, _| {
        ca.sign_agent("agent", "gw-0001", -1);
    });
    assert_eq!((texts.len(), code), (2, 78), "{texts:?}");
    assert!(texts[0].starts_with("PROBLEM pki/agent.pem: expired 1 days ago"), "{texts:?}");
}

#[test]
fn a_spool_larger_than_its_disk_is_worth_a_warning() {
    let is_told = |change: fn(&mut Config)| {
        let (texts, code) = complaints(|_, config| change(config));
        assert_eq!(code, 0);
        let remedy = "-> make room, or lower spool.bytes_max or spool.free_percent";
        assert!(texts[0].ends_with(remedy), "{texts:?}");
        texts
    };
    is_told(|config| config.spool.bytes_max = 1 << 60);
    // No disk has more to give than it has.
    let texts = is_told(|config| config.spool.free_percent = 100);
    assert!(texts[0].contains("has room for 0 bytes where 100 % "), "{texts:?}");
}

#[test]
fn a_budget_is_shown_in_parts_or_refused_with_what_would_do() {
    let mut config = Config::default();
    let (division, findings) = check::memory(&config);
    let division = division.unwrap();
    assert!(findings.iter().all(|finding| finding.level == Level::Good));
    for part in &division.parts {
        let text = format!("{:>8} {}", part.bytes, part.name);
        assert!(findings.iter().any(|finding| finding.text == text), "{text}");
    }
    config.memory.budget_bytes = 1 << 20;
    let (none, findings) = check::memory(&config);
    assert_eq!((none, check::exit_code(&findings)), (None, 78));
    let text = &findings[0].text;
    let needed = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    config.memory.budget_bytes = needed;
    assert_eq!(check::memory(&config).0.unwrap().bytes(), needed, "{text}");
}
