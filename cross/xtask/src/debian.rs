//! Packages of Debian that this machine does not install: of another release, or of another
//! architecture. They are fetched by apt from the machine's own mirror into a private root
//! below `target/`, and unpacked there; nothing touches the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::workspace::{root, show};

/// An index that is younger needs no refresh, seconds.
const INDEX_AGE_MAX_S: u64 = 24 * 3600;

/// One release (`bookworm`, `bookworm-backports`) for one architecture.
#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
    suite: String,
    architecture: String,
}

impl Archive {
    /// Fetches the list of packages unless it is there and fresh.
    ///
    /// # Errors
    /// If apt is missing, or the mirror does not have the release.
    pub fn open(suite: &str, architecture: &str) -> Result<Archive> {
        let folder = root().join("target/debian").join(format!("{suite}-{architecture}"));
        let archive =
            Archive { folder, suite: suite.to_string(), architecture: architecture.to_string() };
        let stamp = archive.folder.join("stamp");
        let age =
            fs::metadata(&stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age.as_secs() < INDEX_AGE_MAX_S) {
            return Ok(archive);
        }
        archive.configure()?;
        let output = archive.apt("apt-get").args(["-qq", "update"]).output()?;
        // apt ends well although an index is missing: what it says decides.
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || said.lines().any(|line| line.starts_with("E:")) {
            return Err(format!("the list of {suite} for {architecture}: {}", said.trim()).into());
        }
        fs::write(stamp, "")?;
        Ok(archive)
    }

    /// Writes what apt needs to leave the system alone.
    fn configure(&self) -> Result {
        let Archive { folder, suite, architecture } = self;
        for part in ["state/lists/partial", "cache/archives/partial", "etc/apt.conf.d"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        let source = format!("deb [arch={architecture}] {} {suite} main\n", mirror()?);
        fs::write(folder.join("sources.list"), source)?;
        let at = folder.display();
        let text = format!(
            "Dir \"{at}\";\nDir::State \"state\";\nDir::State::status \"{at}/status\";\n\
             Dir::Cache \"cache\";\nDir::Etc \"etc\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferencesparts \"-\";\n\
             Dir::Etc::trustedparts \"/usr/share/keyrings\";\n\
             APT::Architecture \"{architecture}\";\nAPT::Architectures {{ \"{architecture}\"; }};\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n"
        );
        Ok(fs::write(folder.join("apt.conf"), text)?)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf")).stdin(Stdio::null());
        command
    }

    /// Versions of a package, newest first.
    ///
    /// # Errors
    /// If apt cannot be run.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let output = self.apt("apt-cache").args(["madison", package]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = |line: &str| line.split('|').nth(1).map(|word| word.trim().to_string());
        Ok(text.lines().filter_map(version).collect())
    }

    /// Fetches a package, the newest if no version is given, and unpacks those of its files
    /// that match one of `patterns` (as tar's `--wildcards` has them, beginning with `./`) into
    /// a folder that is kept; returns the folder. What is there already is not fetched again.
    ///
    /// # Errors
    /// If the mirror does not have the package, or it has none of the files.
    pub fn unpack(
        &self,
        package: &str,
        version: Option<&str>,
        patterns: &[&str],
    ) -> Result<PathBuf> {
        let exact = version.map_or(package.to_string(), |version| format!("{package}={version}"));
        let place = self.folder.join("unpacked").join(exact.replace(['/', ':'], "_"));
        if place.join("complete").exists() {
            return Ok(place.join("root"));
        }
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::create_dir_all(place.join("root"))?;
        let mut download = self.apt("apt-get");
        download.args(["-qq", "download", &exact]).current_dir(&place);
        let output = download.output().map_err(|e| format!("start apt-get: {e}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "{exact} of {} for {}: {}",
                self.suite,
                self.architecture,
                said.trim()
            )
            .into());
        }
        let is_package = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "deb");
        let file = fs::read_dir(&place)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(is_package)
            .ok_or_else(|| format!("apt-get download {exact} left no package"))?;
        unpack(&file, &place.join("root"), patterns)?;
        fs::remove_file(file)?;
        fs::write(place.join("complete"), "")?;
        Ok(place.join("root"))
    }
}

fn unpack(file: &Path, folder: &Path, patterns: &[&str]) -> Result {
    let mut reader = Command::new("dpkg-deb");
    reader.arg("--fsys-tarfile").arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = reader.spawn().map_err(|e| format!("start {}: {e}", show(&reader)))?;
    let stream = child.stdout.take().ok_or("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--wildcards", "-C"]).arg(folder).args(patterns).stdin(stream);
    let output = tar.env("LC_ALL", "C").output().map_err(|e| format!("start tar: {e}"))?;
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("{}: {status}", show(&reader)).into());
    }
    // A pattern that fits nothing is a failure to tar; to us it is what the package has.
    let said = String::from_utf8_lossy(&output.stderr);
    let harmless = ["Not found in archive", "Exiting with failure status"];
    let is_fault = |line: &&str| !harmless.iter().any(|words| line.contains(words));
    match said.lines().find(is_fault) {
        Some(line) => Err(format!("unpack {}: {line}", file.display()).into()),
        None if std::fs::read_dir(folder)?.next().is_none() => {
            Err(format!("{} has none of {}", file.display(), patterns.join(" ")).into())
        }
        None => Ok(()),
    }
}

/// The mirror that this machine takes Debian from. Before its first `apt-get update` apt does
/// not know whose packages a source has; then the first one is taken.
///
/// # Errors
/// If apt has none.
pub fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(ORIGIN)/$(LABEL)"])
        .arg("Created-By: Packages")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("start apt-get: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let sources = || text.lines().filter_map(|line| line.split_once(' '));
    let debian = sources().find(|(_, owner)| *owner == "Debian/Debian");
    let (uri, _) = debian.or_else(|| sources().next()).ok_or(
        "apt has no source of packages: name a mirror of Debian in /etc/apt/sources.list.d/",
    )?;
    Ok(uri.to_string())
}
