//! The configuration: one TOML file, every bound in it, defaults compiled in.
//!
//! A text goes in, a [`Config`] whose values are all in range comes out, or all that is wrong
//! with the text at once. Unknown keys are refused, since a misspelt bound would otherwise
//! be no bound. It reads one file and looks at nothing else: whether the files that it names
//! exist is the business of `check`. `agent.toml` beside the sources shows every key; a test
//! holds it against the defaults and against [`Bound`].

mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use codec::Step;

/// Largest configuration file, bytes: more is a mistake.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// All settings of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[agent]`
    pub agent: Agent,
    /// `[collector]`
    pub collector: Collector,
    /// `[spool]`
    pub spool: Spool,
    /// `[flows]`
    pub flows: Flows,
    /// `[frames]`
    pub frames: Frames,
    /// `[kernel]`
    pub kernel: Kernel,
    /// `[memory]`
    pub memory: Memory,
    /// `[ladder]`
    pub ladder: Ladder,
    /// `[privacy]`
    pub privacy: Privacy,
    /// `[status]`
    pub status: Status,
}

/// Who this device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The id that the certificate must carry; absent: whatever id it carries.
    pub id: Option<String>,
}

/// Where frames go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// `https://host[:port]`, without a path. It has no default: [`Config::default`] leaves
    /// it empty, and a file must give it.
    pub url: String,
    /// The fleet's CA, PEM.
    pub ca: PathBuf,
    /// The device's certificate and what is between it and the CA, PEM.
    pub certificate: PathBuf,
    /// The certificate's key, PEM.
    pub key: PathBuf,
    /// HTTP proxy on the way there, `http://host:port`; TLS goes through it to the collector.
    pub proxy: Option<String>,
    /// Time between two uploads, s.
    pub upload_interval_s: u32,
    /// Largest body of one request, bytes.
    pub upload_bytes_max: usize,
    /// What the link may carry a day, bytes; 0: unlimited.
    pub bytes_per_day: u64,
}

/// The bounded queue on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Folder of its own. Its parent takes the small state files.
    pub directory: PathBuf,
    /// Largest size of all segments together, bytes.
    pub bytes_max: u64,
    /// Share of its file system that is kept free, percent: where others fill that up, the quota
    /// shrinks.
    pub free_percent: u8,
    /// When frames are written and made durable.
    pub sync: SpoolSync,
    /// How long frames may be not durable, s, unless `sync` is `"frame"`.
    pub sync_interval_s: u32,
    /// Most frames that are held in memory, bytes, if `sync` is `"memory-first"` or the bytes of
    /// a day are spent.
    pub memory_bytes: u64,
    /// What may be written to flash a day, bytes; 0: unlimited.
    pub write_bytes_per_day: u64,
}

/// When frames are written and made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolSync {
    /// `"frame"`: each at once.
    Frame,
    /// `"interval"`: written at once, made durable each interval.
    Interval,
    /// `"memory-first"`: written each interval, unless they are delivered by then.
    MemoryFirst,
}

impl SpoolSync {
    /// All of them, by name.
    pub const ALL: [(&'static str, SpoolSync); 3] = [
        ("frame", SpoolSync::Frame),
        ("interval", SpoolSync::Interval),
        ("memory-first", SpoolSync::MemoryFirst),
    ];
}

/// When a flow is exported (RFC 7011's timeouts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows {
    /// A flow without traffic for so long ends, s.
    pub idle_timeout_s: u32,
    /// A flow that goes on is exported so often, s.
    pub active_timeout_s: u32,
}

/// When a frame is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// At this size, bytes.
    pub bytes_max: usize,
    /// Or this long after its first record, s: an urgent one, ...
    pub age_max_s: u32,
    /// ... and one of volumes.
    pub volume_age_max_s: u32,
    /// A generation ends after so many records.
    pub generation_records_max: u32,
}

/// What the kernel side may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Ring between kernel and agent, bytes; a power of two. Absent: by the budget.
    pub ring_bytes: Option<u32>,
    /// Flows that the kernel side counts at a time. Absent: by the budget.
    pub flow_entries: Option<u32>,
    /// File with the kernel's types; absent: a file of this kernel's release in
    /// `/usr/lib/sysflow/btf`, else the running kernel's own.
    pub btf: Option<PathBuf>,
}

/// What the agent may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that is sized at the start, in the kernel and outside, bytes; code and TLS come on top.
    pub budget_bytes: usize,
    /// Processes known at a time. Absent: by the budget.
    pub processes_max: Option<u32>,
    /// Pool for paths and arguments, bytes. Absent: by the budget.
    pub text_bytes: Option<usize>,
}

/// When detail is given up under strain, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// The last step that may be taken.
    pub last_step: Step,
    /// Share of the ring in use, percent, ...
    pub ring_percent: u32,
    /// ... of one processor that the agent uses, percent, ...
    pub processor_percent: u32,
    /// ... and of the spool in use, percent, at which steps are taken.
    pub spool_percent: u32,
    /// A step is taken back after so long a calm, s.
    pub hold_s: u32,
}

/// What of a program's words is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privacy {
    /// Whether secrets among arguments are masked.
    pub redact: bool,
    /// Names of secrets beside the known ones.
    pub redact_names: Vec<String>,
    /// Names of the environment variables that are kept.
    pub environment: Vec<String>,
}

/// What the agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Status file, JSON.
    pub file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            agent: Agent { id: None },
            collector: Collector {
                url: String::new(),
                ca: "/etc/sysflow/ca.pem".into(),
                certificate: "/etc/sysflow/agent.pem".into(),
                key: "/etc/sysflow/agent.key".into(),
                proxy: None,
                upload_interval_s: 20,
                upload_bytes_max: 1024 * 1024,
                bytes_per_day: 0,
            },
            spool: Spool {
                directory: "/var/lib/sysflow/spool".into(),
                bytes_max: 16 << 20,
                free_percent: 5,
                sync: SpoolSync::Interval,
                sync_interval_s: 10,
                memory_bytes: 512 * 1024,
                write_bytes_per_day: 0,
            },
            flows: Flows { idle_timeout_s: 60, active_timeout_s: 30 },
            frames: Frames {
                bytes_max: 64 * 1024,
                age_max_s: 5,
                volume_age_max_s: 120,
                generation_records_max: 10_000,
            },
            kernel: Kernel { ring_bytes: None, flow_entries: None, btf: None },
            memory: Memory { budget_bytes: 8 << 20, processes_max: None, text_bytes: None },
            ladder: Ladder {
                last_step: Step::Processes,
                ring_percent: 50,
                processor_percent: 50,
                spool_percent: 50,
                hold_s: 30,
            },
            privacy: Privacy { redact: true, redact_names: Vec::new(), environment: Vec::new() },
            status: Status { file: "/run/sysflow/status.json".into() },
        }
    }
}

/// The range of one number in the file, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// `section.key`
    pub key: &'static str,
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
}

/// The range of every number in the file.
pub const BOUNDS: [Bound; 23] = [
    Bound { key: "collector.upload_interval_s", min: 1, max: 86_400 },
    // Up to what a collector takes by default.
    Bound { key: "collector.upload_bytes_max", min: 16_384, max: 4 << 20 },
    Bound { key: "collector.bytes_per_day", min: 0, max: 1 << 40 },
    // The spool is read through once at each start.
    Bound { key: "spool.bytes_max", min: 1 << 20, max: 4 << 30 },
    Bound { key: "spool.free_percent", min: 0, max: 90 },
    Bound { key: "spool.sync_interval_s", min: 1, max: 86_400 },
    Bound { key: "spool.memory_bytes", min: 64 << 10, max: 256 << 20 },
    Bound { key: "spool.write_bytes_per_day", min: 0, max: 1 << 40 },
    Bound { key: "flows.idle_timeout_s", min: 1, max: 86_400 },
    Bound { key: "flows.active_timeout_s", min: 1, max: 86_400 },
    // Room for a header with a whole ledger, and no more than a receiver takes.
    Bound { key: "frames.bytes_max", min: 16_384, max: codec::FRAME_BYTES_MAX as u64 },
    Bound { key: "frames.age_max_s", min: 1, max: 3600 },
    Bound { key: "frames.volume_age_max_s", min: 1, max: 86_400 },
    Bound { key: "frames.generation_records_max", min: 100, max: 1_000_000 },
    // A multiple of the page size, which is up to 64 KiB on arm64.
    Bound { key: "kernel.ring_bytes", min: 64 << 10, max: 64 << 20 },
    Bound { key: "kernel.flow_entries", min: 64, max: 1 << 20 },
    // `check` says how much of that is needed.
    Bound { key: "memory.budget_bytes", min: 1 << 20, max: 1 << 30 },
    Bound { key: "memory.processes_max", min: 64, max: 1 << 20 },
    Bound { key: "memory.text_bytes", min: 64 << 10, max: 256 << 20 },
    Bound { key: "ladder.ring_percent", min: 1, max: 100 },
    // Of one processor; 100 times as many as there are is never reached.
    Bound { key: "ladder.processor_percent", min: 1, max: 6400 },
    Bound { key: "ladder.spool_percent", min: 1, max: 99 },
    Bound { key: "ladder.hold_s", min: 1, max: 86_400 },
];

/// What is wrong with a configuration file. Displays one line for each problem, all of them.
#[derive(Debug)]
pub enum ConfigError {
    /// It cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its text is wrong.
    Invalid {
        /// The file.
        file: PathBuf,
        /// At least one problem, by line.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; absent where something is missing.
    pub line: Option<usize>,
    /// Key, value and what they must be.
    pub text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Read { file, source } => {
                write!(f, "{}: {source}: provide the file, or give --config FILE", file.display())
            }
            ConfigError::Invalid { file, problems } => {
                for (index, Problem { line, text }) in problems.iter().enumerate() {
                    let separator = if index > 0 { "\n" } else { "" };
                    write!(f, "{separator}{}: {text}", file.display())?;
                    if let Some(line) = line {
                        write!(f, " (line {line})")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Read { source, .. } => Some(source),
            ConfigError::Invalid { .. } => None,
        }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// If it cannot be read, or with everything that is wrong in it.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let unreadable = |source| ConfigError::Read { file: file.into(), source };
        let size = std::fs::metadata(file).map_err(unreadable)?.len();
        if size > FILE_BYTES_MAX {
            let text = format!("{size} bytes: must be at most {FILE_BYTES_MAX}");
            return Err(unreadable(io::Error::other(text)));
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        Config::parse(file, &text)
    }

    /// Reads the text of a configuration file; `file` is for messages.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        read::config(text).map_err(|problems| ConfigError::Invalid { file: file.into(), problems })
    }

    /// Folder of the state files: the parent of the spool.
    pub fn state_directory(&self) -> &Path {
        self.spool.directory.parent().unwrap_or(&self.spool.directory)
    }
}

/// Whether `id` can be the id of an agent: `[a-z0-9][a-z0-9._-]{0,62}`.
pub fn is_agent_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    id.len() <= 63
        && id.bytes().next().is_some_and(plain)
        && id.bytes().all(|b| plain(b) || b"._-".contains(&b))
}
