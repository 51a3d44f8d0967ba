//! Acts in the background while faults come and go: a thread does as many as it is asked for,
//! and notes when each began and ended.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::time::{ClockId, clock_gettime};
use tests::Result;
use tests::mark::Mark;

/// Nanoseconds on the boot clock.
pub(crate) fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

/// An act that was done.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    pub(crate) mark: Mark,
    pub(crate) pid: u32,
    /// On the boot clock, ns.
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

/// The thread that acts.
pub(crate) struct Actor {
    /// Where the acts leave their files.
    pub(crate) folder: PathBuf,
    done: Arc<Mutex<Vec<Act>>>,
    orders: Option<Sender<()>>,
    thread: Option<JoinHandle<Result>>,
    ordered: usize,
}

impl Actor {
    /// Begins, with nothing to do.
    pub(crate) fn start(folder: PathBuf) -> Result<Actor> {
        std::fs::create_dir_all(&folder)?;
        let done = Arc::new(Mutex::new(Vec::new()));
        let (orders, ordered) = channel();
        let (shared, place) = (Arc::clone(&done), folder.clone());
        let thread = std::thread::spawn(move || act(&ordered, &place, &shared));
        Ok(Actor { folder, done, orders: Some(orders), thread: Some(thread), ordered: 0 })
    }

    /// Orders so many more acts; returns how many will then have been done.
    pub(crate) fn order(&mut self, acts: usize) -> usize {
        for _ in 0..acts {
            // A thread that failed says so in the end.
            let _ = self.orders.as_ref().map(|orders| orders.send(()));
        }
        self.ordered += acts;
        self.ordered
    }

    /// How many have been done.
    pub(crate) fn done(&self) -> Result<usize> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).len();
        let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        if is_over { Err("the thread that acts has ended".into()) } else { Ok(done) }
    }

    /// Ends, and returns all that was done.
    pub(crate) fn finish(&mut self) -> Result<Vec<Act>> {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the thread that acts panicked")??;
        }
        Ok(std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn act(orders: &Receiver<()>, folder: &Path, done: &Mutex<Vec<Act>>) -> Result {
    let mut numbers = 0..;
    while let (Ok(()), Some(number)) = (orders.recv(), numbers.next()) {
        let mark = Mark { number };
        let from_ns = boot_ns();
        let mut child = Command::new(env!("CARGO_BIN_EXE_workload-mark"))
            .args(mark.args(folder))
            .stdin(Stdio::null())
            .spawn()?;
        let (pid, status) = (child.id(), child.wait()?);
        if status.code() != Some(i32::from(mark.exit_code())) {
            return Err(format!("act {number} ended with {status}").into());
        }
        let act = Act { mark, pid, from_ns, to_ns: boot_ns() };
        done.lock().unwrap_or_else(PoisonError::into_inner).push(act);
    }
    Ok(())
}
