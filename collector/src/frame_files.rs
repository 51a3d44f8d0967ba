//! The files of a stream's folder: how one comes into being, and what is there.
//!
//! A frame is written under a name of its own, made durable, and then linked to its place,
//! which fails if the place is taken: so a frame is whole or absent, and the first one stays.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use codec::Frame;

use crate::layout;
use crate::ranges::Ranges;

/// Writes a new file and makes its content durable; a left-over of the same name is replaced.
///
/// # Errors
/// If the file system refuses, or only says that it wrote.
pub(crate) fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    let held = file.metadata()?.len();
    if held != bytes.len() as u64 {
        let text = format!("{}: holds {held} of {} bytes", path.display(), bytes.len());
        return Err(io::Error::other(text));
    }
    file.sync_all()
}

/// Gives a file a second name; `false` if the name is taken.
pub(crate) fn link_if_absent(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The sequence of the frame that begins a generation, where it is held.
pub(crate) fn held_start(directory: &Path, generation: u32) -> io::Result<Option<u64>> {
    let path = directory.join(layout::start_name(generation));
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (frame, _) = Frame::decode(&bytes)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    Ok(Some(frame.header.key.sequence))
}

/// The sequences of the frames in a stream's folder; none where there is no folder.
pub(crate) fn list(directory: &Path) -> io::Result<Ranges> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ranges::default()),
        entries => entries?,
    };
    let mut sequences = Vec::new();
    for entry in entries {
        sequences.extend(entry?.file_name().to_str().and_then(layout::parse_frame_name));
    }
    sequences.sort_unstable();
    Ok(sequences.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_only_says_that_it_wrote_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frame");
        write_durable(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let path = folder.path().join("nothing");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let error = write_durable(&path, b"whole").unwrap_err().to_string();
        assert!(error.ends_with("holds 0 of 5 bytes"), "{error}");
    }
}
