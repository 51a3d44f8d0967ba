//! `workload-demo`: an ordinary quarter of a second on a gateway, with its truth.
//!
//! Real programs, a shell script, files, names, HTTP over both address families on loopback,
//! and a program that drops its privilege and fails to read what it may not. It prints what
//! it did as one JSON object.

mod http;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::Result;
use tests::tally::{Object, Tally};
use tests::truth::{EventTruth, FileTruth, Name, ProcessTruth, Truth, Volume};

/// The user and group that own nothing, on every Linux system.
const NOBODY: u32 = 65534;
/// Calls that write the data file, and bytes of each.
const WRITES: usize = 16;
const WRITE_BYTES: usize = 3000;
/// Blocks that the copying program moves, and bytes of each.
const BLOCKS: u64 = 12;
const BLOCK_BYTES: u64 = 4000;

pub(crate) struct Demo {
    directory: PathBuf,
    pub(crate) truth: Truth,
}

impl Demo {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs a program to its end and expects it among the records.
    fn program(&mut self, command: &mut Command, uid: u32, gid: u32) -> Result<u32> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
        let pid = child.id();
        let output = child.wait_with_output()?;
        let args: Vec<String> =
            command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        self.truth.processes.push(ProcessTruth {
            pid: Some(pid),
            parent: Some(self.truth.pid),
            exe: executable(&command.get_program().to_string_lossy())?,
            args,
            uid,
            gid,
            status: Some(output.status.into_raw()),
        });
        Ok(pid)
    }

    fn as_self(&mut self, command: &mut Command) -> Result<u32> {
        let (uid, gid) = own_ids();
        self.program(command, uid, gid)
    }

    fn event(&mut self, pid: u32, operation: &str, path: &Path, new_path: &Path) {
        self.truth.events.push(EventTruth {
            pid,
            operation: operation.to_string(),
            path: path.into(),
            new_path: new_path.into(),
            result: 0,
        });
    }

    /// Writes a file in many calls, and reads it back in others.
    fn files(&mut self) -> Result {
        let path = self.path("data");
        let mut tally = Tally::default();
        let file = fs::File::create(&path)?;
        let object = Object::of_descriptor('f', true, &file)?;
        for form in 0..WRITES {
            tally.write(form as u64, &file, &object, &[b'd'; WRITE_BYTES])?;
        }
        drop(file);
        let file = fs::File::open(&path)?;
        let mut buffer = [0; 8192];
        while tally.read(0, &file, &object, &mut buffer)? > 0 {}
        self.truth.merge(tally.into_truth(self.truth.pid));
        Ok(())
    }

    /// Makes, moves, links and removes names.
    fn names(&mut self) -> Result {
        let own = self.truth.pid;
        let none = Path::new("");
        let (folder, data, report) = (self.path("day"), self.path("data"), self.path("report"));
        let (hard, soft) = (self.path("day/hard"), self.path("day/soft"));
        fs::create_dir(&folder)?;
        self.event(own, "MKDIR", &folder, none);
        fs::rename(&data, &report)?;
        self.event(own, "RENAME", &data, &report);
        fs::hard_link(&report, &hard)?;
        self.event(own, "LINK", &report, &hard);
        std::os::unix::fs::symlink("../report", &soft)?;
        self.event(own, "SYMLINK", Path::new("../report"), &soft);
        for name in [&hard, &soft] {
            fs::remove_file(name)?;
            self.event(own, "UNLINK", name, none);
        }
        fs::remove_dir(&folder)?;
        self.event(own, "RMDIR", &folder, none);
        Ok(())
    }

    /// Programs of the system: a copy whose calls are known, a move, and a script.
    fn programs(&mut self) -> Result {
        let (input, copy, moved) = (self.path("input"), self.path("copy"), self.path("moved"));
        fs::write(&input, vec![b'i'; (BLOCKS * BLOCK_BYTES) as usize])?;
        let copier = self.as_self(
            Command::new(executable("dd")?)
                .arg(format!("if={}", input.display()))
                .arg(format!("of={}", copy.display()))
                .arg(format!("bs={BLOCK_BYTES}"))
                .arg(format!("count={BLOCKS}"))
                .arg("status=none"),
        )?;
        let bytes = BLOCKS * BLOCK_BYTES;
        let read = Volume { read_ops: BLOCKS, read_bytes: bytes, ..Volume::default() };
        let written = Volume { write_ops: BLOCKS, write_bytes: bytes, ..Volume::default() };
        for (fd, path, volume) in [(0, &input, read), (1, &copy, written)] {
            self.truth.files.push(FileTruth {
                pid: copier,
                fd: Some(fd),
                kind: 'f',
                path: Name::from(path.as_path()),
                // dd opens under another number and moves it here with dup2, which makes
                // another flow.
                opened: false,
                volume,
            });
        }
        let mover = self.as_self(Command::new(executable("mv")?).args([&copy, &moved]))?;
        self.event(mover, "RENAME", &copy, &moved);

        let script = self.path("script.sh");
        let steps = [("cat", &moved), ("wc", &moved), ("rm", &moved)];
        let mut text = String::from("#!/bin/sh\n");
        for (program, path) in steps {
            text.push_str(&format!("{} '{}'\n", executable(program)?, path.display()));
        }
        text.push_str("exit 3\n");
        fs::write(&script, text)?;
        let shell = self.as_self(Command::new("/bin/sh").arg(&script))?;
        let (uid, gid) = own_ids();
        for (program, path) in steps {
            self.truth.processes.push(ProcessTruth {
                pid: None,
                parent: Some(shell),
                exe: executable(program)?,
                args: vec![path.display().to_string()],
                uid,
                gid,
                status: Some(0),
            });
        }
        Ok(())
    }

    /// A program without privilege tries to read a file of its starter.
    fn dropped_privilege(&mut self) -> Result {
        let secret = self.path("secret");
        fs::write(&secret, "not for everyone\n")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        let mut command = Command::new(executable("cat")?);
        command.arg(&secret);
        let (uid, gid) = own_ids();
        if uid != 0 {
            self.program(&mut command, uid, gid)?;
            return Ok(());
        }
        command.uid(NOBODY).gid(NOBODY);
        let pid = self.program(&mut command, NOBODY, NOBODY)?;
        self.event(pid, "SETUID", Path::new(""), Path::new(""));
        Ok(())
    }
}

pub(crate) fn own_ids() -> (u32, u32) {
    (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
}

/// Canonical path of a program, looked up where systems keep them.
pub(crate) fn executable(name: &str) -> Result<String> {
    ["/usr/bin", "/bin"]
        .iter()
        .find_map(|folder| fs::canonicalize(Path::new(folder).join(name)).ok())
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("program {name}: not in /usr/bin or /bin").into())
}

fn main() -> Result {
    let mut directory = PathBuf::new();
    let mut fetch = Vec::new();
    let mut serve = false;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("dir") => directory = parser.value()?.into(),
            Arg::Long("serve") => serve = true,
            Arg::Long("fetch") => fetch.push(parser.value()?.parse()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if serve {
        return http::serve();
    }
    if !fetch.is_empty() {
        return http::fetch(&fetch);
    }
    if directory.as_os_str().is_empty() {
        return Err("--dir DIRECTORY is missing: an empty directory for the files".into());
    }
    let pid = std::process::id();
    let (uid, gid) = own_ids();
    let own = ProcessTruth {
        pid: Some(pid),
        parent: Some(std::os::unix::process::parent_id()),
        exe: fs::canonicalize(std::env::current_exe()?)?.display().to_string(),
        args: std::env::args().skip(1).collect(),
        uid,
        gid,
        status: None,
    };
    let mut demo = Demo {
        directory: fs::canonicalize(&directory)?,
        truth: Truth { pid, processes: vec![own], ..Truth::default() },
    };
    demo.files()?;
    demo.names()?;
    demo.programs()?;
    http::exchange(&mut demo)?;
    demo.dropped_privilege()?;
    println!("{}", serde_json::to_string(&demo.truth)?);
    Ok(())
}
