//! What keeps the agent from working on this machine, found before it starts.
//!
//! Each look gives one [`Finding`]; a problem in one place does not hide the others. It
//! changes nothing on the machine, takes no lock and opens no connection. The kernel's
//! findings come from the probes and are added by the caller.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access, statvfs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage};

use bpf::Probes;

use crate::budget::{self, Division};
use crate::config::{Config, ConfigError, Spool};
use crate::pipeline::Settings;
use crate::spool;
use crate::tls::clock::Clock;
use crate::tls::seal_key::SealKey;
use crate::tls::{self, Files, SetupError};
use crate::wear::STATE_BYTES_PER_DAY;

/// Exit code: nothing is in the way.
pub const EXIT_GOOD: u8 = 0;
/// Exit code: a permission is missing.
pub const EXIT_PERMISSION: u8 = 77;
/// Exit code: configuration or environment must be changed.
pub const EXIT_CONFIGURATION: u8 = 78;

/// Days before its end from which on a certificate is worth a warning.
const DAYS_LEFT_WARN: i64 = 30;
/// Mode bits by which others than owner and group get at a file.
const MODE_OTHERS: u32 = 0o007;
/// Mode bits by which others than the owner change a file.
const MODE_CHANGE: u32 = 0o022;

/// What an upload takes at most beside its body, bytes: buffers of TLS and HTTP, certificates,
/// the collector's answer.
const TLS_BYTES: usize = 768 * 1024;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// The agent works, but not for long, or not as well as it could.
    Warning,
    /// The agent does not work.
    Problem,
    /// The agent does not work for want of a permission.
    Denied,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do; empty where there is nothing to do.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn good(subject: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding::new(Level::Good, subject, text, "")
    }

    /// What was found, and what to do.
    pub fn new(
        level: Level,
        subject: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { level, subject: subject.into(), text: text.into(), remedy: remedy.into() }
    }

    fn of_io(subject: String, error: &io::Error, remedy: &str) -> Finding {
        let level = match error.kind() {
            io::ErrorKind::PermissionDenied => Level::Denied,
            _ => Level::Problem,
        };
        Finding::new(level, subject, error.to_string(), remedy)
    }

    fn of_setup(error: SetupError) -> Finding {
        match error {
            SetupError::Read { file, source } => {
                let remedy = "provide the file, readable for the agent's user";
                Finding::of_io(file.display().to_string(), &source, remedy)
            }
            SetupError::Contents { file, text } => {
                Finding::new(Level::Problem, file.display().to_string(), text, "replace the file")
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            Level::Good => "good   ",
            Level::Warning => "WARNING",
            Level::Problem => "PROBLEM",
            Level::Denied => "DENIED ",
        };
        write!(f, "{mark} {}: {}", self.subject, self.text)?;
        if !self.remedy.is_empty() {
            write!(f, " -> {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The exit code that follows from findings.
pub fn exit_code(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.level).max() {
        Some(Level::Denied) => EXIT_PERMISSION,
        Some(Level::Problem) => EXIT_CONFIGURATION,
        _ => EXIT_GOOD,
    }
}

/// Looks at the configuration file. The configuration comes back if it can be used.
pub fn configuration(file: &Path) -> (Option<Config>, Vec<Finding>) {
    let subject = file.display().to_string();
    match Config::load(file) {
        Ok(config) => (Some(config), vec![Finding::good(subject, "all keys are valid")]),
        Err(ConfigError::Read { source, .. }) => (
            None,
            vec![Finding::of_io(subject, &source, "provide the file, or give --config FILE")],
        ),
        Err(ConfigError::Invalid { problems, .. }) => {
            let finding = |problem: crate::config::Problem| {
                let subject = match problem.line {
                    Some(line) => format!("{subject}:{line}"),
                    None => subject.clone(),
                };
                Finding::new(Level::Problem, subject, problem.text, "correct the file")
            };
            (None, problems.into_iter().map(finding).collect())
        }
    }
}

/// Looks at everything that the configuration names, the kernel apart.
pub fn environment(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let files = Files::from(&config.collector);
    credentials(&files, config, &mut findings);
    spool(config, &mut findings);
    directory("status.file", config.status.file.parent(), &mut findings);
    // It is not opened: a pipe in its place would be waited for.
    if let Some(btf) = &config.kernel.btf
        && let Err(error) = fs::metadata(btf)
    {
        let remedy = "provide the file, or leave kernel.btf empty";
        findings.push(Finding::of_io(btf.display().to_string(), &error, remedy));
    }
    findings
}

/// Looks at what the memory budget gives to what. The division comes back if it works.
pub fn memory(config: &Config) -> (Option<Division>, Vec<Finding>) {
    let budget = config.memory.budget_bytes;
    let subject = "memory.budget_bytes";
    let divided = match bpf::processors() {
        Ok(processors) => budget::divide(config, processors),
        Err(error) => {
            let text = error.to_string();
            return (None, vec![Finding::new(Level::Problem, subject, text, "mount /sys")]);
        }
    };
    match divided {
        Ok(division) => {
            let Division { ring_bytes, flow_entries, processes_max, text_bytes, .. } = division;
            let mut findings = vec![Finding::good(
                subject,
                format!(
                    "{} of {budget} bytes: a ring of {ring_bytes} bytes, {flow_entries} flows, {processes_max} processes, {text_bytes} bytes of texts",
                    division.bytes()
                ),
            )];
            findings.extend(
                division.parts.iter().map(|part| {
                    Finding::good("memory", format!("{:>8} {}", part.bytes, part.name))
                }),
            );
            findings.extend([
                Finding::good("memory beside the budget", format!("{:>8} code", code_bytes())),
                Finding::good("memory beside the budget", format!("{TLS_BYTES:>8} TLS, at most")),
            ]);
            (Some(division), findings)
        }
        Err(too_small) => {
            let text = too_small.to_string();
            let text = text.strip_prefix("memory.budget_bytes = ").unwrap_or(&text);
            let remedy = "give more, or less to what is named";
            (None, vec![Finding::new(Level::Problem, subject, text, remedy)])
        }
    }
}

/// Bytes of the program's file: its code and constants are in memory as far as they are used.
fn code_bytes() -> u64 {
    fs::metadata("/proc/self/exe").map_or(0, |file| file.len())
}

/// Loads and attaches the probes, looks at what the kernel let them do, and takes them away.
pub fn kernel(settings: &Settings) -> Vec<Finding> {
    const OF_THIS_KERNEL: &str = "give a BTF file of this very kernel, made with `cargo xtask btf`, \
                                  or none where the kernel has its own types";
    let has_file = bpf::Types::find(settings.bounds.btf.as_deref()).file().is_some();
    let probes = match Probes::load(&settings.bounds) {
        Ok(probes) => probes,
        Err(error) => {
            let (level, remedy) = match error {
                bpf::Error::NotPermitted => {
                    (Level::Denied, "run as root, or with CAP_BPF and CAP_PERFMON")
                }
                bpf::Error::TypesUnreadable(..) | bpf::Error::WrongTypes(..) => {
                    (Level::Problem, OF_THIS_KERNEL)
                }
                // With a file, that is the first suspect.
                bpf::Error::Refused(..) if has_file => (Level::Problem, OF_THIS_KERNEL),
                _ => (Level::Problem, "Linux 5.10 or later is needed, with CONFIG_DEBUG_INFO_BTF"),
            };
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            return vec![Finding::new(level, "kernel", text, remedy)];
        }
    };
    let mut findings = vec![Finding::good("kernel: types", probes.types().to_string())];
    findings.extend(
        probes
            .attached()
            .iter()
            .map(|hook| Finding::good(format!("kernel: {}", hook.name()), "can be attached")),
    );
    findings.extend(probes.missing().iter().map(|(hook, why)| {
        let subject = format!("kernel: {}", hook.name());
        let remedy = format!("enable {}", hook.option());
        Finding::new(Level::Warning, subject, why.as_str(), remedy)
    }));
    if !probes.is_jited() {
        let remedy = "enable CONFIG_BPF_JIT, and set net.core.bpf_jit_enable to 1";
        findings.push(Finding::new(Level::Warning, "kernel", "probes are interpreted", remedy));
    }
    findings
}

fn credentials(files: &Files, config: &Config, findings: &mut Vec<Finding>) {
    modes(&files.key, MODE_OTHERS | MODE_CHANGE, "chmod 640, or 600", findings);
    modes(&files.certificate, MODE_CHANGE, "chmod 644", findings);
    modes(&files.ca, MODE_CHANGE, "chmod 644", findings);

    let mut read = |error: SetupError| findings.push(Finding::of_setup(error));
    let roots = tls::roots(&files.ca).map_err(&mut read).ok();
    let chain = tls::certificates(&files.certificate).map_err(&mut read).ok();
    let key = tls::key(&files.key).map_err(&mut read).ok();
    if roots.is_some() {
        findings.push(Finding::good(files.ca.display().to_string(), "holds the fleet's CA"));
    }
    let Some(chain) = chain else { return };
    let now = Clock::peek(config.state_directory()).now_s();
    certificate(files, config, &chain, now, findings);
    if let Some(key) = key {
        if SealKey::of(&key).is_none() {
            let remedy = "issue one with a key of P-256, P-384 or Ed25519";
            let subject = files.key.display().to_string();
            findings.push(Finding::new(Level::Warning, subject, "signs no seals", remedy));
        }
        let pair = CertifiedKey::from_der(chain.clone(), key, &tls::provider());
        findings.push(match pair {
            Ok(_) => {
                Finding::good(files.key.display().to_string(), "is the key of the certificate")
            }
            Err(error) => Finding::of_setup(tls::pair_error(files, &error)),
        });
    }
    if let Some(roots) = roots {
        findings.push(signature(files, roots, &chain, now));
    }
}

/// Who the certificate is for, and for how long.
fn certificate(
    files: &Files,
    config: &Config,
    chain: &[CertificateDer<'_>],
    now: u64,
    findings: &mut Vec<Finding>,
) {
    let file = &files.certificate;
    let subject = file.display().to_string();
    let leaf = match tls::leaf(file, chain) {
        Ok(leaf) => leaf,
        Err(error) => return findings.push(Finding::of_setup(error)),
    };
    findings.push(match tls::identity(file, &leaf, config.agent.id.as_deref()) {
        Ok(id) => Finding::good(&subject, format!("is for agent {id:?}")),
        Err(error) => Finding::of_setup(error),
    });
    let days = leaf.days_left(now);
    let remedy = "renew it; the agent takes the new file without a restart";
    findings.push(if now < leaf.not_before {
        let text = format!("is not valid before Unix time {}, now is {now}", leaf.not_before);
        Finding::new(Level::Problem, subject, text, "set the clock of this machine")
    } else if now > leaf.not_after {
        let hours = (now - leaf.not_after) / 3600;
        let (count, unit) = if hours < 24 { (hours, "hours") } else { (hours / 24, "days") };
        let expired = format!("expired {count} {unit} ago");
        Finding::new(Level::Problem, subject, expired, remedy)
    } else if days < DAYS_LEFT_WARN {
        Finding::new(Level::Warning, subject, format!("{days} days left"), remedy)
    } else {
        Finding::good(subject, format!("{days} days left"))
    });
}

/// Whether the fleet's CA signed the certificate, for use as a client's. Time is not asked:
/// it has a finding of its own.
fn signature(
    files: &Files,
    roots: rustls::RootCertStore,
    chain: &[CertificateDer<'_>],
    now: u64,
) -> Finding {
    let subject = files.certificate.display().to_string();
    let ca = files.ca.display();
    let remedy = format!("have it signed by the CA in {ca}, for client authentication");
    let Some((first, between)) = chain.split_first() else {
        return Finding::new(Level::Problem, subject, "is empty", remedy);
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let algorithms = tls::provider().signature_verification_algorithms.all;
    let verified = EndEntityCert::try_from(first).and_then(|leaf| {
        let usage = KeyUsage::client_auth();
        leaf.verify_for_usage(algorithms, &roots.roots, between, now, usage, None, None).map(drop)
    });
    match verified {
        Ok(()) => Finding::good(subject, format!("is signed by the CA in {ca}")),
        Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => {
            Finding::new(
                Level::Problem,
                subject,
                format!("or a certificate between it and the CA in {ca} is not valid at this time"),
                "renew them, or set the clock of this machine",
            )
        }
        Err(webpki::Error::UnknownIssuer) => Finding::new(
            Level::Problem,
            subject,
            format!("is not signed by the CA in {ca}"),
            remedy,
        ),
        Err(webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension) => {
            Finding::new(Level::Problem, subject, "is not for client authentication", remedy)
        }
        Err(error) => Finding::new(Level::Problem, subject, error.to_string(), remedy),
    }
}

fn modes(file: &PathBuf, mask: u32, remedy: &str, findings: &mut Vec<Finding>) {
    // What cannot be read has a finding when it is read.
    let Ok(metadata) = fs::metadata(file) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & mask == 0 {
        return;
    }
    let subject = file.display().to_string();
    let text = format!("mode {mode:o} lets others at it");
    findings.push(Finding::new(Level::Problem, subject, text, remedy));
}

/// What the day's bytes for flash mean, where there is a limit.
fn wear(config: &Config, findings: &mut Vec<Finding>) {
    let Spool { write_bytes_per_day, memory_bytes, .. } = config.spool;
    if write_bytes_per_day > 0 {
        let text = format!(
            "{write_bytes_per_day} bytes a day, a quarter of them kept for urgent frames; beyond \
             that frames wait in memory, {memory_bytes} bytes of them, and what has no place is \
             dropped and named; state files go on, at most {STATE_BYTES_PER_DAY} bytes a day"
        );
        findings.push(Finding::good("spool.write_bytes_per_day", text));
    }
}

fn spool(config: &Config, findings: &mut Vec<Finding>) {
    wear(config, findings);
    let wanted = config.spool.bytes_max;
    let spool = &config.spool.directory;
    let found = directory("spool.directory", Some(spool), findings);
    let Some(existing) = found else { return };
    let subject = spool.display().to_string();
    match statvfs(&existing) {
        Ok(space) => {
            let used: u64 = fs::read_dir(spool)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.path().extension().is_some_and(|e| e == spool::EXTENSION))
                .fold(0, |sum, e| sum + e.metadata().map_or(0, |metadata| metadata.len()));
            let percent = config.spool.free_percent;
            let share = spool::share(&space, used, percent);
            if share < wanted {
                findings.push(Finding::new(
                    Level::Warning,
                    subject,
                    format!(
                        "has room for {share} bytes where {percent} % of the file system stay \
                         free, spool.bytes_max = {wanted}"
                    ),
                    "make room, or lower spool.bytes_max or spool.free_percent",
                ));
            }
        }
        Err(error) => findings.push(Finding::of_io(subject, &error.into(), "mount it")),
    }
}

/// Whether the agent can write into a folder, or make it. Returns what exists of its path.
fn directory(name: &str, path: Option<&Path>, findings: &mut Vec<Finding>) -> Option<PathBuf> {
    let path = path?;
    let subject = format!("{} ({name})", path.display());
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    if !existing.is_dir() {
        let text = format!("{} is not a folder", existing.display());
        findings.push(Finding::new(Level::Problem, subject, text, "remove it, or name another"));
        return None;
    }
    let is_there = existing == path;
    match access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => {
            findings.push(Finding::good(subject, "can be written"));
            Some(existing.to_path_buf())
        }
        Err(error) => {
            let remedy = if is_there {
                format!("give the agent's user write access to {}", path.display())
            } else {
                format!("make {}, and give it to the agent's user", path.display())
            };
            findings.push(Finding::of_io(subject, &error.into(), &remedy));
            None
        }
    }
}
