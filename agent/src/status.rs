//! What the running agent says of itself: a small JSON file, and how `status` prints it.
//!
//! The file is replaced as a whole, so a reader never sees half of one. It is a view of
//! counters that others keep; nothing depends on it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::upload;

/// Largest status file that is read, bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
const PRIVILEGES_FILE: &str = "/proc/self/status";

/// The names of the capabilities that the agent may hold, by number.
const CAPABILITIES: [(u32, &str); 4] =
    [(2, "CAP_DAC_READ_SEARCH"), (19, "CAP_SYS_PTRACE"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// The state of a running agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When this was written, Unix time by the system's clock, s.
    pub written_unix_s: u64,
    /// When the agent started, Unix time by the system's clock, s.
    pub started_unix_s: u64,
    /// Whether the probes are attached and the agent watches.
    pub ready: bool,
    /// Whether the probes run compiled (not interpreted).
    pub jit: bool,
    /// The device's id.
    pub agent_id: String,
    /// Run id, hexadecimal.
    pub run_id: String,
    /// Boot id, hexadecimal.
    pub boot_id: String,
    /// Hooks that show what happens.
    pub hooks_attached: Vec<String>,
    /// Hooks that this kernel refused: what they show is not seen.
    pub hooks_missing: Vec<String>,
    /// The step of the ladder that holds: how much detail is given up.
    pub step: String,
    /// Totals of the ledger by term, in operations or, for losses of the spool, records.
    pub ledger: BTreeMap<String, u64>,
    /// The queue on disk.
    pub spool: Spool,
    /// Delivery.
    pub upload: upload::Snapshot,
    /// Capabilities that the process still has.
    pub privileges: Vec<String>,
}

/// What waits on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spool {
    /// Segment files.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bound of `bytes` as the file system is now: `spool.bytes_max`, or less where others fill
    /// it up.
    pub bytes_max: u64,
    /// Frames that wait for delivery.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes that wait.
    pub waiting_bytes: u64,
    /// Bytes of frames written since the start.
    pub written_bytes: u64,
    /// What may be written to flash a day, bytes; 0: unlimited.
    pub write_bytes_per_day: u64,
    /// What was written in the present day, state files included, bytes.
    pub day_written_bytes: u64,
    /// Until the next day begins, s.
    pub next_day_s: u64,
}

impl Spool {
    /// From the spool's own words.
    pub fn new(depth: crate::spool::Depth, bytes_max: u64) -> Self {
        let crate::spool::Depth { segments, bytes, frames, records, waiting_bytes } = depth;
        Spool { segments, bytes, bytes_max, frames, records, waiting_bytes, ..Spool::default() }
    }
}

/// Why there is no status to print.
#[derive(Debug)]
pub enum StatusError {
    /// The file cannot be read: mostly because no agent has written it.
    Read(PathBuf, io::Error),
    /// The file holds something else.
    Contents(PathBuf, serde_json::Error),
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StatusError::Read(file, error) => {
                write!(f, "{}: {error}: does the agent run?", file.display())
            }
            StatusError::Contents(file, error) => {
                write!(f, "{}: is not a status of this version: {error}", file.display())
            }
        }
    }
}

impl std::error::Error for StatusError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StatusError::Read(_, error) => Some(error),
            StatusError::Contents(_, error) => Some(error),
        }
    }
}

impl Status {
    /// Replaces the file.
    ///
    /// # Errors
    /// If it or its neighbour `FILE.new` cannot be written.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let mut name = file.as_os_str().to_owned();
        name.push(".new");
        fs::write(&name, &text)?;
        fs::rename(&name, file)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// See [`StatusError`].
    pub fn read(file: &Path) -> Result<Status, StatusError> {
        let unreadable = |error| StatusError::Read(file.into(), error);
        let size = fs::metadata(file).map_err(unreadable)?.len();
        if size > FILE_BYTES_MAX {
            return Err(unreadable(io::Error::other(format!("{size} bytes are too many"))));
        }
        let text = fs::read(file).map_err(unreadable)?;
        serde_json::from_slice(&text).map_err(|error| StatusError::Contents(file.into(), error))
    }

    /// Whether the process that wrote this is still there.
    pub fn is_alive(&self) -> bool {
        // The name that the kernel keeps is the first 15 bytes of the program's.
        fs::read_to_string(format!("/proc/{}/comm", self.pid))
            .is_ok_and(|name| name.trim_end() == "sysflow-agent")
    }

    /// For a reader at `now` (Unix time, s), who has looked whether the process is `alive`.
    pub fn describe(&self, now: u64, alive: bool) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            text.push_str(&format!("{name:<18}{value}\n"));
        };
        let age = ago(now, self.written_unix_s);
        if !alive {
            line("STALE", format!("process {} is gone; written {age}", self.pid));
        }
        line(
            "agent",
            format!("{} (version {}, process {})", self.agent_id, self.version, self.pid),
        );
        line("run", format!("{}, started {}", self.run_id, ago(now, self.started_unix_s)));
        line("boot", self.boot_id.clone());
        line("written", age);
        line("hooks", list(&self.hooks_attached));
        if !self.hooks_missing.is_empty() {
            line("hooks missing", list(&self.hooks_missing));
        }
        line("privileges", list(&self.privileges));
        line("ladder", self.step.clone());
        for (term, total) in &self.ledger {
            line(term, total.to_string());
        }
        let Spool { segments, bytes, bytes_max, frames, records, written_bytes, .. } = &self.spool;
        line(
            "spool",
            format!(
                "{frames} frames ({records} records) wait, \
                 {bytes} of {bytes_max} bytes in {segments} segments; {written_bytes} written"
            ),
        );
        if self.spool.write_bytes_per_day > 0 {
            let Spool { write_bytes_per_day, day_written_bytes, next_day_s, .. } = self.spool;
            let left = write_bytes_per_day.saturating_sub(day_written_bytes);
            line(
                "flash",
                format!(
                    "{day_written_bytes} of {write_bytes_per_day} bytes written today, {left} \
                     left, next day in {} min",
                    next_day_s / 60
                ),
            );
        }
        let upload = &self.upload;
        line(
            "upload",
            format!(
                "{} frames ({} records, {} bytes) in {} requests",
                upload.frames, upload.records, upload.bytes, upload.uploads
            ),
        );
        if upload.bytes_per_day > 0 {
            let left = upload.bytes_per_day.saturating_sub(upload.day_spent_bytes);
            line(
                "budget",
                format!(
                    "{} of {} bytes spent, {left} left, next day in {} min",
                    upload.day_spent_bytes,
                    upload.bytes_per_day,
                    upload.next_day_s / 60
                ),
            );
        }
        line(
            "last upload",
            match upload.last_success_unix_s {
                0 => "never".into(),
                then => ago(now, then),
            },
        );
        for (reason, records) in &upload.refused_records {
            line("refused", format!("{records} records: {reason}"));
        }
        if upload.damaged_records > 0 {
            line("damaged", format!("{} records", upload.damaged_records));
        }
        if !upload.last_error.is_empty() {
            line("failing", format!("{} times: {}", upload.failures, upload.last_error));
        }
        line("certificate", format!("{} days left", upload.certificate_days_left));
        text
    }
}

/// The capabilities that this process holds, by name.
///
/// # Errors
/// If the kernel does not tell.
pub fn privileges() -> io::Result<Vec<String>> {
    let text = fs::read_to_string(PRIVILEGES_FILE)?;
    let bits = text
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .ok_or_else(|| io::Error::other(format!("{PRIVILEGES_FILE} has no CapEff")))?;
    Ok(names(bits))
}

fn names(bits: u64) -> Vec<String> {
    let named = |number| CAPABILITIES.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
    (0..u64::BITS)
        .filter(|number| bits >> number & 1 == 1)
        .map(|number| named(number).map_or_else(|| format!("CAP_{number}"), String::from))
        .collect()
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

fn ago(now: u64, then: u64) -> String {
    let Some(seconds) = now.checked_sub(then) else { return "in the future: clock moved".into() };
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            version: "0.1.0".into(),
            pid: u32::MAX,
            written_unix_s: 1000,
            started_unix_s: 400,
            agent_id: "gw-0001".into(),
            hooks_attached: vec!["sys_exit".into()],
            ledger: BTreeMap::from([("observed".into(), 7)]),
            spool: Spool {
                write_bytes_per_day: 2000,
                day_written_bytes: 500,
                next_day_s: 120,
                ..Default::default()
            },
            upload: upload::Snapshot {
                refused_records: BTreeMap::from([("malformed".into(), 3)]),
                bytes_per_day: 1000,
                day_spent_bytes: 400,
                next_day_s: 3600,
                failures: 2,
                last_error: "connection refused".into(),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_status_comes_back_from_its_file_and_its_writer_is_missed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("status.json");
        assert!(matches!(Status::read(&file), Err(StatusError::Read(..))));
        status().write(&file).unwrap();
        status().write(&file).unwrap();
        let read = Status::read(&file).unwrap();
        assert_eq!(read, status());
        assert!(!read.is_alive());
        fs::write(&file, "{}").unwrap();
        assert!(matches!(Status::read(&file), Err(StatusError::Contents(..))));
    }

    #[test]
    fn a_stale_status_says_so_first() {
        let text = status().describe(1030, false);
        let tells = |name: &str, value: &str| text.contains(&format!("{name:<18}{value}\n"));
        assert!(text.starts_with("STALE"), "{text}");
        assert!(tells("STALE", "process 4294967295 is gone; written 30 s ago"), "{text}");
        assert!(tells("run", ", started 10 min ago"), "{text}");
        assert!(tells("observed", "7"), "{text}");
        let budget = "400 of 1000 bytes spent, 600 left, next day in 60 min";
        assert!(tells("budget", budget), "{text}");
        let flash = "500 of 2000 bytes written today, 1500 left, next day in 2 min";
        assert!(tells("flash", flash), "{text}");
        assert!(tells("last upload", "never"), "{text}");
        assert!(tells("refused", "3 records: malformed"), "{text}");
        assert!(tells("failing", "2 times: connection refused"), "{text}");
        assert!(!status().describe(1030, true).contains("STALE"));
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(
            names(1 << 39 | 1 << 38 | 1 << 2),
            ["CAP_DAC_READ_SEARCH", "CAP_PERFMON", "CAP_BPF"]
        );
        assert_eq!(names(1), ["CAP_0"]);
        assert!(privileges().is_ok());
    }
}
