//! The kernel side of SysFlow Edge, and a safe way to use it.
//!
//! It owns the probes (C, compiled by the build script into one CO-RE object), their maps and
//! the decoding of what they say. Out come [`Event`]s, flow counters and tallies; nothing goes
//! in but bounds. Every map is sized before loading. It knows nothing of SysFlow,
//! networks, configuration, or files but the one with the kernel's types, and is the only crate
//! with `unsafe`.

mod calls;
mod error;
mod event;
mod kernel;
mod map;
mod open;
mod own;
mod probes;
mod types;

pub use error::Error;
pub use event::{EVENT_COMPAT, Event, Named, Started, Walked, flow, path};
pub use kernel::{
    Attribute, Clone_, ClosedRange, Exec, ExecFailed, Exit, FlowEnd, FlowKey, FlowStart, Fork,
    Header, IoUring, Operation, PathEvent, Privilege, Setuid, Socket, SocketState, Tally, Task,
    Volume,
};
pub use probes::{Bounds, Entry, Hook, Probes, Ring, processors};
pub use types::Types;
