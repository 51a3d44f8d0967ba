//! Flows: what one process does with one object. The kernel holds the counters, which only
//! grow; a [`Flow`] remembers what has been exported, so that consecutive records of one flow
//! add up exactly. Pure.

use codec::{Address, Oid, Volume, op};

use crate::texts::Text;

/// The object of a flow.
#[derive(Clone, Copy, Debug)]
pub enum Object {
    /// A file, directory, pipe or unix socket.
    File {
        /// SysFlow `restype`.
        kind: u8,
        /// Absolute path or name, in the pool of texts.
        path: Text,
        /// Device number.
        device: u32,
        /// Inode number.
        inode: u64,
        /// Bits of [`mod@codec::file`].
        flags: u32,
    },
    /// An internet connection or exchange.
    Network {
        /// Client.
        source: (Address, u16),
        /// Server.
        destination: (Address, u16),
        /// IP protocol number.
        protocol: u8,
        /// Bits of [`codec::network`].
        flags: u32,
    },
}

/// One flow that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Who.
    pub process: Oid,
    /// The thread that began it.
    pub tid: u32,
    /// The object.
    pub object: Object,
    /// Address of the kernel's struct file.
    pub file: u64,
    /// Which map entry it is, with its key.
    pub flow_ns: u64,
    /// SysFlow open flags.
    pub open_flags: u32,
    /// Operation bits not exported yet, without read and write.
    pub ops: u64,
    /// First errno of a connection attempt.
    pub error: i32,
    /// Start of the interval not exported yet, boot clock, ns.
    pub since_ns: u64,
    /// Last time that something was seen to happen, boot clock, ns.
    pub active_ns: u64,
    /// Totals as last seen.
    pub seen: Totals,
    /// Totals exported.
    pub exported: Totals,
    /// The session of its process, as the kernel side names it; 0 if it is not known.
    pub session: u32,
    /// Whether the session flooded when it began: it is told in a summary.
    pub floods: bool,
    /// Whether its map entry was taken before its start was heard of: no event tells its end.
    pub is_taken: bool,
}

/// What the kernel has counted in a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls that moved bytes.
    pub volume: Volume,
    /// Calls of shutdown.
    pub shutdowns: u32,
    /// Calls of mmap.
    pub mmaps: u32,
}

impl Totals {
    /// Totals from the kernel's words.
    pub fn new(volume: &bpf::Volume, shutdowns: u32, mmaps: u32) -> Totals {
        let volume = Volume {
            read_ops: volume.read_ops,
            write_ops: volume.write_ops,
            read_bytes: volume.read_bytes,
            write_bytes: volume.write_bytes,
        };
        Totals { volume, shutdowns, mmaps }
    }

    /// What has been added since `earlier`.
    fn since(&self, earlier: &Totals) -> Totals {
        let (new, old) = (&self.volume, &earlier.volume);
        Totals {
            volume: Volume {
                read_ops: new.read_ops.saturating_sub(old.read_ops),
                write_ops: new.write_ops.saturating_sub(old.write_ops),
                read_bytes: new.read_bytes.saturating_sub(old.read_bytes),
                write_bytes: new.write_bytes.saturating_sub(old.write_bytes),
            },
            shutdowns: self.shutdowns.saturating_sub(earlier.shutdowns),
            mmaps: self.mmaps.saturating_sub(earlier.mmaps),
        }
    }
}

impl Flow {
    /// Notes the kernel's totals.
    pub fn note(&mut self, total: Totals, now_ns: u64) {
        if total != self.seen {
            self.seen = total;
            self.active_ns = now_ns;
        }
    }

    /// What has not been exported yet, with its operation bits; none if there is nothing.
    pub fn take(&mut self) -> Option<(Totals, u64)> {
        let done = self.seen.since(&self.exported);
        let ops = [
            (done.volume.read_ops, op::READ_RECV),
            (done.volume.write_ops, op::WRITE_SEND),
            (done.shutdowns.into(), op::SHUTDOWN),
            (done.mmaps.into(), op::MMAP),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .fold(std::mem::take(&mut self.ops), |ops, (_, bit)| ops | bit);
        self.exported = self.seen;
        (ops != 0).then_some((done, ops))
    }
}

/// SysFlow open flags from those of this architecture's kernel headers.
pub fn open_flags(kernel: u32) -> u32 {
    use codec::open_flag as to;
    #[cfg(any(target_arch = "x86_64", target_arch = "riscv64"))]
    const DIRECT_DIRECTORY_LARGEFILE: (u32, u32, u32) = (0o40000, 0o200000, 0o100000);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "riscv64")))]
    const DIRECT_DIRECTORY_LARGEFILE: (u32, u32, u32) = (0o200000, 0o40000, 0o400000);
    let (direct, directory, largefile) = DIRECT_DIRECTORY_LARGEFILE;
    let access = match kernel & 3 {
        0 => to::RDONLY,
        1 => to::WRONLY,
        _ => to::RDWR,
    };
    [
        (0o100, to::CREAT),
        (0o2000, to::APPEND),
        (0o10000, to::DSYNC),
        (0o200, to::EXCL),
        (0o4000, to::NONBLOCK),
        (0o4010000, to::SYNC),
        (0o1000, to::TRUNC),
        (direct, to::DIRECT),
        (directory, to::DIRECTORY),
        (largefile, to::LARGEFILE),
        (0o2000000, to::CLOEXEC),
        (0o20000000, to::TMPFILE),
    ]
    .into_iter()
    .filter(|(from, _)| kernel & from == *from)
    .fold(access, |flags, (_, to)| flags | to)
}
