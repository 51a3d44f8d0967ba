//! The second thread: posts spooled frames to the collector over mutual TLS, and removes what
//! the collector holds. Decides by [`Outcome`], then acts. Bounds: one body in memory; a
//! back-off with full jitter between failures. It knows ureq and the spool.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use crate::config::Collector;
use crate::spool::{self, Spooled};

/// Longest wait between two attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// One exchange with the collector.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts to deliver the rest at the end of a run.
const LAST_ATTEMPTS: u32 = 3;

/// What came of one upload.
#[derive(Debug)]
pub enum Outcome {
    /// The collector answered with what it holds.
    Delivered(Answer),
    /// Not now: again after so long, if the collector says how long.
    RetryAfter(Option<Duration>, String),
    /// The body was refused for what it contains.
    Refused(String),
}

/// The collector's answer.
#[derive(Debug, Deserialize)]
pub struct Answer {
    streams: Vec<Stream>,
}

#[derive(Debug, Deserialize)]
struct Stream {
    run: String,
    class: u8,
    contiguous: u64,
    holes: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    detail: String,
}

impl Answer {
    /// Whether the collector holds this frame. Above `contiguous` it holds what was just sent,
    /// but for the holes.
    fn holds(&self, frame: &Spooled) -> bool {
        let tag: String = frame.key.run_tag.iter().map(|byte| format!("{byte:02x}")).collect();
        self.streams.iter().any(|stream| {
            let sequence = frame.key.sequence;
            stream.run == tag
                && stream.class == frame.key.class
                && (sequence < stream.contiguous
                    || !stream.holes.iter().any(|(a, b)| (*a..=*b).contains(&sequence)))
        })
    }
}

/// What the thread says of its work.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Frames that the collector has acknowledged.
    pub acknowledged: u64,
    /// Records in frames that it refused for good.
    pub records_refused: u64,
    /// Failures in a row.
    pub failures: u64,
    /// Why the last one failed.
    pub error: String,
    /// The collector asks for a new generation (it lacks the beginning of this one).
    pub generation_lost: bool,
}

/// The running upload thread.
#[derive(Debug)]
pub struct Upload {
    wake: SyncSender<()>,
    progress: Arc<Mutex<Progress>>,
    thread: Option<JoinHandle<()>>,
}

impl Upload {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the certificates cannot be read, or the thread cannot start.
    pub fn start(collector: &Collector, directory: &Path) -> Result<Upload, String> {
        let client = Client::new(collector)?;
        let (wake, woken) = sync_channel(1);
        let progress = Arc::new(Mutex::new(Progress::default()));
        let work = Work {
            client,
            directory: directory.into(),
            interval: Duration::from_secs(collector.upload_interval_s.into()),
            bytes_max: collector.upload_bytes_max,
            progress: Arc::clone(&progress),
        };
        let thread = std::thread::Builder::new()
            .name("upload".into())
            .spawn(move || work.run(&woken))
            .map_err(|e| format!("upload thread: {e}"))?;
        Ok(Upload { wake, progress, thread: Some(thread) })
    }

    /// How it goes.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the collector's wish for a new generation.
    pub fn take_generation_lost(&self) -> bool {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut progress.generation_lost)
    }

    /// Delivers what is spooled, as far as the collector lets it, and ends the thread.
    pub fn finish(mut self) {
        drop(std::mem::replace(&mut self.wake, sync_channel(0).0));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    client: Client,
    directory: PathBuf,
    interval: Duration,
    bytes_max: usize,
    progress: Arc<Mutex<Progress>>,
}

impl Work {
    fn run(&self, woken: &Receiver<()>) {
        let mut wait = self.interval;
        loop {
            let ending = match woken.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            wait = match self.deliver_all() {
                Ok(()) => self.interval,
                Err(asked) => asked.unwrap_or_else(|| self.back_off()),
            };
            if ending {
                for _ in 1..LAST_ATTEMPTS {
                    if self.deliver_all().is_ok() {
                        break;
                    }
                }
                return;
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Full jitter: anything up to a bound that doubles with each failure, so that a fleet does
    /// not come back at once.
    fn back_off(&self) -> Duration {
        let failures = self.progress.lock().unwrap_or_else(PoisonError::into_inner).failures;
        let bound = Duration::from_secs(1 << failures.min(8)).min(BACK_OFF_MAX);
        let mut random = [0; 4];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        bound.mul_f64(f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX))
    }

    /// Sends until the spool is empty. An error says how long the collector asks to wait.
    fn deliver_all(&self) -> Result<(), Option<Duration>> {
        loop {
            let frames = match spool::oldest(&self.directory, self.bytes_max) {
                Ok(frames) if frames.is_empty() => return Ok(()),
                Ok(frames) => frames,
                Err(error) => {
                    log::error!("{}: spool cannot be read: {error}", self.directory.display());
                    return Err(None);
                }
            };
            self.deliver(&frames)?;
        }
    }

    /// Sends these frames. If the collector refuses what they contain, they are sent one by
    /// one, so that a single bad frame neither blocks nor drags down the others.
    fn deliver(&self, frames: &[Spooled]) -> Result<(), Option<Duration>> {
        let body: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.iter().copied()).collect();
        match self.client.post(&body) {
            Outcome::Delivered(answer) => {
                let mut held = 0;
                for frame in frames.iter().filter(|frame| answer.holds(frame)) {
                    let _ = fs::remove_file(&frame.path);
                    held += 1;
                }
                self.note(|p| {
                    p.acknowledged += held;
                    p.failures = 0;
                    p.error.clear();
                });
                if held == 0 { Err(None) } else { Ok(()) }
            }
            Outcome::RetryAfter(wait, reason) => {
                log::warn!("upload: {reason}");
                self.note(|p| {
                    p.failures += 1;
                    p.error = reason;
                });
                Err(wait)
            }
            Outcome::Refused(reason) => {
                if let [frame] = frames {
                    log::error!("{}: refused for good: {reason}", frame.path.display());
                    let lost = reason.starts_with("generation-lost");
                    let _ = fs::remove_file(&frame.path);
                    self.note(|p| {
                        p.records_refused += u64::from(frame.records);
                        p.generation_lost |= lost;
                        p.error = reason;
                    });
                    return Ok(());
                }
                frames.iter().try_for_each(|frame| self.deliver(std::slice::from_ref(frame)))
            }
        }
    }
}

struct Client {
    agent: ureq::Agent,
    url: String,
    ca: PathBuf,
}

impl Client {
    fn new(collector: &Collector) -> Result<Client, String> {
        let read = |path: &Path| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
        let certificates = |path: &Path| -> Result<Vec<Certificate<'static>>, String> {
            let bytes = read(path)?;
            let parsed: Result<Vec<_>, _> =
                rustls::pki_types::CertificateDer::pem_slice_iter(&bytes).collect();
            let parsed = parsed.map_err(|e| format!("{}: {e}", path.display()))?;
            Ok(parsed.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
        };
        let key = PrivateKey::from_pem(&read(&collector.key)?)
            .map_err(|e| format!("{}: {e}", collector.key.display()))?;
        let own = certificates(&collector.certificate)?;
        let ca = certificates(&collector.ca)?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .client_cert(Some(ClientCert::new_with_certs(&own, key)))
            .root_certs(RootCerts::Specific(Arc::new(ca)))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build()
            .new_agent();
        let url = format!("{}/v1/frames", collector.url.trim_end_matches('/'));
        Ok(Client { agent, url, ca: collector.ca.clone() })
    }

    fn post(&self, body: &[u8]) -> Outcome {
        let sent = self
            .agent
            .post(&self.url)
            .header("content-type", "application/vnd.sysflow.frames")
            .send(body);
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return Outcome::RetryAfter(None, self.words(&error.to_string())),
        };
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let text = match response.body_mut().read_to_string() {
            Ok(text) => text,
            Err(error) => return Outcome::RetryAfter(wait, format!("answer cut: {error}")),
        };
        if status == 200 {
            return match serde_json::from_str(&text) {
                Ok(answer) => Outcome::Delivered(answer),
                Err(error) => Outcome::RetryAfter(None, format!("answer not understood: {error}")),
            };
        }
        let reason = match serde_json::from_str::<Refusal>(&text) {
            Ok(refusal) => format!("{}: {}", refusal.error, refusal.detail),
            Err(_) => format!("status {status}"),
        };
        match status {
            400 | 403 | 409 | 413 => Outcome::Refused(reason),
            _ => Outcome::RetryAfter(wait, reason),
        }
    }

    /// A TLS failure in words: who refused whose certificate, and why.
    fn words(&self, error: &str) -> String {
        for (alert, reason) in [
            ("CertificateExpired", "certificate expired"),
            ("UnknownCA", "certificate refused: not of the collector's fleet (unknown CA)"),
            ("DecryptError", "certificate refused: not of the collector's fleet"),
            ("CertificateRequired", "certificate refused: none was presented"),
            ("BadCertificate", "certificate refused: bad certificate"),
            ("CertificateUnknown", "certificate refused: unknown certificate"),
            ("AccessDenied", "certificate refused: access denied"),
        ] {
            if error.contains(&format!("received fatal alert: {alert}")) {
                return format!("collector refused our {reason}");
            }
        }
        if error.contains("invalid peer certificate") {
            return format!("collector's certificate refused by {}: {error}", self.ca.display());
        }
        error.to_string()
    }
}

/// Whether certificates and key can be read and understood.
///
/// # Errors
/// The first file that cannot.
pub fn readable(collector: &Collector) -> Result<(), String> {
    Client::new(collector).map(|_| ())
}

/// The agent's id: the SAN URI `sysflow:agent:<id>` of its certificate.
///
/// # Errors
/// If the file cannot be read or carries no such id.
pub fn identity(certificate: &Path) -> Result<String, String> {
    let name = certificate.display();
    let bytes = fs::read(certificate).map_err(|e| format!("{name}: {e}"))?;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(&bytes)
        .map_err(|e| format!("{name}: {e}"))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&der).map_err(|e| format!("{name}: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| format!("{name}: {e}"))?;
    names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|general| match general {
            x509_parser::extensions::GeneralName::URI(uri) => uri.strip_prefix("sysflow:agent:"),
            _ => None,
        })
        .filter(|id| crate::config::is_agent_id(id))
        .map(str::to_owned)
        .ok_or_else(|| {
            format!("{name}: no identity (issue it with the SAN URI sysflow:agent:<id>)")
        })
}
