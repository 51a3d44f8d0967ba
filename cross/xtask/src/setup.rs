//! Installs what building and testing need and this machine lacks.
//!
//! System packages come by apt, the reference suite's printer from PyPI into a virtual
//! environment below `target/`. What is there already is never installed again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::targets::{Target, Tools};
use crate::workspace::{self, root, say};

/// The reference suite's tools, in the version that the tests compare with.
const SYSFLOW_TOOLS: &str = "sysflow-tools==0.6.1";

/// What judges the Yocto layer: BitBake's parser, a linter with what it knows of the releases, and
/// the schema of kas.
const LAYER_TOOLS: [&str; 5] = [
    "bitbake-setup==2.19.0",
    "oelint-adv==9.11.2",
    "oelint-parser==8.13.2",
    "oelint-data==1.5.26",
    "kas==5.5",
];

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
#[derive(Clone, Copy)]
struct Package {
    name: &'static str,
    sign: Sign,
    why: &'static str,
}

/// What compiles for this machine and for devices.
const COMPILERS: [Package; 6] = [
    Package {
        name: "clang",
        sign: Sign::Program("clang"),
        why: "compiles the programs that run in the kernel",
    },
    Package {
        name: "llvm",
        sign: Sign::Program("llvm-objcopy"),
        why: "takes debug information out of them",
    },
    Package { name: "gcc", sign: Sign::Program("cc"), why: "links, and compiles libbpf" },
    Package { name: "make", sign: Sign::Program("make"), why: "builds libbpf" },
    Package { name: "pkg-config", sign: Sign::Program("pkg-config"), why: "finds libelf and zlib" },
    Package { name: "libc6-dev", sign: Sign::Header("stdlib.h"), why: "the C library's headers" },
];

/// What else building and testing on this machine needs.
const PACKAGES: [Package; 7] = [
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
        name: "git",
        sign: Sign::Program("git"),
        why: "lists the tree's files, tells its time",
    },
    Package {
        name: "util-linux",
        sign: Sign::Program("unshare"),
        why: "gives a test its own mounts",
    },
];

/// What the static libelf of a device's agent is built with.
const VENDORED: [Package; 7] = [
    Package { name: "autoconf", sign: Sign::Program("autoreconf"), why: "configures libelf" },
    Package { name: "automake", sign: Sign::Program("automake"), why: "configures libelf" },
    Package { name: "autopoint", sign: Sign::Program("autopoint"), why: "configures libelf" },
    Package { name: "libtool", sign: Sign::Program("libtoolize"), why: "configures libelf" },
    Package { name: "flex", sign: Sign::Program("flex"), why: "configures libelf" },
    Package { name: "bison", sign: Sign::Program("bison"), why: "configures libelf" },
    Package { name: "gawk", sign: Sign::Program("gawk"), why: "configures libelf" },
];

/// What boots other kernels.
const GUESTS: [Package; 3] = [
    Package {
        name: "qemu-system-arm",
        sign: Sign::Program("qemu-system-aarch64"),
        why: "runs ARM kernels",
    },
    Package {
        name: "qemu-system-x86",
        sign: Sign::Program("qemu-system-x86_64"),
        why: "runs other x86-64 kernels",
    },
    Package { name: "xz-utils", sign: Sign::Program("xz"), why: "unpacks kernel modules" },
];

/// What the tests put under load. Debian keeps Apache's programs in a package without a
/// service; nginx is not installed but unpacked, because its package starts one.
const WEB_SERVERS: [Package; 1] = [Package {
    name: "apache2-bin",
    sign: Sign::Program("apache2"),
    why: "a web server of three process models, for tests",
}];

/// What judges service units and scripts, and the agent's confinement.
const LAYER: [Package; 4] = [
    Package {
        name: "gdb",
        sign: Sign::Program("gdb"),
        why: "makes a running agent try what it must not be able to do",
    },
    Package {
        name: "systemd",
        sign: Sign::Program("systemd-analyze"),
        why: "judges the service units; nothing of it is started",
    },
    Package {
        name: "shellcheck",
        sign: Sign::Program("shellcheck"),
        why: "judges the init script",
    },
    Package {
        name: "busybox-static",
        sign: Sign::Program("busybox"),
        why: "runs the init script as small images do",
    },
];

/// What builds and runs an image for `cross`, where no engine of containers is; runc is the
/// runtime that gets on with any layout of control groups.
const CONTAINERS: [Package; 2] = [
    Package { name: "podman", sign: Sign::Program("podman"), why: "runs containers" },
    Package { name: "runc", sign: Sign::Program("runc"), why: "runs containers" },
];

/// What makes a bare Debian for such an image.
const BOOTSTRAP: [Package; 1] = [Package {
    name: "mmdebstrap",
    sign: Sign::Program("mmdebstrap"),
    why: "makes the Debian that the image begins with",
}];

/// What packages are tried with.
const PACKAGING: [Package; 4] = [
    Package {
        name: "debootstrap",
        sign: Sign::Program("debootstrap"),
        why: "makes a Debian to install our packages into, for tests",
    },
    Package {
        name: "lintian",
        sign: Sign::Program("lintian"),
        why: "judges our packages as Debian does",
    },
    Package { name: "zsh", sign: Sign::Program("zsh"), why: "reads its completions" },
    Package { name: "fish", sign: Sign::Program("fish"), why: "reads its completions" },
];

/// What makes type information smaller.
const BTF: [Package; 1] =
    [Package { name: "bpftool", sign: Sign::Program("bpftool"), why: "minimises BTF" }];

/// The reference suite's printer, once [`install_sysprint`] has been called.
pub fn sysprint() -> PathBuf {
    environment().join("bin/sysprint")
}

fn environment() -> PathBuf {
    root().join("target/venv")
}

/// Installs what building for this machine takes, and running here.
///
/// # Errors
/// If something is missing and cannot be installed: names it and the command that does it.
pub fn run() -> Result {
    install_packages(&COMPILERS)?;
    install_packages(&PACKAGES)
}

/// Installs the same, and the reference suite's printer, which tests hold against what we write.
///
/// # Errors
/// As [`run`].
pub fn for_tests() -> Result {
    run()?;
    install_sysprint()
}

/// Installs what a build for `target` needs.
///
/// # Errors
/// As [`run`].
pub fn cross(target: &Target) -> Result {
    install_packages(&COMPILERS)?;
    install_packages(&PACKAGES)?;
    install_packages(&VENDORED)?;
    let Tools::Gcc(gcc) = &target.tools else { return Ok(()) };
    if compiles(gcc) {
        return Ok(());
    }
    let names: Vec<&str> = target.packages.iter().map(String::as_str).collect();
    say(&format!("missing: {gcc} or its C library"));
    install_by_apt(&names)?;
    if compiles(gcc) {
        Ok(())
    } else {
        Err(format!("{gcc} cannot compile `#include <stdlib.h>`").into())
    }
}

/// The packages with which the agent is built for devices, whatever the target.
pub fn for_devices() -> Vec<&'static str> {
    COMPILERS.iter().chain(&VENDORED).map(|package| package.name).collect()
}

/// Installs an engine of containers.
///
/// # Errors
/// As [`run`].
pub fn podman() -> Result {
    install_packages(&CONTAINERS)
}

/// Installs what makes a bare Debian.
///
/// # Errors
/// As [`run`].
pub fn bootstrap() -> Result {
    install_packages(&BOOTSTRAP)
}

/// Installs what guests need.
///
/// # Errors
/// As [`run`].
pub fn guests() -> Result {
    install_packages(&GUESTS)
}

/// Installs what a minimised BTF is made with.
///
/// # Errors
/// As [`run`].
pub fn btf() -> Result {
    install_packages(&BTF)
}

/// Installs what judges the Yocto layer and the service units.
///
/// # Errors
/// As [`run`].
pub fn layer() -> Result {
    install_packages(&LAYER)?;
    python_environment(&layer_tools(), &LAYER_TOOLS)
}

/// Installs what packages are tried with.
///
/// # Errors
/// As [`run`].
pub fn packaging() -> Result {
    install_packages(&PACKAGING)
}

/// The Python environment that judges the layer, once [`layer`] has been called.
pub fn layer_tools() -> PathBuf {
    root().join("target/layer")
}

/// Installs what the tests put under load, and starts none of it.
///
/// # Errors
/// As [`run`]; and if nginx does not run.
pub fn web_servers() -> Result {
    install_packages(&WEB_SERVERS)?;
    let program = nginx();
    if !program.is_file() {
        say("missing: nginx (a web server, for tests): unpacking it, not installing");
        let folder = unpacked();
        std::fs::create_dir_all(&folder)?;
        run_quietly(apt().args(["update"]))?;
        let mut download = apt();
        // Otherwise apt warns that its own user cannot write here.
        download.args(["-o", "APT::Sandbox::User=root", "download", "nginx"]);
        run_quietly(download.current_dir(&folder))?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                run_quietly(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&folder))?;
                std::fs::remove_file(path)?;
            }
        }
    }
    let works = Command::new(&program).arg("-v").stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(format!("{} does not run: see `ldd` of it", program.display()).into())
}

/// The binary of nginx, once [`web_servers`] has been called: this machine's own, if it has one.
pub fn nginx() -> PathBuf {
    let own = Path::new("/usr/sbin/nginx");
    if own.is_file() { own.to_path_buf() } else { unpacked().join("usr/sbin/nginx") }
}

fn unpacked() -> PathBuf {
    root().join("target/nginx")
}

fn install_packages(packages: &[Package]) -> Result {
    let missing: Vec<&Package> =
        packages.iter().filter(|package| !is_there(package.sign)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        say(&format!("missing: {} ({})", package.name, package.why));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    install_by_apt(&names)?;
    match missing.iter().find(|package| !is_there(package.sign)) {
        None => Ok(()),
        Some(package) => {
            let name = package.name;
            Err(format!("{name} is installed but does not show: see `dpkg -L {name}`").into())
        }
    }
}

/// Whether a C compiler works and finds a C library.
fn compiles(compiler: &str) -> bool {
    Command::new(compiler)
        .args(["-include", "stdlib.h", "-E", "-x", "c", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn install_by_apt(names: &[&str]) -> Result {
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
    run_quietly(apt().args(["install", "-y", "--no-install-recommends"]).args(names))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Installs the reference suite's printer.
///
/// # Errors
/// If it cannot be had from PyPI.
pub fn install_sysprint() -> Result {
    python_environment(&environment(), &[SYSFLOW_TOOLS])
}

/// Makes a Python environment with these packages from PyPI, unless it is there and has them.
///
/// # Errors
/// If it cannot be made, or a package cannot be had.
pub fn python_environment(folder: &Path, packages: &[&str]) -> Result {
    // Another of these tools may be at it; it goes with the process.
    let parent = folder.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent)?;
    let lock = std::fs::File::create(folder.with_extension("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let marker = folder.join("installed");
    let wanted = packages.join(" ");
    if std::fs::read_to_string(&marker).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    let place = folder.strip_prefix(root()).unwrap_or(folder);
    say(&format!("installing {wanted} from PyPI into {}", place.display()));
    run_quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    run_quietly(
        Command::new(folder.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(packages),
    )?;
    std::fs::write(&marker, wanted)?;
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
            let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
            folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
            folders.iter().any(|folder| folder.join(name).is_file())
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
