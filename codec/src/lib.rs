//! The network wire of SysFlow Edge: what an agent says and a collector understands.
//!
//! It owns the records (SysFlow's entities, events and flows) and the frame that carries
//! them. Records go in by reference and come out borrowing from the frame's bytes, so
//! neither side allocates; a frame is bounded by [`FRAME_BYTES_MAX`]. It knows nothing of
//! files, sockets, clocks or the kernel. `codec/README.md` specifies the bytes.

#![no_std]
#![deny(clippy::indexing_slicing)]

mod class;
mod frame;
mod record;
mod seal;
mod stream;
mod summary;

pub use class::{CLASSES, Class};
pub use frame::{
    DecodeError, EncodeError, FRAME_BYTES_MAX, Frame, FrameWriter, Records, Suspended,
};
pub use record::{
    Address, Container, EndReason, File, FileEvent, FileFlow, FileId, K8sEvent, NetworkEvent,
    NetworkFlow, ObjectState, Oid, Pod, Process, ProcessEvent, ProcessFlow, Record, Volume, file,
    network, op, open_flag, process,
};
pub use seal::{SIGNATURE_BYTES_MAX, Seal, SealMessage, Signature, SignatureScheme};
pub use stream::{
    Capabilities, Clock, Counter, DropReason, Farewell, FormerRun, GenerationStart, Header,
    Interruption, LEDGER_COUNTERS_MAX, Ledger, Operation, STEPS_MAX, Step, StepChange, Steps,
    Strain, StreamKey, TOMBSTONES_MAX, Term, Tombstone, Tombstones, hook,
};
pub use summary::{Subject, Summary};
