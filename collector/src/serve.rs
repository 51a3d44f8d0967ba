//! The server: listens, shakes hands, serves connections, and ends in order.
//!
//! `connections` decides who has a place, `reload` by which rules clients are taken; when those
//! change, connections end after their request and shake hands anew. What a connection holds in
//! memory is bounded, and so is the time that it may stand still. At SIGTERM or SIGINT requests
//! under way are finished, then the compactor, and the process ends with 0.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use log::Level;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;

use crate::compact::Compactor;
use crate::config::Config;
use crate::connections::{Bounds, Connections, Place, Ticket};
use crate::health::{self, Health};
use crate::logger;
use crate::receive::{Client, Receiver};
use crate::reload::{self, Sources};
use crate::store::Store;
use crate::tls;
use crate::usage::Usage;

/// How long, and for how many bytes, a closed connection is read on, so that the peer gets
/// to the last words (an alert, an answer) before a reset could overtake them.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1 << 20;

/// Most that is buffered of a request's head, and of its body at a time.
const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// A breath after `accept` failed, which it does when descriptors run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the server did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The configuration names something that cannot be used.
    Config(String),
    /// The system refused something.
    Io(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        StartError::Io(error)
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// [`StartError`]; once it listens, it only ends in order.
pub(crate) fn serve(file: &Path, config: Config) -> Result<(), StartError> {
    let (sources, rules) = Sources::read(file, &config).map_err(StartError::Config)?;
    let directory = &config.store.directory;
    let in_store =
        |error: io::Error| StartError::Config(format!("{}: {error}", directory.display()));
    let usage = Arc::new(Usage::new(directory, config.store.bytes_per_agent_max));
    let store = Store::open(directory, Arc::clone(&usage)).map_err(in_store)?;
    let health = Arc::new(Health::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One more reads the files of the configuration.
        .max_blocking_threads(config.limits.uploads_max + 1)
        .enable_all()
        .build()?;
    let compactor = Compactor::start(directory, usage, Arc::clone(&health))?;
    let receiver = Arc::new(Receiver {
        store,
        compactor,
        health,
        uploads: Arc::new(Semaphore::new(config.limits.uploads_max)),
        body_bytes_max: config.limits.body_bytes_max,
        request_timeout: Duration::from_secs(config.limits.request_timeout_s),
        rules,
    });
    let connections = Connections::new(Bounds {
        handshakes_max: config.limits.handshakes_max,
        connections_max: config.limits.connections_max,
        agent_connections_max: config.limits.agent_connections_max,
    });
    let served = runtime.block_on(accept(
        config.listen.address,
        connections,
        sources,
        Arc::clone(&receiver),
    ));
    // Waits for uploads that are being stored.
    drop(runtime);
    if let Some(receiver) = Arc::into_inner(receiver) {
        receiver.compactor.finish();
    }
    served
}

async fn accept(
    address: SocketAddr,
    connections: Arc<Connections>,
    sources: Sources,
    receiver: Arc<Receiver>,
) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "end what has it, or choose another",
            io::ErrorKind::PermissionDenied => "take a port from 1024 on",
            _ => "choose an address of this machine",
        };
        StartError::Config(format!("listen.address {address}: {error}: {remedy}"))
    })?;
    let renewing = tokio::spawn(renew(sources, hangup));
    let mut out = io::stdout();
    writeln!(out, "listening on {}", listener.local_addr()?)?;
    out.flush()?;

    // Dropped to tell the connections to end; each holds a receiver.
    let (ending, told) = watch::channel(());
    let wait_s = receiver.request_timeout;
    loop {
        let (stream, peer) = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    logger::seldom(Level::Error, "accept", format_args!("accept: {error}"));
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let (ticket, crowded) = connections.admit();
        if crowded {
            receiver.health.update(|counters| {
                health::count(&mut counters.handshakes_refused, "crowded-out");
            });
        }
        let number = ticket.number();
        let connection = Connection {
            peer,
            ticket,
            receiver: Arc::clone(&receiver),
            told: told.clone(),
            renewed: receiver.rules.renewed(),
        };
        connections.attach(number, tokio::spawn(connection.run(stream)).abort_handle());
    }
    drop(listener);
    drop(told);
    renewing.abort();
    log::info!("ending: finishing requests");
    let closed = ending.closed();
    let _ = ending.send(());
    if tokio::time::timeout(wait_s, closed).await.is_err() {
        log::warn!("ending: some connections did not end in {} s", wait_s.as_secs());
    }
    Ok(())
}

/// Looks after the files of the configuration.
async fn renew(mut sources: Sources, mut hangup: Signal) {
    let mut looks = tokio::time::interval(reload::INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tokio::select! {
            _ = looks.tick() => false,
            _ = hangup.recv() => true,
        };
        let work = tokio::task::spawn_blocking(move || {
            if now {
                sources.renew_now()
            } else {
                sources.look()
            }
            sources
        });
        match work.await {
            Ok(back) => sources = back,
            Err(error) => {
                log::error!("reading files anew: {error}: restart for changes to take effect");
                return;
            }
        }
    }
}

struct Connection {
    peer: SocketAddr,
    ticket: Ticket,
    receiver: Arc<Receiver>,
    told: watch::Receiver<()>,
    renewed: watch::Receiver<()>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) {
        let timeout = self.receiver.request_timeout;
        // Also one that takes no answers, which no other timer sees.
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(timeout)) {
            log::debug!("{}: TCP_USER_TIMEOUT: {error}", self.peer);
        }
        let server = self.receiver.rules.server();
        let acceptor = TlsAcceptor::from(Arc::clone(&server.config));
        let shaking = tokio::time::timeout(timeout, acceptor.accept(stream).into_fallible());
        let shaken = tokio::select! {
            shaken = shaking => shaken,
            _ = self.told.changed() => return,
        };
        let tls = match shaken {
            Ok(Ok(tls)) => tls,
            Ok(Err((error, mut stream))) => {
                self.note_refusal(&error);
                let _ = stream.shutdown().await;
                linger(stream).await;
                return;
            }
            Err(_) => {
                self.note_refusal(&io::Error::from(io::ErrorKind::TimedOut));
                return;
            }
        };
        let (_, session) = tls.get_ref();
        let chain: Arc<[_]> = session.peer_certificates().unwrap_or_default().into();
        let agent = match chain.first() {
            Some(certificate) => tls::agent_id(certificate),
            None => Err("no certificate".to_owned()),
        };
        let surplus = match self.ticket.promote(agent.as_deref().ok()) {
            Place::Served => false,
            Place::Surplus => true,
            Place::None => return,
        };
        let client = Client { address: self.peer, agent, chain, server, surplus };
        let receiver = Arc::clone(&self.receiver);
        let activity = Arc::clone(&self.ticket.activity);
        let service = service_fn(move |request| {
            let answer = Arc::clone(&receiver).answer(client.clone(), request);
            let activity = Arc::clone(&activity);
            async move {
                activity.begin();
                let answer = answer.await;
                activity.end();
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeout)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(TokioIo::new(tls), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = either(&mut self.told, &mut self.renewed) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            log::debug!("{}: connection ended: {error}", self.peer);
        }
    }

    fn note_refusal(&self, error: &io::Error) {
        let reason = tls::handshake_refusal(error);
        let peer = self.peer;
        let text = format_args!("{peer}: TLS handshake refused: {reason}: {error}");
        logger::seldom(Level::Warn, reason, text);
        self.receiver
            .health
            .update(|counters| health::count(&mut counters.handshakes_refused, reason));
    }
}

/// Waits until one of them changes.
async fn either(one: &mut watch::Receiver<()>, other: &mut watch::Receiver<()>) {
    tokio::select! {
        _ = one.changed() => {}
        _ = other.changed() => {}
    }
}

/// Reads on for a while after the last word was said.
async fn linger(stream: impl AsyncRead + Unpin) {
    let mut rest = stream.take(LINGER_BYTES);
    let _ =
        tokio::time::timeout(LINGER_TIME, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}
