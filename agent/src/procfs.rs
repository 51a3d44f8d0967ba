//! The first look at the system: processes that were there before the agent, and the names of
//! users and groups. Reads /proc once, at start, and the names when they change. A process that
//! ends meanwhile is passed over.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use codec::{Oid, process};

use crate::engine::{Users, container_id};
use crate::entity::{Process, START_TICK_NS, Words, split_arguments};
use crate::privacy::Privacy;

/// Arguments of a process are kept up to this length, as the kernel side does.
const ARGS_BYTES_MAX: usize = 2048;

/// All processes, those with exact starts from `exact` where it knows them, and without the
/// secrets that `privacy` finds in their arguments.
pub fn processes(exact: &[bpf::Task], privacy: &Privacy) -> Vec<(Process, Words<Vec<u8>>)> {
    let exact: HashMap<u32, &bpf::Task> = exact.iter().map(|task| (task.tgid, task)).collect();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Found> = entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let mut found = read_process(&entry.path(), pid, exact.get(&pid).copied())?;
            let Words { exe, args, argv0, env, .. } = &mut found.words;
            let mask = |exe: &[u8], text: &mut Vec<u8>| {
                let mut masked = Vec::with_capacity(text.len());
                let hidden = privacy.arguments(exe, text, &mut masked);
                *text = masked;
                hidden
            };
            let mut hidden = mask(exe, args) | mask(b"", argv0);
            if privacy.keeps_environment()
                && let Ok(whole) = fs::read(entry.path().join("environ"))
            {
                hidden |= privacy.environment(&whole, env);
            }
            if hidden {
                found.process.flags |= process::REDACTED;
            }
            Some(found)
        })
        .collect();
    let oids: HashMap<u32, Oid> =
        found.iter().map(|found| (found.process.oid.pid, found.process.oid)).collect();
    for Found { process, parent, .. } in &mut found {
        process.parent = oids.get(parent).copied();
    }
    found.into_iter().map(|found| (found.process, found.words)).collect()
}

struct Found {
    process: Process,
    words: Words<Vec<u8>>,
    parent: u32,
}

fn read_process(folder: &Path, pid: u32, exact: Option<&bpf::Task>) -> Option<Found> {
    let stat = fs::read(folder.join("stat")).ok()?;
    // The program's name is in parentheses and may contain anything; fields follow the last.
    let after = stat.iter().rposition(|b| *b == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(stat.get(after..)?).ok()?.split(' ').collect();
    let field = |number: usize| fields.get(number - 2);
    let parent = field(4)?.parse().ok()?;
    let tty: i64 = field(7)?.parse().ok()?;
    let start_ns = field(22)?.parse::<u64>().ok()? * START_TICK_NS;
    let exact = exact.filter(|task| task.start_ns / START_TICK_NS == start_ns / START_TICK_NS);

    let oid = Oid { start_ns: exact.map_or(start_ns, |task| task.start_ns), pid };
    let mut process = Process::unknown(oid);
    let mut words = Words::<Vec<u8>>::default();
    process.flags = process::PRE_EXISTING;
    if exact.is_none() {
        process.flags |= process::START_COARSE;
    }
    process.tty = tty != 0;
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let first = |key: &str| value(key)?.split_whitespace().next()?.parse().ok();
    process.uid = first("Uid:").unwrap_or(u32::MAX);
    process.gid = first("Gid:").unwrap_or(u32::MAX);
    process.entry = value("NSpid:").and_then(|line| line.split_whitespace().last()) == Some("1");
    // Where the first thread has ended, only those that are left tell of the program; where none
    // is, the process has ended, too, and its parent has not asked yet.
    let is_dead = matches!(field(3), Some(&("Z" | "X")));
    let living = if is_dead { living_thread(folder)? } else { folder.to_path_buf() };
    match fs::read_link(living.join("exe")) {
        Ok(exe) => {
            let exe = exe.into_os_string().into_vec();
            words.exe = match exe.strip_suffix(b" (deleted)") {
                Some(name) => {
                    // As the kernel side has it: a memfd never was in the tree.
                    let is_memfd = name.starts_with(b"/memfd:");
                    process.flags |=
                        if is_memfd { process::EXE_DETACHED } else { process::EXE_DELETED };
                    name.to_vec()
                }
                None => exe,
            };
        }
        // A kernel thread has none: its name stands for it, as ps shows it.
        Err(_) => {
            let open = stat.iter().position(|b| *b == b'(')? + 1;
            words.exe = [b"[", stat.get(open..after - 1)?, b"]"].concat();
        }
    }
    if let Ok(cwd) = fs::read_link(living.join("cwd")) {
        words.cwd = cwd.into_os_string().as_bytes().to_vec();
    }
    if let Ok(mut args) = fs::read(living.join("cmdline")) {
        if args.len() > ARGS_BYTES_MAX {
            args.truncate(ARGS_BYTES_MAX);
            process.flags |= process::ARGS_TRUNCATED;
        }
        let (argv0, rest) = split_arguments(&words.exe, &args);
        (words.argv0, words.args) = (argv0.to_vec(), rest.to_vec());
    }
    if let Ok(namespace) = fs::read_link(living.join("ns/mnt")) {
        let number = namespace
            .to_str()
            .and_then(|text| text.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok());
        process.mount_namespace = number.unwrap_or(0);
    }
    if let Ok(groups) = fs::read(folder.join("cgroup"))
        && let Some(id) = container_id(&groups)
    {
        words.container = id.to_vec();
    }
    Some(Found { process, words, parent })
}

/// The folder of a thread of a process that still has its memory.
fn living_thread(folder: &Path) -> Option<PathBuf> {
    let threads = fs::read_dir(folder.join("task")).ok()?;
    threads.flatten().map(|thread| thread.path()).find(|path| path.join("exe").read_link().is_ok())
}

/// The files that name users and groups, read again when they change.
#[derive(Debug)]
pub struct UserFiles {
    users: PathBuf,
    groups: PathBuf,
    /// Of both files, as they were when they were read.
    stamps: [Option<Stamp>; 2],
}

/// What tells that a file is another, or has been changed: inode, change time, size.
type Stamp = (u64, i64, i64, u64);

impl UserFiles {
    /// These two files, in the form of /etc/passwd and /etc/group; nothing is read yet.
    pub fn new(users: PathBuf, groups: PathBuf) -> UserFiles {
        UserFiles { users, groups, stamps: [None; 2] }
    }

    /// The names, if the files are not as they were when this was last asked.
    pub fn changed(&mut self) -> Option<Users> {
        let stamps = [stamp(&self.users), stamp(&self.groups)];
        if stamps == self.stamps {
            return None;
        }
        self.stamps = stamps;
        Some(Users { users: names(&self.users), groups: names(&self.groups) })
    }
}

impl Default for UserFiles {
    fn default() -> UserFiles {
        UserFiles::new("/etc/passwd".into(), "/etc/group".into())
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec(), found.size()))
}

fn names(file: &Path) -> HashMap<u32, Vec<u8>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let id = fields.nth(1)?.parse().ok()?;
            Some((id, name.as_bytes().to_vec()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn names_are_read_again_when_their_files_change() {
        let folder = tempfile::tempdir().unwrap();
        let [users, groups] = ["passwd", "group"].map(|name| folder.path().join(name));
        fs::write(&users, "root:x:0:0::/:/bin/sh\nbroken\n").unwrap();
        let mut files = UserFiles::new(users.clone(), groups);
        let first = files.changed().unwrap();
        assert_eq!(first.users.get(&0).map(Vec::as_slice), Some(&b"root"[..]));
        assert!(first.groups.is_empty() && files.changed().is_none());
        // As useradd does it: a new file takes the place of the old one.
        let new = folder.path().join("new");
        fs::write(&new, "root:x:0:0::/:/bin/sh\nbroker:x:7:7::/:/bin/sh\n").unwrap();
        fs::rename(new, users).unwrap();
        let second = files.changed().unwrap();
        assert_eq!(second.users.get(&7).map(Vec::as_slice), Some(&b"broker"[..]));
        assert!(files.changed().is_none());
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_keeps_its_program() {
        let script = "import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)";
        let mut python = Command::new("python3");
        let python = python.args(["-c", script, "kept"]).stdin(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let folder = PathBuf::from(format!("/proc/{}", child.id()));
        let has_ended = || fs::read_to_string(folder.join("stat")).unwrap().contains(") Z ");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_ended() {
            assert!(Instant::now() < deadline, "the first thread goes on");
            std::thread::yield_now();
        }
        let found = read_process(&folder, child.id(), None).unwrap();
        let exe = String::from_utf8_lossy(&found.words.exe).into_owned();
        assert!(exe.starts_with('/') && exe.contains("python"), "{exe}");
        assert!(found.words.args.ends_with(b"\0kept\0") && !found.words.cwd.is_empty());
        // Nobody has asked yet how it ended.
        drop(child.stdin.take());
        while living_thread(&folder).is_some() {
            assert!(Instant::now() < deadline, "the last thread goes on");
            std::thread::yield_now();
        }
        assert!(read_process(&folder, child.id(), None).is_none());
        child.wait().unwrap();
    }
}
