//! Entry point of `cargo xtask`: reads the verb and its options.

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, ValueExt};
use xtask::Result;
use xtask::{build, check, demo, pki, setup, suite};

const HELP: &str = "\
cargo xtask VERB

  demo    install what is missing, build, and show the agent and the collector at work on
          this machine's kernel (needs root); leaves everything in target/demo/
  test    install what is missing, build, and run every test that this machine can run
  check   formatting, lints, documentation, and the rules of the tree
  build TARGET
          the agent for a device: TARGET is one of cross/targets.toml. Fails if it is larger than
          its budget
  setup   only install what is missing (needs root if anything is)
  pki DIR [--agent ID] [--san-id ID] [--host NAME_OR_IP]... [--days N] [--expired] [--as NAME]
          make a throw-away fleet CA in DIR with a certificate for a collector and one for an
          agent; a CA that is there already is used again
            --agent ID   id of the agent (gw-0001)
            --san-id ID  id in the certificate's SAN, if it is to differ from the name
            --host H     name or address of the collector (localhost, 127.0.0.1, ::1)
            --days N     how long the certificates are valid (30)
            --expired    the agent's certificate expired an hour ago
            --as NAME    call the agent's files NAME.pem and NAME.key (agent)
";

/// Exit code for a command line that is not understood (sysexits EX_USAGE).
const EXIT_USAGE: u8 = 64;

enum Verb {
    Demo,
    Test,
    Check,
    Build(String),
    Setup,
    Pki(PathBuf, pki::Options),
    Help,
}

fn parse() -> Result<Verb> {
    let mut parser = lexopt::Parser::from_env();
    let verb = match parser.next()? {
        None => return Err("no verb given".into()),
        Some(Arg::Long("help") | Arg::Short('h')) => return Ok(Verb::Help),
        Some(Arg::Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    let verb = match verb.as_str() {
        "demo" => Verb::Demo,
        "test" => Verb::Test,
        "check" => Verb::Check,
        "build" => {
            let target = parser.value().map_err(|_| "build: TARGET is missing")?.string()?;
            Verb::Build(target)
        }
        "setup" => Verb::Setup,
        "help" => Verb::Help,
        "pki" => {
            let (directory, options) = parse_pki(&mut parser)?;
            return Ok(Verb::Pki(directory, options));
        }
        other => return Err(format!("{other:?} is not a verb").into()),
    };
    match parser.next()? {
        None => Ok(verb),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn parse_pki(parser: &mut lexopt::Parser) -> Result<(PathBuf, pki::Options)> {
    let mut options = pki::Options::default();
    let mut directory = None;
    let mut hosts = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("agent") => options.agent_id = parser.value()?.string()?,
            Arg::Long("san-id") => options.san_id = Some(parser.value()?.string()?),
            Arg::Long("host") => hosts.push(parser.value()?.string()?),
            Arg::Long("days") => options.days = parser.value()?.parse()?,
            Arg::Long("expired") => options.is_expired = true,
            Arg::Long("as") => options.file_stem = parser.value()?.string()?,
            Arg::Value(value) if directory.is_none() => directory = Some(value.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    if !hosts.is_empty() {
        options.hosts = hosts;
    }
    Ok((directory.ok_or("pki: DIR is missing")?, options))
}

fn run(verb: Verb) -> Result {
    match verb {
        Verb::Demo => demo::run(),
        Verb::Test => suite::run(),
        Verb::Check => check::run(),
        Verb::Build(target) => build::run(&target),
        Verb::Setup => setup::run(),
        Verb::Pki(directory, options) => pki::make(&directory, &options),
        Verb::Help => {
            print!("{HELP}");
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    let verb = match parse() {
        Ok(verb) => verb,
        Err(error) => {
            eprintln!("cargo xtask: {error}\n\n{HELP}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
