//! What is left of a run when it is killed: a small file beside the spool with the boot, the
//! run and the end of its last frame. The next run tells the interval in which things may have
//! been missed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use codec::Interruption;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Saved {
    boot_id: [u8; 16],
    run_id: [u8; 16],
    last_ns: u64,
    closed: bool,
}

/// The state file of this run.
#[derive(Debug)]
pub struct RunState {
    file: PathBuf,
    boot_id: [u8; 16],
    run_id: [u8; 16],
}

impl RunState {
    /// Begins a run at `now_ns` on the boot clock, and tells of one before it that did not end
    /// by itself.
    ///
    /// # Errors
    /// If the state file cannot be written.
    pub fn begin(
        folder: &Path,
        boot_id: [u8; 16],
        run_id: [u8; 16],
        now_ns: u64,
    ) -> io::Result<(RunState, Option<Interruption>)> {
        fs::create_dir_all(folder)?;
        let state = RunState { file: folder.join("run.json"), boot_id, run_id };
        let before: Option<Saved> =
            fs::read(&state.file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let interruption = before.filter(|saved| !saved.closed).map(|saved| Interruption {
            boot_id: saved.boot_id,
            run_id: saved.run_id,
            from_ns: saved.last_ns,
            to_ns: if saved.boot_id == boot_id { now_ns } else { 0 },
            operations_at_least: 0,
        });
        state.save(now_ns, false)?;
        Ok((state, interruption))
    }

    /// Notes that everything until `last_ns` is in the spool.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, last_ns: u64, closed: bool) -> io::Result<()> {
        let saved = Saved { boot_id: self.boot_id, run_id: self.run_id, last_ns, closed };
        let temporary = self.file.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(&saved).map_err(io::Error::other)?)?;
        fs::rename(&temporary, &self.file)
    }
}
