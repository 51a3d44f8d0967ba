//! `workload-paths`: every way to name a file, with the absolute path that must come out.
//!
//! Each case writes another number of bytes, so that a record is tied to its case without
//! looking at its path. The expected paths are computed from the canonical working folder
//! or read back from the kernel, never from how the case itself named the file.

mod attributes;
mod flows;
mod names;
mod worlds;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tests::Result;
use tests::truth::{EventTruth, FileTruth, Name, ProcessTruth, Truth, Volume};

/// The truth in the making.
pub(crate) struct Cases {
    pid: u32,
    truth: Truth,
}

impl Cases {
    /// Notes this process while its own program can still be found.
    pub(crate) fn new() -> Result<Cases> {
        let pid = std::process::id();
        let own = ProcessTruth {
            pid: Some(pid),
            parent: Some(std::os::unix::process::parent_id()),
            exe: std::fs::canonicalize(std::env::current_exe()?)?.display().to_string(),
            args: std::env::args().skip(1).collect(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            status: None,
        };
        Ok(Cases { pid, truth: Truth { pid, processes: vec![own], ..Truth::default() } })
    }

    /// Writes to `file` as the next case and expects the flow under `path`.
    pub(crate) fn write(&mut self, file: &File, path: impl Into<Name>) -> Result {
        let bytes = self.truth.files.len() + 1;
        let written = rustix::io::write(file, &vec![b'x'; bytes])?;
        self.truth.files.push(FileTruth {
            pid: self.pid,
            fd: Some(file.as_raw_fd()),
            kind: 'f',
            path: path.into(),
            opened: true,
            volume: Volume { write_ops: 1, write_bytes: written as u64, ..Volume::default() },
        });
        Ok(())
    }

    /// Expects an operation on names that had `result`.
    pub(crate) fn event(
        &mut self,
        operation: &str,
        path: impl Into<Name>,
        new_path: impl Into<Name>,
        result: rustix::io::Result<()>,
    ) {
        self.truth.events.push(EventTruth {
            pid: self.pid,
            operation: operation.to_string(),
            path: path.into(),
            new_path: new_path.into(),
            result: result.map_or_else(|errno| -errno.raw_os_error(), |()| 0),
        });
    }

    /// Adds what another process of this run did.
    pub(crate) fn merge(&mut self, other: Truth) {
        self.truth.merge(other);
    }
}

fn main() -> Result {
    let mut directory = PathBuf::new();
    let mut world = None;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("dir") => directory = parser.value()?.into(),
            Arg::Long("world") => world = Some(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if directory.as_os_str().is_empty() {
        return Err("--dir DIRECTORY is missing: an empty directory for the files".into());
    }
    let base = std::fs::canonicalize(&directory)?;
    let mut cases = Cases::new()?;
    match world.as_deref() {
        None => all(&mut cases, &base)?,
        Some("changed-root") => worlds::changed_root(&mut cases, &base)?,
        Some("mounts") => worlds::mounts(&mut cases, &base)?,
        Some(other) => {
            return Err(format!("--world {other}: not one of changed-root, mounts").into());
        }
    }
    println!("{}", serde_json::to_string(&cases.truth)?);
    Ok(())
}

fn all(cases: &mut Cases, base: &Path) -> Result {
    flows::all(cases, base)?;
    names::all(cases, base)?;
    attributes::all(cases, base)?;
    for world in ["changed-root", "mounts"] {
        worlds::run(cases, base, world)?;
    }
    Ok(())
}
