//! SysFlow's records as they travel from agent to collector.
//!
//! The names and fields are those of SysFlow schema version 5, with three differences that
//! a device needs: times are on the boot clock, files and containers are named by small
//! numbers that hold for one generation, and addresses may be IPv6. The collector turns
//! each back into what SysFlow readers expect. Text is bytes, as the kernel has it.

use serde::{Deserialize, Serialize};

use crate::summary::Summary;

/// SysFlow operation bits (`opFlags`). Bits up to 20 are SysFlow's own; from `1 << 21` on
/// they are extensions, which an export to schema version 5 leaves out.
pub mod op {
    /// clone, clone3, fork, vfork.
    pub const CLONE: u64 = 1 << 0;
    /// execve, execveat.
    pub const EXEC: u64 = 1 << 1;
    /// A process or a thread ended.
    pub const EXIT: u64 = 1 << 2;
    /// setuid, setreuid, setresuid and their 32-bit forms.
    pub const SETUID: u64 = 1 << 3;
    /// setns.
    pub const SETNS: u64 = 1 << 4;
    /// accept, accept4.
    pub const ACCEPT: u64 = 1 << 5;
    /// connect.
    pub const CONNECT: u64 = 1 << 6;
    /// open, openat, openat2, creat.
    pub const OPEN: u64 = 1 << 7;
    /// read and receive, in every form.
    pub const READ_RECV: u64 = 1 << 8;
    /// write and send, in every form.
    pub const WRITE_SEND: u64 = 1 << 9;
    /// The descriptor was closed.
    pub const CLOSE: u64 = 1 << 10;
    /// The flow ended without its own close (not the system call truncate).
    pub const TRUNCATE: u64 = 1 << 11;
    /// shutdown.
    pub const SHUTDOWN: u64 = 1 << 12;
    /// mmap of a file.
    pub const MMAP: u64 = 1 << 13;
    /// Reserved by SysFlow, never set.
    pub const DIGEST: u64 = 1 << 14;
    /// mkdir, mkdirat.
    pub const MKDIR: u64 = 1 << 15;
    /// rmdir, and unlinkat with AT_REMOVEDIR.
    pub const RMDIR: u64 = 1 << 16;
    /// link, linkat.
    pub const LINK: u64 = 1 << 17;
    /// unlink, unlinkat.
    pub const UNLINK: u64 = 1 << 18;
    /// symlink, symlinkat.
    pub const SYMLINK: u64 = 1 << 19;
    /// rename, renameat, renameat2.
    pub const RENAME: u64 = 1 << 20;
    /// All bits that schema version 5 knows.
    pub const SYSFLOW_V5: u64 = (1 << 21) - 1;
    /// chmod, fchmod, fchmodat, fchmodat2.
    pub const CHMOD: u64 = 1 << 21;
    /// chown, lchown, fchown, fchownat and their 32-bit forms.
    pub const CHOWN: u64 = 1 << 22;
    /// mount, move_mount.
    pub const MOUNT: u64 = 1 << 23;
    /// umount, umount2.
    pub const UMOUNT: u64 = 1 << 24;
    /// The system calls truncate and ftruncate, with their 64-bit forms.
    pub const RESIZE: u64 = 1 << 25;
    /// mknod, mknodat.
    pub const MKNOD: u64 = 1 << 26;
    /// setgid, setregid, setresgid, setfsgid and their 32-bit forms.
    pub const SETGID: u64 = 1 << 27;
    /// capset.
    pub const CAPSET: u64 = 1 << 28;
    /// ptrace with a request that attaches, allows it, or writes to the other's memory.
    pub const PTRACE: u64 = 1 << 29;
    /// init_module, finit_module.
    pub const LOAD_MODULE: u64 = 1 << 30;
    /// delete_module.
    pub const UNLOAD_MODULE: u64 = 1 << 31;
    /// bpf with BPF_PROG_LOAD.
    pub const LOAD_BPF: u64 = 1 << 32;
    /// unshare.
    pub const UNSHARE: u64 = 1 << 33;
    /// memfd_create.
    pub const MEMFD: u64 = 1 << 34;
    /// bind.
    pub const BIND: u64 = 1 << 35;
    /// listen.
    pub const LISTEN: u64 = 1 << 36;
}

/// SysFlow `openFlags`: the reference's portable numbering, not the kernel's, whose values
/// differ between architectures.
pub mod open_flag {
    /// Opened for reading only. A bit of its own here, unlike in the kernel.
    pub const RDONLY: u32 = 1;
    /// Opened for writing only.
    pub const WRONLY: u32 = 1 << 1;
    /// Opened for reading and writing.
    pub const RDWR: u32 = RDONLY | WRONLY;
    /// Create the file if it is missing.
    pub const CREAT: u32 = 1 << 2;
    /// Every write goes to the end.
    pub const APPEND: u32 = 1 << 3;
    /// Writes are durable, metadata as needed.
    pub const DSYNC: u32 = 1 << 4;
    /// Fail if the file exists.
    pub const EXCL: u32 = 1 << 5;
    /// Never block.
    pub const NONBLOCK: u32 = 1 << 6;
    /// Writes are durable with all metadata.
    pub const SYNC: u32 = 1 << 7;
    /// Cut the file to length zero.
    pub const TRUNC: u32 = 1 << 8;
    /// Bypass the page cache.
    pub const DIRECT: u32 = 1 << 9;
    /// Fail unless it is a directory.
    pub const DIRECTORY: u32 = 1 << 10;
    /// Sizes beyond 2 GiB on 32-bit systems.
    pub const LARGEFILE: u32 = 1 << 11;
    /// Closed at exec.
    pub const CLOEXEC: u32 = 1 << 12;
    /// An unnamed temporary file.
    pub const TMPFILE: u32 = 1 << 13;
}

/// Process identity: start on the boot clock in nanoseconds, and the process id (thread
/// group id) in the initial pid namespace. Unique within one boot of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Oid {
    /// Start of the main thread, boot clock, ns.
    pub start_ns: u64,
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
}

/// A file's number, valid within one generation, given by its [`File`] record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub u32);

/// What an entity record says of its object (SysFlow `SFObjectState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectState {
    /// The object came into being in this event.
    Created,
    /// Known before, and changed in this event.
    Modified,
    /// Known before or met for the first time, unchanged.
    Reup,
}

/// Why a flow record ends: IPFIX `flowEndReason` (RFC 5102, 5.11.3), with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// 0, reserved by IPFIX: a record whose source does not know (read from SysFlow files).
    Unknown,
    /// 1: nothing happened for the idle timeout.
    IdleTimeout,
    /// 2: the flow goes on, this part of it reached the active timeout.
    ActiveTimeout,
    /// 3: the end was seen (close, exit, exec).
    EndDetected,
    /// 4: the agent ended it (shutdown).
    ForcedEnd,
    /// 5: a table was full.
    LackOfResources,
}

/// What was read and written: calls and bytes. Failed calls count as calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Calls that read or received.
    pub read_ops: u64,
    /// Calls that wrote or sent.
    pub write_ops: u64,
    /// Bytes read or received.
    pub read_bytes: u64,
    /// Bytes written or sent.
    pub write_bytes: u64,
}

impl Volume {
    /// Whether nothing was read or written, not even in a failed call.
    pub fn is_empty(&self) -> bool {
        self.read_ops == 0 && self.write_ops == 0
    }
}

/// An IP address, in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6, IPv4-mapped ones included.
    V6([u8; 16]),
}

/// A container. `id` 0 is the host itself and has no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container<'a> {
    /// Number within this generation, from 1.
    pub id: u32,
    /// The runtime's identifier, as long as it is known (64 hex digits for OCI runtimes).
    pub full_id: &'a [u8],
    /// The runtime's name for it, empty if unknown.
    pub name: &'a [u8],
    /// Image as `repository:tag`, empty if unknown.
    pub image: &'a [u8],
    /// Image digest, empty if unknown.
    pub image_id: &'a [u8],
    /// SysFlow `ContainerType` number.
    pub kind: u8,
    /// Whether it runs privileged, as far as is known.
    pub privileged: bool,
    /// Pod id, empty if none.
    pub pod_id: &'a [u8],
}

/// Bits of [`Process::flags`].
pub mod process {
    /// Met in a first look at the system, not seen to start.
    pub const PRE_EXISTING: u32 = 1;
    /// `Oid::start_ns` is known to 10 ms only (from procfs).
    pub const START_COARSE: u32 = 1 << 1;
    /// `args` is cut short.
    pub const ARGS_TRUNCATED: u32 = 1 << 2;
    /// `exe` or `cwd` lacks its leading part.
    pub const PATH_TRUNCATED: u32 = 1 << 3;
    /// The executable had been deleted when it was looked up.
    pub const EXE_DELETED: u32 = 1 << 4;
    /// A 32-bit program on a 64-bit kernel.
    pub const COMPAT: u32 = 1 << 5;
    /// The start was missed (its event was lost); fields were copied or left empty.
    pub const INCOMPLETE: u32 = 1 << 6;
    /// Secrets among `args` or `env` are masked (`***`).
    pub const REDACTED: u32 = 1 << 7;
    /// The executable was in no file tree: a memfd, or a detached mount.
    pub const EXE_DETACHED: u32 = 1 << 9;
    /// The environment was longer than what was looked through: `env` may lack variables.
    pub const ENV_TRUNCATED: u32 = 1 << 10;
    /// It, or the process that it is a fork of, has set up an io_uring since its last exec: what
    /// it reads and writes through that is not seen.
    pub const IO_URING: u32 = 1 << 8;
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process<'a> {
    /// Why this record is sent.
    pub state: ObjectState,
    /// Its identity.
    pub oid: Oid,
    /// Its parent at creation; none for pid 1, pid 2 and where it is unknown.
    pub parent: Option<Oid>,
    /// When this record was caused, boot clock, ns (not the start: that is in `oid`).
    pub time_ns: u64,
    /// Absolute path of the executable; of a script its interpreter.
    pub exe: &'a [u8],
    /// argv\[1..\], a NUL after each.
    pub args: &'a [u8],
    /// Real user id; `u32::MAX` if unknown.
    pub uid: u32,
    /// Real group id; `u32::MAX` if unknown.
    pub gid: u32,
    /// User name on the device, empty if unknown.
    pub user: &'a [u8],
    /// Group name on the device, empty if unknown.
    pub group: &'a [u8],
    /// Whether it has a controlling terminal.
    pub tty: bool,
    /// Its container, 0 for the host.
    pub container: u32,
    /// Whether it is pid 1 of its pid namespace.
    pub entry: bool,
    /// Working directory when it was last looked up (exec or first look).
    pub cwd: &'a [u8],
    /// Allowed environment variables, `K=V`, a NUL after each.
    pub env: &'a [u8],
    /// Bits of [`process`].
    pub flags: u32,
    /// argv\[0\]: empty where it is the last part of `exe`, `/` where it is all of it.
    pub argv0: &'a [u8],
    /// Absolute path of the script that was started, as it was named; empty where `exe` is no
    /// script's interpreter.
    pub script: &'a [u8],
    /// Inode number of its mount namespace when it was last looked up (exec or first look):
    /// paths mean files within it; 0 if unknown.
    pub mount_namespace: u32,
}

/// Bits of [`File::flags`].
pub mod file {
    /// The file had no name any more.
    pub const DELETED: u32 = 1;
    /// The path lacks its leading part.
    pub const PATH_TRUNCATED: u32 = 1 << 1;
    /// Not reachable from the mount namespace's root (memfd, detached mount).
    pub const DETACHED: u32 = 1 << 2;
    /// The path is the program's own words made absolute, so symbolic links in it are not
    /// followed; without this bit it is what the kernel resolved.
    pub const AS_NAMED: u32 = 1 << 3;
    /// The process could not reach the file from its root directory.
    pub const OUTSIDE_ROOT: u32 = 1 << 4;
    /// The process runs in a changed root; `path` is seen from the mount namespace's root.
    pub const CHANGED_ROOT: u32 = 1 << 5;
}

/// A file, directory, pipe or unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File<'a> {
    /// Why this record is sent.
    pub state: ObjectState,
    /// Number within this generation.
    pub id: FileId,
    /// When this record was caused, boot clock, ns.
    pub time_ns: u64,
    /// SysFlow `restype`, an ASCII letter: `f` file, `d` directory, `u` unix socket,
    /// `p` pipe, `?` unknown.
    pub kind: u8,
    /// Absolute path, unix socket name (an abstract one with a leading `@`), or `pipe:[inode]`.
    pub path: &'a [u8],
    /// Its container, 0 for the host.
    pub container: u32,
    /// Device number as the kernel encodes it (major << 20 | minor); 0 if unknown.
    pub device: u32,
    /// Inode number; 0 if unknown.
    pub inode: u64,
    /// Bits of [`mod@file`].
    pub flags: u32,
}

/// Something that a process did to itself or its children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent<'a> {
    /// Who.
    pub process: Oid,
    /// When, boot clock, ns.
    pub time_ns: u64,
    /// Which thread.
    pub tid: u32,
    /// Exactly one bit of [`op`].
    pub ops: u64,
    /// SETUID: the wanted user's name, or its number where it has none. A failed EXEC: the
    /// path asked for. An extension: what it was asked to do, as `codec/README.md` lists. A NUL
    /// after each.
    pub args: &'a [u8],
    /// The system call's result, or for EXIT the raw wait status.
    pub ret: i32,
}

/// An operation on the name of a file, or on what the file system says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEvent<'a> {
    /// Who.
    pub process: Oid,
    /// When, boot clock, ns.
    pub time_ns: u64,
    /// Which thread.
    pub tid: u32,
    /// Exactly one bit of [`op`].
    pub ops: u64,
    /// The file; for SYMLINK what the link says.
    pub file: FileId,
    /// The system call's result.
    pub ret: i32,
    /// LINK, SYMLINK, RENAME: the new name.
    pub new_file: Option<FileId>,
    /// What an extension was asked to do, a NUL after each: `codec/README.md` lists them.
    pub args: &'a [u8],
}

/// Something that a process did to an internet socket, or failed to do. SysFlow has it in its
/// schema and does not write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEvent {
    /// Who.
    pub process: Oid,
    /// When, boot clock, ns.
    pub time_ns: u64,
    /// Which thread.
    pub tid: u32,
    /// Exactly one bit of [`op`].
    pub ops: u64,
    /// Client; unspecified where there is none.
    pub source: Address,
    /// Client port.
    pub source_port: u16,
    /// Server: the socket's own address; of a failed BIND the one asked for.
    pub destination: Address,
    /// Server port.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The system call's result.
    pub ret: i32,
}

/// What one process did with one file over an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFlow {
    /// Who.
    pub process: Oid,
    /// First operation, boot clock, ns.
    pub time_ns: u64,
    /// The thread that began the flow.
    pub tid: u32,
    /// Bits of [`op`].
    pub ops: u64,
    /// Bits of [`open_flag`]; 0 where the open was not seen.
    pub open_flags: u32,
    /// End of this record's interval, boot clock, ns.
    pub end_ns: u64,
    /// The file.
    pub file: FileId,
    /// The descriptor.
    pub fd: i32,
    /// What was read and written in this interval.
    pub volume: Volume,
    /// Why the record ends here.
    pub end: EndReason,
}

/// Bits of [`NetworkFlow::flags`].
pub mod network {
    /// Which end is the client is a guess from the port numbers: neither connect nor accept
    /// was seen.
    pub const ROLE_ASSUMED: u32 = 1;
    /// The peer's address is the program's word (`msg_name`, `connect`), not the socket's.
    pub const PEER_FROM_PROGRAM: u32 = 1 << 1;
}

/// What one process exchanged with one peer over an interval. The source is always the
/// client, on both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFlow {
    /// Who.
    pub process: Oid,
    /// First operation, boot clock, ns.
    pub time_ns: u64,
    /// The thread that began the flow.
    pub tid: u32,
    /// Bits of [`op`].
    pub ops: u64,
    /// End of this record's interval, boot clock, ns.
    pub end_ns: u64,
    /// Client.
    pub source: Address,
    /// Client port.
    pub source_port: u16,
    /// Server.
    pub destination: Address,
    /// Server port.
    pub destination_port: u16,
    /// IP protocol number (6 TCP, 17 UDP).
    pub protocol: u8,
    /// The descriptor.
    pub fd: i32,
    /// What this process received (read) and sent (write) in this interval.
    pub volume: Volume,
    /// Why the record ends here.
    pub end: EndReason,
    /// How the connection attempt failed, as a negative errno; 0 if it did not.
    pub error: i32,
    /// Bits of [`network`].
    pub flags: u32,
}

/// Threads that a process started and lost over an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFlow {
    /// Who.
    pub process: Oid,
    /// First operation, boot clock, ns.
    pub time_ns: u64,
    /// CLONE and EXIT bits of [`op`].
    pub ops: u64,
    /// End of this record's interval, boot clock, ns.
    pub end_ns: u64,
    /// Threads started.
    pub threads_cloned: u64,
    /// Threads ended.
    pub threads_exited: u64,
    /// Thread creations that failed.
    pub clone_errors: u64,
    /// Why the record ends here.
    pub end: EndReason,
}

/// A Kubernetes pod. Carried for completeness of the format; the agent does not ask
/// Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod<'a> {
    /// When, boot clock, ns.
    pub time_ns: u64,
    /// Pod id.
    pub id: &'a [u8],
    /// Pod name.
    pub name: &'a [u8],
    /// Node name.
    pub node: &'a [u8],
    /// Name space.
    pub namespace: &'a [u8],
    /// Restarts so far.
    pub restarts: u64,
}

/// A Kubernetes event. Carried for completeness of the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct K8sEvent<'a> {
    /// SysFlow `K8sComponent` number.
    pub kind: u8,
    /// SysFlow `K8sAction` number.
    pub action: u8,
    /// When, boot clock, ns.
    pub time_ns: u64,
    /// The event as JSON.
    pub message: &'a [u8],
}

/// One SysFlow item. The order is that of SysFlow's union (its header, index 0, travels in
/// the frame's header) and never changes; new kinds are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record<'a> {
    /// A container.
    #[serde(borrow)]
    Container(Container<'a>),
    /// A process.
    #[serde(borrow)]
    Process(Process<'a>),
    /// A file.
    #[serde(borrow)]
    File(File<'a>),
    /// A process event.
    #[serde(borrow)]
    ProcessEvent(ProcessEvent<'a>),
    /// A network flow.
    NetworkFlow(NetworkFlow),
    /// A file flow.
    FileFlow(FileFlow),
    /// A file event.
    #[serde(borrow)]
    FileEvent(FileEvent<'a>),
    /// A network event.
    NetworkEvent(NetworkEvent),
    /// A process flow.
    ProcessFlow(ProcessFlow),
    /// A pod.
    #[serde(borrow)]
    Pod(Pod<'a>),
    /// A Kubernetes event.
    #[serde(borrow)]
    K8sEvent(K8sEvent<'a>),
    /// A summary, which SysFlow does not have.
    Summary(Summary),
}

impl Record<'_> {
    /// The boot-clock time that the record is about, ns; a container has none.
    pub fn time_ns(&self) -> Option<u64> {
        Some(match self {
            Record::Container(_) => return None,
            Record::Process(r) => r.time_ns,
            Record::File(r) => r.time_ns,
            Record::ProcessEvent(r) => r.time_ns,
            Record::NetworkFlow(r) => r.end_ns,
            Record::FileFlow(r) => r.end_ns,
            Record::FileEvent(r) => r.time_ns,
            Record::NetworkEvent(r) => r.time_ns,
            Record::ProcessFlow(r) => r.end_ns,
            Record::Pod(r) => r.time_ns,
            Record::K8sEvent(r) => r.time_ns,
            Record::Summary(r) => r.end_ns,
        })
    }

    /// The boot-clock time at which what the record tells began, ns: for a flow the start of
    /// its interval, for the others [`Record::time_ns`].
    pub fn start_ns(&self) -> Option<u64> {
        match self {
            Record::NetworkFlow(r) => Some(r.time_ns),
            Record::FileFlow(r) => Some(r.time_ns),
            Record::ProcessFlow(r) => Some(r.time_ns),
            Record::Summary(r) => Some(r.time_ns),
            other => other.time_ns(),
        }
    }
}
