//! `sysflow-agent`: the command line, and nothing else.

use std::process::ExitCode;

use agent::arguments::{Command, HELP};
use agent::pipeline::{self, Settings};

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
            match pipeline::capture(&Settings::default(), duration, &out) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let mut text = error.to_string();
                    let mut source = std::error::Error::source(&error);
                    while let Some(cause) = source {
                        text.push_str(&format!(": {cause}"));
                        source = cause.source();
                    }
                    log::error!("{text}");
                    ExitCode::from(error.exit_code())
                }
            }
        }
        Ok(_) => ExitCode::from(64),
        Err(error) => {
            eprintln!("sysflow-agent: {error}");
            ExitCode::from(64)
        }
    }
}
