//! Whether the run before this one said farewell, and how far its frames reach.
//!
//! One small file beside the spool holds the run's id, its boot, the end of its last frame and
//! how many it made of each class. A run that was killed leaves it open, and the next one learns from it the interval
//! whose operations are gone ([`codec::Interruption`]). Where a predecessor's state is still to
//! be told, nothing is written before the run's first frame, which tells it, is in the spool: a
//! run that dies before that leaves the word to its predecessor's state. Without the file, or after a power
//! cut that took the newest write, the interval begins earlier than it had to, never later.

use std::io;
use std::path::Path;
use std::sync::Arc;

use codec::{CLASSES, Class, FormerRun, Interruption};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::slots::Slots;
use crate::syncer::Syncer;
use crate::wear::{Meter, Wear};

/// Name of the file, in the state folder.
pub const FILE: &str = "state";

const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Boot id, run id, number of frames of each class.
const RUN_BYTES: usize = 16 + 16 + 8 * CLASSES;
/// This run, as long as it has no frame the run before it, end of the last frame, whether closed.
const STATE_BYTES: usize = 2 * RUN_BYTES + 8 + 1;
const OPEN: u8 = 0;
const CLOSED: u8 = 1;

/// The state of the present run.
#[derive(Debug)]
pub struct RunState {
    slots: Slots<STATE_BYTES>,
    /// With the frames made, those included that did not get into the spool.
    run: FormerRun,
    former: Option<FormerRun>,
    /// End of the newest frame, boot clock, ns; none before the first.
    last_end_ns: Option<u64>,
    /// How often it may be written.
    meter: Meter,
}

/// What a run has to tell of the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// If it did not close.
    pub interruption: Option<Interruption>,
    /// How far it came, if there was one.
    pub former: Option<FormerRun>,
}

impl RunState {
    /// Begins a run of the boot `boot_id` at `now_ns` (boot clock), with a new random run id.
    /// Tells of the run before.
    ///
    /// # Errors
    /// If the file cannot be opened or written, or the kernel gives no random bytes.
    pub fn begin(
        directory: &Path,
        boot_id: [u8; 16],
        now_ns: u64,
        wear: Option<Arc<Wear>>,
    ) -> io::Result<(RunState, Before)> {
        let (slots, former) = Slots::open(&directory.join(FILE))?;
        let former = former.as_ref().and_then(parse);
        let before = Before {
            interruption: former.and_then(|state| state.interruption(boot_id, now_ns)),
            former: former.and_then(Former::last_with_frames),
        };
        let run_id = random_id()?;
        let mut state = RunState {
            slots,
            run: FormerRun { boot_id, run_id, frames: [0; CLASSES] },
            former: before.former,
            last_end_ns: None,
            meter: Meter::new(wear),
        };
        if before.interruption.is_none() {
            // A run that dies before its first frame is told of, too.
            state.meter.count();
            state.write(now_ns, OPEN)?;
            state.slots.sync()?;
        }
        Ok((state, before))
    }

    /// From now on `syncer` makes durable what need not be so before the run goes on.
    pub fn sync_by(&mut self, syncer: Syncer) {
        self.slots.sync_by(syncer);
    }

    /// The id of this run.
    pub fn run_id(&self) -> [u8; 16] {
        self.run.run_id
    }

    /// Notes that one more frame of a class was made, whatever becomes of it.
    pub fn frame_made(&mut self, class: Class) {
        self.run.frames[class as usize] += 1;
    }

    /// Notes that everything up to `end_ns` (boot clock) is in spooled frames. One write in
    /// place; only the run's first is made durable, so that it cannot be taken for its
    /// predecessor. Where writes are spared, it is written seldom: the interval of a run that is
    /// killed then begins earlier than it had to.
    ///
    /// # Errors
    /// If the write fails; a later call makes up for it.
    pub fn frame_written(&mut self, end_ns: u64) -> io::Result<()> {
        self.former = None;
        let is_first = self.last_end_ns.is_none();
        if is_first {
            self.meter.count();
        }
        if is_first || self.meter.is_due() {
            self.write(end_ns, OPEN)?;
        }
        if is_first {
            self.slots.sync()?;
        }
        self.last_end_ns = Some(end_ns);
        Ok(())
    }

    /// Notes that the run ended in order, all it saw being in its frames.
    ///
    /// # Errors
    /// If the write fails: the next run takes this one for killed.
    pub fn close(&mut self) -> io::Result<()> {
        let Some(end_ns) = self.last_end_ns else { return Ok(()) };
        self.meter.count();
        self.write(end_ns, CLOSED)?;
        self.slots.sync()
    }

    fn write(&mut self, end_ns: u64, mark: u8) -> io::Result<()> {
        let mut state = [0; STATE_BYTES];
        let (run, rest) = state.split_at_mut(RUN_BYTES);
        let (former, rest) = rest.split_at_mut(RUN_BYTES);
        let (end, closed) = rest.split_at_mut(8);
        run.copy_from_slice(&run_bytes(&self.run));
        if let Some(known) = &self.former {
            former.copy_from_slice(&run_bytes(known));
        }
        end.copy_from_slice(&end_ns.to_le_bytes());
        closed.fill(mark);
        self.slots.write(&state)
    }
}

fn run_bytes(run: &FormerRun) -> [u8; RUN_BYTES] {
    let mut bytes = [0; RUN_BYTES];
    let (boot_id, rest) = bytes.split_at_mut(16);
    let (run_id, frames) = rest.split_at_mut(16);
    boot_id.copy_from_slice(&run.boot_id);
    run_id.copy_from_slice(&run.run_id);
    for (place, frames) in frames.chunks_exact_mut(8).zip(run.frames) {
        place.copy_from_slice(&frames.to_le_bytes());
    }
    bytes
}

/// A state that was read.
#[derive(Clone, Copy, Debug)]
struct Former {
    run: FormerRun,
    before: FormerRun,
    end_ns: u64,
    is_closed: bool,
}

fn parse(state: &[u8; STATE_BYTES]) -> Option<Former> {
    let (run, rest) = state.split_first_chunk::<RUN_BYTES>()?;
    let (before, rest) = rest.split_first_chunk::<RUN_BYTES>()?;
    let (end_ns, closed) = rest.split_first_chunk::<8>()?;
    Some(Former {
        run: parse_run(run)?,
        before: parse_run(before)?,
        end_ns: u64::from_le_bytes(*end_ns),
        is_closed: closed.contains(&CLOSED),
    })
}

fn parse_run(bytes: &[u8; RUN_BYTES]) -> Option<FormerRun> {
    let (boot_id, rest) = bytes.split_first_chunk::<16>()?;
    let (run_id, frames) = rest.split_first_chunk::<16>()?;
    let mut run = FormerRun { boot_id: *boot_id, run_id: *run_id, frames: [0; CLASSES] };
    for (frames, bytes) in run.frames.iter_mut().zip(frames.chunks_exact(8)) {
        *frames = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    Some(run)
}

impl Former {
    /// A run that made none leaves the word to the one before it.
    fn last_with_frames(self) -> Option<FormerRun> {
        [self.run, self.before].into_iter().find(|run| run.frames.iter().any(|frames| *frames > 0))
    }

    fn interruption(&self, boot_id: [u8; 16], now_ns: u64) -> Option<Interruption> {
        (!self.is_closed).then_some(Interruption {
            boot_id: self.run.boot_id,
            run_id: self.run.run_id,
            from_ns: self.end_ns,
            to_ns: if self.run.boot_id == boot_id { now_ns } else { 0 },
            operations_at_least: 0,
        })
    }
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
        let begin = |boot, now_ns| RunState::begin(directory.path(), boot, now_ns, None).unwrap();

        let (mut run, before) = begin(BOOT, 100);
        assert_eq!(before, Before::default());
        let run_id = run.run_id();
        run.frame_made(Class::Urgent);
        run.frame_written(200).unwrap();
        // This one did not get into the spool.
        run.frame_made(Class::Urgent);
        run.frame_made(Class::Volume);
        run.frame_written(300).unwrap();
        drop(run);
        let killed = |to_ns| {
            let operations_at_least = 0;
            let from_ns = 300;
            Before {
                interruption: Some(Interruption {
                    boot_id: BOOT,
                    run_id,
                    from_ns,
                    to_ns,
                    operations_at_least,
                }),
                former: Some(FormerRun { boot_id: BOOT, run_id, frames: [2, 1] }),
            }
        };

        // Killed before its first frame, and closed before it: nobody has told yet.
        let (second, told) = begin(BOOT, 400);
        assert_ne!(second.run_id(), run_id);
        assert_eq!(told, killed(400));
        let (mut third, told) = begin(BOOT, 500);
        assert_eq!(told, killed(500));
        third.close().unwrap();

        // In another boot the end of the interval is not known.
        let (mut fourth, told) = begin([8; 16], 10);
        assert_eq!(told, killed(0));
        let run_id = fourth.run_id();
        fourth.frame_made(Class::Urgent);
        fourth.frame_written(20).unwrap();
        fourth.close().unwrap();
        let former = Some(FormerRun { boot_id: [8; 16], run_id, frames: [1, 0] });
        assert_eq!(begin([8; 16], 30).1, Before { interruption: None, former });
    }

    #[test]
    fn a_run_that_dies_before_its_first_frame_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let begin = |now_ns| RunState::begin(directory.path(), BOOT, now_ns, None).unwrap();
        let told = |before: Before| {
            let cut = before.interruption.map(|i| (i.run_id, i.from_ns, i.to_ns));
            (cut, before.former.map(|former| (former.run_id, former.frames)))
        };
        let (first, before) = begin(100);
        assert_eq!(told(before), (None, None));
        let (mut second, before) = begin(200);
        assert_eq!(told(before), (Some((first.run_id(), 100, 200)), None));
        let second_id = second.run_id();
        second.frame_made(Class::Urgent);
        second.frame_written(300).unwrap();
        second.close().unwrap();
        // The same behind a run that ended in order, whose frames are still told of.
        let (mut third, before) = begin(400);
        assert_eq!(told(before), (None, Some((second_id, [1, 0]))));
        let third_id = third.run_id();
        third.close().unwrap();
        for now_ns in [500, 600] {
            let expected = (Some((third_id, 400, now_ns)), Some((second_id, [1, 0])));
            assert_eq!(told(begin(now_ns).1), expected);
        }
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
