//! What a frame says about its stream: identity, order, clock, and the ledger of operations.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::class::CLASSES;
use crate::seal::{Seal, Signature};

/// Which stream a frame belongs to, and its place in it. Together with the agent's identity
/// (from its certificate) and the boot id this is the key under which a collector stores a
/// frame: two frames with one key are one frame.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct StreamKey {
    /// The first eight bytes of the run id: which start of the agent.
    pub run_tag: [u8; 8],
    /// Priority class: the number of a [`Class`](crate::Class).
    pub class: u8,
    /// Number of the frame in (run, class), from 0, without gaps.
    pub sequence: u64,
}

/// The header of a frame. The optional parts travel as length-delimited extensions, so that
/// a receiver skips those that it does not know. By default it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Stream and place in it.
    pub key: StreamKey,
    /// Generation within (run, class): entities and file numbers hold for one generation.
    pub generation: u32,
    /// Oldest and newest record time in the frame, boot clock, ns; equal where it is empty.
    pub first_ns: u64,
    /// See `first_ns`.
    pub last_ns: u64,
    /// Records in the body.
    pub records: u32,
    /// Present in the first frame of each generation.
    pub start: Option<GenerationStart<'a>>,
    /// Present in the first frame of each generation, and whenever the mapping moved.
    pub clock: Option<Clock>,
    /// Counters that changed since the frame before; all that are not zero in the first
    /// frame of a generation.
    pub ledger: Ledger,
    /// A run before this one that ended without saying so.
    pub interruption: Option<Interruption>,
    /// Present in the first frame of each generation.
    pub capabilities: Option<Capabilities>,
    /// Present in the last frame of a run that ended in order.
    pub farewell: Option<Farewell>,
    /// The run before this one, in the first frame of each urgent generation.
    pub former: Option<FormerRun>,
    /// What the device dropped: in the first frame of each urgent generation, and when it grew.
    pub tombstones: Tombstones,
    /// In the first frame of a generation: what the one before it was.
    pub seal: Option<Seal>,
    /// Of the seal, by the key of the device's certificate.
    pub signature: Option<Signature>,
    /// Steps of the ladder that were taken: new ones, and in the first frame of an urgent
    /// generation the last one again.
    pub steps: Steps,
}

/// Who speaks: sent once for each generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationStart<'a> {
    /// The device's name; equals the certificate's.
    pub agent_id: &'a str,
    /// The kernel's `boot_id`.
    pub boot_id: [u8; 16],
    /// Random, one for each start of the agent.
    pub run_id: [u8; 16],
    /// Version of the agent.
    pub agent_version: &'a str,
    /// Kernel release (`uname -r`).
    pub kernel: &'a str,
    /// Machine (`uname -m`).
    pub machine: &'a str,
}

/// How the boot clock maps to wall time: `wall = boot + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Unix time minus boot time, ns.
    pub offset_ns: i64,
    /// How far the offset may be wrong by the way it was read, ns.
    pub uncertainty_ns: u64,
    /// Whether it is known that a time service keeps the device's clock. Agents of this version do
    /// not ask the kernel, and say no.
    pub synchronized: bool,
}

/// A run that ended without a farewell: what the kernel still held for it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// The boot in which it ran.
    pub boot_id: [u8; 16],
    /// The run that was cut.
    pub run_id: [u8; 16],
    /// All operations up to here, on the boot clock of `boot_id`, are in its frames.
    pub from_ns: u64,
    /// Operations from here on are seen again; 0 if the boot ended first.
    pub to_ns: u64,
    /// Says nothing: whoever counted was cut, too. Written as 0; frames of this version have a place
    /// for it.
    pub operations_at_least: u64,
}

/// How far the run before this one came. Where its last frames, or all, are not held although
/// they left the event path, nothing else would tell that they are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerRun {
    /// The boot in which it ran.
    pub boot_id: [u8; 16],
    /// Its id.
    pub run_id: [u8; 16],
    /// By class: it made at least the frames with the sequences below this one.
    pub frames: [u64; CLASSES],
}

/// The run ends here, in order: no hook watches any more, every operation that was observed is
/// in its frames or in its ledger's losses, and the ledger's totals are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// When, boot clock, ns.
    pub at_ns: u64,
    /// By class: the run made the frames with the sequences below this one, the frame that says
    /// it included.
    pub frames: [u64; CLASSES],
}

/// Frames that the device dropped before a collector had them. It says no more than that: which
/// of `first` to `last` were delivered before, the collector knows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The run that made them, perhaps an earlier one.
    pub run_tag: [u8; 8],
    /// Their class.
    pub class: u8,
    /// Why they were dropped.
    pub reason: DropReason,
    /// Sequence of the first of them.
    pub first: u64,
    /// Sequence of the last.
    pub last: u64,
    /// How many they are.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
}

/// Why a device drops frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum DropReason {
    /// The spool was full.
    SpoolFull,
    /// An operator purged the spool.
    Purged,
    /// The day's bytes for flash were spent, and memory was full.
    FlashBudget,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [DropReason; 3] =
        [DropReason::SpoolFull, DropReason::Purged, DropReason::FlashBudget];

    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::SpoolFull => "spool_full",
            DropReason::Purged => "purged",
            DropReason::FlashBudget => "flash_budget",
        }
    }
}

/// Most tombstones of one frame.
pub const TOMBSTONES_MAX: usize = 12;

/// The tombstones of one frame. What a later frame of the run says in a range that begins alike
/// takes the place of what an earlier one said.
pub type Tombstones = Vec<Tombstone, TOMBSTONES_MAX>;

/// How much detail the agent gives up under strain, step by step. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Step {
    /// Everything is told.
    Everything,
    /// Sessions that flood are told in summaries; the others in full.
    Summaries,
    /// A session has its share of the ring, and no more; what it does beyond is counted as lost.
    Shares,
    /// Files that are only read are told in one summary for each process.
    Totals,
    /// Events of files are left out, and counted; flows go on.
    Flows,
    /// Files are left out, and counted: what remains are processes and the network.
    Processes,
}

impl Step {
    /// All steps, from full detail down.
    pub const ALL: [Step; 6] = [
        Step::Everything,
        Step::Summaries,
        Step::Shares,
        Step::Totals,
        Step::Flows,
        Step::Processes,
    ];

    /// The name that reports print and configurations have.
    pub fn name(self) -> &'static str {
        match self {
            Step::Everything => "everything",
            Step::Summaries => "summaries",
            Step::Shares => "shares",
            Step::Totals => "totals",
            Step::Flows => "flows",
            Step::Processes => "processes",
        }
    }
}

/// What an agent gives up detail for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Strain {
    /// The ring fills up.
    Ring,
    /// The agent uses more of the processor than it may.
    Processor,
    /// The spool fills up.
    Spool,
    /// The bytes that the link may carry in a day are spent ahead of time.
    Link,
    /// The bytes that may be written to flash in a day are spent ahead of time.
    Flash,
}

impl Strain {
    /// All of them, in the order of their numbers.
    pub const ALL: [Strain; 5] =
        [Strain::Ring, Strain::Processor, Strain::Spool, Strain::Link, Strain::Flash];

    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            Strain::Ring => "ring",
            Strain::Processor => "processor",
            Strain::Spool => "spool",
            Strain::Link => "link",
            Strain::Flash => "flash",
        }
    }
}

/// A step of the ladder is taken, down or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepChange {
    /// From when on, boot clock, ns.
    pub at_ns: u64,
    /// What holds from then on.
    pub step: Step,
    /// The greatest strain then.
    pub strain: Strain,
    /// How great it was, in percent of what it may be.
    pub percent: u32,
}

/// Most changes of one frame: the agent takes its time for each.
pub const STEPS_MAX: usize = 8;

/// The changes of one frame, oldest first.
pub type Steps = Vec<StepChange, STEPS_MAX>;

/// Hooks by number, for [`Capabilities`].
pub mod hook {
    /// `sys_exit`: system calls.
    pub const SYS_EXIT: u32 = 1;
    /// `sched_process_fork`.
    pub const FORK: u32 = 1 << 1;
    /// `sched_process_exec`.
    pub const EXEC: u32 = 1 << 2;
    /// `sched_process_exit`.
    pub const EXIT: u32 = 1 << 3;
    /// `inet_sock_set_state`.
    pub const SOCKET_STATE: u32 = 1 << 4;
}

/// What the agent can see on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Hooks attached, bits of [`hook`].
    pub attached: u32,
    /// Hooks that this kernel refused: what they show is not seen.
    pub missing: u32,
    /// Whether the programs run compiled (not interpreted).
    pub jit: bool,
}

/// The kinds of operations that the ledger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Operation {
    Clone,
    Exec,
    Exit,
    Setuid,
    Open,
    Close,
    Read,
    Write,
    Receive,
    Send,
    Connect,
    Accept,
    Shutdown,
    Mkdir,
    Rmdir,
    Unlink,
    Rename,
    Link,
    Symlink,
    SocketState,
    Mmap,
    Setns,
    IoUring,
    Chmod,
    Chown,
    Mount,
    Umount,
    Resize,
    Mknod,
    Setgid,
    Capset,
    Ptrace,
    LoadModule,
    UnloadModule,
    LoadBpf,
    Unshare,
    Memfd,
    Bind,
    Listen,
}

impl Operation {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Operation; 39] = [
        Operation::Clone,
        Operation::Exec,
        Operation::Exit,
        Operation::Setuid,
        Operation::Open,
        Operation::Close,
        Operation::Read,
        Operation::Write,
        Operation::Receive,
        Operation::Send,
        Operation::Connect,
        Operation::Accept,
        Operation::Shutdown,
        Operation::Mkdir,
        Operation::Rmdir,
        Operation::Unlink,
        Operation::Rename,
        Operation::Link,
        Operation::Symlink,
        Operation::SocketState,
        Operation::Mmap,
        Operation::Setns,
        Operation::IoUring,
        Operation::Chmod,
        Operation::Chown,
        Operation::Mount,
        Operation::Umount,
        Operation::Resize,
        Operation::Mknod,
        Operation::Setgid,
        Operation::Capset,
        Operation::Ptrace,
        Operation::LoadModule,
        Operation::UnloadModule,
        Operation::LoadBpf,
        Operation::Unshare,
        Operation::Memfd,
        Operation::Bind,
        Operation::Listen,
    ];

    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Clone => "clone",
            Operation::Exec => "exec",
            Operation::Exit => "exit",
            Operation::Setuid => "setuid",
            Operation::Open => "open",
            Operation::Close => "close",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Receive => "receive",
            Operation::Send => "send",
            Operation::Connect => "connect",
            Operation::Accept => "accept",
            Operation::Shutdown => "shutdown",
            Operation::Mkdir => "mkdir",
            Operation::Rmdir => "rmdir",
            Operation::Unlink => "unlink",
            Operation::Rename => "rename",
            Operation::Link => "link",
            Operation::Symlink => "symlink",
            Operation::SocketState => "socket_state",
            Operation::Mmap => "mmap",
            Operation::Setns => "setns",
            Operation::IoUring => "io_uring",
            Operation::Chmod => "chmod",
            Operation::Chown => "chown",
            Operation::Mount => "mount",
            Operation::Umount => "umount",
            Operation::Resize => "resize",
            Operation::Mknod => "mknod",
            Operation::Setgid => "setgid",
            Operation::Capset => "capset",
            Operation::Ptrace => "ptrace",
            Operation::LoadModule => "load_module",
            Operation::UnloadModule => "unload_module",
            Operation::LoadBpf => "load_bpf",
            Operation::Unshare => "unshare",
            Operation::Memfd => "memfd",
            Operation::Bind => "bind",
            Operation::Listen => "listen",
        }
    }
}

/// The terms of the ledger: `observed = stored + aggregated + filtered + own + lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Term {
    /// Operations that a hook saw.
    Observed,
    /// Became a record of their own.
    Stored,
    /// Are part of a flow record.
    Aggregated,
    /// Not recorded by rule: an object of no recorded kind, or a call that touched nothing.
    Filtered,
    /// The agent's own doing, left out.
    Own,
    /// Lost: the ring had no room.
    LostRing,
    /// Lost: a kernel map had no room.
    LostMap,
    /// Lost: the kernel object could not be read.
    LostUnreadable,
    /// Lost: a table of the agent had no room.
    LostTable,
    /// Lost: a record did not fit or could not be encoded.
    LostEncoding,
    /// Lost: the spool was full and dropped its oldest frames (unit: records).
    LostSpoolFull,
    /// Lost: the spool could not be written or read back (unit: records).
    LostSpoolError,
    /// Lost: the collector refused the frame for good (unit: records).
    LostRefused,
    /// Lost: an operator purged the spool; told by the run after (unit: records).
    LostPurged,
    /// Lost: left out on a step of the ladder.
    LostShed,
    /// Lost: the day's bytes for flash were spent, and memory was full (unit: records).
    LostFlashBudget,
}

impl Term {
    /// All terms, in the order of their numbers.
    pub const ALL: [Term; 16] = [
        Term::Observed,
        Term::Stored,
        Term::Aggregated,
        Term::Filtered,
        Term::Own,
        Term::LostRing,
        Term::LostMap,
        Term::LostUnreadable,
        Term::LostTable,
        Term::LostEncoding,
        Term::LostSpoolFull,
        Term::LostSpoolError,
        Term::LostRefused,
        Term::LostPurged,
        Term::LostShed,
        Term::LostFlashBudget,
    ];

    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            Term::Observed => "observed",
            Term::Stored => "stored",
            Term::Aggregated => "aggregated",
            Term::Filtered => "filtered",
            Term::Own => "own",
            Term::LostRing => "lost_ring",
            Term::LostMap => "lost_map",
            Term::LostUnreadable => "lost_unreadable",
            Term::LostTable => "lost_table",
            Term::LostEncoding => "lost_encoding",
            Term::LostSpoolFull => "lost_spool_full",
            Term::LostSpoolError => "lost_spool_error",
            Term::LostRefused => "lost_refused",
            Term::LostPurged => "lost_purged",
            Term::LostShed => "lost_shed",
            Term::LostFlashBudget => "lost_flash_budget",
        }
    }

    /// Whether the term is a loss.
    pub fn is_loss(self) -> bool {
        self >= Term::LostRing
    }
}

/// One counter of the ledger: its total since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Kind of operation; none where the unit is records (spool losses).
    pub operation: Option<Operation>,
    /// Term.
    pub term: Term,
    /// Total since the start of the run.
    pub total: u64,
}

/// Most counters that one frame can carry: every kind with every term, and the losses that
/// have no kind.
pub const LEDGER_COUNTERS_MAX: usize = (Operation::ALL.len() + 1) * Term::ALL.len();

/// The counters of one frame.
pub type Ledger = Vec<Counter, LEDGER_COUNTERS_MAX>;
