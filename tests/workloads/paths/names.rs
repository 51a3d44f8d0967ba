//! Operations on names: making, moving, linking and removing, by the plain calls and by
//! those that are relative to an open folder, successful and failing.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, RenameFlags};
use tests::Result;

use crate::Cases;

pub(crate) fn all(cases: &mut Cases, base: &Path) -> Result {
    let home = base.join("names");
    fs::create_dir(&home)?;
    plain(cases, &home)?;
    at(cases, &home)?;
    failing(cases, &home)?;
    relative(cases, &home)
}

/// The result of a call of the standard library as an errno.
pub(crate) fn raw(result: std::io::Result<()>) -> rustix::io::Result<()> {
    result.map_err(|e| rustix::io::Errno::from_raw_os_error(e.raw_os_error().unwrap_or(0)))
}

fn plain(cases: &mut Cases, home: &Path) -> Result {
    let path = |name: &str| home.join(name);
    cases.event("MKDIR", path("dir").as_path(), "", raw(fs::create_dir(path("dir"))));
    File::create(path("old"))?;
    let result = raw(fs::rename(path("old"), path("new")));
    cases.event("RENAME", path("old").as_path(), path("new").as_path(), result);
    let result = raw(fs::hard_link(path("new"), path("second")));
    cases.event("LINK", path("new").as_path(), path("second").as_path(), result);
    let result = raw(std::os::unix::fs::symlink("new", path("sym")));
    cases.event("SYMLINK", "new", path("sym").as_path(), result);
    for name in ["sym", "second", "new"] {
        cases.event("UNLINK", path(name).as_path(), "", raw(fs::remove_file(path(name))));
    }
    cases.event("RMDIR", path("dir").as_path(), "", raw(fs::remove_dir(path("dir"))));
    Ok(())
}

fn at(cases: &mut Cases, home: &Path) -> Result {
    let folder = home.join("at");
    fs::create_dir(&folder)?;
    let path = |name: &str| folder.join(name);
    let at = File::open(&folder)?;
    let result = rustix::fs::mkdirat(&at, "dir", Mode::RWXU);
    cases.event("MKDIR", path("dir").as_path(), "", result);
    File::create(path("old"))?;
    let inner = File::open(path("dir"))?;
    let result = rustix::fs::renameat(&at, "old", &inner, "new");
    cases.event("RENAME", path("old").as_path(), path("dir/new").as_path(), result);
    let result =
        rustix::fs::renameat_with(&inner, "../dir/new", &at, "newer", RenameFlags::NOREPLACE);
    cases.event("RENAME", path("dir/new").as_path(), path("newer").as_path(), result);
    let result = rustix::fs::linkat(&at, "newer", &inner, "second", AtFlags::empty());
    cases.event("LINK", path("newer").as_path(), path("dir/second").as_path(), result);
    let result = rustix::fs::symlinkat("../newer", &inner, "sym");
    cases.event("SYMLINK", "../newer", path("dir/sym").as_path(), result);
    for name in ["dir/sym", "dir/second", "newer"] {
        let result = rustix::fs::unlinkat(&at, name, AtFlags::empty());
        cases.event("UNLINK", path(name).as_path(), "", result);
    }
    let result = rustix::fs::unlinkat(&at, "dir", AtFlags::REMOVEDIR);
    cases.event("RMDIR", path("dir").as_path(), "", result);
    Ok(())
}

fn failing(cases: &mut Cases, home: &Path) -> Result {
    let path = |name: &str| home.join(name);
    fs::create_dir(path("full"))?;
    File::create(path("full/file"))?;
    cases.event("MKDIR", path("full").as_path(), "", raw(fs::create_dir(path("full"))));
    cases.event("RMDIR", path("full").as_path(), "", raw(fs::remove_dir(path("full"))));
    cases.event("UNLINK", path("none").as_path(), "", raw(fs::remove_file(path("none"))));
    let result = raw(fs::rename(path("none"), path("other")));
    cases.event("RENAME", path("none").as_path(), path("other").as_path(), result);
    let result = raw(fs::hard_link(path("none"), path("other")));
    cases.event("LINK", path("none").as_path(), path("other").as_path(), result);
    Ok(())
}

fn relative(cases: &mut Cases, home: &Path) -> Result {
    let before = std::env::current_dir()?;
    std::env::set_current_dir(home)?;
    let path = |name: &str| home.join(name);
    let result = rustix::fs::mkdirat(CWD, "rel", Mode::RWXU);
    cases.event("MKDIR", path("rel").as_path(), "", result);
    cases.event("MKDIR", path("rel/x y").as_path(), "", raw(fs::create_dir("./rel/x y")));
    File::create("rel/file")?;
    let result = raw(fs::rename("rel/file", "rel/x y/moved"));
    cases.event("RENAME", path("rel/file").as_path(), path("rel/x y/moved").as_path(), result);
    cases.event(
        "UNLINK",
        path("rel/x y/moved").as_path(),
        "",
        raw(fs::remove_file("rel/../rel/x y/moved")),
    );
    cases.event("RMDIR", path("rel/x y").as_path(), "", raw(fs::remove_dir("rel/x y")));
    std::env::set_current_dir(before)?;
    Ok(())
}
