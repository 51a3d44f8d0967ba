//! Finding frames in bytes that may be damaged. Pure, except for [`file`], which slides a
//! window over a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use codec::{Counter, DecodeError, FRAME_BYTES_MAX, Frame, StreamKey, Term};

/// The first bytes of every frame.
const MAGIC: &[u8] = b"SFE";

/// What a spool knows of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundFrame {
    pub(super) key: StreamKey,
    pub(super) generation: u32,
    /// Whether the generation begins with it.
    pub(super) starts: bool,
    pub(super) records: u32,
    pub(super) bytes: usize,
    /// Oldest and newest record, boot clock, ns.
    pub(super) times_ns: [u64; 2],
    /// Unix time minus boot clock, ns, where the frame tells it.
    pub(super) offset_ns: Option<i64>,
    /// Purged records that the run tells of, where the frame is its first.
    pub(super) purged_told: u64,
}

/// What is at the start of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole frame.
    Frame(FoundFrame),
    /// So many bytes that belong to no whole frame.
    Damage(usize),
    /// Perhaps the beginning of a frame: more bytes are needed to tell.
    Partial,
    /// Nothing.
    End,
}

/// Looks at the start of `bytes`; `last` says that nothing follows them. `Partial` comes only
/// where not, and only for fewer than [`FRAME_BYTES_MAX`] bytes.
pub(super) fn find(bytes: &[u8], last: bool) -> Found {
    if bytes.is_empty() {
        return Found::End;
    }
    match look(bytes, last) {
        Some(found) => found,
        // The next place where a frame may begin ends the damage.
        None => {
            let next = (1..bytes.len()).find(|at| {
                let rest = bytes.get(*at..).unwrap_or_default();
                let magic = rest.get(..MAGIC.len()).unwrap_or(rest);
                MAGIC.starts_with(magic) && look(rest, last).is_some()
            });
            Found::Damage(next.unwrap_or(bytes.len()))
        }
    }
}

fn look(bytes: &[u8], last: bool) -> Option<Found> {
    match Frame::decode(bytes) {
        Ok((frame, _)) => Some(Found::Frame(found(&frame))),
        Err(DecodeError::Truncated) if !last => Some(Found::Partial),
        Err(_) => None,
    }
}

fn found(frame: &Frame<'_>) -> FoundFrame {
    let header = &frame.header;
    let is_purged = |counter: &&Counter| counter.term == Term::LostPurged;
    let purged = header.ledger.iter().find(is_purged).map_or(0, |counter| counter.total);
    FoundFrame {
        key: header.key,
        generation: header.generation,
        starts: header.start.is_some(),
        records: header.records,
        bytes: frame.bytes.len(),
        times_ns: [header.first_ns, header.last_ns],
        offset_ns: header.clock.map(|clock| clock.offset_ns),
        purged_told: if header.key.sequence == 0 { purged } else { 0 },
    }
}

/// Tells `each` what the first `length` bytes of a file hold, in order, with the offset
/// behind it. `buffer` is grown to what two frames need.
pub(super) fn file(
    file: &File,
    length: u64,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(Found, u64),
) -> io::Result<()> {
    buffer.resize(2 * FRAME_BYTES_MAX, 0);
    // `held` bytes of the buffer are the file's from `start` on.
    let (mut start, mut held) = (0_u64, 0);
    loop {
        let room = buffer.get_mut(held..).unwrap_or_default();
        let left = usize::try_from(length - start - held as u64).unwrap_or(usize::MAX);
        let wanted = room.len().min(left);
        file.read_exact_at(room.get_mut(..wanted).unwrap_or_default(), start + held as u64)?;
        held += wanted;
        let last = start + held as u64 == length;
        let mut at = 0;
        loop {
            let found = find(buffer.get(at..held).unwrap_or_default(), last);
            match found {
                Found::Frame(frame) => at += frame.bytes,
                Found::Damage(bytes) => at += bytes,
                Found::Partial => break,
                Found::End if last => return Ok(()),
                Found::End => break,
            }
            each(found, start + at as u64);
        }
        buffer.copy_within(at..held, 0);
        start += at as u64;
        held -= at;
    }
}
