//! The faults, each with what it is drawn from.

use std::fmt;

use fastrand::Rng;

/// Ten years, s.
const DECADE_S: i64 = 10 * 365 * 86_400;
/// What a full disk may have left, bytes: some room makes for writes that are cut short.
const LEFT_BYTES_MAX: u64 = 64 << 10;

/// All that a disk refuses that has become read-only.
const CHANGES: &str = "pwrite64,fdatasync,ftruncate,unlink,unlinkat,rename,renameat,renameat2";
/// Calls of the agent that may fail.
const AGENT_CALLS: [&str; 8] = [
    "pwrite64",
    "fdatasync",
    "pread64",
    "ftruncate",
    "pwrite64,fdatasync",
    "openat",
    "rename,renameat,renameat2",
    "unlink,unlinkat",
];
/// Calls of the collector that may fail.
const COLLECTOR_CALLS: [&str; 6] = [
    "write",
    "fsync",
    "linkat,link",
    "rename,renameat,renameat2",
    "unlink,unlinkat",
    "mkdir,mkdirat",
];

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The agent is killed, and comes back after some acts.
    KillAgent,
    /// The agent ends in order and comes back.
    RestartAgent,
    /// The collector is killed, and comes back.
    KillCollector,
    /// Connections are cut after so many bytes towards the collector.
    CutBodies(u64),
    /// Connections are cut after so many bytes of answers: the agent sends again.
    CutAnswers(u64),
    /// They stand still before that, ms.
    HoldAnswers(u64, u64),
    /// After so many bytes of answers everything comes twice.
    RepeatAnswers(u64),
    /// Each piece of data is held back, ms.
    Delay(u64),
    /// It is held back for so long that the collector loses patience, ms.
    Stall(u64),
    /// So many bytes are left for the spool and what is beside it.
    SpoolFull(u64),
    /// So many bytes are left for the store.
    StoreFull(u64),
    /// Calls of the agent end otherwise.
    AgentCalls(String),
    /// The same, where it changes anything: its disk is read-only.
    ReadOnly,
    /// Calls of the collector end otherwise.
    CollectorCalls(String),
    /// The disk of the spool is not there: what is in its place is empty, and read-only.
    Vanish,
    /// The agent is down with frames in its spool, and so many bits of them turn.
    Rot(usize),
    /// The wall clock of the agent is off by so many seconds.
    AgentClock(i64),
    /// The wall clock of the collector is.
    CollectorClock(i64),
    /// The agent's certificate is over, and then renewed.
    Expire,
    /// The agent gets another certificate.
    Rotate,
}

impl Fault {
    /// How many kinds there are.
    pub(crate) const KINDS: u64 = 20;

    /// One of the kind with this number, modulo their number.
    pub(crate) fn draw(kind: u64, random: &mut Rng) -> Fault {
        let left = |random: &mut Rng| [0, random.u64(..LEFT_BYTES_MAX)][random.usize(..2)];
        let decade = |random: &mut Rng| [DECADE_S, -DECADE_S][random.usize(..2)];
        match kind % Fault::KINDS {
            0 => Fault::KillAgent,
            1 => Fault::RestartAgent,
            2 => Fault::KillCollector,
            3 => Fault::CutBodies(random.u64(500..12_000)),
            4 => Fault::CutAnswers(random.u64(100..4000)),
            5 => Fault::HoldAnswers(random.u64(100..4000), random.u64(500..3000)),
            6 => Fault::RepeatAnswers(random.u64(..4000)),
            7 => Fault::Delay(random.u64(10..80)),
            8 => Fault::Stall(random.u64(1000..3000)),
            9 => Fault::SpoolFull(left(random)),
            10 => Fault::StoreFull(left(random)),
            11 => Fault::AgentCalls(agent_calls(random)),
            12 => Fault::ReadOnly,
            13 => {
                let call = COLLECTOR_CALLS[random.usize(..COLLECTOR_CALLS.len())];
                let result = if call == "write" { "retval=1" } else { "error=EIO" };
                Fault::CollectorCalls(format!("{call}:{result}:{}", when(random)))
            }
            14 => Fault::Vanish,
            15 => Fault::Rot(random.usize(1..6)),
            16 => Fault::AgentClock(decade(random)),
            17 => Fault::CollectorClock(decade(random)),
            18 => Fault::Expire,
            _ => Fault::Rotate,
        }
    }

    /// The name of its kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Fault::KillAgent => "KillAgent",
            Fault::RestartAgent => "RestartAgent",
            Fault::KillCollector => "KillCollector",
            Fault::CutBodies(_) => "CutBodies",
            Fault::CutAnswers(_) => "CutAnswers",
            Fault::HoldAnswers(..) => "HoldAnswers",
            Fault::RepeatAnswers(_) => "RepeatAnswers",
            Fault::Delay(_) => "Delay",
            Fault::Stall(_) => "Stall",
            Fault::SpoolFull(_) => "SpoolFull",
            Fault::StoreFull(_) => "StoreFull",
            Fault::AgentCalls(_) => "AgentCalls",
            Fault::ReadOnly => "ReadOnly",
            Fault::CollectorCalls(_) => "CollectorCalls",
            Fault::Vanish => "Vanish",
            Fault::Rot(_) => "Rot",
            Fault::AgentClock(_) => "AgentClock",
            Fault::CollectorClock(_) => "CollectorClock",
            Fault::Expire => "Expire",
            Fault::Rotate => "Rotate",
        }
    }

    /// What strace is told of it, and whether that is about the agent.
    pub(crate) fn injection(&self) -> Option<(bool, String)> {
        match self {
            Fault::AgentCalls(injection) => Some((true, injection.clone())),
            Fault::ReadOnly => Some((true, format!("{CHANGES}:error=EROFS"))),
            Fault::CollectorCalls(injection) => Some((false, injection.clone())),
            _ => None,
        }
    }
}

fn agent_calls(random: &mut Rng) -> String {
    let call = AGENT_CALLS[random.usize(..AGENT_CALLS.len())];
    // A device that says that it wrote, and wrote nothing, writes short the worst way.
    let result = ["error=EIO", "error=EIO", "error=ENOSPC", "error=EINTR", "retval=1"];
    let result = result[random.usize(..result.len())];
    let is_write = call == "pwrite64";
    let result = if result == "retval=1" && !is_write { "error=EIO" } else { result };
    format!("{call}:{result}:{}", when(random))
}

/// Which of the calls.
fn when(random: &mut Rng) -> String {
    format!("when={}+{}", random.u32(1..5), random.u32(1..4))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
