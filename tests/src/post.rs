//! A hand-made agent: one request over real mutual TLS, with whatever bytes a test wants.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, DEFAULT_VERSIONS, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use serde_json::Value;

use crate::Result;

/// The content type of frames.
pub const FRAMES: &str = "application/vnd.sysflow.frames";

/// Longest wait for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// Whom to be and whom to trust.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The fleet's CA.
    pub ca: PathBuf,
    /// Our certificate and key; none to come without.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The versions of TLS that are spoken.
    pub versions: &'static [&'static SupportedProtocolVersion],
}

impl Identity {
    /// The identity of the files `<stem>.pem` and `<stem>.key` in a folder of `pki`.
    pub fn of(folder: &Path, stem: &str) -> Identity {
        let certificate = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}.key"));
        Identity {
            ca: folder.join("ca.pem"),
            certificate: Some((certificate, key)),
            versions: DEFAULT_VERSIONS,
        }
    }

    fn config(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.ca)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)?
            .with_root_certificates(roots);
        Ok(match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_file_iter(certificate)?
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
            }
        })
    }
}

/// An answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body, `Null` if it is no JSON.
    pub body: Value,
}

/// Sends a request and reads its answer.
///
/// # Errors
/// If there is no connection, or the handshake is refused: with TLS's own words.
pub fn request(
    address: SocketAddr,
    identity: &Identity,
    method: &str,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> Result<Answer> {
    let name = ServerName::IpAddress(address.ip().into());
    let connection = ClientConnection::new(Arc::new(identity.config()?), name)?;
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(ANSWER_DEADLINE))?;
    let mut stream = StreamOwned::new(connection, socket);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A receiver that refuses a body by its length may stop reading before its end: the
    // answer says more than the failed write.
    let sent = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .and_then(|()| stream.flush());
    let mut answer = Vec::new();
    let received = stream.read_to_end(&mut answer);
    if !answer.is_empty() {
        return parse(&answer);
    }
    sent?;
    match received {
        Err(e) if e.kind() != ErrorKind::UnexpectedEof => Err(e.into()),
        _ => Err(format!("{address} closed without an answer").into()),
    }
}

/// Posts a body of frames.
///
/// # Errors
/// See [`request`].
pub fn frames(address: SocketAddr, identity: &Identity, body: &[u8]) -> Result<Answer> {
    request(address, identity, "POST", "/v1/frames", FRAMES, body)
}

fn parse(answer: &[u8]) -> Result<Answer> {
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let split = split.ok_or("the answer's head has no end")?;
    let (head, body) = answer.split_at(split);
    let head = String::from_utf8_lossy(head);
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| format!("no status in the answer {head:?}"))?;
    let body = serde_json::from_slice(body.get(4..).unwrap_or_default()).unwrap_or(Value::Null);
    Ok(Answer { status, body })
}
