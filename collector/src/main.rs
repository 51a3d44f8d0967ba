//! `sysflow-collector`: the central receiver of SysFlow Edge.
//!
//! Agents send frames over mutual TLS (`serve` → `receive`); `body` checks them, `store` keeps
//! them, and what is kept is acknowledged. `compact` turns each generation of frames into a
//! `.sf` file that SysFlow tools read (`convert` → `sysflow` → `sf` → `avro`). The commands
//! `print`, `ledger` and `export` read frames and `.sf` files (`capture`) for people and for programs.

mod account;
mod avro;
mod body;
mod capture;
mod certificates;
mod chain;
mod compact;
mod config;
mod connections;
mod convert;
mod cuts;
mod frame_files;
mod gap;
mod health;
mod ladder;
mod layout;
mod ledger;
mod logger;
mod manifest;
mod print;
mod ranges;
mod receive;
mod reload;
mod serve;
mod sf;
mod store;
mod sysflow;
mod tls;
mod usage;

use std::io::{self, BufWriter, ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use certificates::Certificates;
use config::Config;
use print::{Filter, Format, Outcome};
use serve::StartError;

/// The command line is wrong (sysexits `EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// Something that was read is damaged or missing (`EX_DATAERR`); the rest was printed.
const EXIT_DATA: u8 = 65;
/// A path leads nowhere (`EX_NOINPUT`).
const EXIT_NO_INPUT: u8 = 66;
/// The system failed (`EX_OSERR` and the like).
const EXIT_INTERNAL: u8 = 70;
/// The configuration cannot be used (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// Receives SysFlow frames from agents, keeps them, and writes SysFlow files.
#[derive(Parser)]
#[command(name = "sysflow-collector", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive frames until SIGTERM.
    Serve {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print frames, .sf files, or folders of either (a store, too).
    Print {
        /// One flat JSON object a line instead of a table.
        #[arg(long)]
        json: bool,
        /// Only what processes did with this in their path, arguments or script.
        #[arg(long, value_name = "TEXT")]
        process: Option<String>,
        /// Only what goes on at this time or later: 2026-11-24T23:40:00Z, or Unix time.
        #[arg(long, value_name = "TIME", value_parser = print::moment, allow_negative_numbers = true)]
        since: Option<i64>,
        /// Only what began before this time.
        #[arg(long, value_name = "TIME", value_parser = print::moment, allow_negative_numbers = true)]
        until: Option<i64>,
        /// Only these kinds of records; again or with commas for more.
        #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = print::KINDS, ignore_case = true)]
        kinds: Vec<String>,
        /// What to print, one after the other.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Say of each run whether everything that was observed is accounted for, and what is missing.
    Ledger {
        /// One JSON object a line instead of tables.
        #[arg(long)]
        json: bool,
        /// Believe only signatures by certificates of the CAs in this file (PEM), and miss those
        /// that are not there.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Frames, or folders of them (a store, too).
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Write one .sf file of frames, and say what it leaves out.
    Export {
        /// The file to write.
        #[arg(long, value_name = "OUT")]
        sf: PathBuf,
        /// Frames, .sf files, or folders of either.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    logger::start();
    let command = match CommandLine::try_parse() {
        Ok(line) => line.command,
        Err(error) => {
            // Help and version are errors to the parser, and go to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match command {
        Command::Serve { config } => serve(&config),
        Command::Print { json, process, since, until, kinds, paths } => {
            let filter = Filter { process, since_ns: since, until_ns: until, kinds };
            let mut out = BufWriter::new(io::stdout().lock());
            ended(print::print(&paths, Format::of(json), filter, &mut out))
        }
        Command::Ledger { json, ca, paths } => {
            let certificates = match ca.as_deref().map(Certificates::of_authority).transpose() {
                Ok(certificates) => certificates.unwrap_or_default(),
                Err(error) => {
                    log::error!("{error}");
                    return ExitCode::from(EXIT_NO_INPUT);
                }
            };
            let mut out = BufWriter::new(io::stdout().lock());
            ended(ledger::print(&paths, certificates, Format::of(json), &mut out))
        }
        Command::Export { sf, paths } => {
            ended(print::export(&sf, &paths, &mut io::stdout().lock()))
        }
    }
}

fn serve(path: &std::path::Path) -> ExitCode {
    let result = match Config::load(path) {
        Ok(config) => serve::serve(path, config),
        Err(error) => Err(StartError::Config(error.to_string())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config(text)) => {
            log::error!("{text}");
            ExitCode::from(EXIT_CONFIG)
        }
        Err(StartError::Io(error)) => {
            log::error!("start: {error}");
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

fn ended(result: io::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Whole) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(EXIT_DATA),
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            let is_missing = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput);
            ExitCode::from(if is_missing { EXIT_NO_INPUT } else { EXIT_INTERNAL })
        }
    }
}
