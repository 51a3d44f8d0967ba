//! Makes files durable beside the event thread: a device may take seconds for that, and the ring does
//! not wait so long.
//!
//! Files go one after the other on one thread; each waits once, however often it is asked for. Bound:
//! [`WAITING_MAX`] files wait, and who asks for one more waits with them. Before [`Syncer::go_beside`],
//! and after [`Syncer::finish`], whoever asks waits for the device.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most files that wait for the device. Each may be of a segment that is full, so it is far behind.
pub const WAITING_MAX: usize = 16;

/// Shared by all who write on the event thread.
#[derive(Clone, Debug, Default)]
pub struct Syncer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_beside: bool,
    waiting: Vec<Unsynced>,
    running: Option<smol::Task<io::Result<()>>>,
    /// How often files that waited were begun with.
    begun: u64,
    /// Of what nobody waited for, the last failure.
    error: Option<io::Error>,
}

#[derive(Clone, Debug)]
struct Unsynced {
    file: Arc<File>,
    /// Whether all that is known of it, or what it takes to read it.
    is_whole: bool,
}

impl Unsynced {
    fn sync(&self) -> io::Result<()> {
        if self.is_whole { self.file.sync_all() } else { self.file.sync_data() }
    }
}

impl Syncer {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete when the guard is dropped.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nobody waits. To be called when no thread may inherit a privilege any more.
    pub fn go_beside(&self) {
        self.state().is_beside = true;
    }

    /// Makes the contents of a file durable, sooner or later.
    ///
    /// # Errors
    /// If the device refuses while this waits for it; else [`Syncer::error`] says so.
    pub fn sync(&self, file: &Arc<File>) -> io::Result<()> {
        self.state().add(Unsynced { file: Arc::clone(file), is_whole: false })
    }

    /// Makes the names in a folder durable, sooner or later.
    ///
    /// # Errors
    /// As for [`Syncer::sync`].
    pub fn sync_names(&self, folder: File) -> io::Result<()> {
        self.state().add(Unsynced { file: Arc::new(folder), is_whole: true })
    }

    /// Whether the device has not done all that it was asked for.
    pub fn is_busy(&self) -> bool {
        let mut state = self.state();
        state.turn();
        state.running.is_some()
    }

    /// Names all that it was asked for until now.
    pub fn ticket(&self) -> u64 {
        let state = self.state();
        state.begun + u64::from(!state.waiting.is_empty())
    }

    /// Whether the device has done all of what a ticket names, or has refused it.
    pub fn is_done(&self, ticket: u64) -> bool {
        let mut state = self.state();
        state.turn();
        state.begun - u64::from(state.running.is_some()) >= ticket
    }

    /// The last failure that nobody waited for, since this was last asked.
    pub fn error(&self) -> Option<io::Error> {
        let mut state = self.state();
        state.turn();
        state.error.take()
    }

    /// Waits until the device has done all that it was asked for; from now on whoever asks waits.
    pub fn finish(&self) {
        let mut state = self.state();
        state.is_beside = false;
        while state.running.is_some() {
            state.wait();
            state.turn();
        }
    }
}

impl State {
    fn add(&mut self, unsynced: Unsynced) -> io::Result<()> {
        if !self.is_beside {
            return unsynced.sync();
        }
        let is_same = |other: &Unsynced| Arc::ptr_eq(&other.file, &unsynced.file);
        if !self.waiting.iter().any(is_same) {
            if self.waiting.len() >= WAITING_MAX {
                self.wait();
            }
            self.waiting.push(unsynced);
        }
        self.turn();
        Ok(())
    }

    /// Takes what came of those before, and begins with those that wait.
    fn turn(&mut self) {
        if self.running.as_ref().is_some_and(smol::Task::is_finished) {
            self.wait();
        }
        if self.running.is_none() && !self.waiting.is_empty() {
            self.begun += 1;
            let files = std::mem::take(&mut self.waiting);
            self.running = Some(smol::unblock(move || {
                // One that fails does not keep the others from it.
                files.iter().map(Unsynced::sync).fold(Ok(()), Result::and)
            }));
        }
    }

    /// Waits for those that are on their way.
    fn wait(&mut self) {
        if let Some(running) = self.running.take()
            && let Err(error) = smol::block_on(running)
        {
            self.error = Some(error);
        }
        self.turn();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that no device makes durable.
    fn pipe() -> Arc<File> {
        let (_, writer) = rustix::pipe::pipe().unwrap();
        Arc::new(File::from(writer))
    }

    #[test]
    fn a_failure_is_told_to_who_waits_or_else_kept() {
        let syncer = Syncer::default();
        let refused = io::ErrorKind::InvalidInput;
        assert_eq!(syncer.sync(&pipe()).unwrap_err().kind(), refused);
        assert!(syncer.error().is_none());
        syncer.go_beside();
        let sound = Arc::new(tempfile::tempfile().unwrap());
        for _ in 0..3 * WAITING_MAX {
            syncer.sync(&sound).unwrap();
            syncer.sync(&pipe()).unwrap();
        }
        syncer.finish();
        assert!(!syncer.is_busy());
        assert_eq!(syncer.error().map(|error| error.kind()), Some(refused));
        assert!(syncer.error().is_none());
        assert_eq!(syncer.sync(&pipe()).unwrap_err().kind(), refused);
    }

    #[test]
    fn files_wait_once_each_and_no_more_than_may() {
        let syncer = Syncer::default();
        syncer.go_beside();
        let file = Arc::new(tempfile::tempfile().unwrap());
        for _ in 0..1000 {
            syncer.sync(&file).unwrap();
            let is_it = |other: &&Unsynced| Arc::ptr_eq(&other.file, &file);
            assert!(syncer.state().waiting.iter().filter(is_it).count() <= 1);
            syncer.sync(&Arc::new(tempfile::tempfile().unwrap())).unwrap();
            assert!(syncer.state().waiting.len() <= WAITING_MAX);
            let ticket = syncer.ticket();
            assert!(!syncer.is_done(ticket) || !syncer.is_busy());
        }
        let ticket = syncer.ticket();
        syncer.finish();
        assert!(syncer.is_done(ticket));
        assert_eq!(syncer.state().waiting.len(), 0);
        assert!(syncer.error().is_none());
    }
}
