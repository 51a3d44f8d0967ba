//! What the agent says of itself: a JSON file, replaced whole, which `status` prints.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The status file's content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its id in the fleet.
    pub agent_id: String,
    /// Whether the probes are attached.
    pub ready: bool,
    /// Whether they run compiled.
    pub jit: bool,
    /// Hooks that this kernel refused, with its reason.
    pub missing: Vec<String>,
    /// Frames made.
    pub frames: u64,
    /// Frames waiting for acknowledgement.
    pub spooled: u64,
    /// Frames that the collector has acknowledged.
    pub acknowledged: u64,
    /// Uploads that failed in a row.
    pub upload_failures: u64,
    /// Why the last one failed.
    pub upload_error: String,
    /// Capabilities that this process still holds (as in /proc/self/status).
    pub privileges: String,
}

impl Status {
    /// Replaces the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let temporary = file.with_extension("new");
        fs::write(&temporary, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        fs::rename(&temporary, file)
    }

    /// Prints the file's content, and whether its agent still runs.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn print(file: &Path) -> io::Result<String> {
        let text = fs::read_to_string(file)?;
        let status: Status = serde_json::from_str(&text).map_err(io::Error::other)?;
        let runs = Path::new("/proc").join(status.pid.to_string()).exists();
        let stale = if runs { "" } else { "\nstale: this process has ended" };
        Ok(format!("{text}{stale}"))
    }
}

/// The effective capabilities of this thread, as the kernel writes them.
pub fn privileges() -> String {
    fs::read_to_string("/proc/thread-self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap_or_default()
        .trim()
        .into()
}
