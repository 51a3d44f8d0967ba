//! The small JSON files that stand beside `.sf` files and frames.
//!
//! A manifest says what a `.sf` file is made of and what it leaves out; the clock file holds
//! the one offset that decides a boot's object ids. Both are written whole and renamed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layout;

/// What stands beside each `.sf` file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) agent: String,
    pub(crate) boot: String,
    pub(crate) run: String,
    pub(crate) class: u8,
    pub(crate) generation: u32,
    pub(crate) agent_version: String,
    pub(crate) kernel: String,
    pub(crate) machine: String,
    /// First and last frame that the file is made of.
    pub(crate) frames: [u64; 2],
    /// Whether the generation has ended: its last frame is among them.
    pub(crate) complete: bool,
    /// Whether more frames of the stream are held, behind one that is missing.
    pub(crate) waiting: bool,
    /// Records in the file.
    pub(crate) records: u64,
    /// Records that version 5 cannot say, by reason.
    pub(crate) left_out: BTreeMap<String, u64>,
    /// References that led nowhere, by kind.
    pub(crate) unresolved: BTreeMap<String, u64>,
}

/// The offset that decides the object ids of one boot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FixedClock {
    /// Unix time minus boot time, ns, of the first mapping seen.
    pub(crate) offset_ns: i64,
}

impl FixedClock {
    /// The clock of a boot's folder; none if no mapping has been seen yet.
    ///
    /// # Errors
    /// Those of the file system, and `InvalidData` if the file is damaged.
    pub(crate) fn load(boot_directory: &Path) -> io::Result<Option<Self>> {
        let path = boot_directory.join(layout::CLOCK);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is known of a `.sf` file that is there.
pub(crate) struct Written {
    last: u64,
    complete: bool,
    waiting: bool,
}

impl Written {
    /// Whether the frames in `stream` may give more than the file has.
    pub(crate) fn is_behind(&self, stream: &Path) -> bool {
        let next = || stream.join(layout::frame_name(self.last.saturating_add(1)));
        !self.complete && (self.waiting || next().exists())
    }
}

/// The files in a folder, by run, class and generation.
pub(crate) fn written_generations(directory: &Path) -> BTreeMap<(String, u8, u32), Written> {
    let mut written = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "json")
            && path.with_extension("sf").exists()
            && let Ok(bytes) = fs::read(&path)
            && let Ok(Manifest { run, class, generation, frames, complete, waiting, .. }) =
                serde_json::from_slice(&bytes)
        {
            let [_, last] = frames;
            written.insert((run, class, generation), Written { last, complete, waiting });
        }
    }
    written
}

/// A value as it stands in these files.
///
/// # Errors
/// None for the types here.
pub(crate) fn to_json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    Ok(bytes)
}
