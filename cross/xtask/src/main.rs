//! Entry point of `cargo xtask`: reads the verb and its options.

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, ValueExt};
use xtask::Result;
use xtask::campaign::{self, Campaign};
use xtask::{
    btf, build, check, crates, cross, deb, demo, image, mutations, pki, reproduce, sbom, setup,
    suite, targets, vm,
};

const HELP: &str = "\
cargo xtask VERB

  demo    install what is missing, build, and show the agent and the collector at work on
          this machine's kernel (needs root); leaves everything in target/demo/
  test    install what is missing, build, and run every test that this machine can run
  check   formatting, lints, documentation, and the rules of the tree
  build TARGET
          the agent for a device: TARGET is one of cross/targets.toml. Fails if it is larger than
          its budget. Beside it lie a list (CycloneDX) of what it is made of, and the licences
          and notices of those parts
  cross TARGET [--mirror URL]
          the same as an image builder gets it, by `cross build` in the image for it; for ARM.
          No list lies beside it
  image [--mirror URL]
          the container image in which `cross` builds (Cross.toml), of Debian's packages from this
          mirror or from where this machine has its own; by docker or podman
          (CROSS_CONTAINER_ENGINE)
  deb TARGET [PACKAGE]...
          the agent, or the packages that are named (agent, collector), as Debian packages for a
          static target, each with a list (CycloneDX) of what it is made of and the notices of
          those parts, into target/packages/. DEBFULLNAME and DEBEMAIL name their maintainer
  btf TARGET KERNEL OUT
          of a kernel's types those that the agent for TARGET needs, as a BTF file for
          /usr/lib/sysflow/btf/<kernel release>.btf: KERNEL is a vmlinux, a kernel image or a
          BTF file
  vm [--agent FILE] [NAME]...
          boot kernels of tests/kernels.toml (all, or those named) with the agent that was
          built for them, and compare what it records with what workloads did; where the table
          says so, suites of tests/e2e run in the guest too. Names of suites choose those alone
            --agent FILE  an agent that was built otherwise, for all of the kernels named
  faults [--runs N] [--seed S]
          agent and collector under randomised faults (kills, cuts, stalls, full, failing and
          vanishing disks, rotten bits, clocks, certificates): N runs (20), each drawn from its own
          seed, from S (1) on; of 20 and more each kind of fault must show
  bounds [--count N] [--budget BYTES]
          the agent's memory, in a control group with room for its budget (8 MiB), its code and
          2 MiB more, while programs flood the machine: the quickest does N acts (20000)
  soak [--seconds N]
          the agent under as much as it takes in without a loss, for N seconds (24): memory,
          descriptors and spool must not grow
  allocations [--events N] [--seconds N]
          the agent's path of events takes no memory after its start: N recorded events (10000000)
          go through it, then what a program does in N seconds (60; needs root)
  mutations [--count N] [--seed S]
          takes one of the statements that add to the ledger out of a copy of the tree, N times (3),
          each another, drawn from S (the time); a test must fail each time (needs root)
  reproduce [TARGET]...
          build the agent for these targets (or all) here and in another directory, and compare
          the bytes
  crates  write the list of crates that the Yocto recipe fetches anew, after Cargo.lock has changed
  setup   only install what is missing (needs root if anything is)
  pki DIR [--agent ID] [--san-id ID] [--host NAME_OR_IP]... [--days N] [--expired] [--as NAME]
          make a throw-away fleet CA in DIR with a certificate for a collector and one for an
          agent; a CA that is there already is used again
            --agent ID   id of the agent (gw-0001)
            --san-id ID  id in the certificate's SAN, if it is to differ from the name
            --host H     name or address of the collector (localhost, 127.0.0.1, ::1)
            --days N     how long the certificates are valid (90)
            --expired    the agent's certificate expired an hour ago
            --as NAME    call the agent's files NAME.pem and NAME.key (agent)
            --revoke FILE  issue nothing; put this certificate on the CA's list DIR/crl.pem
";

/// Exit code for a command line that is not understood (sysexits EX_USAGE).
const EXIT_USAGE: u8 = 64;

enum Verb {
    Demo,
    Test,
    Check,
    Build(String),
    Deb(String, Vec<deb::Package>),
    Btf(String, PathBuf, PathBuf),
    Cross(String, Option<String>),
    Image(Option<String>),
    Vm(Option<PathBuf>, Vec<String>),
    Campaign(Campaign),
    Allocations(Vec<(&'static str, u64)>),
    Mutations(Vec<(&'static str, u64)>),
    Reproduce(Vec<String>),
    Crates,
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
        "build" => Verb::Build(word(&mut parser, "build: TARGET")?.string()?),
        "deb" => {
            let target = word(&mut parser, "deb: TARGET")?.string()?;
            let packages = words(&mut parser)?;
            let packages: Result<Vec<_>> =
                packages.iter().map(|name| deb::Package::find(name)).collect();
            Verb::Deb(target, packages?)
        }
        "btf" => Verb::Btf(
            word(&mut parser, "btf: TARGET")?.string()?,
            word(&mut parser, "btf: KERNEL")?.into(),
            word(&mut parser, "btf: OUT")?.into(),
        ),
        "cross" => {
            let target = word(&mut parser, "cross: TARGET")?.string()?;
            return Ok(Verb::Cross(target, parse_mirror(&mut parser)?));
        }
        "image" => return Ok(Verb::Image(parse_mirror(&mut parser)?)),
        "vm" => return parse_vm(&mut parser),
        "faults" => return parse_campaign(&mut parser, "faults", &["runs", "seed"]),
        "bounds" => return parse_campaign(&mut parser, "bounds", &["count", "budget"]),
        "soak" => return parse_campaign(&mut parser, "soak", &["seconds"]),
        "allocations" => {
            let options = parse_numbers(&mut parser, &["events", "seconds"])?;
            return Ok(Verb::Allocations(options));
        }
        "mutations" => {
            return Ok(Verb::Mutations(parse_numbers(&mut parser, &["count", "seed"])?));
        }
        "reproduce" => Verb::Reproduce(words(&mut parser)?),
        "crates" => Verb::Crates,
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

/// The next word, which is called `name`.
fn word(parser: &mut lexopt::Parser, name: &str) -> Result<std::ffi::OsString> {
    match parser.next()? {
        Some(Arg::Value(value)) => Ok(value),
        Some(other) => Err(other.unexpected().into()),
        None => Err(format!("{name} is missing").into()),
    }
}

/// All words that are left.
fn words(parser: &mut lexopt::Parser) -> Result<Vec<String>> {
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(words)
}

/// The rest of a line that may name a mirror.
fn parse_mirror(parser: &mut lexopt::Parser) -> Result<Option<String>> {
    let mut mirror = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("mirror") => mirror = Some(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(mirror)
}

fn parse_vm(parser: &mut lexopt::Parser) -> Result<Verb> {
    let (mut agent, mut names) = (None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("agent") => agent = Some(parser.value()?.into()),
            Arg::Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Vm(agent, names))
}

/// The rest of the line of a campaign that takes these options.
fn parse_campaign(
    parser: &mut lexopt::Parser,
    test: &'static str,
    known: &[&'static str],
) -> Result<Verb> {
    Ok(Verb::Campaign(Campaign { test, options: parse_numbers(parser, known)? }))
}

/// The rest of a line of options, each with a number.
fn parse_numbers(
    parser: &mut lexopt::Parser,
    known: &[&'static str],
) -> Result<Vec<(&'static str, u64)>> {
    let mut options = Vec::new();
    while let Some(argument) = parser.next()? {
        let name = match &argument {
            Arg::Long(name) => known.iter().find(|known| *known == name).copied(),
            _ => None,
        };
        match name {
            Some(name) => options.push((name, parser.value()?.parse()?)),
            None => return Err(argument.unexpected().into()),
        }
    }
    Ok(options)
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
            Arg::Long("revoke") => options.revoked.push(parser.value()?.into()),
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
        Verb::Build(target) => {
            build::run(&target)?;
            for file in sbom::beside_agent(&targets::find(&target)?)? {
                println!("{}", file.display());
            }
            Ok(())
        }
        Verb::Deb(target, packages) if packages.is_empty() => {
            deb::run(&target, &[deb::Package::Agent]).map(|_| ())
        }
        Verb::Deb(target, packages) => deb::run(&target, &packages).map(|_| ()),
        Verb::Btf(target, kernel, out) => btf::run(&target, &kernel, &out),
        Verb::Cross(target, mirror) => cross::run(&target, mirror.as_deref()),
        Verb::Image(mirror) => image::run(mirror.as_deref()),
        Verb::Vm(agent, names) => vm::run(agent.as_deref(), &names),
        Verb::Campaign(campaign) => campaign::run(&campaign),
        Verb::Allocations(options) => campaign::allocations(&options),
        Verb::Mutations(options) => mutations::run(&options),
        Verb::Reproduce(targets) => reproduce::run(&targets),
        Verb::Crates => crates::run(),
        Verb::Setup => {
            setup::for_tests()?;
            setup::web_servers()?;
            setup::layer()?;
            setup::packaging()
        }
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
