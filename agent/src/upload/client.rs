//! One request to the collector: HTTP by ureq over our TLS. It decides nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::time_provider::TimeProvider as _;
use ureq::Proxy;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};

use super::answer::{self, Less, Outcome};
use crate::config;
use crate::tls::clock::Clock;
use crate::tls::connector::{CollectorValid, TlsConnector};
use crate::tls::seal_key::Sealer;
use crate::tls::{Credentials, Fault, Files, SetupError};

const PATH: &str = "/v1/frames";
const CONTENT_TYPE: &str = "application/vnd.sysflow.frames";

/// A body of at least so many bytes asks for leave before it is sent, if it is the first of
/// an upload: a device that is refused then has not paid for the whole body. Below that the
/// extra round trip costs more.
const ASK_FIRST_BYTES: usize = 16 * 1024;
/// So many bytes on the link are more than a handshake: a large body had begun.
const BEGUN_BYTES: u64 = 16 * 1024;
/// How long to wait for leave; then the body is sent, since not every server gives it.
const LEAVE_TIME: Duration = Duration::from_secs(3);
/// A connection unused for so long is not used again: NAT tables on the way forget it.
const IDLE_TIME: Duration = Duration::from_secs(90);
/// Buffers of a connection: one TLS record.
const BUFFER_BYTES: usize = 16 * 1024;
/// Largest head and body of an answer, bytes: it lists the holes of the streams in the body.
const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// How long one request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For connection and TLS handshake.
    pub connect: Duration,
    /// Without any progress, either way.
    pub stall: Duration,
    /// In all.
    pub request: Duration,
}

impl Default for Timeouts {
    /// For a slow mobile link: a body of 1 MiB takes minutes, but never stands still for one.
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            request: Duration::from_secs(900),
        }
    }
}

/// A connection to the collector, kept alive between requests.
#[derive(Debug)]
pub(super) struct Client {
    url: String,
    proxy: Option<String>,
    files: Files,
    clock: Arc<Clock>,
    sealer: Sealer,
    timeouts: Timeouts,
    credentials: Arc<Credentials>,
    agent: ureq::Agent,
    collector_valid: CollectorValid,
    traffic: Arc<AtomicU64>,
}

impl Client {
    pub(super) fn new(
        collector: &config::Collector,
        credentials: Credentials,
        clock: Arc<Clock>,
        sealer: Sealer,
        timeouts: Timeouts,
    ) -> Client {
        let credentials = Arc::new(credentials);
        let traffic = Arc::default();
        let connector = TlsConnector::new(Arc::clone(&credentials), Arc::clone(&traffic));
        Client {
            url: format!("{}{PATH}", collector.url),
            proxy: collector.proxy.clone(),
            files: collector.into(),
            clock,
            sealer,
            timeouts,
            collector_valid: connector.collector_valid(),
            agent: agent(connector, timeouts, collector.proxy.as_deref()),
            credentials,
            traffic,
        }
    }

    /// Bytes that went over the link so far, both ways: TLS as a whole, without what TCP, IP and
    /// a proxy add.
    pub(super) fn traffic(&self) -> u64 {
        self.traffic.load(Ordering::Relaxed)
    }

    /// Reads the credentials anew if their files have changed, or if that `is_asked` for, and where
    /// the collector's certificate is over: then no connection or session of before goes on.
    /// Returns whether they were read.
    ///
    /// # Errors
    /// If they cannot be used; the former stay in use.
    pub(super) fn refresh(&mut self, is_asked: bool) -> Result<bool, SetupError> {
        let valid = self.collector_valid.range();
        // Where none was shown yet both are 0.
        let is_over = *valid.end() != 0 && self.checked_s() > *valid.end();
        if !is_asked && !is_over && !self.credentials.changed() {
            return Ok(false);
        }
        let id = self.credentials.agent_id.as_str();
        let credentials = Arc::new(Credentials::load(&self.files, Some(id), &self.clock)?);
        let connector = TlsConnector::new(Arc::clone(&credentials), Arc::clone(&self.traffic));
        self.collector_valid = connector.collector_valid();
        self.agent = agent(connector, self.timeouts, self.proxy.as_deref());
        self.credentials = credentials;
        Ok(true)
    }

    /// The time by which certificates are checked, Unix time, s.
    fn checked_s(&self) -> u64 {
        self.clock.current_time().map_or(0, |now| now.as_secs())
    }

    /// For interrupting a request from another thread.
    pub(super) fn agent(&self) -> ureq::Agent {
        self.agent.clone()
    }

    pub(super) fn agent_id(&self) -> &str {
        &self.credentials.agent_id
    }

    /// Days until the device's certificate is over.
    pub(super) fn days_left(&self) -> i64 {
        self.credentials.certificate.days_left(self.clock.now_s())
    }

    /// Unix time, s.
    pub(super) fn now_s(&self) -> u64 {
        self.clock.now_s()
    }

    /// Sends `body` and takes the answer, within `limit` if there is one. `first` says that it
    /// is the first of an upload.
    pub(super) fn post(&self, body: &[u8], first: bool, limit: Option<Duration>) -> Outcome {
        let before = self.traffic();
        match self.exchange(body, first, limit) {
            Ok(outcome) => {
                if let Outcome::Delivered(held) = &outcome {
                    if let Some(time_ns) = held.time_ns {
                        self.clock.told(time_ns / 1_000_000_000, &self.collector_valid.range());
                    }
                    // The collector has its certificate now.
                    self.sealer.renew(self.credentials.seal_key.clone());
                }
                outcome
            }
            Err(error) => {
                if fault(&error).is_some_and(Fault::is_expiry) {
                    self.clock.doubt();
                }
                let reason = self.reason(&error);
                let broke = matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_));
                match self.traffic().saturating_sub(before) {
                    BEGUN_BYTES.. if broke => Outcome::SendLess { less: Less::Cut, reason },
                    _ => Outcome::RetryAfter { wait: None, reason },
                }
            }
        }
    }

    fn exchange(
        &self,
        body: &[u8],
        first: bool,
        limit: Option<Duration>,
    ) -> Result<Outcome, ureq::Error> {
        let mut request = self.agent.post(&self.url).header("content-type", CONTENT_TYPE);
        if first && body.len() >= ASK_FIRST_BYTES {
            request = request.header("expect", "100-continue");
        }
        if let Some(limit) = limit {
            let limit = limit.min(self.timeouts.request);
            request = request.config().timeout_global(Some(limit)).build();
        }
        let mut response = request.send(body)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(String::from);
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(answer::decide(status, retry_after.as_deref(), &text))
    }

    fn reason(&self, error: &ureq::Error) -> String {
        if let Some(fault) = fault(error) {
            return fault.to_string();
        }
        let url = &match &self.proxy {
            Some(proxy) => format!("{} by way of {proxy} (collector.proxy)", self.url),
            None => self.url.clone(),
        };
        match error {
            ureq::Error::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    format!("{url}: connection refused: does the collector run there?")
                }
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted => {
                    format!("{url}: connection cut before the answer was complete")
                }
                _ => format!("{url}: {error}"),
            },
            ureq::Error::Timeout(which) => format!("{url}: no progress in time ({which})"),
            ureq::Error::HostNotFound => format!("{url}: host not found: check DNS"),
            ureq::Error::Other(other) => format!("{url}: {other}"),
            error => format!("{url}: {error}"),
        }
    }
}

/// What TLS failed at, if it did.
fn fault(error: &ureq::Error) -> Option<&Fault> {
    match error {
        ureq::Error::Other(other) => other.downcast_ref(),
        _ => None,
    }
}

fn agent(connector: TlsConnector, timeouts: Timeouts, proxy: Option<&str>) -> ureq::Agent {
    // The configuration has checked its form.
    let proxy = proxy.and_then(|proxy| Proxy::new(proxy).ok());
    let config = ureq::Agent::config_builder()
        .https_only(true)
        .http_status_as_error(false)
        // A collector does not redirect, and frames follow nobody.
        .max_redirects(0)
        .max_redirects_will_error(false)
        // The environment must not lead frames elsewhere either: only the configuration does.
        .proxy(proxy)
        .user_agent(concat!("sysflow-agent/", env!("CARGO_PKG_VERSION")))
        .max_response_header_size(ANSWER_HEAD_BYTES_MAX)
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .max_idle_connections(1)
        .max_idle_age(IDLE_TIME)
        .timeout_global(Some(timeouts.request))
        .timeout_connect(Some(timeouts.connect))
        .timeout_per_read(Some(timeouts.stall))
        .timeout_per_write(Some(timeouts.stall))
        .timeout_await_100(Some(LEAVE_TIME.min(timeouts.stall)))
        .build();
    let connector =
        Connector::<()>::chain(ConnectProxyConnector::default(), TcpConnector::default())
            .chain(connector);
    ureq::Agent::with_parts(config, connector, DefaultResolver::default())
}
