//! `cargo xtask demo`: the whole path at work on this machine's kernel.
//!
//! Builds what ships, makes a throw-away fleet, runs collector, agent and a workload, stops
//! them, and prints what the collector holds of the workload beside what the workload itself
//! says that it did. All files stay in `target/demo/` until the next run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::child::Background;
use crate::pki::{self, Options};
use crate::workspace::{self, Workspace, root, say};
use crate::{Result, setup};

const PROFILE: &str = "release";
/// Loading and attaching the probes is the slowest part of a start.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// An agent delivers what it holds before it ends.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Runs the demonstration.
///
/// # Errors
/// If anything cannot be built or run, or if something that the workload did is not among
/// the records.
pub fn run() -> Result {
    if !rustix::process::geteuid().is_root() {
        return Err("demo watches the kernel, which needs root: run it as root \
                    (sudo -E env \"PATH=$PATH\" cargo xtask demo)"
            .into());
    }
    setup::run()?;
    build()?;
    let place = Place::new()?;
    pki::make(&place.folder.join("pki"), &Options::default())?;
    say("starting the collector on the loopback");
    let mut collector = place.start_collector()?;
    let report = place.run(&mut collector);
    report.map_err(|error| format!("{error}\n{}", collector.tail()).into())
}

fn build() -> Result {
    say("building the agent and the collector (release; some minutes the first time)");
    let build = |place: Workspace| {
        let mut command = place.cargo("build");
        command.args(["--quiet", "--locked"]);
        command
    };
    workspace::run(build(Workspace::Device).args(["--profile", PROFILE, "-p", "agent"]))?;
    workspace::run(build(Workspace::Collector).args(["--profile", PROFILE]))?;
    say("building the workload");
    workspace::run(build(Workspace::Device).args(["-p", "tests", "--bins"]))
}

/// The folder of the demonstration.
struct Place {
    folder: PathBuf,
}

impl Place {
    /// Begins afresh.
    fn new() -> Result<Place> {
        let folder = root().join("target/demo");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .map_err(|e| format!("remove {}: {e}", folder.display()))?;
        }
        for part in ["agent/spool", "collector", "logs", "work"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part).map_err(|e| format!("make {}: {e}", part.display()))?;
        }
        Ok(Place { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn start_collector(&self) -> Result<Collector> {
        let config = self.path("collector/collector.toml");
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n\n\
             [tls]\nca = \"../pki/ca.pem\"\ncertificate = \"../pki/collector.pem\"\n\
             key = \"../pki/collector.key\"\n\n\
             [store]\ndirectory = {:?}\n",
            self.store()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(collector_binary());
        command.arg("serve").arg("--config").arg(&config);
        let mut program = Background::start("collector", &command, &self.path("logs"))?;
        let address = program.wait_for("it listens", START_DEADLINE, |output| {
            let line = output.strip_suffix('\n')?.lines().next()?;
            line.strip_prefix("listening on ")?.parse().ok()
        });
        match address {
            Ok(address) => Ok(Collector { program, address }),
            Err(error) => Err(format!("{error}\n{}", program.tail()).into()),
        }
    }

    fn start_agent(&self, collector: SocketAddr) -> Result<Background> {
        let config = self.path("agent/agent.toml");
        let status = self.path("agent/status.json");
        let pki = self.path("pki");
        let text = format!(
            "[collector]\nurl = \"https://{collector}\"\nca = {:?}\ncertificate = {:?}\n\
             key = {:?}\nupload_interval_s = 1\n\n\
             [spool]\ndirectory = {:?}\n\n\
             [frames]\nage_max_s = 1\nvolume_age_max_s = 1\n\n\
             [status]\nfile = {status:?}\n",
            pki.join("ca.pem"),
            pki.join("agent.pem"),
            pki.join("agent.key"),
            self.path("agent/spool"),
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(Workspace::Device.binary(PROFILE, "sysflow-agent"));
        command.arg("run").arg("--config").arg(&config);
        let mut agent = Background::start("agent", &command, &self.path("logs"))?;
        let ready = agent.wait_for("it is ready", START_DEADLINE, |_| {
            let status: Value = serde_json::from_slice(&std::fs::read(&status).ok()?).ok()?;
            (status["ready"] == Value::Bool(true)).then_some(())
        });
        match ready {
            Ok(()) => Ok(agent),
            Err(error) => Err(format!("{error}\n{}", agent.tail()).into()),
        }
    }

    fn store(&self) -> PathBuf {
        self.path("collector/store")
    }

    fn run(&self, collector: &mut Collector) -> Result {
        say("starting the agent on this machine's kernel");
        let mut agent = self.start_agent(collector.address)?;
        let work = self.work().and_then(|()| {
            say("stopping the agent, then the collector");
            agent.stop(END_DEADLINE)
        });
        work.map_err(|error| format!("{error}\n{}", agent.tail()))?;
        collector.program.stop(END_DEADLINE)?;
        self.report()
    }

    fn work(&self) -> Result {
        say("running the workload: programs, files, HTTP over IPv4 and IPv6, a dropped privilege");
        let output = Command::new(Workspace::Device.binary("dev", "workload-demo"))
            // Cargo's own, in which each program that is started would look for its libraries first.
            .env_remove("LD_LIBRARY_PATH")
            .arg("--dir")
            .arg(self.path("work"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("the workload ended with {}", output.status).into());
        }
        Ok(std::fs::write(self.path("truth.json"), output.stdout)?)
    }

    fn report(&self) -> Result {
        let records = self.path("records.jsonl");
        let mut print = Command::new(collector_binary());
        print.args(["print", "--json"]).arg(self.store());
        workspace::run(print.stdout(std::fs::File::create(&records)?))?;
        println!();
        let mut report = Command::new(Workspace::Device.binary("dev", "report-demo"));
        report.arg("--store").arg(self.store()).arg("--records").arg(&records);
        report.arg("--truth").arg(self.path("truth.json"));
        let status = report.status()?;
        let folder = shown(&self.folder);
        println!("files: {folder}/ (agent, collector, pki, logs, work, truth.json, records.jsonl)");
        match status.code() {
            Some(0) => Ok(()),
            Some(1) => Err("what the workload did and what the records say differ".into()),
            _ => Err(format!("the report ended with {status}").into()),
        }
    }
}

fn collector_binary() -> PathBuf {
    Workspace::Collector.binary(PROFILE, "sysflow-collector")
}

/// A path as seen from the root of the tree.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

struct Collector {
    program: Background,
    address: SocketAddr,
}

impl Collector {
    fn tail(&self) -> String {
        self.program.tail()
    }
}
