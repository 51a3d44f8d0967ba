//! Programs that run beside the tool: their output goes to files, and they end with the tool
//! on every path.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::Result;

/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 15;

/// A program in the background.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

impl Background {
    /// Starts `command` with its standard output in `<logs>/<name>.out` and its standard
    /// error in `<logs>/<name>.log`. Should this tool be killed, so is the program.
    ///
    /// # Errors
    /// If a file cannot be made or the program cannot be started.
    pub fn start(name: &str, command: &Command, logs: &Path) -> Result<Background> {
        let (output, log) = (logs.join(format!("{name}.out")), logs.join(format!("{name}.log")));
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|e| format!("start {name}: {e}"))?;
        Ok(Background { name: name.to_string(), child, output, log })
    }

    /// Waits until `condition` on the program's standard output gives a value.
    ///
    /// # Errors
    /// If the program ends first or `deadline` passes.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let status = self.child.try_wait()?;
            if let Some(value) = condition(&std::fs::read_to_string(&self.output)?) {
                return Ok(value);
            }
            if let Some(status) = status {
                return Err(format!("{} ended with {status} before {what}", self.name).into());
            }
            if start.elapsed() > deadline {
                let seconds = deadline.as_secs();
                return Err(format!("{}: no {what} after {seconds} s", self.name).into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Asks the program to end and waits until it has ended well.
    ///
    /// # Errors
    /// If it had ended before, takes longer than `deadline`, or ends with anything but 0.
    pub fn stop(&mut self, deadline: Duration) -> Result {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("{} ended by itself: {status}", self.name).into());
        }
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|e| format!("stop {}: {e}", self.name))?;
        let status = self.wait(deadline)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {status}", self.name).into())
        }
    }

    fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                let seconds = deadline.as_secs();
                return Err(format!("{}: still runs {seconds} s after SIGTERM", self.name).into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The end of the log, for an error.
    pub fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
        let tail = if tail.is_empty() { "(empty)".to_string() } else { tail.join("\n  ") };
        format!("{} ({}):\n  {tail}", self.name, self.log.display())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
