//! `cargo xtask deb TARGET`: the agent as a package for Debian and its kin, with its unit, its
//! user, an example of its configuration, its manual, and a list of what it is made of. It is
//! installed and not started: without a certificate it has nobody to be.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::build::{self, grouped};
use crate::workspace::{device_version, root, run as run_command, say};
use crate::{Result, sbom, targets};

const PACKAGE: &str = "sysflow-agent";

/// Files of the tree, where they go, and their modes.
const FILES: [(&str, &str, u32); 6] = [
    ("agent/sysflow-agent.service", "usr/lib/systemd/system/sysflow-agent.service", 0o644),
    ("agent/sysflow-agent.sysusers", "usr/lib/sysusers.d/sysflow-agent.conf", 0o644),
    ("agent/agent.toml", "etc/sysflow/agent.toml", 0o640),
    ("agent/sysflow-agent.8", "usr/share/man/man8/sysflow-agent.8", 0o644),
    ("agent/sysflow-agent.bash", "usr/share/bash-completion/completions/sysflow-agent", 0o644),
    ("NOTICE", "usr/share/doc/sysflow-agent/NOTICE", 0o644),
];

const AFTER_INSTALL: &str = "#!/bin/sh
set -e
if [ \"$1\" = configure ]; then
	if ! getent passwd sysflow >/dev/null; then
		if command -v systemd-sysusers >/dev/null; then
			systemd-sysusers sysflow-agent.conf
		else
			useradd --system --user-group --no-create-home --home-dir /var/lib/sysflow \\
				--shell /usr/sbin/nologin sysflow
		fi
	fi
	chgrp sysflow /etc/sysflow /etc/sysflow/agent.toml
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		systemctl try-restart sysflow-agent.service
	fi
fi
";

const BEFORE_REMOVAL: &str = "#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now sysflow-agent.service
fi
";

const AFTER_REMOVAL: &str = "#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ \"$1\" = purge ]; then
	# Keys and certificates in /etc/sysflow are not the package's.
	rm -rf /var/lib/sysflow /run/sysflow
fi
";

/// Makes the package of the agent for a static target, and beside it the list of what the agent is
/// made of; both into `target/packages/`.
///
/// # Errors
/// If the target's program needs a C library, or something does not build.
pub fn run(triple: &str) -> Result {
    let target = targets::find(triple)?;
    if !target.is_static() {
        return Err(format!(
            "{triple}: packages have static programs, which run with any C library; name a target \
             with musl"
        )
        .into());
    }
    let built = build::agent(&target)?;
    let time = std::env::var("SOURCE_DATE_EPOCH").ok().or_else(build::commit_time);
    let document = sbom::document(PACKAGE, &built.crates, true, time.as_deref())?;
    let document = serde_json::to_string_pretty(&document)? + "\n";
    let folder = root().join("target/packages");
    std::fs::create_dir_all(&folder)?;
    let stem = format!("{PACKAGE}_{}_{}", device_version()?, target.debian);
    let list = folder.join(format!("{stem}.cdx.json"));
    std::fs::write(&list, &document)?;
    let package = folder.join(format!("{stem}.deb"));
    pack(&built.path, &document, &target.debian, time.as_deref(), &package)?;
    let bytes = std::fs::metadata(&package)?.len();
    println!("{}: {} bytes", package.display(), grouped(bytes));
    println!("{}: {} crates", list.display(), built.crates.len());
    Ok(())
}

fn place(path: &Path, content: &[u8], mode: u32) -> Result {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    std::fs::write(path, content).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?)
}

/// Lays the files out and has them packed.
fn pack(
    program: &Path,
    list: &str,
    architecture: &str,
    time: Option<&str>,
    package: &Path,
) -> Result {
    say(&format!("packing {}", package.display()));
    let staged = tempfile::tempdir()?;
    let at = |name: &str| staged.path().join(name);
    let mut bytes = 0;
    for (from, to, mode) in FILES {
        let from: PathBuf = root().join(from);
        let content = std::fs::read(&from).map_err(|e| format!("{}: {e}", from.display()))?;
        bytes += content.len();
        place(&at(to), &content, mode)?;
    }
    let content = std::fs::read(program).map_err(|e| format!("{}: {e}", program.display()))?;
    bytes += content.len() + list.len();
    place(&at("usr/bin/sysflow-agent"), &content, 0o755)?;
    place(&at("usr/share/doc/sysflow-agent/sysflow-agent.cdx.json"), list.as_bytes(), 0o644)?;
    let licences = licences()?;
    place(&at("usr/share/doc/sysflow-agent/copyright"), licences.as_bytes(), 0o644)?;
    run_command(
        Command::new("gzip").args(["-9", "-n"]).arg(at("usr/share/man/man8/sysflow-agent.8")),
    )?;
    std::fs::set_permissions(at("etc/sysflow"), PermissionsExt::from_mode(0o750))?;
    let version = device_version()?;
    let kilobytes = bytes.div_ceil(1024);
    let control = format!(
        "Package: {PACKAGE}\nVersion: {version}\nArchitecture: {architecture}\n\
         Maintainer: SysFlow Edge maintainers <maintainers@sysflow-edge.example>\n\
         Installed-Size: {kilobytes}\nDepends: passwd\nSection: net\n\
         Priority: optional\nHomepage: https://sysflow.io\n\
         Description: watches a device and delivers what it did to a SysFlow collector\n \
         eBPF probes see processes, files and network endpoints; volumes are summed in\n \
         the kernel, kept in a bounded spool, and delivered over mutual TLS.\n"
    );
    for (name, content, mode) in [
        ("control", control.as_str(), 0o644),
        ("conffiles", "/etc/sysflow/agent.toml\n", 0o644),
        ("postinst", AFTER_INSTALL, 0o755),
        ("prerm", BEFORE_REMOVAL, 0o755),
        ("postrm", AFTER_REMOVAL, 0o755),
    ] {
        place(&at("DEBIAN").join(name), content.as_bytes(), mode)?;
    }
    std::fs::set_permissions(staged.path(), PermissionsExt::from_mode(0o755))?;
    let mut packer = Command::new("dpkg-deb");
    packer.args(["--root-owner-group", "-Zxz", "--build"]).arg(staged.path()).arg(package);
    if let Some(time) = time {
        packer.env("SOURCE_DATE_EPOCH", time);
    }
    run_command(packer.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// The licences that the package comes under, in full or where Debian keeps them.
fn licences() -> Result<String> {
    let bsd = std::fs::read_to_string(root().join("bpf/LICENSE-BSD-2-Clause"))?;
    Ok(format!(
        "SysFlow Edge is under the Apache License, version 2.0; its probes for the kernel under\n\
         GPL-2.0-only or, at your choice, BSD-2-Clause. sysflow-agent.cdx.json names each part\n\
         of others with its licence. libelf is linked statically, under LGPL-3.0-or-later: the\n\
         source tree of this version is what relinking takes.\n\n\
         On Debian systems the texts are in /usr/share/common-licenses (Apache-2.0, GPL-2,\n\
         GPL-3, LGPL-3).\n\n{bsd}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(arguments: &[&str], package: &Path) -> String {
        let output = Command::new("dpkg-deb").args(arguments).arg(package).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_package_has_all_files_as_roots_and_the_same_bytes_again() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, "a program").unwrap();
        let make = |name: &str| {
            let package = folder.path().join(name);
            pack(&program, "{}\n", "arm64", Some("1700000000"), &package).unwrap();
            package
        };
        let package = make("one.deb");
        let listed = tell(&["--contents"], &package);
        let has = |mode: &str, path: &str| {
            let is_it = |line: &str| line.starts_with(mode) && line.ends_with(path);
            assert!(listed.lines().any(is_it), "{mode} {path}:\n{listed}");
        };
        has("-rwxr-xr-x root/root", " ./usr/bin/sysflow-agent");
        has("-rw-r----- root/root", " ./etc/sysflow/agent.toml");
        has("drwxr-x--- root/root", " ./etc/sysflow/");
        has("-rw-r--r-- root/root", " ./usr/lib/systemd/system/sysflow-agent.service");
        has("-rw-r--r-- root/root", " ./usr/share/man/man8/sysflow-agent.8.gz");
        has("-rw-r--r-- root/root", " ./usr/share/doc/sysflow-agent/sysflow-agent.cdx.json");
        let control = tell(&["--field"], &package);
        assert!(control.contains("Architecture: arm64") && control.contains("Version: 0."));
        for script in [AFTER_INSTALL, BEFORE_REMOVAL, AFTER_REMOVAL] {
            let checked = Command::new("sh").args(["-n", "-c", script]).status().unwrap();
            assert!(checked.success(), "{script}");
        }
        assert_eq!(std::fs::read(&package).unwrap(), std::fs::read(make("two.deb")).unwrap());
    }

    #[test]
    fn a_target_with_a_c_library_is_refused() {
        let refused = run("aarch64-unknown-linux-gnu").unwrap_err().to_string();
        assert!(refused.contains("static programs"), "{refused}");
    }
}
