//! Cases that need a process with a root or with mounts of its own.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use tests::Result;

use crate::Cases;

/// Runs this program again for the cases of `world` and takes over its truth.
pub(crate) fn run(cases: &mut Cases, base: &Path, world: &str) -> Result {
    let home = base.join(world);
    fs::create_dir(&home)?;
    let own = std::env::current_exe()?;
    let mut command = if world == "mounts" {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]).arg(own);
        command
    } else {
        Command::new(own)
    };
    let output = command
        .arg("--dir")
        .arg(&home)
        .args(["--world", world])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("start the cases of {world}: {e}"))?;
    if !output.status.success() {
        return Err(format!("the cases of {world} ended with {}", output.status).into());
    }
    cases.merge(serde_json::from_slice(&output.stdout)?);
    Ok(())
}

/// Paths are seen from the root of the mount namespace, also in a changed root.
pub(crate) fn changed_root(cases: &mut Cases, base: &Path) -> Result {
    fs::create_dir_all(base.join("root/inside"))?;
    rustix::process::chroot(base.join("root"))?;
    std::env::set_current_dir("/")?;
    cases.write(&File::create("/top")?, base.join("root/top").as_path())?;
    std::env::set_current_dir("/inside")?;
    cases.write(&File::create("relative")?, base.join("root/inside/relative").as_path())?;
    let result = rustix::fs::mkdir("/inside/made", rustix::fs::Mode::RWXU);
    cases.event("MKDIR", base.join("root/inside/made").as_path(), "", result);
    Ok(())
}

/// A bind mount is named by where it is mounted; a file system by its mount point.
pub(crate) fn mounts(cases: &mut Cases, base: &Path) -> Result {
    for folder in ["source", "bound", "memory"] {
        fs::create_dir(base.join(folder))?;
    }
    rustix::mount::mount_bind(base.join("source"), base.join("bound"))?;
    let file = File::create(base.join("bound/file"))?;
    cases.write(&file, base.join("bound/file").as_path())?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", base.join("memory"), "tmpfs", flags, None)?;
    fs::create_dir(base.join("memory/sub"))?;
    let file = File::create(base.join("memory/sub/file"))?;
    cases.write(&file, base.join("memory/sub/file").as_path())?;
    // A file that was bound over another file keeps the name of the mount point.
    File::create(base.join("memory/point"))?;
    rustix::mount::mount_bind(base.join("source/file"), base.join("memory/point"))?;
    let file = File::create(base.join("memory/point"))?;
    cases.write(&file, base.join("memory/point").as_path())
}
