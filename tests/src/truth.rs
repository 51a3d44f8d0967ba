//! What a workload did, in its own words.
//!
//! Workloads count their own calls and print one [`Truth`] as JSON; tests read it back and
//! compare SysFlow records with it. Nothing here knows how records are made: that is what
//! makes it a truth of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The name of a file: bytes, which need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// For people: what is not UTF-8 is replaced.
    pub text: String,
    /// The bytes as lower-case hexadecimal digits.
    pub hex: String,
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Name {
            text: String::from_utf8_lossy(bytes).into_owned(),
            hex: bytes.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

impl From<&Path> for Name {
    fn from(path: &Path) -> Self {
        Name::from(path.as_os_str().as_bytes())
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name::from(text.as_bytes())
    }
}

/// Calls and bytes on one object, counted by the program that made the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Calls that read or received, failed ones included.
    pub read_ops: u64,
    /// Calls that wrote or sent, failed ones included.
    pub write_ops: u64,
    /// Bytes read or received.
    pub read_bytes: u64,
    /// Bytes written or sent.
    pub write_bytes: u64,
}

impl Volume {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: Volume) {
        self.read_ops += other.read_ops;
        self.write_ops += other.write_ops;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
    }
}

/// A process that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTruth {
    /// Process id; none where only the parent is known (a program that a shell started).
    pub pid: Option<u32>,
    /// Process id of the parent; none where it is one that a shell started.
    pub parent: Option<u32>,
    /// Canonical path of the executable.
    pub exe: String,
    /// Arguments after the first.
    pub args: Vec<String>,
    /// Real user id while it ran.
    pub uid: u32,
    /// Real group id while it ran.
    pub gid: u32,
    /// Raw wait status (an exit code of 1 is 256); none if it still ran.
    pub status: Option<i32>,
}

/// What one process did with one file, pipe or unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTruth {
    /// Which process.
    pub pid: u32,
    /// Descriptor; none where the number is not known.
    pub fd: Option<i32>,
    /// SysFlow `restype` letter.
    pub kind: char,
    /// Absolute path, `pipe:[inode]`, or empty for a unix socket without a name.
    pub path: Name,
    /// Whether the process opened it during the run.
    pub opened: bool,
    /// Calls and bytes.
    pub volume: Volume,
}

/// What one process exchanged with one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTruth {
    /// Which process.
    pub pid: u32,
    /// Descriptor; none where the number is not known.
    pub fd: Option<i32>,
    /// IP protocol number, 6 or 17.
    pub protocol: u8,
    /// The end that connected or sent first.
    pub client: SocketAddr,
    /// The other end.
    pub server: SocketAddr,
    /// Calls and bytes on this process's side.
    pub volume: Volume,
}

/// An operation on a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventTruth {
    /// Which process.
    pub pid: u32,
    /// SysFlow's name of the operation: `MKDIR`, `RENAME`, `SETUID` ...
    pub operation: String,
    /// Absolute path of the object; for SYMLINK what the link says. Empty if it has none.
    pub path: Name,
    /// Absolute path of the new name for LINK, SYMLINK and RENAME, else empty.
    pub new_path: Name,
    /// The system call's result: 0, or a negative errno.
    pub result: i32,
}

/// All that one run of a workload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// Process id of the workload itself: root of its process tree.
    pub pid: u32,
    /// Processes, the workload itself first.
    pub processes: Vec<ProcessTruth>,
    /// Files, pipes and unix sockets.
    pub files: Vec<FileTruth>,
    /// Connections and datagram peers.
    pub network: Vec<NetworkTruth>,
    /// Operations on names, and changes of user.
    pub events: Vec<EventTruth>,
    /// Reading and writing calls by the kernel's name, on descriptors that it opened itself.
    pub calls: BTreeMap<String, u64>,
}

impl Truth {
    /// Takes over what another process of the same run counted.
    pub fn merge(&mut self, other: Truth) {
        self.processes.extend(other.processes);
        self.files.extend(other.files);
        self.network.extend(other.network);
        self.events.extend(other.events);
        for (call, count) in other.calls {
            *self.calls.entry(call).or_default() += count;
        }
    }
}

/// A program that a spawner started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// Its number, which is in its arguments and nobody else's.
    pub number: u32,
    /// Its process id, which others may have had before.
    pub pid: u32,
}

/// A process that started programs one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawner {
    /// Its process id.
    pub pid: u32,
    /// What it started, in order.
    pub programs: Vec<Spawned>,
}
