//! A device with frames in its spool, and what it delivers to: one fleet for all tests.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use agent::config::{self, Config};
use agent::day_budget::DayBudget;
use agent::spool::{Limits, Spool, Sync, Writer};
use agent::tls::clock::Clock;
use agent::tls::seal_key::Sealer;
use agent::tls::{Credentials, Files};
use agent::upload::{self, Settings, Snapshot, Timeouts, Upload};
use rustls::version::TLS13;

use crate::fleet::Ca;
use crate::receiver::{self, Collector, Reply, until};
use crate::sample;

/// One fleet for all tests, and another whose CA nobody here trusts.
pub(crate) struct Fleets {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) ours: Ca,
    pub(crate) foreign: Ca,
    pub(crate) files: Files,
}

pub(crate) static FLEETS: LazyLock<Fleets> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let ours = Ca::new(&directory.path().join("ours"), "ours");
    let foreign = Ca::new(&directory.path().join("foreign"), "foreign");
    for ca in [&ours, &foreign] {
        ca.sign("collector", "DNS:localhost", "serverAuth", 30);
    }
    let files = ours.sign_agent("agent", "gw-0001", 30);
    Fleets { directory, ours, foreign, files }
});

pub(crate) struct Device {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) writer: Writer,
    pub(crate) next: u64,
    pub(crate) upload: Upload,
}

impl Device {
    /// A device with frames of these sizes in its spool.
    pub(crate) fn start(
        collector: &Collector,
        frames: &[usize],
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Device::start_after(collector, frames, |_| {}, change)
    }

    /// The same, where something happens to its folder before the upload thread begins.
    pub(crate) fn start_after(
        collector: &Collector,
        frames: &[usize],
        happens: impl FnOnce(&Path),
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { bytes_max: 64 << 20, sync: Sync::OnRequest };
        let (mut writer, reader, _) = Spool::open(&directory.path().join("spool"), limits).unwrap();
        for (sequence, bytes) in frames.iter().enumerate() {
            writer.append(&sample::frame(sequence as u64, 1, *bytes)).unwrap();
        }
        let mut settings = settings(collector, &FLEETS.files, directory.path());
        change(&mut settings);
        happens(directory.path());
        let upload = upload::spawn(settings, reader).unwrap();
        upload.wake();
        Device { directory, writer, next: frames.len() as u64, upload }
    }

    pub(crate) fn append(&mut self, bytes: usize) {
        self.writer.append(&sample::frame(self.next, 1, bytes)).unwrap();
        self.next += 1;
        self.upload.wake();
    }

    pub(crate) fn counters(&self) -> Snapshot {
        self.upload.counters().snapshot()
    }

    /// Waits until nothing is in the spool, and what was in it, a record a frame, is counted, which
    /// comes after.
    pub(crate) fn empty(&self) {
        until("an empty spool", || {
            let Snapshot { records, refused_records, damaged_records, .. } = self.counters();
            let counted = records + refused_records.values().sum::<u64>() + damaged_records;
            self.writer.depth().frames == 0 && counted >= self.next
        });
    }

    /// Waits for a failure and returns its text; nothing has left the spool.
    pub(crate) fn error(&self) -> String {
        let frames = self.writer.depth().frames;
        until("a failure", || self.counters().failures > 0);
        assert_eq!((self.counters().frames, self.writer.depth().frames), (0, frames));
        self.counters().last_error
    }
}

pub(crate) fn settings(collector: &Collector, files: &Files, state: &Path) -> Settings {
    let clock = Arc::new(Clock::open(state).0);
    Settings {
        collector: config::Collector {
            url: collector.url(),
            ca: files.ca.clone(),
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            upload_interval_s: 86_400,
            ..Config::default().collector
        },
        credentials: Credentials::load(files, None, &clock).unwrap(),
        clock,
        sealer: Sealer::default(),
        timeouts: Timeouts::default(),
        budget: DayBudget::unlimited(),
        meter: Default::default(),
    }
}

pub(crate) fn collector(
    script: impl Fn(usize, &[u64]) -> Reply + Send + std::marker::Sync + 'static,
) -> Collector {
    let server = receiver::server(&FLEETS.ours, "collector", &FLEETS.ours, &TLS13);
    Collector::start(server, script)
}

pub(crate) fn error(kind: &str) -> String {
    format!(r#"{{"error":"{kind}","detail":"because"}}"#)
}
