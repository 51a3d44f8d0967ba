//! The command line: words in, one [`Command`] out. It opens no file and prints nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Where the configuration is looked for if the command line does not say.
pub const CONFIG_FILE: &str = "/etc/sysflow/agent.toml";

/// What `--help` prints.
pub const HELP: &str = "\
sysflow-agent watches this machine and delivers what it saw to a SysFlow collector.

Usage: sysflow-agent COMMAND [OPTION]...

  run      [--config FILE]               watch, spool and deliver until SIGTERM
  check    [--config FILE]               say what keeps `run` from working here
  status   [--config FILE]               print what the running agent says of itself
  spool list  [--config FILE] [--json]   what waits in the spool; beside a running agent, too
  spool purge [--config FILE] --yes      throw away what waits; the agent's next run tells the
                                         collector how many records that were
  capture  [--for SECONDS] --out DIR     watch without a collector: frames into DIR

  --config FILE   configuration (default: /etc/sysflow/agent.toml)
  -h, --help      print this text
  -V, --version   print the version

Exit codes: 0 good, 64 wrong usage, 69 no agent runs (status), 70 internal error,
75 file system full, read-only or away, or spool in use (it may work later),
77 permission missing, 78 configuration or kernel must be changed.
";

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Watch, spool and deliver.
    Run {
        /// Configuration file.
        config: PathBuf,
    },
    /// Look for what keeps `run` from working.
    Check {
        /// Configuration file.
        config: PathBuf,
    },
    /// Print the status file of the running agent.
    Status {
        /// Configuration file.
        config: PathBuf,
    },
    /// Print what waits in the spool.
    SpoolList {
        /// Configuration file.
        config: PathBuf,
        /// As JSON.
        json: bool,
    },
    /// Throw away what waits in the spool.
    SpoolPurge {
        /// Configuration file.
        config: PathBuf,
    },
    /// Watch without a collector.
    Capture {
        /// For how long; until a signal if absent.
        duration: Option<Duration>,
        /// Folder for the frames.
        out: PathBuf,
    },
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// The command line cannot be understood; the text names the word at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; see sysflow-agent --help", self.0)
    }
}

impl std::error::Error for UsageError {}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        UsageError(error.to_string())
    }
}

/// Reads the command line, without the program's name.
///
/// # Errors
/// [`UsageError`] for an unknown word, a missing value or one that is out of range.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    use lexopt::prelude::{Long, Short, Value, ValueExt as _};

    let mut parser = lexopt::Parser::from_args(words);
    let mut name = None;
    let mut config = None;
    let mut out = None;
    let mut duration = None;
    let mut sub = None;
    let (mut json, mut yes) = (false, false);
    while let Some(word) = parser.next()? {
        match word {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Short('c') | Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            Long("for") => duration = Some(seconds(&parser.value()?.string()?)?),
            Long("json") => json = true,
            Long("yes") => yes = true,
            Value(word) if name.as_deref() == Some("spool") && sub.is_none() => {
                sub = Some(word.string()?);
            }
            Value(word) if name.is_none() => name = Some(word.string()?),
            word => return Err(word.unexpected().into()),
        }
    }
    let name = name.ok_or_else(|| UsageError("a command is missing".into()))?;
    if (json || yes) && name != "spool" {
        return Err(UsageError(format!("{name}: --json and --yes belong to spool")));
    }
    if name == "capture" {
        if config.is_some() {
            return Err(UsageError("capture has no --config".into()));
        }
        let out = out.ok_or_else(|| UsageError("capture: --out DIR is missing".into()))?;
        return Ok(Command::Capture { duration, out });
    }
    if out.is_some() || duration.is_some() {
        return Err(UsageError(format!("{name}: --out and --for belong to capture")));
    }
    let config = config.unwrap_or_else(|| CONFIG_FILE.into());
    match name.as_str() {
        "run" => Ok(Command::Run { config }),
        "check" => Ok(Command::Check { config }),
        "status" => Ok(Command::Status { config }),
        "spool" => spool(sub.as_deref(), config, json, yes),
        _ => Err(UsageError(format!("{name:?} is not a command"))),
    }
}

fn spool(sub: Option<&str>, config: PathBuf, json: bool, yes: bool) -> Result<Command, UsageError> {
    match (sub, json, yes) {
        (Some("list"), json, false) => Ok(Command::SpoolList { config, json }),
        (Some("list"), _, true) => Err(UsageError("spool list has no --yes".into())),
        (Some("purge"), false, true) => Ok(Command::SpoolPurge { config }),
        (Some("purge"), true, _) => Err(UsageError("spool purge has no --json".into())),
        (Some("purge"), ..) => {
            Err(UsageError("spool purge throws away what was not delivered: say --yes".into()))
        }
        (Some(other), ..) => Err(UsageError(format!("spool {other:?} is not a command"))),
        (None, ..) => Err(UsageError("spool: list or purge is missing".into())),
    }
}

fn seconds(text: &str) -> Result<Duration, UsageError> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(UsageError(format!("--for {text}: must be 1..={} seconds", u32::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn commands_and_their_options() {
        let config = PathBuf::from("/x.toml");
        assert_eq!(parsed("run --config /x.toml"), Ok(Command::Run { config: config.clone() }));
        assert_eq!(parsed("--config=/x.toml check"), Ok(Command::Check { config }));
        assert_eq!(parsed("status"), Ok(Command::Status { config: CONFIG_FILE.into() }));
        let duration = Some(Duration::from_secs(5));
        let out = PathBuf::from("d");
        assert_eq!(parsed("capture --for 5 --out d"), Ok(Command::Capture { duration, out }));
        let config = PathBuf::from(CONFIG_FILE);
        assert_eq!(
            parsed("spool list --json"),
            Ok(Command::SpoolList { config: config.clone(), json: true })
        );
        assert_eq!(parsed("spool purge --yes"), Ok(Command::SpoolPurge { config }));
        assert_eq!(parsed("run --help"), Ok(Command::Help));
        assert_eq!(parsed("-V"), Ok(Command::Version));
    }

    #[test]
    fn errors_name_the_word() {
        for (line, text) in [
            ("", "a command is missing"),
            ("walk", "\"walk\" is not a command"),
            ("spool", "spool: list or purge is missing"),
            ("spool empty", "spool \"empty\" is not a command"),
            ("spool purge", "spool purge throws away what was not delivered: say --yes"),
            ("run --yes", "run: --json and --yes belong to spool"),
            ("run run", "unexpected argument \"run\""),
            ("run --fast", "invalid option '--fast'"),
            ("run --config", "missing argument for option '--config'"),
            ("capture", "capture: --out DIR is missing"),
            ("capture --out d --for 0", "--for 0: must be 1..=4294967295 seconds"),
            ("capture --out d --config c", "capture has no --config"),
            ("run --out d", "run: --out and --for belong to capture"),
        ] {
            assert_eq!(parsed(line), Err(format!("{text}; see sysflow-agent --help")), "{line}");
        }
    }
}
