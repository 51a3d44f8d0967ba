//! One small world for one run: an agent and a collector with a proxy between them, their disks,
//! and the hand that breaks and mends them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use tests::Result;
use tests::fleet::{AGENT_ID, Agent, AgentSettings, Collector, Fleet};
use tests::machine::Machine;
use tests::program::Program;
use tests::proxy::Proxy;
use tests::wait::wait_for;

use tests::acts::boot_ns;

use crate::schedule::Character;

const DEADLINE: Duration = Duration::from_secs(60);

/// One life of the agent.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The run's tag, as the collector prints it.
    pub(crate) run: String,
    /// When it had begun to watch, and when it was told to end or killed: boot clock, ns.
    pub(crate) ready_ns: u64,
    pub(crate) end_ns: u64,
}

/// A disk of its own for some folder, which can be filled.
struct Disk {
    place: PathBuf,
}

impl Disk {
    fn mount(place: &Path, size: &str) -> Result<Disk> {
        std::fs::create_dir_all(place)?;
        let options = std::ffi::CString::new(format!("size={size}"))?;
        mount("tmpfs", place, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .map_err(|e| format!("mount {}: {e}", place.display()))?;
        Ok(Disk { place: place.into() })
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }

    /// Leaves no byte free.
    fn fill(&self) -> Result {
        let mut file = File::create(self.ballast())?;
        let piece = vec![0; 64 << 10];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn empty(&self) -> Result {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Programs that still hold files in it end with the world.
        let _ = unmount(&self.place, UnmountFlags::DETACH);
    }
}

/// Counts of what was done to a world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Blows {
    pub(crate) agent_kills: u64,
    pub(crate) collector_kills: u64,
    pub(crate) restarts: u64,
    pub(crate) cuts: u64,
    pub(crate) full_disks: u64,
    pub(crate) injections: u64,
    pub(crate) rotten_bits: u64,
    pub(crate) clock_steps: u64,
    pub(crate) certificates: u64,
}

impl Blows {
    /// Adds those of another run.
    pub(crate) fn add(&mut self, other: &Blows) {
        self.agent_kills += other.agent_kills;
        self.collector_kills += other.collector_kills;
        self.restarts += other.restarts;
        self.cuts += other.cuts;
        self.full_disks += other.full_disks;
        self.injections += other.injections;
        self.rotten_bits += other.rotten_bits;
        self.clock_steps += other.clock_steps;
        self.certificates += other.certificates;
    }
}

/// The world.
pub(crate) struct World<'m> {
    // Programs end before their disks go, and those before the folder.
    agent: Option<Agent>,
    collector: Option<Collector>,
    tracer: Option<Program>,
    pub(crate) proxy: Proxy,
    spool_disk: Disk,
    store_disk: Disk,
    pub(crate) fleet: Fleet<'m>,
    settings: AgentSettings,
    agent_clock: File,
    collector_clock: File,
    collector_environment: Vec<(OsString, OsString)>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) blows: Blows,
}

impl<'m> World<'m> {
    /// Starts it whole. `preload` is the library that moves clocks, `character` what the
    /// agent is like.
    pub(crate) fn start(
        machine: &'m Machine,
        preload: &Path,
        character: &Character,
    ) -> Result<World<'m>> {
        let fleet = Fleet::new(machine)?;
        let spool_disk = Disk::mount(&fleet.path("agent"), "3m")?;
        let store_disk = Disk::mount(&fleet.store(), "64m")?;
        let clock = |name: &str| -> Result<(File, Vec<(OsString, OsString)>)> {
            let path = fleet.path(name);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
            file.write_all_at(&0_i64.to_ne_bytes(), 0)?;
            let environment = vec![
                ("LD_PRELOAD".into(), preload.into()),
                ("SYSFLOW_CLOCK".into(), path.into_os_string()),
            ];
            Ok((file, environment))
        };
        let (agent_clock, environment) = clock("agent.clock")?;
        let (collector_clock, collector_environment) = clock("collector.clock")?;
        let collector = fleet.start_collector_with("127.0.0.1:0", &collector_environment)?;
        let proxy = Proxy::start(collector.address)?;
        let mut settings = fleet.agent_settings("agent", proxy.address);
        settings.environment = environment;
        settings.status = fleet.path("status/status.json");
        settings.spool_bytes_max = 1 << 20;
        settings.spool_sync = character.spool_sync.to_string();
        settings.ladder.clone_from(&character.ladder);
        std::fs::create_dir_all(fleet.path("status"))?;
        let mut world = World {
            agent: None,
            collector: Some(collector),
            tracer: None,
            proxy,
            spool_disk,
            store_disk,
            fleet,
            settings,
            agent_clock,
            collector_clock,
            collector_environment,
            sessions: Vec::new(),
            blows: Blows::default(),
        };
        world.start_agent()?;
        Ok(world)
    }

    pub(crate) fn start_agent(&mut self) -> Result {
        let agent = self.fleet.start_agent(&self.settings)?;
        let ready_ns = boot_ns();
        let run = agent.status()?["run_id"].as_str().unwrap_or_default().to_string();
        let run = run.get(..16).ok_or("the agent's status has no run id")?.to_string();
        self.sessions.push(Session { run, ready_ns, end_ns: u64::MAX });
        self.agent = Some(agent);
        Ok(())
    }

    fn agent_ended(&mut self, at_ns: u64) {
        if let Some(session) = self.sessions.last_mut() {
            session.end_ns = at_ns;
        }
    }

    /// Kills the agent where it stands.
    pub(crate) fn kill_agent(&mut self) -> Result {
        let mut agent = self.agent.take().ok_or("no agent runs")?;
        let at_ns = boot_ns();
        agent.program.kill()?;
        self.agent_ended(at_ns);
        self.blows.agent_kills += 1;
        Ok(())
    }

    /// Tells the agent to end, and waits for it.
    pub(crate) fn stop_agent(&mut self) -> Result {
        let mut agent = self.agent.take().ok_or("no agent runs")?;
        let at_ns = boot_ns();
        agent.program.stop()?;
        self.agent_ended(at_ns);
        self.blows.restarts += 1;
        Ok(())
    }

    /// What the agent says of itself.
    pub(crate) fn status(&self) -> Result<Value> {
        self.agent.as_ref().map_or(Ok(Value::Null), Agent::status)
    }

    pub(crate) fn kill_collector(&mut self) -> Result {
        let mut collector = self.collector.take().ok_or("no collector runs")?;
        collector.program.kill()?;
        self.blows.collector_kills += 1;
        Ok(())
    }

    pub(crate) fn stop_collector(&mut self) -> Result {
        let mut collector = self.collector.take().ok_or("no collector runs")?;
        collector.program.stop()
    }

    pub(crate) fn start_collector(&mut self) -> Result {
        let environment = &self.collector_environment;
        let collector = self.fleet.start_collector_with("127.0.0.1:0", environment)?;
        self.proxy.retarget(collector.address);
        self.collector = Some(collector);
        Ok(())
    }

    /// Fills the disk of the spool, or empties it.
    pub(crate) fn fill_spool(&mut self, full: bool) -> Result {
        self.blows.full_disks += u64::from(full);
        if full { self.spool_disk.fill() } else { self.spool_disk.empty() }
    }

    /// Fills the disk of the store, or empties it.
    pub(crate) fn fill_store(&mut self, full: bool) -> Result {
        self.blows.full_disks += u64::from(full);
        if full { self.store_disk.fill() } else { self.store_disk.empty() }
    }

    /// Makes calls of the agent, or of the collector, end as `injection` says.
    pub(crate) fn inject(&mut self, into_agent: bool, injection: &str) -> Result {
        let pid = match (&self.agent, &self.collector) {
            (Some(agent), _) if into_agent => agent.program.pid(),
            (_, Some(collector)) if !into_agent => collector.program.pid(),
            _ => return Err("nobody to inject a fault into".into()),
        };
        let calls = injection.split(':').next().unwrap_or_default();
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={injection}")]);
        let mut tracer = Program::start("strace", &mut command, &self.fleet.path("logs"))?;
        tracer.wait_for_line("attached", DEADLINE)?;
        self.tracer = Some(tracer);
        self.blows.injections += 1;
        Ok(())
    }

    /// Lets all calls through again.
    pub(crate) fn end_injection(&mut self) -> Result {
        let mut tracer = self.tracer.take().ok_or("nothing is injected")?;
        tracer.interrupt()
    }

    /// Moves a wall clock away from the machine's, by so many seconds.
    pub(crate) fn step_clock(&mut self, of_agent: bool, offset_s: i64) -> Result {
        let clock = if of_agent { &self.agent_clock } else { &self.collector_clock };
        clock.write_all_at(&offset_s.to_ne_bytes(), 0)?;
        self.blows.clock_steps += u64::from(offset_s != 0);
        Ok(())
    }

    /// Gives the agent another certificate.
    pub(crate) fn renew_certificate(&mut self, is_expired: bool) -> Result {
        let options = ["--agent", AGENT_ID, "--expired"];
        self.fleet.issue("pki", &options[..if is_expired { 3 } else { 2 }])?;
        self.blows.certificates += 1;
        Ok(())
    }

    /// Turns bits in the segments of the spool, whose agent must be down.
    pub(crate) fn rot(&mut self, random: &mut fastrand::Rng, bits: usize) -> Result {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.settings.spool)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "frames") {
                segments.push(path);
            }
        }
        segments.sort_unstable();
        for _ in 0..bits {
            let Some(path) = random.choice(&segments) else { return Ok(()) };
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let length = file.metadata()?.len();
            if length > 0 {
                let at = random.u64(..length);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[byte[0] ^ 1 << random.u32(..8)], at)?;
                self.blows.rotten_bits += 1;
            }
        }
        Ok(())
    }

    /// Ends the agent in order until nothing waits in its spool, then the collector.
    pub(crate) fn drain(&mut self) -> Result {
        if self.agent.is_none() {
            self.start_agent()?;
        }
        if self.collector.is_none() {
            self.start_collector()?;
        }
        // What an outage has left may need more than the last delivery of one run.
        for _ in 0..4 {
            self.stop_agent()?;
            let left: Value = serde_json::from_slice(&std::fs::read(&self.settings.status)?)?;
            if left["spool"]["frames"] == 0 {
                self.blows.cuts = self.proxy.cuts();
                return self.stop_collector();
            }
            self.start_agent()?;
        }
        let status = self.status()?;
        Err(format!("the spool does not drain: {} {}", status["spool"], status["upload"]).into())
    }

    /// The log of the agent's last life.
    pub(crate) fn agent_log(&self) -> String {
        std::fs::read_to_string(self.fleet.path("logs/agent.log")).unwrap_or_default()
    }

    /// Waits until `seen`, but not for long: an effect that a fault may have or not.
    pub(crate) fn linger(&self, seen: impl Fn(&World<'m>) -> Result<bool>) -> Result {
        let start = boot_ns();
        wait_for("what a fault does", DEADLINE, || {
            let is_late = boot_ns() - start > 2_500_000_000;
            Ok((is_late || seen(self)?).then_some(()))
        })
    }
}
