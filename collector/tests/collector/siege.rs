//! Many hostile clients at once: memory stays within what the configuration allows, and an
//! honest device is served.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::client::{Client, hello, post_head};
use crate::harness::frames::Run;
use crate::harness::{Collector, Site, until};

const BODY_BYTES_MAX: u64 = 1 << 20;
const UPLOADS_MAX: u64 = 8;
const CONNECTIONS_MAX: u64 = 64;
const HANDSHAKES_MAX: u64 = 128;

/// What the collector's page says of its memory.
const UPLOAD_BYTES: u64 = 1 << 20;
const CONNECTION_BYTES: u64 = 160 << 10;
const BASE_BYTES: u64 = 64 << 20;

fn memory_bound() -> u64 {
    UPLOADS_MAX * (BODY_BYTES_MAX + UPLOAD_BYTES)
        + (CONNECTIONS_MAX + HANDSHAKES_MAX + 16) * CONNECTION_BYTES
        + BASE_BYTES
}

fn site() -> Site {
    Site::new(&format!(
        "[limits]\nbody_bytes_max = {BODY_BYTES_MAX}\nuploads_max = {UPLOADS_MAX}\n\
         connections_max = {CONNECTIONS_MAX}\nhandshakes_max = {HANDSHAKES_MAX}\n\
         request_timeout_s = 4\n"
    ))
}

/// Lets this process have as many descriptors as it may; how many connections to hold.
fn connections_to_hold() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
    // The other tests of this process need some, too.
    let room = limit.maximum.unwrap_or(u64::MAX).saturating_sub(700);
    room.clamp(100, 2000) as usize
}

/// Opens connections that say `first` and nothing more, and keeps them.
fn hold(address: SocketAddr, count: usize, first: &[u8], stop: &AtomicBool) {
    let mut held = Vec::new();
    while held.len() < count && !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        // It may have had to give way already.
        let _ = stream.write_all(first);
        held.push(stream);
    }
    wait_for(stop);
}

fn wait_for(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Sends garbage where TLS belongs, over and over.
fn babble(address: SocketAddr, stop: &AtomicBool) -> u64 {
    let garbage: Vec<u8> = (0..4096_u32).map(|n| (n * 31 % 251) as u8).collect();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        let _ = stream.write_all(&garbage);
        let _ = stream.read(&mut [0; 64]);
        count += 1;
    }
    count
}

/// Sends a request byte by byte, with a good certificate, again when it is cut off.
fn dribble(collector: &Collector<'_>, agent: &str, request: &[u8], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut client = collector.connect(agent);
        for byte in request {
            if stop.load(Ordering::Relaxed) || client.send(&[*byte]).is_err() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Sends bodies as large as may be: of frames as small as can be, or of nothing that is one.
fn stuff(collector: &Collector<'_>, agent: &'static str, stop: &AtomicBool) {
    let run = Run::new(agent, 7);
    let mut small = run.start(0, 0);
    let mut sequence = 1;
    while (small.len() as u64) < BODY_BYTES_MAX - 256 {
        small.extend(run.next(0, sequence));
        sequence += 1;
    }
    let nonsense = vec![0x5a; BODY_BYTES_MAX as usize];
    while !stop.load(Ordering::Relaxed) {
        let mut client = collector.connect(agent);
        for body in [&small, &nonsense] {
            if let Ok(answer) = client.try_post(body) {
                assert!(matches!(answer.status, 400 | 413 | 503), "{}", answer.status);
            }
        }
    }
}

/// An honest device: sends frame after frame, each until it is acknowledged. Returns the most
/// attempts that one took.
fn upload(collector: &Collector<'_>, agent: &'static str, frames: u64, done: &AtomicU64) -> u64 {
    let run = Run::new(agent, 1);
    let mut client: Option<Client> = None;
    let mut worst = 0;
    for sequence in 0..frames {
        let bytes = if sequence == 0 { run.start(0, 0) } else { run.next(0, sequence) };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let connected = client.get_or_insert_with(|| collector.connect(agent));
            match connected.try_post(&bytes) {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => assert_eq!(answer.status, 503),
                Err(_) => {}
            }
            client = None;
        }
        worst = worst.max(attempts);
        done.store(sequence + 1, Ordering::Relaxed);
    }
    worst
}

#[test]
fn under_siege_memory_is_bounded_and_an_honest_device_is_served() {
    const FRAMES: u64 = 60;
    let hold_count = connections_to_hold();
    let site = site();
    let collector = site.start();
    let before = collector.memory_peak_bytes();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = collector.address;
    let head = format!("{}host: c\r\n\r\n", post_head(BODY_BYTES_MAX as usize));
    let (worst, babbled) = std::thread::scope(|scope| {
        let (stop, collector, head) = (&stop, &collector, &head);
        scope.spawn(move || hold(address, hold_count * 2 / 3, b"", stop));
        scope.spawn(move || hold(address, hold_count / 3, &hello(), stop));
        let babblers: Vec<_> = (0..3).map(|_| scope.spawn(move || babble(address, stop))).collect();
        for agent in ["head-1", "head-2", "head-3", "head-4"] {
            scope.spawn(move || dribble(collector, agent, head.as_bytes(), stop));
        }
        // All places for uploads, twice.
        for number in 0..2 * UPLOADS_MAX {
            scope.spawn(move || slow_body(collector, &format!("slow-{number}"), head, stop));
        }
        for agent in ["stuff-1", "stuff-2"] {
            scope.spawn(move || stuff(collector, agent, stop));
        }
        let honest = scope.spawn(|| upload(collector, "honest", FRAMES, &done));
        // The besiegers end also where the device has failed.
        let worst = honest.join();
        stop.store(true, Ordering::Relaxed);
        let babbled: u64 = babblers.into_iter().map(|babbler| babbler.join().unwrap()).sum();
        (worst.unwrap(), babbled)
    });
    let (peak, bound) = (collector.memory_peak_bytes(), memory_bound());
    println!(
        "{hold_count} connections held, {babbled} that sent garbage; the honest device needed at \
         most {worst} attempts for a frame; memory {} KiB before, {} KiB at most, bound {} KiB; \
         log {} bytes",
        before >> 10,
        peak >> 10,
        bound >> 10,
        site.log().len(),
    );
    assert!(peak <= bound, "{peak} bytes, allowed are {bound}");
    assert!(site.log().len() < 1 << 20, "strangers fill the log");
    let run = Run::new("honest", 1);
    let stored: Vec<_> = site
        .stored("frame")
        .into_iter()
        .filter(|path| path.starts_with(site.store().join("honest")))
        .collect();
    assert_eq!(stored.len() as u64, FRAMES);
    for (sequence, path) in (0..).zip(&stored) {
        let sent = if sequence == 0 { run.start(0, 0) } else { run.next(0, sequence) };
        assert!(std::fs::read(path).unwrap() == sent, "frame {sequence}");
    }
    let refused = collector.health()["handshakes_refused"].clone();
    assert!(refused["crowded-out"].as_u64() > Some(0), "{refused}");
}

/// Announces a large body and sends it byte by byte.
fn slow_body(collector: &Collector<'_>, agent: &str, head: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut client = collector.connect(agent);
        if client.send(head.as_bytes()).is_err() {
            continue;
        }
        while !stop.load(Ordering::Relaxed) && client.send(b"S").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_device_that_opens_many_connections_keeps_nobody_else_out() {
    let site = Site::new("[limits]\nconnections_max = 4\nagent_connections_max = 2\n");
    let collector = site.start();
    let mut greedy: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = collector.connect("gw-1");
            assert_eq!(client.get("/v1/health").status, 200);
            client
        })
        .collect();
    // Its oldest ones gave way to its newest.
    assert!(greedy[..6].iter_mut().all(Client::is_gone));
    assert_eq!(greedy[7].get("/v1/health").status, 200);
    let mut other = collector.connect("gw-2");
    assert_eq!(other.post(&Run::new("gw-2", 1).start(0, 0)).status, 200);
}

#[test]
fn idle_connections_give_way_where_all_places_are_taken() {
    let site = Site::new("[limits]\nconnections_max = 2\n");
    let collector = site.start();
    let mut idle = ["gw-1", "gw-2"].map(|agent| {
        let mut client = collector.connect(agent);
        assert_eq!(client.get("/v1/health").status, 200);
        client
    });
    until("a place", || (collector.connect("gw-3").get("/v1/health").status == 200).then_some(()));
    assert!(idle[0].is_gone(), "the one that was idle longest");
}

#[test]
fn a_client_that_takes_no_answers_is_let_go() {
    let site = Site::new("[limits]\nrequest_timeout_s = 1\n");
    let collector = site.start();
    let mut client = collector.connect("gw-1");
    client.socket().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let request = "GET /v1/health HTTP/1.1\r\nhost: c\r\n\r\n".repeat(100);
    until("the end of the connection", || match client.send(request.as_bytes()) {
        Ok(()) => None,
        // The buffers are full.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(_) => Some(()),
    });
}

#[test]
fn a_connection_that_asks_for_nothing_is_let_go() {
    let site = Site::new("[limits]\nrequest_timeout_s = 1\n");
    let collector = site.start();
    let mut never = collector.connect("gw-1");
    never.send(b"").unwrap();
    let mut once = collector.connect("gw-2");
    assert_eq!(once.get("/v1/health").status, 200);
    assert!(once.is_gone());
    assert!(never.is_gone());
}
