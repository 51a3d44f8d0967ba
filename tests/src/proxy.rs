//! A TCP proxy between agent and collector that can hold back and cut connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Result;

/// Time between two looks at the switches.
const PAUSE: Duration = Duration::from_millis(10);

/// The switches, shared with the proxy's threads.
#[derive(Debug)]
struct Switches {
    target: Mutex<SocketAddr>,
    /// Bytes towards the collector after which each new connection is cut; `u64::MAX`: never.
    cut_after_bytes: AtomicU64,
    /// Bytes of answers let through on each new connection before it is cut.
    answer_bytes: AtomicU64,
    /// How long before that the connection stands still.
    hold_ms: AtomicU64,
    /// Bytes of answers after which all goes back twice; `u64::MAX`: never.
    repeat_after_bytes: AtomicU64,
    delay_ms: AtomicU64,
    ended: AtomicBool,
    cuts: AtomicU64,
    delays: AtomicU64,
    repeats: AtomicU64,
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    switches: Arc<Switches>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy to `target` on a free port of the loopback.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn start(target: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let switches = Arc::new(Switches {
            target: Mutex::new(target),
            cut_after_bytes: AtomicU64::new(u64::MAX),
            answer_bytes: AtomicU64::new(u64::MAX),
            hold_ms: AtomicU64::new(0),
            repeat_after_bytes: AtomicU64::new(u64::MAX),
            delay_ms: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
            delays: AtomicU64::new(0),
            repeats: AtomicU64::new(0),
        });
        let shared = Arc::clone(&switches);
        let accepting = std::thread::spawn(move || accept(&listener, &shared));
        Ok(Proxy { address, switches, accepting: Some(accepting) })
    }

    /// Sends connections from now on to another address.
    pub fn retarget(&self, target: SocketAddr) {
        *self.switches.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Cuts each connection from now on after so many bytes towards the collector; none
    /// lets them live.
    pub fn cut_after(&self, bytes: Option<u64>) {
        self.switches.cut_after_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Cuts each connection from now on after so many bytes of answers: the collector has
    /// stored what the agent sent, but the agent does not hear of it.
    pub fn cut_answers_after(&self, bytes: Option<u64>) {
        self.switches.answer_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Lets connections whose answers are to be cut stand still for so long before.
    pub fn hold(&self, time: Duration) {
        self.switches.hold_ms.store(milliseconds(time), Ordering::SeqCst);
    }

    /// Sends everything back twice on each connection from now on, after so many bytes of answers.
    pub fn repeat_answers_after(&self, bytes: Option<u64>) {
        self.switches.repeat_after_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Holds back each piece of data by so much.
    pub fn delay(&self, delay: Duration) {
        self.switches.delay_ms.store(milliseconds(delay), Ordering::SeqCst);
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.switches.cuts.load(Ordering::SeqCst)
    }

    /// Pieces of data held back so far.
    pub fn delays(&self) -> u64 {
        self.switches.delays.load(Ordering::SeqCst)
    }

    /// Pieces of answers sent twice so far.
    pub fn repeats(&self) -> u64 {
        self.switches.repeats.load(Ordering::SeqCst)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.switches.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; if it is gone already, so much the better.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, switches: &Arc<Switches>) {
    for client in listener.incoming() {
        if switches.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let target = *switches.target.lock().unwrap_or_else(PoisonError::into_inner);
        // A target that does not answer looks to the client like a closed port.
        let Ok(server) = TcpStream::connect(target) else { continue };
        let shared = Arc::clone(switches);
        std::thread::spawn(move || {
            // A connection that breaks is what proxies are for; its ends notice.
            let _ = relay(&client, &server, &shared);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }
}

/// What may befall the data of one direction of a connection.
#[derive(Clone, Copy)]
struct Limits {
    /// It is cut after so many bytes, ...
    bytes: u64,
    /// ... having stood still for so long.
    hold: Duration,
    /// All goes through twice after so many bytes.
    repeat_after_bytes: u64,
}

fn relay(client: &TcpStream, server: &TcpStream, switches: &Switches) -> std::io::Result<()> {
    let forward = Limits {
        bytes: switches.cut_after_bytes.load(Ordering::SeqCst),
        hold: Duration::ZERO,
        repeat_after_bytes: u64::MAX,
    };
    let backward = Limits {
        bytes: switches.answer_bytes.load(Ordering::SeqCst),
        hold: Duration::from_millis(switches.hold_ms.load(Ordering::SeqCst)),
        repeat_after_bytes: switches.repeat_after_bytes.load(Ordering::SeqCst),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ended = pass(server, client, backward, switches);
            let _ = client.shutdown(Shutdown::Both);
            ended
        });
        let ended = pass(client, server, forward, switches);
        let _ = server.shutdown(Shutdown::Write);
        ended
    })
}

/// Stands still for so long as `time` says, which may change meanwhile.
fn stand(time: impl Fn() -> Duration) {
    let mut waited = Duration::ZERO;
    while waited < time() {
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

/// Passes data on until its source ends, or it is cut.
fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    limits: Limits,
    switches: &Switches,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    let (mut left, mut passed) = (limits.bytes, 0);
    loop {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..room).unwrap_or_default();
        if part.is_empty() {
            stand(|| limits.hold);
            switches.cuts.fetch_add(1, Ordering::SeqCst);
            from.shutdown(Shutdown::Both)?;
            return to.shutdown(Shutdown::Both);
        }
        let bytes = from.read(part)?;
        if bytes == 0 {
            return Ok(());
        }
        left -= bytes as u64;
        let delay = || Duration::from_millis(switches.delay_ms.load(Ordering::SeqCst));
        switches.delays.fetch_add(u64::from(!delay().is_zero()), Ordering::SeqCst);
        stand(delay);
        let data = buffer.get(..bytes).unwrap_or_default();
        to.write_all(data)?;
        if passed >= limits.repeat_after_bytes {
            switches.repeats.fetch_add(1, Ordering::SeqCst);
            to.write_all(data)?;
        }
        passed += bytes as u64;
    }
}
