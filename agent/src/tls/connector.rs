//! TLS for ureq, over a connection that another connector has opened.
//!
//! ureq's own rustls connector has no place for our clock, and with TLS 1.3 it would report a
//! refused client certificate as a broken pipe: the client's handshake is over before the
//! server looks at the certificate, so the refusal arrives with the first read, and often the
//! write before that fails first. Here a failed write first looks at what the other side has
//! already said. If that is an alert, the alert is the error. If it is an HTTP answer, sent
//! without waiting for the whole body, the rest of the body is dropped and the answer read.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use ureq::Timeout;
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

use super::certificate::Certificate;
use super::{Credentials, Fault, Files};

/// How long to look for what the other side said before it closed. It has arrived by then.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

/// When the certificate is valid that the collector showed last.
#[derive(Clone, Debug)]
pub struct CollectorValid(Arc<Mutex<RangeInclusive<u64>>>);

impl CollectorValid {
    /// Before the first handshake: in 1970, when no time is told.
    fn unknown() -> Self {
        CollectorValid(Arc::new(Mutex::new(0..=0)))
    }

    fn set(&self, valid: RangeInclusive<u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = valid;
    }

    /// First and last second of its validity, Unix time.
    pub fn range(&self) -> RangeInclusive<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Wraps connections into TLS with one set of credentials.
#[derive(Clone, Debug)]
pub struct TlsConnector {
    credentials: Arc<Credentials>,
    collector_valid: CollectorValid,
    traffic: Arc<AtomicU64>,
}

impl TlsConnector {
    /// For these credentials. `traffic` counts the bytes that TLS sends and receives, handshakes
    /// included.
    pub fn new(credentials: Arc<Credentials>, traffic: Arc<AtomicU64>) -> Self {
        TlsConnector { credentials, collector_valid: CollectorValid::unknown(), traffic }
    }

    /// When the certificate is valid that the collector showed last.
    pub fn collector_valid(&self) -> CollectorValid {
        self.collector_valid.clone()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    /// The connection to a proxy itself is plain; what goes through it is not.
    type Out = Either<In, TlsTransport<In>>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        // An IPv6 address stands in brackets in a URL, not in a certificate.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_string())
            .map_err(|_| ureq::Error::BadUri(format!("{host:?} is no host name")))?;
        let files = self.credentials.files.clone();
        let client = Arc::clone(&self.credentials.client);
        let connection = ClientConnection::new(client, name)
            .map_err(|error| ureq::Error::Other(Box::new(Fault::new(&error, &files))))?;
        let mut socket = TransportAdapter::new(transport, Arc::clone(&details.current_time));
        socket.set_timeout(details.timeout);
        let traffic = Arc::clone(&self.traffic);
        let mut session = Session { connection, socket, files, answered_early: false, traffic };
        session.handshake().or_else(|error| session.explain(error))?;
        let peer = session.connection.peer_certificates().and_then(|chain| chain.first());
        let certificate = peer.and_then(|first| Certificate::parse(first));
        self.collector_valid.set(certificate.map_or(0..=0, |certificate| certificate.validity()));
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, session })))
    }
}

/// A connection under TLS.
pub struct TlsTransport<In: Transport> {
    buffers: LazyBuffers,
    session: Session<In>,
}

impl<In: Transport> fmt::Debug for TlsTransport<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsTransport").field(self.session.socket.get_ref()).finish()
    }
}

impl<In: Transport> Transport for TlsTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.session.socket.set_timeout(timeout);
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.session.send(output).or_else(|error| self.session.explain(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.session.socket.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = match self.session.receive(input) {
            Ok(amount) => amount,
            Err(error) => {
                self.session.explain(error)?;
                self.session.receive(input)?
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        !self.session.answered_early && self.session.socket.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

struct Session<In: Transport> {
    connection: ClientConnection,
    socket: TransportAdapter<In>,
    files: Files,
    /// The other side answered and takes nothing more.
    answered_early: bool,
    /// Bytes that went over the socket.
    traffic: Arc<AtomicU64>,
}

impl<In: Transport> Session<In> {
    fn handshake(&mut self) -> io::Result<()> {
        while self.connection.is_handshaking() {
            self.flush()?;
            if self.connection.is_handshaking() && self.read()? == 0 {
                let text = "collector closed the connection during the handshake";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
        self.flush()
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.answered_early {
            let taken = self.connection.writer().write(bytes)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            self.flush()?;
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if !self.answered_early {
                self.flush()?;
            }
            self.read()?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            let amount = self.connection.write_tls(&mut self.socket)?;
            self.traffic.fetch_add(amount as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads once from the socket and works on what came. 0 at its end.
    fn read(&mut self) -> io::Result<usize> {
        let amount = self.connection.read_tls(&mut self.socket)?;
        self.traffic.fetch_add(amount as u64, Ordering::Relaxed);
        if let Err(error) = self.connection.process_new_packets() {
            // Tell the other side why; it may be gone already.
            let _ = self.flush();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(amount)
    }

    /// Turns an error into the reason behind it; into none if the other side has answered.
    fn explain(&mut self, error: io::Error) -> Result<(), ureq::Error> {
        if let Some(fault) = self.fault(&error) {
            return Err(fault);
        }
        let cut = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::UnexpectedEof
        );
        if cut && !self.answered_early {
            let (after, reason) = (LAST_WORDS_TIME, Timeout::PerRead);
            self.socket.set_timeout(NextTimeout { after, reason, per_read: None, per_write: None });
            loop {
                match self.read() {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(last) => {
                        if let Some(fault) = self.fault(&last) {
                            return Err(fault);
                        }
                        break;
                    }
                }
            }
            if self.connection.process_new_packets().is_ok_and(|s| s.plaintext_bytes_to_read() > 0)
            {
                self.answered_early = true;
                return Ok(());
            }
        }
        Err(error.into())
    }

    fn fault(&self, error: &io::Error) -> Option<ureq::Error> {
        let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(ureq::Error::Other(Box::new(Fault::new(tls, &self.files))))
    }
}
