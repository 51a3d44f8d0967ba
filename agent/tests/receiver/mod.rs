//! A collector for tests that does as it is told, over real sockets and real TLS.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use codec::Frame;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};

use crate::fleet::Ca;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// A server with the certificate `NAME.pem` that trusts the clients of `clients`.
pub(crate) fn server(
    ca: &Ca,
    name: &str,
    clients: &Ca,
    version: &'static SupportedProtocolVersion,
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(clients)),
        Arc::clone(&provider),
    );
    let certificate = CertificateDer::from_pem_file(ca.path(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(ca.path(&format!("{name}.key"))).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], key)
        .unwrap()
}

fn roots(ca: &Ca) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.path("ca.pem")).unwrap()).unwrap();
    roots
}

/// What the collector does about one request.
pub(crate) enum Reply {
    /// Takes the frames.
    Take,
    /// Takes them, but for the one with this sequence.
    Lack(u64),
    /// Reads the body and answers this status, headers and text.
    Answer(u16, &'static str, String),
    /// Answers so without reading the body, and closes.
    AtOnce(u16, &'static str, String),
    /// As over a slow link: takes bodies of up to so many bytes. Of others it reads so many, and
    /// closes, with or without saying that they took too long.
    Slow(usize, bool),
    /// Sends half an answer and closes.
    Half,
    /// Never answers.
    Silence,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    pub(crate) connection: usize,
    /// Of its frames.
    pub(crate) class: u8,
    pub(crate) sequences: Vec<u64>,
    pub(crate) asked_first: bool,
}

type Script = dyn Fn(usize, &[u64]) -> Reply + Send + Sync;

/// What a collector saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<Request>,
    /// Urgent frames, and volumes.
    pub(crate) held: [BTreeSet<u64>; 2],
    pub(crate) connections: usize,
}

/// A collector of the frames of `sample`.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Collector {
    /// Starts one that asks `script` about each request: its number and its sequences.
    pub(crate) fn start(
        server: ServerConfig,
        script: impl Fn(usize, &[u64]) -> Reply + Send + Sync + 'static,
    ) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<(Mutex<Seen>, Condvar)> = Arc::default();
        let (server, script): (_, Arc<Script>) = (Arc::new(server), Arc::new(script));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, script) = (Arc::clone(&server), Arc::clone(&script));
                let seen = Arc::clone(&shared);
                thread::spawn(move || {
                    // Clients that go away in the middle are part of the tests.
                    let _ = serve(stream?, &server, &*script, &seen);
                    io::Result::Ok(())
                });
            }
        });
        Collector { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Waits until so many requests have come in, and returns them.
    pub(crate) fn requests(&self, count: usize) -> Vec<Request> {
        let (seen, changed) = &*self.seen;
        let (seen, timeout) = changed
            .wait_timeout_while(seen.lock().unwrap(), PATIENCE, |s| s.requests.len() < count)
            .unwrap();
        assert!(!timeout.timed_out(), "{} of {count} requests", seen.requests.len());
        seen.requests.clone()
    }

    pub(crate) fn held(&self) -> Vec<u64> {
        self.seen.0.lock().unwrap().held[0].iter().copied().collect()
    }
}

fn serve(
    stream: TcpStream,
    server: &Arc<ServerConfig>,
    script: &Script,
    seen: &(Mutex<Seen>, Condvar),
) -> io::Result<()> {
    let connection = {
        let mut seen = seen.0.lock().unwrap();
        seen.connections += 1;
        seen.connections
    };
    // A reset after the answer must not overtake a part of it that waits for company.
    stream.set_nodelay(true)?;
    let tls = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut stream = StreamOwned::new(tls, stream);
    loop {
        let head = head(&mut stream)?;
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        assert!(head.starts_with("POST /v1/frames HTTP/1.1\r\n"), "{head}");
        assert_eq!(field("content-type"), Some("application/vnd.sysflow.frames"));
        let asked_first = field("expect") == Some("100-continue");
        let length: usize = field("content-length").unwrap().parse().unwrap();
        let number = seen.0.lock().unwrap().requests.len();
        let note = |class: u8, sequences: &[u64]| {
            let sequences = sequences.to_vec();
            let at = Instant::now();
            seen.0.lock().unwrap().requests.push(Request {
                at,
                connection,
                class,
                sequences,
                asked_first,
            });
            seen.1.notify_all();
        };
        let begun = script(number, &[]);
        if let Reply::AtOnce(status, headers, text) = begun {
            note(0, &[]);
            answer(&mut stream, status, headers, &text)?;
            stream.conn.send_close_notify();
            return stream.flush();
        }
        if asked_first {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if let Reply::Slow(bytes, is_told) = begun
            && length > bytes
        {
            stream.read_exact(&mut vec![0; bytes])?;
            note(0, &[]);
            if is_told {
                let text = r#"{"error":"timeout","detail":"because"}"#;
                answer(&mut stream, 408, "connection: close\r\n", text)?;
                stream.conn.send_close_notify();
            }
            return stream.flush();
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let (class, sequences) = frames(&body);
        let reply = script(number, &sequences);
        match reply {
            Reply::Take | Reply::Slow(..) | Reply::Lack(_) => {
                let is_taken = |sequence: &u64| !matches!(reply, Reply::Lack(s) if s == *sequence);
                let taken: Vec<u64> = sequences.iter().copied().filter(is_taken).collect();
                let text = take(seen, class, &taken);
                note(class, &sequences);
                answer(&mut stream, 200, "", &text)?;
            }
            Reply::Answer(status, headers, text) => {
                note(class, &sequences);
                answer(&mut stream, status, headers, &text)?;
            }
            Reply::AtOnce(..) => unreachable!("told before"),
            Reply::Half => {
                note(class, &sequences);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"stre")?;
                return stream.flush();
            }
            Reply::Silence => {
                note(class, &sequences);
                stream.read_exact(&mut [0])?;
            }
        }
    }
}

fn head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).unwrap())
}

fn answer(stream: &mut impl Write, status: u16, headers: &str, text: &str) -> io::Result<()> {
    let length = text.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

/// The class of a body's frames, which is one, and their sequences.
fn frames(mut body: &[u8]) -> (u8, Vec<u64>) {
    let mut sequences = Vec::new();
    let mut classes = BTreeSet::new();
    while !body.is_empty() {
        let (frame, rest) = Frame::decode(body).unwrap();
        sequences.push(frame.header.key.sequence);
        classes.insert(frame.header.key.class);
        body = rest;
    }
    assert_eq!(classes.len(), 1, "a body of several classes");
    (classes.pop_first().unwrap(), sequences)
}

/// Stores, and says what is held.
fn take(seen: &(Mutex<Seen>, Condvar), class: u8, sequences: &[u64]) -> String {
    let mut seen = seen.0.lock().unwrap();
    let held = &mut seen.held[usize::from(class)];
    held.extend(sequences);
    let highest = held.last().copied().unwrap_or(0);
    let missing = |sequence: &u64| !held.contains(sequence);
    let contiguous = (0..=highest + 1).find(missing).unwrap();
    let holes: Vec<String> =
        (contiguous..highest).filter(missing).map(|hole| format!("[{hole},{hole}]")).collect();
    let run = "5a".repeat(8);
    let rest = format!(r#""contiguous":{contiguous},"holes":[{}]"#, holes.join(","));
    format!(
        r#"{{"streams":[{{"run":"{run}","class":{class},{rest}}}],"time_ns":{}}}"#,
        unix_time().as_nanos()
    )
}

pub(crate) fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
}
