//! What is read again while the collector runs: certificate, key, CA, revocation lists, and the
//! list of denied agents in the configuration file.
//!
//! The files are looked at each [`INTERVAL`], and read when they have changed and come to rest,
//! or at once at SIGHUP. All of them hold or none: one that is wrong leaves what was in use, and
//! is complained about once. What else the configuration file says takes a restart.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::config::{Config, Tls};
use crate::tls;

/// How often the files are looked at.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// The rules by which clients are taken now.
pub(crate) struct Rules {
    server: RwLock<tls::Server>,
    denied: RwLock<Arc<BTreeSet<String>>>,
    renewed: watch::Sender<()>,
}

impl Rules {
    /// For new connections.
    pub(crate) fn server(&self) -> tls::Server {
        self.server.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the frames of this agent are refused.
    pub(crate) fn denies(&self, agent: &str) -> bool {
        self.denied.read().unwrap_or_else(PoisonError::into_inner).contains(agent)
    }

    /// Changes when connections have to shake hands anew, by other rules.
    pub(crate) fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }
}

/// When a file changed last, and its size; none if it is not there.
type Stamp = Option<(SystemTime, u64)>;

/// What the rules were read from.
pub(crate) struct Sources {
    file: PathBuf,
    tls: Tls,
    rules: Arc<Rules>,
    /// Of the files that the rules are from, the configuration's first.
    used: Vec<Stamp>,
    /// Of the files that the rules, or a complaint, are from.
    read: Vec<Stamp>,
    /// At the last look.
    seen: Vec<Stamp>,
    /// What was complained about last.
    complaint: Option<String>,
}

impl Sources {
    /// Reads the files that `config` names; `config` was read from `file`.
    ///
    /// # Errors
    /// Names the file, what is wrong with it, and the remedy.
    pub(crate) fn read(file: &Path, config: &Config) -> Result<(Self, Arc<Rules>), String> {
        let stamps = stamps(file, &config.tls);
        let server = tls::server(&config.tls)?;
        tls::warn_of_old_lists(&config.tls);
        let rules = Arc::new(Rules {
            server: RwLock::new(server),
            denied: RwLock::new(Arc::new(config.agents.denied.iter().cloned().collect())),
            renewed: watch::Sender::new(()),
        });
        let sources = Sources {
            file: file.to_owned(),
            tls: config.tls.clone(),
            rules: Arc::clone(&rules),
            used: stamps.clone(),
            read: stamps.clone(),
            seen: stamps,
            complaint: None,
        };
        Ok((sources, rules))
    }

    /// Reads the files if they have changed and not since the last look.
    pub(crate) fn look(&mut self) {
        let stamps = stamps(&self.file, &self.tls);
        let at_rest = stamps == self.seen;
        self.seen.clone_from(&stamps);
        if at_rest && stamps != self.read {
            self.renew(stamps);
        }
    }

    /// Reads the files.
    pub(crate) fn renew_now(&mut self) {
        self.complaint = None;
        self.renew(stamps(&self.file, &self.tls));
    }

    fn renew(&mut self, stamps: Vec<Stamp>) {
        self.read.clone_from(&stamps);
        match self.load(&stamps) {
            Ok(()) => self.complaint = None,
            Err(error) if self.complaint.as_ref() == Some(&error) => {}
            Err(error) => {
                log::error!("{error}; what was read before stays in use");
                self.complaint = Some(error);
            }
        }
    }

    fn load(&mut self, stamps: &[Stamp]) -> Result<(), String> {
        let config = Config::load(&self.file).map_err(|error| {
            // The parser shows the place over several lines.
            error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ")
        })?;
        let server = tls::server(&config.tls)?;
        let denied: BTreeSet<String> = config.agents.denied.into_iter().collect();
        let rules = &self.rules;
        *rules.denied.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(denied);
        *rules.server.write().unwrap_or_else(PoisonError::into_inner) = server;
        let same_files = config.tls == self.tls;
        let same_tls = same_files && stamps.get(1..) == self.used.get(1..);
        if same_files {
            self.used = stamps.to_vec();
        } else {
            // The stamps are of the files before.
            self.tls = config.tls;
            self.used = self::stamps(&self.file, &self.tls);
            self.read.clone_from(&self.used);
            self.seen.clone_from(&self.used);
        }
        tls::warn_of_old_lists(&self.tls);
        if !same_tls {
            // Nobody is there to tell where there are no connections.
            let _ = rules.renewed.send(());
        }
        log::info!("{}: certificates, lists and denied agents read anew", self.file.display());
        Ok(())
    }
}

fn stamps(file: &Path, tls: &Tls) -> Vec<Stamp> {
    let Tls { ca, certificate, key, crl } = tls;
    let stamp = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    let files = [file, ca, certificate, key].into_iter();
    files.chain(crl.iter().map(PathBuf::as_path)).map(stamp).collect()
}
