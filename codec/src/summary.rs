//! The record that stands for many others, on a step of the ladder. SysFlow does not have it.

use serde::{Deserialize, Serialize};

use crate::record::{EndReason, Oid, Volume};

/// What a [`Summary`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Subject {
    /// Flows on files, and events of files.
    Files,
    /// Flows of the network.
    Network,
    /// Processes that came, began programs and went.
    Processes,
}

impl Subject {
    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Files => "files",
            Subject::Network => "network",
            Subject::Processes => "processes",
        }
    }
}

/// What many records would have told, over an interval, on a step of the ladder: see
/// [`Step`](crate::Step).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Who; of a session the process of it that was the first here.
    pub process: Oid,
    /// First operation, boot clock, ns.
    pub time_ns: u64,
    /// End of this record's interval, boot clock, ns.
    pub end_ns: u64,
    /// What it is about.
    pub subject: Subject,
    /// Whether it is about all processes of a session, not one.
    pub session: bool,
    /// Bits of [`op`](crate::op).
    pub ops: u64,
    /// Records that are not told: flows and events.
    pub records: u64,
    /// About how many different objects they had: files by path, peers by address and port,
    /// programs by path. The standard error is 9 %.
    pub objects: u64,
    /// About how many different processes they were of.
    pub processes: u64,
    /// What was read and written.
    pub volume: Volume,
    /// Why the record ends here.
    pub end: EndReason,
}
