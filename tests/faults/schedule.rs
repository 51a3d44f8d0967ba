//! What befalls a world, drawn from a seed, and carried out between and amid acts.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use tests::Result;
use tests::acts::Actor;
use tests::wait::wait_for;

use crate::fault::Fault;
use crate::world::World;

const DEADLINE: Duration = Duration::from_secs(60);
/// How long a fault is waited for that may show or not.
const LINGER: Duration = Duration::from_millis(2500);
/// How long one that takes its time by itself.
const LONG_LINGER: Duration = Duration::from_secs(8);
/// The agent looks at its clock each five seconds.
const CLOCK_LINGER: Duration = Duration::from_secs(20);

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

impl Phase {
    /// The name of its fault's kind.
    pub(crate) fn kind(&self) -> &'static str {
        self.fault.kind()
    }
}

/// Draws the phases of a run. Runs in a row begin with one kind of fault after another.
pub(crate) fn draw(seed: u64, random: &mut Rng) -> Vec<Phase> {
    let phases = random.usize(3..6);
    (0..phases)
        .map(|number| {
            let kind = if number == 0 { seed } else { random.u64(..Fault::KINDS) };
            let fault = Fault::draw(kind, random);
            let amid = match (random.u32(..4), &fault) {
                // There the program is down, or must not start anew.
                (
                    _,
                    Fault::KillAgent
                    | Fault::RestartAgent
                    | Fault::KillCollector
                    | Fault::AgentCalls(_)
                    | Fault::CollectorCalls(_)
                    | Fault::ReadOnly
                    | Fault::Rot(_)
                    | Fault::StoreFull(_),
                ) => Amid::Nothing,
                (0, Fault::Vanish) => Amid::Nothing,
                (0, _) => Amid::AgentDies,
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

/// Pieces of data that are held back before a delay is one.
const DELAYS: u64 = 20;

/// Failures in a row, for a certificate that is right, that a clock may bring.
const FAILURES_MAX: u64 = 2;

/// What can be counted of faults, before and after.
struct Counts {
    cuts: u64,
    delays: u64,
    repeats: u64,
    rotten_bits: u64,
    renewals: usize,
    complaints: usize,
    lost: u64,
    /// The agent's life, and of it the uploads that came and the present row of failures.
    life: usize,
    uploads: u64,
    failures: u64,
}

impl Counts {
    fn of(world: &World<'_>) -> Result<Counts> {
        let log = world.agent_log();
        let status = world.status()?;
        let number = |part: &str, key: &str| status[part][key].as_u64().unwrap_or(0);
        let complains = |line: &&str| line.contains("spool") || line.contains("state");
        Ok(Counts {
            cuts: world.proxy.cuts(),
            delays: world.proxy.delays(),
            repeats: world.proxy.repeats(),
            rotten_bits: world.blows.rotten_bits,
            renewals: log.matches("read anew").count(),
            complaints: log.lines().filter(complains).count(),
            lost: number("ledger", "lost_spool_error"),
            life: world.sessions.len(),
            uploads: number("upload", "uploads"),
            failures: number("upload", "failures"),
        })
    }

    /// Uploads that came since.
    fn uploads_since(&self, before: &Counts) -> u64 {
        let known = if self.life == before.life { before.uploads } else { 0 };
        self.uploads.saturating_sub(known)
    }

    /// Failures in a row that came since.
    fn failures_since(&self, before: &Counts) -> u64 {
        let is_same = self.life == before.life && self.uploads == before.uploads;
        self.failures.saturating_sub(if is_same { before.failures } else { 0 })
    }
}

/// Whether a fault has shown.
fn shows(fault: &Fault, world: &World<'_>, before: &Counts) -> Result<bool> {
    let now = Counts::of(world)?;
    Ok(match fault {
        Fault::KillAgent | Fault::RestartAgent | Fault::KillCollector => true,
        Fault::CutBodies(_) | Fault::CutAnswers(_) | Fault::HoldAnswers(..) => {
            now.cuts > before.cuts
        }
        Fault::RepeatAnswers(_) => now.repeats > before.repeats,
        Fault::Delay(_) => now.delays > before.delays + DELAYS,
        Fault::SpoolFull(_) => now.lost > before.lost || now.complaints > before.complaints,
        Fault::Vanish => now.complaints > before.complaints || fails(world)?,
        Fault::AgentCalls(_) | Fault::ReadOnly | Fault::CollectorCalls(_) => {
            world.has_injected()?
        }
        Fault::Rot(_) => now.rotten_bits > before.rotten_bits,
        Fault::Rotate => now.renewals > before.renewals,
        Fault::AgentClock(offset_s) => world.tells_clock(*offset_s)?,
        Fault::CollectorClock(_) => now.uploads_since(before) > 0 || fails(world)?,
        Fault::Stall(_) | Fault::StoreFull(_) | Fault::Expire => fails(world)?,
    })
}

/// A wrong clock locks nobody out: waits until the agent delivers, and fails if it only
/// complains of certificates.
fn delivers(world: &World<'_>, before: &Counts) -> Result {
    let is_locked_out = |world: &World<'_>, now: &Counts| -> Result<bool> {
        let status = world.status()?;
        let error = status["upload"]["last_error"].as_str().unwrap_or_default();
        Ok(error.contains("certificate") && now.failures_since(before) > FAILURES_MAX)
    };
    world.linger(LONG_LINGER, |world| {
        let now = Counts::of(world)?;
        Ok(now.uploads_since(before) > 0 || is_locked_out(world, &now)?)
    })?;
    if is_locked_out(world, &Counts::of(world)?)? {
        return Err(format!("locked out: {}", world.status()?["upload"]).into());
    }
    Ok(())
}

/// Begins a fault.
fn begin(fault: &Fault, world: &mut World<'_>) -> Result {
    match fault {
        Fault::KillAgent => world.kill_agent(),
        Fault::RestartAgent => world.stop_agent(),
        Fault::KillCollector | Fault::Rot(_) => world.kill_collector(),
        Fault::CutBodies(bytes) => {
            world.proxy.cut_after(Some(*bytes));
            Ok(())
        }
        Fault::CutAnswers(bytes) => {
            world.proxy.cut_answers_after(Some(*bytes));
            Ok(())
        }
        Fault::HoldAnswers(bytes, ms) => {
            world.proxy.hold(Duration::from_millis(*ms));
            world.proxy.cut_answers_after(Some(*bytes));
            Ok(())
        }
        Fault::RepeatAnswers(bytes) => {
            world.proxy.repeat_answers_after(Some(*bytes));
            Ok(())
        }
        Fault::Delay(ms) | Fault::Stall(ms) => {
            world.proxy.delay(Duration::from_millis(*ms));
            Ok(())
        }
        Fault::SpoolFull(left_bytes) => world.fill_spool(Some(*left_bytes)),
        Fault::StoreFull(left_bytes) => world.fill_store(Some(*left_bytes)),
        Fault::AgentCalls(_) | Fault::ReadOnly | Fault::CollectorCalls(_) => {
            let (into_agent, injection) = fault.injection().ok_or("nothing to inject")?;
            world.inject(into_agent, &injection)
        }
        Fault::Vanish => world.cover_spool(true),
        Fault::AgentClock(offset_s) => world.step_clock(true, *offset_s),
        Fault::CollectorClock(offset_s) => world.step_clock(false, *offset_s),
        Fault::Expire => world.renew_certificate(true),
        Fault::Rotate => world.renew_certificate(false),
    }
}

/// Ends it.
fn end(fault: &Fault, world: &mut World<'_>) -> Result {
    match fault {
        Fault::KillAgent | Fault::RestartAgent => world.start_agent()?,
        Fault::KillCollector => world.start_collector()?,
        Fault::CutBodies(_) => world.proxy.cut_after(None),
        Fault::CutAnswers(_) => world.proxy.cut_answers_after(None),
        Fault::HoldAnswers(..) => {
            world.proxy.cut_answers_after(None);
            world.proxy.hold(Duration::ZERO);
        }
        Fault::RepeatAnswers(_) => world.proxy.repeat_answers_after(None),
        Fault::Delay(_) | Fault::Stall(_) => world.proxy.delay(Duration::ZERO),
        Fault::SpoolFull(_) => world.fill_spool(None)?,
        Fault::StoreFull(_) => world.fill_store(None)?,
        Fault::AgentCalls(_) | Fault::ReadOnly | Fault::CollectorCalls(_) => {
            world.end_injection()?;
        }
        Fault::Vanish => world.cover_spool(false)?,
        Fault::Rot(_) => {
            world.start_collector()?;
            world.start_agent()?;
        }
        Fault::AgentClock(_) => world.step_clock(true, 0)?,
        Fault::CollectorClock(_) => world.step_clock(false, 0)?,
        Fault::Expire => world.renew_certificate(false)?,
        Fault::Rotate => {}
    }
    Ok(())
}

/// Carries a phase out; returns whether its fault has shown.
pub(crate) fn carry_out(
    phase: &Phase,
    world: &mut World<'_>,
    actor: &mut Actor,
    random: &mut Rng,
) -> Result<bool> {
    let [before, amid, after] = phase.acts;
    let fault = &phase.fault;
    let ordered = actor.order(before);
    if random.bool() {
        acted(actor, ordered)?;
    }
    let counts = Counts::of(world)?;
    begin(fault, world)?;
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
    match fault {
        Fault::Rot(bits) => {
            let waits =
                |world: &World<'_>| Ok(world.status()?["spool"]["frames"].as_u64() > Some(1));
            world.linger(LINGER, waits)?;
            if random.bool() {
                world.kill_agent()?;
            } else {
                world.stop_agent()?;
            }
            world.rot(random, *bits)?;
        }
        // Those that end calls are given time to do harm.
        Fault::KillCollector
        | Fault::AgentCalls(_)
        | Fault::ReadOnly
        | Fault::CollectorCalls(_) => world.linger(LINGER, fails)?,
        Fault::Stall(_) | Fault::HoldAnswers(..) | Fault::Expire => {
            world.linger(LONG_LINGER, |world| shows(fault, world, &counts))?;
        }
        Fault::AgentClock(_) => {
            world.linger(CLOCK_LINGER, |world| shows(fault, world, &counts))?;
            delivers(world, &counts)?;
        }
        _ => world.linger(LINGER, |world| shows(fault, world, &counts))?,
    }
    let ordered = actor.order(after);
    let has_shown = shows(fault, world, &counts)?;
    end(fault, world)?;
    if let Fault::CollectorClock(_) = fault {
        delivers(world, &Counts::of(world)?)?;
    }
    acted(actor, ordered)?;
    // The tracer writes the last of what it did at its end.
    Ok(has_shown || fault.injection().is_some() && world.has_injected()?)
}
