//! What the tests stand on: a fleet's certificates, a running collector, a client that can
//! misbehave, and frames.

pub(crate) mod client;
pub(crate) mod frames;
pub(crate) mod pki;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use client::Client;
use pki::{Identity, Pki};

/// How long a condition is waited for. Far more than any takes, so that a busy machine does
/// not decide a test.
const DEADLINE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sysflow-collector");

/// Waits until `condition` gives a value.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// A folder with a fleet CA, a collector's configuration, and its store.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    pub(crate) pki: Pki,
}

impl Site {
    /// A site whose configuration ends in `extra`.
    pub(crate) fn new(extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new("fleet");
        let collector = pki.server();
        fs::write(folder.path().join("ca.pem"), pki.ca_pem()).unwrap();
        fs::write(folder.path().join("collector.pem"), &collector.certificate_pem).unwrap();
        fs::write(folder.path().join("collector.key"), &collector.key_pem).unwrap();
        let config = format!(
            "[listen]\naddress = '127.0.0.1:0'\n\
             [tls]\nca = 'ca.pem'\ncertificate = 'collector.pem'\nkey = 'collector.key'\n\
             [store]\ndirectory = 'store'\n{extra}"
        );
        fs::write(folder.path().join("collector.toml"), config).unwrap();
        Site { folder, pki }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Starts a collector and waits until it listens.
    pub(crate) fn start(&self) -> Collector<'_> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut child = Command::new(PROGRAM)
            .arg("serve")
            .arg("--config")
            .arg(self.folder.path().join("collector.toml"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| {
            panic!("collector said {line:?}: {}", fs::read_to_string(self.log_path()).unwrap())
        });
        Collector { site: self, address: address.parse().unwrap(), child }
    }

    /// What a collector says that does not start because of its configuration.
    pub(crate) fn does_not_start(&self) -> String {
        let config = self.path("collector.toml");
        let output = run(&["serve".as_ref(), "--config".as_ref(), config.as_ref()]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{told}");
        told
    }

    /// A file of the site.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the collectors of the site have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The names of all files below the store that end in `ending`, with their paths.
    pub(crate) fn stored(&self, ending: &str) -> Vec<PathBuf> {
        fn walk(folder: PathBuf, ending: &str, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(path, ending, found);
                } else if path.extension().is_some_and(|found| found == ending) {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.store(), ending, &mut found);
        found.sort();
        found
    }
}

/// A running collector; killed when dropped.
pub(crate) struct Collector<'s> {
    pub(crate) site: &'s Site,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Collector<'_> {
    /// A connection of an agent with a good certificate.
    pub(crate) fn connect(&self, agent: &str) -> Client {
        self.connect_as(Some(&self.site.pki.agent(agent)))
    }

    /// A connection with any certificate, or none.
    pub(crate) fn connect_as(&self, identity: Option<&Identity>) -> Client {
        Client::connect(self.address, &self.site.pki, identity)
    }

    /// The counters.
    pub(crate) fn health(&self) -> Value {
        self.connect("observer").get("/v1/health").json()
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that the process has had resident, bytes.
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let (name, pid) = (format!("-{name}"), self.pid().to_string());
        assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
    }

    /// Waits until the log has a line with all of `words`.
    pub(crate) fn logged(&self, words: &[&str]) -> String {
        until(&format!("a log line with {words:?}"), || {
            let log = self.site.log();
            let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
            log.lines().find(has_all).map(str::to_owned)
        })
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits for it to end well.
    pub(crate) fn terminate(mut self) {
        self.signal("TERM");
        let status = until("the collector to end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Collector<'_> {
    fn drop(&mut self) {
        // Already gone after `kill` and `terminate`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs one of the program's other commands.
pub(crate) fn run(arguments: &[&std::ffi::OsStr]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap()
}
