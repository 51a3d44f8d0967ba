//! The stream of one class: its frame in the making, its sequence, its generation. Bound: one
//! frame.

use codec::{Class, Clock, EncodeError, FrameWriter, Header, Record, Seal, Signature, Suspended};
use ring::digest::{Context, SHA256};

/// Room for prefix, header and checksum beside the records.
const HEADER_ROOM_BYTES: usize = 11 * 1024;
/// Urgent frames are finished before they get large, and memory is dear.
const URGENT_FRAME_BYTES_MAX: usize = 32 * 1024;

/// What became of a record that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It is in, and there is room for more.
    In,
    /// It is in; the frame has its size.
    Full,
    /// The frame has no room for it.
    NoRoom,
    /// No frame has.
    TooLarge,
}

pub(super) struct Lane {
    pub(super) class: Class,
    buffer: Vec<u8>,
    bytes_max: usize,
    state: Suspended,
    /// Of the next frame.
    pub(super) sequence: u64,
    pub(super) generation: u32,
    pub(super) generation_records: u32,
    /// Whether its first frame has been made.
    pub(super) generation_started: bool,
    /// Whether the next generation begins at the next chance.
    pub(super) restart: bool,
    pub(super) clock_told: Option<Clock>,
    /// Time of the newest record, boot clock, ns.
    pub(super) last_ns: u64,
    /// Start of the oldest thing in the unfinished frame, boot clock, ns.
    pub(super) pending_since_ns: Option<u64>,
    /// Over the frames of the generation so far.
    digest: Context,
    /// Of the last generation that is over.
    pub(super) seal: Option<Seal>,
    /// Of that seal.
    pub(super) signature: Option<Signature>,
}

fn bytes_max(class: Class, frame_bytes_max: usize) -> usize {
    match class {
        Class::Urgent => frame_bytes_max.min(URGENT_FRAME_BYTES_MAX),
        Class::Volume => frame_bytes_max,
    }
}

impl Lane {
    /// Bytes that the stream of a class takes.
    pub(super) fn memory_bytes(class: Class, frame_bytes_max: usize) -> usize {
        bytes_max(class, frame_bytes_max) + HEADER_ROOM_BYTES
    }

    pub(super) fn new(class: Class, frame_bytes_max: usize) -> Lane {
        let bytes_max = bytes_max(class, frame_bytes_max);
        Lane {
            class,
            buffer: vec![0; Lane::memory_bytes(class, frame_bytes_max)],
            bytes_max,
            state: Suspended::default(),
            sequence: 0,
            generation: 0,
            generation_records: 0,
            generation_started: false,
            restart: false,
            clock_told: None,
            last_ns: 0,
            pending_since_ns: None,
            digest: Context::new(&SHA256),
            seal: None,
            signature: None,
        }
    }

    /// Records in the unfinished frame.
    pub(super) fn pending(&self) -> u32 {
        self.state.records()
    }

    pub(super) fn push(&mut self, record: &Record<'_>) -> Pushed {
        let Ok(mut writer) = FrameWriter::resume(&mut self.buffer, self.state) else {
            return Pushed::TooLarge;
        };
        let result = writer.push(record);
        self.state = writer.suspend();
        match result {
            Ok(()) => {}
            Err(EncodeError::Full) => return Pushed::NoRoom,
            Err(EncodeError::TooLarge) => return Pushed::TooLarge,
        }
        self.generation_records += 1;
        self.last_ns = self.last_ns.max(record.time_ns().unwrap_or(0));
        if let Some(start_ns) = record.start_ns() {
            let since_ns = self.pending_since_ns.unwrap_or(start_ns);
            self.pending_since_ns = Some(since_ns.min(start_ns));
        }
        if self.state.body_bytes() >= self.bytes_max { Pushed::Full } else { Pushed::In }
    }

    /// Makes the frame of what was pushed, and begins the next.
    pub(super) fn finish(&mut self, header: &Header<'_>) -> Option<&[u8]> {
        let state = std::mem::take(&mut self.state);
        self.pending_since_ns = None;
        let writer = FrameWriter::resume(&mut self.buffer, state).ok()?;
        let frame = writer.finish(header).ok()?;
        self.digest.update(frame);
        self.sequence += 1;
        self.generation_started = true;
        Some(frame)
    }

    /// The next frame begins a new generation. `sign` signs the seal of the one that ends.
    pub(super) fn restart(&mut self, sign: impl FnOnce(&Seal) -> Option<Signature>) {
        self.restart = false;
        if self.generation_started {
            let digest = std::mem::replace(&mut self.digest, Context::new(&SHA256)).finish();
            let mut seal = Seal { generation: self.generation, digest: [0; 32] };
            seal.digest.copy_from_slice(digest.as_ref());
            self.signature = sign(&seal);
            self.seal = Some(seal);
        }
        self.generation += 1;
        self.generation_records = 0;
        self.generation_started = false;
        self.clock_told = None;
    }
}
