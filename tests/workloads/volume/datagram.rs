//! UDP: connected sockets, and unconnected ones with several peers.
//!
//! Each client sends one datagram and waits for the answer before the next, so no socket's
//! buffer ever fills and nothing is lost.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny};
use tests::Result;
use tests::tally::{Object, Tally};

use crate::{Plan, Random, in_threads};

/// Largest datagram, bytes.
const DATAGRAM_BYTES_MAX: usize = 1400;
/// Servers that an unconnected client talks to in turn.
const SERVERS: usize = 2;
const UDP: u8 = 17;

/// Clients in threads of their own, connected and unconnected by turns, and two servers.
pub(crate) fn exchange(plan: &Plan, address: &str) -> Result<Tally> {
    let servers: Vec<UdpSocket> =
        (0..SERVERS).map(|_| UdpSocket::bind(address)).collect::<std::io::Result<_>>()?;
    let names: Vec<SocketAddr> =
        servers.iter().map(UdpSocket::local_addr).collect::<std::io::Result<_>>()?;
    std::thread::scope(|scope| {
        let serving: Vec<_> = servers
            .iter()
            .enumerate()
            .map(|(index, socket)| scope.spawn(move || serve(plan, index, socket)))
            .collect();
        let mut tally = in_threads(plan, |thread| {
            if plan.null {
                return Ok(Tally::default());
            }
            let socket = UdpSocket::bind(address)?;
            if thread % 2 == 0 {
                ask_unconnected(plan, thread, &socket, &names)
            } else {
                let server = names.get(thread as usize / 2 % SERVERS).ok_or("no server")?;
                ask_connected(plan, thread, &socket, *server)
            }
        })?;
        for server in serving {
            tally.add(server.join().map_err(|_| "a datagram server panicked")??);
        }
        Ok(tally)
    })
}

/// Datagrams that a server will get: unconnected clients go round, connected ones stay.
fn expected(plan: &Plan, index: usize) -> u64 {
    if plan.null {
        return 0;
    }
    (0..plan.threads)
        .map(|thread| {
            if thread % 2 == 0 {
                (0..plan.calls).filter(|call| *call as usize % SERVERS == index).count() as u64
            } else if thread as usize / 2 % SERVERS == index {
                plan.calls
            } else {
                0
            }
        })
        .sum()
}

fn serve(plan: &Plan, index: usize, socket: &UdpSocket) -> Result<Tally> {
    let mut tally = Tally::default();
    let server = socket.local_addr()?;
    let mut random = Random::new(plan.seed, index as u64);
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    for form in 0..expected(plan, index) {
        let client = receive_from(&mut tally, form, socket, &mut buffer, |peer| Object::Network {
            protocol: UDP,
            client: peer,
            server,
        })?;
        let object = Object::Network { protocol: UDP, client, server };
        let part = buffer.get(..random.size(DATAGRAM_BYTES_MAX)).unwrap_or_default();
        send_to(&mut tally, form / 2, socket, &object, part, client)?;
    }
    Ok(tally)
}

fn ask_unconnected(
    plan: &Plan,
    lane: u64,
    socket: &UdpSocket,
    servers: &[SocketAddr],
) -> Result<Tally> {
    let mut tally = Tally::default();
    let client = socket.local_addr()?;
    let mut random = Random::new(plan.seed, lane);
    let mut buffer = [b'u'; DATAGRAM_BYTES_MAX];
    for (form, server) in (0..plan.calls).zip(servers.iter().cycle()) {
        let object = Object::Network { protocol: UDP, client, server: *server };
        let part = buffer.get(..random.size(DATAGRAM_BYTES_MAX)).unwrap_or_default();
        send_to(&mut tally, form, socket, &object, part, *server)?;
        let peer = receive_from(&mut tally, form / 2, socket, &mut buffer, |peer| {
            Object::Network { protocol: UDP, client, server: peer }
        })?;
        if peer != *server {
            return Err(format!("asked {server}, answered by {peer}").into());
        }
    }
    Ok(tally)
}

fn ask_connected(plan: &Plan, lane: u64, socket: &UdpSocket, server: SocketAddr) -> Result<Tally> {
    let mut tally = Tally::default();
    socket.connect(server)?;
    let object = Object::Network { protocol: UDP, client: socket.local_addr()?, server };
    let mut random = Random::new(plan.seed, lane);
    let mut buffer = [b'c'; DATAGRAM_BYTES_MAX];
    for form in 0..plan.calls {
        // `write` and `writev` of no bytes send nothing to a socket; `send` sends an empty
        // datagram, which the server must see.
        let size = random.size(DATAGRAM_BYTES_MAX);
        let part = buffer.get(..size).unwrap_or_default();
        tally.send(if size == 0 { 0 } else { form }, socket, &object, part)?;
        tally.receive(form / 2, socket, &object, &mut buffer)?;
    }
    Ok(tally)
}

fn send_to(
    tally: &mut Tally,
    form: u64,
    socket: &UdpSocket,
    object: &Object,
    bytes: &[u8],
    to: SocketAddr,
) -> Result {
    if form.is_multiple_of(2) {
        let result = rustix::net::sendto(socket, bytes, SendFlags::empty(), &to);
        tally.write_call("sendto", socket.as_fd(), object, result)?;
    } else {
        let mut ancillary = SendAncillaryBuffer::default();
        let parts = &[IoSlice::new(bytes)];
        let result =
            rustix::net::sendmsg_addr(socket, &to, parts, &mut ancillary, SendFlags::empty());
        tally.write_call("sendmsg", socket.as_fd(), object, result)?;
    }
    Ok(())
}

/// Receives one datagram and counts it for the peer that it came from, whom it returns.
fn receive_from(
    tally: &mut Tally,
    form: u64,
    socket: &UdpSocket,
    buffer: &mut [u8],
    object: impl Fn(SocketAddr) -> Object,
) -> Result<SocketAddr> {
    let (call, bytes, peer) = if form.is_multiple_of(2) {
        let (bytes, _, peer) = rustix::net::recvfrom(socket, buffer, RecvFlags::empty())?;
        ("recvfrom", bytes, peer)
    } else {
        let mut ancillary = RecvAncillaryBuffer::default();
        let parts = &mut [IoSliceMut::new(buffer)];
        let message = rustix::net::recvmsg(socket, parts, &mut ancillary, RecvFlags::empty())?;
        ("recvmsg", message.bytes, message.address)
    };
    let peer = socket_address(peer.ok_or("a datagram came without its sender")?)?;
    tally.read_call(call, socket.as_fd(), &object(peer), Ok(bytes))?;
    Ok(peer)
}

fn socket_address(address: SocketAddrAny) -> Result<SocketAddr> {
    SocketAddr::try_from(address).map_err(|e| format!("sender's address: {e}").into())
}
