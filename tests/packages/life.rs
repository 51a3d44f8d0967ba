//! The packages' life on a Debian with dpkg and a systemd of its own: installation without and with
//! certificates, service and delivery, upgrade, removal, purge, and all of it again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::machine::{Machine, Need, skip};
use tests::wait::wait_for;

use crate::container::Container;

/// The unit gives a start two minutes.
const DEADLINE: Duration = Duration::from_secs(150);
/// A version above every one of ours.
const LATER: &str = "9.0.0";
/// What its configuration says more.
const LATER_LINE: &str = "# Of the later version.";
/// Installs it, and keeps the configurations that a device has changed, as fleets do.
const UPGRADE: &str = "dpkg -i --force-confold /packages/later-sysflow-*.deb";
/// What a device sets: its collector, and that it does not wait, for this test's sake.
const SETTINGS: &str = "sed -i -e 's|^url = .*|url = \"https://127.0.0.1:7443\"|' \
     -e 's|^upload_interval_s = 20|upload_interval_s = 1|' \
     -e 's|^age_max_s = 5|age_max_s = 1|' /etc/sysflow/agent.toml";

/// The tree to boot and the two packages, the agent's first; none, after saying so, if they are not
/// there.
fn given(test: &str) -> Result<Option<(PathBuf, Vec<PathBuf>)>> {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let (Some(tree), Some(packages)) = (of("SYSFLOW_DEBIAN"), of("SYSFLOW_PACKAGES")) else {
        skip(test, "SYSFLOW_DEBIAN and SYSFLOW_PACKAGES are not set (run `cargo xtask test`)")?;
        return Ok(None);
    };
    Ok(Some((tree.into(), std::env::split_paths(&packages).collect())))
}

/// Adds a line to the configuration that an unpacked package brings, as a later version has other
/// comments: dpkg then has to choose between it and what a device has made of it.
fn append_to_configuration(unpacked: &Path) -> Result {
    for file in std::fs::read_to_string(unpacked.join("DEBIAN/conffiles"))?.lines() {
        let path = unpacked.join(file.trim_start_matches('/'));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{file}: {e}"))?;
        std::fs::write(path, format!("{text}{LATER_LINE}\n"))?;
    }
    Ok(())
}

/// The same package as [`LATER`], in `folder`.
fn later(package: &Path, folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join("unpacked");
    let dpkg = |arguments: &[OsString]| -> Result {
        let output = Command::new("dpkg-deb").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("dpkg-deb: {said}").into()) }
    };
    dpkg(&["-R".into(), package.into(), unpacked.clone().into()])?;
    let control = unpacked.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)?;
    let version = |line: &str| match line.strip_prefix("Version: ") {
        Some(_) => format!("Version: {LATER}\n"),
        None => format!("{line}\n"),
    };
    std::fs::write(&control, text.lines().map(version).collect::<String>())?;
    append_to_configuration(&unpacked)?;
    let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let made = folder.join(format!("later-{name}"));
    let pack = ["--root-owner-group", "--build"].map(OsString::from);
    dpkg(&[&pack[..], &[unpacked.clone().into(), made.clone().into()]].concat())?;
    std::fs::remove_dir_all(unpacked)?;
    Ok(made)
}

/// The container with the packages in it, and what is asked of it again and again.
struct System<'f> {
    container: Container,
    fleet: &'f Fleet<'f>,
}

impl System<'_> {
    fn sh(&self, line: &str) -> Result<String> {
        self.container.sh(line)
    }

    /// Puts the certificates where the configurations name them, as a careless hand does.
    fn give_certificates(&self) -> Result {
        let pki = self.fleet.path("pki");
        let both = [("/etc/sysflow", "agent"), ("/etc/sysflow-collector", "collector")];
        for (folder, stem) in both {
            for file in ["ca.pem", &format!("{stem}.pem"), &format!("{stem}.key")] {
                let to = self.container.path(&format!("{folder}/{file}"));
                std::fs::copy(pki.join(file), to)?;
                self.sh(&format!("chmod 644 {folder}/{file}"))?;
            }
        }
        Ok(())
    }

    fn state(&self, unit: &str) -> Result<String> {
        Ok(self.container.try_sh(&format!("systemctl is-active {unit}"))?.1.trim().to_string())
    }

    fn wait_until_active(&self, unit: &str) -> Result {
        wait_for(&format!("{unit} to run"), DEADLINE, || {
            let state = self.state(unit)?;
            if state == "failed" {
                return Err(self.sh(&format!("journalctl -u {unit} -n 30 --no-pager"))?.into());
            }
            Ok((state == "active").then_some(()))
        })
    }

    fn main_pid(&self, unit: &str) -> Result<String> {
        self.sh(&format!("systemctl show --property=MainPID --value {unit}"))
    }

    /// Runs a program with this word, and waits until the store tells of it.
    fn expect_delivery_of(&self, word: &str) -> Result {
        self.sh(&format!("/bin/echo {word}"))?;
        self.wait_for_delivery_of(word)
    }

    fn wait_for_delivery_of(&self, word: &str) -> Result {
        let print = "sysflow-collector print --json /var/lib/sysflow-collector";
        wait_for(&format!("{word} in the store"), DEADLINE, || {
            // While frames come in, the last of them may be missing: that is not asked here.
            Ok(self.container.try_sh(print)?.1.contains(word).then_some(()))
        })
    }

    /// The runs and classes in the spool, and the first of their frames.
    fn spool(&self) -> Result<BTreeSet<(String, u64, u64)>> {
        let listed: Value = serde_json::from_str(&self.sh("sysflow-agent spool list --json")?)?;
        let stream = |stream: &Value| {
            let first = stream["sequences"][0][0].as_u64()?;
            Some((stream["run"].as_str()?.to_string(), stream["class"].as_u64()?, first))
        };
        let segments = listed["segments"].as_array().ok_or("spool list names no segments")?;
        let streams = segments.iter().filter_map(|segment| segment["streams"].as_array()).flatten();
        streams.map(|one| Ok(stream(one).ok_or("a stream without run or frame")?)).collect()
    }

    /// Waits until the spool holds something that was not delivered.
    fn wait_for_waiting(&self) -> Result<BTreeSet<(String, u64, u64)>> {
        wait_for("frames in the spool", DEADLINE, || {
            Ok(Some(self.spool()?).filter(|streams| !streams.is_empty()))
        })
    }

    /// All paths that packages may have left something at.
    fn paths(&self) -> Result<BTreeSet<String>> {
        let listed = self.sh(
            "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \
             -o -path /packages -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg \
             -o -path /var/lib/systemd/timers \\) -prune -o -print",
        )?;
        Ok(listed.lines().map(str::to_string).collect())
    }
}

#[test]
fn packages_from_installation_to_purge() -> Result {
    let test = "packages_from_installation_to_purge";
    let Some((tree, packages)) = given(test)? else { return Ok(()) };
    let Some(machine) = Machine::claim(test, &[Need::Root])? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let system = System { container: Container::boot(&tree)?, fleet: &fleet };
    let container = &system.container;
    std::fs::create_dir(container.path("/packages"))?;
    for package in &packages {
        let name = package.file_name().unwrap_or_default();
        std::fs::copy(package, container.path("/packages").join(name))?;
        later(package, &container.path("/packages"))?;
    }
    let lived = life(&system);
    lived.map_err(|error| {
        let states =
            "systemctl --no-pager status sysflow-agent sysflow-collector; journalctl --no-pager";
        let said = system.container.try_sh(states).map(|(_, said)| said).unwrap_or_default();
        println!("{error}\n{said}");
        error
    })
}

/// All of it, in its order.
fn life(system: &System<'_>) -> Result {
    let before = system.paths()?;
    install_without_certificates(system)?;
    serve_and_deliver(system)?;
    upgrade(system)?;
    remove(system)?;
    purge(system, &before)?;

    // And all of it again.
    system.sh("dpkg -i /packages/sysflow-*.deb")?;
    system.give_certificates()?;
    system.sh(SETTINGS)?;
    system.sh("dpkg -i /packages/sysflow-*.deb")?;
    system.sh("systemctl enable --now sysflow-collector sysflow-agent")?;
    system.wait_until_active("sysflow-agent")?;
    system.expect_delivery_of("after-the-purge")
}

fn install_without_certificates(system: &System<'_>) -> Result {
    let said = system.sh("dpkg -i /packages/sysflow-*.deb")?;
    for text in [
        "sysflow-agent: installed, not started: /etc/sysflow lacks ca.pem agent.pem agent.key",
        "agent.key as root:root, mode 600",
        "systemctl enable --now sysflow-agent",
        "/etc/sysflow-collector lacks ca.pem collector.pem collector.key",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert_eq!(system.sh("dpkg --audit")?, "");
    let owners = system
        .sh("stat -c '%n %U:%G %a' /etc/sysflow /etc/sysflow/agent.toml /var/lib/sysflow \
         /etc/sysflow-collector /etc/sysflow-collector/collector.toml /var/lib/sysflow-collector")?;
    let expected = "/etc/sysflow root:sysflow 750\n\
         /etc/sysflow/agent.toml root:sysflow 640\n\
         /var/lib/sysflow sysflow:sysflow 700\n\
         /etc/sysflow-collector root:sysflow-collector 750\n\
         /etc/sysflow-collector/collector.toml root:sysflow-collector 640\n\
         /var/lib/sysflow-collector sysflow-collector:sysflow-collector 750\n";
    assert_eq!(owners, expected);
    for unit in ["sysflow-agent", "sysflow-collector"] {
        let (_, enabled) = system.container.try_sh(&format!("systemctl is-enabled {unit}"))?;
        assert_eq!(enabled.trim(), "disabled", "{unit}");
        assert_eq!(system.state(unit)?, "inactive", "{unit}");
    }
    // Who starts it all the same is told what is missing; packages remain as they are.
    let (status, said) = system.container.try_sh("systemctl start sysflow-agent")?;
    assert_ne!(status, Some(0), "{said}");
    // Without a key it is not even tried, and so not again and again.
    assert_eq!(system.state("sysflow-agent")?, "inactive");
    let (status, said) = system.container.try_sh("sysflow-agent check")?;
    assert!(status == Some(78) && said.contains("/etc/sysflow/agent.pem"), "{status:?} {said}");
    system.container.try_sh("systemctl start sysflow-collector")?;
    wait_for("the collector's words", DEADLINE, || {
        let said = system.sh("journalctl -u sysflow-collector --no-pager")?;
        Ok(said.contains("/etc/sysflow-collector/ca.pem: ").then_some(()))
    })?;
    wait_for("the collector's end", DEADLINE, || {
        Ok((system.state("sysflow-collector")? == "failed").then_some(()))
    })?;
    system.sh("dpkg -i /packages/sysflow-*.deb")?;
    assert_eq!(system.sh("dpkg --audit")?, "");
    system.sh("systemctl reset-failed; systemctl stop sysflow-agent sysflow-collector")?;
    Ok(())
}

fn serve_and_deliver(system: &System<'_>) -> Result {
    system.give_certificates()?;
    system.sh(SETTINGS)?;
    system.sh("dpkg -i /packages/sysflow-*.deb")?;
    let keys = "stat -c '%U:%G %a' /etc/sysflow/agent.key /etc/sysflow-collector/collector.key";
    assert_eq!(system.sh(keys)?, "root:root 600\nroot:sysflow-collector 640\n");
    system.sh("sysflow-agent check")?;
    system.sh("systemctl enable --now sysflow-collector sysflow-agent")?;
    for unit in ["sysflow-agent", "sysflow-collector"] {
        system.wait_until_active(unit)?;
        let wanted = format!("/etc/systemd/system/multi-user.target.wants/{unit}.service");
        assert!(system.container.has(&wanted), "{wanted}");
    }
    system.expect_delivery_of("at-first")?;
    let users = system.sh("stat -c %U /proc/$(systemctl show -P MainPID sysflow-agent) \
         /proc/$(systemctl show -P MainPID sysflow-collector)")?;
    assert_eq!(users, "sysflow\nsysflow-collector\n");
    expect_confinement(system)?;
    // dpkg knows what it has put there.
    assert_eq!(
        system.sh("dpkg --verify sysflow-agent sysflow-collector | grep -v ' c ' || :")?,
        ""
    );
    Ok(())
}

/// Capabilities that the agent keeps where the kernel lets maps be read with it only (5.10).
const CAP_BPF: u64 = 1 << 39;

/// The agent that watches, as the unit has started it: without capabilities, without a way to new
/// ones, and behind its filter of system calls.
fn expect_confinement(system: &System<'_>) -> Result {
    let status = system.sh("cat /proc/$(systemctl show -P MainPID sysflow-agent)/status")?;
    let value = |key: &str| -> Result<&str> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        Ok(line.ok_or_else(|| format!("no {key} in {status}"))?)
    };
    let kept = u64::from_str_radix(value("CapPrm")?, 16)?;
    assert!(kept == 0 || kept == CAP_BPF, "CapPrm {kept:x}");
    for key in ["CapEff", "CapInh", "CapAmb"] {
        let held = u64::from_str_radix(value(key)?, 16)?;
        assert_eq!(held & !kept, 0, "{key} {held:x}");
    }
    assert_eq!((value("NoNewPrivs")?, value("Seccomp")?), ("1", "2"));
    println!("the agent of the package: CapPrm {kept:x}, no new privileges, a filter");
    Ok(())
}

fn upgrade(system: &System<'_>) -> Result {
    system.sh("systemctl stop sysflow-collector")?;
    system.sh("/bin/echo before-the-upgrade")?;
    let waiting = system.wait_for_waiting()?;
    system.sh("echo '# An edited line.' >>/etc/sysflow/agent.toml")?;
    let configuration = system.sh("cat /etc/sysflow/agent.toml")?;
    let pid = system.main_pid("sysflow-agent")?;
    let said = system.sh(UPGRADE)?;
    // What the device has changed stays, the later one beside it; what it has not is the later one.
    assert!(said.contains("Configuration file '/etc/sysflow/agent.toml'"), "{said}");
    for file in ["/etc/sysflow/agent.toml.dpkg-dist", "/etc/sysflow-collector/collector.toml"] {
        let brought = system.sh(&format!("cat {file}"))?;
        assert!(brought.ends_with(&format!("{LATER_LINE}\n")), "{file}: {brought}");
    }

    let versions = system.sh("dpkg-query -W -f '${Version} ' sysflow-agent sysflow-collector")?;
    assert_eq!(versions, format!("{LATER} {LATER} "));
    assert_eq!(system.sh("cat /etc/sysflow/agent.toml")?, configuration);
    system.wait_until_active("sysflow-agent")?;
    assert_ne!(system.main_pid("sysflow-agent")?, pid, "the old agent still runs");
    // What somebody has stopped stays so.
    assert_eq!(system.state("sysflow-collector")?, "inactive");
    let kept = system.spool()?;
    assert!(kept.is_superset(&waiting), "of {waiting:?} the spool has {kept:?}");
    system.sh("systemctl start sysflow-collector")?;
    system.wait_for_delivery_of("before-the-upgrade")?;
    system.expect_delivery_of("after-the-upgrade")
}

fn remove(system: &System<'_>) -> Result {
    system.sh("systemctl stop sysflow-collector && /bin/echo before-the-removal")?;
    let waiting = system.wait_for_waiting()?;
    system.sh("dpkg --remove sysflow-agent")?;
    system.sh("systemctl start sysflow-collector && dpkg --remove sysflow-collector")?;
    for unit in ["sysflow-agent", "sysflow-collector"] {
        assert_eq!(system.state(unit)?, "inactive", "{unit}");
        for path in [
            format!("/usr/bin/{unit}"),
            format!("/usr/lib/systemd/system/{unit}.service"),
            format!("/usr/share/doc/{unit}"),
        ] {
            assert!(!system.container.has(&path), "{path}");
        }
    }
    for path in [
        "/etc/sysflow/agent.toml",
        "/etc/sysflow/agent.key",
        "/var/lib/sysflow/spool",
        "/etc/sysflow-collector/collector.toml",
        "/var/lib/sysflow-collector/gw-0001",
    ] {
        assert!(system.container.has(path), "{path}");
    }
    // A new installation finds all of it, and stays enabled.
    system.sh(UPGRADE)?;
    let kept = system.spool()?;
    assert!(kept.is_superset(&waiting), "of {waiting:?} the spool has {kept:?}");
    let enabled = system.sh("systemctl is-enabled sysflow-agent sysflow-collector")?;
    assert_eq!(enabled, "enabled\nenabled\n");
    system.sh("systemctl start sysflow-collector sysflow-agent")?;
    system.wait_for_delivery_of("before-the-removal")
}

fn purge(system: &System<'_>, before: &BTreeSet<String>) -> Result {
    system.sh("echo mine >/etc/sysflow/of-somebody")?;
    let said = system.sh("dpkg --purge sysflow-agent sysflow-collector")?;
    assert!(said.contains("rm -r /var/lib/sysflow-collector"), "{said}");
    assert_eq!(system.sh("cat /etc/sysflow/of-somebody")?, "mine\n");
    // What a fleet has sent is thrown away by hand only.
    assert!(system.container.has("/var/lib/sysflow-collector/gw-0001"));
    system.sh("rm -r /etc/sysflow /var/lib/sysflow-collector")?;
    let after = system.paths()?;
    let left: Vec<&String> = after.difference(before).filter(|path| !is_of_users(path)).collect();
    let gone: Vec<&String> = before.difference(&after).collect();
    assert!(left.is_empty() && gone.is_empty(), "left: {left:?}; gone: {gone:?}");
    assert!(!system.container.has("/run/sysflow"));
    // Users stay, as Debian's do.
    system.sh("getent passwd sysflow sysflow-collector")?;
    Ok(())
}

/// Whether a path is one of the copies that Debian's tools keep of the lists of users.
fn is_of_users(path: &str) -> bool {
    ["passwd", "group", "shadow", "gshadow"]
        .iter()
        .any(|list| path == format!("/etc/{list}-") || path == "/etc/.pwd.lock")
}
