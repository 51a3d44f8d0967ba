//! What a live test needs of the machine, and its turn on it.
//!
//! The programs under test come by environment variables, which `cargo xtask test` sets. A
//! test that cannot run says so on a line of its own, `skipped: <test>: <why>`, which the
//! developer tool counts; it is never silently green.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::Result;

/// What a test may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The agent's binary and the right to attach to the kernel.
    Agent,
    /// The right to mount and to change root.
    Root,
    /// The reference suite's printer.
    Sysprint,
    /// The system-call tracer.
    Strace,
    /// Apache and nginx.
    WebServers,
}

/// The machine, held by one live test at a time.
#[derive(Debug)]
pub struct Machine {
    agent: PathBuf,
    collector: PathBuf,
    tool: PathBuf,
    sysprint: PathBuf,
    nginx: PathBuf,
    _turn: File,
}

impl Machine {
    /// Takes the machine for `test`; none, after saying so, if it cannot run here. The
    /// collector and the developer tool are always needed.
    ///
    /// # Errors
    /// If the lock cannot be taken.
    pub fn claim(test: &str, needs: &[Need]) -> Result<Option<Machine>> {
        match look_around(needs) {
            Ok(machine) => Ok(Some(machine)),
            Err(why) => {
                skip(test, &why.to_string())?;
                Ok(None)
            }
        }
    }

    /// The agent's binary.
    pub fn agent(&self) -> &PathBuf {
        &self.agent
    }

    /// The collector's binary.
    pub fn collector(&self) -> &PathBuf {
        &self.collector
    }

    /// The developer tool's binary.
    pub fn tool(&self) -> &PathBuf {
        &self.tool
    }

    /// The reference suite's printer.
    pub fn sysprint(&self) -> &PathBuf {
        &self.sysprint
    }

    /// The binary of nginx.
    pub fn nginx(&self) -> &PathBuf {
        &self.nginx
    }
}

/// Says that a test does not run here. Not by `println!`, which the test runner swallows.
///
/// # Errors
/// If standard output is closed.
pub fn skip(test: &str, why: &str) -> Result {
    let mut output = std::io::stdout().lock();
    write!(output, "\nskipped: {test}: {why}\n")?;
    output.flush()?;
    Ok(())
}

/// Whether this process may do what only the superuser may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is among those that a shell would find.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn look_around(needs: &[Need]) -> Result<Machine> {
    let binary = |variable: &str, needed: bool| -> Result<PathBuf> {
        match std::env::var_os(variable) {
            Some(path) => Ok(path.into()),
            None if !needed => Ok(PathBuf::new()),
            None => Err(format!("{variable} is not set (run `cargo xtask test`)").into()),
        }
    };
    if (needs.contains(&Need::Agent) || needs.contains(&Need::Root)) && !is_root() {
        return Err("needs root".into());
    }
    if needs.contains(&Need::Strace) && !has_program("strace") {
        return Err("strace is not installed".into());
    }
    if needs.contains(&Need::WebServers) && !Path::new("/usr/sbin/apache2").is_file() {
        return Err("apache2 is not installed".into());
    }
    Ok(Machine {
        agent: binary("SYSFLOW_AGENT", needs.contains(&Need::Agent))?,
        collector: binary("SYSFLOW_COLLECTOR", true)?,
        tool: binary("SYSFLOW_XTASK", true)?,
        sysprint: binary("SYSPRINT", needs.contains(&Need::Sysprint))?,
        nginx: binary("SYSFLOW_NGINX", needs.contains(&Need::WebServers))?,
        _turn: take_turn()?,
    })
}

/// One live test at a time, whichever test binary it is in: the lock goes with the file.
fn take_turn() -> Result<File> {
    let path = std::env::temp_dir().join("sysflow-live-tests.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|e| format!("lock {}: {e}", path.display()))?;
    Ok(file)
}
