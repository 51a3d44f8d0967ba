//! Makes a `.sf` file of converted records and counts what it cannot say.
//!
//! The compactor and the command `export` both end here, so a record is left out by the same
//! rule and counted under the same name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use crate::avro;
use crate::health::Counts;
use crate::sysflow::Record;

/// Name of the count of records that were written without some of their operations.
const OPERATIONS_MASKED: &str = "extension_operation_masked";

/// What went into a file, and what did not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Records written, headers included.
    pub(crate) written: u64,
    /// Records left out by reason, and records that lost operation bits.
    pub(crate) left_out: Counts,
}

/// A `.sf` file in the making. Until [`SfFile::finish`] there is only a file whose name begins
/// with a dot; dropped before, it is removed.
pub(crate) struct SfFile {
    writer: Option<avro::Writer<BufWriter<File>>>,
    making: PathBuf,
    path: PathBuf,
    tally: Tally,
}

impl SfFile {
    /// Begins the file that will be at `path`. `identity` tells files apart: it decides the
    /// sync marker, so that equal records give equal files.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(path: &Path, identity: &str) -> io::Result<Self> {
        let making = making_name(path);
        let digest: [u8; 20] = Sha1::digest(identity).into();
        let mut sync = [0; 16];
        sync.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        let writer = avro::Writer::new(BufWriter::new(File::create(&making)?), sync)?;
        Ok(SfFile { writer: Some(writer), making, path: path.to_owned(), tally: Tally::default() })
    }

    /// Appends a record, or counts it where version 5 cannot say it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn push(&mut self, record: &Record) -> io::Result<()> {
        if let Some(reason) = record.unsaid() {
            crate::health::count(&mut self.tally.left_out, reason.name());
            return Ok(());
        }
        if record.has_extension_operations() {
            crate::health::count(&mut self.tally.left_out, OPERATIONS_MASKED);
        }
        self.tally.written += 1;
        match &mut self.writer {
            Some(writer) => writer.push(record),
            None => Ok(()),
        }
    }

    /// Makes the file durable and gives it its name, in place of an older one.
    ///
    /// # Errors
    /// Those of the file system; an older file is then still in its place.
    pub(crate) fn finish(mut self) -> io::Result<Tally> {
        if let Some(writer) = self.writer.take() {
            let file = writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            settle(&file, &self.making, &self.path)?;
        }
        Ok(std::mem::take(&mut self.tally))
    }
}

impl Drop for SfFile {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.making);
    }
}

/// Writes a small file whole: it is there with all its content, or as it was before.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let making = making_name(path);
    let written = File::create(&making).and_then(|mut file| {
        file.write_all(bytes)?;
        settle(&file, &making, path)
    });
    if written.is_err() {
        // It may not be there; the first error is the one to tell.
        let _ = fs::remove_file(&making);
    }
    written
}

fn settle(file: &File, making: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(making, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// A name that no other process takes for the same file.
fn making_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let salt = RandomState::new().build_hasher().finish();
    path.with_file_name(format!(".{name}.{salt:016x}.making"))
}

/// All reasons with their counts, zeros included, for reports with a fixed shape.
pub(crate) fn all_reasons(left_out: &Counts) -> BTreeMap<&'static str, u64> {
    let names = crate::sysflow::Unsaid::ALL.map(|reason| reason.name());
    names
        .into_iter()
        .chain([OPERATIONS_MASKED])
        .map(|name| (name, left_out.get(name).copied().unwrap_or(0)))
        .collect()
}
