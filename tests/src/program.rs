//! A program under test as a child: its output goes into files, and it ends with its owner.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::Result;
use crate::wait::wait_for;

/// How long a program may take to end after it was asked to.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// A running (or ended) program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

impl Program {
    /// Starts `command`; its standard output goes to `<folder>/<name>.out`, its standard
    /// error to `<folder>/<name>.log`.
    ///
    /// # Errors
    /// If a file cannot be made or the program cannot be started.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Program> {
        heed_interrupts()?;
        std::fs::create_dir_all(folder)?;
        let output = folder.join(format!("{name}.out"));
        let log = folder.join(format!("{name}.log"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
        Ok(Program { name: name.to_string(), child, output, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn output(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.output)?)
    }

    /// What it has written to its standard error so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Waits until a line of its output or its log contains `text`, and returns the line.
    ///
    /// # Errors
    /// If the program ends first, or after `deadline`: both with its log.
    pub fn wait_for_line(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let what = format!("{}: a line with {text:?}", self.name);
        let found = wait_for(&what, deadline, || {
            let ended = self.child.try_wait()?;
            let said = self.output()? + &self.log()?;
            // A line counts once it is whole.
            let whole = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.into_iter().find(|line| line.contains(text)) {
                return Ok(Some(line.trim_end().to_string()));
            }
            match ended {
                Some(status) => Err(format!("{} ended with {status}", self.name).into()),
                None => Ok(None),
            }
        });
        found.map_err(|e| self.explain(&e.to_string()))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If the system cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// After `deadline`, with its log.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let ended = wait_for(&what, deadline, || Ok(self.child.try_wait()?));
        ended.map_err(|e| self.explain(&e.to_string()))
    }

    /// Asks it to end (SIGTERM) and waits until it has ended well.
    ///
    /// # Errors
    /// If it takes too long or ends with anything but 0, with its log.
    pub fn stop(&mut self) -> Result {
        self.signal(Signal::TERM)?;
        let status = self.wait(END_DEADLINE)?;
        if status.success() {
            return Ok(());
        }
        Err(self.explain(&format!("{} ended with {status}", self.name)))
    }

    /// Ends it without a word (SIGKILL).
    ///
    /// # Errors
    /// If it had ended before by itself.
    pub fn kill(&mut self) -> Result {
        self.end_by(Signal::KILL)
    }

    /// Ends it as Ctrl-C at its terminal does (SIGINT); it must leave the signal's effect alone.
    ///
    /// # Errors
    /// If it had ended before by itself, or ends in another way.
    pub fn interrupt(&mut self) -> Result {
        self.end_by(Signal::INT)
    }

    /// Asks it to read its files anew (SIGHUP).
    ///
    /// # Errors
    /// If it has ended.
    pub fn reload(&mut self) -> Result {
        self.signal(Signal::HUP)
    }

    fn end_by(&mut self, signal: Signal) -> Result {
        self.signal(signal)?;
        let status = self.wait(END_DEADLINE)?;
        if status.signal() == Some(signal.as_raw()) {
            return Ok(());
        }
        Err(self.explain(&format!("{} had ended before, with {status}", self.name)))
    }

    fn signal(&mut self, signal: Signal) -> Result {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.explain(&format!("{} ended by itself: {status}", self.name)));
        }
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .map_err(|e| format!("signal {}: {e}", self.name).into())
    }

    fn explain(&self, what: &str) -> crate::Error {
        let log = self.log().unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("{what}; its log ends:\n{}", tail.join("\n")).into()
    }
}

/// Sees to it that children end by SIGINT. What a shell starts in the background is told to ignore
/// it, and hands that on; a signal with a handler, which here does what the default would, is
/// handed on as the default.
fn heed_interrupts() -> Result {
    static HEEDED: OnceLock<bool> = OnceLock::new();
    let heeded = HEEDED.get_or_init(|| {
        let always = Arc::new(AtomicBool::new(true));
        flag::register_conditional_default(SIGINT, always).is_ok()
    });
    if *heeded { Ok(()) } else { Err("SIGINT cannot be handled".into()) }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
