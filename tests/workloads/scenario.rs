//! `workload-scenario`: the programs of the reference suite's scenarios, done live.
//!
//! Each makes the calls of its scenario in the order of the reference and fails if one of them
//! does not do what it has to, so that what it did is known when it ends well. Names without a
//! leading `/` are relative to the working folder, as they are in the reference.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::Uid;
use tests::Result;

/// Bytes that client and server of the TCP scenario send each other.
const MESSAGE_BYTES: usize = 80;
/// The user that the setuid scenario becomes: one without a name on Debian.
const USER: u32 = 500;

fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["server"] => server(),
        ["client", address] => client(address),
        ["files", folder] => files(Path::new(folder)),
        ["filesat", folder] => files_at(Path::new(folder)),
        ["rename"] => rename(),
        ["setuid"] => setuid(),
        other => Err(format!("{other:?}: no scenario").into()),
    }
}

/// Prints a line that a test waits for.
fn say(line: &str) -> Result {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Answers on one connection after the other until it is killed. A connection whose client has
/// gone is left open, as in the reference.
fn server() -> Result {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&format!("listening on {}", listener.local_addr()?))?;
    let mut connections = Vec::new();
    loop {
        let (connection, _) = listener.accept()?;
        let mut buffer = [0; MESSAGE_BYTES];
        while rustix::io::read(&connection, &mut buffer)? == MESSAGE_BYTES {
            let sent = rustix::io::write(&connection, &buffer)?;
            expect("bytes sent", sent, MESSAGE_BYTES)?;
        }
        say("the client has gone")?;
        connections.push(connection);
    }
}

/// Exchanges one message and waits to be killed.
fn client(address: &str) -> Result {
    let connection = TcpStream::connect(address)?;
    let sent = rustix::io::write(&connection, &[b'x'; MESSAGE_BYTES])?;
    expect("bytes sent", sent, MESSAGE_BYTES)?;
    let received = rustix::io::read(&connection, &mut [0; MESSAGE_BYTES])?;
    expect("bytes received", received, MESSAGE_BYTES)?;
    say(&format!("exchanged as {}", connection.local_addr()?))?;
    loop {
        std::thread::park();
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

/// Lengths of what is written to the four files.
const LENGTHS: [usize; 4] = [31, 37, 37, 41];

fn files(folder: &Path) -> Result {
    let there = |name: &str| folder.join(name);
    // fopen "w+".
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
    let names = [there("tested_file.txt"), there("tested_file2.txt"), there("tested_file3.txt")];
    let names = names.iter().map(std::path::PathBuf::as_path);
    for (name, length) in names.chain([Path::new("tested_file_test.txt")]).zip(LENGTHS) {
        let file = rustix::fs::open(name, flags, Mode::from(0o666))?;
        expect("bytes written", rustix::io::write(&file, &vec![b'x'; length])?, length)?;
    }
    rustix::fs::mkdir(there("testing_dir"), Mode::RWXU)?;
    rustix::fs::mkdir("./testing_dir", Mode::RWXU)?;
    rustix::fs::rmdir(there("testing_dir"))?;
    rustix::fs::rmdir("./testing_dir")?;
    rustix::fs::chmod(there("tested_file.txt"), Mode::RUSR | Mode::WUSR)?;
    rustix::fs::chown(there("tested_file.txt"), Some(Uid::ROOT), None)?;
    rustix::fs::link(there("tested_file.txt"), "./tested_file.txt")?;
    rustix::fs::symlink(there("tested_file2.txt"), "./tested_file2.txt")?;
    rustix::fs::rename(there("tested_file3.txt"), there("tested_file4.txt"))?;
    rustix::fs::unlink(there("tested_file.txt"))?;
    for name in ["./tested_file.txt", "./tested_file2.txt"] {
        rustix::fs::unlink(name)?;
    }
    rustix::fs::unlink(there("tested_file2.txt"))?;
    rustix::fs::unlink("./tested_file_test.txt")?;
    Ok(rustix::fs::unlink(there("tested_file4.txt"))?)
}

/// The same from a descriptor of the folder; the new name of the rename is given from it too, by
/// a detour over its parent.
fn files_at(folder: &Path) -> Result {
    // opendir.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let there = rustix::fs::open(folder, flags, Mode::empty())?;
    let there = there.as_fd();
    let name = folder.file_name().ok_or("the folder has no name")?.to_string_lossy();
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let named = [
        (there, "tested_file.txt"),
        (there, "tested_file2.txt"),
        (there, "tested_file3.txt"),
        (CWD, "tested_file_test.txt"),
    ];
    for ((from, name), length) in named.into_iter().zip(LENGTHS) {
        let file = rustix::fs::openat(from, name, flags, Mode::from(0o666))?;
        expect("bytes written", rustix::io::write(&file, &vec![b'x'; length])?, length)?;
    }
    rustix::fs::mkdirat(there, "testing_dir", Mode::RWXU)?;
    rustix::fs::mkdirat(CWD, "./testing_dir", Mode::RWXU)?;
    rustix::fs::unlinkat(there, "testing_dir", AtFlags::REMOVEDIR)?;
    rustix::fs::unlinkat(CWD, "./testing_dir", AtFlags::REMOVEDIR)?;
    rustix::fs::linkat(there, "tested_file.txt", CWD, "./tested_file.txt", AtFlags::empty())?;
    rustix::fs::symlinkat(folder.join("tested_file2.txt"), CWD, "./tested_file2.txt")?;
    let detour = format!("../{name}/tested_file4.txt");
    rustix::fs::renameat(there, "tested_file3.txt", there, &detour)?;
    rustix::fs::unlinkat(there, "tested_file.txt", AtFlags::empty())?;
    for name in ["./tested_file.txt", "./tested_file2.txt"] {
        rustix::fs::unlinkat(CWD, name, AtFlags::empty())?;
    }
    rustix::fs::unlinkat(there, "tested_file2.txt", AtFlags::empty())?;
    rustix::fs::unlinkat(CWD, "./tested_file_test.txt", AtFlags::empty())?;
    Ok(rustix::fs::unlinkat(there, &detour, AtFlags::empty())?)
}

/// One file under one name after the other, by each form of the call; the last two must not be
/// done.
fn rename() -> Result {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    rustix::fs::open("a", flags, Mode::from(0o666))?;
    rustix::fs::rename("a", "b")?;
    rustix::fs::renameat(CWD, "b", CWD, "c")?;
    rustix::fs::renameat_with(CWD, "c", CWD, "d", RenameFlags::NOREPLACE)?;
    rustix::fs::open("e", flags, Mode::from(0o666))?;
    let refused = rustix::fs::renameat_with(CWD, "d", CWD, "e", RenameFlags::NOREPLACE);
    expect("a rename onto a file that is to be kept", refused, Err(Errno::EXIST))?;
    let missing = rustix::fs::rename("a", "b");
    expect("a rename of what is gone", missing, Err(Errno::NOENT))
}

/// Shows who it is, becomes an ordinary user, fails to become root again.
fn setuid() -> Result {
    show_id("0")?;
    rustix::thread::set_thread_uid(Uid::from_raw(USER))?;
    show_id(&USER.to_string())?;
    let refused = rustix::thread::set_thread_uid(Uid::ROOT);
    expect("becoming root again", refused, Err(Errno::PERM))?;
    show_id(&USER.to_string())
}

fn show_id(expected: &str) -> Result {
    let output = Command::new("/usr/bin/id").arg("-u").output()?;
    expect("the user that id sees", String::from_utf8(output.stdout)?.trim(), expected)
}
