//! Why the kernel side does not run: each text names what is missing and what to switch on.
//! Of libbpf's own warnings the last ones are kept, bounded, and told with the refusal that
//! they explain.

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;

use libbpf_rs::ErrorKind;

use crate::types::{self, Types};

/// Why the kernel side does not run. The text names what is missing and what to switch on.
#[derive(Debug)]
pub enum Error {
    /// The kernel has no type information, and there is no file with them: the one that was
    /// looked for.
    NoTypes(PathBuf),
    /// The file with type information cannot be read.
    TypesUnreadable(Types, std::io::Error),
    /// The types are not the running kernel's: what they make the probes see wrongly.
    WrongTypes(Types, &'static str),
    /// Something that must be known of this machine is not.
    Unknown(&'static str, std::io::Error),
    /// The kernel has no BPF system call.
    NoBpf,
    /// The process may not load programs.
    NotPermitted,
    /// The kernel refused: what was tried, and its answer.
    Refused(String, libbpf_rs::Error),
    /// The object lacks a part: a build fault.
    Incomplete(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoTypes(wanted) => write!(
                f,
                "{}: kernel has no BTF (enable CONFIG_DEBUG_INFO_BTF, or provide {}, or name a \
                 BTF file of this kernel in kernel.btf; `cargo xtask btf` makes small ones)",
                types::KERNEL,
                wanted.display()
            ),
            Error::TypesUnreadable(types, _) => write!(f, "types of the kernel: {types}"),
            Error::WrongTypes(types, what) => write!(
                f,
                "types of the kernel: {types}: are not those of the running kernel: {what} is \
                 read wrongly with them (make them of this very kernel with `cargo xtask btf`, \
                 or take them away where the kernel has its own)"
            ),
            Error::Unknown(what, _) => f.write_str(what),
            Error::NoBpf => f.write_str(
                "loading probes: the kernel has no bpf system call (enable CONFIG_BPF_SYSCALL \
                 and CONFIG_BPF_EVENTS)",
            ),
            Error::NotPermitted => f.write_str(
                "loading probes: not permitted (run as root, or with CAP_BPF and CAP_PERFMON; \
                 kernel lockdown=confidentiality also forbids it)",
            ),
            Error::Refused(what, _) => write!(f, "{what}: the kernel refused"),
            Error::Incomplete(part) => write!(f, "the probe object has no {part}"),
        }
    }
}

impl Error {
    /// Whether a signal cut the attempt short, and another may succeed.
    pub(crate) fn is_interruption(&self) -> bool {
        let Error::Refused(_, error) = self else { return false };
        matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::TypesUnreadable(_, error) | Error::Unknown(_, error) => Some(error),
            Error::Refused(_, error) => Some(error),
            _ => None,
        }
    }
}

/// Makes an error of the kernel's answer to `what`.
pub(crate) fn refused(what: &'static str) -> impl Fn(libbpf_rs::Error) -> Error {
    move |error| match error.kind() {
        ErrorKind::PermissionDenied => Error::NotPermitted,
        ErrorKind::Unsupported => Error::NoBpf,
        _ => Error::Refused(format!("{what}{}", said()), error),
    }
}

/// Bytes of libbpf's last warnings that are kept for an error: the end of a verifier's log.
const SAID_BYTES_MAX: usize = 600;
/// The last warnings of libbpf.
static SAID: Mutex<String> = Mutex::new(String::new());

/// Keeps a warning of libbpf.
pub(crate) fn log_line(text: &str) {
    log::debug!("libbpf: {}", text.trim_end());
    let Ok(mut said) = SAID.lock() else { return };
    said.push_str(text);
    let mut start = said.len().saturating_sub(SAID_BYTES_MAX);
    while !said.is_char_boundary(start) {
        start += 1;
    }
    said.drain(..start);
}

/// What libbpf warned of last, in brackets, once; empty if nothing.
fn said() -> String {
    let said = SAID.lock().map(|mut said| std::mem::take(&mut *said)).unwrap_or_default();
    let words: Vec<&str> = said.split_whitespace().collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(" ")) }
}
