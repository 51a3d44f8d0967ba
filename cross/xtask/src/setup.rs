//! Installs what building and testing need and this machine lacks.
//!
//! System packages come by apt, the reference suite's printer from PyPI into a virtual
//! environment below `target/`. What is there already is never installed again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::workspace::{self, root, say};

/// The reference suite's tools, in the version that the tests compare with.
const SYSFLOW_TOOLS: &str = "sysflow-tools==0.6.1";

/// How a machine shows that it has a package.
#[derive(Clone, Copy)]
enum Sign {
    /// A program that the shell would find.
    Program(&'static str),
    /// A header that the C compiler would find.
    Header(&'static str),
    /// A module that Python can import.
    PythonModule(&'static str),
}

/// A Debian package, how it shows, and what it is for.
struct Package {
    name: &'static str,
    sign: Sign,
    why: &'static str,
}

const PACKAGES: [Package; 12] = [
    Package {
        name: "clang",
        sign: Sign::Program("clang"),
        why: "compiles the programs that run in the kernel",
    },
    Package {
        name: "llvm",
        sign: Sign::Program("llvm-strip"),
        why: "takes debug information out of them",
    },
    Package { name: "gcc", sign: Sign::Program("cc"), why: "links, and compiles libbpf" },
    Package { name: "make", sign: Sign::Program("make"), why: "builds libbpf" },
    Package { name: "pkg-config", sign: Sign::Program("pkg-config"), why: "finds libelf and zlib" },
    Package { name: "libc6-dev", sign: Sign::Header("stdlib.h"), why: "the C library's headers" },
    Package { name: "libelf-dev", sign: Sign::Header("libelf.h"), why: "libbpf reads ELF" },
    Package { name: "zlib1g-dev", sign: Sign::Header("zlib.h"), why: "libelf needs it" },
    Package {
        name: "strace",
        sign: Sign::Program("strace"),
        why: "counts system calls independently of us",
    },
    Package {
        name: "openssl",
        sign: Sign::Program("openssl"),
        why: "makes the certificates of the agent's own tests",
    },
    Package {
        name: "python3-venv",
        sign: Sign::PythonModule("ensurepip"),
        why: "runs the reference suite's printer",
    },
    Package {
        name: "util-linux",
        sign: Sign::Program("unshare"),
        why: "gives a test its own mounts",
    },
];

/// The reference suite's printer, once [`run`] has been called.
pub fn sysprint() -> PathBuf {
    environment().join("bin/sysprint")
}

fn environment() -> PathBuf {
    root().join("target/venv")
}

/// Installs what is missing.
///
/// # Errors
/// If something is missing and cannot be installed: names it and the command that does it.
pub fn run() -> Result {
    install_packages()?;
    install_sysprint()
}

fn install_packages() -> Result {
    let missing: Vec<&Package> =
        PACKAGES.iter().filter(|package| !is_there(package.sign)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        say(&format!("missing: {} ({})", package.name, package.why));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if !rustix::process::geteuid().is_root() {
        return Err(format!("these need root to install: run `{by_hand}`").into());
    }
    if !is_there(Sign::Program("apt-get")) {
        let names = names.join(", ");
        return Err(format!("no apt-get here: install what Debian calls {names}").into());
    }
    say(&format!("installing by apt: {}", names.join(", ")));
    run_quietly(apt().args(["update"]))?;
    run_quietly(apt().args(["install", "-y", "--no-install-recommends"]).args(&names))?;
    match missing.iter().find(|package| !is_there(package.sign)) {
        None => Ok(()),
        Some(package) => {
            let name = package.name;
            Err(format!("{name} is installed but does not show: see `dpkg -L {name}`").into())
        }
    }
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_sysprint() -> Result {
    let marker = environment().join("installed");
    let is_installed = std::fs::read_to_string(&marker).is_ok_and(|text| text == SYSFLOW_TOOLS);
    if is_installed && sysprint().exists() {
        return Ok(());
    }
    say(&format!("installing {SYSFLOW_TOOLS} from PyPI into target/venv"));
    run_quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment()))?;
    run_quietly(
        Command::new(environment().join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .arg(SYSFLOW_TOOLS),
    )?;
    std::fs::write(&marker, SYSFLOW_TOOLS)?;
    Ok(())
}

/// Runs a command whose success needs no words.
fn run_quietly(command: &mut Command) -> Result {
    workspace::run(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

fn is_there(sign: Sign) -> bool {
    match sign {
        Sign::Program(name) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
        }
        Sign::Header(name) => {
            let folders = ["/usr/include", "/usr/local/include"];
            folders.iter().any(|folder| Path::new(folder).join(name).is_file())
        }
        Sign::PythonModule(name) => Command::new("python3")
            .args(["-c", &format!("import {name}, venv")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
    }
}
