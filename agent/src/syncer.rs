//! Makes files durable beside the event thread: a device may take seconds for that, and the ring does
//! not wait so long.
//!
//! One thread takes files in the order in which they are asked for; one that waits already waits once.
//! Bound: [`WAITING_MAX`] files wait, and one more is refused, which leaves it to the kernel's own
//! writing back. Before [`Syncer::go_beside`], and after [`Syncer::finish`], whoever asks waits for
//! the device.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Most files that wait for the device. Most are of segments that are full, so it is far behind then.
pub const WAITING_MAX: usize = 16;

/// Shared by all who write on the event thread.
#[derive(Clone, Debug, Default)]
pub struct Syncer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or something was done.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_beside: bool,
    waiting: Vec<Unsynced>,
    /// How many files were asked for, those apart that waited already.
    asked: u64,
    /// How many of them the device is done with.
    done: u64,
    /// How often nobody waited for what then failed.
    refused: u64,
    /// The last such failure.
    error: Option<io::Error>,
}

#[derive(Debug)]
struct Unsynced {
    file: Arc<File>,
    /// Device and inode.
    identity: (u64, u64),
    /// Whether all that is known of it, or what it takes to read it.
    is_whole: bool,
}

impl Unsynced {
    fn sync(&self) -> io::Result<()> {
        if self.is_whole { self.file.sync_all() } else { self.file.sync_data() }
    }
}

/// What was asked for up to a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    asked: u64,
    refused: u64,
}

impl Syncer {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete when the guard is dropped.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nobody waits. To be called when no thread may inherit a privilege any more.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn go_beside(&self) -> io::Result<()> {
        self.state().is_beside = true;
        let shared = Arc::clone(&self.0);
        let started = thread::Builder::new().name("sync".into()).spawn(move || work(&shared));
        if started.is_err() {
            self.state().is_beside = false;
        }
        started.map(drop)
    }

    /// Makes the contents of a file durable, sooner or later.
    ///
    /// # Errors
    /// If the device refuses while this waits for it, or too many files wait; else [`Syncer::error`]
    /// says so.
    pub fn sync(&self, file: &Arc<File>) -> io::Result<()> {
        self.add(Arc::clone(file), false)
    }

    /// Makes the names in a folder durable, sooner or later.
    ///
    /// # Errors
    /// As for [`Syncer::sync`].
    pub fn sync_names(&self, folder: File) -> io::Result<()> {
        self.add(Arc::new(folder), true)
    }

    fn add(&self, file: Arc<File>, is_whole: bool) -> io::Result<()> {
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        let unsynced = Unsynced { file, identity, is_whole };
        let mut state = self.state();
        if !state.is_beside {
            drop(state);
            return unsynced.sync();
        }
        if state.waiting.iter().any(|other| other.identity == identity) {
            return Ok(());
        }
        if state.waiting.len() >= WAITING_MAX {
            state.refused += 1;
            let text = "too many files wait for the device";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        state.waiting.push(unsynced);
        state.asked += 1;
        self.0.changed.notify_all();
        Ok(())
    }

    /// Names all that it was asked for until now.
    pub fn ticket(&self) -> Ticket {
        let State { asked, refused, .. } = *self.state();
        Ticket { asked, refused }
    }

    /// Names all that it was asked for until now, whatever of it was refused since `before`: the device
    /// may be quicker than who asks for a ticket.
    pub fn ticket_since(&self, before: Ticket) -> Ticket {
        Ticket { asked: self.state().asked, ..before }
    }

    /// Whether the device is done with all of what a ticket names: with true if it refused nothing
    /// since it, or since the one that it is made of.
    pub fn outcome(&self, ticket: Ticket) -> Option<bool> {
        let state = self.state();
        (state.done >= ticket.asked).then_some(state.refused == ticket.refused)
    }

    /// The last failure that nobody waited for, since this was last asked.
    pub fn error(&self) -> Option<io::Error> {
        self.state().error.take()
    }

    /// Waits until the device has done all that it was asked for; from now on whoever asks waits.
    pub fn finish(&self) {
        let mut state = self.state();
        if !state.is_beside {
            return;
        }
        while state.done < state.asked {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_beside = false;
        self.0.changed.notify_all();
    }
}

/// What the thread does until [`Syncer::finish`].
fn work(shared: &Shared) {
    let lock = || shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut state = lock();
    while state.is_beside {
        if state.waiting.is_empty() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let unsynced = state.waiting.remove(0);
        drop(state);
        let synced = unsynced.sync();
        drop(unsynced);
        state = lock();
        state.done += 1;
        if let Err(error) = synced {
            state.refused += 1;
            state.error = Some(error);
        }
        shared.changed.notify_all();
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
        syncer.go_beside().unwrap();
        let sound = Arc::new(tempfile::tempfile().unwrap());
        syncer.sync(&sound).unwrap();
        let well = syncer.ticket();
        while syncer.outcome(well).is_none() {
            thread::yield_now();
        }
        assert_eq!(syncer.outcome(well), Some(true));
        let before = syncer.ticket();
        syncer.sync(&pipe()).unwrap();
        while syncer.outcome(syncer.ticket()).is_none() {
            thread::yield_now();
        }
        let ill = syncer.ticket_since(before);
        syncer.finish();
        assert_eq!(syncer.outcome(ill), Some(false));
        assert_eq!(syncer.error().map(|error| error.kind()), Some(refused));
        assert!(syncer.error().is_none());
        assert_eq!(syncer.sync(&pipe()).unwrap_err().kind(), refused);
    }

    #[test]
    fn files_wait_once_each_and_nobody_waits_for_room() {
        let syncer = Syncer::default();
        // Its thread is not there yet: the device does nothing.
        syncer.state().is_beside = true;
        let file = tempfile::tempfile().unwrap();
        for _ in 0..100 {
            syncer.sync(&Arc::new(file.try_clone().unwrap())).unwrap();
        }
        assert_eq!(syncer.state().waiting.len(), 1);
        let others = [(); WAITING_MAX].map(|()| Arc::new(tempfile::tempfile().unwrap()));
        let ticket = syncer.ticket();
        let answers = others.each_ref().map(|other| syncer.sync(other).map_err(|e| e.kind()));
        let (last, admitted) = answers.split_last().unwrap();
        assert!(admitted.iter().all(Result::is_ok));
        assert_eq!(*last, Err(io::ErrorKind::TimedOut));
        assert_eq!(syncer.outcome(ticket), None);
        syncer.go_beside().unwrap();
        syncer.finish();
        assert_eq!(syncer.state().waiting.len(), 0);
        assert_eq!(syncer.outcome(ticket), Some(false));
    }
}
