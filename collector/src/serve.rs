//! The server: listens, shakes hands, serves connections, and ends in order.
//!
//! At most `connections_max` connections are served; a few more are let in to be told 503,
//! and beyond those the kernel's queue holds them back. At SIGTERM or SIGINT requests under
//! way are finished, then the compactor, and the process ends with 0.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::compact::Compactor;
use crate::config::Config;
use crate::health::{self, Health};
use crate::receive::{Client, Receiver};
use crate::store::Store;
use crate::tls;

/// Connections that are let in beyond the limit, to be told so.
const SURPLUS_MAX: usize = 16;

/// How long, and for how many bytes, a closed connection is read on, so that the peer gets
/// to the last words (an alert, an answer) before a reset could overtake them.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1 << 20;

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
pub(crate) fn serve(config: Config) -> Result<(), StartError> {
    let acceptor = TlsAcceptor::from(tls::server_config(&config.tls).map_err(StartError::Config)?);
    let directory = &config.store.directory;
    let in_store =
        |error: io::Error| StartError::Config(format!("{}: {error}", directory.display()));
    let store = Store::open(directory).map_err(in_store)?;
    let health = Arc::new(Health::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(config.limits.uploads_max)
        .enable_all()
        .build()?;
    let compactor = Compactor::start(directory, Arc::clone(&health))?;
    let receiver = Arc::new(Receiver {
        store,
        compactor,
        health,
        uploads: Arc::new(Semaphore::new(config.limits.uploads_max)),
        body_bytes_max: config.limits.body_bytes_max,
        request_timeout: Duration::from_secs(config.limits.request_timeout_s),
        denied: config.agents.denied,
    });
    let served = runtime.block_on(accept(
        config.listen.address,
        config.limits.connections_max,
        acceptor,
        Arc::clone(&receiver),
    ));
    // Waits for uploads that are being stored.
    drop(runtime);
    if let Some(receiver) = Arc::into_inner(receiver) {
        receiver.compactor.finish();
    }
    served.map_err(|error| StartError::Config(format!("{}: {error}", config.listen.address)))
}

async fn accept(
    address: SocketAddr,
    connections_max: usize,
    acceptor: TlsAcceptor,
    receiver: Arc<Receiver>,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(address).await?;
    let mut out = io::stdout();
    writeln!(out, "listening on {}", listener.local_addr()?)?;
    out.flush()?;

    let served = Arc::new(Semaphore::new(connections_max));
    let surplus = Arc::new(Semaphore::new(SURPLUS_MAX));
    // Dropped to tell the connections to end; each holds a receiver.
    let (ending, told) = watch::channel(());
    let wait_s = receiver.request_timeout;
    loop {
        let (permit, is_surplus) = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            permit = place(&served, &surplus) => permit,
        };
        let (stream, peer) = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::error!("accept: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let connection =
            Connection { peer, is_surplus, receiver: Arc::clone(&receiver), told: told.clone() };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            connection.run(stream, acceptor).await;
            drop(permit);
        });
    }
    drop(listener);
    drop(told);
    log::info!("ending: finishing requests");
    let closed = ending.closed();
    let _ = ending.send(());
    if tokio::time::timeout(wait_s, closed).await.is_err() {
        log::warn!("ending: some connections did not end in {} s", wait_s.as_secs());
    }
    Ok(())
}

/// Room for one more connection: a served one where there is, else a surplus one.
async fn place(
    served: &Arc<Semaphore>,
    surplus: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, bool) {
    if let Ok(permit) = Arc::clone(served).try_acquire_owned() {
        return (Some(permit), false);
    }
    tokio::select! {
        biased;
        permit = Arc::clone(served).acquire_owned() => (permit.ok(), false),
        permit = Arc::clone(surplus).acquire_owned() => (permit.ok(), true),
    }
}

struct Connection {
    peer: SocketAddr,
    is_surplus: bool,
    receiver: Arc<Receiver>,
    told: watch::Receiver<()>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, acceptor: TlsAcceptor) {
        let timeout = self.receiver.request_timeout;
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
        let agent = match session.peer_certificates().and_then(<[_]>::first) {
            Some(certificate) => tls::agent_id(certificate),
            None => Err("no certificate".to_owned()),
        };
        let client = Client { address: self.peer, agent, surplus: self.is_surplus };
        let receiver = Arc::clone(&self.receiver);
        let service = service_fn(move |request| {
            let answer = Arc::clone(&receiver).answer(client.clone(), request);
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeout)
            .serve_connection(TokioIo::new(tls), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = self.told.changed() => {
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
        log::warn!("{}: TLS handshake refused: {reason}: {error}", self.peer);
        self.receiver
            .health
            .update(|counters| health::count(&mut counters.handshakes_refused, reason));
    }
}

/// Reads on for a while after the last word was said.
async fn linger(stream: impl AsyncRead + Unpin) {
    let mut rest = stream.take(LINGER_BYTES);
    let _ =
        tokio::time::timeout(LINGER_TIME, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}
