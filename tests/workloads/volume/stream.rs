//! Stream sockets: unix pairs and listeners, and TCP over both address families.
//!
//! On each connection one side asks (sends all, shuts down, receives to the end) and the
//! other answers (receives to the end, sends all, closes), so neither ever waits for the
//! other's buffer.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use tests::Result;
use tests::tally::{Object, Tally};
use tests::truth::{Name, Truth};

use crate::{Plan, Random, Worker, in_threads};

/// Largest call on a stream, bytes.
const CALL_BYTES_MAX: usize = 4096;
/// Buffer of a receiver, bytes.
const RECEIVE_BYTES: usize = 16 * 1024;
const TCP: u8 = 6;

fn ask(plan: &Plan, lane: u64, fd: &impl AsFd, object: &Object) -> Result<Tally> {
    let mut tally = Tally::default();
    tally.touch(fd, object);
    send(plan, lane, fd, object, &mut tally)?;
    rustix::net::shutdown(fd, rustix::net::Shutdown::Write)?;
    tally.receive_all(lane, fd, object, &mut [0; RECEIVE_BYTES])?;
    Ok(tally)
}

fn answer(plan: &Plan, lane: u64, fd: &impl AsFd, object: &Object) -> Result<Tally> {
    let mut tally = Tally::default();
    tally.receive_all(lane + 1, fd, object, &mut [0; RECEIVE_BYTES])?;
    send(plan, lane + 2, fd, object, &mut tally)?;
    Ok(tally)
}

fn send(plan: &Plan, lane: u64, fd: &impl AsFd, object: &Object, tally: &mut Tally) -> Result {
    let mut random = Random::new(plan.seed, lane);
    let buffer = [b't'; CALL_BYTES_MAX];
    for _ in 0..plan.calls {
        // A send of no bytes is a call all the same; on a stream the peer cannot see it.
        let part = buffer.get(..random.size(CALL_BYTES_MAX)).unwrap_or_default();
        if part.is_empty() {
            tally.send(random.next(), fd, object, part)?;
        } else {
            tally.send_all(random.next(), fd, object, part, CALL_BYTES_MAX)?;
        }
    }
    Ok(())
}

/// A pair of connected unix sockets.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (a, b) = UnixStream::pair()?;
    Ok((a.into(), b.into()))
}

/// Two threads on the ends of a pair.
pub(crate) fn socket_pair(plan: &Plan) -> Result<Tally> {
    let (near, far) = pair()?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer_on(plan, far));
        let mut tally = ask_alone(plan, near)?;
        tally.add(answering.join().map_err(|_| "the answering thread panicked")??);
        Ok(tally)
    })
}

fn answer_on(plan: &Plan, far: OwnedFd) -> Result<Tally> {
    if plan.null { Ok(Tally::default()) } else { answer_alone(plan, &far) }
}

/// Asks on one end of a pair, whoever holds the other.
pub(crate) fn ask_alone(plan: &Plan, near: OwnedFd) -> Result<Tally> {
    if plan.null {
        return Ok(Tally::default());
    }
    ask(plan, 1 << 34, &near, &Object::unnamed_socket(false))
}

/// Answers on one end of a pair, whoever holds the other.
pub(crate) fn answer_alone(plan: &Plan, far: &impl AsFd) -> Result<Tally> {
    answer(plan, 1 << 35, far, &Object::unnamed_socket(false))
}

/// Threads that connect to a named socket, and one that accepts them.
pub(crate) fn unix_listener(plan: &Plan) -> Result<Tally> {
    let path = plan.directory.join("volume.sock");
    let listener = UnixListener::bind(&path)?;
    let object = Object::File { kind: 'u', path: Name::from(path.as_path()), opened: true };
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<Tally> {
            let mut tally = Tally::default();
            for lane in 0..if plan.null { 0 } else { plan.threads } {
                let (connection, _) = listener.accept()?;
                tally.add(answer(plan, lane << 8, &connection, &object)?);
            }
            Ok(tally)
        });
        let mut tally = in_threads(plan, |thread| {
            if plan.null {
                return Ok(Tally::default());
            }
            let connection = UnixStream::connect(&path)?;
            ask(plan, thread, &connection, &object)
        })?;
        tally.add(serving.join().map_err(|_| "the accepting thread panicked")??);
        Ok(tally)
    })
}

/// Threads that connect over TCP to another process, which inherits the listening socket.
pub(crate) fn tcp(plan: &Plan, address: &str, workers: &mut Truth) -> Result<Tally> {
    let listener = TcpListener::bind(address)?;
    let server = listener.local_addr()?;
    let name = if server.is_ipv6() { "tcp6" } else { "tcp4" };
    let worker = Worker::start(plan, "serve", name, listener.into())?;
    let tally = in_threads(plan, |thread| {
        if plan.null {
            return Ok(Tally::default());
        }
        let connection = TcpStream::connect(server)?;
        let object = connection_object(connection.local_addr()?, server);
        ask(plan, thread, &connection, &object)
    })?;
    worker.finish(workers)?;
    Ok(tally)
}

/// The other process of [`tcp`]: a thread for each connection.
pub(crate) fn serve(plan: &Plan, listener: OwnedFd) -> Result<Tally> {
    let listener = TcpListener::from(listener);
    in_threads(plan, |thread| {
        if plan.null {
            return Ok(Tally::default());
        }
        let (connection, peer) = listener.accept()?;
        let object = connection_object(peer, connection.local_addr()?);
        let tally = answer(plan, thread << 8, &connection, &object)?;
        connection.shutdown(Shutdown::Both)?;
        Ok(tally)
    })
}

fn connection_object(client: SocketAddr, server: SocketAddr) -> Object {
    Object::Network { protocol: TCP, client, server }
}
