//! Starts a run: opens what it keeps from those before it, and ends in order; and throws away what an
//! operator does not want delivered.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use codec::Step;

use super::super::{
    Error, Former, Losses, Outlet as _, Settings, boot_id, boot_ns, file_error, identity,
    reload_on_signal, stop_on_signal, watch,
};
use super::{COMPLAINT_INTERVAL, Delivery, Lost, unix_s};
use crate::batch::Identity;
use crate::config::{Config, SpoolSync};
use crate::day_budget::DayBudget;
use crate::logger::RateLimit;
use crate::run_state::RunState;
use crate::spool::{self, Purged, Spool, SpoolError, Sync};
use crate::status::Status;
use crate::supervisor::Supervisor;
use crate::syncer::Syncer;
use crate::tls::clock::Clock;
use crate::tls::seal_key::Sealer;
use crate::tls::{Credentials, Files};
use crate::untold::{self, Late, Untold};
use crate::upload;
use crate::wear::{Meter, Wear};

/// How long the last delivery may take when the agent is told to stop. A service manager gives
/// up after 90 s as a rule.
const LAST_DELIVERY: Duration = Duration::from_secs(20);

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Throws away what waits in the spool; the next run tells the collector of it.
///
/// # Errors
/// See [`Error`]; [`SpoolError::InUse`] if an agent runs.
pub fn purge(config: &Config) -> Result<Purged, Error> {
    let folder = config.state_directory();
    let note = folder.join(untold::FILE);
    let untold = Untold::find(folder).map_err(file_error(&note))?;
    let until = untold.as_ref().map_or(0, Untold::until);
    // What an earlier purge counted is not counted again.
    spool::complete_purge(&config.spool.directory, until).map_err(Error::Spool)?;
    let purged = spool::purge(&config.spool.directory, |purged| {
        Untold::open(folder)
            .and_then(|mut untold| {
                Untold::hand_over(folder)?;
                untold.add_purge(purged.records, purged.until, &purged.stones)
            })
            .map_err(|source| SpoolError::Io { action: "write", path: note.clone(), source })
    });
    purged.map_err(Error::Spool)
}

/// Watches, spools and delivers until SIGTERM; at SIGHUP reads the certificate files anew.
///
/// # Errors
/// See [`Error`].
pub fn run(config: &Config) -> Result<(), Error> {
    let stop = stop_on_signal()?;
    let reload = reload_on_signal()?;
    let path = Settings::new(config)?;
    let folder = config.state_directory();
    let sync = match config.spool.sync {
        SpoolSync::Frame => Sync::EachFrame,
        SpoolSync::Interval => Sync::OnRequest,
        SpoolSync::MemoryFirst => Sync::MemoryFirst { bytes_max: config.spool.memory_bytes },
    };
    let limits = spool::Limits { bytes_max: config.spool.bytes_max, sync };
    let until = Untold::find(folder).map_err(file_error(&folder.join(untold::FILE)))?;
    let until = until.as_ref().map_or(0, Untold::until);
    spool::complete_purge(&config.spool.directory, until).map_err(Error::Spool)?;
    let (mut writer, mut reader, recovery) =
        Spool::open(&config.spool.directory, limits).map_err(Error::Spool)?;
    // Made now: what is to be told of a full disk is noted on it.
    let mut untold = Untold::open(folder).map_err(file_error(&folder.join(untold::FILE)))?;
    writer.keep_free(config.spool.free_percent);
    writer.hold_at_most(config.spool.memory_bytes);
    if recovery.cut_bytes + recovery.damaged_bytes > 0 {
        log::warn!(
            "spool: {} bytes of an unfinished frame cut, {} damaged bytes skipped",
            recovery.cut_bytes,
            recovery.damaged_bytes
        );
    }
    if recovery.foreign_bytes > 0 {
        log::warn!(
            "spool: {} bytes of frames of another version set aside: an agent that reads them \
             delivers them ({}/*.aside)",
            recovery.foreign_bytes,
            config.spool.directory.display()
        );
    }
    let (clock, error) = Clock::open(folder);
    if let Some(error) = error {
        log::warn!("{}: told time is not kept: {error}", folder.display());
    }
    let clock = Arc::new(clock);
    let credentials =
        Credentials::load(&Files::from(&config.collector), config.agent.id.as_deref(), &clock)
            .map_err(|error| Error::Config(error.to_string()))?;
    let boot_id = boot_id()?;
    let file = folder.join(upload::BUDGET_FILE);
    let mut budget = DayBudget::open(&file, config.collector.bytes_per_day, boot_id, boot_ns())
        .map_err(file_error(&file))?;
    let per_day = config.spool.write_bytes_per_day;
    let wear = match per_day {
        0 => None,
        _ => Some(Arc::new(
            Wear::open(folder, per_day, boot_id, boot_ns).map_err(file_error(folder))?,
        )),
    };
    if let Some(wear) = &wear {
        writer.spare(Arc::clone(wear));
        reader.spare(Arc::clone(wear));
        budget.spare();
    }
    untold.spare(wear.clone());
    let syncer = Syncer::default();
    writer.sync_by(syncer.clone());
    untold.sync_by(syncer.clone());
    let (mut state, before) =
        RunState::begin(folder, boot_id, boot_ns(), wear.clone()).map_err(file_error(folder))?;
    state.sync_by(syncer.clone());
    if credentials.seal_key.is_none() {
        let key = credentials.files.key.display();
        log::warn!("{key}: no key of P-256, P-384 or Ed25519: seals of generations are not signed");
    }
    let sealer = Sealer::new(credentials.seal_key.clone());
    let identity: Identity = identity(credentials.agent_id.clone(), boot_id, state.run_id());
    let status = Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_unix_s: unix_s(),
        agent_id: identity.agent_id.clone(),
        run_id: hexadecimal(&identity.run_id),
        boot_id: hexadecimal(&identity.boot_id),
        step: Step::Everything.name().into(),
        ..Status::default()
    };
    let settings = upload::Settings {
        collector: config.collector.clone(),
        credentials,
        clock,
        sealer: sealer.clone(),
        timeouts: upload::Timeouts::default(),
        budget,
        meter: Meter::new(wear.clone()),
    };
    let purged_records = untold.records();
    let dropped = untold.stones().clone();
    let Late { refused, damaged } = untold.late();
    let late = Losses { refused, damaged, ..Losses::default() };
    let former = Former { before, purged_records, dropped, late };
    let delivery = Rc::new(RefCell::new(Delivery {
        config: config.clone(),
        writer,
        thread: Some((settings, reader)),
        upload: None,
        sealer,
        reload,
        state,
        untold,
        wear,
        status,
        lost: Lost::default(),
        framed: false,
        introduced: false,
        rooted: false,
        rooting: None,
        is_told: false,
        until_ns: 0,
        synced: Instant::now(),
        asked: syncer.ticket(),
        before: syncer.ticket(),
        syncer,
        complaint: RateLimit::new(COMPLAINT_INTERVAL),
        slowness: RateLimit::new(COMPLAINT_INTERVAL),
        cramped: false,
        supervisor: Supervisor::from_environment(Instant::now()),
        told: String::new(),
    }));
    watch(&path, identity, former, None, &stop, &delivery)?;
    let mut delivery = delivery.borrow_mut();
    if let Some(upload) = &delivery.upload {
        upload.shutdown(Instant::now() + LAST_DELIVERY);
    }
    delivery.close();
    let left = delivery.writer.depth().frames;
    if left > 0 {
        log::warn!(
            "stopped with {left} frames in the spool: they are delivered after the next start"
        );
    }
    let until_ns = delivery.until_ns;
    delivery.told_until(until_ns)?;
    delivery.status.ready = false;
    delivery.write_status(None);
    delivery.state.close().map_err(file_error(folder))?;
    delivery.wear.as_ref().map_or(Ok(()), |wear| wear.close()).map_err(file_error(folder))
}
