//! The thread itself: waits, sends, and does what the answers ask for.

use std::collections::VecDeque;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use codec::CLASSES;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};

use super::answer::{Held, Less, Outcome, Refusal};
use super::backoff::{self, Backoff};
use super::budget;
use super::client::Client;
use super::pace::Pace;
use super::{Report, Shared};
use crate::config;
use crate::day_budget::DayBudget;
use crate::logger::RateLimit;
use crate::spool::{Reader, Sent};
use crate::wear::Meter;

/// After so many failures to read one segment that is damaged the reader goes on behind it.
const READ_FAILURES_MAX: u32 = 3;
/// So many lost generations are remembered: a few runs of a few classes.
const LOST_MAX: usize = 16;
/// The same complaint is repeated so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(600);
/// Days before its end from which on a certificate is complained about.
const DAYS_LEFT_WARN: i64 = 30;
/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing waits.
    Empty,
    /// What waits is more than the budget of the day has left.
    Held,
    /// Try again after so long.
    Retry(Duration),
    /// The deadline of the stop came first.
    OutOfTime,
}

/// The search for the frame that made the collector refuse a batch.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// Frames to send at a time.
    frames: usize,
    /// It is among so many that come next.
    left: usize,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    client: Client,
    certificate: PathBuf,
    interval: Duration,
    reader: Reader,
    buffer: Vec<u8>,
    pace: Pace,
    budget: DayBudget,
    /// Counts the writes of its state.
    meter: Meter,
    backoff: Backoff,
    search: Option<Search>,
    /// Generations whose start the collector lacks, newest last: no frame of them is sent.
    lost: VecDeque<Generation>,
    read_failures: u32,
    complaint: Complaint,
    shrinking: Complaint,
    unwritten: Complaint,
    renewal: Complaint,
    expiry: RateLimit,
}

impl Worker {
    /// Begins with an empty buffer and without a failure.
    pub(super) fn new(
        shared: Arc<Shared>,
        collector: &config::Collector,
        client: Client,
        reader: Reader,
        budget: DayBudget,
        meter: Meter,
    ) -> Worker {
        Worker {
            shared,
            pace: Pace::new(collector.upload_bytes_max),
            certificate: collector.certificate.clone(),
            interval: Duration::from_secs(collector.upload_interval_s.into()),
            client,
            reader,
            buffer: Vec::new(),
            budget,
            meter,
            backoff: Backoff::default(),
            search: None,
            lost: VecDeque::with_capacity(LOST_MAX),
            read_failures: 0,
            complaint: Complaint::new(),
            shrinking: Complaint::new(),
            unwritten: Complaint::new(),
            renewal: Complaint::new(),
            expiry: RateLimit::new(Duration::from_secs(86_400)),
        }
    }

    pub(super) fn run(&mut self) {
        self.shared.signals().agent = Some(self.client.agent());
        let mut wait = backoff::phase(self.client.agent_id(), self.interval);
        let mut backing_off = false;
        let mut report = Report { finished: true, emptied: false };
        loop {
            let stop = self.wait(wait, backing_off);
            self.check_certificate();
            match self.upload(stop) {
                end @ (End::Empty | End::Held) => {
                    wait = backoff::next(self.interval, random());
                    backing_off = false;
                    report.emptied = stop.is_some() && end == End::Empty;
                }
                End::Retry(after) => {
                    wait = after;
                    backing_off = true;
                }
                End::OutOfTime => report.finished = false,
            }
            if stop.is_some() {
                break;
            }
        }
        self.reader.close();
        self.budget_written(|budget| budget.close().map(|()| true));
        self.shared.signals().done = Some(report);
        self.shared.changed.notify_all();
    }

    /// Waits until it is time, somebody wakes us, or the order to stop comes, which is
    /// returned.
    fn wait(&self, time: Duration, backing_off: bool) -> Option<Instant> {
        let until = Instant::now() + time;
        let mut signals = self.shared.signals();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let is_due = left.is_zero() || (signals.wake && !backing_off);
            if is_due || signals.reload || signals.deadline.is_some() {
                signals.wake = false;
                return signals.deadline;
            }
            let waited = self.shared.changed.wait_timeout(signals, left);
            signals = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Empties the spool, as far as it goes.
    fn upload(&mut self, stop: Option<Instant>) -> End {
        let mut first = true;
        loop {
            if self.shared.signals().reload {
                self.check_certificate();
            }
            // An order to stop that comes now bounds what is still to be done.
            let stop = stop.or(self.shared.signals().deadline);
            let limit = stop.map(|stop| stop.saturating_duration_since(Instant::now()));
            if limit.is_some_and(|limit| limit.is_zero()) {
                return End::OutOfTime;
            }
            match self.take() {
                Ok(0) if self.reader.depth().frames > 0 => return End::Held,
                Ok(0) => return End::Empty,
                Ok(_) => {}
                Err(error) => return self.failed(None, &error),
            }
            let outcome = self.post(first, limit);
            first = false;
            let ended = match outcome {
                Outcome::Delivered(held) => self.delivered(&held),
                Outcome::RetryAfter { wait, reason } => Some(self.failed(wait, &reason)),
                Outcome::SendLess { less, reason } => self.send_less(less, &reason),
                Outcome::Refused { refusal, reason } => {
                    self.refused(refusal, &reason);
                    None
                }
            };
            if let Some(end) = ended {
                self.reader.release();
                return end;
            }
        }
    }

    /// Sends what is in the buffer, and counts what that cost.
    fn post(&mut self, first: bool, limit: Option<Duration>) -> Outcome {
        let (before, begun) = (self.client.traffic(), Instant::now());
        // Counted before, so that nothing that ends the agent meanwhile makes it forgotten.
        let reserved = self.buffer.len() as u64;
        self.budget_written(|budget| budget.spend(reserved));
        let outcome = self.client.post(&self.buffer, first, limit);
        let cost = self.client.traffic().saturating_sub(before);
        self.budget_written(|budget| match cost.checked_sub(reserved) {
            Some(more) => budget.spend(more),
            None => budget.give_back(reserved - cost),
        });
        self.shared.counters.link(self.client.traffic(), self.budget.standing());
        if matches!(outcome, Outcome::Delivered(_)) {
            self.pace.arrived(self.buffer.len(), begun.elapsed());
        }
        outcome
    }

    fn budget_written(&mut self, change: impl FnOnce(&mut DayBudget) -> std::io::Result<bool>) {
        match change(&mut self.budget) {
            Ok(true) => self.meter.count(),
            Ok(false) => {}
            Err(error) => self.unwritten.say(&error.to_string(), |text| {
                log::warn!("what the link carried is not kept over a restart: {text}");
            }),
        }
    }

    /// How large the next body may be, by class; 0: none.
    fn body_bytes_max(&mut self) -> [usize; CLASSES] {
        self.budget.look(boot_ns());
        self.shared.counters.link(self.client.traffic(), self.budget.standing());
        let [urgent, volume] = budget::body_bytes_max(&self.budget);
        let [urgent_max, volume_max] = self.pace.body_bytes_max();
        [urgent.min(urgent_max), volume.min(volume_max)]
    }

    /// Fills the buffer; returns the number of frames in it, 0 also where the budget holds back
    /// what waits.
    fn take(&mut self) -> Result<usize, String> {
        let mut frames_max = self.search.map_or(usize::MAX, |search| search.frames);
        let mut bytes_max = self.body_bytes_max();
        let within = budget::body_bytes_max(&self.budget);
        loop {
            let batch = self.reader.batch_within(&mut self.buffer, bytes_max, frames_max);
            let sent = match batch {
                Ok(sent) => sent,
                Err(error) => {
                    // What is away may come back: only what is damaged is given up.
                    let is_lost = self.reader.is_lost(&error);
                    self.read_failures += u32::from(is_lost);
                    if !is_lost || self.read_failures < READ_FAILURES_MAX {
                        return Err(error.to_string());
                    }
                    self.read_failures = 0;
                    self.reader.abandon();
                    self.count_damage();
                    log::error!("{error}: given up, its records are counted as lost");
                    continue;
                }
            };
            self.read_failures = 0;
            let orphan = |sent: &Sent| orphan_of(sent).is_some_and(|of| self.lost.contains(&of));
            let orphans = sent.iter().take_while(|sent| orphan(sent)).count();
            let frames = sent.iter().take_while(|sent| !orphan(sent)).count();
            let all = sent.len();
            let class = sent.first().map(|sent| usize::from(sent.key.class).min(CLASSES - 1));
            let length = sent.iter().map(|sent| sent.bytes).sum::<usize>();
            self.count_damage();
            if orphans > 0 {
                let dropped = self.reader.discard(orphans);
                self.shared.counters.refuse(Refusal::GenerationLost, dropped.records);
            } else if let Some(held) = class.filter(|class| within.get(*class) < Some(&length)) {
                // One frame can be larger than what it may be: it waits for the next day.
                if let Some(bytes_max) = bytes_max.get_mut(held) {
                    *bytes_max = 0;
                }
            } else if frames == all {
                return Ok(frames);
            } else {
                frames_max = frames;
            }
        }
    }

    fn delivered(&mut self, held: &Held) -> Option<End> {
        let settled = self.reader.acknowledge(|key| held.holds(key));
        if settled.frames == 0 {
            let text = "collector answers 200 but does not hold the frame that was sent";
            return Some(self.failed(None, &text));
        }
        let counters = &self.shared.counters;
        if self.backoff.failures() > 0 {
            log::info!("collector takes frames again, after {} failures", self.backoff.failures());
        }
        self.backoff.succeed();
        self.complaint.settle();
        counters.succeed(&settled, self.client.now_s());
        if let Some(search) = &mut self.search {
            search.left = search.left.saturating_sub(settled.frames as usize);
            if search.left == 0 {
                self.search = None;
            }
        }
        None
    }

    fn failed(&mut self, wait: Option<Duration>, reason: &dyn Display) -> End {
        let wait = self.backoff.fail(wait, random());
        let text = reason.to_string();
        self.complaint.say(&text, |text| {
            log::warn!("upload: {text}; trying again in {} s", wait.as_secs().max(1));
        });
        self.shared.counters.fail(self.backoff.failures(), text);
        End::Retry(wait)
    }

    /// Less is sent at a time from now on; nothing is dropped.
    fn send_less(&mut self, less: Less, reason: &str) -> Option<End> {
        match less {
            Less::Size => self.pace.too_large(self.buffer.len()),
            Less::Time | Less::Cut => self.pace.too_slow(self.buffer.len()),
        }
        let frames = self.reader.in_flight().len();
        if frames < 2 {
            return Some(self.failed(None, &reason));
        }
        self.search = Some(Search { frames: frames / 2, left: frames });
        if less == Less::Cut {
            // It may not be there any more.
            return Some(self.failed(None, &reason));
        }
        self.say_less(reason);
        None
    }

    fn say_less(&mut self, reason: &str) {
        let [bytes_max, _] = self.pace.body_bytes_max();
        self.shrinking.say(reason, |text| {
            log::warn!("upload: {text}; sending less at a time, at most {bytes_max} bytes");
        });
    }

    fn refused(&mut self, refusal: Refusal, reason: &str) {
        let sent = self.reader.in_flight();
        let frames = sent.len();
        if frames > 1 {
            if refusal == Refusal::TooLarge {
                self.pace.too_large(self.buffer.len());
                self.say_less(reason);
            }
            self.search = Some(Search { frames: frames / 2, left: frames });
            return;
        }
        self.search = None;
        if refusal == Refusal::GenerationLost
            && let Some(generation) = sent.first().and_then(orphan_of)
        {
            if self.lost.len() == LOST_MAX {
                self.lost.pop_front();
            }
            self.lost.push_back(generation);
            self.shared.counters.lose_generation(generation.1);
        }
        let dropped = self.reader.discard(1);
        self.shared.counters.refuse(refusal, dropped.records);
        self.complaint.say(reason, |text| {
            log::error!("upload: {text}; dropped the frame, {} records", dropped.records);
        });
    }

    fn count_damage(&self) {
        self.shared.counters.damage(self.reader.damaged_records());
    }

    /// Takes renewed files over, and warns of a certificate that ends soon.
    fn check_certificate(&mut self) {
        let is_asked = std::mem::take(&mut self.shared.signals().reload);
        if is_asked {
            // Whoever asks is answered.
            self.renewal.settle();
        }
        match self.client.refresh(is_asked) {
            Ok(true) => {
                self.renewal.settle();
                self.shared.signals().agent = Some(self.client.agent());
                let file = self.certificate.display();
                if is_asked {
                    log::info!("reload: {file}: read anew (the configuration takes a restart)");
                } else {
                    log::info!("{file}: read anew");
                }
            }
            Ok(false) => {}
            Err(error) => self.renewal.say(&error.to_string(), |text| {
                log::warn!("{text}; the former certificate stays in use");
            }),
        }
        let days = self.client.days_left();
        self.shared.counters.certificate(days);
        if days < DAYS_LEFT_WARN && self.expiry.admit(Instant::now()).is_some() {
            log::warn!("{}: {days} days left, renew it", self.certificate.display());
        }
    }
}

/// Run tag, class, and number in them.
type Generation = ([u8; 8], u8, u32);

/// The generation of a frame that cannot be read without frames before it.
fn orphan_of(sent: &Sent) -> Option<Generation> {
    (!sent.starts).then_some((sent.key.run_tag, sent.key.class, sent.generation))
}

/// What was complained about last: the same again is said seldom, something else at once.
struct Complaint {
    text: String,
    limit: RateLimit,
}

impl Complaint {
    fn new() -> Self {
        Complaint { text: String::new(), limit: RateLimit::new(COMPLAINT_INTERVAL) }
    }

    fn say(&mut self, text: &str, log: impl FnOnce(&str)) {
        if self.text != text {
            self.text = text.into();
            self.limit.reset();
        }
        match self.limit.admit(Instant::now()) {
            Some(0) => log(text),
            Some(more) => log(&format!("{text} ({more} times more since)")),
            None => {}
        }
    }

    fn settle(&mut self) {
        self.text.clear();
    }
}

/// Nanoseconds on the boot clock.
fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec).max(0) as u64
}

/// For jitter only: without random bytes all devices wait equally long.
fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom(&mut bytes, GetRandomFlags::empty());
    u32::from_le_bytes(bytes)
}
