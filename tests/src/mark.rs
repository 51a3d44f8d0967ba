//! Numbered acts: a process whose every deed follows from its number, so that each can be
//! looked up afterwards, even if its doer cannot be asked any more.

use std::path::{Path, PathBuf};

/// One act: a program starts, makes a folder, writes a file, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number, in its arguments and in the names of its files.
    pub number: u32,
}

impl Mark {
    /// Its arguments, for files in `folder`.
    pub fn args(self, folder: &Path) -> [String; 2] {
        [folder.to_string_lossy().into_owned(), self.number.to_string()]
    }

    /// The folder that it makes.
    pub fn folder(self, within: &Path) -> PathBuf {
        within.join(format!("mark-{}.folder", self.number))
    }

    /// The file that it writes.
    pub fn file(self, within: &Path) -> PathBuf {
        within.join(format!("mark-{}.file", self.number))
    }

    /// How often it writes to the file.
    pub fn writes(self) -> u64 {
        u64::from(self.number % 5) + 1
    }

    /// How many bytes it writes each time.
    pub fn write_bytes(self) -> u64 {
        u64::from(self.number % 97) + 1
    }

    /// Its exit code.
    pub fn exit_code(self) -> u8 {
        u8::try_from(self.number % 50).unwrap_or(0)
    }
}
