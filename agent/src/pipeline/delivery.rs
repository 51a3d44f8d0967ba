//! `run`: finished frames go into the spool, and from there to the collector by the upload
//! thread. Keeps the state of the run and the status file.

mod start;

pub use start::{purge, run};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bpf::Probes;
use codec::{CLASSES, Class, Frame, Step, Strain, Term};

use super::strain::percent;
use super::{Error, Losses, Outlet, drop_privileges};
use crate::batch::{Books, Kept, Signer, Sink};
use crate::config::Config;
use crate::confinement::Needs;
use crate::ladder::Measures;
use crate::logger::RateLimit;
use crate::run_state::RunState;
use crate::spool::{Appended, Reader, Writer};
use crate::status::{self, Status};
use crate::supervisor::Supervisor;
use crate::syncer::{Syncer, Ticket};
use crate::tls::seal_key::Sealer;
use crate::tombstones::Graveyard;
use crate::untold::{self, Late, Untold};
use crate::upload::{self, Upload};
use crate::wear::Wear;

/// The same complaint is repeated so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

struct Delivery {
    config: Config,
    writer: Writer,
    /// What the upload thread is started with, once no privilege is left to inherit.
    thread: Option<(upload::Settings, Reader)>,
    upload: Option<Upload>,
    sealer: Sealer,
    /// Set by whoever wants the certificate files to be read anew.
    reload: Arc<AtomicBool>,
    state: RunState,
    /// What was dropped, until a frame that tells of it is in the spool.
    untold: Untold,
    /// The day's bytes for flash, if it has so few.
    wear: Option<Arc<Wear>>,
    status: Status,
    /// What the upload thread had lost when it was last asked.
    lost: Lost,
    /// Whether a frame has come since the state was last written.
    framed: bool,
    /// Whether an urgent frame of this run is in the spool: it tells of the runs before.
    introduced: bool,
    /// Whether all such frames were out of memory once: durable in a file, or delivered. Before, a
    /// kill may take what this run tells of the runs before.
    rooted: bool,
    /// What the device is to have done by then, once it was asked.
    rooting: Option<Ticket>,
    /// Whether frames in the spool tell of all that was dropped: that is noted when this is rooted.
    is_told: bool,
    /// Up to when everything that was observed has been given to this, boot clock, ns.
    until_ns: u64,
    /// When the spool was made durable last.
    synced: Instant,
    /// Makes durable what nothing waits for.
    syncer: Syncer,
    /// What it was asked for when the spool was made durable last.
    asked: Ticket,
    /// The same before the present act.
    before: Ticket,
    complaint: RateLimit,
    /// For the complaint that the device is slow, lest it keep others from being said.
    slowness: RateLimit,
    /// Whether it was said that the file system leaves the spool less than all of its bytes.
    cramped: bool,
    supervisor: Supervisor,
    /// What the supervisor has been told of the state.
    told: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    generations: [u64; CLASSES],
    refused: u64,
    damaged: u64,
}

impl Delivery {
    fn write_status(&mut self, books: Option<&Books>) {
        let room = self.writer.bytes_max();
        self.note_room(room);
        let wear = self.wear.as_ref().map(|wear| wear.standing()).unwrap_or_default();
        let status = &mut self.status;
        status.written_unix_s = unix_s();
        status.spool = status::Spool {
            written_bytes: self.writer.written_bytes(),
            write_bytes_per_day: wear.bytes_per_day,
            day_written_bytes: wear.spent,
            next_day_s: wear.next_day_s,
            ..status::Spool::new(self.writer.depth(), room)
        };
        if let Some(upload) = &self.upload {
            status.upload = upload.counters().snapshot();
        }
        if let Some(books) = books {
            status.ledger = Term::ALL
                .into_iter()
                .map(|term| (term.name().to_string(), books.sum(term)))
                .collect();
        }
        if let Err(error) = status.write(&self.config.status.file) {
            let text = format!("{}: {error}", self.config.status.file.display());
            self.complain(format_args!("{text}"));
        }
    }

    /// The state in a line.
    fn summary(&self) -> String {
        let Status { hooks_attached, hooks_missing, spool, upload, .. } = &self.status;
        let missing = match hooks_missing.len() {
            0 => String::new(),
            count => format!(", {count} missing"),
        };
        let delivery = match upload.failures {
            0 => String::new(),
            failures => format!("; {failures} uploads failed in a row: {}", upload.last_error),
        };
        format!(
            "watching with {} hooks{missing}; {} frames wait in the spool{delivery}",
            hooks_attached.len(),
            spool.frames
        )
    }

    /// Notes what an append did: what was dropped is kept in mind until a frame has told of it.
    fn note(&mut self, class: Class, appended: &Appended) {
        // The run's first urgent frame tells of all that is known then.
        let is_first = class == Class::Urgent && !self.introduced && appended.is_kept;
        self.introduced |= is_first;
        self.framed |= appended.is_kept;
        if is_first {
            // Neither a kill nor a loss of power may take what this run tells of the runs before.
            if let Err(error) = self.writer.sync_class(Class::Urgent) {
                self.complain(format_args!("{error}"));
            }
        }
        if is_first || (appended.tells_of_dropped && !self.rooted) {
            self.is_told = true;
        } else if appended.tells_of_dropped {
            self.note_told();
        }
        // A later frame tells of these, and of all before them.
        self.is_told &= appended.dropped.is_empty();
        self.root();
        self.note_rooted();
        self.note_dropped(&appended.dropped);
    }

    fn note_told(&mut self) {
        if let Err(error) = self.untold.told() {
            self.complain(format_args!("dropped frames will be told again: {error}"));
        }
    }

    /// Returns whether it is kept in mind.
    fn note_dropped(&mut self, dropped: &Graveyard) -> bool {
        if dropped.is_empty() {
            return true;
        }
        let noted = self.untold.add_dropped(dropped);
        if let Err(error) = &noted {
            self.complain(format_args!("{}: {error}", untold::FILE));
        }
        noted.is_ok()
    }

    /// Keeps what the last delivery lost, now that the books are closed, for the next run.
    fn note_late(&mut self) {
        let Losses { refused, damaged, .. } = self.losses();
        self.untold.add_late(Late { refused, damaged });
    }

    fn sync(&mut self) {
        self.before = self.syncer.ticket();
        self.synced = Instant::now();
        if self.syncer.outcome(self.asked).is_none()
            && let Some(repeated) = self.slowness.admit(self.synced)
        {
            log::warn!(
                "spool: the device takes more than spool.sync_interval_s to make durable what it was \
                 given: a loss of power takes more than that ({repeated} times more since this was \
                 last said)"
            );
        }
        if self.introduced && !self.rooted && self.rooting.is_none() {
            // In memory still, or refused by the device.
            if let Err(error) = self.writer.sync_class(Class::Urgent) {
                self.complain(format_args!("{error}"));
            }
        }
        if let Err(error) = self.writer.sync() {
            self.complain(format_args!("{error}"));
        }
        self.asked = self.syncer.ticket();
        self.root();
        self.note_rooted();
    }

    /// Says what the device refused while nobody waited for it.
    fn note_sync(&mut self) {
        if let Some(error) = self.syncer.error() {
            let folder = self.config.spool.directory.clone();
            self.complain(format_args!("sync in {}: {error}", folder.display()));
        }
    }

    /// Notes what the device is to do until the run is rooted, once urgent frames are out of memory:
    /// that was asked for before this is called.
    fn root(&mut self) {
        let is_out = || self.introduced && !self.writer.holds(Class::Urgent);
        if !self.rooted && self.rooting.is_none() && is_out() {
            self.rooting = Some(self.syncer.ticket_since(self.before));
        }
    }

    /// Notes it when what this run tells of the runs before is durable.
    fn note_rooted(&mut self) {
        let outcome = self.rooting.filter(|_| !self.rooted).map(|root| self.syncer.outcome(root));
        match outcome.flatten() {
            None => {}
            // It is asked for anew.
            Some(false) => self.rooting = None,
            Some(true) => {
                self.rooted = true;
                if std::mem::take(&mut self.is_told) {
                    self.note_told();
                }
            }
        }
    }

    /// Makes durable what waits in memory, or at least what is told of it.
    fn close(&mut self) {
        self.before = self.syncer.ticket();
        let (dropped, refused) = self.writer.close();
        if let Some(error) = self.syncer.error() {
            log::error!("sync in {}: {error}", self.config.spool.directory.display());
        }
        // Where urgent frames went, what they told of the runs before did, too: the next run tells it.
        self.introduced &= dropped.stones().iter().all(|stone| stone.class != Class::Urgent as u8);
        self.is_told &= dropped.is_empty();
        self.root();
        self.note_rooted();
        self.note_late();
        let is_noted = self.note_dropped(&dropped);
        let kept = self.untold.close();
        if let Err(error) = &kept {
            self.complain(format_args!("{}: {error}", untold::FILE));
        }
        if let Some(error) = refused {
            let frames = dropped.stones().iter().map(|stone| stone.frames).sum::<u64>();
            let told = if is_noted && kept.is_ok() {
                "the next run tells which"
            } else {
                "they will be missing without a reason"
            };
            log::error!("{error}: {frames} frames dropped: {told}");
        }
    }

    /// Says when the file system begins to leave the spool no more than `room` bytes.
    fn note_room(&mut self, room: u64) {
        let (most, percent) = (self.config.spool.bytes_max, self.config.spool.free_percent);
        if room >= most {
            self.cramped = false;
        } else if !self.cramped {
            // What is not admitted now is said another time.
            self.cramped = self.complain(format_args!(
                "spool: the file system leaves it {room} bytes instead of spool.bytes_max = {most}: \
                 make room, or lower spool.bytes_max or spool.free_percent = {percent}"
            ));
        }
    }

    /// Whether it was said, and not too soon after another complaint.
    fn complain(&mut self, text: std::fmt::Arguments<'_>) -> bool {
        let admitted = self.complaint.admit(Instant::now());
        if let Some(repeated) = admitted {
            log::error!("{text} ({repeated} more since the last complaint)");
        }
        admitted.is_some()
    }
}

impl Sink for Delivery {
    fn frame(&mut self, class: Class, frame: &[u8]) -> Kept {
        self.before = self.syncer.ticket();
        self.state.frame_made(class);
        let appended = self.writer.append(frame);
        if let Some(error) = self.writer.trouble() {
            self.complain(format_args!("{error}"));
        }
        match appended {
            Ok(appended) => {
                if appended.waiting_bytes >= self.config.collector.upload_bytes_max as u64
                    && let Some(upload) = &self.upload
                {
                    upload.wake();
                }
                self.note(class, &appended);
                Kept {
                    lost: [
                        Some((Term::LostSpoolFull, appended.dropped_records)),
                        Some((Term::LostFlashBudget, appended.unwritten_records)),
                    ],
                    restart: appended.restart,
                    dropped: appended.dropped,
                }
            }
            Err(error) => {
                self.complain(format_args!("frame lost: {error}"));
                let records = Frame::decode(frame).map_or(0, |(f, _)| u64::from(f.header.records));
                let mut restart = [false; CLASSES];
                restart[class as usize] = true;
                let dropped = Graveyard::default();
                Kept { lost: [Some((Term::LostSpoolError, records)), None], restart, dropped }
            }
        }
    }
}

impl Outlet for Delivery {
    fn ready(&mut self, probes: &Probes) -> Result<(), Error> {
        // Without privileges the kernel does not say it any more.
        self.status.jit = probes.is_jited();
        drop_privileges(probes, &Needs::of(&self.config))?;
        if let Some((settings, reader)) = self.thread.take() {
            let upload = upload::spawn(settings, reader)
                .map_err(|e| Error::System("starting the upload thread", e))?;
            self.upload = Some(upload);
        }
        self.syncer
            .go_beside()
            .map_err(|e| Error::System("starting the thread that makes files durable", e))?;
        self.status.ready = true;
        self.status.hooks_attached =
            probes.attached().iter().map(|hook| hook.name().to_string()).collect();
        self.status.hooks_missing =
            probes.missing().iter().map(|(hook, why)| format!("{}: {why}", hook.name())).collect();
        self.status.privileges = status::privileges().unwrap_or_default();
        self.write_status(None);
        self.supervisor.ready(&self.summary());
        Ok(())
    }

    fn told_until(&mut self, until_ns: u64) -> Result<(), Error> {
        self.until_ns = until_ns;
        self.note_rooted();
        if !self.rooted || !std::mem::take(&mut self.framed) {
            return Ok(());
        }
        if let Err(error) = self.state.frame_written(until_ns) {
            self.complain(format_args!("state of the run not written: {error}"));
        }
        Ok(())
    }

    fn losses(&mut self) -> Losses {
        let Some(upload) = &self.upload else { return Losses::default() };
        let counters = upload.counters();
        let lost = Lost {
            generations: Class::ALL.map(|class| counters.generations_lost(class)),
            refused: counters.refused_records(),
            damaged: counters.damaged_records(),
        };
        let before = std::mem::replace(&mut self.lost, lost);
        Losses {
            refused: lost.refused - before.refused,
            damaged: lost.damaged - before.damaged,
            restart: Class::ALL.map(|class| {
                lost.generations[class as usize] != before.generations[class as usize]
            }),
        }
    }

    fn tick(&mut self, books: &Books) {
        let interval = Duration::from_secs(self.config.spool.sync_interval_s.into());
        // Where each frame is durable at once, that is for those that the device refused.
        if self.synced.elapsed() >= interval {
            self.sync();
        }
        self.note_sync();
        self.write_status(Some(books));
        let summary = self.summary();
        if summary != self.told {
            self.supervisor.status(&summary);
            self.told = summary;
        }
    }

    fn signer(&self) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.sealer.clone()))
    }

    fn measure(&self, measures: &mut Measures) {
        let depth = self.writer.depth();
        let full = percent(depth.waiting_bytes, self.writer.bytes_max());
        measures.note(Strain::Spool, full);
        if let Some(upload) = &self.upload {
            measures.note(Strain::Link, upload.counters().link_pressure_percent());
        }
        if let Some(wear) = &self.wear {
            measures.note(Strain::Flash, wear.standing().pressure_percent);
        }
    }

    fn stepped(&mut self, step: Step) {
        self.status.step = step.name().into();
    }

    fn alive(&mut self, now: Instant) {
        self.supervisor.alive(now);
        if let Some(upload) = &self.upload
            && self.reload.swap(false, Ordering::Relaxed)
        {
            upload.reload();
        }
    }

    fn stopping(&mut self) {
        self.supervisor.stopping();
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
