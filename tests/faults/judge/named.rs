//! What the store names as missing, and in which of the agent's lives it lies.

use codec::Class;
use serde_json::Value;
use tests::Result;
use tests::acts::{Act, Part};
use tests::records::{of_kind, text};

use super::Evidence;
use super::held::{Held, Run};
use crate::world::Session;

/// How much later than it happened something may come into a frame, ns: events wait in the ring
/// while the agent is slow, and flows for their end.
const DISORDER_NS: u64 = 3_000_000_000;

/// What names that something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// Frames that the collector knows to be missing; whether the agent says that it dropped them.
    Frames { dropped: bool },
    /// An agent was killed, or none ran.
    Interval,
    /// The agent was on a step of the ladder that gives up detail.
    Step,
}

/// An interval in which something may be missing, boot clock, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) name: Name,
    /// Of which life.
    pub(super) life: usize,
    /// Of which class; none: of each.
    pub(super) class: Option<Class>,
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
}

impl Interval {
    /// Whether it may have taken this part of an act.
    pub(super) fn covers(&self, act: &Act, part: Part) -> bool {
        self.class.is_none_or(|class| class == part.class())
            && self.from_ns <= act.to_ns
            && act.from_ns <= self.to_ns
    }
}

/// Finds them.
pub(super) struct Search<'e> {
    pub(super) evidence: &'e Evidence<'e>,
    /// Lives of the agent, each with what the store holds of it.
    pub(super) lives: Vec<(&'e Session, Run)>,
    pub(super) found: Vec<Interval>,
    /// What is named and cannot be.
    pub(super) faults: Vec<String>,
}

impl Search<'_> {
    pub(super) fn run(&mut self) -> Result {
        for gap in of_kind(self.evidence.ledger, "GAP") {
            match text(gap, "reason") {
                "interruption" => self.interruption(gap)?,
                "missing_frames" | "dropped_frames" => self.frames(gap)?,
                reason => return Err(format!("a gap with the reason {reason:?}").into()),
            }
        }
        for books in of_kind(self.evidence.ledger, "BOOKS") {
            let life = self.life(text(books, "run"))?;
            let end_ns = self.lives.get(life).map_or(0, |(session, _)| session.end_ns);
            for stay in books["ladder"].as_array().into_iter().flatten() {
                self.found.push(Interval {
                    name: Name::Step,
                    life,
                    class: None,
                    from_ns: stay["from_ns"].as_u64().ok_or("a step has no beginning")?,
                    to_ns: stay["to_ns"].as_u64().unwrap_or(end_ns),
                });
            }
        }
        self.rests();
        self.kills();
        Ok(())
    }

    /// Which of the lives has this run's tag.
    pub(super) fn life(&self, run: &str) -> Result<usize> {
        let place = self.lives.iter().position(|(session, _)| session.run == run);
        place.ok_or_else(|| format!("{run}: no such run").into())
    }

    /// An interval in which a killed agent's records are missing: within its life, and until
    /// the one that tells of it watched.
    fn interruption(&mut self, gap: &Value) -> Result {
        let life = self.life(text(gap, "run"))?;
        let teller = self.life(text(gap, "reported_by_run"))?;
        let [from_ns, to_ns] = ["from_ns", "to_ns"].map(|key| gap[key].as_u64().unwrap_or(0));
        let lives = [life, teller].map(|life| self.lives.get(life).map(|(session, _)| *session));
        let [Some(session), Some(teller)] = lives else { return Ok(()) };
        if !session.is_killed {
            self.faults.push(format!("ended in order, and is told of as killed: {gap}"));
        }
        if from_ns < session.begun_ns || to_ns > teller.ready_ns || teller.ready_ns < from_ns {
            self.faults.push(format!("reaches beyond the life that it is of: {gap}"));
        }
        let Some((_, run)) = self.lives.get(life) else { return Ok(()) };
        for class in Class::ALL {
            // What came before the last frame was in a frame, too.
            let held_ns = run.stream(class).values().map(|frame| frame.last_ns).max();
            let framed_ns = held_ns.unwrap_or(0).saturating_sub(DISORDER_NS);
            let (name, from_ns) = (Name::Interval, from_ns.max(framed_ns));
            self.found.push(Interval { name, life, class: Some(class), from_ns, to_ns });
        }
        Ok(())
    }

    /// Frames that are missing: of what came between the frames around them.
    fn frames(&mut self, gap: &Value) -> Result {
        let life = self.life(text(gap, "run"))?;
        let [first, last] = ["first", "last"].map(|key| gap[key].as_u64().unwrap_or(0));
        let class = gap["class"].as_u64().and_then(|class| Class::of_number(class as u8));
        let class = class.ok_or("a gap has no class")?;
        let Some((session, run)) = self.lives.get(life) else { return Ok(()) };
        let stream = run.stream(class);
        let before = stream.range(..first).map(|(_, frame)| frame.last_ns).max();
        let after = stream.range(last..).find(|(_, frame)| frame.last_ns > 0);
        let to_ns = after.map(|(sequence, after)| {
            // What refers to files and processes in them cannot be read, either.
            let follows = |frame: &&Held| !after.begins && frame.generation == after.generation;
            let maimed = stream.range(sequence..).map(|(_, frame)| frame).take_while(follows);
            maimed.map(|frame| frame.last_ns).max().unwrap_or(0).max(after.last_ns)
        });
        let dropped = text(gap, "reason") == "dropped_frames";
        self.found.push(Interval {
            name: Name::Frames { dropped },
            life,
            class: Some(class),
            // Where a run begins or ends with them, its life says how far that goes.
            from_ns: before.map_or(session.begun_ns, |ns| ns.saturating_sub(DISORDER_NS)),
            to_ns: to_ns.unwrap_or(session.ended_ns),
        });
        Ok(())
    }

    /// Whether urgent frames are missing that would have told of a life's beginning, or its end.
    fn lacks(&self, life: usize, edge: fn(&Session, &Interval) -> bool) -> bool {
        let Some((session, _)) = self.lives.get(life) else { return false };
        self.found.iter().any(|interval| {
            matches!(interval.name, Name::Frames { .. })
                && interval.life == life
                && interval.class == Some(Class::Urgent)
                && edge(session, interval)
        })
    }

    /// Between a farewell and the next start nobody watched, by order.
    fn rests(&mut self) {
        let closed: Vec<&str> = of_kind(self.evidence.ledger, "BOOKS")
            .filter(|books| text(books, "ending") == "closed")
            .map(|books| text(books, "run"))
            .collect();
        for (life, pair) in self.evidence.sessions.windows(2).enumerate() {
            let [session, next] = pair else { continue };
            if session.is_killed {
                continue;
            }
            let is_told = closed.contains(&session.run.as_str());
            let lacks_end = self.lacks(life, |session, gap| gap.to_ns >= session.ended_ns);
            if !is_told && !lacks_end {
                self.follows(life, "ended in order");
            }
            let (from_ns, to_ns) = (session.end_ns, next.ready_ns);
            self.found.push(Interval { name: Name::Interval, life, class: None, from_ns, to_ns });
        }
    }

    /// Each kill lies in an interval that is named, but where the frames that named it are missing.
    fn kills(&mut self) {
        for (life, session) in self.evidence.sessions.iter().enumerate() {
            let told = |interval: &Interval| {
                interval.name == Name::Interval
                    && (interval.from_ns..=interval.to_ns).contains(&session.ended_ns)
            };
            if !session.is_killed || self.found.iter().any(told) {
                continue;
            }
            self.follows(life, "was killed");
        }
    }

    /// What a life does not tell of its end the next one does, with how many frames there were, unless
    /// its beginning is missing, too.
    fn follows(&mut self, life: usize, how: &str) {
        let pair = self.evidence.sessions.get(life).zip(self.evidence.sessions.get(life + 1));
        let Some((session, next)) = pair else { return };
        if !self.lacks(life + 1, |next, gap| gap.from_ns <= next.begun_ns) {
            self.faults.push(format!("{session:?} {how}, and nothing tells of it"));
        }
        let Some((_, run)) = self.lives.get(life) else { return };
        for class in Class::ALL {
            let held_ns = run.stream(class).values().map(|frame| frame.last_ns).max();
            self.found.push(Interval {
                name: Name::Frames { dropped: false },
                life,
                class: Some(class),
                from_ns: held_ns.unwrap_or(session.begun_ns),
                to_ns: next.ready_ns,
            });
        }
    }
}
