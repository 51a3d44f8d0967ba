//! What the suite `packages` needs: both packages, made for this machine, and a Debian to put them
//! into, with dpkg's and systemd's own ways.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::deb::{self, Package};
use crate::workspace::{self, root, say};
use crate::{Result, debian, setup, targets};

/// The release that packages are tried in.
const RELEASE: &str = "bookworm";
/// What the smallest Debian lacks.
const WITH: &str = "--include=systemd,systemd-sysv";

/// Where the suite finds what it needs.
#[derive(Debug)]
pub struct Prepared {
    /// The Debian.
    pub tree: PathBuf,
    /// The packages, as a search path has folders.
    pub packages: OsString,
}

/// Whether this user may make a Debian.
fn may_be_tried() -> bool {
    rustix::process::geteuid().is_root()
}

/// Installs what packages are tried with, for those who may.
///
/// # Errors
/// As [`setup::run`].
pub fn set_up() -> Result {
    if may_be_tried() { setup::packaging() } else { Ok(()) }
}

/// Makes what is not there; none for users who may not make it: the suite then says so.
///
/// # Errors
/// If the mirror does not have the release, or a package cannot be made.
pub fn prepare() -> Result<Option<Prepared>> {
    if !may_be_tried() {
        return Ok(None);
    }
    set_up()?;
    let output = Command::new("dpkg").arg("--print-architecture").output()?;
    let architecture = String::from_utf8(output.stdout)?.trim().to_string();
    let target = targets::of_debian(&architecture)?;
    let made = deb::run(&target.triple, &[Package::Agent, Package::Collector])?;
    Ok(Some(Prepared { tree: tree(&architecture)?, packages: std::env::join_paths(made)? }))
}

/// The Debian, which is made once and kept.
fn tree(architecture: &str) -> Result<PathBuf> {
    let folder = root().join("target/debian").join(format!("{RELEASE}-{architecture}-tree"));
    let (tree, marker) = (folder.join("root"), folder.join("complete"));
    if marker.exists() {
        return Ok(tree);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    say(&format!("making a Debian {RELEASE} in {}", tree.display()));
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", WITH, RELEASE]).arg(&tree).arg(debian::mirror()?);
    workspace::run(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    for entry in std::fs::read_dir(tree.join("var/cache/apt/archives"))? {
        let file = entry?.path();
        if file.extension().is_some_and(|ending| ending == "deb") {
            std::fs::remove_file(file)?;
        }
    }
    std::fs::write(marker, "")?;
    Ok(tree)
}
