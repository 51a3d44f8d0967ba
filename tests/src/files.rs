//! Files in large number, for frames of volumes.

use std::path::Path;

use crate::Result;

/// Files that are made at a time: about as many kilobytes of frames.
pub const FILES: usize = 2000;

/// Makes files in a new folder of `folder`, each of which is one file flow of a file that no other
/// flow names.
///
/// # Errors
/// If the folder of this turn is there already, or a file cannot be written.
pub fn make_files(folder: &Path, turn: usize) -> Result {
    std::fs::create_dir(folder.join(turn.to_string()))?;
    for number in 0..FILES {
        let name = format!("{turn}/{number}-{}", "x".repeat(100));
        std::fs::write(folder.join(name), b"volume")?;
    }
    Ok(())
}
