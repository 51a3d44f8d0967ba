//! `capture`: each finished frame becomes a file in a folder. No spool, no collector.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bpf::Probes;
use codec::Class;

use super::{
    Error, Former, Outlet, Settings, boot_id, drop_privileges, file_error, identity,
    stop_on_signal, watch,
};
use crate::batch::{Kept, Sink};
use crate::confinement::Needs;
use crate::run_state;

/// A folder that takes each frame as a file.
struct Folder {
    out: PathBuf,
    number: u64,
    failure: Option<Error>,
}

impl Sink for Folder {
    fn frame(&mut self, _: Class, frame: &[u8]) -> Kept {
        let path = self.out.join(format!("{:020}.frame", self.number));
        self.number += 1;
        let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(frame));
        if let Err(error) = written {
            self.failure = Some(Error::File(path, error));
        }
        Kept::default()
    }
}

impl Outlet for Folder {
    fn ready(&mut self, probes: &Probes) -> Result<(), Error> {
        drop_privileges(probes, &Needs::of_capture(&self.out))
    }

    fn told_until(&mut self, _: u64) -> Result<(), Error> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// Watches without a collector: each frame becomes a file in `out`.
///
/// # Errors
/// See [`Error`]; `out` must be a folder that can be made and written, without frames.
pub fn capture(settings: &Settings, duration: Option<Duration>, out: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(out).map_err(file_error(out))?;
    if std::fs::read_dir(out).map_err(file_error(out))?.next().is_some() {
        let text = format!("{}: is not empty (name a new folder for the frames)", out.display());
        return Err(Error::Config(text));
    }
    let stop = stop_on_signal()?;
    let folder = Rc::new(RefCell::new(Folder { out: out.into(), number: 0, failure: None }));
    let run_id = run_state::random_id().map_err(|e| Error::System("a random run id", e))?;
    let identity = identity("capture".into(), boot_id()?, run_id);
    watch(settings, identity, Former::default(), duration, &stop, &folder)?;
    log::info!("{} frames in {}", folder.borrow().number, out.display());
    Ok(())
}
