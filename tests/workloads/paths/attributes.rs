//! Changes of what the file system says of a file, by path, below an open folder and by
//! descriptor, and names of sockets; successful and failing.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tests::Result;

use crate::Cases;
use crate::names::raw;

pub(crate) fn all(cases: &mut Cases, base: &Path) -> Result {
    let home = base.join("attributes");
    fs::create_dir(&home)?;
    let path = home.join("file");
    let (open, folder) = (File::create(&path)?, File::open(&home)?);
    let none = home.join("none");

    let result = raw(fs::set_permissions(&path, PermissionsExt::from_mode(0o640)));
    cases.event("CHMOD", path.as_path(), "", result);
    let result = rustix::fs::fchmod(&open, Mode::RWXU);
    cases.event("CHMOD", path.as_path(), "", result);
    let result = rustix::fs::chmodat(&folder, "file", Mode::RUSR, AtFlags::empty());
    cases.event("CHMOD", path.as_path(), "", result);
    let result = rustix::fs::chmodat(&folder, "none", Mode::RUSR, AtFlags::empty());
    cases.event("CHMOD", none.as_path(), "", result);

    let owner = Some(Uid::ROOT);
    let result = rustix::fs::fchown(&open, owner, None);
    cases.event("CHOWN", path.as_path(), "", result);
    let result = rustix::fs::chownat(&folder, "./file", owner, None, AtFlags::empty());
    cases.event("CHOWN", path.as_path(), "", result);
    let result = rustix::fs::chownat(CWD, &none, owner, None, AtFlags::SYMLINK_NOFOLLOW);
    cases.event("CHOWN", none.as_path(), "", result);

    let result = rustix::fs::ftruncate(&open, 5_000_000_000);
    cases.event("RESIZE", path.as_path(), "", result);

    let fifo = home.join("fifo");
    let result = rustix::fs::mknodat(&folder, "fifo", FileType::Fifo, Mode::RWXU, 0);
    cases.event("MKNOD", fifo.as_path(), "", result);
    let result = rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0);
    cases.event("MKNOD", fifo.as_path(), "", result);

    let name = home.join("socket");
    let address = SocketAddrUnix::new(&name)?;
    for turn in 0..2 {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        cases.event("BIND", name.as_path(), "", rustix::net::bind(&socket, &address));
        if turn == 0 {
            cases.event("LISTEN", name.as_path(), "", rustix::net::listen(&socket, 1));
        }
    }
    Ok(())
}
