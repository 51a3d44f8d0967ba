//! `sysflow-agent`: reads the command line and hands over.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use agent::arguments::{self, Command};
use agent::check::{self, EXIT_CONFIGURATION, EXIT_GOOD};
use agent::config::{Config, ConfigError};
use agent::logger;
use agent::pipeline::{self, Settings};
use agent::spool::Contents;
use agent::status::Status;

/// Exit code: the command line is wrong.
const EXIT_USAGE: u8 = 64;
/// Exit code: the collector, or here the agent, cannot be reached.
const EXIT_UNREACHABLE: u8 = 69;

fn main() -> ExitCode {
    logger::start();
    let command = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            log::error!("{error}");
            return EXIT_USAGE.into();
        }
    };
    let code = match command {
        Command::Help => print(arguments::HELP),
        Command::Version => print(concat!("sysflow-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Check { config } => check(&config),
        Command::Status { config } => status(&config),
        Command::Run { config } => run(&config),
        Command::SpoolList { config, json } => spool_list(&config, json),
        Command::SpoolPurge { config } => spool_purge(&config),
        Command::Capture { duration, out } => {
            // Whoever captures wants to see all.
            let mut config = Config::default();
            config.ladder.last_step = codec::Step::Everything;
            let captured = Settings::new(&config)
                .and_then(|settings| pipeline::capture(&settings, duration, &out));
            finish(captured)
        }
    };
    code.into()
}

fn run(file: &Path) -> u8 {
    match Config::load(file) {
        Ok(config) => finish(pipeline::run(&config)),
        Err(error) => misconfigured(&error),
    }
}

/// Logs all that is wrong, a line each.
fn misconfigured(error: &ConfigError) -> u8 {
    for line in error.to_string().lines() {
        log::error!("{line}");
    }
    EXIT_CONFIGURATION
}

/// Logs why the agent stops, with all causes.
fn finish(result: Result<(), pipeline::Error>) -> u8 {
    let Err(error) = result else { return EXIT_GOOD };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    log::error!("{text}");
    error.exit_code()
}

/// A closed standard output is no reason to fail: nobody reads.
fn print(text: &str) -> u8 {
    let _ = std::io::stdout().write_all(text.as_bytes());
    EXIT_GOOD
}

fn check(file: &Path) -> u8 {
    let (config, mut findings) = check::configuration(file);
    if let Some(config) = config {
        findings.extend(check::environment(&config));
        let (division, memory) = check::memory(&config);
        findings.extend(memory);
        if let Some(division) = division {
            findings.extend(check::kernel(&Settings::divided(&config, &division)));
        }
    }
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    print(&lines);
    check::exit_code(&findings)
}

fn spool_list(file: &Path, json: bool) -> u8 {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return misconfigured(&error),
    };
    let contents = match Contents::read(&config.spool.directory) {
        Ok(contents) => contents,
        Err(error) => return finish(Err(pipeline::Error::Spool(error))),
    };
    if !json {
        return print(&contents.describe());
    }
    match serde_json::to_string(&contents) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => finish(Err(pipeline::Error::Config(error.to_string()))),
    }
}

fn spool_purge(file: &Path) -> u8 {
    match Config::load(file) {
        Ok(config) => match pipeline::purge(&config) {
            Ok(purged) => print(&format!(
                "{} frames purged, {} records: the agent's next run tells the collector; {} \
                 damaged bytes, whose records nobody can count\n",
                purged.frames, purged.records, purged.damaged_bytes
            )),
            Err(error) => finish(Err(error)),
        },
        Err(error) => misconfigured(&error),
    }
}

fn status(file: &Path) -> u8 {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return misconfigured(&error),
    };
    match Status::read(&config.status.file) {
        Ok(status) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
            let alive = status.is_alive();
            print(&status.describe(now, alive));
            if alive { EXIT_GOOD } else { EXIT_UNREACHABLE }
        }
        Err(error) => {
            log::error!("{error}");
            EXIT_UNREACHABLE
        }
    }
}
