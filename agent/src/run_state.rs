//! Whether the run before this one said farewell, and how far its frames reach.
//!
//! One small file beside the spool holds the run's id, its boot and the end of its last
//! frame. A run that was killed leaves it open, and the next one learns from it the interval
//! whose operations are gone ([`codec::Interruption`]). Where a predecessor's state is still to
//! be told, nothing is written before the run's first frame, which tells it, is in the spool: a
//! run that dies before that leaves the word to its predecessor's state. Without the file, or after a power
//! cut that took the newest write, the interval begins earlier than it had to, never later.

use std::io;
use std::path::Path;

use codec::Interruption;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::slots::Slots;

/// Name of the file, in the state folder.
pub const FILE: &str = "state";

const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Boot id, run id, end of the last frame, whether closed.
const STATE_BYTES: usize = 16 + 16 + 8 + 1;
const OPEN: u8 = 0;
const CLOSED: u8 = 1;

/// The state of the present run.
#[derive(Debug)]
pub struct RunState {
    slots: Slots<STATE_BYTES>,
    boot_id: [u8; 16],
    run_id: [u8; 16],
    /// End of the newest frame, boot clock, ns; none before the first.
    last_end_ns: Option<u64>,
}

impl RunState {
    /// Begins a run of the boot `boot_id` at `now_ns` (boot clock), with a new random run id.
    /// Tells of a former run that did not close; `operations_at_least` is 0, since nobody is
    /// left who counted.
    ///
    /// # Errors
    /// If the file cannot be opened or written, or the kernel gives no random bytes.
    pub fn begin(
        directory: &Path,
        boot_id: [u8; 16],
        now_ns: u64,
    ) -> io::Result<(RunState, Option<Interruption>)> {
        let (slots, former) = Slots::open(&directory.join(FILE))?;
        let interruption = former.and_then(|former| interruption(&former, boot_id, now_ns));
        let run_id = random_id()?;
        let mut state = RunState { slots, boot_id, run_id, last_end_ns: None };
        if interruption.is_none() {
            // A run that dies before its first frame is told of, too.
            state.write(now_ns, OPEN)?;
            state.slots.sync()?;
        }
        Ok((state, interruption))
    }

    /// The id of this run.
    pub fn run_id(&self) -> [u8; 16] {
        self.run_id
    }

    /// Notes that everything up to `end_ns` (boot clock) is in spooled frames. One write in
    /// place; only the run's first is made durable, so that it cannot be taken for its
    /// predecessor.
    ///
    /// # Errors
    /// If the write fails; a later call makes up for it.
    pub fn frame_written(&mut self, end_ns: u64) -> io::Result<()> {
        self.write(end_ns, OPEN)?;
        if self.last_end_ns.is_none() {
            self.slots.sync()?;
        }
        self.last_end_ns = Some(end_ns);
        Ok(())
    }

    /// Notes that the run ended in order, all it saw being in its frames.
    ///
    /// # Errors
    /// If the write fails: the next run takes this one for killed.
    pub fn close(mut self) -> io::Result<()> {
        let Some(end_ns) = self.last_end_ns else { return Ok(()) };
        self.write(end_ns, CLOSED)?;
        self.slots.sync()
    }

    fn write(&mut self, end_ns: u64, mark: u8) -> io::Result<()> {
        let mut state = [0; STATE_BYTES];
        let (boot_id, rest) = state.split_at_mut(16);
        let (run_id, rest) = rest.split_at_mut(16);
        let (end, closed) = rest.split_at_mut(8);
        boot_id.copy_from_slice(&self.boot_id);
        run_id.copy_from_slice(&self.run_id);
        end.copy_from_slice(&end_ns.to_le_bytes());
        closed.fill(mark);
        self.slots.write(&state)
    }
}

fn interruption(
    former: &[u8; STATE_BYTES],
    boot_id: [u8; 16],
    now_ns: u64,
) -> Option<Interruption> {
    let (former_boot, rest) = former.split_first_chunk::<16>()?;
    let (former_run, rest) = rest.split_first_chunk::<16>()?;
    let (end_ns, closed) = rest.split_first_chunk::<8>()?;
    if closed.contains(&CLOSED) {
        return None;
    }
    Some(Interruption {
        boot_id: *former_boot,
        run_id: *former_run,
        from_ns: u64::from_le_bytes(*end_ns),
        to_ns: if *former_boot == boot_id { now_ns } else { 0 },
        operations_at_least: 0,
    })
}

/// The kernel's id of the present boot.
///
/// # Errors
/// If the kernel does not tell it, or in another form than a UUID.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID_FILE)?;
    uuid(text.trim()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{BOOT_ID_FILE}: {text:?} is no UUID"))
    })
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// 128 random bits from the kernel.
///
/// # Errors
/// If the kernel gives none.
pub fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    // The kernel gives up to 256 bytes in one piece.
    if getrandom(&mut id, GetRandomFlags::empty())? != id.len() {
        return Err(io::Error::other("getrandom gave fewer than 16 bytes"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: [u8; 16] = [7; 16];

    #[test]
    fn a_run_that_was_killed_is_told_of_until_a_frame_carries_it() {
        let directory = tempfile::tempdir().unwrap();
        let begin = |boot, now_ns| RunState::begin(directory.path(), boot, now_ns).unwrap();

        let (mut run, before) = begin(BOOT, 100);
        assert_eq!(before, None);
        let run_id = run.run_id();
        run.frame_written(200).unwrap();
        run.frame_written(300).unwrap();
        drop(run);
        let killed = |to_ns| {
            let operations_at_least = 0;
            Some(Interruption { boot_id: BOOT, run_id, from_ns: 300, to_ns, operations_at_least })
        };

        // Killed before its first frame, and closed before it: nobody has told yet.
        let (second, told) = begin(BOOT, 400);
        assert_ne!(second.run_id(), run_id);
        assert_eq!(told, killed(400));
        let (third, told) = begin(BOOT, 500);
        assert_eq!(told, killed(500));
        third.close().unwrap();

        // In another boot the end of the interval is not known.
        let (mut fourth, told) = begin([8; 16], 10);
        assert_eq!(told, killed(0));
        fourth.frame_written(20).unwrap();
        fourth.close().unwrap();
        assert_eq!(begin([8; 16], 30).1, None);
    }

    #[test]
    fn a_run_that_dies_before_its_first_frame_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let begin = |now_ns| RunState::begin(directory.path(), BOOT, now_ns).unwrap();
        let told = |interruption: Option<Interruption>| {
            interruption.map(|i| (i.run_id, i.from_ns, i.to_ns))
        };
        let (first, before) = begin(100);
        assert_eq!(before, None);
        let (mut second, before) = begin(200);
        assert_eq!(told(before), Some((first.run_id(), 100, 200)));
        second.frame_written(300).unwrap();
        second.close().unwrap();
        // The same behind a run that ended in order; and who closes without a frame tells none.
        let (third, before) = begin(400);
        assert_eq!(before, None);
        let third_id = third.run_id();
        third.close().unwrap();
        assert_eq!(told(begin(500).1), Some((third_id, 400, 500)));
    }

    #[test]
    fn uuids() {
        assert_eq!(
            uuid("00112233-4455-6677-8899-aabbccddeeff").map(|id| (id[0], id[1], id[15])),
            Some((0x00, 0x11, 0xff))
        );
        assert_eq!(uuid("+0112233-4455-6677-8899-aabbccddeeff"), None);
        assert_eq!(uuid("0011"), None);
        assert_ne!(boot_id().unwrap(), [0; 16]);
    }
}
