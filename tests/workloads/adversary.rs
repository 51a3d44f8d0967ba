//! `workload-adversary --kind KIND --count N --dir D [--pace P]`: does one thing N times, as fast as
//! it can or P times a second, in a session of its own as a service has it; of the kind `sessions`
//! each time in another one. Prints how often, as one number.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketType};
use tests::Result;

/// Programs at a time, and threads that work.
const SIDE_BY_SIDE: u64 = 8;
/// What a short program is.
const PROGRAM: &str = "/bin/true";
/// What runs a program in a session of its own.
const SETSID: &str = "/usr/bin/setsid";
/// Bytes of the long argument.
const ARGUMENT_BYTES: usize = 4095;
/// Names that each of many sessions uses, and how long they are.
const SESSION_NAMES: usize = 60;
const SESSION_NAME_BYTES: usize = 4_000;
/// Depth and names of deep paths: the longest that a call takes.
const DEPTH: usize = 15;
const NAME_BYTES: usize = 250;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Forks,
    Arguments,
    Opens,
    Deep,
    Ports,
    Threads,
    Sessions,
}

fn kind(name: &str) -> Result<Kind> {
    Ok(match name {
        "forks" => Kind::Forks,
        "arguments" => Kind::Arguments,
        "opens" => Kind::Opens,
        "deep" => Kind::Deep,
        "ports" => Kind::Ports,
        "threads" => Kind::Threads,
        "sessions" => Kind::Sessions,
        other => return Err(format!("--kind {other}: no such kind").into()),
    })
}

fn main() -> Result {
    let (mut what, mut count, mut pace, mut folder) = (None, 1_000, None, PathBuf::new());
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("kind") => what = Some(kind(&parser.value()?.string()?)?),
            Arg::Long("count") => count = parser.value()?.parse()?,
            Arg::Long("pace") => pace = Some(parser.value()?.parse::<u32>()?.max(1)),
            Arg::Long("dir") => folder = parser.value()?.into(),
            other => return Err(other.unexpected().into()),
        }
    }
    let what = what.ok_or("--kind is missing")?;
    rustix::process::setsid()?;
    let deep = if matches!(what, Kind::Deep) { Some(make_deep(&folder)?) } else { None };
    let (next, start) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| -> Result {
        let work = || -> Result {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                if let Some(pace) = pace {
                    let due = Duration::from_secs_f64(number as f64 / f64::from(pace));
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                }
                match (what, &deep) {
                    (Kind::Forks, _) => run(PROGRAM, &[])?,
                    (Kind::Arguments, _) => run(PROGRAM, &[&long(number)])?,
                    (Kind::Opens, _) => touch(&rustix::fs::CWD, &folder.join(number.to_string()))?,
                    (Kind::Deep, Some(deep)) => touch(deep, Path::new(&number.to_string()))?,
                    (Kind::Deep, None) => {}
                    (Kind::Sessions, _) => begin_session()?,
                    (Kind::Ports, _) => send(number)?,
                    (Kind::Threads, _) => {
                        std::thread::spawn(|| {}).join().map_err(|_| "a thread panicked")?;
                    }
                }
            }
        };
        let started: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(work)).collect();
        for thread in started {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })?;
    println!("{count}");
    Ok(())
}

fn run(program: &str, args: &[&str]) -> Result {
    let status = Command::new(program).args(args).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}").into()) }
}

/// A session that is told of in a quarter of a megabyte: folders with long names, which are not
/// there, were to be removed.
fn begin_session() -> Result {
    let name = format!("/none/{}", "x/".repeat(SESSION_NAME_BYTES / 2));
    let mut command = Command::new(SETSID);
    command.arg("rmdir").args((0..SESSION_NAMES).map(|_| name.as_str()));
    command.stdin(Stdio::null()).stderr(Stdio::null());
    // It fails, as it is meant to.
    command.status()?;
    Ok(())
}

/// A long argument, each time another one.
fn long(number: u64) -> String {
    format!("{number:0width$}", width = ARGUMENT_BYTES)
}

/// Makes a file, and removes it, so that a million of them need no room.
fn touch(folder: &impl std::os::fd::AsFd, name: &Path) -> Result {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    drop(rustix::fs::openat(folder, name, flags, Mode::RUSR)?);
    rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
    Ok(())
}

/// The lowest of many folders in each other.
fn make_deep(folder: &Path) -> Result<std::os::fd::OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let mut at = rustix::fs::open(folder, flags, Mode::empty())?;
    for level in 0..DEPTH {
        let name = format!("{level:0width$}", width = NAME_BYTES);
        rustix::fs::mkdirat(&at, &name, Mode::RWXU)?;
        at = rustix::fs::openat(&at, &name, flags, Mode::empty())?;
    }
    Ok(at)
}

/// Sends a byte from a socket of its own to a port of the loopback: each time another of the
/// 65,535 ports on one of many addresses.
fn send(number: u64) -> Result {
    let port = u16::try_from(number % 65_535)? + 1;
    let block = u8::try_from(number / 65_535 % 250)? + 1;
    let address = std::net::SocketAddrV4::new([127, 9, block, 1].into(), port);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    rustix::net::connect(&socket, &address)?;
    // Nobody listens: the answer of one call may fail the next.
    let _ = rustix::net::send(&socket, b"x", SendFlags::NOSIGNAL);
    Ok(())
}
