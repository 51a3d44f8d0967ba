//! A client that speaks HTTP/1.1 by hand over real TLS, so that it can break every rule.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use serde_json::Value;

use super::pki::{Identity, Pki};

/// What a client with this certificate connects with; it keeps sessions.
pub(crate) fn config(pki: &Pki, identity: Option<&Identity>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain(), identity.key()).unwrap(),
        None => builder.with_no_client_auth(),
    })
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Checks that it is an error of this status and kind, and gives the detail.
    #[track_caller]
    pub(crate) fn refusal(&self, status: u16, kind: &str) -> String {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{body}");
        let json = self.json();
        assert_eq!(json["error"], kind, "{body}");
        json["detail"].as_str().unwrap().to_owned()
    }
}

/// A connection.
pub(crate) struct Client {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, pki: &Pki, identity: Option<&Identity>) -> Self {
        Client::over(address, &config(pki, identity))
    }

    /// A connection that goes on with a session of before, if `config` has one.
    pub(crate) fn over(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        tcp.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { stream: BufReader::new(StreamOwned::new(tls, tcp)) }
    }

    /// Whether it went on with a session of before.
    pub(crate) fn is_resumed(&self) -> bool {
        self.stream.get_ref().conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Reads the leave to send a body.
    pub(crate) fn leave_to_send(&mut self) {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 100 "), "{line}");
        self.stream.read_line(&mut line).unwrap();
    }

    /// Reads an answer.
    pub(crate) fn receive(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").unwrap().parse().unwrap();
        answer.body = vec![0; length];
        self.stream.read_exact(&mut answer.body)?;
        Ok(answer)
    }

    /// Posts a body, wherever the connection ends.
    pub(crate) fn try_post(&mut self, body: &[u8]) -> io::Result<Answer> {
        self.send(format!("{}host: collector\r\n\r\n", post_head(body.len())).as_bytes())?;
        self.send(body)?;
        self.receive()
    }

    /// The certificate that the collector shows.
    pub(crate) fn collectors_certificate(mut self) -> CertificateDer<'static> {
        self.send(b"").unwrap();
        self.stream.get_ref().conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// The socket below.
    pub(crate) fn socket(&self) -> &TcpStream {
        self.stream.get_ref().get_ref()
    }

    /// The error of a connection that the collector refused in the handshake.
    pub(crate) fn alert(mut self) -> String {
        // The handshake of TLS 1.3 ends at the client before the server has judged it.
        let sent = self.send(b"GET /v1/health HTTP/1.1\r\nhost: c\r\n\r\n");
        sent.and_then(|()| self.receive().map(|_| ())).unwrap_err().to_string()
    }

    /// Whether the collector has closed the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    /// Whether the connection has ended, with or without a word.
    pub(crate) fn is_gone(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(amount) => amount == 0,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ),
        }
    }

    pub(crate) fn request(&mut self, head: &str, body: &[u8]) -> Answer {
        self.send(format!("{head}host: collector\r\n\r\n").as_bytes()).unwrap();
        self.send(body).unwrap();
        self.receive().unwrap()
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.request(&format!("GET {path} HTTP/1.1\r\n"), b"")
    }

    pub(crate) fn post(&mut self, body: &[u8]) -> Answer {
        self.request(&post_head(body.len()), body)
    }
}

/// The head of a good upload, without the empty line.
pub(crate) fn post_head(length: usize) -> String {
    format!(
        "POST /v1/frames HTTP/1.1\r\ncontent-type: application/vnd.sysflow.frames\r\n\
         content-length: {length}\r\n"
    )
}

/// The first bytes of a handshake.
pub(crate) fn hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}
