//! What befalls a world, drawn from a seed, and carried out between and amid acts.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use tests::Result;
use tests::wait::wait_for;

use crate::world::World;
use tests::acts::Actor;

const DEADLINE: Duration = Duration::from_secs(60);
/// Ten years, s.
const DECADE_S: i64 = 10 * 365 * 86_400;

/// How careful a spool can be.
const SPOOL_SYNCS: [&str; 3] = ["frame", "interval", "memory-first"];
/// The last steps that a ladder can have.
const LAST_STEPS: [&str; 5] = ["summaries", "shares", "totals", "flows", "processes"];

/// What an agent is like, in all of its lives.
#[derive(Clone, Debug)]
pub(crate) struct Character {
    pub(crate) spool_sync: &'static str,
    /// The section `[ladder]` of the configuration.
    pub(crate) ladder: String,
}

impl Character {
    pub(crate) fn draw(random: &mut Rng) -> Character {
        let spool_sync = SPOOL_SYNCS[random.usize(..SPOOL_SYNCS.len())];
        // In half of the runs every act is told in full; in the others little is a strain.
        let last_step =
            if random.bool() { "everything" } else { LAST_STEPS[random.usize(..LAST_STEPS.len())] };
        let ladder = format!(
            "last_step = {last_step:?}\nspool_percent = {}\nprocessor_percent = {}\nhold_s = {}\n",
            random.u32(1..20),
            [1, 4, 50][random.usize(..3)],
            random.u32(1..4)
        );
        Character { spool_sync, ladder }
    }
}

impl fmt::Display for Character {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ladder: Vec<&str> = self.ladder.lines().collect();
        write!(f, "spool {}, ladder {}", self.spool_sync, ladder.join(", "))
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The agent is killed, and comes back after some acts.
    KillAgent,
    /// The agent ends in order and comes back.
    RestartAgent,
    /// The collector is killed, and comes back.
    KillCollector,
    /// Connections are cut after so many bytes towards the collector.
    CutBodies(u64),
    /// Connections are cut after so many bytes of answers: the agent sends again.
    CutAnswers(u64),
    /// Each piece of data is held back, ms.
    Delay(u64),
    /// No byte is left for the spool and what is beside it.
    SpoolFull,
    /// No byte is left for the store.
    StoreFull,
    /// Calls of the agent end otherwise.
    AgentCalls(String),
    /// Calls of the collector end otherwise.
    CollectorCalls(String),
    /// The agent is down with frames in its spool, and so many bits of them turn.
    Rot(usize),
    /// The wall clock of the agent, or of the collector, is off by so many seconds.
    Clock { of_agent: bool, offset_s: i64 },
    /// The agent's certificate is over, and then renewed.
    Expire,
    /// The agent gets another certificate.
    Rotate,
}

impl Fault {
    fn draw(random: &mut Rng) -> Fault {
        match random.u32(..14) {
            0 => Fault::KillAgent,
            1 => Fault::RestartAgent,
            2 => Fault::KillCollector,
            3 => Fault::CutBodies(random.u64(500..12_000)),
            4 => Fault::CutAnswers(random.u64(100..4000)),
            5 => Fault::Delay(random.u64(10..80)),
            6 => Fault::SpoolFull,
            7 => Fault::StoreFull,
            8 => {
                let call = *random
                    .choice(&[
                        "pwrite64",
                        "fdatasync",
                        "pread64",
                        "ftruncate",
                        "pwrite64,fdatasync",
                    ])
                    .unwrap_or(&"pwrite64");
                // A device that says that it wrote, and wrote nothing, writes short the worst way.
                let result = *random
                    .choice(&["error=EIO", "error=EIO", "error=ENOSPC", "error=EINTR", "retval=1"])
                    .unwrap_or(&"error=EIO");
                let result = if call == "pwrite64" || !result.starts_with("retval") {
                    result
                } else {
                    "error=EIO"
                };
                Fault::AgentCalls(format!("{call}:{result}:{}", when(random)))
            }
            9 => {
                let call = *random
                    .choice(&[
                        "fsync",
                        "linkat,link",
                        "rename,renameat,renameat2",
                        "unlink,unlinkat",
                    ])
                    .unwrap_or(&"fsync");
                Fault::CollectorCalls(format!("{call}:error=EIO:{}", when(random)))
            }
            10 => Fault::Rot(random.usize(1..6)),
            11 => Fault::Clock {
                of_agent: random.bool(),
                offset_s: if random.bool() { DECADE_S } else { -DECADE_S },
            },
            12 => Fault::Expire,
            _ => Fault::Rotate,
        }
    }
}

/// Which of the calls.
fn when(random: &mut Rng) -> String {
    format!("when={}+{}", random.u32(1..5), random.u32(1..4))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What amid a fault ends without a word, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amid {
    Nothing,
    AgentDies,
    CollectorDies,
}

/// One phase: acts, a fault amid them, and its end.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    fault: Fault,
    amid: Amid,
    /// Acts before, amid and after.
    acts: [usize; 3],
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.amid {
            Amid::Nothing => self.fault.fmt(f),
            amid => write!(f, "{} + {amid:?}", self.fault),
        }
    }
}

/// Draws the phases of a run.
pub(crate) fn draw(random: &mut Rng) -> Vec<Phase> {
    let phases = random.usize(3..6);
    (0..phases)
        .map(|_| {
            let fault = Fault::draw(random);
            let amid = match (random.u32(..4), &fault) {
                // There the program is down, or must not start anew.
                (
                    _,
                    Fault::KillAgent
                    | Fault::RestartAgent
                    | Fault::KillCollector
                    | Fault::AgentCalls(_)
                    | Fault::CollectorCalls(_)
                    | Fault::Rot(_)
                    | Fault::StoreFull,
                ) => Amid::Nothing,
                (0, _) => Amid::AgentDies,
                (1, Fault::Clock { of_agent: false, .. }) => Amid::Nothing,
                (1, _) => Amid::CollectorDies,
                _ => Amid::Nothing,
            };
            Phase { fault, amid, acts: std::array::from_fn(|_| random.usize(3..25)) }
        })
        .collect()
}

/// Waits until so many acts are done.
fn acted(actor: &Actor, acts: usize) -> Result {
    wait_for("acts", DEADLINE, || Ok((actor.done()? >= acts).then_some(())))
}

/// Whether the agent has failed to deliver.
fn fails(world: &World<'_>) -> Result<bool> {
    Ok(world.status()?["upload"]["failures"].as_u64() > Some(0))
}

/// Carries a phase out.
pub(crate) fn carry_out(
    phase: &Phase,
    world: &mut World<'_>,
    actor: &mut Actor,
    random: &mut Rng,
) -> Result {
    let [before, amid, after] = phase.acts;
    let ordered = actor.order(before);
    if random.bool() {
        acted(actor, ordered)?;
    }
    let cuts = world.proxy.cuts();
    match &phase.fault {
        Fault::KillAgent => world.kill_agent()?,
        Fault::RestartAgent => world.stop_agent()?,
        Fault::KillCollector => world.kill_collector()?,
        Fault::CutBodies(bytes) => world.proxy.cut_after(Some(*bytes)),
        Fault::CutAnswers(bytes) => world.proxy.cut_answers_after(Some(*bytes)),
        Fault::Delay(ms) => world.proxy.delay(Duration::from_millis(*ms)),
        Fault::SpoolFull => world.fill_spool(true)?,
        Fault::StoreFull => world.fill_store(true)?,
        Fault::AgentCalls(injection) => world.inject(true, injection)?,
        Fault::CollectorCalls(injection) => world.inject(false, injection)?,
        Fault::Rot(_) => world.kill_collector()?,
        Fault::Clock { of_agent, offset_s } => world.step_clock(*of_agent, *offset_s)?,
        Fault::Expire => world.renew_certificate(true)?,
        Fault::Rotate => world.renew_certificate(false)?,
    }
    let ordered = actor.order(amid);
    acted(actor, ordered)?;
    match phase.amid {
        Amid::Nothing => {}
        Amid::AgentDies => {
            world.kill_agent()?;
            world.start_agent()?;
        }
        Amid::CollectorDies => {
            world.kill_collector()?;
            world.start_collector()?;
        }
    }
    match &phase.fault {
        Fault::CutBodies(_) | Fault::CutAnswers(_) => {
            world.linger(|world| Ok(world.proxy.cuts() > cuts))?;
        }
        Fault::KillAgent | Fault::RestartAgent | Fault::Rotate => {}
        Fault::Rot(bits) => {
            world.linger(|world| Ok(world.status()?["spool"]["frames"].as_u64() > Some(1)))?;
            if random.bool() {
                world.kill_agent()?;
            } else {
                world.stop_agent()?;
            }
            world.rot(random, *bits)?;
        }
        _ => world.linger(fails)?,
    }
    let ordered = actor.order(after);
    match &phase.fault {
        Fault::KillAgent | Fault::RestartAgent => world.start_agent()?,
        Fault::KillCollector => world.start_collector()?,
        Fault::CutBodies(_) => world.proxy.cut_after(None),
        Fault::CutAnswers(_) => world.proxy.cut_answers_after(None),
        Fault::Delay(_) => world.proxy.delay(Duration::ZERO),
        Fault::SpoolFull => world.fill_spool(false)?,
        Fault::StoreFull => world.fill_store(false)?,
        Fault::AgentCalls(_) | Fault::CollectorCalls(_) => world.end_injection()?,
        Fault::Rot(_) => {
            world.start_collector()?;
            world.start_agent()?;
        }
        Fault::Clock { of_agent, .. } => world.step_clock(*of_agent, 0)?,
        Fault::Expire => world.renew_certificate(false)?,
        Fault::Rotate => {}
    }
    acted(actor, ordered)
}
