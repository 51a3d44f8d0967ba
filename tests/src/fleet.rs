//! A throw-away fleet: its certificates, one collector and agents, all in one folder.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::Result;
use crate::machine::Machine;
use crate::program::Program;
use crate::wait::wait_for;

/// How long a program may take until it is ready: loading the probes is the slowest part.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Id of the agent that a fleet has from the start.
pub const AGENT_ID: &str = "gw-0001";

/// Certificates and folders of a fleet.
#[derive(Debug)]
pub struct Fleet<'m> {
    machine: &'m Machine,
    folder: TempDir,
    /// More lines of the section `[limits]` of its collectors.
    pub limits: String,
}

impl<'m> Fleet<'m> {
    /// Makes a fleet with a CA, a collector's certificate for the loopback and one for the
    /// agent [`AGENT_ID`].
    ///
    /// # Errors
    /// If the folder or the certificates cannot be made.
    pub fn new(machine: &'m Machine) -> Result<Fleet<'m>> {
        let fleet = Fleet { machine, folder: tempfile::tempdir()?, limits: String::new() };
        fleet.issue("pki", &["--agent", AGENT_ID])?;
        Ok(fleet)
    }

    /// Runs `pki` of the developer tool on a folder of this fleet, which is made if missing,
    /// and returns the folder.
    ///
    /// # Errors
    /// If the tool fails.
    pub fn issue(&self, folder: &str, options: &[&str]) -> Result<PathBuf> {
        let folder = self.path(folder);
        let output =
            Command::new(self.machine.tool()).arg("pki").arg(&folder).args(options).output()?;
        if output.status.success() {
            return Ok(folder);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("pki {} {}: {said}", folder.display(), options.join(" ")).into())
    }

    /// A path in the fleet's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The collector's store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Starts the collector on `address` (port 0 takes a free one).
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_collector(&self, address: &str) -> Result<Collector> {
        self.start_collector_with(address, &[])
    }

    /// Starts the collector with more in its environment.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_collector_with(
        &self,
        address: &str,
        environment: &[(OsString, OsString)],
    ) -> Result<Collector> {
        let config = self.path("pki/collector.toml");
        let text = format!(
            "[listen]\naddress = {address:?}\n\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"collector.pem\"\nkey = \"collector.key\"\n\n\
             [store]\ndirectory = {:?}\n\n\
             [limits]\nbody_bytes_max = {}\n{}",
            self.store(),
            Collector::BODY_BYTES_MAX,
            self.limits
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(self.machine.collector());
        command.arg("serve").arg("--config").arg(&config).envs(environment.iter().cloned());
        let mut program = Program::start("collector", &mut command, &self.path("logs"))?;
        let line = program.wait_for_line("listening on ", READY_DEADLINE)?;
        let address =
            line.rsplit(' ').next().and_then(|address| address.parse().ok()).ok_or_else(|| {
                format!("collector says {line:?}, expected an address at its end")
            })?;
        Ok(Collector { program, address })
    }

    /// Settings of an agent that delivers to `collector` soon and often.
    pub fn agent_settings(&self, name: &str, collector: SocketAddr) -> AgentSettings {
        AgentSettings {
            name: name.to_string(),
            url: format!("https://{collector}"),
            ca: self.path("pki/ca.pem"),
            certificate: self.path("pki/agent.pem"),
            key: self.path("pki/agent.key"),
            upload_interval_s: 1,
            bytes_per_day: 0,
            frame_age_max_s: 1,
            generation_records_max: 10_000,
            active_timeout_s: 30,
            budget_bytes: 48 << 20,
            flow_entries: None,
            ring_bytes: Some(16 << 20),
            spool: self.path(&format!("{name}/spool")),
            spool_bytes_max: 16 << 20,
            spool_sync: "interval".to_string(),
            sync_interval_s: None,
            write_bytes_per_day: 0,
            status: self.path(&format!("{name}/status.json")),
            environment: Vec::new(),
            wrapper: Vec::new(),
            ladder: "last_step = \"everything\"\n".to_string(),
            sections: String::new(),
        }
    }

    /// Starts an agent and waits until it watches the kernel.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_agent(&self, settings: &AgentSettings) -> Result<Agent> {
        let mut agent = self.launch_agent(settings)?;
        agent.wait_until("it watches the kernel", |status| status["ready"] == Value::Bool(true))?;
        Ok(agent)
    }

    /// Starts an agent without waiting for anything.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch_agent(&self, settings: &AgentSettings) -> Result<Agent> {
        let config = self.path(&format!("{}.toml", settings.name));
        std::fs::create_dir_all(&settings.spool)?;
        // A status of an earlier run must not be taken for this one's.
        if settings.status.exists() {
            std::fs::remove_file(&settings.status)?;
        }
        std::fs::write(&config, settings.text())?;
        let mut words = settings.wrapper.iter().cloned();
        let mut command = match words.next() {
            Some(program) => Command::new(program),
            None => Command::new(self.machine.agent()),
        };
        command.args(words);
        command.arg("run").arg("--config").arg(&config).envs(settings.environment.iter().cloned());
        let program = Program::start(&settings.name, &mut command, &self.path("logs"))?;
        Ok(Agent { program, status: settings.status.clone() })
    }

    /// Watches the machine from a moment before `work` to a moment after it, and returns what
    /// `print --json` says of the store then, and what the work gave.
    ///
    /// # Errors
    /// The work's own, or a program under test that does not do what it should.
    pub fn watch<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Vec<Value>, T)> {
        let mut collector = self.start_collector("127.0.0.1:0")?;
        let settings = self.agent_settings("agent", collector.address);
        let mut agent = self.start_agent(&settings)?;
        let done = work()?;
        // The agent delivers what it holds before it ends.
        agent.program.stop()?;
        collector.program.stop()?;
        Ok((self.print(&self.store())?, done))
    }

    /// The SysFlow files of the store, of all agents.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn sysflow_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for agent in std::fs::read_dir(self.store())? {
            let folder = agent?.path().join("sysflow");
            if folder.is_dir() {
                for file in std::fs::read_dir(folder)? {
                    files.push(file?.path());
                }
            }
        }
        files.retain(|file| file.extension().is_some_and(|ending| ending == "sf"));
        Ok(files)
    }

    /// What `print --json` says of the store, one object for each line.
    ///
    /// # Errors
    /// If the collector's `print` fails or prints anything but JSON.
    pub fn print(&self, path: &Path) -> Result<Vec<Value>> {
        let output =
            Command::new(self.machine.collector()).args(["print", "--json"]).arg(path).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("print --json {}: {said}", path.display()).into());
        }
        crate::records::parse(&String::from_utf8(output.stdout)?)
    }

    /// What `ledger --json` says of the store, one object for each line, and its exit status.
    ///
    /// # Errors
    /// If the collector's `ledger` cannot be run or prints anything but JSON.
    pub fn ledger(&self) -> Result<(Option<i32>, Vec<Value>)> {
        self.ledger_with(&[])
    }

    /// The same with more options.
    ///
    /// # Errors
    /// As [`Fleet::ledger`].
    pub fn ledger_with(&self, options: &[&OsStr]) -> Result<(Option<i32>, Vec<Value>)> {
        let output = Command::new(self.machine.collector())
            .args(["ledger", "--json"])
            .args(options)
            .arg(self.store())
            .output()?;
        let lines = crate::records::parse(&String::from_utf8(output.stdout)?)?;
        Ok((output.status.code(), lines))
    }
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    /// The program.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Collector {
    /// Largest body that it takes in tests, bytes.
    pub const BODY_BYTES_MAX: usize = 2 << 20;
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// The program.
    pub program: Program,
    status: PathBuf,
}

impl Agent {
    /// Its status file; `Null` while there is none.
    ///
    /// # Errors
    /// If the file is there and is not JSON.
    pub fn status(&self) -> Result<Value> {
        match std::fs::read(&self.status) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
            Err(e) => Err(format!("read {}: {e}", self.status.display()).into()),
        }
    }

    /// Waits until its status satisfies `condition`.
    ///
    /// # Errors
    /// If it ends first or takes too long: both with its log.
    pub fn wait_until(&mut self, what: &str, condition: impl Fn(&Value) -> bool) -> Result {
        let found = wait_for(&format!("the agent: {what}"), READY_DEADLINE, || {
            if !self.program.is_running()? {
                return Err("the agent has ended".into());
            }
            Ok(condition(&self.status()?).then_some(()))
        });
        found.map_err(|e| {
            format!("{e}; its log:\n{}", self.program.log().unwrap_or_default()).into()
        })
    }
}

/// The settings of an agent that tests vary; all others have their defaults.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct AgentSettings {
    pub name: String,
    pub url: String,
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub upload_interval_s: u64,
    pub bytes_per_day: u64,
    pub frame_age_max_s: u64,
    pub generation_records_max: u32,
    pub active_timeout_s: u64,
    pub budget_bytes: u64,
    /// Absent: by the budget.
    pub flow_entries: Option<u32>,
    /// Absent: by the budget.
    pub ring_bytes: Option<u32>,
    pub spool: PathBuf,
    pub spool_bytes_max: u64,
    pub spool_sync: String,
    /// Absent: the agent's own choice.
    pub sync_interval_s: Option<u32>,
    pub write_bytes_per_day: u64,
    pub status: PathBuf,
    pub environment: Vec<(OsString, OsString)>,
    /// A command line that runs the agent, up to and with the agent's own path; empty: the agent
    /// is run as it is.
    pub wrapper: Vec<OsString>,
    /// The section `[ladder]`, as text; by default no step is taken, so that all is told.
    pub ladder: String,
    /// More sections of the configuration file, as text.
    pub sections: String,
}

impl AgentSettings {
    /// The configuration file. The spool has what it is given, however full this machine's disk is.
    pub fn text(&self) -> String {
        let chosen = |key, value: Option<u32>| {
            value.map_or_else(String::new, |value| format!("{key} = {value}\n"))
        };
        format!(
            "[collector]\nurl = {:?}\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
             upload_interval_s = {}\nbytes_per_day = {}\n\n\
             [spool]\ndirectory = {:?}\nbytes_max = {}\nfree_percent = 0\nsync = {:?}\n{}\
             write_bytes_per_day = {}\n\n\
             [flows]\nactive_timeout_s = {}\n\n\
             [frames]\nage_max_s = {}\nvolume_age_max_s = {}\n\
             generation_records_max = {}\n\n\
             [kernel]\n{}{}\n\
             [memory]\nbudget_bytes = {}\n\n\
             [status]\nfile = {:?}\n\n[ladder]\n{}\n{}",
            self.url,
            self.ca,
            self.certificate,
            self.key,
            self.upload_interval_s,
            self.bytes_per_day,
            self.spool,
            self.spool_bytes_max,
            self.spool_sync,
            chosen("sync_interval_s", self.sync_interval_s),
            self.write_bytes_per_day,
            self.active_timeout_s,
            self.frame_age_max_s,
            self.frame_age_max_s,
            self.generation_records_max,
            chosen("ring_bytes", self.ring_bytes),
            chosen("flow_entries", self.flow_entries),
            self.budget_bytes,
            self.status,
            self.ladder,
            self.sections,
        )
    }
}
