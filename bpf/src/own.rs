//! The agent as it knows itself, to be held against what the probes see of it: a process, and a
//! pipe that is open in it.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::kernel::OwnView;

/// procfs tells starts in ticks of 10 ms (USER_HZ is 100 on every architecture here).
const TICK_NS: u64 = 10_000_000;
/// `MACHINE_*` of `event.h`.
const MACHINE: u32 = if cfg!(target_arch = "x86_64") {
    1
} else if cfg!(target_arch = "aarch64") {
    2
} else if cfg!(target_arch = "riscv64") {
    4
} else {
    3
};

/// A pipe of the agent's own.
pub(crate) struct OwnPipe {
    reader: PipeReader,
    _writer: PipeWriter,
    inode: u64,
    mode: u32,
    /// None where this process's boot clock is another than the kernel's.
    start_tick: Option<u64>,
}

impl OwnPipe {
    pub(crate) fn new() -> io::Result<OwnPipe> {
        let (reader, writer) = io::pipe()?;
        // By /proc: the standard library has no other safe way from a pipe to its inode.
        let found = std::fs::metadata(format!("/proc/self/fd/{}", reader.as_raw_fd()))?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let start_tick = start_tick(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat"))?;
        // Kernels without time namespaces have no such file.
        let offsets = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        let start_tick = (!has_boot_offset(&offsets)).then_some(start_tick);
        Ok(OwnPipe { reader, _writer: writer, inode: found.ino(), mode: found.mode(), start_tick })
    }

    pub(crate) fn fd(&self) -> u32 {
        self.reader.as_raw_fd().unsigned_abs()
    }

    /// What the probes see otherwise.
    pub(crate) fn difference(&self, seen: &OwnView) -> Option<&'static str> {
        // Half a tick apart is the same: the kernel rounds.
        let start = self.start_tick.map_or(0, |tick| seen.start_ns.abs_diff(tick * TICK_NS));
        [
            (seen.machine != MACHINE, "the machine"),
            (seen.tgid != 0, "a process's id"),
            (start >= 2 * TICK_NS, "a process's start"),
            (seen.mode != self.mode, "a file's type"),
            (seen.inode != self.inode, "a file's inode"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// The start of a process from its `stat`: field 22, behind the name in parentheses.
fn start_tick(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a time namespace shifts the boot clock: its line has seconds and nanoseconds.
fn has_boot_offset(offsets: &str) -> bool {
    let boot = offsets.lines().find_map(|line| line.strip_prefix("boottime"));
    boot.is_some_and(|line| line.split_whitespace().any(|number| number != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_is_seen_wrongly_is_named() {
        let own = OwnPipe::new().unwrap();
        let start_ns = own.start_tick.unwrap() * TICK_NS;
        let right = OwnView {
            start_ns,
            inode: own.inode,
            fd: own.fd(),
            tgid: 0,
            mode: own.mode,
            machine: MACHINE,
        };
        assert_eq!(own.difference(&right), None);
        for (wrong, what) in [
            (OwnView { machine: 9, ..right }, "the machine"),
            (OwnView { tgid: 1, ..right }, "a process's id"),
            (OwnView { start_ns: start_ns + 1_000_000_000, ..right }, "a process's start"),
            (OwnView { mode: 0, ..right }, "a file's type"),
            (OwnView { inode: 0, ..right }, "a file's inode"),
        ] {
            assert_eq!(own.difference(&wrong), Some(what));
        }
    }

    #[test]
    fn a_shifted_boot_clock_is_noticed() {
        let own = "monotonic           0         0\nboottime            0         0\n";
        assert!(!has_boot_offset(own) && !has_boot_offset(""));
        assert!(has_boot_offset("monotonic 7 0\nboottime      604800         0\n"));
    }
}
