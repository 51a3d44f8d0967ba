//! One small world for one run: an agent and a collector with a proxy between them, their disks,
//! and the hand that breaks and mends them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use codec::Frame;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tests::Result;
use tests::acts::boot_ns;
use tests::fleet::{AGENT_ID, Agent, AgentSettings, Collector, Fleet};
use tests::frames;
use tests::machine::Machine;
use tests::program::Program;
use tests::proxy::Proxy;
use tests::wait::wait_for;

use crate::schedule::Character;

const DEADLINE: Duration = Duration::from_secs(60);
/// How long a request may take, s: less than what some are held back by.
const COLLECTOR_PATIENCE_S: u64 = 3;

/// How far a clock may be from where it was moved to, by ten years, ns.
pub(crate) const HOUR_NS: i64 = 3_600_000_000_000;

/// From the boot clock to the machine's wall clock, ns.
pub(crate) fn wall_offset_ns() -> i64 {
    let [wall, boot] = [ClockId::Realtime, ClockId::Boottime].map(clock_gettime);
    (wall.tv_sec - boot.tv_sec) * 1_000_000_000 + wall.tv_nsec - boot.tv_nsec
}

/// One life of the agent.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The run's tag, as the collector prints it.
    pub(crate) run: String,
    /// When it was started, and when it had begun to watch: boot clock, ns.
    pub(crate) begun_ns: u64,
    pub(crate) ready_ns: u64,
    /// When it was told to end or killed, and when it was gone.
    pub(crate) end_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) is_killed: bool,
}

/// A time in which the agent's wall clock was off.
#[derive(Clone, Debug)]
pub(crate) struct ClockStep {
    pub(crate) offset_s: i64,
    /// The lives of the agent that saw it.
    pub(crate) lives: RangeInclusive<usize>,
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

    /// Leaves so many bytes free, to the page.
    fn fill(&self, left_bytes: u64) -> Result {
        let mut file = File::create(self.ballast())?;
        let piece = vec![0; 64 << 10];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => break,
                Err(e) => return Err(e.into()),
            }
        }
        let length = file.metadata()?.len();
        Ok(file.set_len(length.saturating_sub(left_bytes))?)
    }

    /// Puts another one in its place, which is empty and read-only.
    fn cover(&self) -> Result {
        mount("tmpfs", &self.place, "tmpfs", MountFlags::RDONLY, None)
            .map_err(|e| format!("mount {}: {e}", self.place.display()).into())
    }

    fn uncover(&self) -> Result {
        unmount(&self.place, UnmountFlags::DETACH)
            .map_err(|e| format!("unmount {}: {e}", self.place.display()).into())
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
    /// Whether any of them may take frames, and how many records they had.
    pub(crate) fn takes_frames(&self) -> bool {
        self.agent_kills > 0 || self.rotten_bits > 0
    }

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
    pub(crate) clock_steps: Vec<ClockStep>,
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
        let mut fleet = Fleet::new(machine)?;
        fleet.limits = format!("request_timeout_s = {COLLECTOR_PATIENCE_S}\n");
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
            clock_steps: Vec::new(),
            blows: Blows::default(),
        };
        world.start_agent()?;
        Ok(world)
    }

    pub(crate) fn start_agent(&mut self) -> Result {
        let begun_ns = boot_ns();
        let agent = self.fleet.start_agent(&self.settings)?;
        let ready_ns = boot_ns();
        let run = agent.status()?["run_id"].as_str().unwrap_or_default().to_string();
        let run = run.get(..16).ok_or("the agent's status has no run id")?.to_string();
        let (end_ns, ended_ns) = (u64::MAX, u64::MAX);
        let is_killed = false;
        self.sessions.push(Session { run, begun_ns, ready_ns, end_ns, ended_ns, is_killed });
        self.agent = Some(agent);
        Ok(())
    }

    fn agent_ended(&mut self, end_ns: u64, is_killed: bool) {
        if let Some(session) = self.sessions.last_mut() {
            (session.end_ns, session.ended_ns, session.is_killed) = (end_ns, boot_ns(), is_killed);
        }
    }

    /// Kills the agent where it stands.
    pub(crate) fn kill_agent(&mut self) -> Result {
        let mut agent = self.agent.take().ok_or("no agent runs")?;
        let at_ns = boot_ns();
        agent.program.kill()?;
        self.agent_ended(at_ns, true);
        self.blows.agent_kills += 1;
        Ok(())
    }

    /// Tells the agent to end, and waits for it.
    pub(crate) fn stop_agent(&mut self) -> Result {
        let mut agent = self.agent.take().ok_or("no agent runs")?;
        let at_ns = boot_ns();
        agent.program.stop()?;
        self.agent_ended(at_ns, false);
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

    /// Fills the disk of the spool up to so many bytes, or empties it.
    pub(crate) fn fill_spool(&mut self, left_bytes: Option<u64>) -> Result {
        self.blows.full_disks += u64::from(left_bytes.is_some());
        left_bytes.map_or_else(|| self.spool_disk.empty(), |left| self.spool_disk.fill(left))
    }

    /// Fills the disk of the store up to so many bytes, or empties it.
    pub(crate) fn fill_store(&mut self, left_bytes: Option<u64>) -> Result {
        self.blows.full_disks += u64::from(left_bytes.is_some());
        left_bytes.map_or_else(|| self.store_disk.empty(), |left| self.store_disk.fill(left))
    }

    /// Hides the disk of the spool, or shows it again.
    pub(crate) fn cover_spool(&mut self, hidden: bool) -> Result {
        if hidden { self.spool_disk.cover() } else { self.spool_disk.uncover() }
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
        command.args(["-f", "-p", &pid.to_string(), "-o"]).arg(self.trace());
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={injection}")]);
        let mut tracer = Program::start("strace", &mut command, &self.fleet.path("logs"))?;
        tracer.wait_for_line("attached", DEADLINE)?;
        self.tracer = Some(tracer);
        self.blows.injections += 1;
        Ok(())
    }

    fn trace(&self) -> PathBuf {
        self.fleet.path("trace")
    }

    /// Whether the present injection, or the last one, has made a call end otherwise.
    pub(crate) fn has_injected(&self) -> Result<bool> {
        Ok(std::fs::read_to_string(self.trace())?.contains("(INJECTED)"))
    }

    /// Lets all calls through again.
    pub(crate) fn end_injection(&mut self) -> Result {
        let mut tracer = self.tracer.take().ok_or("nothing is injected")?;
        tracer.interrupt()
    }

    /// Moves a wall clock away from the machine's, by so many seconds.
    pub(crate) fn step_clock(&mut self, of_agent: bool, offset_s: i64) -> Result {
        let life = self.sessions.len().saturating_sub(1);
        match self.clock_steps.last_mut() {
            _ if !of_agent => {}
            Some(step) if offset_s == 0 => step.lives = *step.lives.start()..=life,
            _ => self.clock_steps.push(ClockStep { offset_s, lives: life..=life }),
        }
        let clock = if of_agent { &self.agent_clock } else { &self.collector_clock };
        clock.write_all_at(&offset_s.to_ne_bytes(), 0)?;
        self.blows.clock_steps += u64::from(offset_s != 0);
        Ok(())
    }

    /// Whether a frame of the agent's present life that the store holds tells that its clock is off
    /// by so many seconds.
    pub(crate) fn tells_clock(&self, offset_s: i64) -> Result<bool> {
        let true_ns = wall_offset_ns();
        let run = self.sessions.last().map_or("", |session| session.run.as_str());
        for path in frames::find(&self.fleet.store())? {
            if !path.to_string_lossy().contains(run) {
                continue;
            }
            let bytes = std::fs::read(&path)?;
            let (frame, _) =
                Frame::decode(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
            let moved = |ns: i64| ns - true_ns - offset_s * 1_000_000_000;
            if frame.header.clock.is_some_and(|clock| moved(clock.offset_ns).abs() < HOUR_NS) {
                return Ok(true);
            }
        }
        Ok(false)
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

    /// Waits until `seen`, but not longer: an effect that a fault may have or not.
    pub(crate) fn linger(
        &self,
        longest: Duration,
        seen: impl Fn(&World<'m>) -> Result<bool>,
    ) -> Result {
        let start = Instant::now();
        wait_for("what a fault does", DEADLINE, || {
            Ok((seen(self)? || start.elapsed() > longest).then_some(()))
        })
    }
}
