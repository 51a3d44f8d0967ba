//! Opening files: the path of the flow is the one that the kernel resolved.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tests::Result;
use tests::truth::Name;

use crate::Cases;

/// Folders of the deep case: more than a reader of paths can count in a byte of bits, and
/// within what the probes promise.
const DEEP: usize = 20;
/// Length of each folder's name in the long case.
const LONG: usize = 200;

pub(crate) fn all(cases: &mut Cases, base: &Path) -> Result {
    let home = base.join("flows");
    fs::create_dir(&home)?;
    absolute_and_relative(cases, &home)?;
    through_links(cases, &home)?;
    odd_names(cases, &home)?;
    deep_and_long(cases, &home)?;
    without_a_name(cases, &home)?;
    Ok(())
}

fn create(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    File::create(path).map_err(|e| format!("create {}: {e}", path.display()).into())
}

fn absolute_and_relative(cases: &mut Cases, home: &Path) -> Result {
    cases.write(&create(home.join("absolute"))?, home.join("absolute").as_path())?;
    fs::create_dir_all(home.join("a/b"))?;
    cases.write(&create(home.join("a/../a//./b/dots"))?, home.join("a/b/dots").as_path())?;

    let directory = File::open(home.join("a"))?;
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&directory, "b/at", flags, mode)?);
    cases.write(&file, home.join("a/b/at").as_path())?;
    let file = File::from(rustix::fs::openat(&directory, "../up", flags, mode)?);
    cases.write(&file, home.join("up").as_path())?;
    let file =
        File::from(rustix::fs::openat2(&directory, "b/at2", flags, mode, ResolveFlags::BENEATH)?);
    cases.write(&file, home.join("a/b/at2").as_path())?;

    let before = std::env::current_dir()?;
    std::env::set_current_dir(home.join("a"))?;
    cases.write(&create("relative")?, home.join("a/relative").as_path())?;
    cases.write(&create("b/../../above")?, home.join("above").as_path())?;
    rustix::process::fchdir(File::open("b")?)?;
    let file = File::from(rustix::fs::openat(CWD, "fchdir", flags, mode)?);
    cases.write(&file, home.join("a/b/fchdir").as_path())?;
    std::env::set_current_dir(before)?;
    Ok(())
}

fn through_links(cases: &mut Cases, home: &Path) -> Result {
    fs::create_dir(home.join("real"))?;
    create(home.join("real/file"))?;
    std::os::unix::fs::symlink("real", home.join("folder-link"))?;
    std::os::unix::fs::symlink("real/file", home.join("file-link"))?;
    fs::hard_link(home.join("real/file"), home.join("hard"))?;
    for named in ["folder-link/file", "file-link", "hard"] {
        let expected = fs::canonicalize(home.join(named))?;
        cases.write(&create(home.join(named))?, expected.as_path())?;
    }
    Ok(())
}

fn odd_names(cases: &mut Cases, home: &Path) -> Result {
    let names: [&[u8]; 6] = [
        b"with space",
        b"quote\"back\\slash",
        b"new\nline\ttab",
        b"latin1-\xe9\xff",
        "snow\u{2603}man".as_bytes(),
        b"-",
    ];
    for name in names {
        let path = home.join(OsStr::from_bytes(name));
        cases.write(&create(&path)?, path.as_path())?;
    }
    let longest = home.join("n".repeat(255));
    cases.write(&create(&longest)?, longest.as_path())
}

fn deep_and_long(cases: &mut Cases, home: &Path) -> Result {
    let deep: PathBuf = (0..DEEP).fold(home.join("deep"), |path, n| path.join(format!("{n}")));
    fs::create_dir_all(&deep)?;
    cases.write(&create(deep.join("file"))?, deep.join("file").as_path())?;
    // Three long names stay within a kilobyte together with a temporary folder's own path.
    let long: PathBuf = (0..3).fold(home.join("long"), |path, _| path.join("l".repeat(LONG)));
    fs::create_dir_all(&long)?;
    cases.write(&create(long.join("file"))?, long.join("file").as_path())
}

fn without_a_name(cases: &mut Cases, home: &Path) -> Result {
    let path = home.join("deleted");
    let first = create(&path)?;
    fs::remove_file(&path)?;
    let again = format!("/proc/self/fd/{}", first.as_raw_fd());
    let file = fs::OpenOptions::new().write(true).open(again)?;
    cases.write(&file, path.as_path())?;

    let memory = rustix::fs::memfd_create("scratch", rustix::fs::MemfdFlags::CLOEXEC)?;
    cases.write(&File::from(memory), Name::from("/memfd:scratch"))
}
