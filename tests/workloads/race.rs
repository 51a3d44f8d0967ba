//! `workload-race`: threads that open and close one file, or a socket to send one datagram, as fast
//! as they can, so that each takes over the descriptor numbers of the others. Prints how many opens
//! it did, as one number.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tests::Result;

/// Opens without a pause: about what the ring holds of them.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(4);

fn main() -> Result {
    let (mut file, mut threads, mut opens) = (PathBuf::new(), 4, 5_000);
    let (mut peer, mut pause) = (None, PAUSE);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("file") => file = parser.value()?.into(),
            Arg::Long("send") => peer = Some(parser.value()?.parse()?),
            Arg::Long("no-pause") => pause = Duration::ZERO,
            Arg::Long("threads") => threads = parser.value()?.parse()?,
            Arg::Long("opens") => opens = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    std::thread::scope(|scope| -> Result {
        let started: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| open_and_close(&file, peer, opens, pause)))
            .collect();
        for thread in started {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })?;
    println!("{}", threads * opens);
    Ok(())
}

fn open_and_close(file: &Path, peer: Option<SocketAddr>, opens: usize, pause: Duration) -> Result {
    for number in 1..=opens {
        match peer {
            Some(peer) => {
                UdpSocket::bind(("127.0.0.1", 0))?.send_to(b"datagram", peer)?;
            }
            None => drop(rustix::fs::open(file, OFlags::RDONLY, Mode::empty())?),
        }
        if number % BURST == 0 {
            std::thread::sleep(pause);
        }
    }
    Ok(())
}
