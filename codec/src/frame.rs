//! The frame: one encoded, checksummed batch of records. It is the unit of spool, upload
//! and acknowledgement.
//!
//! [`FrameWriter`] fills a caller's buffer from the middle: records go in behind a space
//! kept for the header, which is written last, when its counts are known, right before the
//! records. Nothing is moved and nothing is allocated. [`Frame::decode`] takes hostile
//! bytes: it checks length, version and checksum before it looks at anything else.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::seal::{Seal, Signature};
use crate::stream::{
    Capabilities, Clock, Counter, Farewell, FormerRun, GenerationStart, Header, Interruption,
    LEDGER_COUNTERS_MAX, STEPS_MAX, StepChange, StreamKey, TOMBSTONES_MAX, Tombstone,
};

/// Largest frame, bytes: a receiver may refuse more without looking.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

const MAGIC: [u8; 3] = *b"SFE";
const VERSION: u8 = 0;
/// Magic, version, length.
const PREFIX_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;
/// Largest header, bytes. The ledger is the largest part: its counters have at most 13 bytes.
const HEADER_BYTES_MAX: usize = 10 * 1024;
/// Largest tombstone, bytes.
const TOMBSTONE_BYTES_MAX: usize = 8 + 1 + 1 + 4 * 10;
/// Largest change of step, bytes.
const STEP_BYTES_MAX: usize = 10 + 1 + 1 + 5;
const _: () = assert!(
    LEDGER_COUNTERS_MAX * 13
        + TOMBSTONES_MAX * TOMBSTONE_BYTES_MAX
        + STEPS_MAX * STEP_BYTES_MAX
        + 1024
        <= HEADER_BYTES_MAX
);

const EXTENSION_END: u8 = 0;
const EXTENSION_START: u8 = 1;
const EXTENSION_CLOCK: u8 = 2;
const EXTENSION_LEDGER: u8 = 3;
const EXTENSION_INTERRUPTION: u8 = 4;
const EXTENSION_CAPABILITIES: u8 = 5;
const EXTENSION_FAREWELL: u8 = 6;
const EXTENSION_FORMER: u8 = 7;
const EXTENSION_TOMBSTONES: u8 = 8;
const EXTENSION_SEAL: u8 = 9;
const EXTENSION_STEPS: u8 = 10;
const EXTENSION_SIGNATURE: u8 = 11;

/// Why bytes are not a frame. As many answers as a receiver has choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the frame does: wait for more, or the tail was cut.
    Truncated,
    /// Not a frame, or one that this codec's rules do not allow; the text names the part.
    Malformed(&'static str),
    /// A version that this codec does not read.
    UnknownVersion(u8),
    /// The bytes were changed on their way.
    Checksum,
    /// The frame says that it is larger than [`FRAME_BYTES_MAX`]: so many bytes.
    TooLarge(u32),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            DecodeError::Truncated => f.write_str("frame is truncated"),
            DecodeError::Malformed(part) => write!(f, "frame is malformed: {part}"),
            DecodeError::UnknownVersion(v) => {
                write!(f, "frame version {v} is not known (this codec reads {VERSION})")
            }
            DecodeError::Checksum => f.write_str("frame checksum does not match its bytes"),
            DecodeError::TooLarge(n) => {
                write!(f, "frame of {n} bytes is larger than the limit of {FRAME_BYTES_MAX}")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// Why a record or header did not go into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The frame has no room for it: finish this frame and begin another.
    Full,
    /// It fits into no frame.
    TooLarge,
}

impl core::fmt::Display for EncodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            EncodeError::Full => "frame is full",
            EncodeError::TooLarge => "record is larger than a frame",
        })
    }
}

impl core::error::Error for EncodeError {}

/// The part of the header that every frame has, as postcard writes it.
#[derive(Serialize, Deserialize)]
struct Fixed {
    key: StreamKey,
    generation: u32,
    first_ns: u64,
    span_ns: u64,
    records: u32,
}

/// Collects records into a caller's buffer and makes a frame of them.
#[derive(Debug)]
pub struct FrameWriter<'b> {
    buffer: &'b mut [u8],
    /// End of the records so far.
    end: usize,
    records: u32,
    times_ns: Option<(u64, u64)>,
}

impl<'b> FrameWriter<'b> {
    /// Begins a frame in `buffer`, of which at most [`FRAME_BYTES_MAX`] are used.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`] if the buffer cannot hold a header and one small record.
    pub fn new(buffer: &'b mut [u8]) -> Result<Self, EncodeError> {
        let usable = buffer.len().min(FRAME_BYTES_MAX);
        let buffer = buffer.get_mut(..usable).ok_or(EncodeError::TooLarge)?;
        let start = PREFIX_BYTES + HEADER_BYTES_MAX;
        if buffer.len() < start + CHECKSUM_BYTES + 64 {
            return Err(EncodeError::TooLarge);
        }
        Ok(FrameWriter { buffer, end: start, records: 0, times_ns: None })
    }

    /// Goes on with records that an earlier writer left in the same buffer (see
    /// [`FrameWriter::suspend`]), so that an owner can keep the buffer between calls.
    ///
    /// # Errors
    /// As for [`FrameWriter::new`].
    pub fn resume(buffer: &'b mut [u8], state: Suspended) -> Result<Self, EncodeError> {
        let mut writer = Self::new(buffer)?;
        if state.records > 0 {
            writer.end = state.end.min(writer.buffer.len());
            writer.records = state.records;
            writer.times_ns = state.times_ns;
        }
        Ok(writer)
    }

    /// Lets go of the buffer, to [`resume`](FrameWriter::resume) later.
    pub fn suspend(self) -> Suspended {
        Suspended { end: self.end, records: self.records, times_ns: self.times_ns }
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`EncodeError::Full`] if it does not fit behind the records that are there,
    /// [`EncodeError::TooLarge`] if it would not fit into an empty frame either. The frame
    /// is unchanged in both cases.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), EncodeError> {
        let limit = self.buffer.len() - CHECKSUM_BYTES;
        let room = self.buffer.get_mut(self.end..limit).ok_or(EncodeError::Full)?;
        match postcard::to_slice(record, room) {
            Ok(written) => {
                self.end += written.len();
                self.records += 1;
                if let Some(t) = record.time_ns() {
                    let (first, last) = self.times_ns.unwrap_or((t, t));
                    self.times_ns = Some((first.min(t), last.max(t)));
                }
                Ok(())
            }
            Err(_) if self.records > 0 => Err(EncodeError::Full),
            Err(_) => Err(EncodeError::TooLarge),
        }
    }

    /// Records so far.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Bytes of records so far.
    pub fn body_bytes(&self) -> usize {
        self.end - (PREFIX_BYTES + HEADER_BYTES_MAX)
    }

    /// Writes header and checksum and returns the frame. `first_ns`, `last_ns` and
    /// `records` of `header` are taken from the records pushed, whatever they say.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`] if the header's texts are too long.
    pub fn finish(self, header: &Header<'_>) -> Result<&'b [u8], EncodeError> {
        let (first_ns, last_ns) = self.times_ns.unwrap_or((header.first_ns, header.first_ns));
        let fixed = Fixed {
            key: header.key,
            generation: header.generation,
            first_ns,
            span_ns: last_ns - first_ns,
            records: self.records,
        };
        // The header is encoded into the space kept for it and then moved up to the records,
        // because its length is only known afterwards. It is a few dozen bytes, as a rule.
        let body_start = PREFIX_BYTES + HEADER_BYTES_MAX;
        let space = self.buffer.get_mut(PREFIX_BYTES..body_start).ok_or(EncodeError::TooLarge)?;
        let mut cursor = Cursor { bytes: space, at: 0 };
        cursor.value(&fixed)?;
        if let Some(start) = &header.start {
            cursor.extension(EXTENSION_START, start)?;
        }
        if let Some(clock) = &header.clock {
            cursor.extension(EXTENSION_CLOCK, clock)?;
        }
        if !header.ledger.is_empty() {
            cursor.extension(EXTENSION_LEDGER, &header.ledger)?;
        }
        if let Some(interruption) = &header.interruption {
            cursor.extension(EXTENSION_INTERRUPTION, interruption)?;
        }
        if let Some(capabilities) = &header.capabilities {
            cursor.extension(EXTENSION_CAPABILITIES, capabilities)?;
        }
        if let Some(farewell) = &header.farewell {
            cursor.extension(EXTENSION_FAREWELL, farewell)?;
        }
        if let Some(former) = &header.former {
            cursor.extension(EXTENSION_FORMER, former)?;
        }
        if !header.tombstones.is_empty() {
            cursor.extension(EXTENSION_TOMBSTONES, &header.tombstones)?;
        }
        if let Some(seal) = &header.seal {
            cursor.extension(EXTENSION_SEAL, seal)?;
        }
        if !header.steps.is_empty() {
            cursor.extension(EXTENSION_STEPS, &header.steps)?;
        }
        if let Some(signature) = &header.signature {
            cursor.extension(EXTENSION_SIGNATURE, signature)?;
        }
        cursor.value(&EXTENSION_END)?;
        let header_bytes = cursor.at;
        let start = body_start - header_bytes - PREFIX_BYTES;
        self.buffer
            .copy_within(PREFIX_BYTES..PREFIX_BYTES + header_bytes, body_start - header_bytes);
        let length = self.end - start + CHECKSUM_BYTES;
        let frame = self.buffer.get_mut(start..start + length).ok_or(EncodeError::TooLarge)?;
        let (content, checksum) = frame.split_at_mut(length - CHECKSUM_BYTES);
        let (prefix, _) = content.split_at_mut(PREFIX_BYTES);
        let (magic, rest) = prefix.split_at_mut(3);
        magic.copy_from_slice(&MAGIC);
        let (version, length_field) = rest.split_at_mut(1);
        version.copy_from_slice(&[VERSION]);
        length_field.copy_from_slice(&(length as u32).to_le_bytes());
        checksum.copy_from_slice(&crc32fast::hash(content).to_le_bytes());
        Ok(frame)
    }
}

/// Where a writer stopped; see [`FrameWriter::suspend`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Suspended {
    end: usize,
    records: u32,
    times_ns: Option<(u64, u64)>,
}

impl Suspended {
    /// Records so far.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Bytes of records so far.
    pub fn body_bytes(&self) -> usize {
        self.end.saturating_sub(PREFIX_BYTES + HEADER_BYTES_MAX)
    }
}

struct Cursor<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn value<T: Serialize>(&mut self, value: &T) -> Result<(), EncodeError> {
        let room = self.bytes.get_mut(self.at..).ok_or(EncodeError::TooLarge)?;
        self.at += postcard::to_slice(value, room).map_err(|_| EncodeError::TooLarge)?.len();
        Ok(())
    }

    /// Tag, length, value. The length goes in front, so the value is written once to measure
    /// it and once for good.
    fn extension<T: Serialize>(&mut self, tag: u8, value: &T) -> Result<(), EncodeError> {
        let room = self.bytes.get_mut(self.at..).ok_or(EncodeError::TooLarge)?;
        let length = postcard::to_slice(value, room).map_err(|_| EncodeError::TooLarge)?.len();
        self.value(&tag)?;
        self.value(&(length as u32))?;
        self.value(value)
    }
}

/// A decoded frame, borrowing from its bytes.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header<'a>,
    /// The frame's bytes as they were given, prefix and checksum included: what a spool or a
    /// store keeps.
    pub bytes: &'a [u8],
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Decodes the frame at the start of `bytes` and returns it with what follows.
    ///
    /// # Errors
    /// See [`DecodeError`]. `bytes` may be hostile.
    pub fn decode(bytes: &'a [u8]) -> Result<(Frame<'a>, &'a [u8]), DecodeError> {
        let length = Self::length(bytes)?;
        if bytes.len() < length {
            return Err(DecodeError::Truncated);
        }
        let (frame, rest) = bytes.split_at(length);
        let (content, checksum) = frame.split_at(length - CHECKSUM_BYTES);
        if crc32fast::hash(content).to_le_bytes() != checksum {
            return Err(DecodeError::Checksum);
        }
        let inside = content.get(PREFIX_BYTES..).ok_or(DecodeError::Malformed("length"))?;
        let (header, body) = decode_header(inside)?;
        Ok((Frame { header, bytes: frame, body }, rest))
    }

    /// The length in bytes of the frame that `bytes` begins with, by its prefix alone: enough
    /// to cut a stream into frames.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if `bytes` does not hold a whole prefix; the others if it is
    /// none.
    pub fn length(bytes: &[u8]) -> Result<usize, DecodeError> {
        let prefix: &[u8; PREFIX_BYTES] = match bytes.first_chunk() {
            Some(prefix) => prefix,
            None if MAGIC.starts_with(bytes.get(..3).unwrap_or(bytes)) => {
                return Err(DecodeError::Truncated);
            }
            None => return Err(DecodeError::Malformed("magic")),
        };
        let [m0, m1, m2, version, l0, l1, l2, l3] = *prefix;
        if [m0, m1, m2] != MAGIC {
            return Err(DecodeError::Malformed("magic"));
        }
        if version != VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLarge(length));
        }
        if (length as usize) < PREFIX_BYTES + CHECKSUM_BYTES {
            return Err(DecodeError::Malformed("length"));
        }
        Ok(length as usize)
    }

    /// The records, in order. After the first error the iterator ends.
    pub fn records(&self) -> Records<'a> {
        Records { body: self.body, left: self.header.records }
    }
}

/// The records of a frame.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    body: &'a [u8],
    left: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.body.is_empty() {
                return None;
            }
            self.body = &[];
            return Some(Err(DecodeError::Malformed("bytes after the last record")));
        }
        match postcard::take_from_bytes::<Record<'a>>(self.body) {
            Ok((record, rest)) => {
                self.body = rest;
                self.left -= 1;
                Some(Ok(record))
            }
            Err(_) => {
                self.body = &[];
                self.left = 0;
                Some(Err(DecodeError::Malformed("record")))
            }
        }
    }
}

fn decode_header(bytes: &[u8]) -> Result<(Header<'_>, &[u8]), DecodeError> {
    const BAD: DecodeError = DecodeError::Malformed("header");
    let (fixed, mut rest) = postcard::take_from_bytes::<Fixed>(bytes).map_err(|_| BAD)?;
    let mut header = Header {
        key: fixed.key,
        generation: fixed.generation,
        first_ns: fixed.first_ns,
        last_ns: fixed.first_ns.checked_add(fixed.span_ns).ok_or(BAD)?,
        records: fixed.records,
        ..Header::default()
    };
    loop {
        let (tag, after) = rest.split_first().ok_or(BAD)?;
        rest = after;
        if *tag == EXTENSION_END {
            return Ok((header, rest));
        }
        let (length, after) = postcard::take_from_bytes::<u32>(rest).map_err(|_| BAD)?;
        let value = after.get(..length as usize).ok_or(BAD)?;
        rest = after.get(length as usize..).ok_or(BAD)?;
        match *tag {
            EXTENSION_START => {
                let start: GenerationStart<'_> = whole(value, "generation start")?;
                if start.run_id.first_chunk() != Some(&header.key.run_tag) {
                    return Err(DecodeError::Malformed("run id and stream key differ"));
                }
                header.start = Some(start);
            }
            EXTENSION_CLOCK => header.clock = Some(whole::<Clock>(value, "clock")?),
            EXTENSION_LEDGER => {
                header.ledger = whole::<Vec<Counter, LEDGER_COUNTERS_MAX>>(value, "ledger")?;
            }
            EXTENSION_INTERRUPTION => {
                header.interruption = Some(whole::<Interruption>(value, "interruption")?);
            }
            EXTENSION_CAPABILITIES => {
                header.capabilities = Some(whole::<Capabilities>(value, "capabilities")?);
            }
            EXTENSION_FAREWELL => header.farewell = Some(whole::<Farewell>(value, "farewell")?),
            EXTENSION_FORMER => header.former = Some(whole::<FormerRun>(value, "former run")?),
            EXTENSION_TOMBSTONES => {
                header.tombstones = whole::<Vec<Tombstone, TOMBSTONES_MAX>>(value, "tombstones")?;
            }
            EXTENSION_STEPS => {
                header.steps = whole::<Vec<StepChange, STEPS_MAX>>(value, "steps of the ladder")?;
            }
            EXTENSION_SEAL => header.seal = Some(whole::<Seal>(value, "seal")?),
            EXTENSION_SIGNATURE => {
                // One that is made in a way that is not known says nothing here.
                header.signature = whole::<Signature>(value, "signature").ok();
            }
            // A later agent may say more: that is no reason to refuse what is understood.
            _ => {}
        }
    }
}

/// Decodes all of `bytes`; what follows the known fields belongs to a later version of the
/// same extension and is passed over.
fn whole<'a, T: Deserialize<'a>>(bytes: &'a [u8], part: &'static str) -> Result<T, DecodeError> {
    postcard::take_from_bytes(bytes)
        .map(|(value, _)| value)
        .map_err(|_| DecodeError::Malformed(part))
}
