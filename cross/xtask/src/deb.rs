//! `cargo xtask deb TARGET [PACKAGE]...`: the agent or the collector as a package for Debian and
//! its kin, with its unit, its user, its configuration, its manual, completions for shells, a
//! list of what it is made of, and the notices of those parts. It is installed and not started: without a certificate it has
//! nobody to be. What is done on the way in and out is in `cross/debian/`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::build::{self, grouped};
use crate::targets::{self, Target};
use crate::workspace::{self, Workspace, root, run as run_command, say};
use crate::{Result, collector, notices, parts, sbom, zig};

/// One of the packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// `sysflow-agent`, for a device.
    Agent,
    /// `sysflow-collector`, for a centre.
    Collector,
}

/// Scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

impl Package {
    /// The package of this name, with or without `sysflow-` before it.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(name: &str) -> Result<Package> {
        match name.trim_start_matches("sysflow-") {
            "agent" => Ok(Package::Agent),
            "collector" => Ok(Package::Collector),
            _ => Err(format!("{name:?} is no package: these are agent and collector").into()),
        }
    }

    /// Its name without `sysflow-`: that of its folder in the tree, and of its configuration.
    fn stem(self) -> &'static str {
        match self {
            Package::Agent => "agent",
            Package::Collector => "collector",
        }
    }

    /// Its name, and its program's.
    pub fn name(self) -> String {
        format!("sysflow-{}", self.stem())
    }

    fn workspace(self) -> Workspace {
        match self {
            Package::Agent => Workspace::Device,
            Package::Collector => Workspace::Collector,
        }
    }

    /// The name of its folders in `/etc`, `/var/lib` and `/run`, and of its user.
    fn folder(self) -> &'static str {
        match self {
            Package::Agent => "sysflow",
            Package::Collector => "sysflow-collector",
        }
    }

    /// Files of the tree, where they go, and their modes.
    fn files(self) -> Vec<(String, String, u32)> {
        let (stem, name, folder) = (self.stem(), self.name(), self.folder());
        let of = |ending: &str| format!("{stem}/{name}.{ending}");
        let share = |place: &str| format!("usr/share/{place}");
        vec![
            (of("service"), format!("usr/lib/systemd/system/{name}.service"), 0o644),
            (of("sysusers"), format!("usr/lib/sysusers.d/{name}.conf"), 0o644),
            (format!("{stem}/{stem}.toml"), format!("etc/{folder}/{stem}.toml"), 0o640),
            (of("8"), share(&format!("man/man8/{name}.8")), 0o644),
            (of("bash"), share(&format!("bash-completion/completions/{name}")), 0o644),
            (of("zsh"), share(&format!("zsh/vendor-completions/_{name}")), 0o644),
            (of("fish"), share(&format!("fish/vendor_completions.d/{name}.fish")), 0o644),
            ("NOTICE".to_string(), share(&format!("doc/{name}/NOTICE")), 0o644),
            ("CHANGELOG.md".to_string(), share(&format!("doc/{name}/NEWS.md")), 0o644),
        ]
    }

    /// What stands in the scripts for the names of this package.
    fn names(self) -> [(&'static str, String); 8] {
        let (state_mode, key_group, key_mode, keeps_state) = match self {
            // The unit lends the key to the agent; a spool is of no use to anybody else.
            Package::Agent => ("700", "root", "600", "no"),
            // The collector reads the key itself, and its store is what a fleet has said.
            Package::Collector => ("750", "sysflow-collector", "640", "yes"),
        };
        [
            ("@PACKAGE@", self.name()),
            ("@USER@", self.folder().to_string()),
            ("@FOLDER@", self.folder().to_string()),
            ("@STEM@", self.stem().to_string()),
            ("@STATE_MODE@", state_mode.to_string()),
            ("@KEY_GROUP@", key_group.to_string()),
            ("@KEY_MODE@", key_mode.to_string()),
            ("@KEEPS_STATE@", keeps_state.to_string()),
        ]
    }

    /// A script that dpkg runs.
    fn script(self, name: &str) -> Result<String> {
        let text = read(&root().join("cross/debian").join(name))?;
        let mut text = String::from_utf8(text)?;
        for (placeholder, value) in self.names() {
            text = text.replace(placeholder, &value);
        }
        Ok(text)
    }

    fn description(self) -> &'static str {
        match self {
            Package::Agent => {
                "tells a SysFlow collector what programs on a device do\n \
                 eBPF probes see processes, files and network endpoints; volumes are summed in\n \
                 the kernel, kept in a bounded spool, and delivered over mutual TLS."
            }
            Package::Collector => {
                "central receiver of what SysFlow agents saw\n \
                 Takes frames of a fleet of agents over mutual TLS, keeps them durably and once,\n \
                 writes standard SysFlow files, and says what is missing."
            }
        }
    }

    /// What lintian is told, with the reason before it.
    fn overrides(self) -> String {
        let name = self.name();
        format!(
            "# A static program runs with any C library, or none: devices differ.\n\
             {name}: statically-linked-binary *\n\
             # The configuration says whom a fleet trusts: its user's alone.\n\
             {name}: non-standard-dir-perm 0750 != 0755 *\n\
             {name}: non-standard-file-perm 0640 != 0644 *\n\
             # Called only where there is no systemd-sysusers; the dependency names both.\n\
             {name}: maintainer-script-needs-depends-on-adduser *\n\
             # The notice has no year, as NOTICE has none.\n\
             {name}: copyright-without-copyright-notice\n"
        )
    }
}

/// What a package is made of besides files of the tree.
struct Contents<'c> {
    /// The program.
    program: &'c Path,
    /// What it is linked of, as CycloneDX.
    list: &'c str,
    /// The licences and notices of what it is linked of.
    notices: &'c str,
    /// The architecture's name in Debian.
    architecture: &'c str,
    /// The time that files and changelog bear, Unix seconds; none: now.
    time: Option<&'c str>,
}

/// Makes packages for a static target, and beside each the list of what it is made of; all into
/// `target/packages/`, whose files it returns: the packages, in their order.
///
/// # Errors
/// If the target's programs need a C library, or something does not build.
pub fn run(triple: &str, packages: &[Package]) -> Result<Vec<PathBuf>> {
    let target = targets::find(triple)?;
    if !target.is_static() {
        return Err(format!(
            "{triple}: packages have static programs, which run with any C library; name a target \
             with musl"
        )
        .into());
    }
    packages.iter().map(|package| make(*package, &target)).collect()
}

fn make(package: Package, target: &Target) -> Result<PathBuf> {
    let (program, crates) = match package {
        Package::Agent => build::agent(target).map(|built| (built.path, built.crates))?,
        Package::Collector => collector::build(target).map(|built| (built.path, built.crates))?,
    };
    let time = sbom::time();
    let time = time.as_deref();
    let (zig, name) = (zig::libraries()?, package.name());
    let built = parts::Program {
        workspace: package.workspace(),
        name: &name,
        file: &program,
        crates: &crates,
        zig: Some(&zig),
    };
    let parts = parts::of(&built)?;
    let list = serde_json::to_string_pretty(&sbom::document(&built, &parts, time)?)? + "\n";
    let notices = notices::of(&name, &parts)?;
    let folder = root().join("target/packages");
    std::fs::create_dir_all(&folder)?;
    let version = package.workspace().version()?;
    let stem = format!("{}_{version}_{}", package.name(), target.debian);
    let list_file = folder.join(format!("{stem}.cdx.json"));
    std::fs::write(&list_file, &list)?;
    let file = folder.join(format!("{stem}.deb"));
    let contents = Contents {
        program: &program,
        list: &list,
        notices: &notices,
        architecture: &target.debian,
        time,
    };
    pack(package, &contents, &file)?;
    println!("{}: {} bytes", file.display(), grouped(std::fs::metadata(&file)?.len()));
    println!("{}: {} parts", list_file.display(), parts.len());
    Ok(file)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// A folder that becomes a package.
struct Staged {
    folder: tempfile::TempDir,
}

impl Staged {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn place(&self, name: &str, content: &[u8], mode: u32) -> Result {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        std::fs::write(&path, content).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?)
    }

    /// Runs a command in the folder, and returns what it prints.
    fn output(&self, program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path()).stderr(Stdio::inherit());
        let output = command.output().map_err(|e| format!("start {program}: {e}"))?;
        if !output.status.success() {
            return Err(format!("{}: {}", workspace::show(&command), output.status).into());
        }
        Ok(output.stdout)
    }
}

/// Lays the files out and has them packed.
fn pack(package: Package, contents: &Contents<'_>, file: &Path) -> Result {
    say(&format!("packing {}", file.display()));
    let staged = Staged { folder: tempfile::tempdir()? };
    let name = package.name();
    for (from, to, mode) in package.files() {
        staged.place(&to, &read(&root().join(from))?, mode)?;
    }
    staged.place(&format!("usr/bin/{name}"), &read(contents.program)?, 0o755)?;
    let documents = format!("usr/share/doc/{name}");
    let document = |file: &str| format!("{documents}/{file}");
    staged.place(&document(&format!("{name}.cdx.json")), contents.list.as_bytes(), 0o644)?;
    staged.place(&document("THIRD-PARTY"), contents.notices.as_bytes(), 0o644)?;
    staged.place(&document("copyright"), copyright(package)?.as_bytes(), 0o644)?;
    let version = package.workspace().version()?;
    let maintainer = workspace::maintainer()?;
    let changelog = format!(
        "{name} ({version}) unstable; urgency=medium\n\n  * What has changed is in NEWS.md.\n\n \
         -- {maintainer}  {}\n",
        date(contents.time)?
    );
    staged.place(&document("changelog"), changelog.as_bytes(), 0o644)?;
    let overrides = format!("usr/share/lintian/overrides/{name}");
    staged.place(&overrides, package.overrides().as_bytes(), 0o644)?;
    let manual = format!("usr/share/man/man8/{name}.8");
    for packed in [manual, document("changelog"), document("NEWS.md"), document("THIRD-PARTY")] {
        staged.output("gzip", &["-9", "-n", &packed])?;
    }
    let etc = format!("etc/{}", package.folder());
    std::fs::set_permissions(staged.at(&etc), PermissionsExt::from_mode(0o750))?;
    std::fs::set_permissions(staged.folder.path(), PermissionsExt::from_mode(0o755))?;

    let sizes = staged.output("find", &["etc", "usr", "-type", "f", "-printf", "%s\n"])?;
    let bytes: u64 = String::from_utf8(sizes)?.lines().filter_map(|n| n.parse::<u64>().ok()).sum();
    let sums = "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
    let sums = staged.output("sh", &["-c", sums])?;
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {}\nMaintainer: {maintainer}\n\
         Installed-Size: {}\n\
         Depends: systemd | systemd-standalone-sysusers | adduser\n\
         Section: net\nPriority: optional\nHomepage: https://sysflow.io\nDescription: {}\n",
        contents.architecture,
        bytes.div_ceil(1024),
        package.description(),
    );
    staged.place("DEBIAN/control", control.as_bytes(), 0o644)?;
    staged.place("DEBIAN/md5sums", &sums, 0o644)?;
    let conffile = format!("/{etc}/{}.toml\n", package.stem());
    staged.place("DEBIAN/conffiles", conffile.as_bytes(), 0o644)?;
    for script in SCRIPTS {
        staged.place(&format!("DEBIAN/{script}"), package.script(script)?.as_bytes(), 0o755)?;
    }
    let mut packer = Command::new("dpkg-deb");
    packer.args(["--root-owner-group", "-Zxz", "--build"]).arg(staged.folder.path()).arg(file);
    if let Some(time) = contents.time {
        packer.env("SOURCE_DATE_EPOCH", time);
    }
    run_command(packer.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// A time as changelogs have it; now, if there is none.
fn date(time: Option<&str>) -> Result<String> {
    let moment = match time {
        Some(seconds) => time::OffsetDateTime::from_unix_timestamp(seconds.parse()?)?,
        None => time::OffsetDateTime::now_utc(),
    };
    let (weekday, month) = (moment.weekday().to_string(), moment.month().to_string());
    let (hour, minute, second) = moment.to_hms();
    Ok(format!(
        "{weekday:.3}, {:02} {month:.3} {} {hour:02}:{minute:02}:{second:02} +0000",
        moment.day(),
        moment.year(),
    ))
}

/// The licences that a package comes under, in full or where Debian keeps them.
fn copyright(package: Package) -> Result<String> {
    let name = package.name();
    let mut text = format!(
        "Copyright the SysFlow Edge authors; see NOTICE.\n\n\
         SysFlow Edge is under the Apache License, version 2.0. {name}.cdx.json names each\n\
         part of others with its licence; THIRD-PARTY.gz has their licences and notices.\n"
    );
    if package == Package::Agent {
        text.push_str(
            "\nThe agent's probes for the kernel are under GPL-2.0-only or, at your choice,\n\
             BSD-2-Clause. libelf is linked statically, under LGPL-3.0-or-later: the source tree\n\
             of this version is what relinking takes.\n",
        );
    }
    text.push_str(
        "\nOn Debian systems the texts are in /usr/share/common-licenses (Apache-2.0, GPL-2,\n\
         GPL-3, LGPL-3).\n",
    );
    if package == Package::Agent {
        text.push('\n');
        text.push_str(&String::from_utf8(read(&root().join("bpf/LICENSE-BSD-2-Clause"))?)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Package; 2] = [Package::Agent, Package::Collector];

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
        for package in BOTH {
            let make = |name: &str| {
                let file = folder.path().join(name);
                let contents = Contents {
                    program: &program,
                    list: "{}\n",
                    notices: "ring: ISC\n",
                    architecture: "arm64",
                    time: Some("1700000000"),
                };
                pack(package, &contents, &file).unwrap();
                file
            };
            let file = make("one.deb");
            let listed = tell(&["--contents"], &file);
            let has = |mode: &str, path: &str| {
                let path = path.replace("NAME", &package.name());
                let is_it = |line: &str| line.starts_with(mode) && line.ends_with(&path);
                assert!(listed.lines().any(is_it), "{mode} {path}:\n{listed}");
            };
            let etc = format!("./etc/{}/", package.folder());
            has("drwxr-x--- root/root", &format!(" {etc}"));
            has("-rw-r----- root/root", &format!(" {etc}{}.toml", package.stem()));
            has("-rwxr-xr-x root/root", " ./usr/bin/NAME");
            for path in [
                " ./usr/lib/systemd/system/NAME.service",
                " ./usr/lib/sysusers.d/NAME.conf",
                " ./usr/share/man/man8/NAME.8.gz",
                " ./usr/share/doc/NAME/NAME.cdx.json",
                " ./usr/share/doc/NAME/THIRD-PARTY.gz",
                " ./usr/share/doc/NAME/copyright",
                " ./usr/share/doc/NAME/changelog.gz",
                " ./usr/share/bash-completion/completions/NAME",
                " ./usr/share/zsh/vendor-completions/_NAME",
                " ./usr/share/fish/vendor_completions.d/NAME.fish",
            ] {
                has("-rw-r--r-- root/root", path);
            }
            let control = tell(&["--field"], &file);
            assert!(control.contains("Architecture: arm64") && control.contains("Version: 0."));
            assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(make("two.deb")).unwrap());
        }
    }

    #[test]
    fn scripts_have_the_names_of_their_package() {
        for package in BOTH {
            for name in SCRIPTS {
                let script = package.script(name).unwrap();
                assert!(script.contains(&package.name()) && !script.contains('@'), "{script}");
                let checked = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
                assert!(checked.success(), "{script}");
            }
        }
    }

    #[test]
    fn a_changelog_bears_the_commits_time() {
        assert_eq!(date(Some("1700000000")).unwrap(), "Tue, 14 Nov 2023 22:13:20 +0000");
    }

    #[test]
    fn a_target_with_a_c_library_and_an_unknown_package_are_refused() {
        let refused = run("aarch64-unknown-linux-gnu", &BOTH).unwrap_err().to_string();
        assert!(refused.contains("static programs"), "{refused}");
        assert_eq!(Package::find("sysflow-collector").unwrap(), Package::Collector);
        let refused = Package::find("probe").unwrap_err().to_string();
        assert!(refused.contains("agent and collector"), "{refused}");
    }
}
