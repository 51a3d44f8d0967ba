//! `sysflow-agent`: the command line, and nothing else.

use std::process::ExitCode;

use agent::arguments::{Command, HELP};
use agent::config::Config;
use agent::pipeline::{self, Settings};
use agent::status::Status;

fn main() -> ExitCode {
    agent::logger::start();
    match agent::arguments::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            println!("sysflow-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Command::Capture { duration, out }) => {
            finish(pipeline::capture(&Settings::default(), duration, &out))
        }
        Ok(Command::Run { config }) => match Config::load(&config) {
            Ok(config) => finish(pipeline::run(&config)),
            Err(error) => misconfigured(&error),
        },
        Ok(Command::Check { config }) => match Config::load(&config) {
            Ok(config) => agent::check::report(&config),
            Err(error) => misconfigured(&error),
        },
        Ok(Command::Status { config }) => match Config::load(&config) {
            Ok(config) => match Status::print(&config.status.file) {
                Ok(text) => {
                    println!("{text}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!(
                        "sysflow-agent: {}: {error} (is the agent running?)",
                        config.status.file.display()
                    );
                    ExitCode::from(70)
                }
            },
            Err(error) => misconfigured(&error),
        },
        Err(error) => {
            eprintln!("sysflow-agent: {error}");
            ExitCode::from(64)
        }
    }
}

fn misconfigured(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("sysflow-agent: {error}");
    ExitCode::from(78)
}

fn finish(result: Result<(), pipeline::Error>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    log::error!("{text}");
    ExitCode::from(error.exit_code())
}
